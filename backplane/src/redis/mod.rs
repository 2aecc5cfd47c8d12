//! The backplane on Redis 7: many nodes share channels, history and presence.
//!
//! One Lua script makes a publish one atomic step; deliveries come over pub/sub; presence belongs to node leases.
//!
//! # Positions stay true
//! Every publish compares the server's replication id with the one of the publish before. It is a new one after each
//! restart and each promotion, that is, whenever acknowledged publications may have been lost; then the offset jumps to a
//! value taken from the clock, above everything that can have been given before. So no pair of epoch and offset is ever
//! given twice, clients that saw lost publications are told so, and all others recover.
//!
//! # One server, Sentinel, Cluster
//! The primaries are found and followed here, and each connection is to one of them; see [`Topology`]. With Sentinel the
//! primary is the one of the latest failover that any Sentinel knows of. In a cluster a channel belongs to the primary
//! that owns the slot of its hash tag, by the claim with the highest configuration epoch that any node knows of; calls
//! follow a slot that moves, and deliveries come by sharded pub/sub. Who is primary is looked up every
//! [`RedisConfig::liveness_interval`] and whenever something fails. Deliveries whose server has changed are made anew and
//! the sink is told [`Disturbance::All`](crate::Disturbance::All), also when a server became a replica and answers on.
//!
//! Nothing is sent a second time but what a server has said that it did not carry out; the calls of a channel keep their
//! order then too. While a slot with keys is under way, calls that touch several keys wait for it.
//!
//! # What Redis must allow
//! The user needs the keys and pub/sub names below the prefix and the commands of [`ACL_COMMANDS`], on every server that
//! may become a primary; `+info` is there for the replication id. [`acl_line`] writes the whole rule.
//! [`RedisBackplane::connect`] tries it out on every primary and fails with that line when something is missing. The user
//! of the Sentinels, who may be another one, needs no keys and the commands of [`SENTINEL_ACL_COMMANDS`].
//!
//! # When Redis is away
//! Calls fail at once with [`BackplaneError::Unavailable`] while there is no connection, and after
//! [`RedisConfig::command_timeout`] when there is no answer. Connections are made again for ever; when the deliveries are
//! restored the sink is told [`Disturbance::All`](crate::Disturbance::All). [`Backplane::status`] says that it is down
//! while one of the connections does not work or misses subscriptions; beginning and end are logged once.
//!
//! A `subscribe` whose future is dropped, or which times out, may still take effect; `unsubscribe` ends it.
//!
//! # Durability
//! By default a publish is acknowledged when the primary has carried it out. A failover may lose it; what recovery says
//! stays true. With [`Durability::Replicated`] a publish with history, and each repeat of it, is acknowledged when so
//! many replicas have it; where that is not certain it fails with [`BackplaneError::Unavailable`] and a text that says
//! so, though it may have been stored and delivered.

mod commands;
mod config;
mod connection;
mod deliveries;
mod discovery;
mod durability;
pub mod keys;
mod layout;
mod lingering;
mod members;
mod order;
mod presence;
mod servers;
mod sessions;
mod status;
mod subscriber;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use fred::types::Value;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rand::Rng;
use tokio::task::JoinHandle;

use commands::Commands;
pub use config::{Address, Durability, RedisConfig, RedisTls, Topology};
use connection::{Script, blob, list, number, script, text, unexpected};
use deliveries::Deliveries;
use durability::Replication;
use keys::{ChannelKeys, Keys};
use layout::{Layout, SLOTS, slot_of};
use presence::Presence;
use subscriber::{SinkCell, UNPOSITIONED};

use crate::coverage::{Evidence, covered};
use crate::record::{Record, decode, encode_presence, encode_publication};
use crate::{
    Backplane, BackplaneError, BackplaneFuture, ChannelName, ClientId, ClientInfo, Epoch, HistoryOptions, HistoryPage,
    HistoryQuery, IDEMPOTENCY_TTL, NewPublication, Offset, PresenceEvent, PresenceStats, PresenceStore, Previous,
    PublishOptions, PublishOutcome, Published, Sink, Status, StoredPublication, StreamPosition,
};

static PUBLISH: Script = script!("publish.lua");
static PUBLISH_ONCE: Script = script!("publish_once.lua");
static READ: Script = script!("read.lua");

