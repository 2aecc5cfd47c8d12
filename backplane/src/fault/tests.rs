//! Each fault does what it says, and nothing happens without an order.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;

use super::*;
use crate::conformance::Recorder;
use crate::memory::MemoryLimits;
use crate::{BackplaneError, Delivery, Offset, PublishOutcome};

const HISTORY: HistoryOptions =
    HistoryOptions { size: 100, ttl: Duration::from_secs(60), meta_ttl: Duration::from_secs(600) };

struct Bench {
    backplane: FaultyBackplane<MemoryBackplane>,
    recorder: Arc<Recorder>,
    channel: ChannelName,
}

impl Bench {
    /// Subscribed to one channel.
    fn new() -> Self {
        let backplane = FaultyBackplane::new(MemoryBackplane::new(MemoryLimits::default()));
        let recorder = Arc::new(Recorder::default());
        backplane.attach(Arc::clone(&recorder) as Arc<dyn Sink>);
        let channel = ChannelName::from("c");
        done(backplane.subscribe(std::slice::from_ref(&channel))).expect("no fault yet");
        Self { backplane, recorder, channel }
    }

    fn publish(&self) -> BackplaneFuture<'_, Published> {
        publish(&self.backplane, &self.channel)
    }

    fn publish_many(&self, count: usize) {
        for _ in 0..count {
            done(self.publish()).expect("no fault for calls");
        }
    }

    fn seen(&self) -> Vec<u64> {
        offsets(&self.recorder, &self.channel)
    }

    fn top(&self) -> u64 {
        let query = HistoryQuery::position();
        done(self.backplane.inner().history(&self.channel, query, HISTORY)).expect("no fault inside").top.offset.0
    }
}

fn publish<'a>(backplane: &'a impl Backplane, channel: &'a ChannelName) -> BackplaneFuture<'a, Published> {
    let publication = NewPublication { data: Bytes::from_static(b"{}"), ..NewPublication::default() };
    backplane.publish(channel, publication, PublishOptions { history: Some(HISTORY), ..PublishOptions::default() })
}

fn offsets(recorder: &Recorder, channel: &ChannelName) -> Vec<u64> {
    let offset = |delivery: Delivery| match delivery {
        Delivery::Positioned { publication, .. } => publication.offset.map_or(0, |offset| offset.0),
        Delivery::Unpositioned(_) | Delivery::Presence(_) => 0,
    };
    recorder.deliveries(channel).into_iter().map(offset).collect()
}

fn done<T>(call: BackplaneFuture<'_, T>) -> Result<T, BackplaneError> {
    call.now_or_never().expect("the call is not paused")
}

fn injected<T: std::fmt::Debug>(outcome: Result<T, BackplaneError>) {
    let error = outcome.expect_err("a fault was ordered");
    assert!(matches!(&error, BackplaneError::Unavailable(text) if text.contains("injected")), "{error}");
}

/// Counts wake-ups.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn poll<T>(call: &mut BackplaneFuture<'_, T>, bell: &Arc<Bell>) -> Poll<Result<T, BackplaneError>> {
    let waker = Waker::from(Arc::clone(bell));
    Pin::new(call).poll(&mut Context::from_waker(&waker))
}

#[test]
fn a_hanging_call_is_woken_and_carried_out_on_resume() {
    let bench = Bench::new();
    let (one, two) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
    bench.backplane.pause(Pause::Hang);
    let (mut first, mut second) = (bench.publish(), bench.publish());
    assert!(poll(&mut first, &one).is_pending() && poll(&mut first, &one).is_pending());
    assert!(poll(&mut second, &two).is_pending());
    assert_eq!((bench.backplane.hanging(), bench.top()), (2, 0), "nothing happens meanwhile");
    bench.backplane.resume();
    assert_eq!([one.0.load(Ordering::SeqCst), two.0.load(Ordering::SeqCst)], [1, 1]);
    for (call, bell) in [(&mut first, &one), (&mut second, &two)] {
        assert!(
            matches!(poll(call, bell), Poll::Ready(Ok(published)) if published.outcome == PublishOutcome::Published)
        );
    }
    assert_eq!((bench.seen(), bench.backplane.hanging()), (vec![1, 2], 0));
    assert_eq!(bench.backplane.counts(), FaultCounts::default());
}

#[test]
fn a_hanging_call_can_be_dropped_or_refused() {
    let bench = Bench::new();
    let bell = Arc::new(Bell::default());
    bench.backplane.pause(Pause::Hang);
    let (mut dropped, mut refused) = (bench.publish(), bench.publish());
    assert!(poll(&mut dropped, &bell).is_pending() && poll(&mut refused, &bell).is_pending());
    drop(dropped);
    assert_eq!(bench.backplane.hanging(), 1, "a dropped call leaves nothing behind");
    bench.backplane.pause(Pause::Refuse);
    assert_eq!(bell.0.load(Ordering::SeqCst), 1);
    let Poll::Ready(outcome) = poll(&mut refused, &bell) else { panic!("it was woken to fail") };
    injected(outcome);
    injected(done(bench.publish()));
    injected(done(bench.backplane.presence(&bench.channel)));
    bench.backplane.resume();
    bench.publish_many(1);
    assert_eq!((bench.seen(), bench.backplane.counts().failed), (vec![1], 3));
}

