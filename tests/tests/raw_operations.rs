//! What an operator sees: health, metrics, dev mode, drain on SIGTERM, reload on SIGHUP.

use serde_json::json;
use tests::api::{Answer, send};
use tests::gateway::{API_KEY, CONFIG, Gateway, SECRET};
use tests::http::handshake_lines;
use tests::tokens;

async fn get(gateway: &Gateway, path: &str) -> Answer {
    send(gateway.api().get(&format!("{}{path}", gateway.internal_http()))).await
}

/// The value of a metric line that starts with this name and labels.
fn metric(text: &str, line_start: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(line_start));
    let line = line.unwrap_or_else(|| panic!("no metric {line_start} in\n{text}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no value: {line}"))
}

#[tokio::test]
async fn health_and_metrics_are_internal() {
    let gateway = Gateway::start();
    for path in ["/health/live", "/health/ready", "/health"] {
        assert_eq!(get(&gateway, path).await.status, 200, "{path}");
    }
    for path in ["/health", "/health/live", "/metrics"] {
        let answer = send(gateway.api().get(&format!("{}{path}", gateway.public_http()))).await;
        assert_eq!(answer.status, 404, "{path} is not for the public");
    }
    let mut client = gateway.connect("zoe-17").await;
    client.subscribe("chat:secret-place").await;
    gateway.api().publish("chat:secret-place", json!(1)).await;
    client.publication("chat:secret-place").await;
    // Counters are handed on from time to time, so that counting costs nothing per delivery.
    let delivered = async { while metric(&get(&gateway, "/metrics").await.text, "gateway_deliveries_total") < 1.0 {} };
    tests::within("the delivery to be counted", delivered).await;
    let text = get(&gateway, "/metrics").await.text;
    for (line, value) in [
        ("gateway_connections ", 1.0),
        ("gateway_connects_total{result=\"established\"}", 1.0),
        ("gateway_deliveries_total", 1.0),
        ("gateway_publish_seconds_count", 1.0),
        ("gateway_backplane_up", 1.0),
    ] {
        assert_eq!(metric(&text, line), value, "{line}");
    }
    assert!(metric(&text, "gateway_messages_received_total") >= 2.0);
    let mut refused = gateway.open().await;
    refused.send_text("hello").await;
    refused.expect_close(3501, "bad request").await;
    let text = get(&gateway, "/metrics").await.text;
    assert_eq!(metric(&text, "gateway_disconnects_total{code=\"3501\"}"), 1.0);
    for part in ["zoe-17", "secret-place"] {
        assert!(!text.contains(part), "no label names a user or a channel");
    }
}

#[tokio::test]
async fn dev_mode_prints_what_one_needs_and_lets_anyone_chat() {
    let gateway = Gateway::without_config().arg("--dev").start();
    gateway.stdout_line(gateway.url());
    let curl = gateway.stdout_line("curl ");
    assert!(curl.contains("/api/publish") && curl.contains("X-API-Key"), "{curl}");
    // Anonymous, any channel, with history and presence.
    let mut client = gateway.open().await;
    let reply = client.call(json!({ "connect": {} })).await;
    assert!(reply["connect"].is_object(), "{reply}");
    client.subscribe("anything").await;
    client.subscribe("any:thing").await;
    let reply = client.call(json!({ "publish": { "channel": "anything", "data": { "text": "hi" } } })).await;
    assert_eq!(reply["publish"], json!({}), "{reply}");
    client.publication("anything").await;
    let history = client.call(json!({ "history": { "channel": "anything", "limit": 10 } })).await;
    assert_eq!(history["history"]["publications"][0]["data"], json!({ "text": "hi" }), "{history}");
    let stats = client.call(json!({ "presence_stats": { "channel": "anything" } })).await;
    assert_eq!(stats["presence_stats"], json!({ "num_clients": 1, "num_users": 1 }));
    // The line for the shell works as it is printed.
    let mut lobby = gateway.open().await;
    lobby.call(json!({ "connect": {} })).await;
    lobby.subscribe("chat:lobby").await;
    let output = std::process::Command::new("sh").arg("-c").arg(&curl).output().expect("a shell");
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && answer.contains("\"offset\":1"), "{curl}: {output:?}");
    lobby.publication("chat:lobby").await;
    // The demo page needs nothing from outside.
    let page = send(gateway.api().get(&gateway.public_http())).await;
    assert_eq!(page.status, 200, "{page:?}");
    assert!(page.content_type.starts_with("text/html"), "{page:?}");
    for outside in ["src=\"http", "href=\"http", "src='http", "@import", "//cdn"] {
        assert!(!page.text.contains(outside), "the page loads something from outside: {outside}");
    }
    // Only pages on this machine may connect.
    let mut lines = handshake_lines(gateway.public_address());
    lines.push("Origin: https://evil.com".to_owned());
    assert_eq!(tests::http::request(gateway.public_address(), &lines).await.status, 403);
    lines.pop();
    lines.push("Origin: http://localhost:4321".to_owned());
    assert_eq!(tests::http::request(gateway.public_address(), &lines).await.status, 101);
    // The page is for playing only.
    let serious = Gateway::start();
    assert_eq!(send(serious.api().get(&serious.public_http())).await.status, 404);
}

