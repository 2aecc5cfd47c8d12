//! Carrying out what any node asks of all, in the order of the commands' channel, each command once.

use std::sync::Arc;
use std::time::Duration;

use backplane::{
    Backplane, BackplaneError, ChannelName, ClientId, Delivery, HistoryQuery, NodeId, Offset, Previous, Publication,
    StreamPosition, UserId,
};
use metrics::{Counter, counter};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::commands::Commands;
use super::inbox::ClusterInbox;
use super::roster::Roster;
use super::wire::{Answer, Call, Request, WireResult};
use super::{COMMANDS_KEPT, answers_channel, commands_channel, digest_channel};
use crate::api::glob::Glob;
use crate::metrics::COMMAND_GAPS;
use crate::node::Node;
use crate::shard::command::Action;

/// How often the position is compared with the backplane's although nothing seems missing.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// Pause before a failed read or subscribe is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The following side: one task per node.
pub struct Follower {
    node: Arc<Node>,
    id: NodeId,
    commands: Arc<Commands>,
    roster: Arc<Roster>,
    inbox: Arc<ClusterInbox>,
    backplane: Arc<dyn Backplane>,
    commands_channel: ChannelName,
    answers_channel: ChannelName,
    /// The last command that was carried out, or passed over at the start.
    at: StreamPosition,
    repaired_total: Counter,
    lost_total: Counter,
}

impl Follower {
    /// Subscribes the fleet's channels; what was commanded before is for the connections that were there before. Tries
    /// until it succeeds.
    pub async fn start(node: Arc<Node>, commands: Arc<Commands>, roster: Arc<Roster>) -> Self {
        let id = NodeId(node.uid);
        let (backplane, inbox) = (node.backplane.clone(), node.cluster_inbox.clone());
        let channels = [commands_channel(), answers_channel(id), digest_channel()];
        let at = loop {
            match begin(&*backplane, &channels).await {
                Ok(at) => break at,
                Err(error) => {
                    tracing::debug!(%error, "the channels of the fleet are not subscribed yet");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        };
        Self {
            node,
            id,
            commands,
            roster,
            inbox,
            backplane,
            commands_channel: commands_channel(),
            answers_channel: answers_channel(id),
            at,
            repaired_total: counter!(COMMAND_GAPS, "outcome" => "repaired"),
            lost_total: counter!(COMMAND_GAPS, "outcome" => "lost"),
        }
    }

    /// Follows for ever. Answers and digests are taken by a task of their own, so that they do not wait behind commands.
    pub async fn run(mut self) {
        let _listening = AbortOnDrop(tokio::spawn(listen(
            self.node.clone(),
            self.inbox.clone(),
            self.commands.clone(),
            self.roster.clone(),
            self.answers_channel.clone(),
        )));
        let mut check = tokio::time::interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_behind = false;
        loop {
            tokio::select! {
                () = self.inbox.commands.ready() => {}
                _ = check.tick() => is_behind = true,
                () = tokio::time::sleep(RETRY_AFTER), if is_behind => {}
            }
            let taken = self.inbox.commands.take();
            is_behind |= taken.disturbed;
            for (_, delivery) in taken.deliveries {
                is_behind |= self.delivered(delivery, is_behind).await;
            }
            if is_behind {
                is_behind = !self.catch_up().await;
            }
        }
    }

    /// True if history has to be read before anything else is carried out.
    async fn delivered(&mut self, delivery: Delivery, is_behind: bool) -> bool {
        match delivery {
            Delivery::Unpositioned(publication) => {
                self.question(&publication);
                false
            }
            Delivery::Positioned { epoch, previous, publication } => {
                let offset = publication.offset.unwrap_or(Offset(0));
                if epoch == self.at.epoch && offset <= self.at.offset {
                    return false;
                }
                if is_behind || epoch != self.at.epoch || previous != Previous::Known(self.at.offset) {
                    return true;
                }
                self.carry_out(&publication).await;
                self.at.offset = offset;
                false
            }
            Delivery::Presence(_) => false,
        }
    }

    /// Reads what came after the last command and carries it out; false if it has to be tried again.
    async fn catch_up(&mut self) -> bool {
        loop {
            // All that are kept at most, so that one read tells whether something is missing.
            let query = HistoryQuery::since(self.at.clone(), COMMANDS_KEPT.size);
            let page = match self.backplane.history(&self.commands_channel, query, COMMANDS_KEPT).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::debug!(%error, "commands of other nodes cannot be read yet");
                    return false;
                }
            };
            if page.top == self.at {
                return true;
            }
            if page.covered {
                self.repaired_total.increment(page.publications.len() as u64);
            } else {
                // Their callers were told that this node did not answer.
                self.lost_total.increment(1);
                tracing::warn!("commands of other nodes may have been missed: they are not kept any more");
            }
            if page.top.epoch != self.at.epoch {
                // The backplane has lost the stream. Everything in the new one came afterwards.
                self.at = StreamPosition { epoch: page.top.epoch, offset: Offset(0) };
                continue;
            }
            for stored in &page.publications {
                self.carry_out(&stored.publication).await;
            }
            self.at = page.top;
            return true;
        }
    }

