//! The rules that are made of slices do in a kernel what kube-proxy's do: new connections follow the slices, established
//! ones live on.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use apiserver::proxy::{Proxy, install};
use apiserver::{ApiServer, Options};
use serde_json::{Value, json};

const FRONT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), 80);
const DEADLINE: Duration = Duration::from_secs(60);

/// A network namespace with two addresses of pods. It goes with this.
struct Network(String);

impl Network {
    /// Nothing where that is not permitted, or `nft` is not there.
    fn make() -> Option<Self> {
        let network = Self(format!("evenkeel-{}", std::process::id()));
        let name = network.0.as_str();
        for words in [
            &["netns", "add", name][..],
            &["-n", name, "link", "set", "lo", "up"],
            &["-n", name, "address", "add", "10.1.0.1/32", "dev", "lo"],
            &["-n", name, "address", "add", "10.1.0.2/32", "dev", "lo"],
            &["-n", name, "route", "add", "10.96.0.0/16", "dev", "lo"],
        ] {
            let status = Command::new("ip").args(words).stderr(Stdio::null()).status().ok()?;
            if !status.success() {
                return None;
            }
        }
        install(name, "table ip probe {\n chain c {\n type nat hook output priority -100;\n }\n}\n").ok()?;
        Some(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "delete", &self.0]).stderr(Stdio::null()).status();
        drop(deleted);
    }
}

/// Servers and a client in the namespace: see `proxy_peer.py`. Each answer is waited for by its thread; the client in the
/// script gives up by itself.
struct Peer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(network: &Network) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/proxy_peer.py");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &network.0, "python3", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("python3");
        let input = process.stdin.take().expect("a pipe");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut peer = Self { process, input, output };
        assert_eq!(peer.answer(), "ready");
        peer
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").expect("a peer that listens");
        tokio::task::block_in_place(|| self.answer())
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a peer that talks");
        line.trim_end().to_owned()
    }

    /// Connects until the answer is as wanted: rules follow slices within moments, but nothing tells when.
    fn until_connected_to(&mut self, wanted: &str) {
        let begun = Instant::now();
        while self.ask("connect") != wanted {
            assert!(begun.elapsed() < DEADLINE, "never connected to {wanted}");
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({ "addresses": [address] })).collect();
    json!({
        "metadata": { "labels": { "kubernetes.io/service-name": "ws" } },
        "addressType": "IPv4", "ports": [{ "port": 8000 }], "endpoints": endpoints,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_connections_follow_the_slices_and_established_ones_live_on() {
    let Some(network) = Network::make() else {
        // Not by `eprintln!`, which shows only when a test fails.
        let said = b"skipped: network namespaces are not permitted here, or nft is not installed\n";
        std::io::stderr().write_all(said).expect("somewhere to say it");
        return;
    };
    let server = ApiServer::start(Options::default()).await;
    server.put("endpointslices", "here", "ws-0", slice(&["10.1.0.1"]));
    let mut peer = Peer::start(&network);
    let proxy = Proxy::start(server.clone(), "here", "ws", &network.0, FRONT);
    proxy.until_sends_to(&BTreeSet::from([SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 1), 8000)])).await;
    peer.until_connected_to("10.1.0.1");
    assert_eq!(peer.ask("echo 0"), "still here");
    server.put("endpointslices", "here", "ws-0", slice(&["10.1.0.2"]));
    peer.until_connected_to("10.1.0.2");
    for _ in 0..10 {
        assert_eq!(peer.ask("connect"), "10.1.0.2");
    }
    assert_eq!(peer.ask("echo 0"), "still here", "its endpoint has left the slices");
    server.remove("endpointslices", "here", "ws-0");
    peer.until_connected_to("refused");
    assert_eq!(peer.ask("echo 0"), "still here");
}
