//! Deliveries of one connection: which pub/sub names it is subscribed to, and the way of their messages to the sink.
//!
//! Two tasks per connection. The *router* does nothing but take messages and hand them over, because the client library
//! drops messages that are not taken quickly. The *keeper* owns the subscriptions: it makes them in batches, each followed
//! by a barrier (the client library does not wait for Redis to confirm), makes them again after a reconnect (it does not
//! do that either), and tests the connection (nothing else notices a silent one, or one to a server that is no longer
//! the primary).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::Server;
use fred::types::{Message, Value};
use futures_util::future::try_join_all;
use parking_lot::RwLock;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::config::{Address, RedisConfig};
use super::connection::{Connection, FailFast, blob, list, number, send, text, unavailable_or_refused};
use super::keys::Keys;
use super::layout::{Layout, slot_of};
use super::servers::Servers;
use crate::health::{Health, Link};
use crate::record::{Record, decode};
use crate::{BackplaneError, ChannelName, Delivery, Disturbance, Epoch, Offset, Previous, Sink};

/// Names in one SUBSCRIBE. Redis handles a thousand in about a millisecond, during which it does nothing else.
const NAMES_PER_COMMAND: usize = 1000;

/// Channels in one batch, after which its callers are answered.
const CHANNELS_PER_BATCH: usize = 10_000;

/// Requests that may wait for the keeper; more of them wait in their callers.
const REQUESTS_WAITING: usize = 1024;

/// Where deliveries go, once it is known.
pub(super) type SinkCell = Arc<OnceLock<Arc<dyn Sink>>>;

/// What a connection is meant to be subscribed to.
#[derive(Default)]
pub(super) struct Subscribed {
    /// Pub/sub name to channel.
    pub(super) names: HashMap<String, ChannelName>,
    /// Names among them that were another connection's, to be subscribed yet.
    pub(super) adopted: Vec<String>,
    /// Names no longer among them, which Redis may still have us subscribed to.
    pub(super) given_up: Vec<String>,
    /// All of them have to be subscribed again.
    pub(super) is_doubtful: bool,
}

/// What all connections for deliveries share.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) config: Arc<RedisConfig>,
    pub(super) health: Arc<Health>,
    pub(super) keys: Keys,
    pub(super) sink: SinkCell,
    pub(super) servers: Arc<Servers>,
    /// A name belongs to the connections of the server that owns its slot. Changed together with `Subscribed`, so that
    /// no name is left behind.
    pub(super) layout: Arc<RwLock<Arc<Layout>>>,
    /// Subscriptions are made by SSUBSCRIBE, as they are in a cluster.
    pub(super) is_sharded: bool,
}

/// Why a change of subscriptions was not made.
#[derive(Clone)]
pub(super) enum Unchanged {
    /// Some of the channels belong to another server.
    Moved,
    /// It failed.
    Failed(BackplaneError),
}

struct Request {
    channels: Vec<ChannelName>,
    subscribe: bool,
    done: oneshot::Sender<Result<(), Unchanged>>,
}

/// What is to be done in one go.
struct Batch {
    added: Vec<String>,
    removed: Vec<String>,
    /// Some of the added were another connection's: they must not be given up.
    is_adopting: bool,
    answers: Vec<oneshot::Sender<Result<(), Unchanged>>>,
}

/// One subscriber connection.
pub(super) struct Subscriber {
    requests: mpsc::Sender<Request>,
    subscribed: Arc<RwLock<Subscribed>>,
    is_changed: Arc<Notify>,
    tasks: [JoinHandle<()>; 2],
    _connection: Connection,
}