    /// One stored command.
    async fn carry_out(&self, publication: &Publication) {
        let Some(call) = decode(publication) else { return };
        let result = match call.request {
            Request::Apply { target, action } => match Action::try_from(action) {
                Ok(action) => match self.node.apply_here(target.into(), action).await {
                    Ok(applied) => applied.into(),
                    Err(error) => WireResult::Failed(error.to_string()),
                },
                Err(reason) => WireResult::Failed(reason),
            },
            _ => WireResult::Failed("not a command that this version knows".to_owned()),
        };
        let (commands, answer) = (self.commands.clone(), Answer::new(call.id, self.id, result));
        // Beside the commands that follow, so that a slow backplane does not hold them up.
        tokio::spawn(async move { commands.answer(NodeId(call.from), answer).await });
    }

    /// One question, whose answer may take a while and changes nothing.
    fn question(&self, publication: &Publication) {
        let Some(call) = decode(publication) else { return };
        let (node, commands, id) = (self.node.clone(), self.commands.clone(), self.id);
        tokio::spawn(async move {
            let result = match call.request {
                Request::Channels { pattern } => channels(&node, &pattern).await,
                Request::Info {} => match node.info_here().await {
                    Ok(info) => Ok(WireResult::Info(Box::new(info))),
                    Err(error) => Err(error.to_string()),
                },
                _ => Err("not a question that this version knows".to_owned()),
            };
            let answer = Answer::new(call.id, id, result.unwrap_or_else(WireResult::Failed));
            commands.answer(NodeId(call.from), answer).await;
        });
    }
}

async fn channels(node: &Node, pattern: &str) -> Result<WireResult, String> {
    let glob = Glob::of(pattern).map_err(|error| error.to_string())?;
    let channels = node.channels_here(glob.as_ref()).await.map_err(|error| error.to_string())?;
    let named = channels.into_iter().map(|(name, subscribers)| (name.as_str().to_owned(), subscribers));
    Ok(WireResult::Channels(named.collect()))
}

/// Takes answers and digests as they come. What is lost of them is missed by nobody for long.
async fn listen(
    node: Arc<Node>,
    inbox: Arc<ClusterInbox>,
    commands: Arc<Commands>,
    roster: Arc<Roster>,
    answers: ChannelName,
) {
    loop {
        inbox.others.ready().await;
        for (channel, delivery) in inbox.others.take().deliveries {
            let Delivery::Unpositioned(publication) = delivery else { continue };
            if channel != answers {
                roster.heard(&publication.data);
                continue;
            }
            match (Answer::decode(&publication.data), Call::decode(&publication.data)) {
                (Ok(answer), _) => commands.answered(answer),
                (Err(_), Ok(call)) => asked(&node, &commands, call),
                (Err(error), Err(_)) => tracing::warn!(%error, "an answer of another node is not understood"),
            }
        }
    }
}

/// What is asked of this node only, beside the answers for it.
fn asked(node: &Arc<Node>, commands: &Arc<Commands>, call: Call) {
    let (node, commands) = (node.clone(), commands.clone());
    tokio::spawn(async move {
        let result = match call.request {
            Request::TakeOver { user, client, generation } => {
                match node.take_over_here(&UserId::from(user), ClientId(client), generation).await {
                    Ok(taken_over) => taken_over.into(),
                    Err(error) => WireResult::Failed(error.to_string()),
                }
            }
            _ => WireResult::Failed("not asked of one node by this version".to_owned()),
        };
        commands.answer(NodeId(call.from), Answer::new(call.id, NodeId(node.uid), result)).await;
    });
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn begin(backplane: &dyn Backplane, channels: &[ChannelName]) -> Result<StreamPosition, BackplaneError> {
    backplane.subscribe(channels).await?;
    let tops = backplane.positions(&[(commands_channel(), COMMANDS_KEPT)]).await?;
    tops.into_iter().next().ok_or_else(|| BackplaneError::Protocol("no position in the answer".to_owned()))
}

fn decode(publication: &Publication) -> Option<Call> {
    match Call::decode(&publication.data) {
        Ok(call) => Some(call),
        Err(error) => {
            tracing::warn!(%error, "a command of another node is not understood");
            None
        }
    }
}