/// What the user of the backplane may do, in the words of `ACL SETUSER`.
pub const ACL_COMMANDS: &str = "-@all +auth +hello +ping +select +quit +info +role +wait +client|id +eval +evalsha \
    +publish +spublish +subscribe +unsubscribe +ssubscribe +sunsubscribe +cluster|nodes +asking +get +set +del +exists \
    +pexpire +pttl +time +hget +hmget +hset +hdel +hkeys +hvals +hgetall +xadd +xrange +xrevrange +sadd +srem \
    +srandmember +zadd +zrange +zrem +zcard";

/// What the user of the Sentinels may do ([`Topology::Sentinel`]), in the words of `ACL SETUSER`.
pub const SENTINEL_ACL_COMMANDS: &str = "-@all +auth +hello +ping +client|id +sentinel|master +sentinel|sentinels";

/// Letters in an epoch: 52^10 is about 2^57, so that no stream meets the epoch of an earlier one.
const EPOCH_LETTERS: usize = 10;

/// Positions read at the same time by one call, so that it leaves room for others.
const POSITIONS_AT_ONCE: usize = 256;

/// The rule that lets `user` be the user of a backplane with this prefix; the password is to be added.
pub fn acl_line(user: &str, prefix: &str) -> String {
    format!("ACL SETUSER {user} on resetkeys ~{prefix}:* resetchannels &{prefix}:* {ACL_COMMANDS}")
}

/// A backplane on Redis. Lives in a tokio runtime; dropping it ends its connections and tasks, but the
/// presence entries of this node only with its lease: see [`close`](Self::close).
pub struct RedisBackplane {
    commands: Arc<Commands>,
    replication: Option<Arc<Replication>>,
    keys: Keys,
    sink: SinkCell,
    deliveries: Deliveries,
    presence: Arc<Presence>,
    maintenance: JoinHandle<()>,
    address: String,
}

impl RedisBackplane {
    /// Connects, checks that the server allows what is needed, and registers this node's presence lease.
    ///
    /// # Errors
    /// [`BackplaneError::Unavailable`] when Redis cannot be reached, [`BackplaneError::Protocol`] for settings that
    /// cannot work, wrong credentials or missing permissions.
    pub async fn connect(config: &RedisConfig) -> Result<Self, BackplaneError> {
        if let Some(problem) = config.problem() {
            return Err(BackplaneError::Protocol(format!("redis settings: {problem}")));
        }
        let keys = Keys::new(&config.prefix).ok_or_else(|| {
            BackplaneError::Protocol(
                "redis settings: prefix must be made of [A-Za-z0-9_.:-] and not be empty".to_owned(),
            )
        })?;
        let explain = |error| explain(error, config);
        let connected = Commands::connect(config).await;
        // The rule for a server would not help the user of a Sentinel.
        let is_watched = matches!(config.topology, Topology::Sentinel { .. });
        let commands = Arc::new(if is_watched { connected? } else { connected.map_err(explain)? });
        probe(&commands, &keys).await.map_err(explain)?;
        let replication = Replication::connect(&commands, &probed(&commands.servers().now().layout, &keys)).await;
        let replication = replication.map_err(explain)?;
        let sink: SinkCell = Arc::new(OnceLock::new());
        let deliveries = Deliveries::connect(&commands, &keys, Arc::clone(&sink)).await.map_err(explain)?;
        let presence = Presence::register(Arc::clone(&commands), keys.clone(), config).await.map_err(explain)?;
        let maintenance = tokio::spawn(presence::look_after(Arc::downgrade(&presence), config.lease_interval));
        let address = format!("{:?}", config.topology);
        Ok(Self { commands, replication, keys, sink, deliveries, presence, maintenance, address })
    }

    /// Gives the presence lease up, so that nobody waits for its end, and closes the connections for commands. Calls fail
    /// from now on.
    ///
    /// # Errors
    /// When the lease could not be given up; it ends by itself then.
    pub async fn close(&self) -> Result<(), BackplaneError> {
        self.maintenance.abort();
        self.commands.health().close();
        let released = self.presence.release().await;
        self.commands.close().await;
        released
    }

