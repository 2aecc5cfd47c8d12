//! The other scenarios, and what the program says when it cannot do what it was asked for.

mod fake;

use std::collections::HashSet;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use fake::{Fake, Fault};
use serde_json::Value;

fn loadgen(options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadgen")).args(options).output().expect("loadgen runs")
}

/// The same when its run is not void (exit code 2), as it may be on a machine that does much else.
fn loadgen_that_counts(options: &[&str]) -> Output {
    let mut runs = std::iter::repeat_with(|| loadgen(options)).take(10);
    runs.find(|output| output.status.code() != Some(2)).expect("a run that counts")
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error} in {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    })
}

/// Runs a command that must fail, and returns what it said.
fn refusal(options: &[&str]) -> String {
    let output = loadgen(options);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn connect_opens_subscribes_answers_pings_and_measures() {
    let server = Fake::start(Fault::None);
    let pid = std::process::id().to_string();
    let output = loadgen(&[
        "connect",
        "--json",
        "--url",
        &server.url(),
        "-n",
        "50",
        "--rate",
        "500",
        "--hold",
        "0.2",
        "--token-secret",
        "s",
        "--server-pid",
        &pid,
    ]);
    let report = report(&output);
    let result = &report["result"];
    assert_eq!((output.status.code(), result["connected"].as_u64()), (Some(0), Some(50)), "{report:#}");
    assert_eq!(result["latency"]["count"].as_u64(), Some(50));
    assert_eq!(result["pings"].as_u64(), Some(50));
    assert!(result["seconds"].as_f64() >= Some(49.0 / 500.0), "the rate was kept: {report:#}");
    assert!(result["server_rss_bytes_per_connection"].is_number() && result["server_cpu_us_per_connect"].is_number());
    assert!(!report["command"].as_str().expect("the command").contains("--token-secret s"));
    // They may be on their way yet.
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.state().pongs < 50 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let state = server.state();
    assert_eq!(state.pongs, 50, "every ping was answered");
    assert_eq!(state.tokens.iter().collect::<HashSet<_>>().len(), 50, "every connection has a token of its own");
}

#[test]
fn many_rooms_are_filled_and_audited() {
    let server = Fake::start(Fault::None);
    let output = loadgen_that_counts(&[
        "fanout",
        "--json",
        "--url",
        &server.url(),
        "-n",
        "12",
        "--channels",
        "20",
        "--subscribers-per-channel",
        "3",
        "--rate",
        "400",
        "--duration",
        "0.25",
        "--encoding",
        "protobuf",
    ]);
    let report = report(&output);
    let result = &report["result"];
    assert_eq!((output.status.code(), result["subscriptions"].as_u64()), (Some(0), Some(60)), "{report:#}");
    assert_eq!(result["audit"]["delivered"].as_u64(), Some(300), "{report:#}");
}

#[test]
fn the_limit_server_delivers_everything_once_and_reports() {
    let output = loadgen_that_counts(&[
        "limit",
        "run",
        "--json",
        "-n",
        "20",
        "--rate",
        "100",
        "--duration",
        "0.5",
        "--message-bytes",
        "200",
    ]);
    let report = report(&output);
    let (fanout, server) = (&report["result"]["fanout"], &report["result"]["server"]);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!((fanout["violations"].as_u64(), fanout["audit"]["delivered"].as_u64()), (Some(0), Some(1000)));
    assert_eq!((fanout["message_bytes"].as_f64(), server["frame_bytes"].as_u64()), (Some(200.0), Some(204)));
    assert_eq!((server["deliveries"].as_u64(), server["refused"].as_u64()), (Some(1000), Some(0)));
}

#[test]
fn compare_takes_turns_with_messages_of_the_same_length() {
    let server = Fake::start(Fault::None);
    let pid = std::process::id().to_string();
    let output = loadgen(&[
        "compare",
        "--json",
        "--gateway-url",
        &server.url(),
        "--server-pid",
        &pid,
        "-n",
        "10",
        "--rate",
        "50",
        "--duration",
        "0.5",
        "--runs",
        "2",
    ]);
    let report = report(&output);
    let result = &report["result"];
    for run in 0..2 {
        let (gateway, limit) = (&result["gateway"][run], &result["limit"][run]["fanout"]);
        assert_eq!((gateway["violations"].as_u64(), limit["violations"].as_u64()), (Some(0), Some(0)), "{report:#}");
        assert_eq!(gateway["audit"]["delivered"], limit["audit"]["delivered"], "{report:#}");
        let bytes = |side: &Value| side["message_bytes"].as_f64().expect("a mean").round();
        assert_eq!(bytes(gateway), bytes(limit), "{report:#}");
    }
    assert_eq!(result["gateway"].as_array().map(Vec::len), Some(2));
}

#[test]
fn refusals_of_the_server_are_quoted() {
    let said = |fault| {
        let server = Fake::start(fault);
        refusal(&["fanout", "--url", &server.url(), "-n", "3", "--duration", "0.1"])
    };
    assert!(said(Fault::RefuseHandshake).contains("HTTP 503 Service Unavailable"));
    assert!(said(Fault::RefuseConnect).contains("connect error 109: token expired"));
    assert!(said(Fault::RefuseSubscribe).contains("subscribe error 103: permission denied"));
    let server = Fake::start(Fault::RefuseConnect);
    let output = loadgen(&["connect", "--json", "--url", &server.url(), "-n", "3", "--hold", "0.1"]);
    let report = report(&output);
    assert_eq!((output.status.code(), report["verdict"].as_str()), (Some(1), Some("failed")));
    assert_eq!(report["result"]["refused"]["connect error 109: token expired"].as_u64(), Some(3));
}

#[test]
fn a_publisher_that_cannot_connect_ends_the_run() {
    let server = Fake::start(Fault::None);
    // Nothing listens on the discard port of loopback.
    let said = refusal(&[
        "fanout",
        "--url",
        &server.url(),
        "-n",
        "2",
        "--duration",
        "0.1",
        "--api-url",
        "http://127.0.0.1:9/api",
    ]);
    assert!(said.contains("publisher") && said.contains("refused"), "{said}");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_opened() {
    assert!(refusal(&["fanout", "--url", "ws://192.0.2.7:1/"]).contains("--allow-remote"));
    assert!(refusal(&["fanout", "--size", "40"]).contains("the audit stamp"));
    assert!(refusal(&["fanout", "-n", "2", "--subscribers-per-channel", "3"]).contains("different subscribers"));
    assert!(refusal(&["fanout", "--channels", "2", "--channel", "one"]).contains("`{}`"));
    assert!(refusal(&["connect", "-n", "0"]).contains("0"));
    assert!(refusal(&["compare"]).contains("--gateway-cmd"));
    assert!(refusal(&["limit", "run", "--pin-client", "0"]).contains("--pin-server"));
    assert!(refusal(&["limit", "serve", "--listen", "0.0.0.0:0"]).contains("loopback"));
}

#[test]
fn more_connections_than_descriptors_are_refused_with_the_number_that_fits() {
    let command = format!("ulimit -n 200; exec {} connect -n 1000", env!("CARGO_BIN_EXE_loadgen"));
    let output = Command::new("sh").args(["-c", &command]).output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("the hard limit is 200: use -n 136 or fewer"), "{said}");
}
