//! HAProxy and nginx with the configurations of `deploy/` carry the real SDK through what happens to a fleet: servers that are
//! added, reloads of the load balancer, and a node that drains. Nobody is disturbed but the clients of that node, and nobody
//! misses anything.

use std::time::Duration;

use serde_json::{Value, json};
use tests::agent::Agent;
use tests::balancer::{Balancer, Kind, Member};
use tests::client::{Client, Closed};
use tests::fleet::Fleet;
use tests::gateway::{Builder, CONFIG, Gateway, config_with};
use tests::load::Load;
use tests::ports::free_port;
use tests::redis::{Server, VOLATILE};
use tests::{until, within};

const CHANNEL: &str = "ledger:a";
const PAUSE: Duration = Duration::from_millis(20);

#[tokio::test]
async fn haproxy_carries_clients_through_scale_out_reload_and_drain() {
    carries(Kind::Haproxy).await;
}

#[tokio::test]
async fn nginx_carries_clients_through_scale_out_reload_and_drain() {
    carries(Kind::Nginx).await;
}

#[tokio::test]
async fn haproxy_sends_nobody_to_a_node_whose_agent_says_that_it_is_full() {
    const ROOM: usize = 2;
    let agent_ports = [(); 2].map(|()| free_port());
    let start = |agent_port: u16, most: usize| {
        let limits = format!("\n[limits]\nmax_connections = {most}\n");
        let placement = format!("[placement]\nagent_listen = \"127.0.0.1:{agent_port}\"\n");
        Gateway::with(&(CONFIG.to_owned() + &limits + &placement)).start()
    };
    let nodes = [start(agent_ports[0], ROOM), start(agent_ports[1], 100)];
    // The balancer would leave out one that it finds unready, and then have it begin slowly.
    for node in &nodes {
        until("a node to be ready", async || node.internal_status("/health/ready").await == 200).await;
    }
    let member = |index: usize| Member { gateway: &nodes[index], agent_port: agent_ports[index] };
    let balancer = Balancer::start(Kind::Haproxy, &[member(0), member(1)]).await;
    let connect = async |name: String| {
        let mut client = Client::open(&balancer.url()).await;
        client.connect_as(&name).await;
        client
    };
    let mut clients = Vec::new();
    for index in 0..2 * ROOM {
        clients.push(connect(format!("client-{index}")).await);
    }
    until("the full node to be out of turn", async || balancer.status(0).await.starts_with("DRAIN")).await;
    assert_eq!(nodes[0].internal_status("/health/ready").await, 200, "its health check has nothing against it");
    for index in 0..3 {
        clients.push(connect(format!("later-{index}")).await);
    }
    let mut counts = Vec::new();
    for node in &nodes {
        counts.push(node.metric("gateway_connections ").await);
    }
    assert_eq!(counts, [Some(ROOM as f64), Some((ROOM + 3) as f64)]);
    drop(clients);
    until("the node with room to be in turn again", async || balancer.status(0).await.starts_with("UP")).await;
}

async fn carries(kind: Kind) {
    let redis = Server::start(VOLATILE);
    let agent_ports = [(); 3].map(|()| free_port());
    let fleet = Fleet::of(agent_ports.map(|port| node(&redis, port).start()).into()).await;
    let member = |index: usize| Member { gateway: &fleet[index], agent_port: agent_ports[index] };
    let all = [member(0), member(1), member(2)];
    let balancer = Balancer::start(kind, &all[..2]).await;
    let mut clients = Clients::new().await;
    clients.connect(&balancer, 8).await;
    assert!(connections(&fleet).await[..2].iter().all(|count| *count >= 3), "{:?}", connections(&fleet).await);
    let mut load = Load::new();
    load.add(1, fleet[2].api(), CHANNEL, PAUSE);

    balancer.reload(&all).await;
    clients.connect(&balancer, 8).await;
    assert!(
        connections(&fleet).await[2] >= 1,
        "the server that was added has clients: {:?}",
        connections(&fleet).await
    );
    balancer.reload(&all).await;
    load.succeed(20).await;
    assert_eq!(clients.disturbed().await, Vec::<String>::new(), "reloads end no connection");

    // Clients of the processes of before and after the reloads are on the node that goes. Of three witnesses in a row, one is:
    // the SDK does not tell with which code its connection was closed.
    clients.connect(&balancer, 6).await;
    let mut witnesses = Vec::new();
    for _ in 0..3 {
        let mut witness = Client::open(&balancer.url()).await;
        witness.connect_as("witness").await;
        witnesses.push(witness);
    }
    let of_the_first = connections(&fleet).await[0] - 1;
    fleet[0].terminate();
    let [first, second, third] = &mut witnesses[..] else { unreachable!() };
    let closed = tokio::select! {
        closed = first.closed() => closed,
        closed = second.closed() => closed,
        closed = third.closed() => closed,
    };
    assert_eq!(closed, Closed { code: Some(1001), reason: "going away".to_owned() });
    // Nobody answers their pings from here on.
    drop(witnesses);
    assert_eq!(within("the end of the drain", fleet[0].exit_code()).await, 0);
    clients.back(of_the_first).await;
    let attempts = load.stop().await;
    assert!(attempts.iter().all(|attempt| attempt.outcome.is_ok()), "{attempts:?}");
    clients.have_all(attempts.len() as u64).await;
    until("all clients on the nodes that are left", async || {
        connections(&fleet).await[1..].iter().sum::<u64>() == clients.names.len() as u64
    })
    .await;
}

