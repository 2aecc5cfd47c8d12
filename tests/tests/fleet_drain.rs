//! Clients of a node that is drained: unmodified SDKs follow to another node while publishing goes on, and miss nothing.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::agent::Agent;
use tests::api::send;
use tests::fleet::Fleet;
use tests::front::Front;
use tests::gateway::{Gateway, config_with};
use tests::store::Kind;
use tests::{until, within};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

tests::on_every_store! {
    javascript_follows_a_drain
    python_follows_a_drain
}

const CHANNEL: &str = "ledger:a";

/// Half of them have a session.
const CLIENTS: usize = 20;

/// Long enough for publications between the closes.
const WINDOW: &str = "window = \"2s\"";

/// Publications before the drain and after it.
const CALM: u64 = 20;

async fn javascript_follows_a_drain(kind: Kind) {
    follows(kind, Agent::node().await).await;
}

async fn python_follows_a_drain(kind: Kind) {
    follows(kind, Agent::python().await).await;
}

/// The other node can accept two connections a second, of which a drain may claim one: it takes longer than its window. What
/// the others can accept without this node is known from the second digest on that comes after its beginning, at the latest.
#[tokio::test]
async fn a_drain_is_slower_where_others_are_short_of_capacity_and_there_is_time() {
    let store = Kind::Redis.volatile();
    let window = Duration::from_secs(6);
    let time = config_with("drain", "deadline = \"60s\"").replacen("window = \"0s\"", "window = \"6s\"", 1);
    let leaving = Gateway::with(&(time + &store.config(""))).start();
    let slow = format!("{}[admission]\nrate = 2\nramp = \"0s\"\n", store.config(""));
    let slow = Gateway::with(&format!("shards = 1\n{}", config_with("client", "") + &slow)).start();
    let fleet = Fleet::of(vec![leaving, slow]).await;
    let cluster = format!("{}/v1/cluster", fleet[0].internal_http());
    until("a digest of both", async || {
        let answer = send(fleet[0].api().get(&cluster)).await;
        answer.status == 200 && answer.json()["ready"] == 2
    })
    .await;
    let mut clients = JoinSet::new();
    for n in 0..18 {
        let mut client = fleet[0].connect(&format!("user-{n}")).await;
        clients.spawn(async move { (client.closed().await.code, Instant::now()) });
    }
    fleet[0].terminate();
    let began = Instant::now();
    let mut times = Vec::new();
    while let Some(closed) = within("a close", clients.join_next()).await {
        let (code, at) = closed.expect("the client was closed");
        assert_eq!(code, Some(1001));
        times.push(at.duration_since(began));
    }
    assert_eq!(fleet[0].exit_code().await, 0);
    let last = times[times.len() - 1];
    // By the window's pace of three a second half of them are closed before that.
    assert!(last > window + Duration::from_secs(2), "as the window wants, they would be gone after 6 s: {times:?}");
    assert!(last < Duration::from_secs(40), "{times:?}");
    let log = fleet[0].log();
    assert!(log.contains("the pace is set by what the other nodes can accept"), "{log}");
}

fn node(way: &str) -> Gateway {
    let config = config_with("client", "recovery_limit = 5000").replacen("window = \"0s\"", WINDOW, 1);
    assert!(config.contains(WINDOW), "the configuration has a window to replace");
    Gateway::with(&(config + way)).start()
}

/// Numbers one after another, from 1 on.
struct Publisher {
    running: JoinHandle<()>,
    stop: watch::Sender<bool>,
    published: watch::Receiver<u64>,
}

impl Publisher {
    fn start(node: &Gateway) -> Self {
        let (api, stop, (sender, published)) = (node.api(), watch::Sender::new(false), watch::channel(0));
        let stopped = stop.subscribe();
        let running = tokio::spawn(async move {
            for n in 1.. {
                if *stopped.borrow() {
                    return;
                }
                api.publish(CHANNEL, json!({ "n": n })).await;
                sender.send_replace(n);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self { running, stop, published }
    }

    /// Waits until so many more are published.
    async fn more(&mut self, count: u64) {
        let target = *self.published.borrow() + count;
        let reached = tests::within("publications", self.published.wait_for(|n| *n >= target)).await;
        drop(reached.expect("the publisher is at work"));
    }

    /// Ends; returns the last number.
    async fn stop(self) -> u64 {
        self.stop.send_replace(true);
        tests::within("the end of the publisher", self.running).await.expect("every publish succeeds");
        *self.published.borrow()
    }
}

async fn follows(kind: Kind, mut agent: Agent) {
    let store = kind.volatile();
    // Every publish is to succeed, also where the machine stands still for a moment.
    let way = store.config("command_timeout = \"10s\"");
    let fleet = Fleet::of(vec![node(&way), node(&way)]).await;
    let front = Front::to(&fleet[0]).await;
    let names: Vec<_> = (0..CLIENTS).map(|number| format!("client-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        let session = if number % 2 == 0 { format!("?session=page-load-{number:04}") } else { String::new() };
        agent.connect(name, &format!("{}{session}", front.url())).await;
        agent.subscribe(name, CHANNEL).await;
    }
    let mut publisher = Publisher::start(&fleet[1]);
    publisher.more(CALM).await;

    front.lead_to(&fleet[1]);
    fleet[0].terminate();
    for name in &names {
        let lost = agent.take_that(name, "", "connecting", |context| context["code"] != json!(0)).await;
        assert_eq!((&lost["code"], &lost["reason"]), (&json!(1), &json!("transport closed")), "{name}: {lost}");
        agent.take(name, "connected").await;
        let again = agent.take_from(name, CHANNEL, "subscribed").await;
        assert_eq!((&again["wasRecovering"], &again["recovered"]), (&json!(true), &json!(true)), "{name}: {again}");
    }
    assert_eq!(fleet[0].exit_code().await, 0, "drained");
    publisher.more(CALM).await;
    let last = publisher.stop().await;

    for name in &names {
        agent.take_number(name, CHANNEL, last).await;
        let numbers = agent.numbers(name, CHANNEL);
        assert!(numbers.iter().copied().eq(1..=last), "nothing lost, repeated or out of order for {name}: {numbers:?}");
    }
    until("the old connections to be over", async || front.closes().len() >= CLIENTS).await;
    assert_eq!(front.closes(), [Some(1001); CLIENTS], "nobody was lost in another way, or twice");
    assert_eq!(fleet[1].metric("gateway_connections ").await, Some(CLIENTS as f64));
}
