//! The scenarios of loadgen that break things, at small scale against real gateways: what they demand holds, and what they
//! count is what happened.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::gateway::{API_KEY, Gateway, SECRET, config_with, program};
use tests::redis::{Server, VOLATILE};

/// How far loadgen puts the internal listener of a node above its public one.
const INTERNAL_PORTS: u16 = 500;

/// Runs a scenario; the exit code, and the result.
fn loadgen(scenario: &str, options: &[&str]) -> (i32, Value) {
    let mut command = Command::new(program("loadgen"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EVENKEEL_") || name.to_string_lossy().starts_with("LOADGEN_") {
            command.env_remove(name);
        }
    }
    command.args([scenario, "--json", "--api-key", API_KEY, "--token-secret", SECRET, "--settle", "2"]);
    command.args(["--channel", "log:{}", "--presence-channel", "ledger:{}", "--plain-channel", "bare:{}"]);
    let output = command.args(options).output().expect("loadgen can be started");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error} in {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    (output.status.code().expect("an exit code"), report["result"].clone())
}

fn number(result: &Value, name: &str) -> u64 {
    result[name].as_u64().unwrap_or_else(|| panic!("no {name} in {result:#}"))
}

/// Fails unless every promise was kept and all clients are back. What is a matter of time is not judged here, where other
/// things run on the machine, but by the measurements of `tests/heavy`.
#[track_caller]
fn assert_clean((code, result): (i32, Value)) -> Value {
    assert_eq!((number(&result, "violations"), number(&result, "not_back")), (0, 0), "{result:#}");
    assert!(result["lost"].as_object().is_some_and(serde_json::Map::is_empty), "{result:#}");
    let checks = result["checks"].as_array().expect("checks");
    let kept = |check: &Value| check["holds"] == true || check["depends_on_time"] == true;
    assert!(!checks.is_empty() && checks.iter().all(kept), "{result:#}");
    assert!((0..=2).contains(&code), "exit code {code}: {result:#}");
    assert!(result["audit"]["delivered"].as_u64() > Some(0), "{result:#}");
    result
}

/// A configuration whose recoveries bring all that a fault makes clients miss, in a file beside nothing else.
fn write_config(dir: &Path, redis: &str, drain: &str) -> String {
    let config = config_with("client", "recovery_limit = 5000\nhistory_limit = 5000");
    let drained = config.replacen("grace_accept = \"0s\"\nwindow = \"0s\"", drain, 1);
    assert_ne!(config, drained, "the configuration has another drain section");
    let path = dir.join("gateway.toml");
    std::fs::write(&path, drained + redis).expect("the temporary directory is writable");
    format!("{} --config {}", program("gateway").display(), path.display())
}

/// A program that notes that it was started and becomes the gateway, as the next version would be another program; and the
/// file with a line for each start.
fn next_command(dir: &Path, gateway: &str) -> (String, PathBuf) {
    let (script, starts) = (dir.join("next"), dir.join("starts"));
    let text = format!("#!/bin/sh\necho $$ >>{}\nexec {gateway} \"$@\"\n", starts.display());
    std::fs::write(&script, text).expect("the temporary directory is writable");
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("it is ours");
    (script.display().to_string(), starts)
}

/// A port with enough free ones behind it for the listeners of so many nodes.
fn base_port(nodes: u16) -> String {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let all_free = |base: &u16| (*base..base + nodes).all(|port| free(port) && free(port + INTERNAL_PORTS));
    let from = 20_000 + (std::process::id() % 500) as u16 * 10;
    (from..30_000).step_by(10).find(all_free).expect("free ports").to_string()
}

