use proptest::prelude::*;

use super::*;
use crate::digest::Pause;

/// An hour after the beginning of time, so that there is something before it.
fn start() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

fn before(start: Instant, seconds: f64) -> Instant {
    start - Duration::from_secs_f64(seconds)
}

/// 10 nodes with 1,000 connections each if they were level; 1,000 too many on some.
fn digest() -> Digest {
    Digest { ready: 10, connections: 10_000, mean: 1000.0, budget: 40.0, excess: 1000.0, ..Digest::empty(1, 1) }
}

fn own(connections: u64) -> Own {
    Own { connections, movable: connections, weight: 1.0, stays: true }
}

/// A shedder that has had so many connections for longer than the claim window.
fn settled(start: Instant, connections: u64) -> Shedder {
    let mut shedder = Shedder::new(ShedSettings::default(), 0.0);
    let old = digest();
    for second in 0..12 {
        let now = before(start, 12.0 - f64::from(second));
        shedder.tick(now, own(connections), Some(Heard { digest: &old, at: now - Duration::from_secs(60) }));
    }
    shedder
}

fn verdict(connections: u64, digest: &Digest, digest_age: f64) -> Shed {
    let start = start();
    let heard = Heard { digest, at: before(start, digest_age) };
    settled(start, connections).tick(start, own(connections), Some(heard))
}

fn rate(shed: Shed) -> f64 {
    match shed {
        Shed::Moving { rate, .. } => rate,
        Shed::Held(hold) => panic!("{hold}"),
    }
}

#[test]
fn a_node_far_above_the_mean_closes_some_at_a_pace() {
    assert_eq!(verdict(1100, &digest(), 0.0), Shed::Held(Hold::Level { times: 1.1 }));
    assert!((rate(verdict(1320, &digest(), 0.0)) - 5.0).abs() < 1e-9);
    // 120 more than 1.02 times the mean, over a minute.
    assert!((rate(verdict(1140, &digest(), 0.0)) - 2.0).abs() < 1e-9);
    // 0.1 % of a large node.
    let large = Digest { connections: 1_000_000, mean: 10_000.0, budget: 4000.0, excess: 10_000.0, ..digest() };
    assert!((rate(verdict(20_000, &large, 0.0)) - 20.0).abs() < 1e-9);
    // A quarter of what is too many gets a quarter of the budget.
    let tight = Digest { budget: 2.0, excess: 1200.0, ..digest() };
    assert!((rate(verdict(1320, &tight, 0.0)) - 0.5).abs() < 1e-9);
    // The node's own idea of the budget counts too: 0.4 % of 10,000.
    let generous = Digest { budget: 1e6, excess: 120.0 * 40.0, ..digest() };
    assert!((rate(verdict(1140, &generous, 0.0)) - 1.0).abs() < 1e-9);
}

#[test]
fn chance_is_no_reason_to_move() {
    let small = Digest { mean: 100.0, ..digest() };
    assert_eq!(verdict(129, &small, 0.0), Shed::Held(Hold::Chance { times: 1.29 }));
    assert!(rate(verdict(131, &small, 0.0)) > 0.0);
}

#[test]
fn it_starts_late_and_stops_early() {
    let start = start();
    let mut shedder = settled(start, 1200);
    let now = start;
    let digest = digest();
    let heard = Some(Heard { digest: &digest, at: now });
    assert!(rate(shedder.tick(now, own(1200), heard)) > 0.0);
    assert!(rate(shedder.tick(now, own(1060), heard)) > 0.0);
    assert!(matches!(shedder.tick(now, own(1050), heard), Shed::Held(Hold::Level { .. })));
    assert!(matches!(shedder.tick(now, own(1099), heard), Shed::Held(Hold::Level { .. })));
}

#[test]
fn a_pause_in_between_does_not_end_it() {
    let start = start();
    let mut shedder = settled(start, 1200);
    let digest = digest();
    let paused = Digest { pauses: vec![Pause::Busy], ..digest.clone() };
    assert!(rate(shedder.tick(start, own(1200), Some(Heard { digest: &digest, at: start }))) > 0.0);
    let held = shedder.tick(start, own(1080), Some(Heard { digest: &paused, at: start }));
    assert_eq!(held, Shed::Held(Hold::Paused(Pause::Busy)));
    assert!(rate(shedder.tick(start, own(1080), Some(Heard { digest: &digest, at: start }))) > 0.0);
}

#[test]
fn nothing_is_shed_when_the_digest_is_stale() {
    assert!(rate(verdict(2000, &digest(), 5.0)) > 0.0);
    let held = verdict(2000, &digest(), 5.1);
    assert_eq!(held, Shed::Held(Hold::DigestStale { age: Duration::from_millis(5100) }));
    assert_eq!(held.to_string(), "not moved: the state of the fleet is 5 s old");
    let start = start();
    assert_eq!(settled(start, 2000).tick(start, own(2000), None), Shed::Held(Hold::NoDigest));
}

