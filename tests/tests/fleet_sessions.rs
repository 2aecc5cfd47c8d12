//! Sessions that outlive a connection, over the nodes of a fleet.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::agent::Agent;
use tests::client::Client;
use tests::fleet::Fleet;
use tests::front::Front;
use tests::gateway::Gateway;
use tests::redis::{Server, VOLATILE};
use tests::store::{Kind, Store};

tests::on_every_store! {
    whoever_comes_back_on_another_node_was_never_away
    what_is_not_written_yet_is_handed_over
    whoever_does_not_come_back_leaves_once
    a_node_that_drains_or_dies_takes_no_member_along
    whoever_lingers_outlives_all_nodes
    a_client_that_says_goodbye_leaves_at_once
    two_living_clients_with_one_id_do_not_fight_for_it
    a_dead_connection_that_is_replaced_forks_nothing
    the_session_of_a_banned_user_never_resumes
    what_the_application_takes_away_is_not_restored
    another_user_finds_nothing_under_the_same_id
    javascript_keeps_its_id_on_another_node
    python_keeps_its_id_on_another_node
}

const SESSION: &str = "page-load-0001";

/// Less than a client waits for its former node to hand over what it had.
const PATIENCE: Duration = Duration::from_millis(250);

/// Longer than anybody needs to come back, also on a machine that stands still for some seconds.
const SETTINGS: &str = "lease_ttl = \"15s\"\nlease_interval = \"1s\"\n[session]\npresence_grace = \"15s\"";

/// Long enough to come back, short enough to be waited for.
const HASTY: &str = "lease_ttl = \"6s\"\nlease_interval = \"1s\"\n[session]\npresence_grace = \"6s\"";

async fn fleet(kind: Kind) -> (Store, Fleet) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(SETTINGS), 2).await;
    (store, fleet)
}

/// A connection of this user with a session, and its client id.
async fn connect(node: &Gateway, user: &str) -> (Client, Value) {
    let mut client = Client::open(&format!("{}?session={SESSION}", node.url())).await;
    let result = client.connect_as(user).await;
    (client, result)
}

/// Somebody who hears who comes and goes.
async fn watcher(node: &Gateway) -> Client {
    let mut watcher = node.connect("watcher").await;
    watcher.subscribe("lobby:a").await;
    assert_eq!(watcher.push().await["join"]["info"]["user"], json!("watcher"));
    watcher
}

/// Nothing else has happened before this.
async fn expect_nothing(watcher: &mut Client, node: &Gateway) {
    node.api().publish("lobby:a", json!("nothing")).await;
    assert_eq!(watcher.publication("lobby:a").await["data"], json!("nothing"));
}

async fn session(node: &Gateway) -> Value {
    node.api().ok("session_get", json!({ "user": "ann", "session": SESSION })).await
}

async fn until_ended(node: &Gateway) {
    tests::until("the session to be without a connection", async || session(node).await["connected"] == json!(false))
        .await;
}

async fn members(node: &Gateway) -> u64 {
    let stats = node.api().ok("presence_stats", json!({ "channel": "lobby:a" })).await;
    stats["num_clients"].as_u64().expect("a number")
}

