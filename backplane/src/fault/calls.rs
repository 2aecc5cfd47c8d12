//! What happens to calls: they wait, fail, or lose their answer.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::policy::{Dice, FaultPolicy};
use super::{Failure, Pause};
use crate::BackplaneError;

#[derive(Debug, Default)]
pub(super) struct Calls {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    paused: Option<Pause>,
    /// Hanging calls by a number of their own; each leaves when it goes on or is dropped.
    hanging: BTreeMap<u64, Waker>,
    next_id: u64,
    /// Failures ordered one by one, each for so many calls.
    ordered: Vec<(Failure, usize)>,
    chance: Option<(FaultPolicy, Dice)>,
    failed: u64,
}

impl Calls {
    pub(super) fn pause(&self, pause: Pause) {
        let hanging = {
            let mut state = self.state.lock();
            state.paused = Some(pause);
            // Calls that hang already fail when the pause is changed to refuse.
            if pause == Pause::Refuse { std::mem::take(&mut state.hanging) } else { BTreeMap::new() }
        };
        hanging.into_values().for_each(Waker::wake);
    }

    pub(super) fn resume(&self) {
        let hanging = {
            let mut state = self.state.lock();
            state.paused = None;
            std::mem::take(&mut state.hanging)
        };
        hanging.into_values().for_each(Waker::wake);
    }

    pub(super) fn fail_next(&self, calls: usize, failure: Failure) {
        self.state.lock().ordered.push((failure, calls));
    }

    pub(super) fn set_policy(&self, policy: Option<FaultPolicy>) {
        self.state.lock().chance = policy.map(|policy| (policy, Dice::new(policy.seed)));
    }

    pub(super) fn failed(&self) -> u64 {
        self.state.lock().failed
    }

    pub(super) fn hanging(&self) -> usize {
        self.state.lock().hanging.len()
    }

    /// Waits out a pause and decides what becomes of the call. An error means: fail it now.
    pub(super) fn enter(&self) -> Enter<'_> {
        Enter { calls: self, id: None }
    }
}

impl State {
    fn decide(&mut self) -> Result<Fate, BackplaneError> {
        if self.paused == Some(Pause::Refuse) {
            return Err(self.fail("paused"));
        }
        self.ordered.retain(|(_, calls)| *calls > 0);
        let failure = match self.ordered.first_mut() {
            Some((failure, calls)) => {
                *calls -= 1;
                Some(*failure)
            }
            None => self.chance.as_mut().and_then(|(policy, dice)| {
                dice.pick(&[
                    (policy.fail_before_per_mille, Failure::BeforeEffect),
                    (policy.fail_after_per_mille, Failure::AfterEffect),
                ])
            }),
        };
        match failure {
            None => Ok(Fate { answer_lost: None }),
            Some(Failure::BeforeEffect) => Err(self.fail("call lost")),
            Some(Failure::AfterEffect) => Ok(Fate { answer_lost: Some(self.fail("answer lost")) }),
        }
    }

    fn fail(&mut self, how: &str) -> BackplaneError {
        self.failed += 1;
        BackplaneError::Unavailable(format!("injected fault: {how}"))
    }
}

/// What becomes of a call that is carried out.
#[derive(Debug)]
pub(super) struct Fate {
    answer_lost: Option<BackplaneError>,
}

impl Fate {
    pub(super) fn apply<T>(self, answer: Result<T, BackplaneError>) -> Result<T, BackplaneError> {
        self.answer_lost.map_or(answer, Err)
    }
}

/// See [`Calls::enter`]. Dropping it gives up the call, as a caller's timeout does.
pub(super) struct Enter<'a> {
    calls: &'a Calls,
    /// Its number among the hanging calls.
    id: Option<u64>,
}

impl Future for Enter<'_> {
    type Output = Result<Fate, BackplaneError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.calls.state.lock();
        if state.paused != Some(Pause::Hang) {
            return Poll::Ready(state.decide());
        }
        let id = self.id.unwrap_or_else(|| {
            state.next_id += 1;
            state.next_id
        });
        state.hanging.insert(id, context.waker().clone());
        drop(state);
        self.id = Some(id);
        Poll::Pending
    }
}

impl Drop for Enter<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.calls.state.lock().hanging.remove(&id);
        }
    }
}
