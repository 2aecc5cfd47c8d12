use proptest::prelude::*;

use super::*;

fn fleet(counts: &[u64]) -> Vec<Candidate<usize>> {
    counts.iter().enumerate().map(|(key, &connections)| Candidate::new(key, connections)).collect()
}

fn input(candidates: &[Candidate<usize>], arrivals: f64) -> Input<'_, usize> {
    let connections = candidates.iter().filter_map(|candidate| candidate.connections).sum();
    Input { candidates, connections, arrivals, table_age: Duration::ZERO }
}

fn chosen(candidates: &[Candidate<usize>], arrivals: f64, members: &[usize]) -> (Vec<usize>, Shape) {
    let members = members.iter().copied().collect();
    let (open, shape) = select(&OpenSetSettings::default(), &input(candidates, arrivals), &members);
    (open.into_iter().collect(), shape)
}

#[test]
fn the_emptiest_are_open_and_more_of_them_when_more_arrive() {
    let nodes = fleet(&[100, 10, 100, 20, 100, 30, 100, 100]);
    assert_eq!(chosen(&nodes, 0.0, &[]), (vec![1, 3], Shape::Level));
    // Within 6 s: 24 connections reach 22 on two nodes, 60 reach 40 on three.
    assert_eq!(chosen(&nodes, 4.0, &[]).0, [1, 3]);
    assert_eq!(chosen(&nodes, 10.0, &[]).0, [1, 3, 5]);
    // 500 fill all of them to the brim.
    assert_eq!(chosen(&nodes, 100.0, &[]).0.len(), 8);
    // 250 a second need five nodes of this size, whatever the level, and two that are ten times as large.
    let tall = fleet(&[0, 10_000, 10_000, 10_001, 10_002, 10_003, 10_004, 10_005]);
    assert_eq!(chosen(&tall, 250.0, &[]).0, [0, 1, 2, 3, 4]);
    let large = fleet(&[0, 100_000, 100_000, 100_001, 100_002, 100_003, 100_004, 100_005]);
    assert_eq!(chosen(&large, 250.0, &[]).0, [0, 1]);
}

#[test]
fn an_open_node_stays_open_a_little_longer() {
    let nodes = fleet(&[100, 100, 102, 103, 104, 200, 200, 200]);
    assert_eq!(chosen(&nodes, 0.0, &[]).0, [0, 1]);
    // For a fleet that is nearly level all would be: no more than a quarter of the others, rounded up, stays so.
    assert_eq!(chosen(&nodes, 0.0, &[2, 3]).0, [0, 1, 2]);
    assert_eq!(chosen(&nodes, 0.0, &[4]).0, [0, 1]);
}

#[test]
fn more_are_open_when_what_arrives_would_lift_the_fullest_too_far() {
    // 40 nodes from 80 to 119: ten are the floor, and 120 connections, poured over them, reach sixteen. But they would get
    // up to 180 in equal parts, 11 each: all nodes up to 1.03 times the mean are opened.
    let counts: Vec<u64> = (80..120).collect();
    assert_eq!(chosen(&fleet(&counts), 0.0, &[]).0.len(), 10);
    assert_eq!(chosen(&fleet(&counts), 20.0, &[]).0.len(), 23);
    // Those over the mean stay closed even so.
    let mut tall = counts.clone();
    tall[20..].iter_mut().for_each(|count| *count += 500);
    assert_eq!(chosen(&fleet(&tall), 400.0, &[]).0.len(), 20);
}

#[test]
fn weights_make_a_node_wider() {
    let mut nodes = fleet(&[100, 100, 100, 100, 100]);
    nodes[3].weight = 4.0;
    nodes[4].weight = 2.0;
    assert_eq!(chosen(&nodes, 0.0, &[]).0, [3, 4]);
}

