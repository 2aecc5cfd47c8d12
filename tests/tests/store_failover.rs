//! A replica takes over that lacks acknowledged publications, or data comes back from an earlier copy. Real SDK clients
//! that have seen those are told, all others go on as if nothing had happened.

use serde_json::{Value, json};
use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::front::Front;
use tests::nats;
use tests::redis::{Cluster, Watched};
use tests::trial::{CHANNELS, Report, Trial};
use tests::until_some_time;

const CHANNEL: &str = "ledger:failing";

/// Publishes that succeed before and after.
const CALM: u64 = 100;

#[tokio::test]
async fn sentinel() {
    let mut redis = Watched::start().await;
    let fleet = Fleet::start(&redis.config(""), 2).await;
    let report = fails_over(&fleet, &mut redis).await;
    assert!(!report.forgotten.is_empty(), "the load wrote what was not replicated");
    assert_eq!(report.told, report.subscriptions, "every listener saw some of that");
}

#[tokio::test]
async fn an_address_that_moves() {
    let redis = Watched::start().await;
    let front = Front::to_address(&redis.primary.address()).await;
    let fleet = Fleet::start(&redis.config_through(&front, ""), 2).await;
    let report = fails_over(&fleet, &mut (redis, front)).await;
    assert!(!report.forgotten.is_empty(), "the load wrote what was not replicated");
    assert_eq!(report.told, report.subscriptions, "every listener saw some of that");
}

#[tokio::test]
async fn cluster() {
    let redis = Cluster::start().await;
    let fleet = Fleet::start(&redis.config(""), 2).await;
    let failing = redis.primary_of(CHANNEL);
    let beside = CHANNELS.iter().filter(|channel| redis.primary_of(channel) != failing).count();
    let report = fails_over(&fleet, &mut (redis, failing)).await;
    let hit = report.subscriptions / CHANNELS.len() * (CHANNELS.len() - beside);
    assert_eq!(report.told, hit, "only those in channels of the server that failed");
}

#[tokio::test]
async fn a_volume_of_nats_that_is_restored() {
    rolls_back(nats::Version::Current).await;
}

#[tokio::test]
async fn a_volume_of_debians_nats_that_is_restored() {
    rolls_back(nats::Version::Debian).await;
}

async fn rolls_back(version: nats::Version) {
    let nats = nats::Server::start(version, nats::Storage::File);
    let fleet = Fleet::start(&nats.config(""), 2).await;
    let report = fails_over(&fleet, &mut RolledBack { nats, copy: None }).await;
    assert!(!report.forgotten.is_empty(), "the load wrote what is not in the copy");
    assert_eq!(report.told, report.subscriptions, "every listener saw some of that");
}

#[tokio::test]
async fn what_was_acknowledged_as_replicated_survives() {
    let mut redis = Watched::start().await;
    let front = Front::to_address(&redis.primary.address()).await;
    let strict = "durability = \"replicated\"\nreplicas = 1\nreplicated_timeout = \"200ms\"";
    let fleet = Fleet::start(&redis.config_through(&front, strict), 2).await;
    let trial = Trial::start(&fleet).await;
    trial.load.succeed(CALM).await;
    redis.cut_replication().await;
    trial.load.fail(20).await;
    redis.fail_over().await;
    front.lead_to_address(&redis.replica.address());
    redis.rejoin().await;
    trial.load.succeed(CALM).await;
    let report = trial.finish(&fleet[0]).await;
    report.expect_clean();
    assert_eq!(report.forgotten, [], "acknowledged is on both");
    assert!(report.failures().all(|attempt| attempt.outcome == Err(100)), "the outcome of the others is unknown");
}

/// Something with a primary to lose.
trait Failing {
    /// From now on what is written will be lost.
    async fn cut_replication(&mut self);
    /// The server ends; what takes over lacks what will be lost.
    async fn fail_over(&mut self);
}

impl Failing for Watched {
    async fn cut_replication(&mut self) {
        Watched::cut_replication(self).await;
    }

    async fn fail_over(&mut self) {
        Watched::fail_over(self).await;
    }
}

