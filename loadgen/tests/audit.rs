//! The auditor, proven against a server with planted faults: each fault is found and named, and a faultless run is clean.

mod fake;

use std::process::Command;

use fake::{AT, Fake, Fault};
use serde_json::Value;

const MESSAGES: u64 = 60;

/// Exit code of a run that says nothing: the client had no core for nearly all of it.
const VOID: i32 = 2;

/// What `loadgen fanout` says when its run is not void, as it may be on a machine that does much else.
fn fanout(fault: Fault, options: &[&str]) -> (i32, Value) {
    let mut runs = std::iter::repeat_with(|| run_fanout(fault, options)).take(10);
    runs.find(|(code, _)| *code != VOID).expect("a run that counts")
}

/// Runs `loadgen fanout` with five subscribers on each of two channels; 30 messages go to each channel.
fn run_fanout(fault: Fault, options: &[&str]) -> (i32, Value) {
    let server = Fake::start(fault);
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["fanout", "--json", "--url", &server.url(), "-n", "10", "--channels", "2"])
        .args(["--rate", "200", "--duration", "0.3", "--publishers", "2", "--settle", "4"])
        .args(options)
        .output()
        .expect("loadgen runs");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error} in {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    (output.status.code().expect("an exit code"), report)
}

/// The non-zero entries of the audit, apart from the totals.
fn findings(report: &Value) -> Vec<(String, u64)> {
    let audit = report["result"]["audit"].as_object().expect("an audit");
    let number = |value: &Value| value.as_u64().expect("a count");
    let named =
        audit.iter().filter(|(name, count)| !matches!(name.as_str(), "expected" | "delivered") && number(count) > 0);
    named.map(|(name, count)| (name.clone(), number(count))).collect()
}

#[track_caller]
fn check(fault: Fault, options: &[&str], exit_code: i32, verdict: &str, expected: &[(&str, u64)]) -> Value {
    let (code, report) = fanout(fault, options);
    let expected: Vec<_> = expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    assert_eq!(findings(&report), expected, "{report:#}");
    assert_eq!((code, report["verdict"].as_str()), (exit_code, Some(verdict)), "{report:#}");
    report
}

#[test]
fn a_faultless_run_is_clean_in_both_encodings_and_with_both_publishers() {
    for options in [
        &["--encoding", "json", "--publisher", "api"][..],
        &["--encoding", "json", "--publisher", "ws"],
        &["--encoding", "protobuf", "--publisher", "api"],
        &["--encoding", "protobuf", "--publisher", "ws", "--threads", "3"],
    ] {
        let report = check(Fault::None, options, 0, "clean", &[]);
        let result = &report["result"];
        assert_eq!((result["acknowledged"].as_u64(), result["unsent"].as_u64()), (Some(MESSAGES), Some(0)));
        assert_eq!(result["audit"]["expected"].as_u64(), Some(5 * MESSAGES));
        assert_eq!(result["audit"]["delivered"].as_u64(), Some(5 * MESSAGES));
        assert_eq!(result["latency"]["count"].as_u64(), Some(5 * MESSAGES));
    }
}

#[test]
fn several_messages_in_fragmented_frames_are_taken_apart() {
    for encoding in ["json", "protobuf"] {
        check(Fault::Coalesce, &["--encoding", encoding], 0, "clean", &[]);
    }
}

#[test]
fn a_dropped_message_is_lost() {
    check(Fault::Drop, &[], 1, "violated", &[("lost", 2)]);
}

#[test]
fn a_message_delivered_twice_is_repeated() {
    check(Fault::Repeat, &["--encoding", "protobuf"], 1, "violated", &[("repeated", 2)]);
}

#[test]
fn exchanged_messages_are_reordered_and_not_lost() {
    check(Fault::Reorder, &[], 1, "violated", &[("reordered", 2)]);
}

#[test]
fn a_changed_byte_is_corrupt_and_the_message_lost() {
    check(Fault::Corrupt, &[], 1, "violated", &[("corrupt", 2), ("lost", 2)]);
    check(Fault::Unstamp, &["--encoding", "protobuf"], 1, "violated", &[("corrupt", 2), ("lost", 2)]);
}

