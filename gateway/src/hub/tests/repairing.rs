//! Losses: noticed, closed from history, or told.

use std::time::Duration;

use backplane::{Delivery, Offset, Previous};

use crate::hub::HubSettings;

use super::bench::{Bench, CHANNEL, part, positioned, publication, recover, unpositioned, whole};

#[test]
fn duplicates_are_dropped() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.deliver(5, &[6, 8]);
    bench.lines();
    bench.deliver(4, &[5, 6, 8]);
    bench.expect(&[]);
    assert_eq!(bench.hub.counters().duplicates, 3);
    bench.deliver(8, &[9]);
    bench.expect(&["1 <- 9"]);
}

#[test]
fn a_gap_is_read_from_history_and_delivered_in_order() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.join(2, unpositioned());
    bench.lines();
    bench.deliver(7, &[8]);
    bench.expect(&["read news: 1000 after e/5"]);
    bench.deliver(8, &[9, 10]);
    bench.expect(&[]);
    bench.answer(whole("e", 5, &[6, 7, 8]));
    bench.expect(&[
        "1 <- 6",
        "2 <- 6",
        "1 <- 7",
        "2 <- 7",
        "1 <- 8",
        "2 <- 8",
        "observed news e/8",
        "1 <- 9",
        "2 <- 9",
        "1 <- 10",
        "2 <- 10",
    ]);
    assert_eq!(bench.hub.counters().gaps_repaired, 1);
    bench.deliver(10, &[11]);
    bench.expect(&["1 <- 11", "2 <- 11"]);
}

#[test]
fn an_unknown_predecessor_is_a_possible_gap() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.deliver_one("e", Previous::Unknown, 6);
    bench.expect(&["read news: 1000 after e/5"]);
    bench.answer(whole("e", 5, &[6]));
    bench.expect_clients(&["1 <- 6"]);
}

#[test]
fn unpositioned_publications_do_not_wait_for_a_repair() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.deliver(6, &[7]);
    bench.lines();
    bench.deliver_any(CHANNEL, Delivery::Unpositioned(publication(None, "now")));
    bench.expect(&["1 <- now"]);
}

#[test]
fn a_repair_goes_on_until_the_page_limit_no_longer_cuts_it() {
    let settings = HubSettings { repair_limit: 2, ..Default::default() };
    let mut bench = Bench::live_at(settings, 5);
    bench.deliver(9, &[10]);
    bench.expect(&["read news: 2 after e/5"]);
    bench.answer(part("e", 10, 5, &[6, 7]));
    bench.expect(&["1 <- 6", "1 <- 7", "read news: 2 after e/7"]);
    bench.answer(part("e", 10, 7, &[8, 9]));
    bench.expect(&["1 <- 8", "1 <- 9", "read news: 2 after e/9"]);
    bench.answer(whole("e", 9, &[10]));
    bench.expect(&["1 <- 10", "observed news e/10"]);
    assert_eq!((bench.hub.counters().gaps_repaired, bench.hub.counters().gaps_lost), (1, 0));
}

#[test]
fn a_channel_that_outruns_every_read_loses_its_position() {
    let settings = HubSettings { repair_limit: 1, repair_rounds: 3, ..Default::default() };
    let mut bench = Bench::live_at(settings, 5);
    bench.deliver(20, &[21]);
    for offset in 6..9 {
        bench.answer(part("e", 21, offset - 1, &[offset]));
    }
    bench.lines();
    bench.answer(part("e", 30, 8, &[9]));
    bench.expect(&["1 lost news", "observed news e/30"]);
    assert_eq!(bench.hub.counters().gaps_lost, 1);
}

/// Every read finds all there is, and every time something is lost again on its way meanwhile.
#[test]
fn a_channel_that_loses_often_keeps_its_position() {
    let mut bench = Bench::live_at(Default::default(), 0);
    bench.deliver(1, &[2]);
    for round in 1..100 {
        bench.deliver(2 * round + 1, &[2 * round + 2]);
        bench.lines();
        bench.answer(whole("e", 2 * round - 2, &[2 * round - 1, 2 * round]));
        let again = format!("read news: 1000 after e/{}", 2 * round);
        bench.expect_clients(&[&format!("1 <- {}", 2 * round - 1), &format!("1 <- {}", 2 * round), &again]);
    }
    assert_eq!(bench.hub.counters().gaps_lost, 0);
}