async fn whoever_comes_back_on_another_node_was_never_away(kind: Kind) {
    let (_store, fleet) = fleet(kind).await;
    let mut watcher = watcher(&fleet[0]).await;
    let (mut ann, first) = connect(&fleet[0], "ann").await;
    ann.subscribe("lobby:a").await;
    assert_eq!(watcher.push().await["join"]["info"]["client"], first["client"]);
    assert_eq!(ann.push().await["join"]["info"]["client"], first["client"], "her own");
    let target = json!({ "user": "ann", "channel": "news:dynamic", "info": { "vip": true } });
    fleet[1].api().ok("subscribe", target).await;
    assert_eq!(ann.push().await["subscribe"]["recoverable"], json!(true));
    let state = json!({ "draft": [1, "\u{e4}"] });
    let stored = json!({ "user": "ann", "session": SESSION, "state": state, "revision": 0 });
    let written = fleet[1].api().ok("session_set", stored.clone()).await;
    assert_eq!(written, json!({ "stored": true, "exists": true, "revision": 1 }));
    assert_eq!(fleet[0].api().ok("session_set", stored).await["stored"], json!(false), "the revision has changed");

    for round in 0..3 {
        ann.vanish();
        if round == 0 {
            // What she was given within the last second is written down at the end of her connection.
            until_ended(&fleet[1]).await;
        }
        let node = &fleet[(round + 1) % 2];
        let (back, result) = connect(node, "ann").await;
        ann = back;
        assert_eq!(result["client"], first["client"], "in round {round}");
        assert!(result["subs"]["news:dynamic"].is_object(), "{result}");
        ann.subscribe("lobby:a").await;
        let found = session(&fleet[round % 2]).await;
        let expected = json!({
            "exists": true, "client": first["client"], "connected": true, "state": state, "revision": 1
        });
        assert_eq!(found, expected);
        assert_eq!(members(&fleet[0]).await, 2);
        fleet[round % 2].api().publish("news:dynamic", json!(round)).await;
        // What she is told of comings and goings is nothing.
        assert_eq!(ann.publication("news:dynamic").await["data"], json!(round));
    }
    expect_nothing(&mut watcher, &fleet[1]).await;
    let resumed = fleet[1].metric("gateway_sessions_total{result=\"resumed\"}").await;
    assert_eq!(resumed, Some(2.0));
}

/// Records are written once a second. She is on another connection before that: while the old one is thought to live, or
/// right after its end.
async fn what_is_not_written_yet_is_handed_over(kind: Kind) {
    let (_store, fleet) = fleet(kind).await;
    let (mut ann, first) = connect(&fleet[0], "ann").await;
    let (mut given, mut handed_over) = (Vec::new(), [0; 2]);
    for round in 0.. {
        let channel = format!("news:{round}");
        fleet[round % 2].api().ok("subscribe", json!({ "user": "ann", "channel": channel })).await;
        assert_eq!(ann.push().await["channel"], json!(channel));
        given.push(channel);
        let vanishes = round % 2 == 1;
        let old = if vanishes {
            ann.vanish();
            None
        } else {
            Some(ann)
        };
        let began = Instant::now();
        let (again, result) = connect(&fleet[[1, 0, 0][round % 3]], "ann").await;
        let missing = |channel: &String| !result["subs"][channel].is_object();
        assert_eq!(result["client"], first["client"], "in round {round}");
        if began.elapsed() < PATIENCE {
            let missing: Vec<_> = given.iter().filter(|channel| missing(channel)).collect();
            assert!(missing.is_empty(), "{missing:?} in round {round}, vanished: {vanishes}");
            handed_over[usize::from(vanishes)] += 1;
        }
        given.retain(|channel| !missing(channel));
        ann = again;
        drop(old);
        // A last write is under way only for a moment: it takes some rounds to come back in it.
        if round >= 15 && handed_over.iter().all(|rounds| *rounds >= 3) {
            return;
        }
        assert!(round < 60, "too slow to be sure of anything: {handed_over:?}");
    }
}

