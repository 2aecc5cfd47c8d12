use super::*;

fn node(name: &str, connections: u64) -> Node {
    Node {
        id: format!("id-of-{name}"),
        name: name.to_owned(),
        revision: String::new(),
        state: "ready".to_owned(),
        connections,
        load: connections as f64,
        accepts: 3.21,
        refused: 0.0,
        moved: 1.5,
        room: Some(19_000),
        age_ms: 420,
    }
}

/// Four nodes, one of them out of level and one on its way out.
fn four() -> Cluster {
    let drains = Node { state: "draining".to_owned(), room: None, age_ms: 12_700, ..node("pod-2", 0) };
    Cluster {
        connections: 3000,
        ready: 3,
        draining: 1,
        starting: 0,
        mean: 1000.0,
        max: 1800.4,
        imbalance: 1.8,
        level: 64.26,
        arrivals: 12.34,
        spare_accepts: Some(1990.5),
        budget: 12.0,
        pauses: Vec::new(),
        explanation: Some("the fullest node has 1.80 times its share".to_owned()),
        open_set: false,
        placement_age_ms: None,
        term: 1,
        sequence: 7,
        age_ms: 312,
        asked: "id-of-pod-1".to_owned(),
        nodes: Some(vec![node("pod-0", 1000), node("pod-1", 2), drains, node("pod-3", 1800)]),
    }
}

#[track_caller]
fn check(cluster: &Cluster, (columns, rows): (usize, usize), expected: &str) {
    let shown = lines(cluster, None, Size { columns, rows });
    assert!(shown.len() <= rows && shown.iter().all(|line| width(line) <= columns), "{shown:#?}");
    let shown = shown.join("\n");
    assert_eq!(shown, expected.trim_matches('\n'), "\n{shown}\n");
}

#[test]
fn everything_is_shown_where_there_is_room() {
    check(
        &four(),
        (110, 40),
        "
3,000 connections on 4 nodes: 3 ready, 1 draining, 0 starting
mean 1,000   max 1,800   imbalance 1.80   level 64.3
arrivals 12.3/s   spare accepts 1990.5/s   budget 12.0/s   open set not in use
digest 7 of term 1, 0.3 s old, from pod-1
the fullest node has 1.80 times its share

NODE   STATE                                CONNECTIONS  OF MEAN  ACCEPTS/S  MOVED/S  REFUSED/S    ROOM    AGE
pod-0  ready     ##############                   1,000    100 %        3.2      1.5        0.0  19,000  0.4 s
pod-1  ready     #                                    2      0 %        3.2      1.5        0.0  19,000  0.4 s
pod-2  draining                                       0      0 %        3.2      1.5        0.0       -   12 s
pod-3  ready     #########################        1,800    180 %        3.2      1.5        0.0  19,000  0.4 s
",
    );
}

#[test]
fn a_narrow_window_keeps_what_says_most() {
    check(
        &four(),
        (60, 40),
        "
3,000 connections on 4 nodes: 3 ready, 1 draining, 0
starting
mean 1,000   max 1,800   imbalance 1.80   level 64.3
arrivals 12.3/s   spare accepts 1990.5/s   budget 12.0/s
open set not in use
digest 7 of term 1, 0.3 s old, from pod-1
the fullest node has 1.80 times its share

NODE   STATE                   CONNECTIONS  OF MEAN  MOVED/S
pod-0  ready     #######             1,000    100 %      1.5
pod-1  ready     #                       2      0 %      1.5
pod-2  draining                          0      0 %      1.5
pod-3  ready     ############        1,800    180 %      1.5
",
    );
    check(
        &four(),
        (24, 40),
        "
3,000 connections on 4
nodes: 3 ready, 1
draining, 0 starting
mean 1,000   max 1,800
imbalance 1.80   level
64.3
arrivals 12.3/s   spare
accepts 1990.5/s
budget 12.0/s   open
set not in use
digest 7 of term 1, 0.3
s old, from pod-1
the fullest node has
1.80 times its share

NODE   CONNECTIONS
pod-0        1,000
pod-1            2
pod-2            0
pod-3        1,800
",
    );
}

