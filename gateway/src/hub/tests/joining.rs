//! Becoming a subscriber: interest, acknowledgement, the first position, lingering.

use std::time::Duration;

use backplane::{Delivery, PresenceEvent};

use crate::hub::HubSettings;

use super::bench::{
    Bench, CHANNEL, conn, curious, part, plain, positioned, publication, recover, someone, unpositioned, whole,
};

#[test]
fn a_channel_without_history_needs_only_the_acknowledgement() {
    let mut bench = Bench::new();
    bench.join(1, plain("chat"));
    bench.join(2, plain("chat"));
    bench.expect(&["interest chat"]);
    bench.acknowledge("chat", None);
    bench.expect(&["1 joined chat", "2 joined chat"]);
    bench.join(3, plain("chat"));
    bench.expect(&["3 joined chat"]);
    bench.deliver_any("chat", Delivery::Unpositioned(publication(None, "hello")));
    bench.expect(&["1 <- hello", "2 <- hello", "3 <- hello"]);
    assert_eq!((bench.hub.channel_count(), bench.hub.subscription_count()), (1, 3));
}

#[test]
fn join_and_leave_events_reach_only_those_who_asked() {
    let mut bench = Bench::new();
    bench.join(1, plain("chat"));
    bench.join(2, curious("chat"));
    bench.acknowledge("chat", None);
    bench.lines();
    bench.deliver_any("chat", Delivery::Presence(PresenceEvent::Join(someone())));
    bench.deliver_any("chat", Delivery::Presence(PresenceEvent::Leave(someone())));
    bench.expect(&["2 <- join", "2 <- leave"]);
}

#[test]
fn a_refused_interest_refuses_every_joiner_and_is_forgotten() {
    let mut bench = Bench::new();
    bench.join(1, positioned());
    bench.join(2, recover("e", 3));
    bench.lines();
    bench.refuse(CHANNEL);
    bench.expect(&["1 refused news: no", "2 refused news: no"]);
    assert_eq!((bench.hub.channel_count(), bench.hub.subscription_count()), (0, 0));
    bench.join(1, positioned());
    bench.expect(&["interest news"]);
}

#[test]
fn a_known_top_needs_no_read() {
    let mut bench = Bench::new();
    bench.join(1, positioned());
    bench.lines();
    bench.acknowledge(CHANNEL, Some(("e", 5)));
    bench.expect(&["1 joined news at e/5"]);
    bench.deliver(5, &[8]);
    bench.expect(&["1 <- 8"]);
    bench.join(2, unpositioned());
    bench.expect(&["2 joined news at e/8"]);
}

#[test]
fn the_first_position_is_read_after_the_acknowledgement() {
    let mut bench = Bench::new();
    bench.join(1, positioned());
    bench.expect(&["interest news"]);
    bench.acknowledge(CHANNEL, None);
    bench.expect(&["read news: top"]);
    bench.answer(part("e", 5, 5, &[]));
    bench.expect(&["observed news e/5", "1 joined news at e/5"]);
}

#[test]
fn what_came_before_the_first_position_was_known_follows_the_reply() {
    let mut bench = Bench::new();
    bench.join(1, positioned());
    bench.deliver(3, &[4]);
    bench.acknowledge(CHANNEL, None);
    bench.deliver(4, &[5, 6, 7]);
    bench.lines();
    // The read saw one of those that came after it was issued.
    bench.answer(part("e", 5, 5, &[]));
    bench.expect_clients(&["1 joined news at e/5", "1 <- 6", "1 <- 7"]);
    assert_eq!(bench.hub.counters().duplicates, 1);
    bench.deliver(7, &[8]);
    bench.expect(&["1 <- 8"]);
}

/// More came in than may be held back while the interest was being acknowledged: the first read is still made.
#[test]
fn a_flood_before_the_acknowledgement_is_covered_by_the_first_read() {
    let mut bench = Bench::with(HubSettings { hold_back_len: 2, ..Default::default() });
    bench.join(1, positioned());
    bench.deliver(0, &[1, 2, 3, 4, 5]);
    bench.acknowledge(CHANNEL, None);
    bench.expect(&["interest news", "read news: top"]);
    bench.answer(part("e", 5, 5, &[]));
    bench.expect_clients(&["1 joined news at e/5"]);
    bench.deliver(5, &[6]);
    bench.expect(&["1 <- 6"]);
}

#[test]
fn a_known_top_is_not_trusted_over_what_was_held_back() {
    let mut bench = Bench::new();
    bench.join(1, positioned());
    bench.deliver(6, &[7]);
    bench.acknowledge(CHANNEL, Some(("e", 5)));
    bench.expect(&["interest news", "read news: top"]);
}

#[test]
fn a_loss_before_the_first_position_was_known_is_repaired() {
    let mut bench = Bench::new();
    bench.join(1, positioned());
    bench.acknowledge(CHANNEL, None);
    bench.deliver(6, &[7]);
    bench.lines();
    bench.answer(part("e", 5, 5, &[]));
    bench.expect_clients(&["1 joined news at e/5", "read news: 1000 after e/5"]);
    bench.answer(whole("e", 5, &[6, 7]));
    bench.expect_clients(&["1 <- 6", "1 <- 7"]);
}

