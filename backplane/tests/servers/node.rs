//! A node that records what it is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane::{
    Backplane, BackplaneError, ChannelName, ClientId, ClientInfo, Delivery, Disturbance, HistoryOptions, HistoryPage,
    HistoryQuery, NewPublication, PublishOptions, Published, Sink, StreamPosition,
};
use bytes::Bytes;
use tokio::sync::mpsc;

pub const DEADLINE: Duration = Duration::from_secs(40);

pub const KEEP: HistoryOptions =
    HistoryOptions { size: 10_000, ttl: Duration::from_secs(300), meta_ttl: Duration::from_secs(600) };

/// A jump takes the offset from the clock; without one it is a small count.
pub const JUMPED: u64 = 1 << 50;

pub enum Event {
    Delivered(ChannelName, Delivery),
    Disturbed(Disturbance),
}

pub struct Events(pub mpsc::UnboundedSender<Event>);

impl Sink for Events {
    fn deliver(&self, channel: &ChannelName, delivery: Delivery) {
        // The test may have ended.
        let _ = self.0.send(Event::Delivered(channel.clone(), delivery));
    }

    fn disturbed(&self, disturbance: Disturbance) {
        let _ = self.0.send(Event::Disturbed(disturbance));
    }
}

/// A node: its backplane and what it was told.
pub struct Node<B> {
    pub backplane: B,
    pub events: mpsc::UnboundedReceiver<Event>,
}

impl<B: Backplane> Node<B> {
    /// Records from now on what this backplane says.
    pub fn on(backplane: B) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        backplane.attach(Arc::new(Events(sender)));
        Self { backplane, events }
    }

    pub async fn next(&mut self) -> Event {
        let event = tokio::time::timeout(DEADLINE, self.events.recv()).await.expect("something happens in time");
        event.expect("the backplane holds the sender")
    }

    /// Waits until deliveries are restored and it was told so. It is also told when they begin to be missing.
    pub async fn disturbance(&mut self) {
        while !matches!(self.next().await, Event::Disturbed(Disturbance::All)) {}
        let restored = async {
            while !self.backplane.status().is_up {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, restored).await.expect("deliveries are restored in time");
    }

    /// The text of the next publication.
    pub async fn publication(&mut self) -> String {
        loop {
            if let Event::Delivered(_, Delivery::Positioned { publication, .. }) = self.next().await {
                return String::from_utf8_lossy(&publication.data).into_owned();
            }
        }
    }

    pub async fn try_publish(&self, channel: &ChannelName, text: &str) -> Result<Published, BackplaneError> {
        let publication = NewPublication { data: Bytes::copy_from_slice(text.as_bytes()), ..Default::default() };
        // With a key, because it may be tried again after an error.
        let options =
            PublishOptions { history: Some(KEEP), idempotency_key: Some(text.to_owned()), ..PublishOptions::default() };
        self.backplane.publish(channel, publication, options).await
    }

    /// Publishes, trying again for as long as the backplane is away.
    pub async fn publish(&self, channel: &ChannelName, text: &str) -> StreamPosition {
        let published = again(|| self.try_publish(channel, text)).await;
        published.position.expect("a channel with history has positions")
    }

    pub async fn after(&self, channel: &ChannelName, since: &StreamPosition) -> HistoryPage {
        let query = HistoryQuery { since: Some(since.clone()), limit: None, reverse: false };
        again(|| self.backplane.history(channel, query.clone(), KEEP)).await
    }
}

/// Repeats a call while the backplane is away.
pub async fn again<T, F: Future<Output = Result<T, BackplaneError>>>(call: impl Fn() -> F) -> T {
    again_within(DEADLINE, call).await
}

/// The same for so long at most.
pub async fn again_within<T, F>(longest: Duration, call: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, BackplaneError>>,
{
    let deadline = Instant::now() + longest;
    loop {
        match call().await {
            Ok(value) => return value,
            Err(BackplaneError::Unavailable(_)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

pub fn channel(name: &str) -> [ChannelName; 1] {
    [ChannelName::from(name)]
}

pub fn texts(page: &HistoryPage) -> Vec<String> {
    let data = |entry: &backplane::StoredPublication| String::from_utf8_lossy(&entry.publication.data).into_owned();
    page.publications.iter().map(data).collect()
}

pub fn client(user: &str) -> Arc<ClientInfo> {
    let client = ClientId::random();
    Arc::new(ClientInfo { client, user: user.into(), conn_info: Bytes::new(), chan_info: Bytes::new() })
}