    async fn publish_now(
        &self,
        channel: &ChannelName,
        publication: NewPublication,
        options: PublishOptions,
    ) -> Result<Published, BackplaneError> {
        let keys = self.keys.channel(channel);
        let record = encode_publication(&publication);
        let result_key = options.idempotency_key.as_deref().map(|key| keys.idempotency(key));
        let Some(history) = options.history else {
            let Some(result_key) = result_key else {
                self.fan_out(&keys.pubsub(), record).await?;
                return Ok(Published { position: None, outcome: PublishOutcome::Published });
            };
            let arguments = vec![unpositioned(record), millis(IDEMPOTENCY_TTL), self.commands.publish_command().into()];
            let answer = self.commands.script(&PUBLISH_ONCE, vec![keys.pubsub(), result_key], arguments).await?;
            return published(array(answer)?);
        };
        let mut names = vec![keys.meta(), keys.stream(), keys.pubsub()];
        names.extend(result_key);
        let arguments = vec![
            Bytes::from(record).into(),
            count(history.size.max(1)),
            millis(history.ttl),
            random_epoch().into(),
            i64::from(rand::rng().random_range(0..2048)).into(),
            millis(history.meta_ttl.max(history.ttl)),
            // All digits that a version can have, so that the script can compare it as text.
            format!("{:020}", options.version).into(),
            options.version_epoch.into(),
            millis(IDEMPOTENCY_TTL),
            self.commands.publish_command().into(),
        ];
        let [outcome, at, epoch, lineage] = array(self.commands.script(&PUBLISH, names, arguments).await?)?;
        if let Some(replication) = &self.replication {
            // Repeats too: they acknowledge the first publish, and that may have failed here.
            replication.confirm(&keys, text(lineage)?).await?;
        }
        published([outcome, at, epoch])
    }

    async fn fan_out(&self, name: &str, record: Vec<u8>) -> Result<(), BackplaneError> {
        self.commands.call(name, self.commands.publish_command(), vec![name.into(), unpositioned(record)]).await?;
        Ok(())
    }

    async fn read(
        &self,
        channel: &ChannelName,
        query: &HistoryQuery,
        options: HistoryOptions,
    ) -> Result<HistoryPage, BackplaneError> {
        let keys = self.keys.channel(channel);
        let since = query.since.as_ref();
        // One more than asked for tells whether the limit cut something off, which is only asked after a position.
        let extra = usize::from(since.is_some() && !query.reverse);
        let arguments = vec![
            random_epoch().into(),
            millis(options.meta_ttl.max(options.ttl)),
            since.map_or(String::new(), |position| position.offset.to_string()).into(),
            since.map_or("", |position| position.epoch.as_str()).into(),
            query.limit.map_or(Value::from(""), |limit| count(limit.saturating_add(extra))),
            if query.reverse { "1" } else { "0" }.into(),
        ];
        let answer = self.commands.script(&READ, vec![keys.meta(), keys.stream()], arguments).await?;
        let [top, epoch, entries, is_retained, oldest] = array(answer)?;
        let top = StreamPosition { epoch: Epoch::from(text(epoch)?), offset: Offset(number(&top)?) };
        let mut publications: Vec<StoredPublication> =
            list(entries)?.into_iter().map(entry).collect::<Result<_, _>>()?;
        let limit = query.limit.unwrap_or(usize::MAX);
        let reached_top = publications.len() <= limit;
        publications.truncate(limit);
        let oldest_previous = match text(oldest)?.as_str() {
            "" => None,
            previous => Some(Previous::Known(Offset(offset(previous)?))),
        };
        let evidence = Evidence { entry_retained: number(&is_retained)? == 1, oldest_previous, reached_top };
        let covered = !query.reverse && since.is_some_and(|since| covered(since, &top, evidence));
        Ok(HistoryPage { top, publications, covered })
    }
}

impl Drop for RedisBackplane {
    fn drop(&mut self) {
        self.maintenance.abort();
    }
}

impl fmt::Debug for RedisBackplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackplane").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The replication ids of the data sets of all primaries.
async fn lineage(commands: &Commands) -> Result<String, BackplaneError> {
    let mut lineages = Vec::new();
    for info in commands.call_all("INFO", vec!["replication".into()]).await? {
        lineages.push(lineage_of(&text(info)?)?);
    }
    Ok(lineages.join(" "))
}

