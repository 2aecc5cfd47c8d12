//! How fast a fleet that was enlarged becomes level, how well it stays so, and what that costs.

use crate::chart::{Run, present, show};
use crate::route::Policy;
use crate::run;
use crate::scenario::Scenario;

const HOUR: f64 = 3600.0;

/// 500,000 connections on 500 nodes that become 1,000, of which one is replaced every ten minutes.
fn large(name: &'static str, policy: Policy, lifetime: f64) -> Scenario {
    Scenario { lifetime, replace_every: 600, ..Scenario::new(name, policy, 500, 1000, 500_000) }
}

/// The figures that the open set has to reach.
fn check_open_set((scenario, outcome): &Run) {
    let name = scenario.name;
    let end = outcome.curve.len();
    assert!(outcome.at(300) <= 1.06, "{name}: {:.3} after 300 s", outcome.at(300));
    assert!(outcome.at(end) <= 1.06, "{name}: {:.3} after {end} s", outcome.at(end));
    assert!(outcome.moves_per_need() < 1.1, "{name}: {:.2} moves for one needed", outcome.moves_per_need());
    assert!(outcome.peak_accepts <= 20, "{name}: {} accepts on one node in one second", outcome.peak_accepts);
    assert!(outcome.smallest_set >= 50, "{name}: {} nodes open", outcome.smallest_set);
    check_budget(outcome.budget_used, name);
}

/// The figures without an open set.
fn check_shedding_only((scenario, outcome): &Run) {
    let end = outcome.curve.len();
    assert!(outcome.at(end) <= 1.16, "{}: {:.3} after {end} s", scenario.name, outcome.at(end));
    check_budget(outcome.budget_used, scenario.name);
}

pub fn check_budget(used: f64, name: &str) {
    assert!(used <= 1.02, "{name}: {used:.3} times the budget within ten seconds");
}

#[test]
fn half_a_million_connections_become_level_and_stay_so() {
    let open_set = [
        run(large("open set, shedding, lifetime 1 h", Policy::OpenSet, HOUR)),
        run(large("open set, shedding, lifetime 8 h", Policy::OpenSet, 8.0 * HOUR)),
    ];
    let shedding_only = [
        run(large("random, shedding, lifetime 1 h", Policy::Random, HOUR)),
        run(large("random, shedding, lifetime 8 h", Policy::Random, 8.0 * HOUR)),
    ];
    let brief = |name, policy| Scenario { duration: 600, ..large(name, policy, 8.0 * HOUR) };
    let others = [
        run(brief("two choices, shedding, lifetime 8 h", Policy::TwoChoices)),
        run(brief("least per proxy, shedding, lifetime 8 h", Policy::Least)),
        run(brief("", Policy::OpenSet).without_shedding("open set alone, lifetime 8 h")),
        run(brief("", Policy::Random).without_shedding("random alone, lifetime 8 h")),
    ];
    let all: Vec<Run> = open_set.iter().chain(&shedding_only).chain(&others).cloned().collect();
    present("500,000 connections, 500 nodes become 1,000", "placement.svg", &all, 600);
    open_set.iter().for_each(check_open_set);
    shedding_only.iter().for_each(check_shedding_only);
}

/// Every policy over an hour, with and without moving, at three rates of nodes that are replaced.
#[test]
#[ignore = "takes minutes; tests/run heavy placement"]
fn every_policy_over_an_hour() {
    for (title, file, lifetime) in
        [("lifetime 1 h", "placement-1h.svg", HOUR), ("lifetime 8 h", "placement-8h.svg", 8.0 * HOUR)]
    {
        let with = |name, policy| run(large(name, policy, lifetime));
        let without = |name, policy| run(large("", policy, lifetime).without_shedding(name));
        let mut runs = vec![
            with("open set, shedding", Policy::OpenSet),
            with("random, shedding", Policy::Random),
            with("two choices, shedding", Policy::TwoChoices),
            with("least per proxy, shedding", Policy::Least),
            without("open set alone", Policy::OpenSet),
            without("random alone", Policy::Random),
            without("two choices alone", Policy::TwoChoices),
            without("least per proxy alone", Policy::Least),
        ];
        present(&format!("500,000 connections, 500 nodes become 1,000, {title}"), file, &runs, 3600);
        check_open_set(&runs[0]);
        check_shedding_only(&runs[1]);
        runs.truncate(1);
        let churn = |name, replace_every| run(Scenario { replace_every, ..large(name, Policy::OpenSet, lifetime) });
        runs.push(churn("open set, shedding, a node replaced every 60 s", 60));
        runs.push(churn("open set, shedding, a node replaced every 20 s", 20));
        present(&format!("nodes that are replaced, {title}"), &format!("churn-{file}"), &runs, 3600);
    }
}

#[test]
fn fleets_of_every_size_become_level() {
    // Balance after 300 s, and moves for each connection that had to move. Where a quarter of the nodes are more than
    // were added, full ones are open beside them, and what they get is moved again.
    let sizes = [
        ("3 nodes become 6", 3, 6, 3_000, 1.10, 1.1),
        ("2 nodes become 4", 2, 4, 4_000, 1.10, 1.1),
        ("20 nodes become 30", 20, 30, 60_000, 1.07, 1.1),
        ("3 nodes become 4, large ones", 3, 4, 240_000, 1.20, 2.2),
        ("100 nodes become 120", 100, 120, 100_000, 1.06, 1.25),
    ];
    let runs: Vec<Run> = sizes
        .iter()
        .map(|(name, before, after, connections, ..)| {
            run(Scenario { duration: 900, ..Scenario::new(name, Policy::OpenSet, *before, *after, *connections) })
        })
        .collect();
    present("open set and shedding, lifetime 1 h", "sizes.svg", &runs, 900);
    for ((scenario, outcome), (.., ratio, moves)) in runs.iter().zip(&sizes) {
        assert!(outcome.at(300) <= *ratio, "{}: {:.3} after 300 s", scenario.name, outcome.at(300));
        assert!(outcome.at(900) <= 1.07, "{}: {:.3} after 900 s", scenario.name, outcome.at(900));
        assert!(outcome.moves_per_need() < *moves, "{}: {:.2}", scenario.name, outcome.moves_per_need());
        check_budget(outcome.budget_used, scenario.name);
    }
}

/// Once it is level, nothing happens any more in a fleet in which nothing happens.
#[test]
fn a_level_fleet_is_left_alone() {
    for policy in [Policy::OpenSet, Policy::Random, Policy::Least] {
        let scenario = Scenario { duration: 1800, ..Scenario::new("still", policy, 50, 100, 50_000) }.still();
        let (_, outcome) = run(scenario);
        assert_eq!(outcome.moved_in(900..1800), 0, "{policy:?}");
        assert_eq!(outcome.curve[900], outcome.curve[1799], "{policy:?}");
        assert!(outcome.curve[1799] <= 1.16, "{policy:?}: {}", outcome.curve[1799]);
        assert_eq!(outcome.population, 50_000, "{policy:?}");
        show(&format!("{policy:?}: {} moves, {:.3}\n", outcome.moved(), outcome.curve[1799]));
    }
}

/// And in one in which connections come and go, moves are rare, and the balance does not swing.
#[test]
fn a_busy_fleet_does_not_swing() {
    let (_, outcome) = run(Scenario { duration: 3600, ..Scenario::new("busy", Policy::OpenSet, 60, 80, 40_000) });
    assert!(outcome.moved_in(600..3600) < 400, "{} moves", outcome.moved_in(600..3600));
    assert!(outcome.worst_after(600) <= 1.10, "{:.3}", outcome.worst_after(600));
}