#[tokio::test]
async fn dev_mode_honours_the_keys_of_the_environment() {
    let gateway = Gateway::without_config()
        .arg("--dev")
        .env("EVENKEEL_API_KEY", API_KEY)
        .env("EVENKEEL_TOKEN_HMAC_SECRET", SECRET)
        .start();
    let mut client = gateway.connect("ann").await;
    client.subscribe("room").await;
    gateway.api().publish("room", json!(1)).await;
    client.publication("room").await;
    let mut refused = gateway.open().await;
    let forged = tokens::sign(&json!({ "alg": "HS256" }), &json!({ "sub": "ann" }), "another secret");
    refused.send_json(json!({ "connect": { "token": forged }, "id": 1 })).await;
    refused.expect_close(3500, "invalid token").await;
}

#[tokio::test]
async fn the_environment_sets_any_key() {
    let gateway = Gateway::with(CONFIG).env("EVENKEEL_CLIENT__ALLOW_ANONYMOUS", "true").start();
    let reply = gateway.open().await.call(json!({ "connect": {} })).await;
    assert!(reply["connect"].is_object(), "{reply}");
    let config = CONFIG.replace(SECRET, "another-secret-0123456789abcdef00");
    let gateway = Gateway::with(&config).env("EVENKEEL_TOKEN_HMAC_SECRET", SECRET).start();
    gateway.connect("ann").await;
}

#[tokio::test]
async fn a_drain_closes_everyone_with_1001_and_ends_with_success() {
    let gateway = Gateway::start();
    let mut clients = Vec::new();
    for n in 0..20 {
        let mut client = gateway.connect(&format!("user-{n}")).await;
        client.subscribe("chat:a").await;
        clients.push(client);
    }
    gateway.api().publish("chat:a", json!("last")).await;
    gateway.terminate();
    for client in &mut clients {
        // What was accepted is flushed before the close.
        assert_eq!(client.publication("chat:a").await["data"], json!("last"));
        client.expect_close(1001, "going away").await;
    }
    assert_eq!(gateway.exit_code().await, 0);
}

#[tokio::test]
async fn an_interrupt_drains_too_and_without_connections_it_ends_at_once() {
    let gateway = Gateway::start();
    gateway.interrupt();
    assert_eq!(gateway.exit_code().await, 0);
}

#[tokio::test]
async fn during_a_long_drain_readiness_is_false_and_a_second_signal_ends_it() {
    let gateway = Gateway::with(&CONFIG.replace("window = \"0s\"", "window = \"10m\"")).start();
    let mut clients = Vec::new();
    for n in 0..10 {
        clients.push(gateway.connect(&format!("user-{n}")).await);
    }
    gateway.terminate();
    // The end of readiness is the event to wait for; alive it is until it has ended.
    let not_ready = async {
        while get(&gateway, "/health/ready").await.status == 200 {
            tokio::task::yield_now().await;
        }
    };
    tests::within("readiness to go", not_ready).await;
    assert_eq!(get(&gateway, "/health/ready").await.status, 503);
    assert_eq!(get(&gateway, "/health/live").await.status, 200);
    assert!(gateway.is_running());
    gateway.terminate();
    let code = gateway.exit_code().await;
    assert!(code > 0, "a second signal ends at once, and not with success: {code}");
}

#[tokio::test]
async fn a_hang_up_reloads_keys_origins_and_namespaces() {
    let gateway = Gateway::start();
    let mut client = gateway.connect("ann").await;
    assert_eq!(client.error_code(json!({ "subscribe": { "channel": "fresh:a" } })).await, 102);
    let config =
        CONFIG.replace(API_KEY, "rotated-api-key-0123456789").replace(SECRET, "rotated-secret-0123456789abcdef00")
            + "\n[[namespaces]]\nname = \"fresh\"\nallow_subscribe_for_client = true\n";
    gateway.rewrite_config(&config);
    gateway.hang_up();
    let api = gateway.api().with_key("rotated-api-key-0123456789");
    let reloaded = async {
        while send(api.post("info").body("{}")).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tests::within("the new API key", reloaded).await;
    assert_eq!(send(gateway.api().post("info").body("{}")).await.status, 401, "the old key is gone");
    // The connection lives on and sees the new namespace.
    client.subscribe("fresh:a").await;
    api.publish("fresh:a", json!(1)).await;
    client.publication("fresh:a").await;
    let mut old = gateway.open().await;
    old.send_json(json!({ "connect": { "token": tokens::connection(json!({ "sub": "ann" })) }, "id": 1 })).await;
    old.expect_close(3500, "invalid token").await;
    let claims = json!({ "sub": "ann", "exp": tokens::now() + 60 });
    let token = tokens::sign(&json!({ "alg": "HS256" }), &claims, "rotated-secret-0123456789abcdef00");
    gateway.open().await.connect_with(&token).await;

    // A broken file changes nothing and is told in the log.
    gateway.rewrite_config("api = 17\n");
    gateway.hang_up();
    let told = async {
        while !gateway.log().contains("api") || gateway.log().matches("gateway.toml").count() == 0 {
            assert_eq!(send(api.post("info").body("{}")).await.status, 200);
        }
    };
    tests::within("a word about the broken file", told).await;
    api.publish("fresh:a", json!(2)).await;
    client.publication("fresh:a").await;
}

#[tokio::test]
async fn logs_can_be_json() {
    let gateway = Gateway::with(&format!("[log]\nformat = \"json\"\n{CONFIG}")).start();
    gateway.terminate();
    assert_eq!(gateway.exit_code().await, 0);
    let log = gateway.log();
    assert!(!log.trim().is_empty(), "the start is logged");
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert!(value["level"].is_string(), "{line}");
    }
}
