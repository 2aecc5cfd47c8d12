//! The pace at which a node that stops closes its connections.

use std::time::{Duration, Instant};

use crate::digest::Heard;
use crate::rate::Paced;

/// Parameters of a drain.
#[derive(Clone, PartialEq, Debug)]
pub struct DrainSettings {
    /// The time over which connections are closed when nothing speaks against it. 30 s spreads the reconnects of a
    /// small node; manifests for Kubernetes set 240 s within a grace period of 330 s.
    pub window: Duration,
    /// How far the pace varies around the even one, so that nodes that drain together do not close in step.
    pub jitter: f64,
    /// The part of the others' free accept capacity that all draining nodes together may claim: the other half is for
    /// the clients that come anyway, and for retries.
    pub part_of_spare: f64,
    /// The least rate, so that a node with little to go is not kept for ever by what others report.
    pub least_rate: f64,
    /// The last closes end this long before the deadline: a peer has 5 s to answer a close frame, and 2 s are for the
    /// last commands.
    pub margin: Duration,
    /// An older digest says nothing about the others' capacity.
    pub digest_stale: Duration,
}

impl Default for DrainSettings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(30),
            jitter: 0.2,
            part_of_spare: 0.5,
            least_rate: 1.0,
            margin: Duration::from_secs(7),
            digest_stale: Duration::from_secs(15),
        }
    }
}

/// What sets the pace of a drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PaceSetter {
    /// The window: closes are spread evenly over what is left of it.
    Window,
    /// The others cannot accept that many, and there is time: it is slower.
    SpareAccepts,
    /// The others cannot accept that many, but the deadline comes: it is faster than they can follow.
    Deadline,
}

/// The connections to close now.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pace {
    /// So many.
    pub close: u64,
    /// Per second; not finite when everything is due at once.
    pub rate: f64,
    /// What decided.
    pub set_by: PaceSetter,
}

/// One drain, from its first close on.
#[derive(Clone, Debug)]
pub struct Drain {
    settings: DrainSettings,
    window_end: Instant,
    /// When the last connection must be closed: not before the window ends.
    last_close: Instant,
    paced: Paced,
}

impl Drain {
    /// Begins to close at `now`. `deadline` is when the process will be killed, if that is known: then the drain may
    /// take longer than its window when the others are short of capacity. `phase` is in 0..1 and differs for each node.
    pub fn new(settings: DrainSettings, now: Instant, deadline: Option<Instant>, phase: f64) -> Self {
        let latest = deadline.map(|deadline| deadline.checked_sub(settings.margin).unwrap_or(now));
        let window_end = now + settings.window;
        let window_end = latest.map_or(window_end, |latest| window_end.min(latest));
        let last_close = latest.unwrap_or(window_end);
        Self { settings, window_end, last_close, paced: Paced::new(phase) }
    }

    /// When the last connection will have been told to go, at the latest.
    pub fn ends_by(&self) -> Instant {
        self.last_close
    }

    /// What to close now, with `remaining` connections that have not been told to go yet. `random` in 0..1 varies the
    /// pace. To be called ten times a second or so.
    pub fn tick(&mut self, now: Instant, remaining: u64, heard: Option<Heard<'_>>, random: f64) -> Pace {
        let (rate, set_by) = self.rate(now, remaining as f64, heard);
        let jitter = 1.0 + self.settings.jitter * (2.0 * random.clamp(0.0, 1.0) - 1.0);
        let close = if rate.is_finite() { self.paced.due(now, rate * jitter, remaining) } else { remaining };
        Pace { close, rate, set_by }
    }

    fn rate(&self, now: Instant, remaining: f64, heard: Option<Heard<'_>>) -> (f64, PaceSetter) {
        let until = |end: Instant| remaining / end.saturating_duration_since(now).as_secs_f64();
        if remaining == 0.0 {
            return (0.0, PaceSetter::Window);
        }
        let wanted = until(self.window_end);
        let Some(possible) = self.possible(now, heard) else { return (wanted, PaceSetter::Window) };
        if wanted <= possible {
            return (wanted, PaceSetter::Window);
        }
        let needed = until(self.last_close);
        if needed > possible { (needed, PaceSetter::Deadline) } else { (possible, PaceSetter::SpareAccepts) }
    }

