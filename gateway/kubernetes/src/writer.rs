//! While the lease is held: watches the pods, and makes the slices and marks what they should be.

mod pass;
mod service;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::agent::{Inputs, Outlook, State};
use crate::api::{Api, CallError};
use crate::choose::{Choice, Question};
use crate::lease::Tenure;
use crate::marks;
use crate::pods::Pods;
use crate::pods::watch::{Seen, Watch};
use crate::settings::Settings;
use crate::slices::store::Store;
use crate::status::{Health, count};

pub(crate) use service::{Services, load};

/// After a write that came too late it is looked again this soon.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// So many writes in a row that came too late are no coincidence: somebody else keeps slices of the same names.
const OVERTAKEN_MAX: u32 = 5;

/// The longest pause after calls that failed.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Without the permission to change pods, it is tried again this often.
const MARK_AGAIN: Duration = Duration::from_secs(300);

/// Why the agent stops campaigning.
#[derive(Debug)]
pub(crate) enum End {
    /// It was told to.
    Rest,
    /// Something needed is missing.
    Missing(String),
}

/// The writer of the slices, while it may be.
pub(crate) struct Writer {
    api: Api,
    settings: Settings,
    store: Store,
    inputs: watch::Receiver<Inputs>,
    tenure: watch::Receiver<Option<Tenure>>,
    found: watch::Sender<u32>,
    board: watch::Sender<Outlook>,
    complaint: Option<String>,
    marks_paused_until: Option<Instant>,
    has_foreign: bool,
}

/// What a tenure has come to.
struct Progress {
    began: Instant,
    term: u32,
    services: Services,
    /// What was published last; `None` before the first pass.
    open: Option<Arc<BTreeSet<String>>>,
    last_pass: Option<Instant>,
    /// Nothing is tried before.
    not_before: Instant,
    failures: u32,
    /// Passes in a row that were overtaken.
    overtaken: u32,
}

/// Why one watch over the pods ends.
enum Turn {
    /// The lease is gone.
    Lost,
    /// The pods are to be watched anew.
    Restart,
    /// The agent stops campaigning.
    End(End),
}

impl Writer {
    pub(crate) fn new(
        api: Api,
        settings: &Settings,
        inputs: watch::Receiver<Inputs>,
        tenure: watch::Receiver<Option<Tenure>>,
        found: watch::Sender<u32>,
        board: watch::Sender<Outlook>,
    ) -> Self {
        Self {
            store: Store::new(api.clone(), settings.slice_version),
            api,
            settings: settings.clone(),
            inputs,
            tenure,
            found,
            board,
            complaint: None,
            marks_paused_until: None,
            has_foreign: false,
        }
    }

