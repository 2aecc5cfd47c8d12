//! The scenarios that break things, against the server with planted faults. Against real gateways they are in the crate
//! `tests`.

mod fake;

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;

use fake::{Fake, Fault};
use serde_json::Value;

/// Exit code of a run that says nothing: the client had no core for nearly all of it.
const VOID: i32 = 2;

/// What a scenario says when its run is not void, as it may be on a machine that does much else, and the server of it.
fn run(fault: Fault, scenario: &str, options: &[&str]) -> (Arc<Fake>, i32, Value) {
    let runs = std::iter::repeat_with(|| {
        let fake = Fake::start(fault);
        let (code, report) = run_on(&fake, scenario, options);
        (fake, code, report)
    });
    runs.take(10).find(|(_, code, _)| *code != VOID).expect("a run that counts")
}

/// Runs a scenario with twenty clients of two subscriptions each.
fn run_on(fake: &Fake, scenario: &str, options: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args([scenario, "--json", "--url", &fake.url(), "-n", "20", "--channels", "4", "--rate", "100"])
        .args(["--settle", "3", "--sdk", "python"])
        .args(options)
        .output()
        .expect("loadgen runs");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error} in {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    (output.status.code().expect("an exit code"), report)
}

fn number(report: &Value, name: &str) -> u64 {
    report["result"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

#[test]
fn all_come_back_after_a_storm_with_their_sessions() {
    for (by, encoding) in [("reset", "json"), ("close", "protobuf")] {
        let options = ["--by", by, "--steady", "0.5", "--after", "0.5", "--sessions", "--encoding", encoding];
        let (fake, code, report) = run(Fault::None, "storm", &options);
        assert_eq!((code, report["verdict"].as_str()), (0, Some("clean")), "{report:#}");
        let resumed = ["dropped", "resumed", "recovered"].map(|name| number(&report, name));
        assert_eq!(resumed, [20, 20, 40], "{report:#}");
        assert_eq!(report["result"]["cut_to_connect"]["count"].as_u64(), Some(20));
        assert!(report["result"]["cut_to_connect"]["p50_ms"].as_f64() >= Some(100.0), "the back-off of python");
        assert_eq!(report["result"]["cuts"]["dropped by loadgen"].as_u64(), Some(20), "{report:#}");
        assert!(report["result"]["all_back_seconds"].as_f64() > Some(0.1));
        let state = fake.state();
        let sessions: HashSet<&String> = state.paths.iter().filter(|path| path.contains("?session=")).collect();
        assert_eq!((state.paths.len(), sessions.len()), (40, 20), "each client keeps its session");
    }
}

#[test]
fn a_share_of_the_clients_is_dropped() {
    let (_, code, report) = run(Fault::None, "storm", &["--drop", "25", "--steady", "0.3", "--after", "0.3"]);
    assert_eq!((code, number(&report, "dropped"), number(&report, "resumed")), (0, 5, 5), "{report:#}");
}

#[test]
fn steady_resumes_are_clean_and_a_lying_recovery_is_found() {
    let options = ["--drops-per-second", "20", "--duration", "2"];
    let (_, code, report) = run(Fault::None, "resume", &options);
    assert_eq!((code, report["verdict"].as_str()), (0, Some("clean")), "{report:#}");
    assert!(number(&report, "dropped") > 10 && number(&report, "recovered") > 20, "{report:#}");
    assert_eq!(number(&report, "not_back"), 0);
    let (_, code, report) = run(Fault::LieAlways, "resume", &options);
    assert_eq!((code, report["verdict"].as_str()), (1, Some("violated")), "{report:#}");
    assert!(report["result"]["audit"]["falsely_recovered"].as_u64() > Some(0), "{report:#}");
}

#[test]
fn clients_that_stay_away_are_no_loss() {
    let (_, code, report) = run(Fault::None, "storm", &["--stay-away", "50", "--steady", "0.3", "--after", "0.3"]);
    assert_eq!((code, number(&report, "resumed"), number(&report, "not_back")), (0, 10, 0), "{report:#}");
    assert!(report["result"]["audit"]["told"].as_u64() > Some(0), "they know what they miss: {report:#}");
}
