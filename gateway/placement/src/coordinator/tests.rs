use backplane::NodeId;
use uuid::Uuid;

use super::*;
use crate::report::Report;

fn fleet(counts: &[u64]) -> Vec<Peer> {
    let nodes = counts.iter().enumerate();
    nodes
        .map(|(index, &connections)| Peer {
            id: NodeId(Uuid::from_u128((index as u128) << 80)),
            age: Duration::ZERO,
            report: Report { ready: true, connections, ..Report::new("n", "1") },
        })
        .collect()
}

fn digest(peers: &[Peer]) -> Digest {
    Coordinator::new(CoordinatorSettings::default(), 7).tick(Instant::now(), peers)
}

#[test]
fn the_numbers_are_those_of_the_reports() {
    let mut peers = fleet(&[400, 100, 100, 200, 50]);
    peers[3].report.draining = true;
    peers[4].report.ready = false;
    peers[0].report.accepts = 3.0;
    peers[0].report.spare_accepts = Some(100.0);
    peers[1].report.spare_accepts = Some(50.0);
    peers[1].report.room = Some(0);
    let digest = digest(&peers);
    assert_eq!((digest.term, digest.sequence), (7, 1));
    assert_eq!((digest.ready, digest.draining, digest.starting), (3, 1, 1));
    assert_eq!((digest.connections, digest.connections_max), (850, 400));
    // The connections of the nodes that go will be on the three that stay.
    assert_eq!((digest.mean, digest.max, digest.arrivals), (283.33, 400.0, 3.0));
    assert!((digest.imbalance() - 400.0 / 283.33).abs() < 1e-9);
    // 18 connections come within 6 s, to two nodes with 100 each.
    assert_eq!(digest.level, 109.0);
    assert_eq!((digest.spare, digest.budget), (Some(100.0), 3.4));
    assert_eq!(digest.excess, tidy_rate(400.0 - 1.02 * 850.0 / 3.0));
    assert_eq!(digest.pauses, []);
    assert_eq!(digest.candidates.len(), 3);
}

#[test]
fn a_fleet_of_none_and_of_nothing_is_no_reason_to_panic() {
    let none = digest(&[]);
    assert_eq!((none.connections, none.mean, none.imbalance()), (0, 0.0, 1.0));
    let mut starting = fleet(&[0, 0]);
    starting.iter_mut().for_each(|peer| peer.report.ready = false);
    assert_eq!(digest(&starting).mean, 0.0);
    assert_eq!(digest(&fleet(&[0, 0])).pauses, []);
}

#[test]
fn scarce_accept_capacity_lowers_the_budget() {
    let mut peers = fleet(&[10_000, 0]);
    assert_eq!(digest(&peers).budget, 40.0);
    peers[1].report.spare_accepts = Some(100.0);
    assert_eq!(digest(&peers).budget, 25.0);
}

#[test]
fn nothing_is_moved_when_nobody_has_room() {
    let mut peers = fleet(&[500, 100, 100]);
    peers[1].report.room = Some(0);
    assert_eq!(digest(&peers).pauses, []);
    peers[2].report.room = Some(0);
    assert_eq!(digest(&peers).pauses, [Pause::NoRoom]);
    let mut slow = fleet(&[500, 100, 100]);
    slow.iter_mut().for_each(|peer| peer.report.spare_accepts = Some(0.1));
    assert_eq!(digest(&slow).pauses[0], Pause::NoRoom);
}

#[test]
fn a_node_that_is_silent_accepts_nothing_and_keeps_its_connections() {
    let mut peers = fleet(&[500, 100, 100]);
    for peer in &mut peers {
        (peer.report.accepts, peer.report.spare_accepts) = (1.0, Some(50.0));
    }
    peers[1].age = Duration::from_secs(5);
    let seen = |peers: &[Peer]| {
        let digest = digest(peers);
        (digest.connections, digest.ready, digest.arrivals, digest.spare, digest.pauses)
    };
    assert_eq!(seen(&peers), (700, 3, 3.0, Some(150.0), vec![]));
    peers[1].age = Duration::from_millis(5001);
    assert_eq!(seen(&peers), (700, 3, 2.0, Some(100.0), vec![]));
    // It is not known of any node with few that it could take them.
    peers[2].age = Duration::from_secs(9);
    assert_eq!(seen(&peers).4, [Pause::NoRoom]);
}