#[test]
fn a_pause_that_begins_again_keeps_a_woken_call() {
    let bench = Bench::new();
    let bell = Arc::new(Bell::default());
    bench.backplane.pause(Pause::Hang);
    let mut call = bench.publish();
    assert!(poll(&mut call, &bell).is_pending());
    bench.backplane.resume();
    bench.backplane.pause(Pause::Hang);
    assert!(poll(&mut call, &bell).is_pending());
    bench.backplane.resume();
    assert!(matches!(poll(&mut call, &bell), Poll::Ready(Ok(_))));
    assert_eq!(bell.0.load(Ordering::SeqCst), 2);
}

#[test]
fn calls_fail_before_or_after_their_effect() {
    let bench = Bench::new();
    bench.backplane.fail_next(2, Failure::BeforeEffect);
    bench.backplane.fail_next(1, Failure::AfterEffect);
    injected(done(bench.publish()));
    injected(done(bench.publish()));
    assert_eq!(bench.top(), 0);
    injected(done(bench.publish()));
    assert_eq!(bench.top(), 1, "stored, although the caller was told of an error");
    bench.publish_many(1);
    assert_eq!((bench.seen(), bench.backplane.counts().failed), (vec![1, 2], 3));
}

#[test]
fn every_call_can_fail() {
    let bench = Bench::new();
    let (backplane, channel) = (&bench.backplane, &bench.channel);
    let channels = [channel.clone()];
    let info = Arc::new(ClientInfo {
        client: ClientId::random(),
        user: "ann".into(),
        conn_info: Bytes::new(),
        chan_info: Bytes::new(),
    });
    backplane.fail_next(11, Failure::BeforeEffect);
    injected(done(bench.publish()));
    injected(done(backplane.announce(channel, PresenceEvent::Join(Arc::clone(&info)))));
    injected(done(backplane.subscribe(&channels)));
    injected(done(backplane.unsubscribe(&channels)));
    injected(done(backplane.history(channel, HistoryQuery::position(), HISTORY)));
    injected(done(backplane.positions(&[(channel.clone(), HISTORY)])));
    injected(done(backplane.remove_history(channel)));
    injected(done(backplane.add_presence(channel, Arc::clone(&info))));
    injected(done(backplane.remove_presence(channel, info.client)));
    injected(done(backplane.presence(channel)));
    injected(done(backplane.presence_stats(channel)));
    assert_eq!(done(backplane.presence_stats(channel)), Ok(PresenceStats::default()));
    bench.publish_many(1);
    assert_eq!(bench.seen(), [1], "no effect: still subscribed, nobody announced");
}

#[test]
fn deliveries_are_dropped_duplicated_and_held_as_ordered() {
    let bench = Bench::new();
    bench.backplane.drop_next(&bench.channel, 2);
    bench.backplane.duplicate_next(&bench.channel, 1);
    bench.backplane.hold_next(&bench.channel, 2);
    bench.publish_many(6);
    assert_eq!(bench.seen(), [3, 3, 6]);
    assert_eq!(bench.backplane.release(&"other".into(), Release::InOrder), 0);
    assert_eq!(bench.backplane.release(&bench.channel, Release::Reversed), 2);
    bench.publish_many(1);
    assert_eq!(bench.seen(), [3, 3, 6, 5, 4, 7]);
    assert_eq!(bench.backplane.release_all(Release::InOrder), 0);
    let counts = FaultCounts { failed: 0, dropped: 2, duplicated: 1, held: 2, released: 2 };
    assert_eq!(bench.backplane.counts(), counts);
    assert_eq!(bench.recorder.disturbances(), [], "all of it silently");
}

#[test]
fn faults_of_one_channel_spare_the_others() {
    let bench = Bench::new();
    let other = ChannelName::from("other");
    done(bench.backplane.subscribe(std::slice::from_ref(&other))).expect("subscribe");
    bench.backplane.drop_next(&bench.channel, 1);
    bench.backplane.hold_next(&other, 1);
    bench.publish_many(2);
    for _ in 0..2 {
        done(publish(&bench.backplane, &other)).expect("publish");
    }
    assert_eq!((bench.seen(), offsets(&bench.recorder, &other)), (vec![2], vec![2]));
    assert_eq!(bench.backplane.release_all(Release::InOrder), 1);
    assert_eq!(offsets(&bench.recorder, &other), [2, 1]);
}

