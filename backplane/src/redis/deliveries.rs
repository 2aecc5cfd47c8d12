//! Deliveries of all channels: each comes over a connection to the primary that owns the slot of the channel.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Weak};

use futures_util::future::join_all;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::commands::Commands;
use super::config::{Address, Topology};
use super::connection::{Access, send, unavailable_or_refused};
use super::keys::Keys;
use super::layout::{Layout, slot_of};
use super::subscriber::{Context, SinkCell, Subscriber, Unchanged};
use crate::{BackplaneError, ChannelName};

/// The connections for deliveries to one primary.
type Group = Vec<Arc<Subscriber>>;

/// Channels and the connection that they belong to.
type Part = (Arc<Subscriber>, Vec<ChannelName>);

/// All connections for deliveries.
pub(super) struct Deliveries {
    shared: Arc<Shared>,
    follow: JoinHandle<()>,
}

struct Shared {
    access: Access,
    context: Context,
    /// In the order of the layout's primaries. Locked after the layout.
    groups: Mutex<Vec<Group>>,
}

impl Deliveries {
    /// Connects to every primary, and fails when a first attempt does.
    pub(super) async fn connect(commands: &Commands, keys: &Keys, sink: SinkCell) -> Result<Self, BackplaneError> {
        let servers = Arc::clone(commands.servers());
        let access = servers.access().for_deliveries();
        let mut layouts = servers.layouts();
        let layout = Arc::clone(&layouts.borrow_and_update());
        let context = Context {
            config: Arc::clone(&access.config),
            health: Arc::clone(&access.health),
            keys: keys.clone(),
            sink,
            servers,
            layout: Arc::new(RwLock::new(Arc::clone(&layout))),
            is_sharded: matches!(access.config.topology, Topology::Cluster(_)),
        };
        let mut groups = Vec::new();
        for primary in &layout.primaries {
            let mut group = Group::new();
            for _ in 0..access.config.subscriber_connections {
                let connection = access.connect(&primary.address).await?;
                // What the connection is tested with has to be allowed.
                for (command, arguments) in [("CLIENT", vec!["ID".into()]), ("ROLE", Vec::new())] {
                    send(&connection.commands, command, arguments).await.map_err(unavailable_or_refused)?;
                }
                group.push(Arc::new(Subscriber::start(connection, primary.address.clone(), context.clone(), false)));
            }
            groups.push(group);
        }
        let shared = Arc::new(Shared { access, context, groups: Mutex::new(groups) });
        let follow = tokio::spawn(follow(layouts, Arc::downgrade(&shared)));
        Ok(Self { shared, follow })
    }

    /// Starts or ends deliveries of channels and waits until Redis has done it.
    pub(super) async fn change(&self, channels: &[ChannelName], subscribe: bool) -> Result<(), BackplaneError> {
        let timeout = self.shared.access.config.command_timeout;
        let under_way = self.shared.access.health.begin();
        let timed = tokio::time::timeout(timeout, self.shared.change(channels, subscribe)).await;
        if !matches!(timed, Ok(Ok(()))) {
            under_way.failed(timed.is_err());
        }
        if timed.is_err() {
            // Nobody asks again for the end of deliveries, nor for deliveries that were not acknowledged.
            self.shared.give_up(channels);
        }
        timed.unwrap_or_else(|_| Err(BackplaneError::Unavailable("redis did not subscribe in time".to_owned())))
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.follow.abort();
    }
}

impl Shared {
    async fn change(&self, channels: &[ChannelName], subscribe: bool) -> Result<(), BackplaneError> {
        let mut left = channels.to_vec();
        loop {
            let parts = self.parts(left)?;
            let changes = parts.into_iter().map(|(subscriber, channels)| async move {
                (subscriber.change(channels.clone(), subscribe).await, channels)
            });
            left = Vec::new();
            let mut problem = None;
            for (result, channels) in join_all(changes).await {
                match result {
                    Ok(()) => {}
                    Err(Unchanged::Moved) => left.extend(channels),
                    Err(Unchanged::Failed(error)) => problem = Some(error),
                }
            }
            match problem {
                Some(problem) => return Err(problem),
                None if left.is_empty() => return Ok(()),
                None => self.context.servers.look().await,
            }
        }
    }