#[test]
fn all_are_open_when_there_are_few_or_they_are_level_or_nothing_is_known() {
    assert_eq!(chosen(&fleet(&[0, 500, 900]), 1.0, &[]), (vec![0, 1, 2], Shape::Few));
    assert_eq!(chosen(&fleet(&[100, 104, 96, 100]), 1.0, &[]), (vec![0, 1, 2, 3], Shape::Balanced));
    assert_eq!(chosen(&fleet(&[0; 5]), 1.0, &[]).1, Shape::Balanced);
    let mut nodes = fleet(&[0, 100, 100, 100, 100, 100]);
    let mut old = input(&nodes, 1.0);
    old.table_age = Duration::from_secs(16);
    assert_eq!(select(&OpenSetSettings::default(), &old, &BTreeSet::new()).1, Shape::Blind);
    for node in &mut nodes[..4] {
        node.connections = None;
    }
    assert_eq!(chosen(&nodes, 1.0, &[]), ((0..6).collect(), Shape::Blind));
}

#[test]
fn a_node_that_did_not_report_counts_as_average() {
    let mut nodes = fleet(&[10, 10, 50, 100, 200, 190]);
    nodes[2].connections = None;
    // The mean of 510 connections on six nodes is 85: above the level, below the fullest.
    assert_eq!(chosen(&nodes, 0.0, &[]).0, [0, 1]);
    assert_eq!(chosen(&nodes, 30.0, &[]).0, [0, 1, 2]);
}

#[test]
fn full_and_retiring_nodes_are_closed_unless_nothing_else_is_left() {
    let mut nodes = fleet(&[10, 20, 100, 100, 100]);
    nodes[0].is_retiring = true;
    nodes[1].has_room = false;
    assert_eq!(chosen(&nodes, 0.0, &[]).0, [2, 3, 4]);
    for node in &mut nodes {
        node.has_room = false;
    }
    assert_eq!(chosen(&nodes, 0.0, &[]), (vec![1, 2, 3, 4], Shape::Exhausted));
    for node in &mut nodes {
        node.is_retiring = true;
    }
    assert_eq!(chosen(&nodes, 0.0, &[]), (vec![0, 1, 2, 3, 4], Shape::Exhausted));
}

#[test]
fn a_rollout_prefers_new_nodes_until_they_are_full() {
    let mut nodes = fleet(&[5, 10, 20, 100, 100, 100, 30, 40]);
    for node in &mut nodes[4..8] {
        node.is_newest = true;
    }
    // The mean is 51: two new nodes are over 1.25 times that, the other two are preferred to emptier old ones.
    assert_eq!(chosen(&nodes, 0.0, &[]).0, [6, 7]);
    // 150 a second are for three nodes: the emptiest old one helps.
    assert_eq!(chosen(&nodes, 150.0, &[]).0, [0, 6, 7]);
    for node in &mut nodes[6..8] {
        node.connections = Some(100);
    }
    assert_eq!(chosen(&nodes, 0.0, &[]).0, [0, 1]);
}

#[test]
fn one_machine_does_not_get_everything() {
    let mut nodes = fleet(&[0, 1, 50, 60, 100]);
    for (index, node) in nodes.iter_mut().enumerate() {
        node.host = Some(if index < 2 { "a" } else { "b" }.to_owned());
    }
    assert_eq!(chosen(&nodes, 0.0, &[]).0, [0, 1, 2]);
}

#[test]
fn writes_are_paced_and_a_dead_node_is_urgent() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut set = OpenSet::new(OpenSetSettings::default());
    let first = fleet(&[0, 10, 100, 100, 100]);
    let written = |decision: &Decision<usize>| match decision {
        Decision::Write { members, cause, .. } => Some((members.iter().copied().collect::<Vec<_>>(), *cause)),
        Decision::Keep | Decision::KeepForWantOfNodes => None,
    };
    let decision = set.decide(at(0), &input(&first, 0.0));
    assert_eq!(written(&decision), Some((vec![0, 1], Cause::First)));
    set.confirmed(at(0), [0, 1].into());
    assert_eq!(set.decide(at(9), &input(&first, 0.0)), Decision::Keep);
    assert_eq!(written(&set.decide(at(10), &input(&first, 0.0))), Some((vec![0, 1], Cause::Confirm)));
    set.confirmed(at(10), [0, 1].into());
    let second = fleet(&[100, 10, 100, 0, 100]);
    assert_eq!(set.decide(at(14), &input(&second, 0.0)), Decision::Keep);
    assert_eq!(written(&set.decide(at(15), &input(&second, 0.0))), Some((vec![1, 3], Cause::Changed)));
    // That write failed; meanwhile a node of the set in force dies.
    assert_eq!(written(&set.decide(at(16), &input(&second[1..], 0.0))), Some((vec![1, 3], Cause::Gone)));
    assert_eq!(set.written_at(), Some(at(10)));
    assert_eq!(set.decide(at(30), &input(&[], 0.0)), Decision::KeepForWantOfNodes);
}

