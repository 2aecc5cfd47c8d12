//! What was done, for metrics.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;

/// What the agent sees and has done since the process started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// The last call to the API server was answered, whatever the answer. True before the first call.
    pub is_up: bool,
    /// Times that it was away.
    pub outages: u64,
    /// Calls that ended.
    pub calls: u64,
    /// Calls that were not answered, or with an error of the server.
    pub calls_failed: u64,
    /// Calls that were not answered in time.
    pub calls_timed_out: u64,
    /// Calls that were refused for lack of permission.
    pub calls_forbidden: u64,
    /// This node holds the lease.
    pub is_writer: bool,
    /// The term under which it does, or last did; 0 if it never did.
    pub term: u32,
    /// Times that this node took the lease.
    pub leases_taken: u64,
    /// Times that it lost the lease without having given it up.
    pub leases_lost: u64,
    /// Passes that left the slices as they should be, also if there was nothing to do.
    pub passes: u64,
    /// Passes that were broken off.
    pub passes_failed: u64,
    /// Slices created or changed.
    pub slices_written: u64,
    /// Slices removed.
    pub slices_deleted: u64,
    /// Writes that were refused because the slice had changed since it was read.
    pub conflicts: u64,
    /// Slices of the Service that somebody else keeps: with them it is not the gateway who decides.
    pub slices_foreign: u64,
    /// Pods seen.
    pub pods: u64,
    /// Those of them that connections may go to.
    pub pods_eligible: u64,
    /// Pods published.
    pub pods_open: u64,
    /// Times that the watch on pods began anew with a full list.
    pub watches_begun: u64,
    /// Marks set or removed.
    pub marks_written: u64,
    /// Decisions that were not newer than the last.
    pub decisions_stale: u64,
}

/// Counters behind [`Status`].
#[derive(Default)]
pub(crate) struct Health {
    pub(crate) calls: AtomicU64,
    pub(crate) calls_failed: AtomicU64,
    pub(crate) calls_timed_out: AtomicU64,
    pub(crate) calls_forbidden: AtomicU64,
    pub(crate) is_writer: AtomicBool,
    pub(crate) term: AtomicU32,
    pub(crate) leases_taken: AtomicU64,
    pub(crate) leases_lost: AtomicU64,
    pub(crate) passes: AtomicU64,
    pub(crate) passes_failed: AtomicU64,
    pub(crate) slices_written: AtomicU64,
    pub(crate) slices_deleted: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) slices_foreign: AtomicU64,
    pub(crate) pods: AtomicU64,
    pub(crate) pods_eligible: AtomicU64,
    pub(crate) pods_open: AtomicU64,
    pub(crate) watches_begun: AtomicU64,
    pub(crate) marks_written: AtomicU64,
    pub(crate) decisions_stale: AtomicU64,
    outage: Mutex<Outage>,
}

#[derive(Default)]
struct Outage {
    began: u64,
    since: Option<Instant>,
}

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Health {
    pub(crate) fn status(&self) -> Status {
        let (outages, is_up) = {
            let outage = self.outage.lock();
            (outage.began, outage.since.is_none())
        };
        Status {
            is_up,
            outages,
            calls: self.calls.load(Relaxed),
            calls_failed: self.calls_failed.load(Relaxed),
            calls_timed_out: self.calls_timed_out.load(Relaxed),
            calls_forbidden: self.calls_forbidden.load(Relaxed),
            is_writer: self.is_writer.load(Relaxed),
            term: self.term.load(Relaxed),
            leases_taken: self.leases_taken.load(Relaxed),
            leases_lost: self.leases_lost.load(Relaxed),
            passes: self.passes.load(Relaxed),
            passes_failed: self.passes_failed.load(Relaxed),
            slices_written: self.slices_written.load(Relaxed),
            slices_deleted: self.slices_deleted.load(Relaxed),
            conflicts: self.conflicts.load(Relaxed),
            slices_foreign: self.slices_foreign.load(Relaxed),
            pods: self.pods.load(Relaxed),
            pods_eligible: self.pods_eligible.load(Relaxed),
            pods_open: self.pods_open.load(Relaxed),
            watches_begun: self.watches_begun.load(Relaxed),
            marks_written: self.marks_written.load(Relaxed),
            decisions_stale: self.decisions_stale.load(Relaxed),
        }
    }

    /// The API server has answered what was asked at `asked`. An outage ends, with one line in the log, unless it began
    /// after that: an answer that was on its way when the server died says nothing.
    pub(crate) fn answered(&self, asked: Instant) {
        let Some(since) = self.outage.lock().since.take_if(|since| *since <= asked) else { return };
        let outage_ms = since.elapsed().as_millis();
        tracing::info!(outage_ms, "the Kubernetes API server is back");
    }

    /// It has not. An outage begins, with one line in the log.
    pub(crate) fn unanswered(&self, why: &str) {
        let mut outage = self.outage.lock();
        if outage.since.is_some() {
            return;
        }
        outage.since = Some(Instant::now());
        outage.began += 1;
        tracing::warn!(why, "the Kubernetes API server is away: which pods get new connections stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_on_its_way_does_not_end_an_outage() {
        let health = Health::default();
        let asked = Instant::now();
        health.unanswered("it was killed");
        health.answered(asked);
        health.unanswered("nobody listens");
        assert_eq!((health.status().is_up, health.status().outages), (false, 1));
        health.answered(Instant::now());
        assert_eq!((health.status().is_up, health.status().outages), (true, 1));
    }
}