/// The same of one server, from what `INFO replication` says.
fn lineage_of(info: &str) -> Result<String, BackplaneError> {
    let line = info.lines().find_map(|line| line.strip_prefix("master_replid:"));
    line.map(str::to_owned).ok_or_else(|| {
        BackplaneError::Protocol(
            "redis does not show master_replid in INFO replication, which publishing needs".to_owned(),
        )
    })
}

/// Does once on every primary what will be done all the time, in a channel that no client can use.
async fn probe(commands: &Commands, keys: &Keys) -> Result<(), BackplaneError> {
    const BRIEFLY: Duration = Duration::from_secs(1);
    lineage(commands).await?;
    for keys in probed(&commands.servers().now().layout, keys) {
        let record = encode_publication(&NewPublication::default());
        let arguments = vec![
            Bytes::from(record).into(),
            count(1),
            millis(BRIEFLY),
            random_epoch().into(),
            0.into(),
            millis(BRIEFLY),
            format!("{:020}", 0).into(),
            "".into(),
            millis(BRIEFLY),
            commands.publish_command().into(),
        ];
        let names = vec![keys.meta(), keys.stream(), keys.pubsub(), keys.idempotency("probe")];
        commands.script(&PUBLISH, names, arguments).await?;
        let arguments = vec![random_epoch().into(), millis(BRIEFLY), "0".into(), "".into(), "1".into(), "0".into()];
        commands.script(&READ, vec![keys.meta(), keys.stream()], arguments).await?;
        presence::probe(commands, &keys).await?;
    }
    lingering::probe(commands, keys).await?;
    members::probe(commands, keys).await?;
    sessions::probe(commands, keys).await
}

/// Channels that no client can use, one in a slot of each primary.
fn probed(layout: &Layout, keys: &Keys) -> Vec<ChannelKeys> {
    let mut found: Vec<Option<ChannelKeys>> = vec![None; layout.primaries.len()];
    // Each name is in another slot, so this is enough names for an owner of a few.
    for keys in (0..u32::from(SLOTS)).map(|number| keys.probe(number)) {
        if let Some(owner) = layout.owner(slot_of(&keys.meta())) {
            found[owner].get_or_insert(keys);
        }
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    found.into_iter().flatten().collect()
}

/// Adds to a refusal for lack of permissions what would grant them.
fn explain(error: BackplaneError, config: &RedisConfig) -> BackplaneError {
    let BackplaneError::Protocol(why) = &error else { return error };
    let lacks_permission = why.contains("NOPERM") || why.contains("The user executing the script can't");
    if !lacks_permission {
        return error;
    }
    let line = acl_line(config.username.as_deref().unwrap_or("default"), &config.prefix);
    BackplaneError::Protocol(format!("{why}; allow it with: {line}"))
}

fn random_epoch() -> String {
    const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut random = rand::rng();
    (0..EPOCH_LETTERS).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
}

/// Milliseconds, at least one: Redis takes zero for an order to delete.
fn millis(time: Duration) -> Value {
    // A century is longer than any use, and far from the sums that Redis refuses.
    const CENTURY: u128 = 100 * 366 * 86_400_000;
    i64::try_from(time.as_millis().clamp(1, CENTURY)).unwrap_or(i64::MAX).into()
}

fn count(number: usize) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}

fn unpositioned(mut record: Vec<u8>) -> Value {
    record.insert(0, UNPOSITIONED);
    Bytes::from(record).into()
}

fn array<const N: usize>(answer: Value) -> Result<[Value; N], BackplaneError> {
    list(answer)?.try_into().map_err(|items: Vec<Value>| unexpected(&Value::Array(items)))
}

fn offset(text: &str) -> Result<u64, BackplaneError> {
    text.parse().map_err(|_| BackplaneError::Protocol(format!("redis holds the offset {text:?}")))
}