#[test]
fn another_channels_name_and_another_channels_subscriber_are_misrouted() {
    check(Fault::WrongName, &[], 1, "violated", &[("lost", 2), ("misrouted", 2)]);
    check(Fault::WrongSubscriber, &["--encoding", "protobuf"], 1, "violated", &[("misrouted", 2)]);
}

#[test]
fn a_message_nobody_published_is_forged() {
    check(Fault::Forge, &[], 1, "violated", &[("forged", 2)]);
}

#[test]
fn a_refused_publish_may_be_seen_once_but_not_twice() {
    let report = check(Fault::RefuseButDeliver, &[], 1, "failed", &[]);
    assert_eq!(report["result"]["failed"].as_u64(), Some(2));
    check(Fault::RefuseButDeliverTwice, &["--publisher", "ws"], 1, "violated", &[("repeated", 2)]);
}

#[test]
fn an_unanswered_publish_counts_as_failed_and_the_rest_goes_on() {
    let report = check(Fault::CutPublisher, &["--depth", "1"], 1, "failed", &[]);
    let result = &report["result"];
    assert_eq!((result["failed"].as_u64(), result["acknowledged"].as_u64()), (Some(1), Some(MESSAGES - 1)));
}

#[test]
fn a_closed_subscriber_was_told_and_the_run_failed() {
    // From the fault on, the rest of the channel's 30 messages is missing for one subscriber of each channel.
    let report = check(Fault::Close, &[], 1, "failed", &[("told", 2 * (30 - AT + 1))]);
    assert_eq!(report["result"]["lost"]["closed by the server: 3008 slow"].as_u64(), Some(2));
}

#[test]
fn a_recovery_that_keeps_its_word_is_clean() {
    for encoding in ["json", "protobuf"] {
        let report = check(Fault::CutAndRecover, &["--resume", "--encoding", encoding], 0, "clean", &[]);
        assert_eq!(report["result"]["resumed"].as_u64(), Some(2));
    }
    check(Fault::Unsubscribe, &["--resume"], 0, "clean", &[]);
}

#[test]
fn a_false_recovered_is_found_whether_all_or_one_is_missing() {
    let report =
        check(Fault::CutAndRecoverWithHole, &["--resume"], 1, "violated", &[("falsely_recovered", 2), ("lost", 2)]);
    assert_eq!(report["result"]["violations"].as_u64(), Some(2));
    let (code, report) = fanout(Fault::CutAndLie, &["--resume", "--encoding", "protobuf"]);
    let audit = &report["result"]["audit"];
    assert!(audit["falsely_recovered"].as_u64() >= Some(2), "{report:#}");
    assert_eq!((code, audit["lost"].as_u64()), (1, audit["falsely_recovered"].as_u64()), "{report:#}");
}

#[test]
fn a_recovery_that_admits_failure_is_no_violation() {
    let (code, report) = fanout(Fault::CutAndTell, &["--resume"]);
    assert_eq!((code, report["result"]["violations"].as_u64()), (0, Some(0)), "{report:#}");
    assert!(report["result"]["audit"]["told"].as_u64() >= Some(2), "{report:#}");
}

#[test]
fn what_was_seen_before_the_cut_and_comes_again_after_it_is_repeated_across_the_resume() {
    let expected = [("repeated", 2), ("repeated_across_resumes", 2)];
    check(Fault::CutAndRepeat, &["--resume"], 1, "violated", &expected);
}

#[test]
fn recovered_messages_in_the_wrong_order_are_reordered() {
    check(Fault::CutAndReorder, &["--resume", "--encoding", "protobuf"], 1, "violated", &[("reordered", 2)]);
}

#[test]
fn another_epoch_must_be_told() {
    let (code, report) = fanout(Fault::CutAndChangeEpoch, &["--resume"]);
    assert_eq!((code, report["result"]["violations"].as_u64()), (0, Some(0)), "{report:#}");
    assert!(report["result"]["audit"]["told"].as_u64() >= Some(2), "{report:#}");
    check(Fault::CutAndLieAboutEpoch, &["--resume"], 1, "violated", &[("contradictory", 2)]);
}

#[test]
fn an_answer_that_recovers_nothing_and_brings_messages_is_contradictory() {
    let (code, report) = fanout(Fault::CutAndContradict, &["--resume"]);
    assert_eq!((code, report["result"]["audit"]["contradictory"].as_u64()), (1, Some(2)), "{report:#}");
}