#[test]
fn a_writer_that_takes_over_goes_on_from_what_is_there() {
    let mut set = OpenSet::new(OpenSetSettings::default());
    set.adopt([0, 1].into());
    let nodes = fleet(&[0, 10, 100, 100, 100]);
    let decision = set.decide(Instant::now(), &input(&nodes, 0.0));
    assert!(matches!(decision, Decision::Write { cause: Cause::Confirm, .. }), "{decision:?}");
}

fn candidates() -> impl Strategy<Value = Vec<Candidate<usize>>> {
    let candidate = (
        prop::option::weighted(0.9, 0u64..5000),
        1u32..40,
        prop::bool::weighted(0.9),
        prop::bool::ANY,
        prop::bool::weighted(0.1),
        prop::option::of(0u8..3),
    );
    prop::collection::vec(candidate, 1..80).prop_map(|all| {
        let nodes = all.into_iter().enumerate();
        nodes
            .map(|(key, (connections, weight, has_room, is_newest, is_retiring, host))| Candidate {
                key,
                connections,
                weight: f64::from(weight) / 10.0,
                has_room,
                is_newest,
                is_retiring,
                host: host.map(|host| host.to_string()),
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn the_set_is_never_empty_and_only_of_ready_nodes(
        nodes in candidates(),
        arrivals in 0.0f64..20_000.0,
        members in prop::collection::btree_set(0usize..80, 0..40),
    ) {
        let (open, shape) = select(&OpenSetSettings::default(), &input(&nodes, arrivals), &members);
        prop_assert!(!open.is_empty());
        prop_assert!(open.iter().all(|key| *key < nodes.len()));
        let usable = |node: &&Candidate<usize>| node.has_room && !node.is_retiring;
        let usable_count = nodes.iter().filter(usable).count();
        if shape != Shape::Exhausted {
            prop_assert!(open.iter().all(|key| usable(&&nodes[*key])));
            let floor = ((arrivals / 50.0).ceil() as usize).max(2).min(usable_count);
            let preferred = nodes.iter().filter(usable).filter(|node| node.is_newest).count();
            // Among preferred nodes the floor is a part of those.
            prop_assert!(open.len() >= floor.min(preferred.max(1)), "{} open of {usable_count}", open.len());
        }
    }

    /// What is open now is still open when nothing changes but the set itself.
    #[test]
    fn deciding_again_changes_nothing(nodes in candidates(), arrivals in 0.0f64..2000.0) {
        let settings = OpenSetSettings::default();
        let (mut open, _) = select(&settings, &input(&nodes, arrivals), &BTreeSet::new());
        for _ in 0..3 {
            let (again, _) = select(&settings, &input(&nodes, arrivals), &open);
            prop_assert_eq!(&again, &open);
            open = again;
        }
    }

    /// A node of the set whose load moves within the hysteresis does not leave it while no other is emptier.
    #[test]
    fn small_changes_close_nobody(counts in prop::collection::vec(200u64..2000, 4..60), wobble in 0u64..3) {
        let settings = OpenSetSettings::default();
        let nodes = fleet(&counts);
        let (open, shape) = select(&settings, &input(&nodes, 0.0), &BTreeSet::new());
        prop_assume!(shape == Shape::Level);
        let highest = open.iter().map(|key| counts[*key]).max().unwrap_or(0);
        let rest = counts.iter().enumerate().filter(|(key, _)| !open.contains(key));
        prop_assume!(rest.map(|(_, count)| *count).min().is_none_or(|least| least > highest + wobble));
        let moved: Vec<_> = counts
            .iter()
            .enumerate()
            .map(|(key, count)| if open.contains(&key) { count + wobble } else { *count })
            .collect();
        let (again, _) = select(&settings, &input(&fleet(&moved), 0.0), &open);
        prop_assert!(open.is_subset(&again), "{open:?} became {again:?}");
    }
}