/// Who follows the primary for the gateways, as the services of cloud providers do, is the front.
impl Failing for (Watched, Front) {
    async fn cut_replication(&mut self) {
        self.0.cut_replication().await;
    }

    async fn fail_over(&mut self) {
        self.0.fail_over().await;
        self.1.lead_to_address(&self.0.replica.address());
    }
}

impl Failing for (Cluster, usize) {
    async fn cut_replication(&mut self) {
        self.0.cut_replication(self.1).await;
    }

    async fn fail_over(&mut self) {
        self.0.fail_over(self.1).await;
    }
}

/// A server whose data is replaced by a copy made earlier.
struct RolledBack {
    nats: nats::Server,
    copy: Option<nats::Copy>,
}

impl Failing for RolledBack {
    async fn cut_replication(&mut self) {
        self.nats.kill();
        self.copy = Some(self.nats.copy_data());
        self.nats.start_again();
    }

    async fn fail_over(&mut self) {
        self.nats.kill();
        self.nats.roll_back_to(self.copy.as_ref().expect("a copy was made"));
        self.nats.start_again();
    }
}

async fn fails_over(fleet: &Fleet, server: &mut impl Failing) -> Report {
    let trial = Trial::start(fleet).await;
    trial.load.succeed(CALM).await;
    let (front_of_before, front_of_after) = (Front::to(&fleet[0]).await, Front::to(&fleet[1]).await);
    let agent = &mut Agent::node().await;
    let clients = [("stays", fleet[0].url()), ("before", front_of_before.url()), ("after", front_of_after.url())];
    for (client, url) in clients {
        agent.connect(client, url).await;
        agent.subscribe(client, CHANNEL).await;
    }
    for n in 1..=10 {
        publish(fleet, n).await;
    }
    for (client, _) in clients {
        agent.take_number(client, CHANNEL, 10).await;
    }
    cut(agent, "before", &front_of_before).await;
    server.cut_replication().await;
    for n in 11..=15 {
        publish(fleet, n).await;
    }
    for client in ["stays", "after"] {
        agent.take_number(client, CHANNEL, 15).await;
    }
    cut(agent, "after", &front_of_after).await;
    trial.load.succeed(20).await;

    server.fail_over().await;
    for n in 16..=22 {
        publish(fleet, n).await;
    }
    // Both come back to the other node.
    front_of_before.lead_to(&fleet[1]);
    front_of_after.lead_to(&fleet[0]);
    assert_eq!(again(agent, "before").await, json!(true), "it saw nothing that is lost");
    assert_eq!(again(agent, "after").await, json!(false), "it saw 15, which is lost");
    assert_eq!(again(agent, "stays").await, json!(false), "it saw 15, too, and was connected all the time");
    publish(fleet, 23).await;
    for (client, _) in clients {
        agent.take_number(client, CHANNEL, 23).await;
    }
    let numbers = agent.numbers("before", CHANNEL);
    assert!(numbers.iter().copied().eq((1..=10).chain(16..=23)), "{numbers:?}");
    let numbers = agent.numbers("stays", CHANNEL);
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    assert_eq!(agent.contexts("stays", "", "connected").len(), 1, "it has been connected all the time");

    trial.load.succeed(CALM).await;
    let report = trial.finish(&fleet[0]).await;
    report.expect_clean();
    report
}

/// Publishes until it succeeds. A retry is harmless with the key.
async fn publish(fleet: &Fleet, n: u64) {
    let body = json!({ "channel": CHANNEL, "data": { "n": n }, "idempotency_key": n.to_string() });
    let node = &fleet[usize::try_from(n).expect("a small number") % fleet.nodes().len()];
    let succeeded = async || node.api().call("publish", body.clone()).await["result"].is_object();
    until_some_time("a publish to succeed", succeeded).await;
}

async fn cut(agent: &mut Agent, client: &str, front: &Front) {
    front.cut();
    agent.take_that(client, "", "connecting", |context| context["code"] != json!(0)).await;
}

/// Whether the subscription that the client made anew was recovered.
async fn again(agent: &mut Agent, client: &str) -> Value {
    let context = agent.take_from(client, CHANNEL, "subscribed").await;
    assert_eq!(context["wasRecovering"], json!(true), "{context}");
    context["recovered"].clone()
}