#[test]
fn of_many_nodes_the_fullest_and_the_emptiest_are_shown() {
    let nodes = (0..1000).map(|number| node(&format!("pod-{number}"), (number * 7) % 1000)).collect();
    let cluster = Cluster { nodes: Some(nodes), explanation: None, ..four() };
    check(
        &cluster,
        (80, 12),
        "
3,000 connections on 4 nodes: 3 ready, 1 draining, 0 starting
mean 1,000   max 1,800   imbalance 1.80   level 64.3
arrivals 12.3/s   spare accepts 1990.5/s   budget 12.0/s   open set not in use
digest 7 of term 1, 0.3 s old, from pod-1

NODE     STATE               CONNECTIONS  OF MEAN  ACCEPTS/S  MOVED/S  REFUSED/S
pod-857  ready  ###########          999    100 %        3.2      1.5        0.0
pod-714  ready  ###########          998    100 %        3.2      1.5        0.0
pod-571  ready  ###########          997    100 %        3.2      1.5        0.0
... 995 more
pod-143  ready  #                      1      0 %        3.2      1.5        0.0
pod-0    ready                         0      0 %        3.2      1.5        0.0
",
    );
}

#[test]
fn why_nothing_moves_and_whence_the_open_set_are_told() {
    let mut cluster = four();
    cluster.pauses = vec!["rollout".to_owned(), "no_room".to_owned()];
    (cluster.open_set, cluster.placement_age_ms, cluster.spare_accepts) = (true, Some(3200), None);
    cluster.nodes = None;
    let shown = lines(&cluster, Some("http://127.0.0.1:9000 cannot be asked: gone"), Size { columns: 200, rows: 40 });
    let expected = [
        "3,000 connections on 4 nodes: 3 ready, 1 draining, 0 starting",
        "mean 1,000   max 1,800   imbalance 1.80   level 64.3",
        "arrivals 12.3/s   spare accepts unknown   budget 12.0/s   open set written 3.2 s ago",
        "digest 7 of term 1, 0.3 s old, from id-of-pod-1",
        "paused: rollout, no room",
        "the fullest node has 1.80 times its share",
        "NOT NEW: http://127.0.0.1:9000 cannot be asked: gone",
        "",
        "the table of nodes could not be read",
    ];
    assert_eq!(shown, expected);
}

#[test]
fn no_text_of_a_node_reaches_the_terminal_as_a_command() {
    let evil = "\u{1b}[2Jx\u{9b}31m\r\n\t\u{202e}\u{200b}\u{7f}y\u{8}";
    let mut cluster = four();
    let named = Node { revision: evil.to_owned(), state: evil.to_owned(), id: evil.to_owned(), ..node(evil, 5) };
    (cluster.nodes, cluster.asked) = (Some(vec![named]), evil.to_owned());
    (cluster.pauses, cluster.explanation) = (vec![evil.to_owned()], Some(evil.to_owned()));
    let shown = lines(&cluster, Some(evil), Size { columns: 200, rows: 40 }).concat();
    assert_eq!(shown.matches("[2Jx31my").count(), 7, "{shown}");
    assert!(shown.chars().all(|character| character.width().is_some_and(|width| width > 0)), "{shown:?}");
}

#[test]
fn of_a_long_name_the_end_tells_nodes_apart() {
    let long = Node { id: String::new(), ..node(&format!("{}-x7k2p", "gateway".repeat(9)), 5) };
    assert_eq!(name(&long), "..ewaygatewaygatewaygatewaygateway-x7k2p".to_owned());
    assert_eq!(width(&name(&long)), NAME_WIDTH);
    assert_eq!(name(&Node { name: String::new(), ..node("a", 1) }), "id-of-a");
    assert_eq!(cut("\u{4e2d}\u{6587}x", 3), "\u{4e2d}", "a wide character takes two columns");
}

#[test]
fn a_bar_shows_every_node_that_has_a_connection() {
    assert_eq!([0, 1, 500, 1000].map(|connections| bar(connections, 1000, 10).len()), [0, 1, 5, 10]);
    assert_eq!(bar(0, 0, 10), "");
}
