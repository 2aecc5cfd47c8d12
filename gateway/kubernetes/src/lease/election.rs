//! When to take, renew or leave a lease: a pure function of what was seen and the local clock.

use std::time::{Duration, Instant};

use super::Record;
use crate::settings::Timing;

/// The largest term: the API keeps it as a signed number of 32 bits.
pub const TERM_MAX: u32 = i32::MAX as u32 - 1;

/// The longest duration in a Lease that is believed: a mistake in it must not leave the fleet without a writer for long.
const DURATION_MAX: Duration = Duration::from_secs(600);

/// The right to act, until a time on the local clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tenure {
    /// Higher than that of every earlier holder.
    pub term: u32,
    /// From then on nothing may be begun. It moves on with every renewal.
    pub until: Instant,
}

impl Tenure {
    /// It has not ended.
    pub fn holds(&self, now: Instant) -> bool {
        now < self.until
    }
}

/// What to do now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Look again later: somebody else holds it.
    Wait,
    /// There is no Lease: create one with this term.
    Create(u32),
    /// Replace the Lease of this version, as its holder under this term.
    Replace {
        /// The version that was seen; the API server refuses if it has changed.
        version: String,
        /// The term to write.
        term: u32,
        /// The caller held it until now, so `acquireTime` stays.
        is_renewal: bool,
    },
}

/// One candidate's view of the lease.
#[derive(Debug)]
pub struct Election {
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
    tenure: Option<Tenure>,
    /// Terms up to this one were used by somebody, whatever the Lease says.
    term_used: u32,
}

#[derive(Debug)]
struct Seen {
    record: Record,
    /// When it was first seen like this.
    since: Instant,
}

impl Election {
    /// That of a candidate who has seen nothing yet. `identity` must be unique to this process.
    pub fn new(identity: String, timing: Timing) -> Self {
        Self { identity, timing, seen: None, tenure: None, term_used: 0 }
    }

    /// Notes what the API server showed, at the time it was received. `None`: there is no Lease.
    pub fn observe(&mut self, at: Instant, record: Option<Record>) {
        let Some(record) = record else {
            self.seen = None;
            self.tenure = None;
            return;
        };
        self.term_used = self.term_used.max(record.term);
        if self.seen.as_ref().is_some_and(|seen| seen.record.version == record.version) {
            return;
        }
        // Unless it was this candidate, by a call whose answer was lost, somebody wrote it since.
        let is_own = |tenure: &Tenure| record.holder.as_ref() == Some(&self.identity) && record.term == tenure.term;
        self.tenure = self.tenure.filter(is_own);
        self.seen = Some(Seen { record, since: at });
    }

    /// What to do next.
    pub fn step(&self, now: Instant) -> Step {
        let Some(seen) = &self.seen else { return Step::Create(self.next_term()) };
        let version = seen.record.version.clone();
        if let Some(tenure) = self.tenure.filter(|tenure| tenure.holds(now)) {
            // A term that somebody else was found to have used is not kept.
            let term = if tenure.term < self.term_used { self.next_term() } else { tenure.term };
            return Step::Replace { version, term, is_renewal: true };
        }
        let is_own = seen.record.holder.as_deref() == Some(self.identity.as_str());
        let is_over = now.saturating_duration_since(seen.since) >= self.patience(seen);
        let is_over = is_over || is_own || seen.record.holder.is_none();
        if is_over { Step::Replace { version, term: self.next_term(), is_renewal: false } } else { Step::Wait }
    }

    /// When another holder's tenure is over if nothing changes; `None` when there is nobody to wait for.
    pub fn due(&self) -> Option<Instant> {
        let seen = self.seen.as_ref().filter(|_| self.tenure.is_none())?;
        Some(seen.since + self.patience(seen))
    }

    fn patience(&self, seen: &Seen) -> Duration {
        self.timing.duration.max(seen.record.duration.min(DURATION_MAX))
    }

    /// Notes that the API server has taken what was asked for at `asked_at`; `record` is its answer.
    pub fn written(&mut self, asked_at: Instant, received_at: Instant, record: Record) {
        let term = record.term;
        self.term_used = self.term_used.max(term);
        self.seen = Some(Seen { record, since: received_at });
        self.tenure = Some(Tenure { term, until: asked_at + self.timing.deadline });
    }

    /// Notes that the API server has refused because somebody else was first; what is there now must be read.
    pub fn refused(&mut self) {
        self.tenure = None;
    }

    /// Notes a term that was found on what is written under the lease. When it is above one's own although the lease is
    /// held, the Lease was deleted in between and has forgotten its terms: the next step takes a higher one.
    pub fn found_term(&mut self, term: u32) {
        if term < TERM_MAX {
            self.term_used = self.term_used.max(term);
        }
    }

    /// The version to release, if the lease is held. Nothing is held from then on.
    pub fn resign(&mut self) -> Option<(String, u32)> {
        let tenure = self.tenure.take()?;
        self.seen.as_ref().map(|seen| (seen.record.version.clone(), tenure.term))
    }

    /// The right to act, if there is one.
    pub fn tenure(&self, now: Instant) -> Option<Tenure> {
        self.tenure.filter(|tenure| tenure.holds(now))
    }

    fn next_term(&self) -> u32 {
        self.term_used.saturating_add(1).min(TERM_MAX)
    }
}

/// How long to pause before the next step. `dice` is a random number from 0 to 1, so that candidates do not move in step;
/// `failures` are calls that failed in a row.
pub fn pause(timing: &Timing, is_held: bool, failures: u32, dice: f64) -> Duration {
    /// While the API server is away it is asked by each candidate this often at least: a few calls for the whole fleet.
    const BACKOFF_MAX: Duration = Duration::from_secs(10);
    let third = timing.duration / 3;
    let (base, spread) = match (is_held, failures) {
        (_, 0) => (third, 0.2),
        // Time runs out: try again soon, but not all at once.
        (true, _) => (timing.retry / 2, 0.5),
        (false, _) => (third.saturating_mul(1 << failures.min(8)).min(BACKOFF_MAX.max(third)), 0.5),
    };
    base.mul_f64(1.0 - spread + 2.0 * spread * dice.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
