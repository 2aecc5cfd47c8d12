//! One pass: look at what is there, and make it what it should be.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{LOOK_AGAIN, MARK_AGAIN, OVERTAKEN_MAX, Progress, Turn, Writer, backoff, load, note};
use crate::agent::Inputs;
use crate::api::CallError;
use crate::choose::Choice;
use crate::lease::Tenure;
use crate::marks;
use crate::pods::Pods;
use crate::slices::Frame;
use crate::slices::plan::{Step, Wanted, plan};
use crate::slices::store::Listed;
use crate::status::count;

/// Why a pass was broken off.
enum Broken {
    /// A call failed.
    Call(CallError),
    /// Something was written under this term, which is higher than ours.
    Superseded(u32),
    /// Another set of pods is to be watched.
    OtherPods,
}

impl From<CallError> for Broken {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl Writer {
    /// Makes slices and marks what they should be. Some turn if this watch over the pods ends with it.
    pub(super) async fn pass(
        &mut self,
        progress: &mut Progress,
        inputs: &Inputs,
        pods: &Pods,
        tenure: Tenure,
    ) -> Option<Turn> {
        let began = Instant::now();
        progress.last_pass = Some(began);
        let broken = match self.try_pass(progress, inputs, pods, tenure).await {
            Ok(choice) => {
                count(&self.health().passes);
                progress.failures = 0;
                progress.overtaken = 0;
                self.complaint = None;
                self.confirm(progress, inputs, choice, began);
                return None;
            }
            Err(broken) => broken,
        };
        match broken {
            Broken::OtherPods => Some(Turn::Restart),
            Broken::Superseded(term) => {
                note(self.health(), &CallError::Conflict);
                tracing::info!(term, own = tenure.term, "slices were written under a higher term than this node's");
                self.found.send_replace(term);
                progress.open = None;
                progress.not_before = began + self.settings.timing.retry;
                None
            }
            Broken::Call(error) => {
                note(self.health(), &error);
                if let Some(end) = self.complain(&error) {
                    return Some(Turn::End(end));
                }
                progress.open = None;
                let pause = match error {
                    CallError::Ended => again(),
                    CallError::Conflict if progress.overtaken < OVERTAKEN_MAX => {
                        progress.overtaken += 1;
                        again()
                    }
                    _ => {
                        if error == CallError::Conflict {
                            self.say_once(&error);
                        }
                        progress.failures += 1;
                        backoff(progress.failures)
                    }
                };
                progress.not_before = Instant::now() + pause;
                None
            }
        }
    }

    async fn try_pass(
        &mut self,
        progress: &mut Progress,
        inputs: &Inputs,
        pods: &Pods,
        tenure: Tenure,
    ) -> Result<Choice, Broken> {
        let services = load(&self.api, &self.settings, tenure.until).await?;
        if services.selector != progress.services.selector {
            progress.services = services;
            return Err(Broken::OtherPods);
        }
        progress.services = services;
        let listed = self.store.list(&self.settings.service, Some(tenure.until)).await?;
        self.note_foreign(&listed);
        if let Some(term) = listed.own.iter().map(|slice| slice.term).max().filter(|term| *term > tenure.term) {
            return Err(Broken::Superseded(term));
        }
        let published: BTreeSet<String> = listed.own.iter().flat_map(|slice| slice.endpoints.keys().cloned()).collect();
        let choice = self.choice(progress, inputs, pods, &published);
        if let Some(open) = choice.uids() {
            let frame = Frame {
                service: self.settings.service.clone(),
                service_uid: progress.services.uid.clone(),
                ports: progress.services.ports.clone(),
                term: tenure.term,
            };
            let families = &progress.services.families;
            let wanted = Wanted { frame: &frame, families, pods, open, len_max: self.settings.slice_len_max };
            for step in plan(&listed.own, wanted) {
                // The tenure may have been renewed meanwhile, or have ended, and the end may have been asked for.
                let until = self.still(tenure)?;
                self.store.carry_out(&step, &frame, until).await?;
                let counter = match step {
                    Step::Create(_) | Step::Apply { .. } => &self.health().slices_written,
                    Step::Delete { .. } => &self.health().slices_deleted,
                };
                count(counter);
            }
        }
        self.write_marks(inputs, pods, tenure).await?;
        Ok(choice)
    }

    /// Until when the next call may be begun.
    fn still(&self, tenure: Tenure) -> Result<Instant, CallError> {
        let now = (*self.tenure.borrow()).filter(|now| now.term == tenure.term);
        match now {
            Some(now) if !self.inputs.borrow().must_rest() => Ok(now.until),
            _ => Err(CallError::Ended),
        }
    }

    async fn write_marks(&mut self, inputs: &Inputs, pods: &Pods, tenure: Tenure) -> Result<(), CallError> {
        let Some(wanted) = &inputs.marks else { return Ok(()) };
        if !self.has_marks_to_write(inputs, pods) {
            return Ok(());
        }
        for step in marks::plan::plan(pods, wanted) {
            match marks::effect::apply(&self.api, &step, tenure.term, self.still(tenure)?).await {
                Ok(()) => count(&self.health().marks_written),
                Err(CallError::Forbidden(why)) => {
                    if self.marks_paused_until.replace(Instant::now() + MARK_AGAIN).is_none() {
                        tracing::warn!(why, "pods cannot be marked: a scale-down takes them in no particular order");
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.marks_paused_until = None;
        Ok(())
    }

    fn note_foreign(&mut self, listed: &Listed) {
        self.health().slices_foreign.store(listed.foreign as u64, Relaxed);
        let has_foreign = listed.foreign > 0;
        if has_foreign && !self.has_foreign {
            let service = &self.settings.service;
            tracing::warn!(
                service,
                "others write slices of this Service too (has it a selector?): their pods are open as well"
            );
        }
        self.has_foreign = has_foreign;
    }

    /// Shows that the slices are what they should be.
    fn confirm(&self, progress: &mut Progress, inputs: &Inputs, choice: Choice, at: Instant) {
        let decision = match &choice {
            Choice::Decided(_) => {
                let decision = inputs.decision_in(progress.term);
                decision.map(|decision| (decision.set.term, decision.set.sequence))
            }
            Choice::Everyone(_) | Choice::Inherited(_) | Choice::Nothing => None,
        };
        let open = match choice {
            Choice::Decided(uids) | Choice::Everyone(uids) | Choice::Inherited(uids) => Arc::new(uids),
            Choice::Nothing => progress.open.clone().unwrap_or_default(),
        };
        self.health().pods_open.store(open.len() as u64, Relaxed);
        progress.open = Some(Arc::clone(&open));
        self.board.send_modify(|outlook| {
            outlook.last_write = Some(at);
            outlook.open = open;
            outlook.decision = decision;
        });
    }
}

/// The pause before a pass that was overtaken is made again.
fn again() -> Duration {
    LOOK_AGAIN.mul_f64(0.5 + rand::random::<f64>())
}
