//! The open set end to end without a cluster: gateways as pods, each on a machine of its own (a network namespace), a small
//! API server, and clients that know nothing but the address of the Service, which the kernel's rules lead to the pods that
//! the EndpointSlices list, as kube-proxy's would.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use apiserver::proxy::Proxy;
use apiserver::{Call, Options};
use serde_json::{Value, json};
use tests::client::Client;
use tests::gateway::{API_KEY, Gateway, SECRET, program};
use tests::network::{HERE, Machine, Network};
use tests::pods::{NAMESPACE, PORT, Pods, SERVICE, SERVICE_PORT, rebalancing, writer};
use tests::redis::{Server, VOLATILE};
use tests::{PATIENCE, until, until_some_time, within};
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// The address of the Service. No machine has it.
const FRONT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), SERVICE_PORT);

/// Where clients are.
const CLIENT_MACHINE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);

/// Where gateways answer operators.
const INTERNAL_PORT: u16 = 9000;

/// Clients of the load. The kernel draws for each of them which of the open pods it gets: with 400 for each of four pods
/// that is less than 1.10 by far.
const CLIENTS: u64 = 1600;

/// How many times the mean the fullest pod may have when the fleet has become larger.
const LEVEL: f64 = 1.10;

/// The same when something else has happened: with 400 connections for each pod, that much is chance, and left alone.
const CHANCE: f64 = 1.15;

/// How often a connection that had to move may be moved, on average.
const MOVES: f64 = 1.2;

/// How often pods are asked what they have.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// What takes minutes takes seconds. The last ones go slowly all the same: whoever is on the way between two pods is not
/// counted, and with many of them all pods seem to have too many.
const QUICK: &str =
    "[placement]\npause_hold = \"1s\"\n[rebalance]\nmin_age = \"1s\"\nrate = 30\nspread = \"6s\"\nbudget = \"10%\"\n";

#[tokio::test]
async fn pods_that_come_fill_up_and_one_that_goes_empties_through_the_address_of_the_service() {
    let Some(mut scene) = Scene::of_two_pods().await else { return };
    let load = Load::start(&scene, Duration::from_secs(3));
    scene.until_level(CHANCE, CLIENTS..=CLIENTS).await;
    scene.scale_out().await;
    let drained = scene.drain(0).await;
    let result = load.result().await;
    assert_eq!(result["other_closes"], 0, "{result:#}");
    assert_eq!(result["drained"], drained, "{result:#}");
}

#[tokio::test]
#[ignore = "takes minutes: tests/run heavy placement"]
async fn what_fails_on_the_way_costs_nobody_a_message() {
    let Some(mut scene) = Scene::of_two_pods().await else { return };
    // When those in charge are killed, there are three ready pods for a moment, as at the end.
    let load = Load::start(&scene, Duration::from_secs(30));
    scene.until_level(CHANCE, CLIENTS..=CLIENTS).await;
    scene.scale_out().await;
    scene.outage_of_the_api_server().await;
    let killed = scene.death_of_those_in_charge().await;
    let drained = scene.drain(3).await;
    let result = load.result().await;
    assert_eq!(result["drained"], drained, "{result:#}");
    assert!(result["other_closes"].as_u64() <= Some(killed), "{killed} were on pods that were killed: {result:#}");
}

/// A pod: what is in it ends before its machine.
struct Pod {
    gateway: Gateway,
    machine: Machine,
}

impl Pod {
    async fn count(&self, metric: &str) -> u64 {
        // A rate may be less than one.
        self.gateway.metric(metric).await.unwrap_or_default().ceil() as u64
    }
}

/// Everything there is; whatever is on the network ends before it.
struct Scene {
    pods: BTreeMap<usize, Pod>,
    proxy: Proxy,
    cluster: Pods,
    redis: Server,
    client: Machine,
    network: Network,
}

