//! A stream that is there when it is used, with positions that stay true.
//!
//! Before a [`Stream`] is used on a connection it is ensured: made if it is not there, compared with what it should be if
//! it is. If its numbers are handed out as offsets, revisions or tokens, its fences are checked too (see
//! [`fence`](super::fence)), and nothing is written before.
//!
//! # When numbers may have been given before
//! On a single server: at each start of it, which its id tells. In a cluster the server that a node is connected to says
//! nothing about the stream's. There each node remembers the last message that it wrote, and looks for it whenever a
//! connection, a leader or a write was lost. If it is not there, or another one has its number, a fence is appended: too
//! often is harmless, because clients whose messages are there recover all the same. What is left is a cluster that
//! loses acknowledged writes of which no node remembers any.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};

use super::calls::Calls;
use super::clock::unix_nanoseconds;
use super::connection::{Connection, Server};
use super::envelope::{Knowledge, id_of};
use super::fence::Fences;
use super::names::Names;
use super::request::{CallError, Stored, StreamInfo, Write};
use super::subscriber::SinkCell;
use crate::{BackplaneError, Disturbance, Epoch, Offset};

/// Attempts to write the fences, each after another node has written them.
const FENCE_ATTEMPTS: usize = 20;

/// How a stream is meant to be.
#[derive(Clone, Debug)]
pub(super) struct StreamSettings {
    /// Its name.
    pub(super) name: String,
    /// The subjects that it takes, with wildcards.
    pub(super) subject: String,
    /// Messages that are kept of each subject; -1 for all.
    pub(super) per_subject: i64,
    /// How long messages are kept; `None` for ever.
    pub(super) max_age: Option<Duration>,
    /// How long ids of writes are remembered; not longer than messages are kept.
    pub(super) ids_for: Duration,
    /// Where the server sends copies of what it takes: source and destination, with wildcards.
    pub(super) copies: Option<(String, String)>,
    /// A message may have a time to live of its own, on servers that can do that (2.11 and newer).
    pub(super) message_ttls: bool,
    /// Numbers are handed out as offsets, revisions or tokens.
    pub(super) is_fenced: bool,
}

impl StreamSettings {
    /// A stream that keeps the last message of each subject for ever, and whose numbers mean nothing.
    pub(super) fn last_of_each(name: String, subject: String) -> Self {
        Self {
            name,
            subject,
            per_subject: 1,
            max_age: None,
            ids_for: Duration::from_secs(120),
            copies: None,
            message_ttls: false,
            is_fenced: false,
        }
    }

    fn config(&self, calls: &Calls, server: &Server) -> Value {
        let config = &calls.access().config;
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let ids_for = self.max_age.map_or(self.ids_for, |max_age| self.ids_for.min(max_age));
        let mut settings = json!({
            "name": self.name,
            "subjects": [self.subject],
            "retention": "limits",
            "storage": config.storage.word(),
            "num_replicas": config.replicas,
            "discard": "old",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msg_size": -1,
            "max_msgs_per_subject": self.per_subject,
            "max_age": self.max_age.map_or(0, nanoseconds),
            "duplicate_window": nanoseconds(ids_for),
            "allow_direct": true,
            "allow_rollup_hdrs": true,
            // One message less in the middle of a channel would not be seen; rows of tables stand for themselves.
            "deny_delete": self.copies.is_some(),
        });
        if let Some((source, destination)) = &self.copies {
            settings["republish"] = json!({ "src": source, "dest": destination });
        }
        if self.message_ttls && server.version >= (2, 11, 0) {
            settings["allow_msg_ttl"] = json!(true);
        }
        settings
    }
}

/// What numbers of a stream mean, as long as one connection lasts.
#[derive(Clone, Debug)]
pub(super) struct Lineage {
    /// The connection on which it was found out.
    connection: u64,
    /// When the stream was created, in the server's words.
    created: String,
    /// The server that takes writes, if that can change.
    leader: Option<String>,
    /// `None` if numbers mean nothing.
    fences: Option<Fences>,
    epoch: Epoch,
    /// Reads may be answered by servers that do not have the latest messages yet.
    pub(super) is_replicated: bool,
    /// The server is one of several, so that interest in a subject takes its time to be known.
    pub(super) is_clustered: bool,
}

impl Lineage {
    /// Identity of the stream; empty if its numbers mean nothing.
    pub(super) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// The offset of a message that is in the stream; `None` if it is too old to tell.
    pub(super) fn offset(&self, number: u64) -> Option<Offset> {
        self.fences.as_ref().map_or(Some(Offset(number)), |fences| fences.offset(number))
    }

    /// The number of the message with that offset; `None` if there is none or if it was lost.
    pub(super) fn number(&self, offset: Offset) -> Option<u64> {
        self.fences.as_ref().map_or(Some(offset.0), |fences| fences.number(offset))
    }

