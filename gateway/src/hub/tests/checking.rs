//! Tail loss: positions compared after a disturbance, and when a channel was quiet for long.

use std::time::Duration;

use crate::hub::HubSettings;

use super::bench::{Bench, CHANNEL, part, plain, positioned, recover, whole};

#[test]
fn after_a_disturbance_a_lost_tail_is_found_and_repaired() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.hub.disturbed(Some("other"));
    bench.wait(Duration::from_millis(100));
    bench.expect(&[]);
    bench.hub.disturbed(Some(CHANNEL));
    bench.wait(Duration::from_millis(100));
    bench.expect(&["check news@5"]);
    bench.checked("e", 7);
    bench.expect(&["read news: 1000 after e/5"]);
    bench.answer(whole("e", 5, &[6, 7]));
    bench.expect_clients(&["1 <- 6", "1 <- 7"]);
}

/// What a check finds, and whether that asks for a repair.
#[test]
fn a_check_repairs_only_what_differs() {
    for (name, epoch, offset, repairs) in [
        ("the same", "e", 5, false),
        ("more", "e", 6, true),
        ("less, as after a failover", "e", 4, true),
        ("another epoch", "f", 5, true),
    ] {
        let mut bench = Bench::live_at(Default::default(), 5);
        bench.hub.disturbed(None);
        bench.wait(Duration::from_millis(100));
        bench.lines();
        bench.checked(epoch, offset);
        assert_eq!(bench.lines().len(), usize::from(repairs), "{name}");
    }
}

#[test]
fn what_was_delivered_since_the_question_is_no_loss() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.hub.disturbed(None);
    bench.wait(Duration::from_millis(100));
    bench.deliver(5, &[6, 7]);
    bench.lines();
    bench.checked("e", 6);
    bench.expect(&[]);
}

#[test]
fn a_stream_gone_back_is_a_lost_position() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.hub.disturbed(None);
    bench.wait(Duration::from_millis(100));
    bench.checked("e", 3);
    bench.lines();
    bench.answer(part("e", 3, 3, &[]));
    bench.expect(&["1 lost news", "observed news e/3"]);
    bench.join(1, recover("e", 5));
    bench.answer(part("e", 3, 3, &[]));
    bench.expect(&["read news: 300 after e/5", "1 joined news at e/3"]);
    bench.deliver(3, &[2_000]);
    bench.expect(&["1 <- 2000"]);
}

#[test]
fn a_quiet_position_is_checked_in_time_and_a_busy_one_is_not() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.wait(Duration::from_secs(39));
    bench.expect(&[]);
    bench.deliver(5, &[6]);
    bench.lines();
    bench.wait(Duration::from_secs(39));
    bench.expect(&[]);
    bench.wait(Duration::from_secs(3));
    bench.expect(&["check news@6"]);
    // A failed check is asked again after a pause, an answered one after as long a quiet.
    bench.check_failed();
    bench.wait(Duration::from_millis(900));
    bench.expect(&[]);
    bench.wait(Duration::from_millis(300));
    bench.expect(&["check news@6"]);
    bench.checked("e", 6);
    bench.wait(Duration::from_secs(38));
    bench.expect(&[]);
    bench.wait(Duration::from_secs(4));
    bench.expect(&["check news@6"]);
}

#[test]
fn a_channel_that_lingers_is_checked_as_whoever_comes_back_starts_from_it() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.leave(1, CHANNEL);
    bench.hub.disturbed(Some(CHANNEL));
    bench.wait(Duration::from_millis(100));
    bench.expect(&["check news@5"]);
    bench.checked("e", 6);
    bench.answer(whole("e", 5, &[6]));
    bench.lines();
    bench.join(1, positioned());
    bench.expect(&["1 joined news at e/6"]);
}

#[test]
fn a_check_waits_for_what_is_under_way() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 5));
    bench.hub.disturbed(None);
    bench.wait(Duration::from_secs(1));
    bench.expect(&["read news: 300 after e/5"]);
    bench.answer(whole("e", 5, &[9]));
    bench.lines();
    bench.wait(Duration::from_millis(100));
    bench.expect(&["check news@9"]);
}

#[test]
fn checks_are_spread_over_ticks() {
    let settings = HubSettings { checks_per_tick: 2, ..Default::default() };
    let mut bench = Bench::with(settings);
    bench.join(1, plain("chat"));
    bench.acknowledge("chat", None);
    for channel in ["aa", "bb", "cc", "dd", "ee"] {
        bench.join(1, positioned().of(channel));
        bench.acknowledge(channel, Some(("e", 5)));
    }
    bench.lines();
    for _ in 0..3 {
        bench.hub.disturbed(None);
    }
    for (expected, checks) in [(&["check aa@5 bb@5"][..], 2), (&["check cc@5 dd@5"], 2), (&["check ee@5"], 1), (&[], 0)]
    {
        bench.wait(Duration::from_millis(100));
        bench.expect(expected);
        // Until they are answered no others are asked for.
        bench.wait(Duration::from_secs(1));
        bench.expect(&[]);
        for _ in 0..checks {
            bench.checked("e", 5);
        }
    }
}

/// However often a channel is disturbed before its turn comes, it waits once.
#[test]
fn a_storm_of_disturbances_queues_a_channel_once() {
    let mut bench = Bench::live_at(Default::default(), 5);
    for _ in 0..10_000 {
        bench.hub.disturbed(Some(CHANNEL));
    }
    bench.wait(Duration::from_secs(20));
    bench.expect(&["check news@5"]);
    bench.checked("e", 5);
    bench.hub.disturbed(Some(CHANNEL));
    bench.wait(Duration::from_millis(100));
    bench.expect(&["check news@5"]);
}
