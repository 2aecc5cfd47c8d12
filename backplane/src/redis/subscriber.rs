//! Deliveries: which pub/sub names a connection is subscribed to, and the way of their messages to the sink.
//!
//! Two tasks per connection. The *router* does nothing but take messages and hand them over, because the client library
//! drops messages that are not taken quickly. The *keeper* owns the subscriptions: it makes them in batches, each followed
//! by a barrier (the client library does not wait for Redis to confirm), makes them again after a reconnect (it does not
//! do that either), and tests the connection (nothing else notices a silent one).

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use fred::error::Error;
use fred::interfaces::{EventInterface, PubsubInterface};
use fred::types::config::Server;
use fred::types::{Message, Value};
use parking_lot::RwLock;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::config::RedisConfig;
use super::connection::{Connection, FailFast, blob, connect, number, send, unavailable_or_refused};
use super::keys::Keys;
use super::record::{Record, decode};
use super::status::{Health, Link};
use crate::{BackplaneError, ChannelName, Delivery, Disturbance, Epoch, Offset, Previous, Sink};

/// Names in one SUBSCRIBE. Redis handles a thousand in about a millisecond, during which it does nothing else.
const NAMES_PER_COMMAND: usize = 1000;

/// Channels in one batch, after which its callers are answered.
const CHANNELS_PER_BATCH: usize = 10_000;

/// Requests that may wait for the keeper; more of them wait in their callers.
const REQUESTS_WAITING: usize = 1024;

/// Where deliveries go, once it is known.
pub(super) type SinkCell = Arc<OnceLock<Arc<dyn Sink>>>;

/// Pub/sub name to channel, for everything this connection is meant to be subscribed to.
type Subscribed = Arc<RwLock<HashMap<String, ChannelName>>>;

struct Request {
    channels: Vec<ChannelName>,
    subscribe: bool,
    done: oneshot::Sender<Result<(), BackplaneError>>,
}

/// One subscriber connection.
pub(super) struct Subscriber {
    requests: mpsc::Sender<Request>,
    timeout: Duration,
    health: Arc<Health>,
    tasks: [JoinHandle<()>; 2],
    _connection: Connection,
}

impl Subscriber {
    pub(super) async fn connect(
        config: &RedisConfig,
        keys: &Keys,
        sink: SinkCell,
        health: Arc<Health>,
    ) -> Result<Self, BackplaneError> {
        let connection = connect(config).await?;
        let client = &connection.client;
        let subscribed = Subscribed::default();
        let messages = client.message_rx();
        let (requests, queue) = mpsc::channel(REQUESTS_WAITING);
        let mut keeper = Keeper {
            reconnects: client.reconnect_rx(),
            errors: client.error_rx(),
            link: Link::new(Arc::clone(&health), "deliveries"),
            health: Arc::clone(&health),
            commands: connection.commands.clone(),
            keys: keys.clone(),
            subscribed: Arc::clone(&subscribed),
            sink: Arc::clone(&sink),
            connection_id: 0,
            stale: Vec::new(),
            delay_max: config.reconnect_delay_max,
        };
        keeper.connection_id = keeper.barrier().await?;
        let tasks = [
            tokio::spawn(route(messages, subscribed, sink, Arc::clone(&health))),
            tokio::spawn(keeper.run(queue, config.liveness_interval)),
        ];
        Ok(Self { requests, timeout: config.command_timeout, health, tasks, _connection: connection })
    }

