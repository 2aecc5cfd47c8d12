//! Nodes that go: the members of one that dies without a word leave, once each, and clients that come back elsewhere are
//! given what they missed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::client::Client;
use tests::fleet::Fleet;
use tests::store::Kind;
use tests::trial::Trial;

tests::on_every_store! {
    its_members_leave_exactly_once_in_time
    clients_of_nodes_that_die_or_drain_under_load_miss_nothing
}

/// Longer than a machine stands still: nobody else is to be taken for dead.
const LEASE: Duration = Duration::from_secs(6);

/// What the presence of a channel may be behind, beyond the lease.
const SLACK: Duration = Duration::from_secs(10);

const CHANNELS: [&str; 2] = ["lobby:a", "lobby:b"];

const MEMBERS: usize = 5;

async fn its_members_leave_exactly_once_in_time(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config("lease_ttl = \"6s\"\nlease_interval = \"1s\""), 4).await;
    let mut watchers = Vec::new();
    for node in &fleet.nodes()[..2] {
        let mut watcher = node.connect("watcher").await;
        for channel in CHANNELS {
            watcher.subscribe(channel).await;
        }
        watchers.push(watcher);
    }
    let mut members = Vec::new();
    for number in 0..MEMBERS {
        let mut member = fleet[2].connect(&format!("member-{number}")).await;
        for channel in CHANNELS {
            member.subscribe(channel).await;
        }
        members.push(member);
    }
    let mut late = fleet[3].connect("late").await;
    late.subscribe(CHANNELS[0]).await;

    let died = Instant::now();
    fleet[2].kill().await;
    let mut leaves = Vec::new();
    for watcher in &mut watchers {
        let mut counts = BTreeMap::new();
        while counts.values().sum::<usize>() < CHANNELS.len() * MEMBERS {
            next_leave(watcher, &mut counts).await;
        }
        assert!(died.elapsed() < LEASE + SLACK, "the leaves took {:?}", died.elapsed());
        leaves.push(counts);
    }
    println!("all have left after {:?}", died.elapsed());
    // The watchers themselves, and the one on the other node, are still there.
    for (channel, present) in CHANNELS.into_iter().zip([3, 2]) {
        let stats = fleet[0].api().ok("presence_stats", json!({ "channel": channel })).await;
        assert_eq!(stats["num_clients"], json!(present), "{channel}: {stats}");
    }

    // By the time another dead node's member has left, every survivor has looked at the first one's lease again.
    fleet[3].kill().await;
    for (watcher, counts) in watchers.iter_mut().zip(&mut leaves) {
        while !counts.keys().any(|(_, user)| user == "late") {
            next_leave(watcher, counts).await;
        }
        assert_eq!(counts.len(), CHANNELS.len() * MEMBERS + 1, "{counts:?}");
        assert!(counts.values().all(|count| *count == 1), "exactly once: {counts:?}");
        let reply = watcher.call(json!({ "presence_stats": { "channel": "lobby:a" } })).await;
        assert!(reply["error"]["code"] == json!(103), "still connected: {reply}");
    }
    fleet[1].api().publish("lobby:a", json!("still here")).await;
    for watcher in &mut watchers {
        assert_eq!(watcher.publication("lobby:a").await["data"], json!("still here"), "the very next thing");
    }
}

async fn clients_of_nodes_that_die_or_drain_under_load_miss_nothing(kind: Kind) {
    const CALM: u64 = 50;
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 3).await;
    let mut trial = Trial::start_publishing_on(&fleet, &fleet.nodes()[2..]).await;
    trial.load.succeed(CALM).await;
    trial.fronts[0].lead_to(&fleet[1]);
    fleet[0].kill().await;
    trial.reconnected(0).await;
    trial.load.succeed(CALM).await;
    for front in &trial.fronts[..2] {
        front.lead_to(&fleet[2]);
    }
    fleet[1].terminate();
    assert_eq!(fleet[1].exit_code().await, 0, "drained");
    trial.load.succeed(CALM).await;
    let report = trial.finish(&fleet[2]).await;
    report.expect_truthful();
    report.expect_kept();
    // Two listeners came from the first node to the second and from there with its own to the third.
    assert!(report.disconnects.len() >= 6, "{:?}", report.disconnects);
}

/// Counts the next leave that this client is told, passing over joins.
async fn next_leave(watcher: &mut Client, counts: &mut BTreeMap<(String, String), usize>) {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    loop {
        let push = watcher.push().await;
        if push["leave"].is_object() {
            *counts.entry((text(&push["channel"]), text(&push["leave"]["info"]["user"]))).or_default() += 1;
            return;
        }
        assert!(push["join"].is_object(), "{push}");
    }
}