#[test]
fn after_a_storm_all_are_back_and_nothing_is_lost() {
    let gateway = Gateway::with(&config_with("client", "recovery_limit = 5000")).start();
    let (url, pid) = (gateway.url(), gateway.pid().to_string());
    let options = ["--url", url, "--server-pid", &pid, "-n", "200", "--per-client", "3", "--channels", "10"];
    let more = ["--rate", "50", "--sdk", "js,python,go,swift,java,dart", "--steady", "1", "--after", "1"];
    for by in ["reset", "close"] {
        let by = ["--by", by];
        let result = assert_clean(loadgen("storm", &[&options[..], &more, &by].concat()));
        let counts = ["dropped", "resumed", "recovered", "not_back"].map(|name| number(&result, name));
        assert_eq!(counts, [200, 200, 600, 0], "{result:#}");
        assert_eq!(result["cuts"]["dropped by loadgen"].as_u64(), Some(200), "{result:#}");
        assert!(result["memory"]["before_bytes"].as_u64() > Some(0), "{result:#}");
    }
}

#[test]
fn steady_resumes_are_clean() {
    let gateway = Gateway::with(&config_with("client", "recovery_limit = 5000")).start();
    let options = ["--url", gateway.url(), "-n", "100", "--channels", "10", "--plain-channels", "2", "--rate", "50"];
    let more = ["--sdk", "python", "--drops-per-second", "40", "--duration", "4"];
    let result = assert_clean(loadgen("resume", &[&options[..], &more].concat()));
    assert!(number(&result, "dropped") > 50, "{result:#}");
    assert_eq!(number(&result, "resumed"), number(&result, "dropped"), "{result:#}");
    assert!(number(&result, "recovered") > number(&result, "dropped"), "{result:#}");
}

#[test]
fn every_node_is_restarted_in_turn_and_nothing_is_lost() {
    let redis = Server::start(VOLATILE);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let gateway = write_config(dir.path(), &redis.config(""), "grace_accept = \"500ms\"\nwindow = \"2s\"");
    let port = base_port(3);
    let (next, starts) = next_command(dir.path(), &gateway);
    let nodes = ["--gateway-cmd", &gateway, "--next-gateway-cmd", &next, "--nodes", "3", "--base-port", &port];
    let clients = ["-n", "120", "--channels", "10", "--presence-channels", "2", "--presence-subscribers", "10"];
    let more = ["--rate", "50", "--sdk", "js,go", "--steady", "1", "--pause", "1", "--linger", "1"];
    let result = assert_clean(loadgen("rolling", &[&nodes[..], &clients, &more].concat()));
    assert_eq!(result["restarts"].as_array().map(Vec::len), Some(3), "{result:#}");
    let started = std::fs::read_to_string(starts).expect("what was started as the next");
    assert_eq!(started.lines().count(), 3, "each node is restarted as the next: {started}");
    assert_eq!((result["census"]["rounds"].as_u64(), result["census"]["wrong"].as_u64()), (Some(3), Some(0)));
    assert!(number(&result, "resumed") >= 120, "{result:#}");
    assert_eq!((number(&result, "other_closes"), number(&result, "not_recovered")), (0, 0), "{result:#}");
    assert!(number(&result, "joins") > 0, "without sessions presence follows connections: {result:#}");
}

#[test]
fn every_node_is_killed_in_turn_and_nothing_is_lost() {
    let redis = Server::start(VOLATILE);
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Leases that are judged within the test.
    let config = redis.config("lease_ttl = \"3s\"\nlease_interval = \"500ms\"");
    let gateway = write_config(dir.path(), &config, "grace_accept = \"0s\"\nwindow = \"1s\"");
    let port = base_port(3);
    let nodes = ["--kill", "--gateway-cmd", &gateway, "--nodes", "3", "--base-port", &port];
    let clients = ["-n", "120", "--channels", "10", "--presence-channels", "2", "--presence-subscribers", "30"];
    let more = ["--rate", "50", "--stay-away", "20", "--steady", "1", "--pause", "1", "--linger", "10"];
    let result = assert_clean(loadgen("rolling", &[&nodes[..], &clients, &more].concat()));
    assert_eq!(result["cuts"]["closed by the server: 1001 going away"], Value::Null, "{result:#}");
    let departures = &result["departures"];
    assert!(departures["expected"].as_u64() > Some(0), "{result:#}");
    assert_eq!(departures["expected"], departures["left_once"], "{result:#}");
}

