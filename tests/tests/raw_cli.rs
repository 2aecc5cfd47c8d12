//! The command line: `check-config`, `token`, and mistakes before anything listens.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use serde_json::json;
use tests::gateway::{CONFIG, Gateway, SECRET, command, program, run_to_end};
use tests::{DEADLINE, until};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn check(name: &str, config: &str) -> Output {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join(name);
    fs::write(&path, config).expect("the directory is writable");
    run_to_end(&["check-config", "--config", path.to_str().expect("a UTF-8 path")])
}

#[test]
fn a_good_config_passes() {
    let output = check("gateway.toml", CONFIG);
    assert!(output.status.success(), "{}", text(&output));
    let yaml = "api:\n  keys: [\"test-api-key-0123456789\"]\nclient:\n  allow_anonymous: true\nnamespaces:\n  - name: chat\n    presence: true\n";
    let output = check("gateway.yaml", yaml);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains("test-api-key"), "a secret is never shown");
}

#[test]
fn ten_mistakes_are_told_at_once_with_key_value_and_reason() {
    let config = r#"
listen = "nowhere"
colour = "blue"

[client]
ping_interval = "soon"
pong_timeout = 17
queue_bytes = -5
allow_anonymous = "perhaps"

[drain]
windwo = "5s"

[[namespaces]]
name = "x"

[[namespaces]]
name = "chat"
history_size = "many"
force_recovery = true

[[namespaces]]
name = "chat"
channel_regex = "("
publication_data_format = "xml"
"#;
    let output = check("gateway.toml", config);
    let text = text(&output);
    assert!(!output.status.success(), "{text}");
    let mistakes = [
        ("listen", "nowhere"),
        ("colour", ""),
        ("client.ping_interval", "soon"),
        ("client.pong_timeout", "17"),
        ("client.queue_bytes", "-5"),
        ("client.allow_anonymous", "perhaps"),
        ("drain.windwo", "drain.window"),
        ("history_size", "many"),
        ("channel_regex", "("),
        ("publication_data_format", "xml"),
        ("name", "\"x\""),
        ("name", "\"chat\""),
    ];
    for (key, part) in mistakes {
        let found = text.lines().any(|line| line.contains(key) && line.contains(part));
        assert!(found, "no line has {key} and {part}:\n{text}");
    }
    // The line of the file is named where there is one.
    assert!(text.lines().any(|line| line.contains("gateway.toml:2") && line.contains("listen")), "{text}");
}

#[test]
fn what_is_no_config_says_so() {
    for (name, config) in [("gateway.toml", "listen = "), ("gateway.yaml", "a: [b"), ("gateway.ini", "a=b")] {
        let output = check(name, config);
        assert!(!output.status.success(), "{name}: {}", text(&output));
        assert!(text(&output).contains(name), "{name}: {}", text(&output));
    }
    let output = run_to_end(&["check-config", "--config", "/nowhere/gateway.toml"]);
    assert!(!output.status.success() && text(&output).contains("/nowhere/gateway.toml"), "{}", text(&output));
}

#[test]
fn serve_refuses_a_bad_config_before_it_listens() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("gateway.toml");
    fs::write(&path, "colour = \"blue\"\n").expect("the directory is writable");
    let path = path.to_str().expect("a UTF-8 path");
    let output =
        run_to_end(&["serve", "--config", path, "--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"]);
    let text = text(&output);
    assert!(!output.status.success() && text.contains("colour"), "{text}");
    assert!(!text.contains("listening "), "{text}");
    // Insecure keys are named, not guessed: a namespace that needs history must have it.
    let output = check("gateway.toml", "[[namespaces]]\nname = \"chat\"\nforce_recovery = true\n");
    assert!(!output.status.success(), "force_recovery without history: {}", self::text(&output));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let output = run_to_end(&["--dev", "--listen", &address, "--internal-listen", "127.0.0.1:0"]);
    assert!(!output.status.success() && text(&output).contains(&address), "{}", text(&output));
}