    /// Takes channels out without waiting for Redis.
    fn give_up(&self, channels: &[ChannelName]) {
        let Ok(parts) = self.parts(channels.to_vec()) else { return };
        for (subscriber, channels) in parts {
            subscriber.edit(|subscribed| {
                let before = subscribed.names.len();
                for channel in channels {
                    let name = self.context.keys.channel(&channel).pubsub();
                    if subscribed.names.remove(&name).is_some() {
                        subscribed.given_up.push(name);
                    }
                }
                self.context.health.channels_changed(before, subscribed.names.len());
            });
        }
    }

    /// The channels by the connection that each belongs to.
    fn parts(&self, channels: Vec<ChannelName>) -> Result<Vec<Part>, BackplaneError> {
        let layout = self.context.layout.read();
        let groups = self.groups.lock();
        let width = self.access.config.subscriber_connections;
        let mut parts: Vec<Vec<ChannelName>> = vec![Vec::new(); width * groups.len()];
        for channel in channels {
            let Some(owner) = layout.owner(slot_of(&self.context.keys.channel(&channel).pubsub())) else {
                self.context.servers.look_soon();
                return Err(BackplaneError::Unavailable("no server of the redis cluster has the slot".to_owned()));
            };
            parts[owner * width + self.share(&channel)].push(channel);
        }
        let subscribers = groups.iter().flatten();
        let parts = subscribers.zip(parts).filter(|(_, part)| !part.is_empty());
        Ok(parts.map(|(subscriber, part)| (Arc::clone(subscriber), part)).collect())
    }

    /// Which of the connections to its server a channel uses.
    fn share(&self, channel: &ChannelName) -> usize {
        let mut hasher = DefaultHasher::new();
        channel.hash(&mut hasher);
        (hasher.finish() % self.access.config.subscriber_connections as u64) as usize
    }

    /// Hands channels whose slots have another owner to connections to it. Whoever gets some has them repaired.
    fn adopt(&self, new: &Arc<Layout>) {
        let mut layout = self.context.layout.write();
        let mut groups = self.groups.lock();
        let mut old: Vec<_> = layout.primaries.iter().cloned().zip(std::mem::take(&mut *groups)).collect();
        for primary in &new.primaries {
            let known = old.iter().find(|(known, _)| known.address == primary.address);
            let group = known.map_or_else(|| self.start_later(&primary.address), |(_, group)| group.clone());
            groups.push(group);
        }
        for (before, group) in &mut old {
            for subscriber in group {
                let mut moved = Vec::new();
                let present = new.primaries.iter().find(|primary| primary.address == before.address);
                subscriber.edit(|subscribed| {
                    let is_moved = |name: &str| {
                        let owner = new.owner(slot_of(name)).map(|owner| &new.primaries[owner].address);
                        owner != Some(&before.address)
                    };
                    moved.extend(subscribed.names.extract_if(|name, _| is_moved(name)));
                    // It may have been something else in between, and have forgotten subscriptions.
                    subscribed.is_doubtful |= present.is_some_and(|present| present.term != before.term);
                });
                for (name, channel) in moved {
                    // A layout has an owner for every slot that an earlier one had an owner for.
                    let Some(owner) = new.owner(slot_of(&name)) else { continue };
                    groups[owner][self.share(&channel)].edit(|subscribed| {
                        subscribed.adopted.push(name.clone());
                        subscribed.names.insert(name, channel);
                    });
                }
            }
        }
        *layout = Arc::clone(new);
    }

    fn start_later(&self, address: &Address) -> Group {
        let start = |_| {
            let connection = self.access.connect_later(address);
            Arc::new(Subscriber::start(connection, address.clone(), self.context.clone(), true))
        };
        (0..self.access.config.subscriber_connections).map(start).collect()
    }
}

async fn follow(mut layouts: watch::Receiver<Arc<Layout>>, shared: Weak<Shared>) {
    while layouts.changed().await.is_ok() {
        let layout = Arc::clone(&layouts.borrow_and_update());
        let Some(shared) = shared.upgrade() else { return };
        shared.adopt(&layout);
    }
}
