//! What every case stands on: one backplane, one recorder, channel names nobody else uses, and short ways to say things.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::{Factory, Recorder, Violation};
use crate::{
    Backplane, BackplaneError, ChannelName, ClientId, ClientInfo, Delivery, Epoch, HistoryOptions, HistoryPage,
    HistoryQuery, NewPublication, Offset, PresenceStore, Previous, Publication, PublishOptions, PublishOutcome,
    Published, StoredPublication, StreamPosition,
};

/// Returns a violation from the case unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Violation::new(format!($($message)+)));
        }
    };
}

/// Returns a violation from the case unless both values are equal.
macro_rules! ensure_eq {
    // A match, because it keeps what the values borrow from.
    ($found:expr, $expected:expr, $($message:tt)+) => {
        match (&$found, &$expected) {
            (found, expected) => $crate::conformance::bench::ensure!(
                found == expected,
                "{}: found {found:?}, expected {expected:?}",
                format!($($message)+)
            ),
        }
    };
}

pub(super) use {ensure, ensure_eq};

/// History that nothing trims or ages during a case.
pub(super) const KEEP: HistoryOptions =
    HistoryOptions { size: 1_000, ttl: Duration::from_secs(120), meta_ttl: Duration::from_secs(600) };

/// Like [`KEEP`] with room for a few publications only.
pub(super) fn keep(size: usize) -> HistoryOptions {
    HistoryOptions { size, ..KEEP }
}

pub(super) fn stored_in(history: HistoryOptions) -> PublishOptions {
    PublishOptions { history: Some(history), ..PublishOptions::default() }
}

pub(super) fn message(data: &str) -> NewPublication {
    NewPublication { data: Bytes::copy_from_slice(data.as_bytes()), ..NewPublication::default() }
}

/// A client of a user, with its own random id.
pub(super) fn client(user: &str) -> Arc<ClientInfo> {
    Arc::new(ClientInfo {
        client: ClientId::random(),
        user: user.into(),
        conn_info: Bytes::from_static(b"{\"name\":\"n\"}"),
        chan_info: Bytes::new(),
    })
}

pub(super) fn after(position: &StreamPosition) -> HistoryQuery {
    HistoryQuery { since: Some(position.clone()), limit: None, reverse: false }
}

pub(super) fn everything() -> HistoryQuery {
    HistoryQuery { since: None, limit: None, reverse: false }
}

/// Payloads as text, for comparisons that read well when they fail.
pub(super) fn texts<'a>(publications: impl IntoIterator<Item = &'a Publication>) -> Vec<String> {
    publications.into_iter().map(|publication| String::from_utf8_lossy(&publication.data).into_owned()).collect()
}

pub(super) fn page_texts(page: &HistoryPage) -> Vec<String> {
    texts(page.publications.iter().map(|stored| &*stored.publication))
}

/// The names "m1" to "m<count>" that [`Bench::publish_many`] gives its payloads, from `first` on.
pub(super) fn numbered(first: usize, last: usize) -> Vec<String> {
    (first..=last).map(|n| format!("m{n}")).collect()
}

/// A delivery that must be a publication of a stream.
pub(super) fn positioned(delivery: &Delivery) -> Result<(&Epoch, StoredPublication), Violation> {
    match delivery {
        Delivery::Positioned { epoch, previous, publication } => {
            ensure!(publication.offset.is_some(), "a positioned delivery has no offset: {delivery:?}");
            Ok((epoch, StoredPublication { publication: Arc::clone(publication), previous: *previous }))
        }
        Delivery::Unpositioned(_) | Delivery::Presence(_) => {
            Err(Violation::new(format!("expected a positioned delivery, found {delivery:?}")))
        }
    }
}

/// Checks that publications follow each other: offsets increase, each names the one before it. The first may not know
/// its predecessor; if it does, that is `before` (when the case knows it).
pub(super) fn check_chain(before: Option<Offset>, chain: &[StoredPublication]) -> Result<(), Violation> {
    let mut last = before;
    for (index, entry) in chain.iter().enumerate() {
        let offset = entry.offset();
        ensure!(last.is_none_or(|last| last < offset), "offset {offset} after {last:?} does not increase");
        ensure!(offset.0 < 1 << 53, "offset {offset} does not fit a JavaScript number");
        match entry.previous {
            Previous::Known(previous) => match last {
                Some(last) => ensure_eq!(previous, last, "previous of offset {offset}"),
                None => ensure!(previous < offset, "previous {previous} of offset {offset} is not before it"),
            },
            Previous::Unknown => ensure!(index == 0, "previous of offset {offset} is unknown, {last:?} came before"),
        }
        last = Some(offset);
    }
    Ok(())
}

pub(super) struct Bench<'f, F: Factory> {
    pub(super) factory: &'f F,
    pub(super) backplane: Arc<F::Backplane>,
    recorder: Arc<Recorder>,
    /// Makes the names of this case its own, on a server that other cases use too.
    unique: String,
}

impl<'f, F: Factory> Bench<'f, F> {
    pub(super) async fn new(factory: &'f F) -> Self {
        let backplane = factory.create().await;
        let recorder = Arc::new(Recorder::default());
        backplane.attach(Arc::clone(&recorder) as Arc<dyn crate::Sink>);
        Self { factory, backplane, recorder, unique: Uuid::new_v4().simple().to_string() }
    }

