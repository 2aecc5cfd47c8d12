//! Coming back: what a joiner that remembers a position is given.

use std::time::Duration;

use crate::hub::HubSettings;

use super::bench::{Bench, CHANNEL, cache, newest, part, positioned, recover, unpositioned, whole};

/// What the first joiner of a channel is told after a read, by the position it comes with.
#[test]
fn the_first_joiner_is_answered_by_the_first_read() {
    let cases = [
        ("at the top", recover("e", 9), whole("e", 9, &[]), "1 joined news at e/9 recovered []"),
        ("behind", recover("e", 5), whole("e", 5, &[7, 9]), "1 joined news at e/9 recovered [7 9]"),
        ("trimmed", recover("e", 2), part("e", 9, 5, &[7, 9]), "1 joined news at e/9"),
        ("beyond the top", recover("e", 12), part("e", 9, 9, &[]), "1 joined news at e/9"),
        ("other epoch", recover("d", 5), part("e", 9, 5, &[]), "1 joined news at e/9"),
        ("unknown epoch", recover("", 5), whole("e", 5, &[9]), "1 joined news at e/9 recovered [9]"),
        ("nothing seen of nothing", recover("e", 0), whole("e", 0, &[]), "1 joined news at e/0 recovered []"),
        ("no wish", positioned(), part("e", 9, 9, &[]), "1 joined news at e/9"),
        ("cache, nothing seen", cache("", 0), newest("e", 5, &[7, 9]), "1 joined news at e/9 recovered [9]"),
        ("cache, behind", cache("e", 7), newest("e", 5, &[7, 9]), "1 joined news at e/9 recovered [9]"),
        ("cache, at the top", cache("e", 9), newest("e", 5, &[7, 9]), "1 joined news at e/9 recovered []"),
        ("cache, other epoch", cache("d", 9), newest("e", 5, &[7, 9]), "1 joined news at e/9 recovered [9]"),
        ("cache, nothing retained", cache("e", 7), newest("e", 9, &[]), "1 joined news at e/9"),
        ("cache, nothing retained nor missed", cache("e", 9), newest("e", 9, &[]), "1 joined news at e/9 recovered []"),
    ];
    for (name, wanted, page, expected) in cases {
        let mut bench = Bench::new();
        bench.join(1, wanted);
        bench.acknowledge(CHANNEL, None);
        bench.lines();
        bench.answer(page);
        assert_eq!(bench.lines()[1..], [expected], "{name}");
    }
}

#[test]
fn at_the_top_of_a_live_channel_nothing_is_read() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 9));
    bench.join(3, recover("", 9));
    bench.expect(&["2 joined news at e/9 recovered []", "3 joined news at e/9 recovered []"]);
}

#[test]
fn an_epoch_never_heard_of_may_be_a_newer_one_and_is_asked_about() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("f", 1));
    bench.expect(&["read news: 300 after f/1"]);
    bench.answer(whole("f", 1, &[2]));
    bench.expect(&["1 lost news", "observed news f/2", "2 joined news at f/2 recovered [2]"]);
}

#[test]
fn joiners_from_one_place_share_a_read_and_others_wait_for_the_next() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 5));
    bench.expect(&["read news: 300 after e/5"]);
    bench.join(3, recover("e", 5));
    bench.join(4, recover("e", 6));
    bench.expect(&[]);
    bench.answer(whole("e", 5, &[6, 9]));
    bench.expect(&["2 joined news at e/9 recovered [6 9]", "read news: newest 300"]);
    bench.answer(newest("e", 4, &[5, 6, 9]));
    bench.expect(&["3 joined news at e/9 recovered [6 9]", "4 joined news at e/9 recovered [9]"]);
    assert_eq!((bench.hub.counters().recoveries, bench.hub.counters().recovery_reads), (3, 2));
}

#[test]
fn a_shared_read_does_not_answer_for_what_it_does_not_reach() {
    let mut bench = Bench::new();
    bench.join(1, recover("e", 3));
    bench.join(2, recover("e", 6));
    bench.join(3, recover("e", 7));
    bench.join(4, cache("", 0));
    bench.join(5, positioned());
    bench.acknowledge(CHANNEL, None);
    bench.expect(&["interest news", "read news: newest 300"]);
    // The oldest in it follows 6; whether anything lies between 3 and 6 is not known.
    bench.answer(newest("e", 6, &[7, 9]));
    bench.expect_clients(&[
        "1 joined news at e/9",
        "2 joined news at e/9 recovered [7 9]",
        "3 joined news at e/9 recovered [9]",
        "4 joined news at e/9 recovered [9]",
        "5 joined news at e/9",
    ]);
}

