//! What happens while the coordinator, the writer of the open set or the nodes are not there, or what is in front works
//! against them.

use std::time::Duration;

use crate::level::check_budget;
use crate::route::Policy;
use crate::run;
use crate::scenario::{Fault, Scenario};

/// 200 nodes that become 400, and something that happens while connections are moved.
fn medium(name: &'static str) -> Scenario {
    Scenario { duration: 1200, ..Scenario::new(name, Policy::OpenSet, 200, 400, 200_000) }
}

#[test]
fn without_a_coordinator_nothing_is_moved_and_it_goes_on_afterwards() {
    let (_, outcome) = run(Scenario { faults: vec![Fault::NoCoordinator(40, 100)], ..medium("coordinator lost") });
    assert!(outcome.moved_in(0..40) > 1000);
    // The last digest is usable for 5 s, and reaches some nodes a second later.
    assert_eq!(outcome.moved_in(48..100), 0);
    assert!(outcome.moved_in(100..130) > 1000);
    assert!(outcome.at(600) <= 1.06, "{:.3}", outcome.at(600));
    assert!(outcome.moves_per_need() < 1.1, "{:.2}", outcome.moves_per_need());
}

#[test]
fn without_a_writer_nothing_is_moved_and_it_goes_on_afterwards() {
    let (_, outcome) = run(Scenario { faults: vec![Fault::FrozenSet(20, 620)], ..medium("open set frozen") });
    assert!(outcome.moved_in(20..40) > 1000);
    // 30 s after the last write, which was up to 10 s before.
    assert_eq!(outcome.moved_in(55..620), 0);
    assert!(outcome.moved_in(640..700) > 1000);
    assert!(outcome.at(1200) <= 1.07, "{:.3}", outcome.at(1200));
    assert!(outcome.worst_after(0) < 2.2, "{:.3}", outcome.worst_after(0));
}

#[test]
fn two_coordinators_and_two_writers_do_no_harm() {
    let (_, outcome) = run(Scenario { faults: vec![Fault::SplitBrain(10, 200)], ..medium("split brain") });
    assert!(outcome.at(400) <= 1.06, "{:.3}", outcome.at(400));
    assert!(outcome.moves_per_need() < 1.1, "{:.2}", outcome.moves_per_need());
    assert!(outcome.peak_accepts <= 30, "{}", outcome.peak_accepts);
    check_budget(outcome.budget_used, "split brain");
}

#[test]
fn a_rollout_moves_each_connection_once_and_sheds_nothing() {
    let mut scenario = Scenario::new("rollout", Policy::OpenSet, 100, 100, 50_000);
    scenario.duration = 2700;
    scenario.lifetime = 8.0 * 3600.0;
    scenario.rollout_at = Some(30);
    scenario.drain.window = Duration::from_secs(240);
    let (_, outcome) = run(scenario);
    let end = outcome.moves.len();
    // Four batches of 25 nodes, each drained within 240 s.
    assert_eq!(outcome.moved_in(0..1000), 0);
    let closed = outcome.drained as f64 / 50_000.0;
    assert!((0.9..1.1).contains(&closed), "{closed:.2} closes for each connection");
    assert!(outcome.at(end) <= 1.16, "{:.3}", outcome.at(end));
}

#[test]
fn nodes_that_die_all_the_time_do_not_unlevel_the_rest() {
    let (_, outcome) = run(Scenario { replace_every: 30, ..medium("a node dies every 30 s") });
    assert!(outcome.at(1200) <= 1.10, "{:.3}", outcome.at(1200));
    assert!(outcome.smallest_set >= 50, "{}", outcome.smallest_set);
}

/// Ten nodes that become twenty behind something that brings so many of the moved clients back to where they were.
fn bound(name: &'static str, bound: f64) -> Scenario {
    Scenario { bound, duration: 7200, ..Scenario::new(name, Policy::Random, 10, 20, 20_000) }.still()
}

#[test]
fn clients_that_something_binds_to_their_node_are_not_moved_for_ever() {
    let guarded = bound("all bound", 1.0);
    let mut unguarded = bound("all bound, nobody looks", 1.0);
    unguarded.settings.returning.batch = f64::INFINITY;
    let (_, without) = run(unguarded);
    let (_, outcome) = run(guarded);
    // Each trial moves what the budget allows until the first batch is judged: 80 a second for some 15 s, then 8.
    assert!(without.moved() > 100_000, "{}", without.moved());
    assert!(outcome.moved() < 3_000, "{}", outcome.moved());
    assert!(outcome.moved_in(3600..7200) < 500, "{} in the second hour", outcome.moved_in(3600..7200));
    assert!(outcome.held_returning > 6_000, "{} s", outcome.held_returning);
    assert!(outcome.holds.iter().any(|(why, _)| why.contains("came back to the node")), "{:?}", outcome.holds);
}

#[test]
fn moving_goes_on_once_clients_are_bound_no_more() {
    let (_, outcome) = run(Scenario { bound_until: 600, ..bound("bound for ten minutes", 1.0) });
    assert!(outcome.at(600) > 1.9, "{:.3}", outcome.at(600));
    assert!(outcome.at(3600) <= 1.12, "{:.3}", outcome.at(3600));
}

#[test]
fn a_fleet_of_which_some_clients_are_bound_becomes_level() {
    let (_, few) = run(bound("few bound", 0.1));
    assert_eq!(few.held_returning, 0, "of those on a node that has become level a fifth is bound");
    assert!(few.at(1200) <= 1.12, "{:.3}", few.at(1200));
    // Here it is three fifths at the end, so that moving may stop for a while.
    let (_, some) = run(bound("some bound", 0.3));
    assert!(some.held_returning <= 600, "{} s", some.held_returning);
    assert!(some.at(3600) <= 1.12, "{:.3}", some.at(3600));
}