#[tokio::test]
async fn tokens_that_it_prints_are_accepted() {
    let gateway = Gateway::start();
    let print = |arguments: &[&str]| -> String {
        let output = command().arg("token").args(arguments).env("EVENKEEL_TOKEN_HMAC_SECRET", SECRET).output();
        let output = output.expect("the gateway program can be started");
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    };
    let mut client = gateway.open().await;
    let result = client.connect_with(&print(&["--user", "ann", "--ttl", "90s"])).await;
    let ttl = result["ttl"].as_i64().expect("a ttl");
    assert!((85..=90).contains(&ttl), "{ttl}");
    let token = print(&["--user", "ann", "--channel", "vault:a"]);
    client.subscribe_with(json!({ "channel": "vault:a", "token": token })).await;
    // Without a secret there is nothing to sign with.
    let output = run_to_end(&["token", "--user", "ann"]);
    assert!(!output.status.success() && text(&output).contains("hmac_secret"), "{}", text(&output));
}

/// Waits until the fleet knows of this many connections.
async fn top_shows(gateway: &Gateway, start: &str) {
    let shows = async || {
        let output = run_to_end(&["top", "--once", "--url", gateway.internal_http()]);
        output.status.success() && text(&output).starts_with(start)
    };
    until("a digest", shows).await;
}

#[tokio::test]
async fn the_fleet_is_printed_where_there_is_no_terminal() {
    let gateway = Gateway::start();
    let _client = gateway.connect("ann").await;
    top_shows(&gateway, "1 connection on 1 node: 1 ready, 0 draining, 0 starting\n").await;
    let output = run_to_end(&["top", "--url", gateway.internal_http()]);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let row = text.lines().last().expect("a row of the node");
    assert!(row.contains(" ready ") && row.contains(" ####") && row.contains(" 100 % "), "{text}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn a_fleet_that_cannot_be_read_is_told() {
    let output = run_to_end(&["top", "--once", "--url", "http://127.0.0.1:1"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]));
    assert!(text(&output).starts_with("http://127.0.0.1:1 cannot be asked: "), "{}", text(&output));
    let gateway = Gateway::start();
    let output = run_to_end(&["top", "--once", "--url", &gateway.public_http()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("not the internal listener"), "{}", text(&output));
}

/// `script` gives the program a terminal and shows everything that is written to it.
#[tokio::test]
async fn on_a_terminal_the_fleet_is_watched_until_a_key_ends_it() {
    let gateway = Gateway::start();
    top_shows(&gateway, "0 connections on 1 node").await;
    for key in ["q", "\u{3}"] {
        let top = program("gateway").display().to_string();
        let line = format!("stty cols 100 rows 12; exec {top} top --interval 100ms --url {}", gateway.internal_http());
        let mut script = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script can be started");
        let mut keyboard = script.stdin.take().expect("a pipe");
        let shown = read_all(script.stdout.take().expect("a pipe"));
        let mut seen = String::new();
        // More than once, in place.
        wait_for(&shown, &mut seen, |seen| seen.matches("0 connections on 1 node").count() >= 3);
        keyboard.write_all(key.as_bytes()).expect("it listens");
        wait_for(&shown, &mut seen, |seen| seen.contains("\u{1b}[?1049l"));
        let status = script.wait().expect("it ends");
        assert!(status.success(), "{seen:?}");
        let (enter, leave) = (seen.find("\u{1b}[?1049h"), seen.find("\u{1b}[?1049l"));
        assert!(enter.is_some() && enter < leave, "{seen:?}");
        assert!(seen.contains("\u{1b}[?25l") && seen.contains("\u{1b}[?25h"), "the cursor is back: {seen:?}");
    }
}

/// What comes, whether or not it is asked for.
fn read_all(mut from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            // Nobody listens any more once the test is over.
            let _ = sender.send(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
    });
    receiver
}

fn wait_for(from: &mpsc::Receiver<String>, seen: &mut String, holds: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds(seen) {
        match from.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(more) => seen.push_str(&more),
            Err(error) => panic!("{error}: {seen:?}"),
        }
    }
}

#[test]
fn help_and_version_are_there() {
    for arguments in
        [&["--help"][..], &["--version"], &["serve", "--help"], &["token", "--help"], &["check-config", "--help"]]
    {
        let output = run_to_end(arguments);
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}: {}", text(&output));
    }
    let output = run_to_end(&["fly"]);
    assert!(!output.status.success(), "{}", text(&output));
}