#[test]
fn a_fleet_that_moves_nothing_is_not_level_after_it_has_grown() {
    let redis = Server::start(VOLATILE);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = redis.config("") + "\n[rebalance]\nenabled = false\n";
    let gateway = write_config(dir.path(), &config, "grace_accept = \"0s\"\nwindow = \"1s\"");
    let port = base_port(3);
    let third = port.parse::<u16>().expect("a port") + 2;
    let cluster = format!("http://127.0.0.1:{}/v1/cluster", third - 2 + INTERNAL_PORTS);
    let later = format!("ws://127.0.0.1:{third}/connection/websocket");
    let internal = third + INTERNAL_PORTS;
    let grow = format!("exec {gateway} --listen 127.0.0.1:{third} --internal-listen 127.0.0.1:{internal}");
    let nodes = ["--gateway-cmd", &gateway, "--nodes", "2", "--base-port", &port, "--cluster", &cluster];
    let then = ["--later", &later, "--then", &grow, "--steady", "3", "--within", "8", "--stay", "1"];
    let clients = ["-n", "300", "--channels", "10", "--rate", "50"];
    let (code, result) = loadgen("scaleout", &[&nodes[..], &then, &clients].concat());
    assert_ne!(code, 0, "{result:#}");
    let result = assert_clean((code, result));
    let ready = ["ready_before", "ready_after", "moves", "had_to_move"].map(|name| number(&result, name));
    assert_eq!(ready, [2, 3, 0, 100], "{result:#}");
    assert_eq!((&result["level_seconds"], &result["checks"][0]["holds"]), (&Value::Null, &Value::Bool(false)));
    assert!((1.45..1.55).contains(&result["imbalance"].as_f64().expect("a number")), "{result:#}");
    assert!(result["explanation"].as_str().is_some_and(|said| !said.is_empty()), "{result:#}");
    assert!(result["curve"].as_array().is_some_and(|curve| curve.len() > 10), "{result:#}");
}

#[test]
fn an_outage_of_the_backplane_is_repaired_and_told() {
    let redis = Server::start(VOLATILE);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let gateway = write_config(dir.path(), &redis.config(""), "grace_accept = \"0s\"\nwindow = \"1s\"");
    let (port, pid) = (base_port(2), redis.info("server", "process_id"));
    let nodes = ["--gateway-cmd", &gateway, "--nodes", "2", "--base-port", &port, "--backplane-pid", &pid];
    let clients = ["-n", "100", "--channels", "10", "--plain-channels", "2", "--rate", "50"];
    let more = ["--steady", "1", "--outage", "4", "--recovery", "10"];
    let result = assert_clean(loadgen("outage", &[&nodes[..], &clients, &more].concat()));
    assert!(result["outage_seconds"].as_f64() >= Some(4.0), "{result:#}");
    assert!(number(&result, "failed") > 0, "a backplane that stands still fails publishes: {result:#}");
}

#[test]
fn a_backplane_that_loses_everything_makes_clients_be_told() {
    // Taken for the turn among tests; the scenario has a server of its own, which it can kill and start again.
    let _turn = Server::start(VOLATILE);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let port = base_port(3);
    let last = port.parse::<u16>().expect("a port") + 2;
    let redis = format!("[redis]\naddresses = [\"127.0.0.1:{last}\"]\n\n[backplane]\nkind = \"redis\"\n");
    let gateway = write_config(dir.path(), &redis, "grace_accept = \"0s\"\nwindow = \"1s\"");
    let store = dir.path().display();
    let backplane = format!("redis-server --bind 127.0.0.1 --appendonly no --port {last} --dir {store}");
    let nodes = ["--gateway-cmd", &gateway, "--nodes", "2", "--base-port", &port, "--kill"];
    let clients = ["--backplane-cmd", &backplane, "-n", "100", "--channels", "10", "--rate", "50"];
    let more = ["--steady", "2", "--outage", "2", "--recovery", "15"];
    let result = assert_clean(loadgen("outage", &[&nodes[..], &clients, &more].concat()));
    assert!(number(&result, "failed") > 0 && number(&result, "not_recovered") > 0, "{result:#}");
}
