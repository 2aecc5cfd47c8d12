//! Asking every node, and gathering what they answer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use backplane::{
    Backplane, BackplaneError, ChannelName, ClientId, Members, NewPublication, NodeId, PublishOptions, UserId,
};
use metrics::{Counter, counter};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::wire::{Answer, Call, Request, WireResult, encode};
use super::{COMMANDS_KEPT, answers_channel, commands_channel};
use crate::api::info::NodeInfo;
use crate::metrics::COMMANDS;
use crate::shard::command::{Action, Applied, TakenOver, Target};

/// How long a caller waits for the answers of all nodes (design section 5).
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a client that comes back waits for its former node. A round trip over the backplane takes some milliseconds;
/// a node that died a moment ago does not answer, and each of its clients waits this long.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_millis(300);

/// How long the list of nodes is used again. A node that started since has no connections that matter to a command
/// given before, and carries it out all the same.
const ALIVE_CACHED: Duration = Duration::from_millis(500);

/// The longest answer of one node, for some 50,000 channel names: those of a dozen nodes together stay below the 32 MB at
/// which Redis cuts a subscriber off that does not read them in time.
pub(super) const ANSWER_BYTES: usize = 2 << 20;

/// Why not every node has answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It could not even be asked.
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
    /// These nodes have not answered; they may still act.
    #[error("no answer in time from {0:?}")]
    Silent(Vec<NodeId>),
    /// A node could not do it.
    #[error("{0}")]
    Failed(String),
}

/// A question that waits for answers.
struct Pending {
    missing: HashSet<NodeId>,
    results: Vec<WireResult>,
    done: Option<oneshot::Sender<()>>,
}

/// The asking side: one per node.
pub struct Commands {
    node: NodeId,
    backplane: Arc<dyn Backplane>,
    members: Arc<dyn Members>,
    pending: Mutex<HashMap<u64, Pending>>,
    alive: Mutex<Option<(Instant, HashSet<NodeId>)>>,
    answered_total: Counter,
    failed_total: Counter,
}

impl Commands {
    /// For this node.
    pub fn new(node: NodeId, backplane: Arc<dyn Backplane>, members: Arc<dyn Members>) -> Self {
        Self {
            node,
            backplane,
            members,
            pending: Mutex::default(),
            alive: Mutex::default(),
            answered_total: counter!(COMMANDS, "result" => "answered"),
            failed_total: counter!(COMMANDS, "result" => "failed"),
        }
    }

    /// Acts on connections, on every node.
    ///
    /// # Errors
    /// When a node did not answer in time or could not act; others may have acted.
    pub async fn apply(&self, target: Target, action: &Action) -> Result<Applied, AskError> {
        let request = Request::Apply { target: target.into(), action: action.into() };
        let mut sum = Applied::default();
        for result in self.ask(request).await? {
            if let WireResult::Applied { matched, already_subscribed } = result {
                sum.matched += matched;
                sum.already_subscribed += already_subscribed;
            }
        }
        Ok(sum)
    }

    /// Channels with subscribers on any node, and how many; an empty pattern matches all.
    ///
    /// # Errors
    /// When a node did not answer in time.
    pub async fn channels(&self, pattern: &str) -> Result<BTreeMap<ChannelName, usize>, AskError> {
        let mut sum = BTreeMap::new();
        for result in self.ask(Request::Channels { pattern: pattern.to_owned() }).await? {
            let WireResult::Channels(channels) = result else { continue };
            for (channel, subscribers) in channels {
                *sum.entry(ChannelName::from(channel)).or_default() += subscribers;
            }
        }
        Ok(sum)
    }

    /// What every node is doing.
    ///
    /// # Errors
    /// When a node did not answer in time.
    pub async fn info(&self) -> Result<Vec<NodeInfo>, AskError> {
        let results = self.ask(Request::Info {}).await?;
        let infos = results.into_iter().filter_map(|result| match result {
            WireResult::Info(info) => Some(*info),
            _ => None,
        });
        let mut infos: Vec<NodeInfo> = infos.collect();
        infos.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        Ok(infos)
    }

    /// Has another node close the connection of a session, and hand over what it had. `None` when it cannot be told: a node
    /// that is gone is not asked, and one that does not answer is not waited for.
    pub async fn take_over(&self, from: NodeId, user: &UserId, client: ClientId, generation: u64) -> Option<TakenOver> {
        match self.alive().await {
            Ok(alive) if alive.contains(&from) => {}
            _ => return None,
        }
        let id = rand::random();
        let (done, answered) = oneshot::channel();
        let question = Pending { missing: HashSet::from([from]), results: Vec::new(), done: Some(done) };
        self.pending.lock().insert(id, question);
        let _forget = Forget { commands: self, id };
        let request = Request::TakeOver { user: user.as_str().to_owned(), client: client.0, generation };
        let data = encode(&Call::new(id, self.node, request));
        let publication = NewPublication { data, ..NewPublication::default() };
        let asked = self.backplane.publish(&answers_channel(from), publication, PublishOptions::default()).await;
        if let Err(error) = asked {
            tracing::debug!(%error, "another node could not be told of a takeover");
            return None;
        }
        // Whether it completes or not, what there is decides.
        let _ = tokio::time::timeout(TAKE_OVER_TIMEOUT, answered).await;
        let question = self.pending.lock().remove(&id)?;
        question.results.into_iter().find_map(WireResult::taken_over)
    }