/// Her session is hers again, but its channels cannot be subscribed: what she came for is there the next time.
#[tokio::test]
async fn a_return_that_fails_takes_nothing_away() {
    let redis = Server::start(VOLATILE);
    let fleet = Fleet::start(&redis.config(SETTINGS), 2).await;
    let (mut ann, first) = connect(&fleet[0], "ann").await;
    fleet[0].api().ok("subscribe", json!({ "user": "ann", "channel": "news:dynamic" })).await;
    assert_eq!(ann.push().await["channel"], json!("news:dynamic"));
    ann.vanish();
    until_ended(&fleet[0]).await;

    // The connections for deliveries end and cannot be made again. Those for commands go on.
    let restorations = async || fleet[1].metric("gateway_backplane_restorations_total ").await;
    let before = restorations().await;
    redis.forbid("hello");
    redis.admin(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let mut early = Client::open(&format!("{}?session={SESSION}", fleet[1].url())).await;
    let token = tests::tokens::connection(json!({ "sub": "ann" }));
    early.send_json(json!({ "id": 1, "connect": { "token": token } })).await;
    let resumed = "gateway_sessions_total{result=\"resumed\"}";
    tests::until("her session to be found", async || fleet[1].metric(resumed).await == Some(1.0)).await;
    early.vanish();
    tests::until("her connection to end", async || fleet[1].metric("gateway_connections ").await == Some(0.0)).await;
    until_ended(&fleet[0]).await;

    redis.allow("hello");
    tests::until("deliveries to be back", async || restorations().await > before).await;
    let (_ann, again) = connect(&fleet[1], "ann").await;
    assert_eq!(again["client"], first["client"]);
    assert!(again["subs"]["news:dynamic"].is_object(), "{again}");
}

async fn whoever_does_not_come_back_leaves_once(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(HASTY), 2).await;
    let mut watcher = watcher(&fleet[0]).await;
    for is_killed in [false, true] {
        let (mut ann, result) = connect(&fleet[1], "ann").await;
        ann.subscribe("lobby:a").await;
        assert_eq!(watcher.push().await["join"]["info"]["client"], result["client"]);
        if is_killed {
            // The node dies with its clients: nobody has said that they may come back.
            fleet[1].kill().await;
        }
        ann.vanish();
        if !is_killed {
            assert_eq!(members(&fleet[0]).await, 2, "she lingers");
        }
        assert_eq!(watcher.push().await["leave"]["info"]["client"], result["client"]);
        assert_eq!(members(&fleet[0]).await, 1);
        expect_nothing(&mut watcher, &fleet[0]).await;
    }
}

async fn a_node_that_drains_or_dies_takes_no_member_along(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(HASTY), 3).await;
    let mut watcher = watcher(&fleet[0]).await;
    let (mut ann, first) = connect(&fleet[1], "ann").await;
    ann.subscribe("lobby:a").await;
    assert_eq!(watcher.push().await["join"]["info"]["client"], first["client"]);
    fleet[1].terminate();
    ann.expect_close(1001, "going away").await;
    ann.finish().await;
    assert_eq!(fleet[1].exit_code().await, 0);
    // Its lease is released: what is left was handed over.
    assert_eq!(members(&fleet[0]).await, 2);
    let (mut ann, again) = connect(&fleet[2], "ann").await;
    assert_eq!(again["client"], first["client"]);
    ann.subscribe("lobby:a").await;
    expect_nothing(&mut watcher, &fleet[0]).await;

    // A node that dies right after somebody has gone: another one sees to the leave.
    ann.vanish();
    until_ended(&fleet[0]).await;
    fleet[2].kill().await;
    assert_eq!(watcher.push().await["leave"]["info"]["client"], first["client"]);
    expect_nothing(&mut watcher, &fleet[0]).await;
}

/// All nodes are stopped, and others are started in their place, as in a rollout at once.
async fn whoever_lingers_outlives_all_nodes(kind: Kind) {
    let store = kind.volatile();
    // Longer than another node takes to start, and still short enough to be waited for.
    let settings = SETTINGS.replace("presence_grace = \"15s\"", "presence_grace = \"12s\"");
    let mut fleet = Fleet::start(&store.config(&settings), 1).await;
    let (mut ann, first) = connect(&fleet[0], "ann").await;
    let (mut bob, _) = connect(&fleet[0], "bob").await;
    for client in [&mut ann, &mut bob] {
        client.subscribe("lobby:a").await;
    }
    fleet[0].terminate();
    ann.vanish();
    bob.vanish();
    assert_eq!(fleet[0].exit_code().await, 0);
    fleet = Fleet::start(&store.config(&settings), 1).await;
    let mut watcher = watcher(&fleet[0]).await;
    let (mut ann, again) = connect(&fleet[0], "ann").await;
    assert_eq!(again["client"], first["client"]);
    ann.subscribe("lobby:a").await;
    let left = watcher.push().await;
    assert_eq!(left["leave"]["info"]["user"], json!("bob"), "the very next thing: {left}");
    assert_eq!(members(&fleet[0]).await, 2);
    expect_nothing(&mut watcher, &fleet[0]).await;
}

