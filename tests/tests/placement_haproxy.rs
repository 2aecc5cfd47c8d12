//! A fleet behind HAProxy (leastconn and agent checks) on Redis: after two nodes were added to two the old ones give half of
//! their connections away, when a node drains the others take its share, and no client misses anything.

use std::process::Command;

use serde_json::Value;
use tests::api::send;
use tests::fleet::node;
use tests::gateway::{API_KEY, Gateway, SECRET, program};
use tests::haproxy::{Haproxy, Place};
use tests::redis::{Server, VOLATILE};
use tests::until;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// How large, how fast, and how long it may take.
struct Size {
    clients: u32,
    rebalance: &'static str,
    /// Until connections are old enough and clients that came in numbers are forgotten, in seconds.
    steady: u32,
    /// Until the fleet is level, in seconds.
    within: u32,
}

/// What takes minutes takes seconds.
const SMALL: Size = Size {
    clients: 400,
    rebalance: "pause_hold = \"1s\"\n[rebalance]\nmin_age = \"1s\"\nrate = 50\nspread = \"2s\"\nbudget = \"10%\"\n",
    steady: 30,
    within: 90,
};

/// The same proportions, ten times the clients.
const LARGE: Size = Size {
    clients: 4000,
    rebalance: "[rebalance]\nmin_age = \"20s\"\nrate = 20\nspread = \"20s\"\nbudget = \"2%\"\n",
    steady: 70,
    within: 120,
};

/// As it comes.
const DEFAULTS: Size = Size { clients: 4000, rebalance: "", steady: 90, within: 300 };

#[tokio::test]
async fn a_small_fleet_behind_haproxy_becomes_level() {
    becomes_level(SMALL).await;
}

#[tokio::test]
#[ignore = "takes minutes: tests/run heavy placement"]
async fn a_large_fleet_behind_haproxy_becomes_level() {
    becomes_level(LARGE).await;
}

#[tokio::test]
#[ignore = "takes minutes: tests/run heavy placement"]
async fn a_large_fleet_behind_haproxy_becomes_level_with_defaults() {
    becomes_level(DEFAULTS).await;
}

async fn becomes_level(size: Size) {
    let redis = Server::start(VOLATILE);
    let places = Place::free(4);
    let start = |place: Place| {
        let agent = format!("\n[placement]\nagent_listen = \"127.0.0.1:{}\"\n", place.agent);
        let way = redis.config("") + &agent + size.rebalance;
        node(&way).listen(&format!("127.0.0.1:{}", place.public)).start()
    };
    let mut nodes: Vec<Gateway> = places[..2].iter().map(|place| start(*place)).collect();
    let proxy = Haproxy::start(&places);
    proxy.sends_to(&[true, true, false, false]).await;
    ready(&nodes, 2).await;

    // The scenario's command only calls this test, which starts the nodes.
    let bell = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = bell.local_addr().expect("a bound socket has an address").port();
    let ring = format!("exec bash -c ': </dev/tcp/127.0.0.1/{port}'");
    let mut grow = scaleout(&size, size.steady, &proxy, &nodes, &ring, 4);
    tokio::select! {
        rung = bell.accept() => drop(rung.expect("a connection")),
        ended = &mut grow => panic!("the scenario ended before it changed anything: {ended:?}"),
    }
    nodes.extend(places[2..].iter().map(|place| start(*place)));
    let result = judged(grow).await;
    let moves = result["moves_per_connection"].as_f64();
    assert!(result["moves"].as_u64() > Some(0) && moves < Some(1.5), "{result:#}");

    proxy.sends_to(&[true; 4]).await;
    let drain = format!("kill -TERM {}", nodes[0].pid());
    let shrink = scaleout(&size, 5, &proxy, &nodes[1..], &drain, 3);
    let result = judged(shrink).await;
    assert!(result["drained"].as_u64() > Some(0), "{result:#}");
    assert_eq!(nodes[0].exit_code().await, 0);
}

/// Waits until so many nodes are ready and know each other.
async fn ready(nodes: &[Gateway], count: u64) {
    let knows_all = async || {
        let answer = send(nodes[0].api().get(&format!("{}/v1/cluster", nodes[0].internal_http()))).await;
        answer.status == 200 && answer.json()["ready"].as_u64() == Some(count)
    };
    until("all nodes to be known", knows_all).await;
}

/// The scenario on its way: clients behind the proxy, then this command, then so many ready nodes. `nodes` tell how the fleet is.
fn scaleout(
    size: &Size,
    steady: u32,
    proxy: &Haproxy,
    nodes: &[Gateway],
    then: &str,
    expect: u32,
) -> JoinHandle<Value> {
    let mut command = Command::new(program("loadgen"));
    command.args(["scaleout", "--json", "--api-key", API_KEY, "--token-secret", SECRET, "--channel", "log:{}"]);
    command.args(["--channels", "50", "--rate", "50", "--opening", "32", "--then", then, "--settle", "2"]);
    command.args(["--url", &proxy.url(), "--expect", &expect.to_string(), "-n", &size.clients.to_string()]);
    command.args(["--steady", &steady.to_string(), "--within", &size.within.to_string(), "--stay", "5"]);
    for node in nodes {
        command.args(["--cluster", &format!("{}/v1/cluster", node.internal_http())]);
    }
    tokio::task::spawn_blocking(move || {
        let output = command.output().expect("loadgen can be started");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{error} in {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        })
    })
}

/// The result of a run in which the fleet became level in time and no client missed anything.
async fn judged(run: JoinHandle<Value>) -> Value {
    let report = run.await.expect("loadgen reports");
    let result = report["result"].clone();
    let counts = ["violations", "not_back", "other_closes"].map(|name| result[name].as_u64());
    assert_eq!(counts, [Some(0); 3], "{result:#}");
    let level = &result["level_seconds"];
    println!("level after {level} s, {} moves, {} for each", result["moves"], result["moves_per_connection"]);
    assert!(level.is_number(), "not level in time: {result:#}");
    result
}
