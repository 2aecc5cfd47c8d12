//! Tests of what is particular to the in-memory backplane; the promises it shares are in the conformance suite.

mod fleet;
mod limits;
mod model;
mod sessions;
mod threads;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;

use super::*;
use crate::{Disturbance, IDEMPOTENCY_TTL, Offset};

const HISTORY: HistoryOptions =
    HistoryOptions { size: 10, ttl: Duration::from_secs(60), meta_ttl: Duration::from_secs(600) };

/// A backplane with its clock by hand.
struct Bench {
    clock: Arc<ManualClock>,
    backplane: MemoryBackplane,
}

impl Bench {
    fn new(limits: MemoryLimits) -> Self {
        let clock = Arc::new(ManualClock::new());
        let on = Arc::clone(&clock);
        Self { clock, backplane: MemoryBackplane::with_clock(limits, on) }
    }

    fn publish(&self, channel: &str, bytes: usize, options: PublishOptions) -> Result<Published, BackplaneError> {
        let publication = NewPublication { data: Bytes::from(vec![b'x'; bytes]), ..NewPublication::default() };
        done(self.backplane.publish(&channel.into(), publication, options))
    }

    /// Publishes a few bytes into history.
    fn store(&self, channel: &str) -> StreamPosition {
        let options = PublishOptions { history: Some(HISTORY), ..PublishOptions::default() };
        self.publish(channel, 8, options).expect("there is room").position.expect("it has history")
    }

    fn top(&self, channel: &str) -> StreamPosition {
        done(self.backplane.history(&channel.into(), HistoryQuery::position(), HISTORY)).expect("there is room").top
    }

    fn subscribe(&self, channels: &[&str]) -> Result<(), BackplaneError> {
        let channels: Vec<ChannelName> = channels.iter().map(|&name| name.into()).collect();
        done(self.backplane.subscribe(&channels))
    }

    fn stats(&self) -> MemoryStats {
        for stripe in &self.backplane.stripes {
            stripe.lock().check();
        }
        for sessions in &self.backplane.sessions {
            sessions.lock().check();
        }
        self.backplane.stats()
    }
}

fn done<T>(call: BackplaneFuture<'_, T>) -> Result<T, BackplaneError> {
    call.now_or_never().expect("every call is ready at once")
}

fn keyed(key: &str) -> PublishOptions {
    PublishOptions { idempotency_key: Some(key.to_owned()), ..PublishOptions::default() }
}

fn member(client: u128, user: &str) -> Arc<ClientInfo> {
    let client = ClientId(uuid::Uuid::from_u128(client));
    Arc::new(ClientInfo { client, user: user.into(), conn_info: Bytes::new(), chan_info: Bytes::new() })
}

/// Everything delivered, in one list over all channels.
#[derive(Default)]
struct Log(Mutex<Vec<(ChannelName, Delivery)>>);

impl Sink for Log {
    fn deliver(&self, channel: &ChannelName, delivery: Delivery) {
        self.0.lock().push((channel.clone(), delivery));
    }

    fn disturbed(&self, disturbance: Disturbance) {
        panic!("the in-memory backplane is never disturbed: {disturbance:?}");
    }
}

#[test]
fn channels_without_anything_hold_nothing() {
    let bench = Bench::new(MemoryLimits::default());
    let (channel, info) = (ChannelName::from("a"), member(1, "ann"));
    assert_eq!(bench.publish("a", 8, PublishOptions::default()).map(|published| published.position), Ok(None));
    done(bench.backplane.announce(&channel, PresenceEvent::Join(Arc::clone(&info)))).expect("announce");
    done(bench.backplane.presence(&channel)).expect("presence");
    done(bench.backplane.remove_history(&channel)).expect("remove");
    done(bench.backplane.unsubscribe(std::slice::from_ref(&channel))).expect("unsubscribe");
    done(bench.backplane.remove_presence(&channel, info.client)).expect("remove");
    assert_eq!(bench.stats(), MemoryStats::default());

    bench.subscribe(&["a"]).expect("subscribe");
    done(bench.backplane.add_presence(&channel, Arc::clone(&info))).expect("add");
    assert_eq!(bench.stats(), MemoryStats { channels: 1, subscriptions: 1, presence_entries: 1, ..Default::default() });
    done(bench.backplane.unsubscribe(std::slice::from_ref(&channel))).expect("unsubscribe");
    done(bench.backplane.remove_presence(&channel, info.client)).expect("remove");
    assert_eq!(bench.stats(), MemoryStats::default());
}

