//! Publishing, and removing what was published.

use std::sync::Arc;

use bytes::Bytes;

use super::NatsBackplane;
use super::classes::Kept;
use super::envelope::{Content, Envelope, Knowledge, Version, decode};
use super::order::{Step, Turn};
use super::request::{CallError, Stored, Write, written};
use super::stream::{Lineage, Ready};
use crate::record::{encode_presence, encode_publication};
use crate::{
    BackplaneError, ChannelName, NewPublication, Offset, PresenceEvent, PublishOptions, PublishOutcome, Published,
    StreamPosition,
};

/// Attempts at a step that reads, decides and writes, each after somebody else wrote in between.
const ATTEMPTS: usize = 20;

/// What a message without a position contains.
pub(super) fn message(record: &[u8]) -> Vec<u8> {
    Envelope { knowledge: Knowledge::default(), id: 0, content: Content::Message { record } }.encode()
}

impl NatsBackplane {
    pub(super) async fn publish_now(
        &self,
        channel: &ChannelName,
        publication: NewPublication,
        options: PublishOptions,
    ) -> Result<Published, BackplaneError> {
        let record = encode_publication(&publication);
        let Some(history) = options.history else {
            let Some(key) = options.idempotency_key else {
                self.fan_out(channel, message(&record)).await?;
                return Ok(Published { position: None, outcome: PublishOutcome::Published });
            };
            return self.publish_once(channel, &record, &key).await;
        };
        let kept = self.classes.of(channel, &history)?;
        let id = options.idempotency_key.map(|key| write_id(channel, &key));
        if options.version == 0 {
            let turn = self.base.order.enter(channel, Step::Request);
            return self.base.calls.timed(self.store(&kept, channel, &record, id, turn)).await;
        }
        let turn = self.base.order.enter(channel, Step::Alone);
        let version = Version { number: options.version, epoch: &options.version_epoch };
        let stored = self.store_version(&kept, channel, &record, id, version, turn);
        self.base.calls.timed(stored).await
    }

    /// Sends a message to the subscribers of a channel, and returns when the server has it.
    pub(super) async fn fan_out(&self, channel: &ChannelName, payload: Vec<u8>) -> Result<(), BackplaneError> {
        let turn = self.base.order.enter(channel, Step::Alone);
        self.base
            .calls
            .timed(async {
                turn.come().await;
                let _permit = self.base.calls.permit().await;
                let connection = self.base.calls.connection()?;
                connection.send(self.base.names.live(channel), Bytes::from(payload)).await?;
                // What follows on the same connection stays behind it.
                drop(turn);
                connection.confirm().await
            })
            .await
    }

    pub(super) async fn announce_now(&self, channel: &ChannelName, event: PresenceEvent) -> Result<(), BackplaneError> {
        self.fan_out(channel, message(&encode_presence(&event))).await
    }

    /// Publishes without history, but never twice with one key.
    async fn publish_once(&self, channel: &ChannelName, record: &[u8], key: &str) -> Result<Published, BackplaneError> {
        let mut turn = self.base.order.enter(channel, Step::Request);
        let write =
            Write { id: Some(write_id(channel, key)), ..Write::new(self.base.names.once(channel), message(record)) };
        let written = self.base.calls.timed(async {
            let ready = self.once.ready().await?;
            turn.come().await;
            let _permit = self.base.calls.permit().await;
            let answer = ready.connection.begin_write(write).await;
            turn.sent();
            let written = answered(answer).await.inspect_err(|error| self.once.failed(error))?;
            Ok::<_, BackplaneError>(written)
        });
        let outcome = if written.await?.is_repeat { PublishOutcome::Repeated } else { PublishOutcome::Published };
        Ok(Published { position: None, outcome })
    }

    /// Stores a publication by one request.
    async fn store(
        &self,
        kept: &Arc<Kept>,
        channel: &ChannelName,
        record: &[u8],
        id: Option<String>,
        mut turn: Turn<'_>,
    ) -> Result<Published, BackplaneError> {
        let ready = self.ready(kept).await?;
        turn.come().await;
        let _permit = self.base.calls.permit().await;
        let random = rand::random();
        let content = Content::Publication { version: None, record };
        let payload = Envelope { knowledge: ready.lineage.knowledge(), id: random, content }.encode();
        let is_keyed = id.is_some();
        let write = Write { id, ..Write::new(self.base.names.stored(kept.class, channel), payload) };
        let answer = ready.connection.begin_write(write).await;
        turn.sent();
        let written = answered(answer).await.inspect_err(|error| kept.stream.failed(error))?;
        if !(is_keyed && written.is_repeat) {
            kept.stream.wrote(&ready.lineage, written.number, random);
        }
        let outcome = if written.is_repeat { PublishOutcome::Repeated } else { PublishOutcome::Published };
        Ok(Published { position: Some(position(&ready.lineage, written.number)?), outcome })
    }

