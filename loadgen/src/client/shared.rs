//! What workers and the scenario tell each other while a run goes on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use hdrhistogram::Histogram;

use crate::sys;

/// Most different reasons kept in a [`Reasons`]; the rest is summed up.
const REASONS_MAX: usize = 50;

/// What a run is doing. It only ever moves on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Phase {
    /// Connections are being opened.
    Connect,
    /// All are open; the schedule runs once its start is known.
    Load,
    /// Workers hand in their results.
    Stop,
}

/// The common state of a run.
pub struct Shared {
    phase: AtomicU8,
    /// Start of the schedule on the monotonic clock; 0 while it is not known.
    start_ns: AtomicU64,
    /// All publishers are connected.
    pub publishers_ready: AtomicBool,
    /// All publishes are answered or given up.
    pub published: AtomicBool,
    /// A worker cannot go on, and has handed in why.
    pub broken: AtomicBool,
    /// When the run began, from which timelines count.
    pub origin_ns: u64,
    /// When publishing is to end although the schedule goes on; 0 while it is not.
    stop_publishing_ns: AtomicU64,
    /// When connections are to be dropped at once; 0 while they are not.
    drop_at_ns: AtomicU64,
    /// Connections are dropped steadily.
    pub dropping: AtomicBool,
    /// Join and leave events count.
    pub watching_presence: AtomicBool,
    /// One entry per worker.
    pub progress: Box<[Progress]>,
}

/// Running counts of one worker, on a cache line of their own: it writes them often.
#[derive(Default)]
#[repr(align(64))]
pub struct Progress {
    /// Connections that became ready.
    pub connected: AtomicU64,
    /// Connections that could not be opened.
    pub refused: AtomicU64,
    /// Connections that ended during the run.
    pub lost: AtomicU64,
    /// Messages delivered, each once per subscription.
    pub delivered: AtomicU64,
    /// Messages whose publish was answered or given up.
    pub published: AtomicU64,
    /// Connections that are up with all their subscriptions now.
    pub live: AtomicU64,
    /// Clients that stay away on purpose.
    pub away: AtomicU64,
    /// Times a connection came back after a cut.
    pub resumed: AtomicU64,
    /// Connections cut by the server or the network, or dropped.
    pub cut: AtomicU64,
}

/// The sum over all workers at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// See [`Progress::connected`].
    pub connected: u64,
    /// See [`Progress::refused`].
    pub refused: u64,
    /// See [`Progress::lost`].
    pub lost: u64,
    /// See [`Progress::delivered`].
    pub delivered: u64,
    /// See [`Progress::published`].
    pub published: u64,
    /// See [`Progress::live`].
    pub live: u64,
    /// See [`Progress::away`].
    pub away: u64,
    /// See [`Progress::resumed`].
    pub resumed: u64,
    /// See [`Progress::cut`].
    pub cut: u64,
}

impl Shared {
    /// The state before anything happened.
    pub fn new(workers: usize) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Connect as u8),
            start_ns: AtomicU64::new(0),
            publishers_ready: AtomicBool::new(false),
            published: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            origin_ns: sys::monotonic_ns(),
            stop_publishing_ns: AtomicU64::new(0),
            drop_at_ns: AtomicU64::new(0),
            dropping: AtomicBool::new(false),
            watching_presence: AtomicBool::new(false),
            progress: (0..workers).map(|_| Progress::default()).collect(),
        }
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Connect,
            1 => Phase::Load,
            _ => Phase::Stop,
        }
    }

    /// Moves on to a phase; going back is ignored.
    pub fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// When the schedule starts, if that is known.
    pub fn start_ns(&self) -> Option<u64> {
        match self.start_ns.load(Ordering::Acquire) {
            0 => None,
            start => Some(start),
        }
    }

    /// Sets the start; the first caller wins.
    pub fn set_start_ns(&self, start: u64) {
        // A lost race leaves the earlier value, which is what is wanted.
        let _ = self.start_ns.compare_exchange(0, start, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Ends publishing now: nothing more is sent, and what was sent is waited for.
    pub fn stop_publishing(&self) {
        self.stop_publishing_ns.store(sys::monotonic_ns(), Ordering::Release);
    }

    /// When publishing was ended before the end of the schedule.
    pub fn publishing_stopped_ns(&self) -> Option<u64> {
        Some(self.stop_publishing_ns.load(Ordering::Acquire)).filter(|stop| *stop > 0)
    }

    /// Has the share of the connections that the plan names dropped at this moment.
    pub fn drop_at(&self, at_ns: u64) {
        self.drop_at_ns.store(at_ns, Ordering::Release);
    }

    /// When connections are to be dropped at once.
    pub fn drop_at_ns(&self) -> Option<u64> {
        Some(self.drop_at_ns.load(Ordering::Acquire)).filter(|at| *at > 0)
    }

    /// Adds up all workers.
    pub fn totals(&self) -> Totals {
        self.progress.iter().fold(Totals::default(), |sum, worker| Totals {
            connected: sum.connected + worker.connected.load(Ordering::Relaxed),
            refused: sum.refused + worker.refused.load(Ordering::Relaxed),
            lost: sum.lost + worker.lost.load(Ordering::Relaxed),
            delivered: sum.delivered + worker.delivered.load(Ordering::Relaxed),
            published: sum.published + worker.published.load(Ordering::Relaxed),
            live: sum.live + worker.live.load(Ordering::Relaxed),
            away: sum.away + worker.away.load(Ordering::Relaxed),
            resumed: sum.resumed + worker.resumed.load(Ordering::Relaxed),
            cut: sum.cut + worker.cut.load(Ordering::Relaxed),
        })
    }
}

/// How often something went wrong, by what the server or the system said about it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reasons(BTreeMap<String, u64>);

impl Reasons {
    /// Counts one.
    pub fn count(&mut self, reason: &str) {
        self.add(reason, 1);
    }

    fn add(&mut self, reason: &str, times: u64) {
        let full = self.0.len() >= REASONS_MAX && !self.0.contains_key(reason);
        *self.0.entry(if full { "others" } else { reason }.to_owned()).or_default() += times;
    }

    /// Adds another worker's.
    pub fn merge(&mut self, other: &Reasons) {
        other.0.iter().for_each(|(reason, times)| self.add(reason, *times));
    }

    /// Reason and count, in alphabetical order.
    pub fn into_map(self) -> BTreeMap<String, u64> {
        self.0
    }

    /// The most frequent one.
    pub fn first(&self) -> Option<&str> {
        self.0.iter().max_by_key(|(_, times)| **times).map(|(reason, _)| reason.as_str())
    }
}

/// A histogram of microseconds with three digits, up to ten minutes; longer ones count as ten minutes.
pub fn microseconds() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are valid constants")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_only_move_on_and_the_first_start_counts() {
        let shared = Shared::new(2);
        shared.enter(Phase::Stop);
        shared.enter(Phase::Load);
        assert_eq!(shared.phase(), Phase::Stop);
        assert_eq!(shared.start_ns(), None);
        shared.set_start_ns(5);
        shared.set_start_ns(6);
        assert_eq!(shared.start_ns(), Some(5));
    }

    #[test]
    fn the_number_of_reasons_is_bounded() {
        let mut reasons = Reasons::default();
        (0..1000).for_each(|i| reasons.count(&format!("reason {i}")));
        reasons.count("reason 3");
        let map = reasons.into_map();
        assert_eq!(map.len(), REASONS_MAX + 1);
        assert_eq!(map.values().sum::<u64>(), 1001);
        assert_eq!(map["reason 3"], 2);
    }
}