#[test]
fn expired_things_are_freed_by_sweeps_alone() {
    let bench = Bench::new(MemoryLimits::default());
    bench.store("a");
    bench.publish("b", 8, keyed("k")).expect("publish");
    let held = bench.stats();
    assert_eq!((held.channels, held.streams, held.publications, held.idempotency_keys), (2, 1, 1, 1));
    assert!(held.history_bytes > 8);
    bench.clock.advance(HISTORY.ttl);
    assert!(!bench.backplane.sweep(100));
    let held = bench.stats();
    assert_eq!((held.channels, held.streams, held.publications, held.history_bytes), (2, 1, 0, 0));
    bench.clock.advance(IDEMPOTENCY_TTL - HISTORY.ttl);
    assert!(!bench.backplane.sweep(100));
    let held = bench.stats();
    assert_eq!((held.channels, held.streams, held.idempotency_keys), (1, 1, 0));
    bench.clock.advance(HISTORY.meta_ttl);
    assert!(!bench.backplane.sweep(100));
    assert_eq!(bench.stats(), MemoryStats::default());
}

#[test]
fn a_sweep_does_no_more_than_its_budget() {
    let bench = Bench::new(MemoryLimits::default());
    for n in 0..300 {
        for _ in 0..HISTORY.size {
            bench.store(&format!("c{n}"));
        }
    }
    for n in 0..500 {
        bench.publish("keys", 8, keyed(&n.to_string())).expect("publish");
    }
    bench.clock.advance(HISTORY.meta_ttl);
    let mut before = bench.stats();
    let mut sweeps = 0;
    let mut more = true;
    while more {
        more = bench.backplane.sweep(50);
        let now = bench.stats();
        let freed = (before.publications - now.publications) + (before.idempotency_keys - now.idempotency_keys);
        assert!(freed <= 50, "{freed} things freed with a budget of 50");
        before = now;
        sweeps += 1;
    }
    assert!(sweeps >= 3_500 / 50, "{sweeps} sweeps for 3,500 things");
    assert_eq!(bench.stats(), MemoryStats::default());
    assert!(!bench.backplane.sweep(50));
}

#[test]
fn idempotency_results_live_exactly_their_time() {
    let bench = Bench::new(MemoryLimits::default());
    let outcome = || bench.publish("a", 8, keyed("k")).expect("publish").outcome;
    assert_eq!(outcome(), PublishOutcome::Published);
    bench.clock.advance(IDEMPOTENCY_TTL - Duration::from_nanos(1));
    assert_eq!(outcome(), PublishOutcome::Repeated, "a repeat does not prolong it");
    bench.clock.advance(Duration::from_nanos(1));
    assert_eq!(outcome(), PublishOutcome::Published);
    bench.clock.advance(IDEMPOTENCY_TTL - Duration::from_nanos(1));
    assert_eq!(outcome(), PublishOutcome::Repeated);
    assert_eq!(bench.stats().idempotency_keys, 1);
}

#[test]
fn a_key_used_again_survives_the_freeing_of_its_first_result() {
    let bench = Bench::new(MemoryLimits::default());
    for n in 0..20 {
        bench.publish("a", 8, keyed(&n.to_string())).expect("publish");
    }
    bench.clock.advance(IDEMPOTENCY_TTL);
    // A publish frees a few of the oldest results only, so the first one of this key is still queued to be freed.
    assert_eq!(bench.publish("a", 8, keyed("19")).expect("publish").outcome, PublishOutcome::Published);
    assert!(bench.stats().idempotency_keys > 1);
    assert!(!bench.backplane.sweep(1_000));
    assert_eq!(bench.stats().idempotency_keys, 1);
    assert_eq!(bench.publish("a", 8, keyed("19")).expect("publish").outcome, PublishOutcome::Repeated);
}