#[test]
fn a_failed_first_read_refuses_everybody_and_releases() {
    let mut bench = Bench::new();
    bench.join(1, positioned());
    bench.acknowledge(CHANNEL, None);
    bench.join(2, positioned());
    bench.lines();
    bench.fail_read();
    bench.expect(&["2 refused news: down", "1 refused news: down", "release news"]);
    assert_eq!(bench.hub.channel_count(), 0);
}

#[test]
fn an_empty_channel_lingers_before_it_is_released() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.leave(1, CHANNEL);
    bench.wait(Duration::from_millis(4900));
    bench.deliver(5, &[6]);
    bench.join(1, positioned());
    bench.expect(&["1 joined news at e/6"]);
    // Coming back has stopped the clock; leaving again starts it anew.
    bench.wait(Duration::from_secs(6));
    bench.expect(&[]);
    bench.leave(1, CHANNEL);
    bench.wait(Duration::from_millis(4900));
    bench.expect(&[]);
    bench.wait(Duration::from_millis(200));
    bench.expect(&["release news"]);
    assert_eq!(bench.hub.channel_count(), 0);
    bench.deliver(6, &[7]);
    bench.expect(&[]);
}

#[test]
fn flapping_does_not_shorten_the_last_linger() {
    let mut bench = Bench::live_at(Default::default(), 5);
    for _ in 0..20 {
        bench.leave(1, CHANNEL);
        bench.wait(Duration::from_millis(400));
        bench.join(1, positioned());
    }
    bench.leave(1, CHANNEL);
    bench.lines();
    bench.wait(Duration::from_millis(4900));
    bench.expect(&[]);
    bench.wait(Duration::from_millis(200));
    bench.expect(&["release news"]);
}

#[test]
fn a_connection_that_goes_while_joining_is_answered_and_leaves_nothing() {
    // In every stage: waiting for the acknowledgement, for the first position, and for a recovery read.
    for stage in 0..3 {
        let mut bench = Bench::new();
        if stage == 2 {
            bench = Bench::live_at(Default::default(), 5);
        }
        bench.join(2, recover("e", 3));
        if stage == 1 {
            bench.acknowledge(CHANNEL, None);
        }
        bench.lines();
        bench.detach(2);
        bench.expect(&["2 refused news: the connection is gone"]);
        match stage {
            0 => {
                bench.acknowledge(CHANNEL, None);
                bench.answer(part("e", 5, 5, &[]));
            }
            1 => bench.answer(whole("e", 3, &[4, 5])),
            _ => bench.answer(whole("e", 3, &[4, 5])),
        }
        assert!(bench.lines().iter().all(|line| !line.starts_with('2')), "stage {stage}");
        if stage == 2 {
            bench.leave(1, CHANNEL);
        }
        bench.wait(Duration::from_secs(6));
        bench.expect(&["release news"]);
        assert_eq!((bench.hub.channel_count(), bench.hub.subscription_count()), (0, 0));
    }
}

#[test]
fn a_connection_that_is_gone_cannot_join() {
    let mut bench = Bench::new();
    bench.detach(1);
    bench.join(1, positioned());
    bench.expect(&["1 refused news: the connection is gone"]);
    // The place is used again: the answer to the first use must not reach the second.
    bench.hub.attach(conn(1));
    bench.join(1, positioned());
    bench.expect(&["interest news"]);
}

/// The server API has ended the subscription while it was being made, so that the session leaves in the very answer:
/// nothing of the channel may follow, not even what was held back for it.
#[test]
fn a_session_that_leaves_in_the_answer_is_sent_nothing_more() {
    let mut bench = Bench::new();
    bench.leaves_at_once(1);
    bench.join(1, positioned());
    bench.acknowledge(CHANNEL, None);
    bench.deliver(5, &[6, 7]);
    bench.lines();
    bench.answer(part("e", 5, 5, &[]));
    bench.expect_clients(&["1 joined news at e/5"]);
    // Its own leave comes later and finds nothing.
    bench.leave(1, CHANNEL);
    assert_eq!(bench.hub.subscription_count(), 0);
    bench.join(1, positioned());
    bench.expect(&["1 joined news at e/7"]);
    bench.wait(Duration::from_secs(6));
    bench.expect(&["release news"]);
}

/// The channel is empty for a moment in the middle of an answer, and the next joiner has to wait for a read that takes
/// longer than an empty channel lingers.
#[test]
fn a_channel_with_somebody_waiting_is_not_released() {
    let mut bench = Bench::new();
    bench.leaves_at_once(1);
    bench.leaves_at_once(2);
    bench.join(1, positioned());
    bench.acknowledge(CHANNEL, None);
    bench.join(2, positioned());
    bench.join(3, recover("e", 3));
    bench.lines();
    bench.answer(part("e", 5, 5, &[]));
    bench.expect_clients(&["1 joined news at e/5", "2 joined news at e/5", "read news: 300 after e/3"]);
    bench.wait(Duration::from_secs(10));
    bench.expect(&[]);
    bench.answer(whole("e", 3, &[4, 5]));
    bench.expect(&["3 joined news at e/5 recovered [4 5]"]);
    bench.leave(3, CHANNEL);
    bench.wait(Duration::from_secs(6));
    bench.expect(&["release news"]);
}
