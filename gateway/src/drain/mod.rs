//! Emptying a node on purpose: not ready, an accept grace, then closes with 1001 spread over a window.
//!
//! [`plan`] says how long each part takes, as pure functions of the time; [`placement::drain`] how many are closed when.
//! [`Drain`] is what signals, the operators' endpoint and the control thread share; `serve/drain.rs` carries it out, and each
//! shard closes its own connections.

pub mod plan;

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

pub use plan::{DrainPhase, DrainTimes};

/// What is to be when the node is empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Afterwards {
    /// The process stays, not ready, until a signal ends it: an operator wants to look at it, or a hook of the
    /// orchestrator waits for it.
    Stay,
    /// The process ends.
    Exit,
}

/// The drain of one node: at most one, and it is never taken back.
pub struct Drain {
    times: DrainTimes,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    wanted: Option<Wanted>,
    is_over: bool,
}

#[derive(Clone, Copy, Debug)]
struct Wanted {
    since: Instant,
    afterwards: Afterwards,
    connections: usize,
}

/// A drain as operators see it.
#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct Progress {
    /// `serving`, `accepting`, `closing`, `drained` or `overdue`.
    pub phase: &'static str,
    /// Connections now.
    pub remaining: usize,
    /// Connections when it began.
    pub at_start: usize,
    /// Seconds since it began.
    pub elapsed_seconds: f64,
    /// Seconds until it is over at the latest.
    pub deadline_in_seconds: f64,
    /// Whether the process ends with it.
    pub exits: bool,
}

impl Drain {
    /// Not begun.
    pub fn new(times: DrainTimes) -> Self {
        Self { times, state: watch::Sender::new(State::default()) }
    }

    /// Its times.
    pub fn times(&self) -> &DrainTimes {
        &self.times
    }

    /// Begins the drain of a node with so many connections, unless it has begun. What is to be afterwards can only become
    /// [`Afterwards::Exit`].
    pub fn request(&self, afterwards: Afterwards, connections: usize) {
        self.state.send_modify(|state| match &mut state.wanted {
            Some(wanted) => wanted.afterwards = wanted.afterwards.max(afterwards),
            None => state.wanted = Some(Wanted { since: Instant::now(), afterwards, connections }),
        });
    }

    /// Completes when it was requested, with the moment of that.
    pub async fn requested(&self) -> Instant {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        let state = state.wait_for(|state| state.wanted.is_some()).await;
        state.ok().and_then(|state| state.wanted).map_or_else(Instant::now, |wanted| wanted.since)
    }

    /// Nothing is left to close, or to wait for.
    pub fn set_over(&self) {
        self.state.send_modify(|state| state.is_over = true);
    }

    /// Completes when it is over and the process is to end.
    pub async fn to_exit(&self) {
        let exits =
            |state: &State| state.is_over && state.wanted.is_some_and(|wanted| wanted.afterwards == Afterwards::Exit);
        // The sender lives as long as `self`.
        let _ = self.state.subscribe().wait_for(exits).await;
    }

    /// How far it is, with so many connections left.
    pub fn progress(&self, remaining: usize) -> Progress {
        let Some(wanted) = self.state.borrow().wanted else {
            return Progress {
                phase: "serving",
                remaining,
                at_start: 0,
                elapsed_seconds: 0.0,
                deadline_in_seconds: 0.0,
                exits: false,
            };
        };
        let elapsed = wanted.since.elapsed();
        Progress {
            phase: self.times.phase(elapsed, remaining).name(),
            remaining,
            at_start: wanted.connections,
            elapsed_seconds: seconds(elapsed),
            deadline_in_seconds: seconds(self.times.deadline.saturating_sub(elapsed)),
            exits: wanted.afterwards == Afterwards::Exit,
        }
    }
}

/// To the millisecond.
fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain() -> Drain {
        let second = Duration::from_secs(1);
        Drain::new(DrainTimes { grace_accept: Duration::ZERO, window: second, deadline: 10 * second })
    }

    #[tokio::test]
    async fn an_operators_drain_ends_the_process_only_when_a_signal_follows() {
        let drain = drain();
        assert_eq!(drain.progress(7).phase, "serving");
        drain.request(Afterwards::Stay, 7);
        drain.requested().await;
        let progress = drain.progress(3);
        assert_eq!((progress.phase, progress.at_start, progress.exits), ("closing", 7, false));
        drain.set_over();
        assert_eq!(drain.progress(0).phase, "drained");
        let waiting = tokio::time::timeout(Duration::from_millis(1), drain.to_exit()).await;
        assert!(waiting.is_err(), "the process stays");
        drain.request(Afterwards::Exit, 0);
        drain.to_exit().await;
        drain.request(Afterwards::Stay, 0);
        assert!(drain.progress(0).exits, "that is not taken back");
    }
}
