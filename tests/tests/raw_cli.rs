//! The command line: `check-config`, `token`, and mistakes before anything listens.

use std::fs;
use std::process::Output;

use serde_json::json;
use tests::gateway::{CONFIG, Gateway, SECRET, command, run_to_end};

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