impl Scene {
    /// Two pods that the address of the Service leads to. Nothing, and a word why, where that is not possible.
    async fn of_two_pods() -> Option<Self> {
        let network = match Network::make() {
            Ok(network) => network,
            Err(why) => {
                // Not by `eprintln!`, which shows only when a test fails.
                let said =
                    format!("skipped: network namespaces are not permitted here, or nft is not installed: {why}\n");
                std::io::stderr().write_all(said.as_bytes()).expect("somewhere to say it");
                return None;
            }
        };
        let client = network.machine(CLIENT_MACHINE);
        let redis = Server::start_at(HERE, VOLATILE);
        let cluster = Pods::start(Options { address: HERE.into(), ..Options::default() }).await;
        let proxy = Proxy::start(cluster.server.clone(), NAMESPACE, SERVICE, client.netns(), FRONT);
        let mut scene = Self { pods: BTreeMap::new(), proxy, cluster, redis, client, network };
        for number in 0..2 {
            scene.add_pod(number).await;
        }
        scene.until_open([0, 1]).await;
        Some(scene)
    }

    async fn add_pod(&mut self, number: usize) {
        let machine = self.network.machine(address(number));
        let gateway = self.start_gateway(number, &machine);
        until_ready(&gateway).await;
        self.cluster.add(number, machine.address());
        self.pods.insert(number, Pod { gateway, machine });
    }

    fn start_gateway(&self, number: usize, machine: &Machine) -> Gateway {
        let at = |port: u16| format!("{}:{port}", machine.address());
        let builder = self.cluster.gateway(number, &(self.redis.config("") + QUICK));
        let builder = builder.listen(&at(PORT)).internal_listen(&at(INTERNAL_PORT));
        // The first is the default, and long enough for another one to write the slices if this one did.
        let builder = builder.env("EVENKEEL_DRAIN__GRACE_ACCEPT", "5s").env("EVENKEEL_DRAIN__WINDOW", "5s");
        // Some clients are held and not read from, so they answer no ping.
        let builder = builder.env("EVENKEEL_CLIENT__PING_INTERVAL", "10m");
        machine.inside(|| builder.start())
    }

    /// Waits until new connections go to these pods and to no others: by the slices, and by the rules of the kernel.
    async fn until_open<const N: usize>(&self, numbers: [usize; N]) {
        self.cluster.until_published(numbers).await;
        let endpoints = numbers.map(|number| SocketAddrV4::new(address(number), PORT));
        within("rules that follow the slices", self.proxy.until_sends_to(&BTreeSet::from(endpoints))).await;
    }

