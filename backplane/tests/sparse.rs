//! The suite assumes no more than is promised: it passes on a backplane whose offsets have holes, whose channels start
//! above 0, whose deliveries come later from another thread, and which does not always know the first predecessor.

use std::future::Future;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use backplane::conformance::Factory;
use backplane::memory::{ManualClock, MemoryBackplane, MemoryLimits};
use backplane::{
    Backplane, BackplaneFuture, ChannelName, ClientId, ClientInfo, Delivery, Disturbance, HistoryOptions, HistoryPage,
    HistoryQuery, NewPublication, Offset, PresenceEvent, PresenceStats, PresenceStore, Previous, Publication,
    PublishOptions, Published, Sink, Status, StoredPublication, StreamPosition,
};

/// The in-memory backplane, seen through [`spread`] offsets and a delivery thread.
struct Sparse {
    inner: MemoryBackplane,
    /// Set once, by `attach`. Dropping it ends the thread.
    queue: OnceLock<Arc<Queue>>,
}

/// The offset that the outside sees for one of the inside.
fn spread(offset: Offset) -> Offset {
    Offset(3 + 7 * offset.0)
}

fn spread_previous(previous: Previous) -> Previous {
    match previous {
        Previous::Known(offset) => Previous::Known(spread(offset)),
        Previous::Unknown => Previous::Unknown,
    }
}

fn spread_position(position: StreamPosition) -> StreamPosition {
    StreamPosition { offset: spread(position.offset), ..position }
}

fn spread_publication(publication: &Publication) -> Arc<Publication> {
    Arc::new(Publication { offset: publication.offset.map(spread), ..publication.clone() })
}

/// The sink of the inside: hands over to a thread, as a connection to a server does.
struct Queue(Sender<(ChannelName, Delivery)>);

impl Sink for Queue {
    fn deliver(&self, channel: &ChannelName, mut delivery: Delivery) {
        if let Delivery::Positioned { previous, publication, .. } = &mut delivery {
            // The first one does not know where its channel starts.
            *previous =
                if *previous == Previous::Known(Offset(0)) { Previous::Unknown } else { spread_previous(*previous) };
            *publication = spread_publication(publication);
        }
        self.0.send((channel.clone(), delivery)).expect("the thread lives as long as this");
    }

    fn disturbed(&self, disturbance: Disturbance) {
        panic!("nothing disturbs the in-memory backplane: {disturbance:?}");
    }
}

impl Backplane for Sparse {
    fn attach(&self, sink: Arc<dyn Sink>) {
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for (channel, delivery) in receiver {
                // Lets the publisher run ahead, so that the suite really waits.
                thread::yield_now();
                sink.deliver(&channel, delivery);
            }
        });
        let queue = self.queue.get_or_init(|| Arc::new(Queue(sender)));
        self.inner.attach(Arc::clone(queue) as Arc<dyn Sink>);
    }

    fn publish<'a>(
        &'a self,
        channel: &'a ChannelName,
        publication: NewPublication,
        options: PublishOptions,
    ) -> BackplaneFuture<'a, Published> {
        Box::pin(async move {
            let mut published = self.inner.publish(channel, publication, options).await?;
            published.position = published.position.map(spread_position);
            // Other publishers have their turn before the answer.
            tokio::task::yield_now().await;
            Ok(published)
        })
    }

    fn announce<'a>(&'a self, channel: &'a ChannelName, event: PresenceEvent) -> BackplaneFuture<'a, ()> {
        self.inner.announce(channel, event)
    }

    fn subscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        self.inner.subscribe(channels)
    }

    fn unsubscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        self.inner.unsubscribe(channels)
    }

    fn history<'a>(
        &'a self,
        channel: &'a ChannelName,
        mut query: HistoryQuery,
        options: HistoryOptions,
    ) -> BackplaneFuture<'a, HistoryPage> {
        Box::pin(async move {
            let mut in_a_hole = false;
            let reverse = query.reverse;
            if let Some(since) = &mut query.since {
                let above = since.offset.0.saturating_sub(3);
                in_a_hole = since.offset.0 < 3 || above % 7 != 0;
                since.offset = Offset(if reverse { above.div_ceil(7) } else { above / 7 });
            }
            let page = self.inner.history(channel, query, options).await?;
            let publications = page.publications.iter().map(|entry| StoredPublication {
                publication: spread_publication(&entry.publication),
                previous: spread_previous(entry.previous),
            });
            Ok(HistoryPage {
                publications: publications.collect(),
                top: spread_position(page.top),
                covered: page.covered && !in_a_hole,
            })
        })
    }

    fn positions<'a>(
        &'a self,
        channels: &'a [(ChannelName, HistoryOptions)],
    ) -> BackplaneFuture<'a, Vec<StreamPosition>> {
        Box::pin(async move { Ok(self.inner.positions(channels).await?.into_iter().map(spread_position).collect()) })
    }

    fn remove_history<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, ()> {
        self.inner.remove_history(channel)
    }

    fn status(&self) -> Status {
        self.inner.status()
    }
}

impl PresenceStore for Sparse {
    fn add_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, ()> {
        self.inner.add_presence(channel, info)
    }

    fn adopt_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, bool> {
        self.inner.adopt_presence(channel, info)
    }

    fn linger_presence<'a>(
        &'a self,
        channel: &'a ChannelName,
        client: ClientId,
        grace: Duration,
    ) -> BackplaneFuture<'a, ()> {
        self.inner.linger_presence(channel, client, grace)
    }

    fn remove_presence<'a>(&'a self, channel: &'a ChannelName, client: ClientId) -> BackplaneFuture<'a, ()> {
        self.inner.remove_presence(channel, client)
    }

    fn presence<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, Vec<Arc<ClientInfo>>> {
        self.inner.presence(channel)
    }

    fn presence_stats<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, PresenceStats> {
        self.inner.presence_stats(channel)
    }
}

#[derive(Default)]
struct SparseFactory {
    clock: Arc<ManualClock>,
}

impl Factory for SparseFactory {
    type Backplane = Sparse;

    async fn create(&self) -> Arc<Sparse> {
        let clock = Arc::clone(&self.clock);
        let inner = MemoryBackplane::with_clock(MemoryLimits::default(), clock);
        Arc::new(Sparse { inner, queue: OnceLock::new() })
    }

    async fn wait(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn patience(&self) {
        tokio::time::sleep(Duration::from_secs(10)).await;
    }

    async fn lose_data(&self, backplane: &Sparse) {
        backplane.inner.forget();
    }

    fn expiry_slack(&self) -> Duration {
        Duration::ZERO
    }
}

fn run<T>(case: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime needs nothing that could fail here").block_on(case)
}

backplane::conformance_tests!(SparseFactory::default(), run);
backplane::lingering_conformance_tests!(SparseFactory::default(), run);