#[test]
fn a_hold_back_that_overflows_is_let_go_and_read() {
    let settings = HubSettings { hold_back_len: 2, ..Default::default() };
    let mut bench = Bench::live_at(settings, 5);
    bench.deliver(6, &[7, 8, 9, 10]);
    bench.expect(&["read news: 1000 after e/5"]);
    assert!(bench.hub.counters().hold_back_overflows > 0);
    bench.answer(whole("e", 5, &[6, 7]));
    bench.expect_clients(&["1 <- 6", "1 <- 7", "read news: 1000 after e/7"]);
    bench.answer(whole("e", 7, &[8, 9, 10]));
    bench.expect_clients(&["1 <- 8", "1 <- 9", "1 <- 10"]);
    bench.deliver(10, &[11]);
    bench.expect(&["1 <- 11"]);
}

#[test]
fn bytes_held_back_are_bounded_too() {
    let settings = HubSettings { hold_back_bytes: 700, ..Default::default() };
    let mut bench = Bench::live_at(settings, 5);
    bench.deliver(6, &[7, 8, 9, 10]);
    assert_eq!(bench.hub.counters().hold_back_overflows, 1);
    bench.answer(whole("e", 5, &[6, 7, 8, 9, 10]));
    bench.lines();
    bench.answer(whole("e", 10, &[]));
    bench.deliver(10, &[11]);
    bench.expect_clients(&["1 <- 11"]);
}

#[test]
fn a_failed_repair_is_tried_again_and_joiners_are_not_kept_waiting() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.deliver(6, &[7]);
    bench.join(2, recover("e", 3));
    bench.lines();
    bench.fail_read();
    bench.expect(&["2 refused news: down"]);
    bench.deliver(7, &[8]);
    bench.wait(Duration::from_millis(900));
    bench.expect(&[]);
    bench.wait(Duration::from_millis(200));
    bench.expect(&["read news: 1000 after e/5"]);
    bench.fail_read();
    bench.wait(Duration::from_millis(1100));
    bench.expect(&["read news: 1000 after e/5"]);
    bench.join(2, recover("e", 3));
    bench.deliver(8, &[9]);
    bench.answer(whole("e", 5, &[6, 7, 8]));
    bench.expect_clients(&["1 <- 6", "1 <- 7", "1 <- 8", "1 <- 9", "read news: 300 after e/3"]);
}

#[test]
fn only_positioned_subscribers_are_told_that_the_position_is_lost() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.join(2, unpositioned());
    bench.join(3, positioned());
    bench.deliver(49, &[50]);
    bench.lines();
    bench.answer(part("e", 50, 40, &[45, 50]));
    bench.expect(&["1 lost news", "3 lost news", "observed news e/50"]);
    assert_eq!((bench.hub.counters().gaps_lost, bench.hub.subscription_count()), (1, 1));
    bench.deliver(50, &[51]);
    bench.expect(&["2 <- 51"]);
    bench.join(1, recover("e", 5));
    bench.expect(&["read news: 300 after e/5"]);
    bench.answer(part("e", 51, 40, &[45, 50, 51]));
    bench.expect(&["1 joined news at e/51"]);
}

#[test]
fn another_epoch_is_a_lost_position() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.deliver_in("f", 0, &[1]);
    bench.expect(&["read news: 1000 after e/5"]);
    bench.deliver_in("f", 1, &[2, 3]);
    bench.answer(part("f", 2, 0, &[]));
    bench.expect(&["1 lost news", "observed news f/2"]);
    bench.join(1, recover("e", 5));
    bench.expect(&["1 joined news at f/3"]);
    bench.deliver_in("f", 3, &[4]);
    bench.expect(&["1 <- 4"]);
}

#[test]
fn a_straggler_of_an_old_epoch_costs_a_read_and_nothing_else() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.deliver_in("old", 7, &[8]);
    bench.deliver(5, &[6]);
    bench.expect(&["read news: 1000 after e/5"]);
    bench.answer(whole("e", 5, &[6]));
    bench.expect_clients(&["1 <- 6"]);
    bench.deliver(6, &[7]);
    bench.expect(&["1 <- 7"]);
}

#[test]
fn a_gap_during_a_recovery_read_is_repaired_after_it() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 5));
    bench.deliver(10, &[11]);
    bench.expect(&["read news: 300 after e/5"]);
    bench.answer(whole("e", 5, &[9, 10]));
    bench.expect(&["2 joined news at e/10 recovered [9 10]", "read news: 1000 after e/9"]);
    bench.answer(whole("e", 9, &[10, 11]));
    bench.expect_clients(&["1 <- 10", "1 <- 11", "2 <- 11"]);
}

