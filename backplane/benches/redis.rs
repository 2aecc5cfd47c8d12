//! What the Redis backplane carries, and what it costs the server: `cargo bench -p backplane --features redis --bench
//! redis`. An argument selects the parts whose names contain it: publish, lineage, replicated, resubscribe.
//!
//! The servers are pinned to core 0 and this process to core 1, where there are two and `taskset` is installed.

#[path = "../tests/redis_server/mod.rs"]
mod redis_server;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use backplane::redis::{Durability, RedisBackplane, RedisConfig};
use backplane::{Backplane, ChannelName, Delivery, Disturbance, HistoryOptions, NewPublication, PublishOptions, Sink};
use bytes::Bytes;
use futures_util::future::join_all;
use redis_server::{Server, VOLATILE};

const MEASURED: Duration = Duration::from_secs(3);
const PAYLOAD: &[u8] = &[b'x'; 128];
const DEADLINE: Duration = Duration::from_secs(60);

fn main() {
    // Cargo adds an option of its own.
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    pin(std::process::id(), 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let is_wanted = |part: &str| part.contains(wanted.as_str());
    if is_wanted("publish") {
        for (channels, in_flight) in [(1, 64), (1, 256), (1_000, 64), (1_000, 256)] {
            runtime.block_on(publish(channels, in_flight, 0, false));
        }
        runtime.block_on(publish(1_000, 256, 2, false));
    }
    if is_wanted("lineage") {
        lineage();
    }
    if is_wanted("replicated") {
        runtime.block_on(publish(1_000, 256, 0, true));
        runtime.block_on(publish(1_000, 64, 0, true));
    }
    if is_wanted("resubscribe") {
        runtime.block_on(resubscribe(100_000));
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

fn start() -> Server {
    let server = Server::start(VOLATILE);
    pin(server.pid(), 0);
    server
}

/// What the server has done.
#[derive(Clone, Copy)]
struct Spent {
    cpu_us: f64,
    commands: f64,
}

impl Spent {
    fn so_far(server: &Server) -> Self {
        let info = server.admin_text("INFO all");
        let number = |field: &str| -> f64 {
            let value = info.lines().find_map(|line| line.strip_prefix(field)).expect("a field of INFO");
            value.parse().expect("a number")
        };
        // Those of scripts included.
        let calls = |line: &str| {
            let (_, calls) = line.split_once(":calls=")?;
            calls.split(',').next()?.parse::<f64>().ok()
        };
        let commands = info.lines().filter(|line| line.starts_with("cmdstat_")).filter_map(calls).sum();
        Self { cpu_us: 1e6 * (number("used_cpu_user:") + number("used_cpu_sys:")), commands }
    }
}

#[derive(Default)]
struct Counter {
    deliveries: AtomicU64,
    disturbances: AtomicU64,
}

impl Sink for Counter {
    fn deliver(&self, _: &ChannelName, _: Delivery) {
        self.deliveries.fetch_add(1, Relaxed);
    }

    fn disturbed(&self, _: Disturbance) {
        self.disturbances.fetch_add(1, Relaxed);
    }
}

async fn node(config: &RedisConfig) -> (RedisBackplane, Arc<Counter>) {
    let backplane = RedisBackplane::connect(config).await.expect("the server is there");
    let counter = Arc::new(Counter::default());
    backplane.attach(Arc::clone(&counter) as Arc<dyn Sink>);
    (backplane, counter)
}

fn names(channels: usize) -> Vec<ChannelName> {
    (0..channels).map(|n| ChannelName::from(format!("bench:{n}"))).collect()
}

/// `in_flight` publishers, each with one publish at a time; `subscribed` further nodes of this process, which have all
/// channels.
async fn publish(channels: usize, in_flight: usize, subscribed: usize, replicated: bool) {
    let server = start();
    let replica = replicated.then(start);
    let mut config = server.config();
    if let Some(replica) = &replica {
        server.admin("CONFIG SET repl-diskless-sync-delay 0");
        replica.admin(&format!("REPLICAOF 127.0.0.1 {}", server.port));
        assert_eq!(server.admin("WAIT 1 20000"), ":1", "the replica catches up");
        config.durability = Durability::Replicated { replicas: 1, timeout: Duration::from_secs(1) };
    }
    let (publisher, _) = node(&config).await;
    let names = names(channels);
    let mut nodes = Vec::new();
    for _ in 0..subscribed {
        let (backplane, counter) = node(&server.config()).await;
        backplane.subscribe(&names).await.expect("subscribe");
        nodes.push((backplane, counter));
    }
    let ttl = Duration::from_secs(300);
    let options = PublishOptions {
        history: Some(HistoryOptions { size: 100, ttl, meta_ttl: 2 * ttl }),
        ..PublishOptions::default()
    };
    let published = AtomicU64::new(0);
    let run = async |lasts: Duration| {
        let until = Instant::now() + lasts;
        let publishers = (0..in_flight).map(async |first| {
            let mut turn = first;
            while Instant::now() < until {
                let publication = NewPublication { data: Bytes::from_static(PAYLOAD), ..NewPublication::default() };
                let name = &names[turn % names.len()];
                publisher.publish(name, publication, options.clone()).await.expect("publish");
                published.fetch_add(1, Relaxed);
                turn += in_flight;
            }
        });
        join_all(publishers).await;
    };
    run(Duration::from_millis(500)).await;
    let (before, count, begun) = (Spent::so_far(&server), published.load(Relaxed), Instant::now());
    run(MEASURED).await;
    let (after, took) = (Spent::so_far(&server), begun.elapsed());
    let count = (published.load(Relaxed) - count) as f64;
    println!(
        "publish: {channels} channels, {in_flight} in flight, {subscribed} subscribed nodes, replicated {replicated}: \
         {:.0} per second; server {:.1} us and {:.2} commands per publication",
        count / took.as_secs_f64(),
        (after.cpu_us - before.cpu_us) / count,
        (after.commands - before.commands) / count,
    );
    let total = published.load(Relaxed);
    for (backplane, counter) in &nodes {
        let deadline = Instant::now() + DEADLINE;
        let received = || counter.deliveries.load(Relaxed) + backplane.status().deliveries_lost;
        while received() < total && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!(
            "  a subscribed node received {:.3} messages per publication, lost {} to lag",
            received() as f64 / total as f64,
            backplane.status().deliveries_lost,
        );
    }
}

/// The publish script with and without the look at the replication id, by a client that does nothing else: 64 in flight
/// in one channel, in turns.
fn lineage() {
    const DEPTH: usize = 64;
    const BATCHES: usize = 3_000;
    let with = include_str!("../src/redis/publish.lua").to_owned();
    let begin = with.find("local _, _, lineage").expect("the script looks at the replication id");
    let end = begin + with[begin..].find('\n').expect("a line");
    let without = format!("{}local lineage = '{}'{}", &with[..begin], "0".repeat(40), &with[end..]);
    let server = start();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).expect("the server is running");
    stream.set_nodelay(true).expect("an option of TCP");
    for round in 1..=3 {
        for (what, script) in [("with", &with), ("without", &without)] {
            let command = |begin: [&[u8]; 2]| {
                let parts: [&[u8]; 14] = [
                    b"3",
                    b"{b}:m",
                    b"{b}:s",
                    b"{b}:c",
                    PAYLOAD,
                    b"100",
                    b"300000",
                    b"abcdefghij",
                    b"7",
                    b"600000",
                    b"00000000000000000000",
                    b"",
                    b"300000",
                    b"PUBLISH",
                ];
                let mut command = format!("*{}\r\n", begin.len() + parts.len()).into_bytes();
                for part in begin.iter().chain(&parts) {
                    command.extend(format!("${}\r\n", part.len()).bytes().chain(part.iter().copied()).chain(*b"\r\n"));
                }
                command
            };
            let mut call = |commands: &[u8], count: usize| {
                stream.write_all(commands).expect("the server listens");
                let (mut answers, mut bytes) = (0, [0; 65_536]);
                // Each is an array, and there is no other asterisk in it.
                while answers < count {
                    let read = stream.read(&mut bytes).expect("the server answers");
                    assert!(read > 0 && bytes[0] != b'-', "{}", String::from_utf8_lossy(&bytes[..read]));
                    answers += bytes[..read].iter().filter(|&&byte| byte == b'*').count();
                }
            };
            // It is loaded by that.
            call(&command([b"EVAL", script.as_bytes()]), 1);
            let batch = command([b"EVALSHA", fred::util::sha1_hash(script).as_bytes()]).repeat(DEPTH);
            call(&batch, DEPTH);
            assert_eq!(server.admin("CONFIG RESETSTAT"), "+OK");
            let begun = Instant::now();
            for _ in 0..BATCHES {
                call(&batch, DEPTH);
            }
            let took = begun.elapsed();
            let stats = server.admin_text("INFO commandstats");
            let per_call = stats.lines().find_map(|line| {
                line.strip_prefix("cmdstat_evalsha:")?.split(',').find_map(|field| field.strip_prefix("usec_per_call="))
            });
            println!(
                "lineage {round}: script {what} the look at the replication id: {:.0} per second, {} us in the server",
                (BATCHES * DEPTH) as f64 / took.as_secs_f64(),
                per_call.expect("it was called"),
            );
        }
    }
}

/// A node with many channels, whose server is restarted: until deliveries are restored.
async fn resubscribe(channels: usize) {
    let mut server = start();
    let config = RedisConfig { command_timeout: Duration::from_secs(10), ..server.config() };
    let (backplane, counter) = node(&config).await;
    let names = names(channels);
    let begun = Instant::now();
    backplane.subscribe(&names).await.expect("subscribe");
    println!("resubscribe: {channels} channels subscribed in {:?}", begun.elapsed());
    server.end();
    server.start_again();
    pin(server.pid(), 0);
    let (before, begun) = (Spent::so_far(&server), Instant::now());
    while counter.disturbances.load(Relaxed) == 0 || !backplane.status().is_up {
        assert!(begun.elapsed() < DEADLINE, "deliveries are not restored");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (after, took) = (Spent::so_far(&server), begun.elapsed());
    println!(
        "resubscribe: restored {took:?} after the server was back; server {:.0} ms and {:.0} commands",
        (after.cpu_us - before.cpu_us) / 1e3,
        after.commands - before.commands,
    );
}