#[test]
fn a_cut_loses_everything_until_it_heals() {
    let bench = Bench::new();
    bench.publish_many(1);
    bench.backplane.cut();
    bench.publish_many(3);
    assert_eq!((bench.seen(), bench.recorder.disturbances()), (vec![1], vec![]));
    bench.backplane.heal();
    assert_eq!(bench.recorder.disturbances(), [Disturbance::All]);
    bench.publish_many(1);
    assert_eq!((bench.seen(), bench.backplane.counts().dropped), (vec![1, 5], 3));
    bench.backplane.disturb(Disturbance::Channel(bench.channel.clone()));
    assert_eq!(bench.recorder.disturbances()[1], Disturbance::Channel(bench.channel.clone()));
}

#[test]
fn a_restart_begins_new_epochs() {
    let bench = Bench::new();
    let old = done(bench.publish()).expect("publish").position.expect("stored");
    bench.backplane.restart();
    let new = done(bench.publish()).expect("publish").position.expect("stored");
    assert_ne!(new.epoch, old.epoch);
    assert_eq!((new.offset, bench.recorder.disturbances()), (Offset(1), vec![Disturbance::All]));
    assert_eq!(bench.seen(), [1, 1], "subscriptions survive");
}

#[test]
fn chance_repeats_with_its_seed_and_ends_when_told() {
    let policy = FaultPolicy {
        seed: 11,
        fail_before_per_mille: 100,
        fail_after_per_mille: 100,
        drop_per_mille: 100,
        duplicate_per_mille: 100,
        hold_per_mille: 100,
        hold_deliveries_max: 3,
    };
    let run = |policy: FaultPolicy| {
        let bench = Bench::new();
        bench.backplane.set_policy(Some(policy));
        let failed = (0..500).filter(|_| done(bench.publish()).is_err()).count();
        (failed, bench.seen(), bench.backplane.counts(), bench)
    };
    let (failed, seen, counts, bench) = run(policy);
    assert!(seen.windows(2).any(|pair| pair[0] > pair[1]), "some were overtaken");
    for count in [counts.failed, counts.dropped, counts.duplicated, counts.held, counts.released] {
        assert!(count > 10, "{counts:?}");
    }
    assert_eq!(failed as u64, counts.failed);
    assert!(seen.iter().enumerate().all(|(place, &offset)| offset < place as u64 + 110), "held ones come soon");
    let again = run(policy);
    assert_eq!((again.0, again.1, again.2), (failed, seen, counts));
    assert_ne!(run(FaultPolicy { seed: 12, ..policy }).2, counts);

    bench.backplane.set_policy(None);
    bench.backplane.release_all(Release::InOrder);
    let before = bench.seen().len();
    bench.publish_many(100);
    assert_eq!(bench.seen().len(), before + 100);
}

#[test]
fn nodes_share_a_network_and_fail_alone() {
    let network = Network::new(MemoryBackplane::new(MemoryLimits { channels: 2, ..MemoryLimits::default() }));
    let node = || {
        let (node, recorder) = (FaultyBackplane::new(network.link()), Arc::new(Recorder::default()));
        node.attach(Arc::clone(&recorder) as Arc<dyn Sink>);
        (node, recorder)
    };
    let ((one, seen_by_one), (two, seen_by_two)) = (node(), node());
    let channels = [ChannelName::from("c")];
    let seen = || [&seen_by_one, &seen_by_two].map(|recorder| offsets(recorder, &channels[0]));
    done(one.subscribe(&channels)).expect("subscribe");
    done(one.subscribe(&channels)).expect("subscribe");
    done(publish(&two, &channels[0])).expect("publish");
    assert_eq!(seen(), [vec![1], vec![]]);
    done(two.subscribe(&channels)).expect("subscribe");
    one.cut();
    done(publish(&one, &channels[0])).expect("publish");
    assert_eq!(seen(), [vec![1], vec![2]]);
    one.heal();
    assert_eq!((seen_by_one.disturbances().len(), seen_by_two.disturbances().len()), (1, 0));
    done(one.unsubscribe(&channels)).expect("unsubscribe");
    done(publish(&one, &channels[0])).expect("publish");
    assert_eq!(seen(), [vec![1], vec![2, 3]]);
    let many = ["c", "d", "e"].map(ChannelName::from);
    assert!(done(one.subscribe(&many)).is_err(), "the limit on channels");
    done(publish(&one, &channels[0])).expect("publish");
    assert_eq!(seen(), [vec![1], vec![2, 3, 4]], "a refused subscribe subscribes nothing");
    assert_eq!(network.backplane().stats().subscriptions, 1);
    drop(two);
    assert_eq!(network.backplane().stats().subscriptions, 0, "a dead node subscribes nothing");
}