#[test]
fn a_node_that_has_drained_claims_nothing() {
    let mut peers = fleet(&[500, 0, 7, 9]);
    peers[1..].iter_mut().for_each(|peer| peer.report.draining = true);
    let seen = |peers: &[Peer]| (digest(peers).draining, digest(peers).emptying);
    assert_eq!(seen(&peers), (3, Some(2)));
    peers[3].age = Duration::from_secs(6);
    assert_eq!(seen(&peers), (3, Some(1)));
}

#[test]
fn nothing_is_moved_while_moved_connections_come_back_to_their_node() {
    let start = Instant::now();
    let ticks = |peers: &[Peer]| {
        let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 1);
        coordinator.tick(start, peers);
        let digest = coordinator.tick(start + Duration::from_secs(1), peers);
        (digest.pauses, digest.budget)
    };
    let mut peers = fleet(&[6_000, 2_000, 2_000]);
    (peers[0].report.settled, peers[0].report.returned) = (60.0, 55.0);
    assert_eq!(ticks(&peers), (vec![Pause::Returning], 4.0), "a trial has a tenth of the budget");
    peers[0].report.returned = 20.0;
    assert_eq!(ticks(&peers), (vec![], 40.0), "a third of them by chance");
    // A node of nine tenths of the fleet gets nine tenths of them back.
    (peers[0].report.returned, peers[0].report.weight) = (54.0, 18.0);
    assert_eq!(ticks(&peers).0, []);
    let mut alone = fleet(&[1000]);
    (alone[0].report.settled, alone[0].report.returned) = (60.0, 60.0);
    assert_eq!(ticks(&alone).0, []);
}

#[test]
fn a_rollout_is_a_pause() {
    let mut peers = fleet(&[500, 100, 100]);
    peers.iter_mut().for_each(|peer| peer.report.revision = "a".to_owned());
    assert_eq!(digest(&peers).pauses, []);
    peers[2].report.revision = "b".to_owned();
    let digest = digest(&peers);
    assert_eq!((digest.pauses.as_slice(), digest.revision.as_str()), ([Pause::Rollout].as_slice(), "a"));
}

#[test]
fn the_age_of_the_last_write_goes_on_after_its_writer() {
    let start = Instant::now() + Duration::from_secs(3600);
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 1);
    let mut peers = fleet(&[1, 1, 1]);
    peers.iter_mut().for_each(|peer| peer.report.open_set = true);
    let digest = coordinator.tick(start, &peers);
    assert_eq!((digest.open_set, digest.placement_age_ms), (true, None));
    peers[0].report.placement_age_ms = Some(1500);
    peers[0].age = Duration::from_millis(500);
    assert_eq!(coordinator.tick(start, &peers).placement_age_ms, Some(2000));
    let later = start + Duration::from_secs(40);
    assert_eq!(coordinator.tick(later, &peers[1..]).placement_age_ms, Some(42_000));
    // Another writer.
    peers[1].report.placement_age_ms = Some(0);
    assert_eq!(coordinator.tick(later, &peers[1..]).placement_age_ms, Some(0));
}

#[test]
fn a_term_follows_everything_that_was_seen() {
    let mut peers = fleet(&[1, 1]);
    assert_eq!(Coordinator::next_term(None, &peers), 1);
    assert_eq!(Coordinator::next_term(Some(4), &peers), 5);
    peers[1].report.term = 9;
    assert_eq!(Coordinator::next_term(Some(4), &peers), 10);
}

#[test]
fn digests_of_any_fleet_keep_their_size() {
    let mut peers: Vec<_> = fleet(&vec![123_456_789; 1000]);
    for (index, peer) in peers.iter_mut().enumerate() {
        let report = &mut peer.report;
        report.revision = "r".repeat(40);
        (report.open_set, report.placement_age_ms) = (true, Some(1 << 30));
        (report.accepts, report.refused) = (123.457 * index as f64, 1e6);
        (report.spare_accepts, report.weight) = (Some(1e-3), 0.013);
        report.retiring = index >= 900;
    }
    peers[0].report.connections = 0;
    let mut settings = CoordinatorSettings::default();
    settings.scale_down.target = Some(2e9);
    let mut coordinator = Coordinator::new(settings, u64::from(u32::MAX));
    let digest = coordinator.tick(Instant::now(), &peers);
    assert_eq!((digest.retire.len(), digest.candidates.len()), (crate::digest::ORDERS_MAX, 5));
    assert!(digest.pauses.len() >= 3, "{:?}", digest.pauses);
    let bytes = digest.encode();
    assert!(bytes.len() <= crate::digest::DIGEST_BYTES, "{} bytes", bytes.len());
}
