//! Every limit: what gives way, what is refused, and that the answers stay truthful.

use super::*;

fn limited(change: impl FnOnce(&mut MemoryLimits)) -> Bench {
    let mut limits = MemoryLimits::default();
    change(&mut limits);
    Bench::new(limits)
}

fn refused<T: std::fmt::Debug>(result: Result<T, BackplaneError>, limit: &str) {
    let error = result.expect_err("a limit is reached");
    assert!(matches!(error, BackplaneError::Unavailable(_)), "worth a retry: {error}");
    assert!(error.to_string().contains(limit), "{error} names {limit}");
}

fn retained(bench: &Bench, channel: &str) -> usize {
    let query = HistoryQuery { since: None, limit: None, reverse: false };
    done(bench.backplane.history(&channel.into(), query, HISTORY)).expect("history").publications.len()
}

#[test]
fn the_stream_used_longest_ago_gives_way() {
    let probe = limited(|_| ());
    probe.store("a");
    let cost = probe.stats().history_bytes;
    assert!((100..200).contains(&cost), "{cost} bytes for 8 of payload");

    let bench = limited(|limits| limits.history_bytes = 30 * cost);
    for channel in ["first", "second", "third"] {
        for _ in 0..9 {
            bench.store(channel);
        }
        bench.clock.advance(Duration::from_millis(1));
    }
    let idle = bench.top("second");
    bench.clock.advance(Duration::from_millis(1));
    // Reads are uses, so now "second" was used before "first" and "third".
    bench.top("first");
    bench.store("third");
    for n in 0..6 {
        bench.clock.advance(Duration::from_millis(1));
        bench.store(&format!("new{n}"));
    }
    assert_eq!((bench.stats().publications, bench.stats().publications_evicted), (30, 4));
    assert_eq!(bench.stats().history_bytes, 30 * cost);
    assert_eq!(["first", "second", "third"].map(|channel| retained(&bench, channel)), [9, 5, 10]);
    assert_eq!(bench.top("second"), idle, "epoch and top survive an eviction");
    assert_eq!((bench.stats().streams_evicted, bench.stats().refusals), (0, 0));
}

#[test]
fn an_eviction_is_told_to_returning_clients() {
    let bench = limited(|limits| limits.history_bytes = 1_000);
    let first = bench.store("a");
    let second = bench.store("a");
    bench.clock.advance(Duration::from_millis(1));
    for n in 0..20 {
        bench.store(&format!("b{n}"));
    }
    assert_eq!(bench.stats().publications_evicted, 22 - bench.stats().publications as u64);
    let read = |since: &StreamPosition| {
        done(bench.backplane.history(&"a".into(), HistoryQuery::since(since.clone(), 10), HISTORY)).expect("history")
    };
    assert!(!read(&first).covered, "a client that missed the evicted publication");
    assert!(read(&second).covered, "a client at the top missed nothing");
}

#[test]
fn a_single_channel_is_trimmed_from_its_oldest() {
    let bench = limited(|limits| limits.history_bytes = 1_000);
    for _ in 0..50 {
        bench.store("a");
    }
    let kept = retained(&bench, "a");
    assert!((4..10).contains(&kept), "{kept} publications in 1,000 bytes");
    let top = bench.top("a");
    let query = HistoryQuery::since(StreamPosition { offset: Offset(50 - kept as u64), ..top }, 100);
    assert!(done(bench.backplane.history(&"a".into(), query, HISTORY)).expect("history").covered);
}

#[test]
fn a_publication_larger_than_the_limit_is_refused_for_good() {
    let bench = limited(|limits| limits.history_bytes = 1_000);
    bench.store("a");
    let options = PublishOptions { history: Some(HISTORY), ..PublishOptions::default() };
    let error = bench.publish("a", 1_000, options).expect_err("too large");
    assert!(matches!(error, BackplaneError::Protocol(_)), "a retry is useless: {error}");
    assert_eq!(bench.stats().publications, 1, "nothing was evicted for it");
    assert!(bench.publish("a", 1_000, PublishOptions::default()).is_ok(), "without history there is nothing to hold");
}

#[test]
fn tags_and_publishers_count() {
    let bench = limited(|_| ());
    bench.store("a");
    let plain = bench.stats().history_bytes;
    let mut info = (*member(1, "ann")).clone();
    info.conn_info = Bytes::from(vec![b' '; 1_000]);
    let publication = NewPublication {
        data: Bytes::from_static(b"12345678"),
        info: Some(Arc::new(info)),
        tags: [("t".repeat(500), "v".repeat(500))].into(),
    };
    let options = PublishOptions { history: Some(HISTORY), ..PublishOptions::default() };
    done(bench.backplane.publish(&"a".into(), publication, options)).expect("publish");
    let rich = bench.stats().history_bytes - plain;
    assert!((plain + 2_000..plain + 2_500).contains(&rich), "{rich} bytes, {plain} without tags and info");
    done(bench.backplane.remove_history(&"a".into())).expect("remove");
    assert_eq!((bench.stats().history_bytes, bench.stats().publications), (0, 0));
}

#[test]
fn many_tiny_streams_give_way_to_a_large_publication_in_several_tries() {
    let bench = limited(|limits| limits.history_bytes = 200_000);
    for n in 0..1_000 {
        bench.store(&format!("tiny{n}"));
    }
    let options = PublishOptions { history: Some(HISTORY), ..PublishOptions::default() };
    let mut tries = 1;
    while let Err(error) = bench.publish("large", 150_000, options.clone()) {
        refused(Err::<(), _>(error), "history_bytes");
        assert!(tries < 100, "every try makes progress");
        tries += 1;
    }
    assert!(tries > 1, "one publish does bounded work");
    assert_eq!(bench.stats().refusals, tries - 1);
    assert!(bench.stats().history_bytes <= 200_000);
}

