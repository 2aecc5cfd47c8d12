//! When not to ask: a backend that has failed several times in a row gets a pause, then one trial.
//!
//! A call to a backend that does not answer costs a slot for the whole timeout, and the client as long; and a backend
//! that comes back needs no crowd at its door.

use std::time::Duration;

use session::time::Tick;

/// A pure state machine; the time is passed in.
#[derive(Debug)]
pub(super) struct Breaker {
    failures_max: u32,
    pause: Duration,
    /// How long the outcome of a trial is waited for.
    patience: Duration,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Calls are made; so many in a row have failed.
    Closed(u32),
    /// None are made until then.
    Open(Tick),
    /// One is being tried, whose outcome is waited for until then.
    Trying(Tick),
}

/// A call that may be made. Its outcome is to be reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    /// One of many.
    Ordinary,
    /// The one that decides.
    Trial,
}

/// What a call tells about the backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Health {
    /// It answers.
    Well,
    /// It does not, or says that it cannot.
    Ill,
    /// Nothing: the call was not made after all.
    Unknown,
}

impl Breaker {
    /// Opens for `pause` after `failures_max` failures in a row; with 0 never. A trial takes `patience` at most.
    pub fn new(failures_max: u32, pause: Duration, patience: Duration) -> Self {
        Self { failures_max, pause, patience, state: State::Closed(0) }
    }

    /// Whether a call may be made now.
    pub fn admit(&mut self, now: Tick) -> Option<Admission> {
        match self.state {
            State::Closed(_) => Some(Admission::Ordinary),
            State::Open(until) | State::Trying(until) if now < until => None,
            // A trial whose outcome never came is given up.
            State::Open(_) | State::Trying(_) => {
                self.state = State::Trying(now.after(self.patience));
                Some(Admission::Trial)
            }
        }
    }

    /// What became of a call. Calls that began before it opened no longer count.
    pub fn report(&mut self, admission: Admission, health: Health, now: Tick) {
        self.state = match (self.state, admission, health) {
            (State::Closed(_), _, Health::Well) => State::Closed(0),
            (State::Closed(failures), _, Health::Ill) => {
                let failures = failures.saturating_add(1);
                let opens = self.failures_max > 0 && failures >= self.failures_max;
                if opens { State::Open(now.after(self.pause)) } else { State::Closed(failures) }
            }
            (State::Trying(_), Admission::Trial, Health::Well) => State::Closed(0),
            (State::Trying(_), Admission::Trial, Health::Ill) => State::Open(now.after(self.pause)),
            (State::Trying(_), Admission::Trial, Health::Unknown) => State::Open(now),
            (same, _, _) => same,
        };
    }

    /// Whether calls are being refused.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Step {
        /// A call at this time is admitted so, or refused.
        Admit(u64, Option<Admission>),
        /// An outcome at this time.
        Report(Admission, Health, u64),
    }
    use Admission::{Ordinary, Trial};
    use Health::{Ill, Unknown, Well};
    use Step::{Admit, Report};

    /// Three failures, a pause of 100, a patience of 30.
    fn run(steps: &[Step]) {
        let mut breaker = Breaker::new(3, Duration::from_millis(100), Duration::from_millis(30));
        for (index, step) in steps.iter().enumerate() {
            match step {
                Admit(at, expected) => assert_eq!(breaker.admit(Tick(*at)), *expected, "step {index}"),
                Report(admission, health, at) => breaker.report(*admission, *health, Tick(*at)),
            }
        }
    }

    /// Opened at 10.
    const OPENED: [Step; 3] = [Report(Ordinary, Ill, 8), Report(Ordinary, Ill, 9), Report(Ordinary, Ill, 10)];

    fn opened(then: impl IntoIterator<Item = Step>) {
        run(&OPENED.into_iter().chain(then).collect::<Vec<_>>());
    }

    #[test]
    fn it_opens_after_failures_in_a_row() {
        run(&[
            Admit(0, Some(Ordinary)),
            Report(Ordinary, Ill, 1),
            Report(Ordinary, Ill, 2),
            Report(Ordinary, Well, 3),
            Report(Ordinary, Ill, 4),
            Report(Ordinary, Ill, 5),
            Report(Ordinary, Unknown, 6),
            Admit(6, Some(Ordinary)),
            Report(Ordinary, Ill, 7),
            Admit(7, None),
            Admit(106, None),
        ]);
    }

    #[test]
    fn one_call_is_tried_after_the_pause_and_decides() {
        opened([Admit(109, None), Admit(110, Some(Trial)), Admit(111, None), Report(Trial, Well, 112)]);
        opened([Admit(110, Some(Trial)), Report(Trial, Well, 112), Admit(112, Some(Ordinary))]);
        opened([Admit(110, Some(Trial)), Report(Trial, Ill, 120), Admit(219, None), Admit(220, Some(Trial))]);
        opened([Admit(110, Some(Trial)), Report(Trial, Unknown, 111), Admit(111, Some(Trial))]);
        opened([Admit(110, Some(Trial)), Admit(139, None), Admit(140, Some(Trial))]);
    }

    #[test]
    fn calls_from_before_do_not_count() {
        opened([Report(Ordinary, Well, 11), Admit(12, None)]);
        opened([Report(Ordinary, Ill, 90), Admit(110, Some(Trial)), Report(Ordinary, Well, 111), Admit(112, None)]);
        opened([
            Admit(110, Some(Trial)),
            Report(Ordinary, Ill, 111),
            Report(Trial, Well, 112),
            Admit(112, Some(Ordinary)),
        ]);
    }

    #[test]
    fn it_can_be_off() {
        let mut breaker = Breaker::new(0, Duration::from_secs(1), Duration::from_secs(1));
        for at in 0..100 {
            assert_eq!(breaker.admit(Tick(at)), Some(Ordinary));
            breaker.report(Ordinary, Ill, Tick(at));
        }
        assert!(!breaker.is_open());
    }
}