    /// Waits until there are so many connections on all pods together, none is being moved, and the fullest pod has at most
    /// so many times the mean.
    async fn until_level(&self, limit: f64, connections: RangeInclusive<u64>) {
        let begun = Instant::now();
        loop {
            let loads = self.counts("gateway_connections ").await;
            let total: u64 = loads.values().sum();
            let mean = total as f64 / loads.len() as f64;
            let is_level = loads.values().all(|load| *load as f64 <= limit * mean);
            if connections.contains(&total) && is_level && self.total("gateway_move_rate ").await == 0 {
                println!("level after {:.1} s: {loads:?}", begun.elapsed().as_secs_f64());
                return;
            }
            // After a death clients come back late, and only then they are moved.
            let is_late = begun.elapsed() > 2 * PATIENCE;
            assert!(!is_late, "not level with {connections:?}: {loads:?}, {:#?}", self.reasons().await);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Two pods come: new connections go to them and to no others, and the old ones give half of theirs away. On the way
    /// somebody changes the slice just before it is written.
    async fn scale_out(&mut self) {
        let (before, moved) = (self.counts("gateway_connections ").await, self.moves().await);
        let writer = self.writer().await;
        self.cluster.server.before_next("patch", "endpointslices", |server| {
            server.change("endpointslices", NAMESPACE, "ws-open-ipv4-0", |slice| {
                slice["endpoints"].as_array_mut().expect("a list").truncate(1);
            });
        });
        for number in 2..4 {
            self.add_pod(number).await;
        }
        self.until_open([2, 3]).await;
        let is_refused = |call: &Call| call.resource == "endpointslices" && call.code == 409;
        assert!(self.cluster.server.calls().iter().any(is_refused), "what was decided from an older slice is refused");
        let conflicts = "gateway_openset_writes_total{result=\"conflict\"}";
        until("the conflict to be counted", async || self.pods[&writer].count(conflicts).await > 0).await;

        let established = "gateway_connects_total{result=\"established\"}";
        let earlier = self.counts(established).await;
        let newcomers = self.newcomers(40, FRONT).await;
        let later = self.counts(established).await;
        let gained = |number: usize| later[&number] - earlier[&number];
        assert_eq!([gained(0), gained(1)], [0, 0], "all go to the pods that are open");
        assert!(gained(2) > 0 && gained(3) > 0, "to both of them: {earlier:?}, {later:?}");
        drop(newcomers);

        self.until_level(LEVEL, CLIENTS..=CLIENTS).await;
        let share = CLIENTS as f64 / self.pods.len() as f64;
        let had_to_move: f64 = before.values().map(|load| (*load as f64 - share).max(0.0)).sum();
        let moves = (self.moves().await - moved) as f64 / had_to_move;
        println!("{moves:.2} moves for each connection that had to move");
        assert!(moves <= MOVES, "{moves:.2} moves for each connection that had to move");
    }

    /// This pod is deleted. Returns how many connections it had.
    async fn drain(&mut self, number: usize) -> u64 {
        let pod = self.pods.remove(&number).expect("a pod that is there");
        let had = pod.count("gateway_connections ").await;
        self.cluster.terminate(number);
        pod.gateway.terminate();
        self.cluster.until_published(self.pods.keys().copied()).await;
        assert_eq!(pod.gateway.exit_code().await, 0);
        self.cluster.remove(number);
        self.until_level(CHANCE, CLIENTS..=CLIENTS).await;
        had
    }

    /// The API server goes away and comes back: meanwhile everything stays as it is, and nothing is moved.
    async fn outage_of_the_api_server(&mut self) {
        self.cluster.server.kill();
        let slices = self.cluster.slices();
        // For so long connections may still be moved.
        until_some_time("the last write to be 30 s old", async || {
            self.total("gateway_openset_age_seconds ").await >= 4 * 31
        })
        .await;
        // They go past the Service, so one pod has too many.
        let crowd = self.newcomers(200, SocketAddrV4::new(address(2), PORT)).await;
        until_some_time("the fullest pod to say why it moves nobody", async || {
            rebalancing(&self.pods[&2].gateway).await.starts_with("not moved: the open set was last written")
        })
        .await;
        let moved = self.moves().await;
        for pod in self.pods.values() {
            assert_eq!(pod.gateway.internal_status("/health/ready").await, 200);
        }
        let newcomers = self.newcomers(20, FRONT).await;
        drop(newcomers);
        assert_eq!(self.cluster.slices(), slices);
        assert_eq!(self.moves().await, moved);
        self.cluster.server.revive().await;
        until_some_time("connections to be moved again", async || self.moves().await > moved).await;
        self.until_level(CHANCE, CLIENTS..=CLIENTS + crowd.len() as u64).await;
        drop(crowd);
        self.until_level(CHANCE, CLIENTS..=CLIENTS).await;
    }

    /// The pod that writes the slices and the one that coordinates the fleet, if that is another one, are killed and
    /// started again, which makes them new ones. Returns how many connections they had.
    async fn death_of_those_in_charge(&mut self) -> u64 {
        let lease = self.lease();
        let writer = self.writer().await;
        let coordinator = self.coordinator().expect("one coordinates");
        let mut had = 0;
        for number in BTreeSet::from([writer, coordinator]) {
            let pod = &self.pods[&number];
            had += pod.count("gateway_connections ").await;
            pod.gateway.kill().await;
            self.cluster.set_ready(number, false);
            let gateway = self.start_gateway(number, &pod.machine);
            until_ready(&gateway).await;
            self.pods.get_mut(&number).expect("it is there").gateway = gateway;
            self.cluster.set_ready(number, true);
        }
        until_some_time("another holder of the lease", async || {
            let now = self.lease();
            now.0 != lease.0 && now.1 > lease.1
        })
        .await;
        self.writer().await;
        self.until_level(CHANCE, CLIENTS..=CLIENTS).await;
        had
    }

    /// So many clients that go to this address.
    async fn newcomers(&self, count: usize, to: SocketAddrV4) -> Vec<Client> {
        let mut clients = Vec::new();
        for user in 0..count {
            let stream = self.client.connect(to).expect("somebody who accepts");
            let request = format!("ws://{to}/connection/websocket").into_client_request().expect("a URL");
            let (mut client, _) = Client::open_on(stream, request).await;
            client.connect_as(&format!("newcomer-{user}")).await;
            client.subscribe("log:0").await;
            clients.push(client);
        }
        clients
    }

    /// What each pod says of this metric.
    async fn counts(&self, metric: &str) -> BTreeMap<usize, u64> {
        let mut counts = BTreeMap::new();
        for (number, pod) in &self.pods {
            counts.insert(*number, pod.count(metric).await);
        }
        counts
    }

    async fn total(&self, metric: &str) -> u64 {
        self.counts(metric).await.values().sum()
    }

    async fn moves(&self) -> u64 {
        self.total("gateway_moves_total{reason=\"level\"}").await
    }

    /// What each pod says of moving its connections.
    async fn reasons(&self) -> BTreeMap<usize, String> {
        let mut reasons = BTreeMap::new();
        for (number, pod) in &self.pods {
            reasons.insert(*number, rebalancing(&pod.gateway).await);
        }
        reasons
    }

    /// The pod that writes the slices, once it says so.
    async fn writer(&self) -> usize {
        let mut found = None;
        until_some_time("a pod to say that it writes", async || {
            found = writer(self.pods.iter().map(|(number, pod)| (*number, &pod.gateway))).await;
            found.is_some()
        })
        .await;
        found.expect("it was waited for")
    }

    /// The pod that has begun to coordinate the fleet last.
    fn coordinator(&self) -> Option<usize> {
        let terms = |pod: &Pod| -> Option<u64> {
            let log = pod.gateway.log();
            let begun = log.lines().filter(|line| line.contains("this node coordinates the fleet"));
            begun.filter_map(|line| line.split_once("term=")?.1.split(' ').next()?.parse().ok()).max()
        };
        let all = self.pods.iter().filter_map(|(number, pod)| Some((terms(pod)?, *number)));
        all.max().map(|(_, number)| number)
    }

    /// Who holds the lease of the slice writer, and how often it has changed hands.
    fn lease(&self) -> (Value, Option<u64>) {
        let lease = self.cluster.server.object("leases", NAMESPACE, "ws-placement").expect("a lease");
        (lease["spec"]["holderIdentity"].clone(), lease["spec"]["leaseTransitions"].as_u64())
    }
}

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, 10 + number as u8)
}