/// The oldest 300 of 500 missed publications start right after the client's offset, and are still not all of them.
#[test]
fn a_read_cut_short_by_its_limit_is_no_recovery() {
    let settings = HubSettings { recovery_limit: 2, ..Default::default() };
    let mut bench = Bench::with(settings);
    bench.join(1, recover("e", 5));
    bench.acknowledge(CHANNEL, None);
    bench.expect(&["interest news", "read news: 2 after e/5"]);
    bench.answer(part("e", 9, 5, &[6, 7]));
    bench.expect_clients(&["1 joined news at e/9"]);
    // The same of a live channel, where what came in meanwhile would even hide the hole.
    bench.join(2, recover("e", 5));
    bench.deliver(9, &[10]);
    bench.answer(part("e", 9, 5, &[6, 7]));
    bench.expect_clients(&["read news: 2 after e/5", "1 <- 10", "2 joined news at e/10"]);
}

#[test]
fn what_came_in_during_the_read_is_part_of_the_answer() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 5));
    bench.deliver(9, &[10, 11]);
    bench.expect(&["read news: 300 after e/5", "1 <- 10", "1 <- 11"]);
    // The read saw one of them.
    bench.answer(whole("e", 5, &[9, 10]));
    bench.expect(&["2 joined news at e/11 recovered [9 10 11]"]);
    bench.deliver(11, &[12]);
    bench.expect(&["1 <- 12", "2 <- 12"]);
}

#[test]
fn cache_mode_is_given_only_the_latest_of_what_came_in_too() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, cache("", 0));
    bench.deliver(9, &[10, 11]);
    bench.lines();
    bench.answer(newest("e", 5, &[9]));
    bench.expect(&["2 joined news at e/11 recovered [11]"]);
}

#[test]
fn too_much_during_the_read_means_reading_again() {
    let settings = HubSettings { hold_back_len: 2, ..Default::default() };
    let mut bench = Bench::live_at(settings, 9);
    bench.join(2, recover("e", 5));
    bench.deliver(9, &[10, 11, 12]);
    bench.lines();
    bench.answer(whole("e", 5, &[9]));
    bench.expect(&["read news: 300 after e/5"]);
    bench.answer(whole("e", 5, &[9, 10, 11, 12]));
    bench.expect(&["2 joined news at e/12 recovered [9 10 11 12]"]);
}

#[test]
fn too_many_bytes_during_the_read_mean_reading_again() {
    let settings = HubSettings { hold_back_bytes: 600, ..Default::default() };
    let mut bench = Bench::live_at(settings, 9);
    bench.join(2, recover("e", 5));
    bench.deliver(9, &[10, 11, 12]);
    bench.lines();
    bench.answer(whole("e", 5, &[9]));
    bench.expect(&["read news: 300 after e/5"]);
}

#[test]
fn a_joiner_ahead_of_the_shard_skips_what_it_has() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 8));
    bench.answer(whole("e", 8, &[9, 10, 11]));
    bench.expect(&["read news: 300 after e/8", "2 joined news at e/11 recovered [9 10 11]"]);
    bench.deliver(9, &[10]);
    bench.join(3, positioned());
    bench.deliver(10, &[11, 12]);
    bench.expect(&["1 <- 10", "3 joined news at e/10", "1 <- 11", "3 <- 11", "1 <- 12", "2 <- 12", "3 <- 12"]);
}

#[test]
fn a_joiner_ahead_skips_what_a_repair_finds_too() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 8));
    bench.answer(whole("e", 8, &[9, 10, 11]));
    bench.lines();
    // 10 was lost on its way.
    bench.deliver(10, &[11]);
    bench.answer(whole("e", 9, &[10, 11, 12]));
    bench.expect_clients(&["read news: 1000 after e/9", "1 <- 10", "1 <- 11", "1 <- 12", "2 <- 12"]);
}

#[test]
fn a_joiner_that_leaves_and_comes_back_is_no_longer_ahead() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 8));
    bench.answer(whole("e", 8, &[9, 10]));
    bench.leave(2, CHANNEL);
    bench.join(2, unpositioned());
    bench.lines();
    bench.deliver(9, &[10]);
    bench.expect(&["1 <- 10", "2 <- 10"]);
}

#[test]
fn a_failed_recovery_refuses_only_the_joiners() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 5));
    bench.join(3, recover("e", 6));
    bench.lines();
    bench.fail_read();
    bench.expect(&["3 refused news: down", "2 refused news: down"]);
    bench.deliver(9, &[10]);
    bench.expect(&["1 <- 10"]);
    bench.join(2, recover("e", 10));
    bench.expect(&["2 joined news at e/10 recovered []"]);
}