    /// How many fences there have been, for whoever reads what is written now.
    pub(super) fn fence_count(&self) -> u32 {
        self.fences.as_ref().map_or(0, Fences::count)
    }
}

/// A stream and the connection on which it can be used.
#[derive(Clone)]
pub(super) struct Ready {
    /// For requests.
    pub(super) connection: Arc<Connection>,
    /// What numbers mean.
    pub(super) lineage: Arc<Lineage>,
}

/// The last message that this node wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Witness {
    epoch: Epoch,
    number: u64,
    id: u64,
    fence_count: u32,
}

/// A stream of this backplane.
pub(super) struct Stream {
    calls: Arc<Calls>,
    names: Names,
    settings: StreamSettings,
    /// The stream of fences; `None` for that one itself.
    meta: Option<Arc<Stream>>,
    sink: SinkCell,
    lineage: RwLock<Option<Arc<Lineage>>>,
    /// The last epoch that was handed out.
    last_epoch: Mutex<Option<Epoch>>,
    witness: Mutex<Option<Witness>>,
    /// Held while the stream is ensured and its fences are checked.
    preparation: tokio::sync::Mutex<()>,
}

impl Stream {
    /// A stream that is ensured when it is first used. `meta` is the stream of fences.
    pub(super) fn new(
        calls: Arc<Calls>,
        names: Names,
        settings: StreamSettings,
        meta: Option<Arc<Stream>>,
        sink: SinkCell,
    ) -> Self {
        Self {
            calls,
            names,
            settings,
            meta,
            sink,
            lineage: RwLock::default(),
            last_epoch: Mutex::default(),
            witness: Mutex::default(),
            preparation: tokio::sync::Mutex::default(),
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.settings.name
    }

    /// The connection, after the stream was ensured and its fences were checked on it. Costs nothing when that was done
    /// before. Fails at once without a connection; otherwise the caller limits the time.
    pub(super) async fn ready(&self) -> Result<Ready, BackplaneError> {
        let connection = self.calls.connection()?;
        if let Some(lineage) = self.known(&connection) {
            return Ok(Ready { connection, lineage });
        }
        let _one_at_a_time = self.preparation.lock().await;
        // Another one may be the current connection by now.
        let connection = self.calls.connection()?;
        if let Some(lineage) = self.known(&connection) {
            return Ok(Ready { connection, lineage });
        }
        let lineage = Arc::new(self.prepare(&connection).await?);
        *self.lineage.write() = Some(Arc::clone(&lineage));
        let before = self.last_epoch.lock().replace(lineage.epoch.clone());
        if before.is_some_and(|before| before != lineage.epoch) {
            tracing::warn!(stream = self.name(), "a nats stream is not what it was: positions in it are void");
            if let Some(sink) = self.sink.get() {
                sink.disturbed(Disturbance::All);
            }
        }
        Ok(Ready { connection, lineage })
    }

    /// What numbers meant when the stream was last used; `None` before its first use, and when that is in doubt.
    pub(super) fn lineage(&self) -> Option<Arc<Lineage>> {
        self.lineage.read().clone()
    }

    fn known(&self, connection: &Connection) -> Option<Arc<Lineage>> {
        self.lineage().filter(|lineage| lineage.connection == connection.number)
    }

    /// The stream may not be what it was: it is ensured and checked again before its next use.
    pub(super) fn doubt(&self) {
        *self.lineage.write() = None;
    }

    /// Doubts the stream unless as much is known of it already as a writer knew.
    pub(super) fn doubt_unless(&self, theirs: Knowledge) {
        let mut lineage = self.lineage.write();
        let is_enough = lineage.as_ref().is_some_and(|lineage| {
            let ours = lineage.knowledge();
            ours.epoch_check == theirs.epoch_check && !ours.is_behind(theirs)
        });
        if !is_enough {
            *lineage = None;
        }
    }

    /// Doubts the stream if `error` is one after which it may not be what it was. To be called with every error of a
    /// request to it.
    pub(super) fn failed(&self, error: &CallError) {
        if matches!(error, CallError::NoStream | CallError::Unavailable(_) | CallError::Unexpected(_)) {
            self.doubt();
        }
    }

    /// Remembers a message that this node wrote, so that its loss is noticed.
    pub(super) fn wrote(&self, lineage: &Lineage, number: u64, id: u64) {
        if !lineage.is_clustered {
            return;
        }
        let (epoch, fence_count) = (lineage.epoch.clone(), lineage.fence_count());
        let mut witness = self.witness.lock();
        // Answers may come in any order.
        if witness.as_ref().is_none_or(|last| last.epoch != epoch || last.number < number) {
            *witness = Some(Witness { epoch, number, id, fence_count });
        }
    }

    /// Looks whether the stream is led by another server than before, or is another one. To be called now and then.
    pub(super) async fn look(&self) {
        let Some(lineage) = self.lineage() else { return };
        let Ok(connection) = self.calls.connection() else { return };
        let info = connection.stream_info(self.name()).await;
        let is_same = match info {
            Ok(Some(info)) => info.created == lineage.created && leader(&info) == lineage.leader,
            // Whoever does not answer may come back as another one.
            Ok(None) | Err(_) => false,
        };
        if !is_same {
            self.doubt();
            // What there is to say is said there, and it is asked again at the next use.
            let _ = self.ready().await;
        }
    }

    async fn prepare(&self, connection: &Arc<Connection>) -> Result<Lineage, BackplaneError> {
        let info = self.ensure(connection).await?;
        let is_clustered = is_clustered(&connection.server, &info);
        let (fences, epoch) = match &self.meta {
            Some(meta) if self.settings.is_fenced => {
                let meta = meta.name_when_ready(connection).await?;
                let fences = self.check_fences(connection, &meta, &info, is_clustered).await?;
                let epoch = fences.epoch();
                (Some(fences), epoch)
            }
            _ => (None, Epoch::from("")),
        };
        Ok(Lineage {
            connection: connection.number,
            leader: leader(&info),
            created: info.created,
            fences,
            epoch,
            is_replicated: self.calls.access().config.replicas > 1,
            is_clustered,
        })
    }

    /// Ensures the stream itself on a connection, without its fences.
    async fn name_when_ready(&self, connection: &Arc<Connection>) -> Result<String, BackplaneError> {
        if self.known(connection).is_none() {
            let ready = Box::pin(self.ready()).await?;
            if ready.connection.number != connection.number {
                return Err(CallError::away().into());
            }
        }
        Ok(self.settings.name.clone())
    }

    async fn ensure(&self, connection: &Connection) -> Result<StreamInfo, BackplaneError> {
        let wanted = self.settings.config(&self.calls, &connection.server);
        let name = self.name();
        let Some(info) = connection.stream_info(name).await? else {
            tracing::info!(stream = name, "a nats stream is made");
            return match connection.create_stream(name, &wanted).await {
                Ok(info) => Ok(info),
                // 10058: it is there already, and not the same; another node may have been faster.
                Err(CallError::Refused { code: 10058, .. }) => {
                    let info = connection.stream_info(name).await?;
                    self.accept(connection, info.ok_or(CallError::NoStream)?, &wanted).await
                }
                Err(error) => Err(error.into()),
            };
        };
        self.accept(connection, info, &wanted).await
    }

    /// Takes a stream that is there, or says why it cannot be used. What may be changed is changed.
    async fn accept(
        &self,
        connection: &Connection,
        info: StreamInfo,
        wanted: &Value,
    ) -> Result<StreamInfo, BackplaneError> {
        if let Some(why) = difference(&info.config, wanted) {
            let name = self.name();
            return Err(BackplaneError::Protocol(format!(
                "the nats stream {name} was made with other settings: {why}; remove it, or use another prefix"
            )));
        }
        let Some(changed) = changed(&info.config, wanted) else { return Ok(info) };
        tracing::info!(stream = self.name(), "the settings of a nats stream are changed");
        Ok(connection.update_stream(self.name(), &changed).await?)
    }

    async fn check_fences(
        &self,
        connection: &Connection,
        meta: &str,
        info: &StreamInfo,
        is_clustered: bool,
    ) -> Result<Fences, BackplaneError> {
        let subject = self.names.subject(&["m", "fence", self.name()]);
        let writer = if is_clustered { "cluster" } else { &connection.server.id };
        for _ in 0..FENCE_ATTEMPTS {
            let stored = connection.last(meta, &subject).await?;
            let known = match &stored {
                Some(stored) => {
                    let fences = Fences::parse(&stored.payload);
                    Some(fences.map_err(|error| BackplaneError::Protocol(error.to_string()))?)
                }
                None => None,
            };
            let fences = match known.filter(|fences| fences.is_of(&info.created)) {
                None => self.first_fences(&info.created, writer),
                Some(fences) if !self.needs_fence(connection, &fences, is_clustered).await? => return Ok(fences),
                Some(mut fences) => {
                    // Read after the fences: nobody has written in between without changing them.
                    let info = connection.stream_info(self.name()).await?.ok_or(CallError::NoStream)?;
                    fences.append(writer, info.state.last_seq, unix_nanoseconds() / 1_000_000);
                    fences
                }
            };
            let expected = stored.map_or(0, |stored: Stored| stored.number);
            let write = Write { expected: Some(expected), ..Write::new(subject.clone(), fences.to_bytes()) };
            match connection.write(write).await {
                Ok(_) => {
                    tracing::info!(stream = self.name(), fences = fences.count(), "a nats stream was fenced");
                    return Ok(fences);
                }
                Err(CallError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CallError::Conflict.into())
    }

    /// Only positions in channels go together with an epoch; revisions and tokens must stay above all lost ones alone.
    fn first_fences(&self, created: &str, writer: &str) -> Fences {
        let first = Fences::new(created, writer, rand::random());
        if self.names.class_of_stream(self.name()).is_some() {
            first
        } else {
            first.beginning_at(unix_nanoseconds() / 1_000_000)
        }
    }

    /// Whether numbers may be given a second time unless there is another fence.
    async fn needs_fence(
        &self,
        connection: &Connection,
        fences: &Fences,
        is_clustered: bool,
    ) -> Result<bool, BackplaneError> {
        if !is_clustered {
            return Ok(fences.server() != connection.server.id);
        }
        let witness = self.witness.lock().clone();
        let Some(witness) = witness.filter(|witness| witness.epoch == fences.epoch()) else { return Ok(false) };
        if fences.count() > witness.fence_count {
            // Somebody else has noticed.
            return Ok(false);
        }
        let found = connection.at(self.name(), witness.number).await?;
        let is_there = found.is_some_and(|found| id_of(&found.payload) == Some(witness.id));
        Ok(!is_there)
    }
}

/// Whether the server of the connection may be another one than that of the stream.
fn is_clustered(server: &Server, info: &StreamInfo) -> bool {
    // A single server names itself the leader, or nobody.
    server.is_clustered || !server.has_jetstream || leader(info).is_some_and(|leader| leader != server.name)
}

fn leader(info: &StreamInfo) -> Option<String> {
    info.cluster.as_ref().and_then(|cluster| cluster.leader.clone())
}

/// Which setting of a stream is not what it must be.
fn difference(found: &Value, wanted: &Value) -> Option<String> {
    let fixed = ["subjects", "storage", "retention", "max_msgs_per_subject", "allow_direct", "allow_rollup_hdrs"];
    for name in fixed {
        if found[name] != wanted[name] {
            return Some(format!("{name} is {}, not {}", found[name], wanted[name]));
        }
    }
    for part in ["src", "dest"] {
        let (found, wanted) = (&found["republish"][part], &wanted["republish"][part]);
        if found != wanted {
            return Some(format!("republish {part} is {found}, not {wanted}"));
        }
    }
    // Limits that an operator may have set, under which publications would vanish in the middle of a channel.
    for name in ["max_msgs", "max_bytes"] {
        if found[name].as_i64().is_some_and(|limit| limit > 0) {
            return Some(format!("{name} limits it, which takes publications from channels that are within theirs"));
        }
    }
    None
}

/// The settings that a stream should get; `None` if it has them.
fn changed(found: &Value, wanted: &Value) -> Option<Value> {
    let mut changed = found.clone();
    for name in ["max_age", "num_replicas", "duplicate_window"] {
        changed[name] = wanted[name].clone();
    }
    if wanted["allow_msg_ttl"] == true {
        changed["allow_msg_ttl"] = json!(true);
    }
    (changed != *found).then_some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Value {
        json!({
            "subjects": ["ek.s.1-300.>"],
            "storage": "file",
            "retention": "limits",
            "max_msgs_per_subject": 2,
            "allow_direct": true,
            "allow_rollup_hdrs": true,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 300,
            "num_replicas": 1,
            "duplicate_window": 300,
            "republish": { "src": "ek.s.1-300.>", "dest": "ek.l.>" },
        })
    }

    fn with(name: &str, value: Value) -> Value {
        let mut config = config();
        config[name] = value;
        config
    }

    #[test]
    fn other_streams_are_refused_in_words() {
        assert_eq!(difference(&config(), &config()), None);
        assert_eq!(
            difference(
                &with("republish", json!({ "src": "ek.s.1-300.>", "dest": "ek.l.>", "headers_only": false })),
                &config()
            ),
            None
        );
        for (name, value) in [
            ("subjects", json!(["other"])),
            ("storage", json!("memory")),
            ("max_msgs_per_subject", json!(3)),
            ("republish", Value::Null),
            ("allow_direct", json!(false)),
            ("max_bytes", json!(1 << 20)),
        ] {
            let why = difference(&with(name, value), &config()).expect("it is another stream");
            assert!(why.contains(name), "{why}");
        }
    }

    #[test]
    fn what_may_be_changed_is_changed() {
        assert_eq!(changed(&config(), &config()), None);
        let mut found = with("max_age", json!(100));
        found["metadata"] = json!({ "of": "an operator" });
        let changed = changed(&found, &config()).expect("it differs");
        assert_eq!((&changed["max_age"], &changed["metadata"]["of"]), (&json!(300), &json!("an operator")));
    }
}
