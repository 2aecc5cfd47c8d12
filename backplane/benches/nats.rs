//! What the NATS backplane carries on both versions of the server, and what it costs this node: `cargo bench -p backplane
//! --features nats --bench nats`. An argument selects the parts whose names contain it: publish, recover, memory.
//!
//! The servers are pinned to core 0 and this process to core 1, where there are two and `taskset` is installed.

#[path = "../tests/nats_server/mod.rs"]
mod nats_server;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use backplane::nats::{Address, NatsBackplane, NatsConfig};
use backplane::{
    Backplane, ChannelName, Delivery, Disturbance, HistoryOptions, HistoryQuery, NewPublication, PublishOptions, Sink,
};
use bytes::Bytes;
use futures_util::future::join_all;
use nats_server::{Server, Version};

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const MEASURED: Duration = Duration::from_secs(3);
const PAYLOAD: &[u8] = &[b'x'; 128];
const DEADLINE: Duration = Duration::from_secs(60);
const KEEP: HistoryOptions =
    HistoryOptions { size: 100, ttl: Duration::from_secs(300), meta_ttl: Duration::from_secs(600) };

fn main() {
    // Cargo adds an option of its own.
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    pin(std::process::id(), 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let is_wanted = |part: &str| part.contains(wanted.as_str());
    for version in Version::ALL {
        if is_wanted("publish") {
            for (channels, in_flight, subscribed) in [(1, 256, 0), (1_000, 256, 0), (1_000, 256, 1)] {
                runtime.block_on(publish(version, channels, in_flight, subscribed));
            }
        }
        if is_wanted("recover") {
            runtime.block_on(recover(version));
        }
    }
    if is_wanted("memory") {
        runtime.block_on(memory(100_000));
    }
}

/// Without `taskset` the figures are those of whatever core it is.
fn pin(process: u32, core: u32) {
    let arguments = ["-a", "-p", "-c", &core.to_string(), &process.to_string()].map(str::to_owned);
    let pinned = Command::new("taskset").args(arguments).stdout(Stdio::null()).status();
    if !pinned.is_ok_and(|status| status.success()) {
        eprintln!("process {process} is not pinned to core {core}");
    }
}

fn start(version: Version) -> Server {
    let server = Server::start(version);
    pin(server.pid(), 0);
    server
}

#[derive(Default)]
struct Counter(AtomicU64);

impl Sink for Counter {
    fn deliver(&self, _: &ChannelName, _: Delivery) {
        self.0.fetch_add(1, Relaxed);
    }

    fn disturbed(&self, _: Disturbance) {}
}

async fn node(server: &Server) -> (NatsBackplane, Arc<Counter>) {
    let config = NatsConfig { servers: vec![Address::new("127.0.0.1", server.port)], ..NatsConfig::default() };
    let backplane = NatsBackplane::connect(&config).await.expect("the server is there");
    let counter = Arc::new(Counter::default());
    backplane.attach(Arc::clone(&counter) as Arc<dyn Sink>);
    (backplane, counter)
}

fn names(channels: usize) -> Vec<ChannelName> {
    (0..channels).map(|n| ChannelName::from(format!("bench:{n}"))).collect()
}

fn stored() -> PublishOptions {
    PublishOptions { history: Some(KEEP), ..PublishOptions::default() }
}

fn publication() -> NewPublication {
    NewPublication { data: Bytes::from_static(PAYLOAD), ..NewPublication::default() }
}

/// `in_flight` publishers, each with one publish at a time; `subscribed` further nodes of this process, which have all
/// channels.
async fn publish(version: Version, channels: usize, in_flight: usize, subscribed: usize) {
    let server = start(version);
    let (publisher, _) = node(&server).await;
    let names = names(channels);
    let mut nodes = Vec::new();
    for _ in 0..subscribed {
        let (backplane, counter) = node(&server).await;
        backplane.subscribe(&names).await.expect("subscribe");
        nodes.push((backplane, counter));
    }
    let published = AtomicU64::new(0);
    let run = async |lasts: Duration| {
        let until = Instant::now() + lasts;
        let publishers = (0..in_flight).map(async |first| {
            let mut turn = first;
            while Instant::now() < until {
                publisher.publish(&names[turn % names.len()], publication(), stored()).await.expect("publish");
                published.fetch_add(1, Relaxed);
                turn += in_flight;
            }
        });
        join_all(publishers).await;
    };
    run(Duration::from_millis(500)).await;
    let (count, begun) = (published.load(Relaxed), Instant::now());
    run(MEASURED).await;
    let (count, took) = (published.load(Relaxed) - count, begun.elapsed());
    println!(
        "publish, {version:?}: {channels} channels, {in_flight} in flight, {subscribed} subscribed nodes: {:.0} per second",
        count as f64 / took.as_secs_f64(),
    );
    let total = published.load(Relaxed);
    for (backplane, counter) in &nodes {
        let deadline = Instant::now() + DEADLINE;
        while counter.0.load(Relaxed) < total && backplane.status().deliveries_lost == 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!(
            "  a subscribed node received {:.3} messages per publication, lost some {} times",
            counter.0.load(Relaxed) as f64 / total as f64,
            backplane.status().deliveries_lost,
        );
    }
}

/// A client that missed 50 messages comes back, again and again.
async fn recover(version: Version) {
    const ROUNDS: usize = 500;
    let server = start(version);
    let (backplane, _) = node(&server).await;
    let names = names(100);
    let mut since = Vec::new();
    for name in &names {
        let first = backplane.publish(name, publication(), stored()).await.expect("publish");
        since.push(first.position.expect("it is stored"));
        for _ in 0..50 {
            backplane.publish(name, publication(), stored()).await.expect("publish");
        }
    }
    let mut took = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let index = round % names.len();
        let begun = Instant::now();
        let query = HistoryQuery::since(since[index].clone(), 300);
        let page = backplane.history(&names[index], query, KEEP).await.expect("history");
        took.push(begun.elapsed());
        assert!(page.covered && page.publications.len() == 50, "all of them come back");
    }
    took.sort();
    println!(
        "recover, {version:?}: 50 messages in {:?} (median), {:?} (99 of 100)",
        took[ROUNDS / 2],
        took[ROUNDS * 99 / 100]
    );
}

/// What this process has in memory, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}

/// A node with many channels: what they cost beside their names, which the node has anyway.
async fn memory(channels: usize) {
    let server = start(Version::Current);
    let (backplane, _) = node(&server).await;
    let names = names(channels);
    let before = resident();
    let begun = Instant::now();
    for part in names.chunks(1_000) {
        backplane.subscribe(part).await.expect("subscribe");
    }
    let took = begun.elapsed();
    println!(
        "memory: {channels} channels subscribed in {took:?}, {:.1} MB",
        resident().saturating_sub(before) as f64 / 1e6
    );
}