    /// What the others can accept from this node per second, if that is known.
    fn possible(&self, now: Instant, heard: Option<Heard<'_>>) -> Option<f64> {
        let heard = heard.filter(|heard| heard.age(now) <= self.settings.digest_stale)?;
        let spare = heard.digest.spare?;
        // A node that has drained may stay as long as it likes: it claims nothing.
        let claiming = heard.digest.emptying.unwrap_or(heard.digest.draining);
        // The digest may be from before this node began.
        let share = self.settings.part_of_spare * spare / claiming.max(1) as f64;
        Some(share.max(self.settings.least_rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    /// Connections left after each second of a drain, when the others can accept `spare` more per second.
    fn run(connections: u64, deadline: Option<f64>, spare: Option<f64>, draining: u64) -> (Vec<u64>, PaceSetter) {
        let start = Instant::now();
        let mut drain = Drain::new(DrainSettings::default(), start, deadline.map(|seconds| at(start, seconds)), 0.0);
        let digest = Digest { spare, draining, ..Digest::empty(1, 1) };
        let mut left = connections;
        let mut curve = Vec::new();
        let mut set_by = PaceSetter::Window;
        for tenth in 0..=4000u32 {
            let now = at(start, f64::from(tenth) / 10.0);
            let random = f64::from(tenth * 7 % 10) / 9.0;
            let pace = drain.tick(now, left, Some(Heard { digest: &digest, at: now }), random);
            if tenth == 50 {
                set_by = pace.set_by;
            }
            left -= pace.close;
            if tenth % 10 == 0 {
                curve.push(left);
            }
        }
        (curve, set_by)
    }

    #[test]
    fn closes_are_spread_evenly_over_the_window() {
        let (curve, set_by) = run(3000, None, Some(1e6), 1);
        assert_eq!(set_by, PaceSetter::Window);
        for (second, left) in curve.iter().enumerate().take(30) {
            let even = 3000 - 100 * second as i64;
            assert!((*left as i64 - even).abs() < 60, "{left} left after {second} s");
        }
        assert_eq!(curve[30], 0);
        assert_eq!(run(3000, None, None, 1).0[30], 0);
        assert_eq!(run(3, None, None, 1).0[30], 0);
    }

    #[test]
    fn it_takes_longer_when_others_are_short_of_capacity_and_there_is_time() {
        // Half of 80 per second, for two nodes: 20 per second take 150 s.
        let (curve, set_by) = run(3000, Some(330.0), Some(80.0), 2);
        assert_eq!(set_by, PaceSetter::SpareAccepts);
        assert!((2300..2500).contains(&curve[30]), "{}", curve[30]);
        assert!((135..=165).contains(&curve.iter().position(|left| *left == 0).expect("it ends")));
        // Without a deadline there is no more time than the window.
        assert_eq!(run(3000, None, Some(80.0), 2).0[30], 0);
    }

    #[test]
    fn only_nodes_with_connections_left_share_what_the_others_can_accept() {
        let now = Instant::now();
        let rate = |emptying| {
            let mut drain = Drain::new(DrainSettings::default(), now, Some(at(now, 330.0)), 0.0);
            let digest = Digest { spare: Some(80.0), draining: 4, emptying, ..Digest::empty(1, 1) };
            drain.tick(now, 3000, Some(Heard { digest: &digest, at: now }), 0.5).rate
        };
        assert_eq!((rate(Some(1)), rate(Some(2)), rate(Some(0))), (40.0, 20.0, 40.0));
        assert_eq!(rate(None), 10.0, "an older coordinator does not say");
    }

    #[test]
    fn the_deadline_goes_before_capacity() {
        let (curve, set_by) = run(3000, Some(107.0), Some(0.0), 1);
        assert_eq!(set_by, PaceSetter::Deadline);
        assert!((1400..1600).contains(&curve[50]), "{}", curve[50]);
        assert_eq!(curve[100], 0);
        // A deadline before the end of the window shortens it.
        assert_eq!(run(3000, Some(17.0), None, 1).0[10], 0);
        // One that is too near closes everything at once.
        assert_eq!(run(3000, Some(3.0), None, 1).0[0], 0);
    }
}