#[test]
fn nothing_is_shed_when_the_last_write_of_the_open_set_is_old() {
    let written = |age| Digest { open_set: true, placement_age_ms: age, ..digest() };
    assert!(rate(verdict(2000, &written(Some(28_000)), 2.0)) > 0.0);
    let held = verdict(2000, &written(Some(28_001)), 2.0);
    assert_eq!(held, Shed::Held(Hold::PlacementStale { age: Some(Duration::from_millis(30_001)) }));
    assert_eq!(held.to_string(), "not moved: the open set was last written 30 s ago");
    assert_eq!(verdict(2000, &written(None), 0.0), Shed::Held(Hold::PlacementStale { age: None }));
    // Without an open set nobody writes.
    let off = Digest { open_set: false, placement_age_ms: None, ..digest() };
    assert!(rate(verdict(2000, &off, 0.0)) > 0.0);
}

#[test]
fn nothing_is_shed_during_a_rollout_or_any_other_pause() {
    for pause in Pause::KNOWN.into_iter().chain([Pause::Unknown]) {
        let paused = Digest { pauses: vec![pause], ..digest() };
        let held = verdict(2000, &paused, 0.0);
        assert_eq!(held, Shed::Held(Hold::Paused(pause)));
        assert_eq!(held.to_string(), format!("not moved: {pause}"));
        // A level node has another reason.
        assert!(matches!(verdict(1000, &paused, 0.0), Shed::Held(Hold::Level { .. })));
    }
}

#[test]
fn nothing_is_shed_by_a_node_that_does_not_take_part_or_has_nothing_to_move() {
    let start = start();
    let digest = digest();
    let heard = Some(Heard { digest: &digest, at: start });
    let tick = |own| settled(start, 2000).tick(start, own, heard);
    assert_eq!(tick(Own { stays: false, ..own(2000) }), Shed::Held(Hold::NotStaying));
    assert_eq!(tick(Own { movable: 0, ..own(2000) }), Shed::Held(Hold::TooYoung));
    assert!(tick(Own { weight: 2.0, ..own(2000) }).close() == 0);
    let off = ShedSettings { enabled: false, ..ShedSettings::default() };
    assert_eq!(Shedder::new(off, 0.0).tick(start, own(2000), heard), Shed::Held(Hold::Off));
    // It got its connections only now, so that the digest's sum may be without them.
    let mut fresh = settled(start, 1000);
    assert_eq!(fresh.tick(start, own(2000), heard), Shed::Held(Hold::NoBudget));
}

#[test]
fn a_fleet_that_is_out_of_level_has_an_explanation() {
    let start = start();
    let explain = |max: f64, pauses: Vec<Pause>, age: f64| {
        let digest = Digest { max, pauses, ..digest() };
        super::explain(&ShedSettings::default(), start, Some(Heard { digest: &digest, at: before(start, age) }))
    };
    assert_eq!(explain(1100.0, vec![Pause::Rollout], 0.0), None);
    let moving = "the fullest node has 1.50 times its share; up to 40 connections a second are moved";
    assert_eq!(explain(1500.0, vec![], 0.0).as_deref(), Some(moving));
    let held = "the fullest node has 1.50 times its share; not moved: a rollout is under way";
    assert_eq!(explain(1500.0, vec![Pause::Rollout], 0.0).as_deref(), Some(held));
    assert!(explain(1500.0, vec![], 9.0).is_some_and(|text| text.ends_with("is 9 s old")));
}

proptest! {
    /// Nodes that act on one digest close no more than the budget together, however their counts have changed since
    /// the reports that it was made of.
    #[test]
    fn never_over_the_budget_of_the_cluster(
        nodes in prop::collection::vec((0u64..20_000, 1u32..40, -300i64..300), 2..60),
        spare in 1.0f64..10_000.0,
    ) {
        let settings = ShedSettings::default();
        let weight = |tenths: u32| f64::from(tenths) / 10.0;
        let connections: u64 = nodes.iter().map(|node| node.0).sum();
        let mean = connections as f64 / nodes.iter().map(|node| weight(node.1)).sum::<f64>();
        let excess = nodes.iter().map(|node| settings.excess(node.0 as f64, mean * weight(node.1))).sum();
        let budget = (settings.budget * connections as f64).min(spare);
        let digest = Digest { connections, mean, budget, excess, ..Digest::empty(1, 1) };
        let start = start();
        let mut total = 0.0;
        for (reported, tenths, change) in nodes {
            let mut shedder = settled(start, reported);
            let connections = reported.saturating_add_signed(change);
            let own = Own { connections, movable: connections, weight: weight(tenths), stays: true };
            if let Shed::Moving { rate, .. } = shedder.tick(start, own, Some(Heard { digest: &digest, at: start })) {
                total += rate;
            }
        }
        prop_assert!(total <= budget * (1.0 + 1e-9), "{total} of {budget}");
    }
}