async fn a_client_that_says_goodbye_leaves_at_once(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config("[session]\npresence_grace = \"1m\""), 2).await;
    let mut watcher = watcher(&fleet[0]).await;
    let (mut ann, first) = connect(&fleet[1], "ann").await;
    ann.subscribe("lobby:a").await;
    assert_eq!(watcher.push().await["join"]["info"]["client"], first["client"]);
    ann.say_goodbye().await;
    assert_eq!(watcher.push().await["leave"]["info"]["client"], first["client"]);
    // It may change its mind: the session is still there.
    let (_ann, again) = connect(&fleet[0], "ann").await;
    assert_eq!(again["client"], first["client"]);
}

async fn two_living_clients_with_one_id_do_not_fight_for_it(kind: Kind) {
    let (_store, fleet) = fleet(kind).await;
    let (mut tab, first) = connect(&fleet[0], "ann").await;
    tab.subscribe("lobby:a").await;
    let (mut copy, second) = connect(&fleet[1], "ann").await;
    assert_eq!(second["client"], first["client"], "it takes the session over");
    copy.subscribe("bare:a").await;
    // The tab is alive: it answers the close frame, and will reconnect.
    tab.expect_close(4001, "session taken over").await;
    tab.finish().await;
    let forked = async || session(&fleet[0]).await["forked"] == json!(true);
    tests::until("the session to be marked", forked).await;
    // From now on both live side by side.
    let (mut tab, third) = connect(&fleet[0], "ann").await;
    assert_ne!(third["client"], first["client"]);
    tab.subscribe("bare:a").await;
    fleet[1].api().publish("bare:a", json!(1)).await;
    for client in [&mut tab, &mut copy] {
        assert_eq!(client.publication("bare:a").await["data"], json!(1));
    }
    assert_eq!(fleet[0].metric("gateway_sessions_total{result=\"forked\"}").await, Some(1.0));
    // Whichever of them reconnects, on whichever node, the other one stays.
    for (round, node) in [1, 0, 1].into_iter().enumerate() {
        tab.vanish();
        let (again, other) = connect(&fleet[node], "ann").await;
        assert_ne!(other["client"], first["client"]);
        tab = again;
        // Another channel each time: what was published before may still be on its way to a node that had nobody there.
        let channel = format!("bare:{round}");
        for client in [&mut tab, &mut copy] {
            client.subscribe(&channel).await;
        }
        fleet[0].api().publish(&channel, json!(node)).await;
        for client in [&mut tab, &mut copy] {
            assert_eq!(client.publication(&channel).await["data"], json!(node), "the very next thing it hears");
        }
    }
}

async fn a_dead_connection_that_is_replaced_forks_nothing(kind: Kind) {
    let (_store, fleet) = fleet(kind).await;
    let mut watcher = watcher(&fleet[0]).await;
    // It never reads, as a peer behind a cable that was cut.
    let (mut dead, first) = connect(&fleet[0], "ann").await;
    dead.subscribe("lobby:a").await;
    assert_eq!(watcher.push().await["join"]["info"]["client"], first["client"]);
    for node in [1, 0, 1] {
        let (mut ann, again) = connect(&fleet[node], "ann").await;
        assert_eq!(again["client"], first["client"]);
        ann.subscribe("lobby:a").await;
        drop(std::mem::replace(&mut dead, ann));
    }
    assert_eq!(session(&fleet[0]).await.get("forked"), None);
    expect_nothing(&mut watcher, &fleet[1]).await;
}

