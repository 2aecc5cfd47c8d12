//! Puts it together: a task that campaigns while it is a candidate, and writes while it holds the lease.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::access::{Access, Finding, connect, probe};
use crate::api::{Api, CallError};
use crate::lease::campaign::Campaign;
use crate::pods::Pods;
use crate::settings::{Mode, Settings};
use crate::status::{Health, Status, count};
use crate::writer::{End, Writer};

/// When something is missing that was there a moment ago, such as permissions while the API server starts: it is looked
/// again this soon, once.
const LOOK_AGAIN_SOON: Duration = Duration::from_secs(5);

/// Where something is missing, it is looked again this often, in case an operator has added it. With at most five
/// candidates that costs the API server nothing.
const LOOK_AGAIN_AUTO: Duration = Duration::from_secs(300);

/// The same where the operator has said that it must be there.
const LOOK_AGAIN_ON: Duration = Duration::from_secs(30);

/// The longest pause between tries to reach an API server that is away.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Which pods new connections may go to, as decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenSet {
    /// The term of the coordinator whose digest this was decided from.
    pub term: u64,
    /// The number of that digest in the term. Only a decision from a newer digest counts, and keeps the set alive: sending
    /// one again does not.
    pub sequence: u64,
    /// The term of the lease in which this node decided it, as [`State::Writer`] told; it counts in no other. A node that was
    /// the writer, then another one was, and is the writer again, must not write what it decided before. `None`: it counts
    /// in every term.
    pub lease: Option<u32>,
    /// The names of the pods.
    pub pods: BTreeSet<String>,
}

/// What this node is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Role {
    /// Nothing: not one call is made, and the lease is given up if it is held. For all but a few nodes, and for one that is
    /// about to leave.
    #[default]
    Bystander,
    /// Try to become the slice writer. For at most five nodes at a time; the present slice writer should stay one of them.
    Candidate,
}

/// What this node can do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// Nothing is tried, because the role does not ask for it.
    #[default]
    Bystander,
    /// Something needed is missing, or it is switched off; the text says what.
    Off(String),
    /// A candidate: another node writes, or the API server is away.
    Standby,
    /// The slice writer.
    Writer {
        /// The term of its lease.
        term: u32,
    },
}

/// What the agent sees.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outlook {
    /// What this node can do.
    pub state: State,
    /// When it was last known that the slices are what they should be: after a write, or when a look showed no difference.
    /// Kept when the lease ends.
    pub last_write: Option<Instant>,
    /// All pods, while this is the slice writer and has seen them. Nobody else watches them.
    pub pods: Option<Arc<Pods>>,
    /// The uids that this node has published last.
    pub open: Arc<BTreeSet<String>>,
    /// Term and sequence of the decision that these follow; `None` when nobody decided.
    pub decision: Option<(u64, u64)>,
}

impl Outlook {
    /// This node holds the lease.
    pub fn is_writer(&self) -> bool {
        matches!(self.state, State::Writer { .. })
    }
}

/// What the agent was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) role: Role,
    pub(crate) decision: Option<Decision>,
    pub(crate) marks: Option<Arc<BTreeSet<String>>>,
    pub(crate) is_stopping: bool,
}

/// A decision and when it came.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    pub(crate) set: Arc<OpenSet>,
    pub(crate) at: Instant,
}

impl Inputs {
    /// The agent must let go.
    pub(crate) fn must_rest(&self) -> bool {
        self.is_stopping || self.role == Role::Bystander
    }

    /// The decision, if it counts in this term of the lease.
    pub(crate) fn decision_in(&self, term: u32) -> Option<&Decision> {
        self.decision.as_ref().filter(|decision| decision.set.lease.is_none_or(|lease| lease == term))
    }
}

/// The gateway's hand in the cluster. It ends with this; the lease then runs out, unless [`shutdown`](Self::shutdown) has
/// released it.
pub struct Agent {
    inputs: watch::Sender<Inputs>,
    outlook: watch::Receiver<Outlook>,
    health: Arc<Health>,
    task: Option<JoinHandle<()>>,
}

impl Agent {
    /// Starts it, on the current runtime. Never fails: what is missing shows in [`Outlook::state`] and in the log. No call is
    /// made before the role asks for it.
    pub fn start(settings: Settings, access: Access) -> Self {
        let (inputs, receiver) = watch::channel(Inputs::default());
        let (board, outlook) = watch::channel(Outlook::default());
        let health = Arc::new(Health::default());
        let run = Run { settings, access, inputs: receiver, board, health: Arc::clone(&health) };
        Self { inputs, outlook, health, task: Some(tokio::spawn(run.run())) }
    }

    /// Says what this node is to do.
    pub fn set_role(&self, role: Role) {
        self.inputs.send_if_modified(|inputs| std::mem::replace(&mut inputs.role, role) != role);
    }

    /// Hands over a decision. One that is not from a newer digest than the last is ignored. It is written as soon as it
    /// differs from the one before: how often that may be is the caller's matter.
    pub fn decide(&self, set: OpenSet) {
        let is_newer = self.inputs.send_if_modified(|inputs| {
            let newest = inputs.decision.as_ref().map(|decision| (decision.set.term, decision.set.sequence));
            if newest.is_some_and(|newest| newest >= (set.term, set.sequence)) {
                return false;
            }
            inputs.decision = Some(Decision { set: Arc::new(set), at: Instant::now() });
            true
        });
        if !is_newer {
            count(&self.health.decisions_stale);
        }
    }

    /// Says which pods a scale-down should take first, by name. Until this was called marks are left as they are.
    pub fn mark(&self, pods: BTreeSet<String>) {
        self.inputs.send_if_modified(|inputs| {
            let is_new = inputs.marks.as_deref() != Some(&pods);
            inputs.marks = Some(Arc::new(pods));
            is_new
        });
    }

