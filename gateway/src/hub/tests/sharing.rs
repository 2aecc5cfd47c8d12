//! A storm: many come back to one channel, one by one, each from a position of its own.

use std::time::Duration;

use super::bench::{Bench, CHANNEL, cache, conn, newest, positioned, recover, whole};
use crate::hub::HubSettings;

/// A channel at e/`offset`, with connection 1 in it, where recoveries share what they read.
fn live_at(offset: u64) -> Bench {
    let mut bench = Bench::sharing();
    bench.join(1, positioned());
    bench.acknowledge(CHANNEL, Some(("e", offset)));
    bench.lines();
    bench
}

#[test]
fn a_thousand_who_come_back_at_different_offsets_cost_a_handful_of_reads() {
    let mut bench = live_at(1_000);
    let mut top = 1_000;
    for n in 0..1_000_u64 {
        let index = 10 + u32::try_from(n).unwrap();
        bench.hub.attach(conn(index));
        let from = 950 + (n * 37) % 50;
        bench.join(index, recover("e", from));
        let mut lines = bench.lines();
        if lines.iter().any(|line| line == &format!("read {CHANNEL}: 300 after e/{from}")) {
            bench.answer(whole("e", from, &(from + 1..=top).collect::<Vec<_>>()));
            lines = bench.lines();
        } else if lines.iter().any(|line| line == &format!("read {CHANNEL}: newest 300")) {
            bench.answer(newest("e", 900, &(901..=top).collect::<Vec<_>>()));
            lines = bench.lines();
        }
        let offsets: Vec<String> = (from + 1..=top).map(|offset| offset.to_string()).collect();
        assert_eq!(lines, [format!("{index} joined {CHANNEL} at e/{top} recovered [{}]", offsets.join(" "))]);
        if n % 100 == 0 {
            // Life goes on meanwhile.
            bench.deliver(top, &[top + 1]);
            bench.lines();
            top += 1;
        }
    }
    let counters = bench.hub.counters();
    assert_eq!(counters.recoveries, 1_000);
    assert!(counters.recovery_reads <= 2, "{} reads", counters.recovery_reads);
}

#[test]
fn who_is_too_late_is_told_so_without_a_read_of_his_own() {
    let mut bench = live_at(9);
    bench.join(2, recover("e", 8));
    bench.expect(&["read news: 300 after e/8"]);
    bench.answer(whole("e", 8, &[9]));
    bench.expect(&["2 joined news at e/9 recovered [9]"]);
    // Older than what was read: now everything there is is read.
    bench.join(3, recover("e", 2));
    bench.expect(&["read news: newest 300"]);
    bench.answer(newest("e", 5, &[6, 7, 8, 9]));
    bench.expect(&["3 joined news at e/9"]);
    bench.join(4, recover("e", 1));
    bench.join(5, recover("e", 5));
    bench.join(6, cache("", 0));
    bench.expect(&[
        "4 joined news at e/9",
        "5 joined news at e/9 recovered [6 7 8 9]",
        "6 joined news at e/9 recovered [9]",
    ]);
}

#[test]
fn what_was_read_is_not_believed_for_long_nor_after_a_disturbance() {
    let mut bench = live_at(9);
    let read_again = |bench: &mut Bench, index: u32, query: &str| {
        bench.join(index, recover("e", 8));
        bench.expect(&[query]);
        bench.answer(whole("e", 8, &[9]));
        bench.expect(&[&format!("{index} joined news at e/9 recovered [9]")]);
    };
    read_again(&mut bench, 2, "read news: 300 after e/8");
    bench.wait(HubSettings::default().recovery_share - Duration::from_millis(1));
    bench.join(3, recover("e", 8));
    bench.expect(&["3 joined news at e/9 recovered [9]"]);
    bench.wait(Duration::from_millis(1));
    read_again(&mut bench, 4, "read news: 300 after e/8");
    bench.hub.disturbed(None);
    read_again(&mut bench, 5, "read news: newest 300");
}

#[test]
fn beyond_the_position_and_in_another_epoch_only_history_knows() {
    let mut bench = live_at(9);
    bench.join(2, recover("e", 8));
    bench.answer(newest("e", 0, &[8, 9]));
    bench.lines();
    bench.join(3, recover("e", 11));
    bench.expect(&["read news: newest 300"]);
    bench.answer(newest("e", 0, &[8, 9, 11]));
    bench.expect(&["3 joined news at e/11 recovered []"]);
    bench.join(4, recover("f", 1));
    bench.expect(&["read news: newest 300"]);
}