impl Subscriber {
    /// Takes a connection to the server at this address, which may have to be made yet. Requests wait until it is.
    /// `follows`: on a server that others have deliveries from already, which are to be handed over.
    pub(super) fn start(connection: Connection, address: Address, context: Context, follows: bool) -> Self {
        let subscribed = Arc::new(RwLock::new(Subscribed { is_doubtful: true, ..Subscribed::default() }));
        let messages = connection.client.message_rx();
        let (requests, queue) = mpsc::channel(REQUESTS_WAITING);
        let is_changed = Arc::new(Notify::new());
        let health = Arc::clone(&context.health);
        let router = route(messages, Arc::clone(&subscribed), Arc::clone(&context.sink), Arc::clone(&health));
        let keeper = Keeper {
            address,
            reconnects: connection.client.reconnect_rx(),
            errors: connection.client.error_rx(),
            link: Link::new(health, "deliveries"),
            client: connection.client.clone(),
            commands: connection.commands.clone(),
            subscribed: Arc::clone(&subscribed),
            is_changed: Arc::clone(&is_changed),
            connection_id: None,
            follows,
            stale: Vec::new(),
            context,
        };
        is_changed.notify_one();
        let tasks = [tokio::spawn(router), tokio::spawn(keeper.run(queue))];
        Self { requests, subscribed, is_changed, tasks, _connection: connection }
    }

    /// Subscribes or unsubscribes and waits until Redis has done it.
    pub(super) async fn change(&self, channels: Vec<ChannelName>, subscribe: bool) -> Result<(), Unchanged> {
        let (done, answer) = oneshot::channel();
        // An ended keeper has been replaced by that of another server.
        self.requests.send(Request { channels, subscribe, done }).await.map_err(|_| Unchanged::Moved)?;
        answer.await.unwrap_or(Err(Unchanged::Moved))
    }