#[test]
fn a_skipped_version_is_remembered_like_any_result() {
    let bench = Bench::new(MemoryLimits::default());
    let options = |version, epoch: &str, key: Option<&str>| PublishOptions {
        history: Some(HISTORY),
        version,
        version_epoch: epoch.to_owned(),
        idempotency_key: key.map(str::to_owned),
    };
    let first = bench.publish("a", 1, options(5, "x", None)).expect("publish");
    let skipped = bench.publish("a", 1, options(4, "x", Some("k"))).expect("publish");
    assert_eq!((skipped.outcome, &skipped.position), (PublishOutcome::Outdated, &first.position));
    bench.publish("a", 1, options(1, "y", None)).expect("publish");
    let repeat = bench.publish("a", 1, options(4, "x", Some("k"))).expect("publish");
    assert_eq!((repeat.outcome, repeat.position), (PublishOutcome::Repeated, first.position));
    assert_eq!(bench.top("a").offset, Offset(2));
}

#[test]
fn reading_keeps_an_epoch_alive() {
    let bench = Bench::new(MemoryLimits::default());
    let position = bench.store("a");
    for _ in 0..5 {
        bench.clock.advance(HISTORY.meta_ttl - Duration::from_nanos(1));
        bench.backplane.sweep(100);
        assert_eq!(bench.top("a"), position);
    }
    bench.clock.advance(HISTORY.meta_ttl);
    let forgotten = bench.top("a");
    assert_ne!(forgotten.epoch, position.epoch);
    assert_eq!(forgotten.offset, Offset(0));
}

#[test]
fn epochs_are_short_letters_and_all_different() {
    let bench = Bench::new(MemoryLimits::default());
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..1_000 {
        let epoch = bench.top("a").epoch;
        assert!(epoch.as_str().len() <= 16 && epoch.as_str().chars().all(|letter| letter.is_ascii_alphabetic()));
        assert!(seen.insert(epoch), "an epoch came twice");
        bench.backplane.forget();
    }
}

#[test]
fn offsets_start_at_one_and_chain_from_nothing() {
    let bench = Bench::new(MemoryLimits::default());
    assert_eq!(bench.top("a").offset, Offset(0));
    assert_eq!(bench.store("a").offset, Offset(1));
    let since = StreamPosition { epoch: "".into(), offset: Offset(0) };
    let query = HistoryQuery { since: Some(since), limit: None, reverse: false };
    assert!(done(bench.backplane.history(&"a".into(), query, HISTORY)).expect("history").covered);
}

#[test]
fn forgetting_keeps_subscriptions_and_members() {
    let bench = Bench::new(MemoryLimits::default());
    bench.subscribe(&["a", "b"]).expect("subscribe");
    done(bench.backplane.add_presence(&"b".into(), member(1, "ann"))).expect("add");
    let old = bench.store("a");
    bench.store("c");
    bench.publish("a", 8, keyed("k")).expect("publish");
    bench.backplane.forget();
    let held = MemoryStats { channels: 2, subscriptions: 2, presence_entries: 1, ..Default::default() };
    assert_eq!(bench.stats(), held);
    assert_eq!(bench.publish("a", 8, keyed("k")).expect("publish").outcome, PublishOutcome::Published);
    assert_ne!(bench.store("a").epoch, old.epoch);
}

#[test]
#[should_panic(expected = "one sink only")]
fn a_second_sink_is_refused() {
    let bench = Bench::new(MemoryLimits::default());
    bench.backplane.attach(Arc::new(Log::default()));
    bench.backplane.attach(Arc::new(Log::default()));
}