#[test]
fn a_recovery_that_finds_another_epoch_tells_everybody() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(3, unpositioned());
    bench.join(2, recover("e", 5));
    bench.lines();
    bench.answer(part("f", 2, 0, &[]));
    bench.expect(&["1 lost news", "observed news f/2", "2 joined news at f/2"]);
    bench.deliver_in("f", 2, &[3]);
    bench.expect(&["3 <- 3", "2 <- 3"]);
}

/// Publications of the stream that was lost came in during the read. They must not be counted into the new one: their
/// offsets would have the joiner skip what comes next.
#[test]
fn what_came_in_of_a_lost_stream_is_no_part_of_the_answer() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("", 1));
    bench.deliver(9, &[10]);
    bench.lines();
    bench.answer(whole("f", 1, &[2]));
    bench.expect_clients(&["1 lost news", "2 joined news at f/2 recovered [2]"]);
    bench.deliver_in("f", 2, &[3]);
    bench.expect(&["2 <- 3"]);
}

/// A publication of the new stream was held back while the read was under way, and the read did not see it.
#[test]
fn what_was_held_back_follows_a_recovery_that_found_another_epoch() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 5));
    bench.deliver_in("f", 2, &[3]);
    bench.lines();
    bench.answer(part("f", 2, 0, &[]));
    bench.expect_clients(&["1 lost news", "2 joined news at f/2", "2 <- 3"]);
    bench.deliver_in("f", 3, &[4]);
    bench.expect(&["2 <- 4"]);
}

/// Everybody else lost the position in the very answer that lets the joiner in: the channel is not empty.
#[test]
fn a_joiner_admitted_to_an_emptied_channel_keeps_it() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 5));
    bench.answer(part("f", 2, 0, &[]));
    bench.lines();
    bench.wait(Duration::from_secs(10));
    bench.deliver_in("f", 2, &[3]);
    bench.expect(&["2 <- 3"]);
}

/// The stream went back behind what this shard has delivered (a failover lost the newest publications): whoever joins
/// must not be told that what it gets is everything.
#[test]
fn a_recovery_that_finds_the_stream_gone_back_is_read_again_after_a_repair() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 4));
    bench.deliver(9, &[10]);
    bench.lines();
    bench.answer(whole("e", 4, &[5, 6]));
    bench.expect(&["read news: 1000 after e/10"]);
    bench.answer(part("e", 6, 6, &[]));
    bench.expect_clients(&["1 lost news", "read news: 300 after e/4"]);
    bench.answer(whole("e", 4, &[5, 6]));
    bench.expect(&["2 joined news at e/6 recovered [5 6]"]);
    bench.deliver(6, &[2_000]);
    bench.expect(&["2 <- 2000"]);
}

/// It joined at publications that the stream has lost since; the shard, which never had them, goes on with what took
/// their place. For the joiner that is a gap.
#[test]
fn a_joiner_ahead_whose_place_is_lost_is_told() {
    let mut bench = Bench::live_at(Default::default(), 9);
    bench.join(2, recover("e", 8));
    bench.join(3, unpositioned());
    bench.answer(whole("e", 8, &[9, 10, 11]));
    bench.lines();
    bench.deliver(9, &[10]);
    bench.deliver(10, &[2_000, 2_001]);
    bench.expect(&["1 <- 10", "3 <- 10", "2 lost news", "1 <- 2000", "3 <- 2000", "1 <- 2001", "3 <- 2001"]);
    assert_eq!(bench.hub.counters().gaps_lost, 1);
}

/// After a failover the publication at the shard's own position may be lost: only the backplane knows.
#[test]
fn a_disturbed_position_answers_nobody_until_it_is_confirmed() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.hub.disturbed(None);
    bench.join(2, recover("e", 5));
    bench.expect(&["read news: 300 after e/5"]);
    // Lost, and others came in its place.
    bench.answer(part("e", 9, 4, &[9]));
    bench.expect(&["2 joined news at e/9"]);
}

#[test]
fn a_confirmed_position_answers_again() {
    let mut bench = Bench::live_at(Default::default(), 5);
    bench.hub.disturbed(None);
    bench.wait(Duration::from_millis(100));
    bench.expect(&["check news@5"]);
    // Disturbed again while the answer is on its way, which therefore says nothing.
    bench.hub.disturbed(None);
    bench.checked("e", 5);
    bench.join(2, recover("e", 5));
    bench.expect(&["read news: 300 after e/5"]);
    bench.answer(whole("e", 5, &[]));
    bench.expect(&["2 joined news at e/5 recovered []"]);
    bench.wait(Duration::from_millis(200));
    bench.expect(&["check news@5"]);
    bench.checked("e", 5);
    bench.join(3, recover("e", 5));
    bench.expect(&["3 joined news at e/5 recovered []"]);
}