async fn the_session_of_a_banned_user_never_resumes(kind: Kind) {
    let (_store, fleet) = fleet(kind).await;
    let (mut ann, first) = connect(&fleet[0], "ann").await;
    fleet[1].api().ok("subscribe", json!({ "user": "ann", "channel": "news:vip" })).await;
    assert!(ann.push().await["subscribe"].is_object());
    fleet[1].api().ok("disconnect", json!({ "user": "ann" })).await;
    ann.expect_close(3503, "force disconnect").await;
    let (ann, second) = connect(&fleet[1], "ann").await;
    assert_ne!(second["client"], first["client"]);
    assert_eq!(second["subs"].get("news:vip"), None, "{second}");

    // Also when nobody was connected at the time.
    ann.vanish();
    until_ended(&fleet[0]).await;
    fleet[0].api().ok("disconnect", json!({ "user": "ann" })).await;
    let (_ann, third) = connect(&fleet[0], "ann").await;
    assert_ne!(third["client"], second["client"]);
}

async fn what_the_application_takes_away_is_not_restored(kind: Kind) {
    let (_store, fleet) = fleet(kind).await;
    let (mut ann, first) = connect(&fleet[0], "ann").await;
    for channel in ["news:a", "news:b"] {
        fleet[1].api().ok("subscribe", json!({ "user": "ann", "channel": channel })).await;
        assert_eq!(ann.push().await["channel"], json!(channel));
    }
    fleet[1].api().ok("unsubscribe", json!({ "user": "ann", "channel": "news:a" })).await;
    assert_eq!(ann.push().await["unsubscribe"]["code"], json!(2000));
    // Within a second her node says again what she may have.
    let authorised = async || session(&fleet[1]).await.get("revoked").is_none();
    tests::until("the session to be authorised again", authorised).await;
    ann.vanish();
    let (_ann, again) = connect(&fleet[1], "ann").await;
    assert_eq!(again["client"], first["client"]);
    assert_eq!(again["subs"].get("news:a"), None, "{again}");
    assert!(again["subs"]["news:b"].is_object(), "{again}");
}

async fn another_user_finds_nothing_under_the_same_id(kind: Kind) {
    let (_store, fleet) = fleet(kind).await;
    let (_ann, first) = connect(&fleet[0], "ann").await;
    let (_bob, second) = connect(&fleet[1], "bob").await;
    assert_ne!(first["client"], second["client"]);
    let found = fleet[0].api().ok("session_get", json!({ "user": "eve", "session": SESSION })).await;
    assert_eq!(found, json!({ "exists": false }));
    assert_eq!(fleet[0].api().error("session_get", json!({ "user": "ann", "session": "short" })).await, 107);
    let large = json!({ "user": "ann", "session": SESSION, "state": "x".repeat(16 * 1024) });
    assert_eq!(fleet[0].api().error("session_set", large).await, 107);
}

async fn javascript_keeps_its_id_on_another_node(kind: Kind) {
    moves(Agent::node().await, kind).await;
}

async fn python_keeps_its_id_on_another_node(kind: Kind) {
    moves(Agent::python().await, kind).await;
}

/// The real SDK, cut off and drained.
async fn moves(mut agent: Agent, kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(SETTINGS), 3).await;
    let mut watcher = watcher(&fleet[2]).await;
    let front = Front::to(&fleet[0]).await;
    let connected = agent.connect("ann", &format!("{}?session={SESSION}", front.url())).await;
    agent.subscribe("ann", "lobby:a").await;
    let join = watcher.push().await;
    assert_eq!(join["join"]["info"]["client"], connected["client"], "{join}");

    front.cut();
    agent.take_that("ann", "", "connecting", |context| context["code"] != json!(0)).await;
    front.lead_to(&fleet[1]);
    let again = agent.take("ann", "connected").await;
    assert_eq!(again["client"], connected["client"]);
    agent.take_from("ann", "lobby:a", "subscribed").await;

    front.lead_to(&fleet[2]);
    fleet[1].terminate();
    let again = agent.take("ann", "connected").await;
    assert_eq!(again["client"], connected["client"]);
    agent.take_from("ann", "lobby:a", "subscribed").await;
    expect_nothing(&mut watcher, &fleet[0]).await;
}