#[test]
fn who_joins_during_a_repair_waits_for_it_only_to_recover() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.deliver(6, &[7]);
    bench.lines();
    bench.join(2, positioned());
    bench.join(3, recover("e", 4));
    bench.expect(&["2 joined news at e/5"]);
    bench.answer(whole("e", 5, &[6, 7]));
    bench.expect_clients(&["1 <- 6", "2 <- 6", "1 <- 7", "2 <- 7", "read news: 300 after e/4"]);
    bench.answer(whole("e", 4, &[5, 6, 7]));
    bench.expect(&["3 joined news at e/7 recovered [5 6 7]"]);
}

/// The stream lost a publication whose delivery is held back. Waiting for it would mean reading for ever.
#[test]
fn a_publication_that_is_no_more_does_not_keep_a_repair_going() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.deliver(9, &[10]);
    bench.lines();
    bench.answer(whole("e", 5, &[]));
    bench.expect(&["observed news e/5"]);
    assert_eq!((bench.hub.counters().gaps_repaired, bench.hub.counters().gaps_lost), (1, 0));
    bench.deliver(5, &[2_000]);
    bench.expect(&["1 <- 2000"]);
}

#[test]
fn what_arrives_during_the_repair_and_does_not_follow_is_read_again() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.deliver(6, &[7]);
    bench.deliver(8, &[9]);
    bench.lines();
    bench.answer(whole("e", 5, &[6, 7]));
    bench.expect_clients(&["1 <- 6", "1 <- 7", "read news: 1000 after e/7"]);
    bench.answer(whole("e", 7, &[8, 9]));
    bench.expect_clients(&["1 <- 8", "1 <- 9"]);
}

#[test]
fn the_answer_to_a_read_of_a_channel_that_was_released_means_nothing() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.deliver(6, &[7]);
    bench.leave(1, CHANNEL);
    bench.wait(Duration::from_secs(6));
    bench.expect(&["read news: 1000 after e/5", "release news"]);
    bench.join(1, positioned());
    bench.acknowledge(CHANNEL, Some(("e", 20)));
    bench.lines();
    bench.answer(whole("e", 5, &[6, 7]));
    bench.expect(&[]);
    bench.deliver(20, &[21]);
    bench.expect(&["1 <- 21"]);
}

#[test]
fn offsets_with_holes_are_no_gaps() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.deliver(5, &[9, 100, 3_700_000_000_000_000]);
    bench.expect(&["1 <- 9", "1 <- 100", "1 <- 3700000000000000"]);
    assert_eq!(bench.hub.counters().gaps_repaired, 0);
    bench.deliver_one("e", Previous::Known(Offset(0)), 3_700_000_000_000_001);
    bench.expect(&["read news: 1000 after e/3700000000000000"]);
}

/// A publication is held back, read and delivered by a long repair, and then lost with the position. It must not come
/// out of the hold-back a second time.
#[test]
fn what_was_held_back_before_a_read_is_not_delivered_after_it() {
    let settings = HubSettings { repair_limit: 1, ..Default::default() };
    let mut bench = Bench::live_at(settings, 5);
    bench.join(2, unpositioned());
    bench.deliver(6, &[7]);
    bench.deliver(7, &[8]);
    bench.answer(part("e", 8, 5, &[6]));
    bench.answer(part("e", 8, 6, &[7]));
    bench.lines();
    // The stream has gone back to where 7 would follow.
    bench.answer(part("e", 6, 6, &[]));
    bench.expect_clients(&["1 lost news"]);
    bench.deliver(6, &[2_000]);
    bench.expect(&["2 <- 2000"]);
}

/// More came in during the repair than could be held back, the last of it a straggler; then the position is lost.
#[test]
fn an_overflow_during_a_repair_that_fails_is_read_as_well() {
    let settings = HubSettings { hold_back_len: 1, ..Default::default() };
    let mut bench = Bench::live_at(settings, 5);
    bench.join(2, unpositioned());
    bench.deliver(49, &[50, 51, 52]);
    bench.deliver(47, &[48]);
    bench.lines();
    bench.answer(part("e", 50, 40, &[45, 50]));
    bench.expect_clients(&["1 lost news", "read news: 1000 after e/50"]);
    bench.answer(whole("e", 50, &[51, 52]));
    bench.expect_clients(&["2 <- 51", "2 <- 52"]);
}