    /// Changes what the connection is meant to be subscribed to; the keeper follows.
    pub(super) fn edit(&self, edit: impl FnOnce(&mut Subscribed)) {
        edit(&mut self.subscribed.write());
        self.is_changed.notify_one();
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Keeper {
    address: Address,
    client: Client,
    commands: FailFast,
    reconnects: Receiver<Server>,
    errors: Receiver<(Error, Option<Server>)>,
    /// Up while the connection lives and has all subscriptions, as far as is known.
    link: Link,
    subscribed: Arc<RwLock<Subscribed>>,
    is_changed: Arc<Notify>,
    /// What Redis calls the connection that has all subscriptions; `None` before there is one.
    connection_id: Option<u64>,
    /// It took the place of another one, so that its first subscriptions are a restoration too.
    follows: bool,
    /// Names which Redis may still have us subscribed to, after a batch that failed.
    stale: Vec<String>,
    context: Context,
}

impl Keeper {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut liveness = tokio::time::interval(self.context.config.liveness_interval);
        liveness.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let is_changed = Arc::clone(&self.is_changed);
        loop {
            tokio::select! {
                biased;
                event = self.reconnects.recv() => match event {
                    // A lagged receiver has missed reconnects, which comes to the same.
                    Ok(_) | Err(RecvError::Lagged(_)) => self.restore().await,
                    Err(RecvError::Closed) => return,
                },
                error = self.errors.recv() => match error {
                    Ok((error, _)) => self.went_down(&error),
                    Err(lagged @ RecvError::Lagged(_)) => self.went_down(&lagged),
                    Err(RecvError::Closed) => return,
                },
                () = is_changed.notified() => {
                    if std::mem::take(&mut self.subscribed.write().is_doubtful) {
                        self.restore().await;
                    } else {
                        self.serve(None, &mut queue).await;
                    }
                }
                request = queue.recv() => match request {
                    Some(first) => self.serve(Some(first), &mut queue).await,
                    None => return,
                },
                _ = liveness.tick() => self.check().await,
            }
        }
    }

    /// Notices a connection that was exchanged unseen, and a server that has become a replica: it may go on to answer,
    /// but nothing is delivered there any more.
    async fn check(&mut self) {
        match tokio::join!(self.barrier(), self.is_primary()) {
            (Ok(id), Ok(true)) if Some(id) == self.connection_id && self.reconnects.is_empty() => self.link.up(),
            (Ok(_), Ok(_)) => self.restore().await,
            // After the time limit the client library reconnects, and says so.
            (Err(error), _) | (_, Err(error)) => self.went_down(&error),
        }
    }

    /// Returns when Redis has handled everything that was sent before; says which connection it was. A command on the
    /// same connection is answered after the subscriptions before it took effect.
    async fn barrier(&self) -> Result<u64, BackplaneError> {
        let id = send(&self.commands, "CLIENT", vec![Value::from("ID")]).await;
        number(&id.map_err(unavailable_or_refused)?)
    }

    async fn is_primary(&self) -> Result<bool, BackplaneError> {
        let role = send(&self.commands, "ROLE", Vec::new()).await.map_err(unavailable_or_refused)?;
        let role = list(role)?.into_iter().next().map(text).transpose()?;
        Ok(role.as_deref() == Some("master"))
    }

    /// Carries out the requests that wait, in one batch, and subscribes what was another connection's.
    async fn serve(&mut self, first: Option<Request>, queue: &mut mpsc::Receiver<Request>) {
        let mut requests = Vec::new();
        let mut count = 0;
        let mut next = first.or_else(|| queue.try_recv().ok());
        while let Some(request) = next {
            count += request.channels.len();
            // A caller that has given up does not expect deliveries. The end of deliveries it still does.
            if !(request.subscribe && request.done.is_closed()) {
                requests.push(request);
            }
            next = if count < CHANNELS_PER_BATCH { queue.try_recv().ok() } else { None };
        }
        let Batch { added, mut removed, is_adopting, answers } = self.batch(requests);
        if added.is_empty() && removed.is_empty() && answers.is_empty() {
            return;
        }
        let result = self.apply(&added, &removed).await;
        match &result {
            // Redis counts connections anew when it starts again.
            Ok(id) if Some(*id) == self.connection_id && self.reconnects.is_empty() => {
                if is_adopting {
                    self.disturb();
                }
            }
            // Some of it may have gone to a connection that is no more.
            Ok(_) => self.restore().await,
            Err(_) if is_adopting => self.restore().await,
            Err(error) => {
                tracing::debug!(%error, "redis did not change subscriptions");
                let mut subscribed = self.subscribed.write();
                let before = subscribed.names.len();
                for name in &added {
                    subscribed.names.remove(name);
                }
                self.context.health.channels_changed(before, subscribed.names.len());
                self.stale = added;
                self.stale.append(&mut removed);
            }
        }
        let result = match result {
            Ok(_) => Ok(()),
            // The connection has been restored with everything that was asked for.
            Err(_) if is_adopting => Ok(()),
            Err(BackplaneError::Unavailable(why)) if why.starts_with("MOVED") => Err(Unchanged::Moved),
            Err(error) => Err(Unchanged::Failed(error)),
        };
        for answer in answers {
            // Whoever stopped waiting needs no answer.
            let _ = answer.send(result.clone());
        }
    }

    /// Notes what is asked for, and says what is to be done for it.
    fn batch(&mut self, requests: Vec<Request>) -> Batch {
        let (mut added, mut removed) = (Vec::new(), std::mem::take(&mut self.stale));
        let mut answers = Vec::new();
        removed.append(&mut self.subscribed.write().given_up);
        let layout = self.context.layout.read();
        let is_ours = |name: &str| {
            let owner = layout.owner(slot_of(name)).map(|owner| &layout.primaries[owner].address);
            owner == Some(&self.address)
        };
        let mut subscribed = self.subscribed.write();
        let before = subscribed.names.len();
        for request in requests {
            let name = |channel: &ChannelName| self.context.keys.channel(channel).pubsub();
            let channels: Vec<_> = request.channels.into_iter().map(|channel| (name(&channel), channel)).collect();
            if !channels.iter().all(|(name, _)| is_ours(name)) {
                // Whoever stopped waiting needs no answer.
                let _ = request.done.send(Err(Unchanged::Moved));
                continue;
            }
            answers.push(request.done);
            for (name, channel) in channels {
                if !request.subscribe {
                    if subscribed.names.remove(&name).is_some() {
                        removed.push(name);
                    }
                } else if !subscribed.names.contains_key(&name) {
                    subscribed.names.insert(name.clone(), channel);
                    added.push(name);
                }
            }
        }
        self.context.health.channels_changed(before, subscribed.names.len());
        // What was subscribed and unsubscribed in one batch, or the other way round, is as it was last asked for.
        added.retain(|name| subscribed.names.contains_key(name));
        // Redis itself has ended what was subscribed in a slot that is no longer here.
        removed.retain(|name| !subscribed.names.contains_key(name) && is_ours(name));
        let mut adopted = std::mem::take(&mut subscribed.adopted);
        adopted.retain(|name| subscribed.names.contains_key(name));
        let is_adopting = !adopted.is_empty();
        added.append(&mut adopted);
        Batch { added, removed, is_adopting, answers }
    }

    /// Changes subscriptions; says on which connection.
    async fn apply(&self, added: &[String], removed: &[String]) -> Result<u64, BackplaneError> {
        if self.context.is_sharded {
            return self.apply_sharded(added, removed).await;
        }
        // Chunks are never empty: an empty list is an error whose reply would be given to another command.
        for names in removed.chunks(NAMES_PER_COMMAND) {
            self.commands.unsubscribe(names.to_vec()).await.map_err(unavailable_or_refused)?;
        }
        let mut barrier = None;
        for names in added.chunks(NAMES_PER_COMMAND) {
            self.commands.subscribe(names.to_vec()).await.map_err(unavailable_or_refused)?;
            // The time limit of an answer is for these names, and not for all that a busy server has to subscribe.
            barrier = Some(self.barrier().await?);
        }
        self.last_barrier(barrier).await
    }

    /// Names of different slots cannot share a command. Redis confirms SSUBSCRIBE, and the client library takes that for
    /// the answer if there is just one name.
    async fn apply_sharded(&self, added: &[String], removed: &[String]) -> Result<u64, BackplaneError> {
        for names in removed.chunks(NAMES_PER_COMMAND) {
            let all = names.iter().map(|name| self.commands.sunsubscribe(name.as_str()));
            try_join_all(all).await.map_err(unavailable_or_refused)?;
        }
        if !removed.is_empty()
            && let Err(error) = self.barrier().await
        {
            // The client library expects no answer to SUNSUBSCRIBE, so that errors would be given to other commands.
            self.reconnect().await;
            return Err(error);
        }
        let mut barrier = None;
        for names in added.chunks(NAMES_PER_COMMAND) {
            let all = names.iter().map(|name| send(&self.commands, "SSUBSCRIBE", vec![Value::from(name.as_str())]));
            try_join_all(all).await.map_err(unavailable_or_refused)?;
            barrier = Some(self.barrier().await?);
        }
        self.last_barrier(barrier).await
    }

    /// The barrier after the last change, which was made already if that was a subscription.
    async fn last_barrier(&self, made: Option<u64>) -> Result<u64, BackplaneError> {
        match made {
            Some(id) => Ok(id),
            None => self.barrier().await,
        }
    }

    async fn reconnect(&self) {
        // It goes on trying by itself, and says so when it has succeeded.
        let _ = tokio::time::timeout(self.context.config.connect_timeout, self.client.force_reconnection()).await;
    }

    /// Makes all subscriptions on the present connection, then has every channel repaired. Tries until it succeeds.
    async fn restore(&mut self) {
        let is_first = self.connection_id.is_none() && !self.follows;
        if !is_first {
            self.went_down(&"the connection was made anew");
        }
        let mut delay = Duration::from_millis(50);
        loop {
            // Only reconnects from here on matter.
            loop {
                match self.reconnects.try_recv() {
                    Ok(_) | Err(TryRecvError::Lagged(_)) => {}
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Closed) => return,
                }
            }
            let names: Vec<String> = {
                let mut subscribed = self.subscribed.write();
                subscribed.adopted.clear();
                subscribed.names.keys().cloned().collect()
            };
            match self.try_restore(&names).await {
                Ok(true) => {
                    self.stale.clear();
                    tracing::debug!(server = %self.address, channels = names.len(), "redis deliveries restored");
                    if !names.is_empty() {
                        self.disturb();
                    }
                    if !is_first {
                        self.context.health.restored();
                    }
                    self.link.up();
                    return;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(server = %self.address, %error, "redis deliveries are not restored yet");
                    self.went_down(&error);
                    self.context.servers.look_soon();
                    tokio::time::sleep(delay).await;
                    delay = (2 * delay).min(self.context.config.reconnect_delay_max);
                }
            }
        }
    }