    /// What is seen now, and every change of it.
    pub fn outlook(&self) -> watch::Receiver<Outlook> {
        self.outlook.clone()
    }

    /// What was done so far.
    pub fn status(&self) -> Status {
        self.health.status()
    }

    /// Ends after the call under way, and releases the lease if it is held. Takes at most three calls' time limits.
    pub async fn shutdown(mut self) {
        self.inputs.send_modify(|inputs| inputs.is_stopping = true);
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the Kubernetes agent has failed");
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The task.
struct Run {
    settings: Settings,
    access: Access,
    inputs: watch::Receiver<Inputs>,
    board: watch::Sender<Outlook>,
    health: Arc<Health>,
}

impl Run {
    async fn run(mut self) {
        if self.settings.mode == Mode::Off {
            self.show(State::Off("it is switched off".to_owned()));
            return;
        }
        let Some(api) = self.connected().await else { return };
        let suffix: u64 = rand::random();
        let identity = format!("{}_{suffix:016x}", self.settings.identity);
        // What the log has said: it is not repeated when a candidate comes and goes.
        let mut complaint = None;
        loop {
            if self.inputs.wait_for(|inputs| inputs.is_stopping || inputs.role == Role::Candidate).await.is_err() {
                return;
            }
            if self.inputs.borrow().is_stopping {
                return;
            }
            self.take_part(&api, &identity, &mut complaint).await;
            self.show(State::Bystander);
        }
    }

    /// The client; `None` when there is none and none is wanted any more.
    async fn connected(&mut self) -> Option<Api> {
        let mut complaint = None;
        loop {
            match connect(&self.access, &self.settings, Arc::clone(&self.health)).await {
                Ok(api) => return Some(api),
                // Whether this is a cluster never changes while a process runs.
                Err(why) if self.settings.mode == Mode::Auto => {
                    tracing::info!(why, "the open set is off: pods are not chosen for new connections");
                    self.show(State::Off(why));
                    return None;
                }
                Err(why) => self.complain(&mut complaint, why),
            }
            if self.rest(LOOK_AGAIN_ON, |inputs| inputs.is_stopping).await {
                return None;
            }
        }
    }

    /// Until the role or the end asks for a rest.
    async fn take_part(&mut self, api: &Api, identity: &str, complaint: &mut Option<String>) {
        let mut failures = 0;
        loop {
            let mut inputs = self.inputs.clone();
            // Many calls, which need not be waited for: they change nothing.
            let probed = tokio::select! {
                probed = probe(api, &self.settings) => probed,
                _ = inputs.wait_for(Inputs::must_rest) => return,
            };
            let pause = match probed {
                Ok(Finding::Works) => match self.campaign(api, identity, complaint).await {
                    End::Rest => return,
                    End::Missing(why) => {
                        self.complain(complaint, why);
                        // It was there a moment ago; if it is gone for good, the next probe finds that, and waits longer.
                        LOOK_AGAIN_SOON
                    }
                },
                Ok(Finding::Missing(missing)) => {
                    self.complain(complaint, missing.join("; "));
                    self.look_again()
                }
                Err(CallError::Unavailable(_)) => {
                    self.show(State::Standby);
                    failures = (failures + 1).min(6);
                    Duration::from_millis(500 << failures).min(BACKOFF_MAX)
                }
                Err(error) => {
                    self.complain(complaint, error.to_string());
                    self.look_again()
                }
            };
            if self.rest(pause, Inputs::must_rest).await {
                return;
            }
        }
    }

    async fn campaign(&mut self, api: &Api, identity: &str, complaint: &mut Option<String>) -> End {
        if complaint.take().is_some() {
            tracing::info!("the open set is on: everything that was missing is there");
        }
        self.show(State::Standby);
        let (tenure, tenure_of_writer) = watch::channel(None);
        let (found, found_by_writer) = watch::channel(0);
        let mut campaign = Campaign::new(api.clone(), &self.settings, identity, tenure);
        let mut writer =
            Writer::new(api.clone(), &self.settings, self.inputs.clone(), tenure_of_writer, found, self.board.clone());
        let end = tokio::select! {
            forbidden = campaign.run(found_by_writer) => End::Missing(forbidden.to_string()),
            end = writer.run() => end,
        };
        drop(writer);
        campaign.release().await;
        end
    }

    fn look_again(&self) -> Duration {
        if self.settings.mode == Mode::On { LOOK_AGAIN_ON } else { LOOK_AGAIN_AUTO }
    }

    /// Says once what is missing.
    fn complain(&self, complaint: &mut Option<String>, why: String) {
        if complaint.as_deref() != Some(&why) {
            if self.settings.mode == Mode::On {
                tracing::error!(
                    why,
                    "the open set does not work: new connections go to every ready pod, or as the slices are"
                );
            } else {
                tracing::warn!(why, "the open set is off: pods are not chosen for new connections");
            }
        }
        self.show(State::Off(why.clone()));
        *complaint = Some(why);
    }

    fn show(&self, state: State) {
        self.board.send_if_modified(|outlook| {
            if outlook.state == state {
                return false;
            }
            outlook.state = state;
            outlook.pods = None;
            true
        });
    }

    /// Pauses for about `pause`; true as soon as `ends` says so.
    async fn rest(&mut self, pause: Duration, ends: impl Fn(&Inputs) -> bool) -> bool {
        let pause = pause.mul_f64(0.5 + rand::random::<f64>());
        // It also ends when nobody is left to say so.
        tokio::time::timeout(pause, self.inputs.wait_for(ends)).await.is_ok()
    }
}