fn published([outcome, at, epoch]: [Value; 3]) -> Result<Published, BackplaneError> {
    let outcome = match number(&outcome)? {
        0 => PublishOutcome::Published,
        1 => PublishOutcome::Repeated,
        2 => PublishOutcome::Outdated,
        _ => return Err(unexpected(&outcome)),
    };
    let position = match text(epoch)? {
        epoch if epoch.is_empty() => None,
        epoch => Some(StreamPosition { epoch: Epoch::from(epoch), offset: Offset(number(&at)?) }),
    };
    Ok(Published { position, outcome })
}

/// A stream entry: `[id, [d, record, p, offset before it]]`.
fn entry(value: Value) -> Result<StoredPublication, BackplaneError> {
    let [id, fields] = array(value)?;
    let [_, record, _, previous] = array(fields)?;
    let id = text(id)?;
    let at = Offset(offset(id.split_once('-').map_or(id.as_str(), |(at, _)| at))?);
    let previous = Previous::Known(Offset(number(&previous)?));
    match decode(&blob(record)?, Some(at)) {
        Ok(Record::Publication(publication)) => Ok(StoredPublication { publication: Arc::new(publication), previous }),
        Ok(Record::Presence(_)) => Err(BackplaneError::Protocol("a presence event among publications".to_owned())),
        Err(error) => Err(BackplaneError::Protocol(error.to_string())),
    }
}

impl Backplane for RedisBackplane {
    /// # Panics
    /// When it is called a second time: the deliveries so far went elsewhere.
    fn attach(&self, sink: Arc<dyn Sink>) {
        assert!(self.sink.set(sink).is_ok(), "a backplane is attached to one sink only");
    }

    fn publish<'a>(
        &'a self,
        channel: &'a ChannelName,
        publication: NewPublication,
        options: PublishOptions,
    ) -> BackplaneFuture<'a, Published> {
        Box::pin(self.publish_now(channel, publication, options))
    }

    fn announce<'a>(&'a self, channel: &'a ChannelName, event: PresenceEvent) -> BackplaneFuture<'a, ()> {
        Box::pin(async move { self.fan_out(&self.keys.channel(channel).pubsub(), encode_presence(&event)).await })
    }

    fn subscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        Box::pin(self.deliveries.change(channels, true))
    }

    fn unsubscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        Box::pin(self.deliveries.change(channels, false))
    }

    fn history<'a>(
        &'a self,
        channel: &'a ChannelName,
        query: HistoryQuery,
        options: HistoryOptions,
    ) -> BackplaneFuture<'a, HistoryPage> {
        Box::pin(async move { self.read(channel, &query, options).await })
    }

    fn positions<'a>(
        &'a self,
        channels: &'a [(ChannelName, HistoryOptions)],
    ) -> BackplaneFuture<'a, Vec<StreamPosition>> {
        Box::pin(async move {
            let top = async |(channel, options): &(ChannelName, HistoryOptions)| {
                self.read(channel, &HistoryQuery::position(), *options).await.map(|page| page.top)
            };
            stream::iter(channels.iter().map(top)).buffered(POSITIONS_AT_ONCE).try_collect().await
        })
    }

    fn remove_history<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, ()> {
        Box::pin(async move {
            let keys = self.keys.channel(channel);
            // On the connection of the channel's scripts, so that it keeps its place among them.
            self.commands.call(&keys.meta(), "DEL", vec![keys.stream().into()]).await?;
            Ok(())
        })
    }

    fn status(&self) -> Status {
        self.commands.health().status()
    }
}

impl PresenceStore for RedisBackplane {
    fn add_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, ()> {
        Box::pin(self.presence.add(channel, info))
    }

    fn adopt_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, bool> {
        Box::pin(self.presence.adopt(channel, info))
    }

    fn linger_presence<'a>(
        &'a self,
        channel: &'a ChannelName,
        client: ClientId,
        grace: Duration,
    ) -> BackplaneFuture<'a, ()> {
        Box::pin(self.presence.linger(channel, client, grace))
    }

    fn remove_presence<'a>(&'a self, channel: &'a ChannelName, client: ClientId) -> BackplaneFuture<'a, ()> {
        Box::pin(self.presence.remove(channel, client))
    }

    fn presence<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, Vec<Arc<ClientInfo>>> {
        Box::pin(self.presence.list(channel))
    }

    fn presence_stats<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, PresenceStats> {
        Box::pin(self.presence.stats(channel))
    }
}