async fn until_ready(gateway: &Gateway) {
    until("a gateway to be ready", async || gateway.internal_status("/health/ready").await == 200).await;
}

/// Clients with subscriptions, and publishers, on the way through the Service, until three pods are level for this long.
struct Load {
    process: Child,
    report: oneshot::Receiver<String>,
    errors: File,
}

impl Load {
    fn start(scene: &Scene, stay: Duration) -> Self {
        let mut command = Command::new(program("loadgen"));
        command.args(["scaleout", "--json", "--allow-remote", "--api-key", API_KEY, "--token-secret", SECRET]);
        command.args(["--url", &format!("ws://{FRONT}/connection/websocket"), "-n", &CLIENTS.to_string()]);
        command.args(["--channel", "log:{}", "--channels", "50", "--rate", "50", "--opening", "32", "--settle", "2"]);
        command.args(["--steady", "1", "--then", "true", "--expect", "3", "--within", "600"]);
        command.args(["--level", &CHANCE.to_string()]);
        command.args(["--stay", &stay.as_secs().to_string()]);
        for number in 0..4 {
            command.args(["--cluster", &format!("http://{}:{INTERNAL_PORT}/v1/cluster", address(number))]);
        }
        let errors = tempfile::tempfile().expect("a temporary file");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.try_clone().expect("a file"));
        let mut process = scene.client.inside(|| command.spawn()).expect("loadgen can be started");
        let mut output = process.stdout.take().expect("a pipe");
        let (sender, report) = oneshot::channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            // What is not text is no report, either, and the test may have ended.
            let _ = output.read_to_string(&mut text);
            let _ = sender.send(text);
        });
        Self { process, report, errors }
    }

    /// What it has found, if no client missed anything.
    async fn result(mut self) -> Value {
        let report = tokio::time::timeout(PATIENCE, &mut self.report).await.expect("an end of the load");
        let text = report.expect("the reading thread tells");
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
            let mut errors = String::new();
            self.errors.rewind().and_then(|()| self.errors.read_to_string(&mut errors)).expect("a file");
            panic!("{error} in {text}{errors}")
        });
        let result = report["result"].clone();
        let counts = ["violations", "not_back"].map(|name| result[name].as_u64());
        assert_eq!(counts, [Some(0); 2], "{result:#}");
        assert_eq!(result["lost"], json!({}), "{result:#}");
        assert!(result["level_seconds"].is_number(), "not level in the end: {result:#}");
        result
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Errors mean that it is gone.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