    pub(super) fn channel(&self, label: &str) -> ChannelName {
        ChannelName::from(format!("{label}:{}", self.unique))
    }

    pub(super) async fn subscribe(&self, channels: &[ChannelName]) -> Result<(), Violation> {
        healthy("subscribe", self.backplane.subscribe(channels).await)
    }

    pub(super) async fn unsubscribe(&self, channels: &[ChannelName]) -> Result<(), Violation> {
        healthy("unsubscribe", self.backplane.unsubscribe(channels).await)
    }

    pub(super) async fn publish_with(
        &self,
        channel: &ChannelName,
        publication: NewPublication,
        options: PublishOptions,
    ) -> Result<Published, Violation> {
        healthy("publish", self.backplane.publish(channel, publication, options).await)
    }

    /// Publishes into history, which must work and say where.
    pub(super) async fn publish_in(
        &self,
        channel: &ChannelName,
        data: &str,
        history: HistoryOptions,
    ) -> Result<StreamPosition, Violation> {
        let published = self.publish_with(channel, message(data), stored_in(history)).await?;
        ensure_eq!(published.outcome, PublishOutcome::Published, "outcome of publishing {data}");
        let position = published.position.ok_or_else(|| Violation::new(format!("{data} was stored nowhere")))?;
        ensure!(!position.epoch.is_unknown(), "{data} was stored in an epoch without a name");
        Ok(position)
    }

    /// Publishes "m<first>" to "m<last>" into history one after another and returns their positions.
    pub(super) async fn publish_many(
        &self,
        channel: &ChannelName,
        first: usize,
        last: usize,
        history: HistoryOptions,
    ) -> Result<Vec<StreamPosition>, Violation> {
        let mut positions = Vec::new();
        for data in numbered(first, last) {
            positions.push(self.publish_in(channel, &data, history).await?);
        }
        Ok(positions)
    }

    pub(super) async fn read_in(
        &self,
        channel: &ChannelName,
        query: HistoryQuery,
        history: HistoryOptions,
    ) -> Result<HistoryPage, Violation> {
        let page = healthy("history", self.backplane.history(channel, query, history).await)?;
        ensure!(!page.top.epoch.is_unknown(), "a read returned an epoch without a name");
        Ok(page)
    }

    pub(super) async fn read(&self, channel: &ChannelName, query: HistoryQuery) -> Result<HistoryPage, Violation> {
        self.read_in(channel, query, KEEP).await
    }

    pub(super) async fn top(&self, channel: &ChannelName) -> Result<StreamPosition, Violation> {
        Ok(self.read(channel, HistoryQuery::position()).await?.top)
    }

    pub(super) async fn stats(&self, channel: &ChannelName) -> Result<(u32, u32), Violation> {
        let stats = healthy("presence_stats", self.backplane.presence_stats(channel).await)?;
        Ok((stats.num_clients, stats.num_users))
    }

    /// The members, in the order of their client ids.
    pub(super) async fn members(&self, channel: &ChannelName) -> Result<Vec<Arc<ClientInfo>>, Violation> {
        let mut members = healthy("presence", self.backplane.presence(channel).await)?;
        members.sort_by_key(|info| info.client);
        Ok(members)
    }

    /// Waits for deliveries and checks that there are exactly `count`.
    pub(super) async fn delivered(&self, channel: &ChannelName, count: usize) -> Result<Vec<Delivery>, Violation> {
        let seen = self.recorder.wait(channel, count, self.factory.patience()).await;
        ensure!(seen.len() >= count, "{channel}: {} deliveries in time, expected {count}: {seen:?}", seen.len());
        self.settle().await?;
        let seen = self.recorder.deliveries(channel);
        ensure!(seen.len() == count, "{channel}: {} deliveries, expected {count}: {seen:?}", seen.len());
        Ok(seen)
    }

    /// Waits for exactly `count` deliveries, all of one stream, and returns its epoch with the publications.
    pub(super) async fn stream_of(
        &self,
        channel: &ChannelName,
        count: usize,
    ) -> Result<(Epoch, Vec<StoredPublication>), Violation> {
        let mut epochs = Vec::new();
        let mut publications = Vec::new();
        for delivery in &self.delivered(channel, count).await? {
            let (epoch, publication) = positioned(delivery)?;
            epochs.push(epoch.clone());
            publications.push(publication);
        }
        epochs.dedup();
        ensure!(epochs.len() == 1, "deliveries of one stream carry the epochs {epochs:?}");
        Ok((epochs.swap_remove(0), publications))
    }

    /// Lets everything that is on its way arrive: a message that was published last, in a channel of its own, comes
    /// back. Absence of a delivery can be asserted afterwards.
    pub(super) async fn settle(&self) -> Result<(), Violation> {
        let marker = ChannelName::from(format!("marker:{}", Uuid::new_v4().simple()));
        let channels = [marker];
        self.subscribe(&channels).await?;
        self.publish_with(&channels[0], message("marker"), PublishOptions::default()).await?;
        let seen = self.recorder.wait(&channels[0], 1, self.factory.patience()).await;
        ensure!(!seen.is_empty(), "the marker did not come back in time");
        self.unsubscribe(&channels).await
    }
}

/// No fault is injected here, so every call must succeed.
pub(super) fn healthy<T>(call: &str, result: Result<T, BackplaneError>) -> Result<T, Violation> {
    result.map_err(|error| Violation::new(format!("{call} failed: {error}")))
}