    /// An answer has come.
    pub(super) fn answered(&self, answer: Answer) {
        let mut pending = self.pending.lock();
        // The caller may have given up.
        let Some(question) = pending.get_mut(&answer.id) else { return };
        question.missing.remove(&NodeId(answer.node));
        question.results.push(answer.result);
        if question.missing.is_empty()
            && let Some(done) = question.done.take()
        {
            // A caller that is gone needs no answer.
            let _ = done.send(());
        }
    }

    /// Gives an answer to the node that asked, which may be this one.
    pub(super) async fn answer(&self, to: NodeId, answer: Answer) {
        if to == self.node {
            return self.answered(answer);
        }
        let mut encoded = encode(&answer);
        if encoded.len() > ANSWER_BYTES {
            let why = format!("an answer of {} bytes, more than {ANSWER_BYTES}", encoded.len());
            encoded = encode(&Answer::new(answer.id, self.node, WireResult::Failed(why)));
        }
        let publication = NewPublication { data: encoded, ..NewPublication::default() };
        let sent = self.backplane.publish(&answers_channel(to), publication, PublishOptions::default()).await;
        if let Err(error) = sent {
            tracing::debug!(%error, "an answer to another node was not sent");
        }
    }

    async fn ask(&self, request: Request) -> Result<Vec<WireResult>, AskError> {
        let result = tokio::time::timeout(2 * ANSWER_TIMEOUT, self.ask_now(request)).await;
        let result = result.unwrap_or_else(|_| {
            Err(BackplaneError::Unavailable("the other nodes could not be asked in time".to_owned()).into())
        });
        if result.is_ok() {
            self.answered_total.increment(1)
        } else {
            self.failed_total.increment(1)
        }
        result
    }

    async fn ask_now(&self, request: Request) -> Result<Vec<WireResult>, AskError> {
        let id = rand::random();
        let missing = self.alive().await?;
        let (done, answered) = oneshot::channel();
        let question = Pending { missing, results: Vec::new(), done: Some(done) };
        self.pending.lock().insert(id, question);
        let _forget = Forget { commands: self, id };
        let stored = matches!(request, Request::Apply { .. });
        let data = encode(&Call::new(id, self.node, request));
        let options = PublishOptions { history: stored.then_some(COMMANDS_KEPT), ..PublishOptions::default() };
        let publication = NewPublication { data, ..NewPublication::default() };
        self.backplane.publish(&commands_channel(), publication, options).await?;
        // Whether it completes or not, what there is decides.
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, answered).await;
        let Some(mut question) = self.pending.lock().remove(&id) else { return Ok(Vec::new()) };
        if !question.missing.is_empty() {
            // One that has left in the meantime had nothing to do any more.
            *self.alive.lock() = None;
            let alive = self.alive().await?;
            question.missing.retain(|node| alive.contains(node));
        }
        if !question.missing.is_empty() {
            return Err(AskError::Silent(question.missing.into_iter().collect()));
        }
        for result in &question.results {
            match result {
                WireResult::Failed(why) => return Err(AskError::Failed(why.clone())),
                WireResult::Unknown => return Err(AskError::Failed("a node of a newer version".to_owned())),
                WireResult::Applied { .. }
                | WireResult::TakenOver { .. }
                | WireResult::Channels(_)
                | WireResult::Info(_) => {}
            }
        }
        Ok(question.results)
    }

    /// The nodes that have to answer; this one is always among them.
    async fn alive(&self) -> Result<HashSet<NodeId>, BackplaneError> {
        if let Some((asked, nodes)) = &*self.alive.lock()
            && asked.elapsed() < ALIVE_CACHED
        {
            return Ok(nodes.clone());
        }
        let asked = Instant::now();
        let ages = self.members.member_ages().await?;
        // Also one that has not reported for a while: it may be cut off, and hold the very clients that are meant.
        let nodes: HashSet<NodeId> = ages.into_iter().map(|(node, _)| node).chain([self.node]).collect();
        *self.alive.lock() = Some((asked, nodes.clone()));
        Ok(nodes)
    }
}

/// Takes a question back when nobody waits for it any more.
struct Forget<'a> {
    commands: &'a Commands,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.commands.pending.lock().remove(&self.id);
    }
}