    /// Stores a publication if its version is above the stored one.
    async fn store_version(
        &self,
        kept: &Arc<Kept>,
        channel: &ChannelName,
        record: &[u8],
        id: Option<String>,
        version: Version<'_>,
        turn: Turn<'_>,
    ) -> Result<Published, BackplaneError> {
        let ready = self.ready(kept).await?;
        turn.come().await;
        let _permit = self.base.calls.permit().await;
        let _turn = turn;
        let published = self.try_version(&ready, kept, channel, record, id, version).await;
        published.map_err(|error| match error {
            Failure::Call(error) => {
                kept.stream.failed(&error);
                error.into()
            }
            Failure::Other(error) => error,
        })
    }

    async fn try_version(
        &self,
        ready: &Ready,
        kept: &Kept,
        channel: &ChannelName,
        record: &[u8],
        id: Option<String>,
        version: Version<'_>,
    ) -> Result<Published, Failure> {
        let stream = kept.stream.name();
        let subject = self.base.names.stored(kept.class, channel);
        for _ in 0..ATTEMPTS {
            let last = ready.connection.last(stream, &subject).await?;
            let known = self.stored_version(ready, kept, channel, last.as_ref()).await?;
            let number = last.as_ref().map_or(0, |last| last.number);
            if known.is_some_and(|known| known.outdates(version)) {
                let repeated = self.repeated(ready, &subject, id).await?;
                let (number, outcome) = match repeated {
                    Some(number) => (number, PublishOutcome::Repeated),
                    None => (number, PublishOutcome::Outdated),
                };
                return Ok(Published { position: Some(position(&ready.lineage, number)?), outcome });
            }
            let random = rand::random();
            let content = Content::Publication { version: Some(version), record };
            let payload = Envelope { knowledge: ready.lineage.knowledge(), id: random, content }.encode();
            let write = Write { id: id.clone(), expected: Some(number), ..Write::new(subject.clone(), payload) };
            match ready.connection.write(write).await {
                Ok(written) if written.is_repeat => {
                    let position = Some(position(&ready.lineage, written.number)?);
                    return Ok(Published { position, outcome: PublishOutcome::Repeated });
                }
                Ok(written) => {
                    kept.stream.wrote(&ready.lineage, written.number, random);
                    self.keep_version(ready, kept, channel, written.number, version).await?;
                    let position = Some(position(&ready.lineage, written.number)?);
                    return Ok(Published { position, outcome: PublishOutcome::Published });
                }
                Err(CallError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CallError::Conflict.into())
    }

    /// The version of the last publication that had one: it says so itself, if it is the last of all.
    async fn stored_version(
        &self,
        ready: &Ready,
        kept: &Kept,
        channel: &ChannelName,
        last: Option<&Stored>,
    ) -> Result<Option<KnownVersion>, Failure> {
        if let Some(last) = last
            && let Content::Publication { version: Some(version), .. } = content(last)?
        {
            return Ok(Some(KnownVersion::of(version)));
        }
        let subject = self.base.names.version(kept.class, channel);
        let Some(stored) = ready.connection.last(kept.stream.name(), &subject).await? else { return Ok(None) };
        match content(&stored)? {
            Content::Versioned { version, .. } => Ok(Some(KnownVersion::of(version))),
            _ => Ok(None),
        }
    }

    /// Remembers the version of a publication for when others without one have followed.
    async fn keep_version(
        &self,
        ready: &Ready,
        kept: &Kept,
        channel: &ChannelName,
        number: u64,
        version: Version<'_>,
    ) -> Result<(), Failure> {
        let subject = self.base.names.version(kept.class, channel);
        let content_now = Content::Versioned { number, version };
        let payload =
            Envelope { knowledge: ready.lineage.knowledge(), id: rand::random(), content: content_now }.encode();
        for _ in 0..ATTEMPTS {
            let stored = ready.connection.last(kept.stream.name(), &subject).await?;
            if let Some(stored) = &stored
                && let Content::Versioned { number: newer, .. } = content(stored)?
                && newer > number
            {
                return Ok(());
            }
            let expected = Some(stored.map_or(0, |stored| stored.number));
            let write = Write { expected, replaces_all: true, ..Write::new(subject.clone(), payload.clone()) };
            match ready.connection.write(write).await {
                Ok(_) => return Ok(()),
                Err(CallError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CallError::Conflict.into())
    }

    /// The number of the publication that was made with this id. Asks by a write that cannot succeed: the server looks
    /// at the id first.
    async fn repeated(&self, ready: &Ready, subject: &str, id: Option<String>) -> Result<Option<u64>, CallError> {
        if id.is_none() {
            return Ok(None);
        }
        let impossible = Write { id, expected: Some(u64::MAX >> 1), ..Write::new(subject.to_owned(), "") };
        match ready.connection.write(impossible).await {
            Ok(written) => Ok(written.is_repeat.then_some(written.number)),
            Err(CallError::Conflict) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn remove_now(&self, channel: &ChannelName) -> Result<(), BackplaneError> {
        let turn = self.base.order.enter(channel, Step::Alone);
        self.base
            .calls
            .timed(async {
                turn.come().await;
                let _permit = self.base.calls.permit().await;
                let connection = self.base.calls.connection()?;
                let streams = connection.streams_of(&self.base.names.stored_in_any_class(channel)).await?;
                for kept in streams.iter().filter_map(|stream| self.classes.named(stream)) {
                    let ready = self.ready(&kept).await?;
                    let removed = self.remove_in(&ready, &kept, channel).await;
                    removed.inspect_err(|error| kept.stream.failed(error))?;
                }
                Ok::<_, BackplaneError>(())
            })
            .await
    }

    /// Puts a marker in place of all publications of a channel: one step, which leaves the chain of positions whole.
    async fn remove_in(&self, ready: &Ready, kept: &Kept, channel: &ChannelName) -> Result<(), CallError> {
        let subject = self.base.names.stored(kept.class, channel);
        for _ in 0..ATTEMPTS {
            let Some(last) = ready.connection.last(kept.stream.name(), &subject).await? else { return Ok(()) };
            let is_empty = matches!(decode(&last.payload), Ok(envelope) if !matches!(envelope.content, Content::Publication { .. }));
            if is_empty {
                return Ok(());
            }
            let content = Content::Removed { previous: last.number };
            let random = rand::random();
            let payload = Envelope { knowledge: ready.lineage.knowledge(), id: random, content }.encode();
            let expected = Some(last.number);
            let write = Write { expected, replaces_all: true, ..Write::new(subject.clone(), payload) };
            match ready.connection.write(write).await {
                Ok(written) => {
                    kept.stream.wrote(&ready.lineage, written.number, random);
                    return Ok(());
                }
                Err(CallError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Err(CallError::Conflict)
    }

    /// The stream of a class, after it was made sure that its deliveries arrive.
    pub(super) async fn ready(&self, kept: &Arc<Kept>) -> Result<Ready, BackplaneError> {
        let ready = kept.ready().await?;
        if kept.must_be_reached(&ready) {
            self.deliveries.reach(Arc::clone(kept)).await?;
        }
        Ok(ready)
    }
}

/// A version that was stored.
struct KnownVersion {
    number: u64,
    epoch: String,
}

impl KnownVersion {
    fn of(version: Version<'_>) -> Self {
        Self { number: version.number, epoch: version.epoch.to_owned() }
    }

    fn outdates(&self, next: Version<'_>) -> bool {
        Version { number: self.number, epoch: &self.epoch }.outdates(&next)
    }
}

/// Why a step of several requests failed.
enum Failure {
    Call(CallError),
    Other(BackplaneError),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<BackplaneError> for Failure {
    fn from(error: BackplaneError) -> Self {
        Self::Other(error)
    }
}

fn content(stored: &Stored) -> Result<Content<'_>, CallError> {
    decode(&stored.payload).map(|envelope| envelope.content).map_err(|error| CallError::Unexpected(error.to_string()))
}

async fn answered(answer: Result<super::connection::Answer, CallError>) -> Result<super::request::Written, CallError> {
    written(&answer?.get().await?)
}

/// The position of a message that was just written.
fn position(lineage: &Lineage, number: u64) -> Result<StreamPosition, BackplaneError> {
    let offset = offset(lineage, number)?;
    Ok(StreamPosition { epoch: lineage.epoch().clone(), offset })
}

fn offset(lineage: &Lineage, number: u64) -> Result<Offset, BackplaneError> {
    lineage.offset(number).ok_or_else(|| {
        CallError::Unexpected(format!("the message {number}, which is older than what is known of its stream")).into()
    })
}

/// The id of a write: of one channel only, while the server compares ids in a whole stream.
fn write_id(channel: &ChannelName, key: &str) -> String {
    format!("{}.{}", super::names::token(channel), super::names::token(key))
}