#[test]
fn idle_epochs_give_way_to_new_channels() {
    let bench = limited(|limits| limits.channels = 10);
    for n in 0..10 {
        bench.top(&format!("c{n}"));
        bench.clock.advance(Duration::from_millis(1));
    }
    let kept = bench.top("c0");
    let forgotten = bench.top("c1").epoch;
    for n in 2..10 {
        bench.clock.advance(Duration::from_millis(1));
        bench.top(&format!("c{n}"));
    }
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(bench.top("c0"), kept);
    bench.subscribe(&["new"]).expect("c1 gives way");
    assert_eq!((bench.stats().channels, bench.stats().streams, bench.stats().streams_evicted), (10, 9, 1));
    assert_eq!(bench.top("c0"), kept);
    assert_ne!(bench.top("c1").epoch, forgotten, "the oldest went, and its epoch does not come back");
}

#[test]
fn subscribed_and_populated_channels_never_give_way() {
    let bench = limited(|limits| limits.channels = 3);
    bench.subscribe(&["s"]).expect("subscribe");
    let subscribed = bench.top("s");
    done(bench.backplane.add_presence(&"p".into(), member(1, "ann"))).expect("add");
    let populated = bench.top("p");
    bench.store("h");
    for n in 0..20 {
        bench.clock.advance(Duration::from_millis(1));
        bench.top(&format!("new{n}"));
    }
    assert_eq!((bench.top("s"), bench.top("p")), (subscribed, populated));
    bench.subscribe(&["t"]).expect("the last idle channel gives way");
    let before = bench.stats();
    refused(bench.subscribe(&["u"]), "channels");
    refused(done(bench.backplane.add_presence(&"u".into(), member(1, "ann"))), "channels");
    refused(done(bench.backplane.history(&"u".into(), HistoryQuery::position(), HISTORY)), "channels");
    assert_eq!(bench.stats(), MemoryStats { refusals: 3, ..before });
    assert!(bench.publish("u", 8, PublishOptions::default()).is_ok(), "what holds nothing is not limited");
}

#[test]
fn channels_with_history_give_way_when_nothing_barer_is_left() {
    let bench = limited(|limits| limits.channels = 2);
    bench.subscribe(&["s"]).expect("subscribe");
    bench.store("s");
    bench.clock.advance(Duration::from_millis(1));
    bench.store("h");
    bench.subscribe(&["t"]).expect("h gives way");
    assert_eq!(bench.stats().streams_evicted, 1);
    assert_eq!(retained(&bench, "s"), 1);
}

#[test]
fn channels_in_use_hide_no_channel_that_can_give_way() {
    let bench = limited(|limits| limits.channels = 200);
    // Three to a stripe: the one with history that can give way is hardly alone in its stripe, and filed last.
    for n in 0..199 {
        let channel = format!("s{n}");
        bench.subscribe(&[channel.as_str()]).expect("subscribe");
        bench.store(&channel);
        bench.clock.advance(Duration::from_millis(1));
    }
    bench.store("h");
    bench.subscribe(&["t"]).expect("h gives way");
    assert_eq!(bench.stats().streams_evicted, 1);
    refused(bench.subscribe(&["u"]), "channels");
}

#[test]
fn a_refused_subscribe_subscribes_nothing() {
    let bench = limited(|limits| limits.channels = 3);
    bench.subscribe(&["a"]).expect("subscribe");
    refused(bench.subscribe(&["a", "b", "c", "d"]), "channels");
    let held = MemoryStats { channels: 1, subscriptions: 1, refusals: 1, ..Default::default() };
    assert_eq!(bench.stats(), held, "and keeps what was subscribed before");
}

#[test]
fn presence_is_bounded() {
    let bench = limited(|limits| limits.presence_entries = 2);
    let add = |channel: &str, client| done(bench.backplane.add_presence(&channel.into(), member(client, "ann")));
    add("a", 1).expect("add");
    add("b", 1).expect("add");
    refused(add("c", 1), "presence_entries");
    add("a", 1).expect("a replacement needs no room");
    assert_eq!(bench.stats().channels, 2, "the refused entry left no channel behind");
    done(bench.backplane.remove_presence(&"a".into(), member(1, "").client)).expect("remove");
    add("c", 1).expect("there is room again");
}

#[test]
fn idempotency_keys_are_bounded() {
    let bench = limited(|limits| limits.idempotency_keys = 2);
    for key in ["k1", "k2"] {
        bench.publish("a", 8, keyed(key)).expect("publish");
    }
    let mut with_history = keyed("k3");
    with_history.history = Some(HISTORY);
    refused(bench.publish("a", 8, with_history.clone()), "idempotency_keys");
    assert_eq!(bench.stats().publications, 0, "refused before it was stored");
    assert_eq!(bench.publish("a", 8, keyed("k1")).expect("publish").outcome, PublishOutcome::Repeated);
    bench.clock.advance(IDEMPOTENCY_TTL);
    bench.publish("a", 8, with_history).expect("the expired ones made room");
    let long = keyed(&"k".repeat(IDEMPOTENCY_KEY_BYTES_MAX + 1));
    assert!(matches!(bench.publish("b", 8, long), Err(BackplaneError::Protocol(_))));
    bench.publish("b", 8, keyed(&"k".repeat(IDEMPOTENCY_KEY_BYTES_MAX))).expect("the longest key");
}