    /// Subscribes or unsubscribes and waits until Redis has done it.
    pub(super) async fn change(&self, channels: Vec<ChannelName>, subscribe: bool) -> Result<(), BackplaneError> {
        let (done, answer) = oneshot::channel();
        let asked = async {
            let gone = || BackplaneError::Unavailable("the backplane is closed".to_owned());
            self.requests.send(Request { channels, subscribe, done }).await.map_err(|_| gone())?;
            answer.await.unwrap_or_else(|_| Err(gone()))
        };
        let under_way = self.health.begin();
        let timed = tokio::time::timeout(self.timeout, asked).await;
        if !matches!(timed, Ok(Ok(()))) {
            under_way.failed(timed.is_err());
        }
        timed.unwrap_or_else(|_| Err(BackplaneError::Unavailable("redis did not subscribe in time".to_owned())))
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Keeper {
    commands: FailFast,
    reconnects: Receiver<Server>,
    errors: Receiver<(Error, Option<Server>)>,
    /// Up while the connection lives and has all subscriptions, as far as is known.
    link: Link,
    health: Arc<Health>,
    keys: Keys,
    subscribed: Subscribed,
    sink: SinkCell,
    /// What Redis calls the connection that has all subscriptions.
    connection_id: u64,
    /// Names which Redis may still have us subscribed to, after a batch that failed.
    stale: Vec<String>,
    delay_max: Duration,
}

impl Keeper {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>, liveness_interval: Duration) {
        let mut liveness = tokio::time::interval(liveness_interval);
        liveness.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                error = self.errors.recv() => match error {
                    Ok((error, _)) => self.link.down(&error),
                    Err(lagged @ RecvError::Lagged(_)) => self.link.down(&lagged),
                    Err(RecvError::Closed) => return,
                },
                event = self.reconnects.recv() => match event {
                    // A lagged receiver has missed reconnects, which comes to the same.
                    Ok(_) | Err(RecvError::Lagged(_)) => self.restore().await,
                    Err(RecvError::Closed) => return,
                },
                request = queue.recv() => match request {
                    Some(first) => self.serve(first, &mut queue).await,
                    None => return,
                },
                _ = liveness.tick() => {
                    match self.barrier().await {
                        Ok(id) if id == self.connection_id => self.link.up(),
                        Ok(_) => self.restore().await,
                        // After the time limit the client library reconnects, and says so.
                        Err(error) => self.link.down(&error),
                    }
                }
            }
        }
    }

    /// Returns when Redis has handled everything that was sent before; says which connection it was. A command on the
    /// same connection is answered after the subscriptions before it took effect.
    async fn barrier(&self) -> Result<u64, BackplaneError> {
        let id = send(&self.commands, "CLIENT", vec![Value::from("ID")]).await;
        number(&id.map_err(unavailable_or_refused)?)
    }

    /// Carries out the requests that wait, in one batch.
    async fn serve(&mut self, first: Request, queue: &mut mpsc::Receiver<Request>) {
        let mut wanted = HashMap::new();
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            // A caller that has given up does not expect deliveries. The end of deliveries it still does.
            if !(request.subscribe && request.done.is_closed()) {
                wanted.extend(request.channels.into_iter().map(|channel| (channel, request.subscribe)));
                answers.push(request.done);
            }
            next = if wanted.len() < CHANNELS_PER_BATCH { queue.try_recv().ok() } else { None };
        }
        let (mut added, mut removed) = (Vec::new(), std::mem::take(&mut self.stale));
        {
            let mut subscribed = self.subscribed.write();
            let before = subscribed.len();
            for (channel, subscribe) in wanted {
                let name = self.keys.channel(&channel).pubsub();
                if !subscribe {
                    if subscribed.remove(&name).is_some() {
                        removed.push(name);
                    }
                } else if !subscribed.contains_key(&name) {
                    subscribed.insert(name.clone(), channel);
                    added.push(name);
                }
            }
            removed.retain(|name| !subscribed.contains_key(name));
            self.health.channels_changed(before, subscribed.len());
        }
        let result = self.apply(&added, &removed).await;
        match &result {
            Ok(id) if *id == self.connection_id => {}
            // Some of it may have gone to a connection that is no more.
            Ok(_) => self.restore().await,
            Err(error) => {
                if matches!(error, BackplaneError::Unavailable(_)) {
                    self.link.down(error);
                }
                let mut subscribed = self.subscribed.write();
                let before = subscribed.len();
                for name in &added {
                    subscribed.remove(name);
                }
                self.health.channels_changed(before, subscribed.len());
                self.stale = added;
                self.stale.append(&mut removed);
            }
        }
        for answer in answers {
            // Whoever stopped waiting needs no answer.
            let _ = answer.send(result.clone().map(|_| ()));
        }
    }

    async fn apply(&self, added: &[String], removed: &[String]) -> Result<u64, BackplaneError> {
        // Chunks are never empty: an empty list is an error whose reply would be given to another command.
        for names in removed.chunks(NAMES_PER_COMMAND) {
            self.commands.unsubscribe(names.to_vec()).await.map_err(unavailable_or_refused)?;
        }
        for names in added.chunks(NAMES_PER_COMMAND) {
            self.commands.subscribe(names.to_vec()).await.map_err(unavailable_or_refused)?;
        }
        self.barrier().await
    }

    /// Makes all subscriptions on the present connection, then has every channel repaired. Tries until it succeeds.
    async fn restore(&mut self) {
        self.link.down(&"the connection was made anew");
        let mut delay = Duration::from_millis(50);
        loop {
            // Only reconnects from here on matter.
            while !matches!(self.reconnects.try_recv(), Err(TryRecvError::Empty)) {
                if self.reconnects.is_closed() {
                    return;
                }
            }
            let names: Vec<String> = self.subscribed.read().keys().cloned().collect();
            let before = self.barrier().await;
            // Errors of the connections before this one; one of this one shows in what follows.
            while matches!(self.errors.try_recv(), Ok(_) | Err(TryRecvError::Lagged(_))) {}
            let after = match before {
                Ok(_) => self.apply(&names, &[]).await,
                Err(_) => before.clone(),
            };
            match (before, after) {
                (Ok(before), Ok(after)) if before == after => {
                    self.connection_id = after;
                    self.stale.clear();
                    tracing::debug!(channels = names.len(), "redis deliveries restored");
                    if let Some(sink) = self.sink.get() {
                        sink.disturbed(Disturbance::All);
                    }
                    self.health.restored();
                    self.link.up();
                    return;
                }
                (_, Err(error)) => {
                    tracing::debug!(%error, "redis deliveries are not restored yet");
                    tokio::time::sleep(delay).await;
                    delay = (2 * delay).min(self.delay_max);
                }
                _ => {}
            }
        }
    }
}

async fn route(mut messages: Receiver<Message>, subscribed: Subscribed, sink: SinkCell, health: Arc<Health>) {
    loop {
        match messages.recv().await {
            Ok(message) => {
                let Some(channel) = subscribed.read().get(&*message.channel).cloned() else { continue };
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
    use crate::redis::record::encode_publication;

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