    /// Until told to stop. A call under way is waited for.
    pub(crate) async fn run(&mut self) -> End {
        loop {
            let tenure = *self.tenure.borrow_and_update();
            if self.inputs.borrow_and_update().must_rest() {
                return End::Rest;
            }
            let Some(tenure) = tenure else {
                if !self.is_changed().await {
                    return End::Rest;
                }
                continue;
            };
            let end = self.hold(tenure).await;
            self.board.send_modify(|outlook| {
                outlook.state = State::Standby;
                outlook.pods = None;
            });
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Waits for a change of tenure or inputs; false if nobody can make one any more.
    async fn is_changed(&mut self) -> bool {
        tokio::select! {
            changed = self.tenure.changed() => changed.is_ok(),
            changed = self.inputs.changed() => changed.is_ok(),
        }
    }

    /// From the beginning of a tenure to its end.
    async fn hold(&mut self, tenure: Tenure) -> Option<End> {
        self.board.send_modify(|outlook| outlook.state = State::Writer { term: tenure.term });
        let now = Instant::now();
        let mut failures = 0;
        let services = loop {
            match load(&self.api, &self.settings, tenure.until).await {
                Ok(services) => break services,
                Err(CallError::Ended) => return None,
                Err(error) => {
                    if let Some(end) = self.complain(&error) {
                        return Some(end);
                    }
                    failures += 1;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff(failures)) => {}
                is_open = self.is_changed() => if !is_open { return Some(End::Rest) },
            }
            if self.inputs.borrow().must_rest() {
                return Some(End::Rest);
            }
            if self.tenure.borrow().is_none_or(|now| now.term != tenure.term) {
                return None;
            }
        };
        let mut progress = Progress {
            began: now,
            term: tenure.term,
            services,
            open: None,
            last_pass: None,
            not_before: now,
            failures: 0,
            overtaken: 0,
        };
        loop {
            let watch = Watch::start(self.api.clone(), &progress.services.selector);
            match self.follow(&mut progress, watch.seen()).await {
                Turn::Lost => return None,
                Turn::Restart => {}
                Turn::End(end) => return Some(end),
            }
        }
    }

    /// While one watch over the pods lasts.
    async fn follow(&mut self, progress: &mut Progress, mut seen: watch::Receiver<Seen>) -> Turn {
        loop {
            let inputs = self.inputs.borrow_and_update().clone();
            if inputs.must_rest() {
                return Turn::End(End::Rest);
            }
            let Some(tenure) = *self.tenure.borrow_and_update() else { return Turn::Lost };
            if tenure.term != progress.term {
                // The same holder under a higher term: everything is written anew, as by another one.
                progress.term = tenure.term;
                progress.began = Instant::now();
                progress.open = None;
            }
            let known = seen.borrow_and_update().clone();
            if let Some(why) = known.forbidden {
                return Turn::End(End::Missing(format!("pods: {why}")));
            }
            self.show(tenure, known.pods.as_ref());
            let mut due = None;
            if let Some(pods) = &known.pods {
                let at = self.due(progress, &inputs, pods);
                if at <= Instant::now() {
                    match self.pass(progress, &inputs, pods, tenure).await {
                        Some(turn) => return turn,
                        None => continue,
                    }
                }
                due = Some(at);
            }
            let is_open = tokio::select! {
                () = sleep_until(due) => true,
                changed = self.tenure.changed() => changed.is_ok(),
                changed = self.inputs.changed() => changed.is_ok(),
                changed = seen.changed() => if changed.is_ok() { true } else { return Turn::Restart },
            };
            if !is_open {
                return Turn::End(End::Rest);
            }
        }
    }

    /// When the next pass is due.
    fn due(&self, progress: &Progress, inputs: &Inputs, pods: &Pods) -> Instant {
        let Some(last) = progress.last_pass else { return progress.not_before };
        let choice = self.choice(progress, inputs, pods, progress.open.as_deref().unwrap_or(&BTreeSet::new()));
        let is_changed = match (choice.uids(), &progress.open) {
            (Some(wanted), Some(open)) => wanted != open.as_ref(),
            (Some(_), None) => true,
            (None, _) => false,
        };
        let is_changed = is_changed || self.has_marks_to_write(inputs, pods);
        let pause = if is_changed { self.settings.pass_every } else { self.settings.confirm_every };
        // When nobody decides any more, that is noticed on time.
        let decision = inputs.decision_in(progress.term);
        let stale = decision.map_or(progress.began, |decision| decision.at) + self.settings.stale_after;
        let mut due = last + pause;
        if stale > last && stale < due {
            due = stale + Duration::from_millis(1);
        }
        due.max(progress.not_before)
    }

    fn choice(&self, progress: &Progress, inputs: &Inputs, pods: &Pods, published: &BTreeSet<String>) -> Choice {
        let decision = inputs.decision_in(progress.term);
        let since = decision.map_or(progress.began, |decision| decision.at);
        (self.settings.choose)(Question {
            decision: decision.map(|decision| decision.set.as_ref()),
            silence: since.elapsed(),
            stale_after: self.settings.stale_after,
            pods,
            published,
        })
    }

    fn has_marks_to_write(&self, inputs: &Inputs, pods: &Pods) -> bool {
        let is_paused = self.marks_paused_until.is_some_and(|until| Instant::now() < until);
        !is_paused && inputs.marks.as_ref().is_some_and(|marks| !marks::plan::plan(pods, marks).is_empty())
    }

    fn show(&self, tenure: Tenure, pods: Option<&Arc<Pods>>) {
        let health = self.api.health();
        health.pods.store(pods.map_or(0, |pods| pods.len() as u64), Relaxed);
        let eligible = pods.map_or(0, |pods| pods.values().filter(|pod| pod.is_eligible()).count());
        health.pods_eligible.store(eligible as u64, Relaxed);
        self.board.send_if_modified(|outlook| {
            let state = State::Writer { term: tenure.term };
            if outlook.state == state && outlook.pods.as_ref() == pods {
                return false;
            }
            outlook.state = state;
            outlook.pods = pods.cloned();
            true
        });
    }

    fn health(&self) -> &Health {
        self.api.health()
    }

    /// Says once what went wrong, if it is not an outage, which is told elsewhere. What cannot be lived with ends the
    /// campaign.
    fn complain(&mut self, error: &CallError) -> Option<End> {
        match error {
            CallError::Forbidden(why) => return Some(End::Missing(why.clone())),
            CallError::Invalid(_) | CallError::Refused(_) | CallError::NotFound => self.say_once(error),
            CallError::Unavailable(_) | CallError::Conflict | CallError::Ended => {}
        }
        None
    }

    fn say_once(&mut self, error: &CallError) {
        let why = error.to_string();
        if self.complaint.as_ref() != Some(&why) {
            tracing::warn!(why, "the slices of the open set cannot be written");
            self.complaint = Some(why);
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// The pause after so many failures in a row.
fn backoff(failures: u32) -> Duration {
    let pause = Duration::from_millis(500 << failures.min(6)).min(BACKOFF_MAX);
    pause.mul_f64(0.5 + rand::random::<f64>())
}

/// Counts what is not a plain success of a pass.
fn note(health: &Health, error: &CallError) {
    if *error == CallError::Conflict {
        count(&health.conflicts);
    }
    count(&health.passes_failed);
}