    /// `false` if the connection was exchanged meanwhile.
    async fn try_restore(&mut self, names: &[String]) -> Result<bool, BackplaneError> {
        let before = self.barrier().await?;
        // Errors of the connections before this one; one of this one shows in what follows.
        while matches!(self.errors.try_recv(), Ok(_) | Err(TryRecvError::Lagged(_))) {}
        if !self.is_primary().await? {
            // The name of the server may lead to another one by now.
            self.reconnect().await;
            return Err(BackplaneError::Unavailable("the server is not the primary".to_owned()));
        }
        let after = self.apply(names, &[]).await?;
        self.connection_id = Some(after);
        Ok(before == after && self.reconnects.is_empty())
    }

    /// From here on deliveries may be missing, and the node must not vouch for what it has until they are restored.
    fn went_down(&self, why: &dyn fmt::Display) {
        if self.link.down(why) {
            self.disturb();
        }
    }

    fn disturb(&self) {
        if let Some(sink) = self.context.sink.get() {
            sink.disturbed(Disturbance::All);
        }
    }
}

async fn route(
    mut messages: Receiver<Message>,
    subscribed: Arc<RwLock<Subscribed>>,
    sink: SinkCell,
    health: Arc<Health>,
) {
    loop {
        match messages.recv().await {
            Ok(message) => {
                let Some(channel) = subscribed.read().names.get(&*message.channel).cloned() else { continue };
                health.delivered();
                let Some(sink) = sink.get() else { continue };
                match blob(message.value).ok().and_then(|bytes| parse(&bytes)) {
                    Some(delivery) => sink.deliver(&channel, delivery),
                    None => {
                        tracing::warn!(%channel, "a delivery that this version does not understand");
                        sink.disturbed(Disturbance::Channel(channel));
                    }
                }
            }
            Err(RecvError::Lagged(lost)) => {
                health.lost(lost);
                tracing::warn!(lost, "deliveries were lost because this node is too slow; channels are repaired");
                if let Some(sink) = sink.get() {
                    sink.disturbed(Disturbance::All);
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Marks a message without a position: the record follows.
pub(super) const UNPOSITIONED: u8 = b'u';

/// Marks a message with a position: `<offset>:<offset before it>:<epoch>:<record>` follows.
const POSITIONED: u8 = b'p';

fn parse(message: &Bytes) -> Option<Delivery> {
    let (&mark, rest) = message.split_first()?;
    if mark == UNPOSITIONED {
        return Some(match decode(rest, None).ok()? {
            Record::Publication(publication) => Delivery::Unpositioned(Arc::new(publication)),
            Record::Presence(event) => Delivery::Presence(event),
        });
    }
    if mark != POSITIONED {
        return None;
    }
    let mut parts = rest.splitn(4, |&byte| byte == b':');
    let mut part = || parts.next().and_then(|part| str::from_utf8(part).ok());
    let offset = Offset(part()?.parse().ok()?);
    let previous = Previous::Known(Offset(part()?.parse().ok()?));
    let epoch = Epoch::from(part()?);
    match decode(parts.next()?, Some(offset)).ok()? {
        Record::Publication(publication) => {
            Some(Delivery::Positioned { epoch, previous, publication: Arc::new(publication) })
        }
        Record::Presence(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NewPublication;
    use crate::record::encode_publication;

    #[test]
    fn foreign_messages_are_told_from_ours() {
        let record = encode_publication(&NewPublication { data: Bytes::from_static(b"a:b"), ..Default::default() });
        let message = |head: &str| Bytes::from([head.as_bytes(), &record[..]].concat());
        let Some(Delivery::Positioned { epoch, previous, publication }) = parse(&message("p3670000000000000:7:eP:"))
        else {
            panic!("a positioned publication is understood");
        };
        assert_eq!((epoch.as_str(), previous), ("eP", Previous::Known(Offset(7))));
        assert_eq!((publication.offset, &publication.data[..]), (Some(Offset(3_670_000_000_000_000)), &b"a:b"[..]));
        assert!(matches!(parse(&message("u")), Some(Delivery::Unpositioned(_))));
        for head in ["", "x", "p1:2:", "p:2:e:", "p1:-2:e:", "p1:2:e"] {
            assert_eq!(parse(&message(head)), None, "{head:?}");
        }
    }
}