/// A node that tells load balancers before it goes, and moves nobody by itself.
fn node(redis: &Server, agent_port: u16) -> Builder {
    let config = config_with("client", "recovery_limit = 5000").replacen(
        "grace_accept = \"0s\"\nwindow = \"0s\"",
        "grace_accept = \"5s\"\nwindow = \"5s\"",
        1,
    );
    let placement = format!("\n[placement]\nagent_listen = \"127.0.0.1:{agent_port}\"\n[rebalance]\nenabled = false\n");
    Gateway::with(&(config + &redis.config("") + &placement))
}

/// Connections of each node; zero of one that has ended.
async fn connections(fleet: &Fleet) -> Vec<u64> {
    let mut counts = Vec::new();
    for node in fleet.nodes() {
        let count = if node.is_running() { node.metric("gateway_connections ").await } else { None };
        counts.push(count.unwrap_or_default() as u64);
    }
    counts
}

/// Subscribers of the channel.
struct Clients {
    agent: Agent,
    names: Vec<String>,
}

impl Clients {
    async fn new() -> Self {
        Self { agent: Agent::node().await, names: Vec::new() }
    }

    async fn connect(&mut self, balancer: &Balancer, count: usize) {
        for _ in 0..count {
            let name = format!("client-{}", self.names.len());
            self.agent.connect(&name, &balancer.url()).await;
            self.agent.subscribe(&name, CHANNEL).await;
            self.names.push(name);
        }
    }

    /// Those that had to connect again so far, and why.
    async fn disturbed(&mut self) -> Vec<String> {
        // What its clients have seen the agent says before it answers.
        self.agent.ok(json!({ "op": "hello" })).await;
        let connecting = |name: &String| self.agent.contexts(name, "", "connecting");
        let again = |name| connecting(name).into_iter().filter(|context| context["code"] != json!(0));
        self.names.iter().flat_map(|name| again(name).map(move |context| format!("{name}: {context}"))).collect()
    }

    /// Waits until so many have been sent away and are back with what they missed, each at its first try; the others were
    /// not disturbed.
    async fn back(&mut self, count: u64) {
        // The node may be gone before its last clients have noticed.
        let mut disturbed = Vec::new();
        until("clients to be sent away", async || {
            disturbed = self.disturbed().await;
            disturbed.len() as u64 >= count
        })
        .await;
        let sent_away: Vec<String> =
            self.names.iter().filter(|name| self.agent.contexts(name, "", "connecting").len() > 1).cloned().collect();
        assert_eq!((sent_away.len() as u64, disturbed.len() as u64), (count, count), "{disturbed:?}");
        for name in sent_away {
            let fits = |context: &Value| context["wasRecovering"] == json!(true);
            let again = self.agent.take_that(&name, CHANNEL, "subscribed", fits).await;
            assert_eq!(again["recovered"], json!(true), "{again}");
        }
        let refused = self.agent.events().iter().filter(|event| event.name == "error");
        assert_eq!(refused.map(|event| event.context.to_string()).collect::<Vec<_>>(), Vec::<String>::new());
    }

    /// Every client was given every message once, in order.
    async fn have_all(&mut self, last: u64) {
        for name in &self.names {
            self.agent.take_number(name, CHANNEL, last).await;
            let numbers = self.agent.numbers(name, CHANNEL);
            let first = numbers[0];
            assert!(numbers.iter().copied().eq(first..=last), "{name}: {numbers:?}");
        }
    }
}
