//! Event proxies with the real SDKs and a real backend: every hook accepts, refuses, disconnects and fails in every way
//! that a backend can fail.

use serde_json::json;
use tests::agent::Agent;
use tests::backend::{Answer, Backend};
use tests::gateway::{CONFIG, Gateway};
use tests::until;

/// Seconds until what is to expire does so: it must not before it has arrived.
const SOON: i64 = 2;

/// Every hook has a path of its own. Answers are awaited no longer than by default, as silence is one of them.
fn config(backend: &Backend) -> String {
    let mut config = format!(
        r#"{CONFIG}
[proxy]
response_bytes = "64KiB"
breaker_failures = 3
breaker_pause = "100ms"
http_headers = ["User-Agent", "Authorization"]
emulated_headers = ["Authorization"]
static_headers = ["X-Key: backend-secret"]
include_connection_meta = true
connect.endpoint = "{}"
refresh.endpoint = "{}"

[rpc]
proxy_enabled = true
proxy_name = "rpc"

[[namespaces]]
name = "gated"
subscribe_proxy_enabled = true
subscribe_proxy_name = "subscribe"
publish_proxy_enabled = true
publish_proxy_name = "publish"
sub_refresh_proxy_enabled = true
sub_refresh_proxy_name = "sub_refresh"
"#,
        backend.url("/connect"),
        backend.url("/refresh")
    );
    for name in ["subscribe", "publish", "sub_refresh", "rpc"] {
        let url = backend.url(&format!("/{name}"));
        config += &format!("\n[[proxy.endpoints]]\nname = \"{name}\"\nendpoint = \"{url}\"\n");
    }
    config
}

/// All ways to fail, each of which is a temporary error 100 for the client.
fn failures() -> [(&'static str, Answer); 6] {
    [
        ("silence", Answer::Silence),
        ("nonsense", Answer::Text(200, "<html>".to_owned())),
        ("a wrong result", Answer::Json(json!({ "result": "yes" }))),
        ("too large an answer", Answer::Json(json!({ "result": {}, "more": "x".repeat(70_000) }))),
        ("a status", Answer::Text(500, r#"{"result":{}}"#.to_owned())),
        ("an overload", Answer::Text(503, String::new())),
    ]
}

fn error() -> Answer {
    Answer::Json(json!({ "error": { "code": 1000, "message": "not you" } }))
}

fn disconnect(code: u32) -> Answer {
    Answer::Json(json!({ "disconnect": { "code": code, "reason": "go away" } }))
}

struct Scene {
    backend: Backend,
    gateway: Gateway,
    agent: Agent,
    clients: usize,
}

impl Scene {
    async fn new(agent: Agent) -> Self {
        let backend = Backend::start();
        let gateway = Gateway::with(&config(&backend)).start();
        Self { backend, gateway, agent, clients: 0 }
    }

    /// Starts a client without a token.
    async fn start_client(&mut self) -> String {
        self.clients += 1;
        let name = format!("client{}", self.clients);
        let url = self.gateway.url().to_owned();
        self.agent.ok(json!({ "op": "connect", "client": name, "url": url })).await;
        name
    }

    /// A client that the backend has let in as `ann`.
    async fn client(&mut self) -> String {
        self.backend.accept("/connect", json!({ "user": "ann" }));
        let name = self.start_client().await;
        self.agent.take(&name, "connected").await;
        name
    }

    async fn subscribed(&mut self, channel: &str) -> String {
        let name = self.client().await;
        self.backend.accept("/subscribe", json!({}));
        self.agent.subscribe(&name, channel).await;
        name
    }

    /// Waits until the SDK has tried a second time: the error was a temporary one.
    async fn asked_again(&mut self, path: &str, why: &str) {
        self.backend.forget();
        for _ in 0..2 {
            self.backend.asked(path).await;
        }
        println!("{path}: {why} is tried again");
    }

    async fn connects(&mut self) {
        let url = self.gateway.url().to_owned();
        self.backend.accept(
            "/connect",
            json!({ "user": "ann", "info": { "n": 1 }, "data": { "hi": 1 }, "meta": { "m": 1 }, "channels": ["news:a"] }),
        );
        let options = json!({ "headers": { "Authorization": "Bearer t", "X-Key": "forged" } });
        self.agent.ok(json!({ "op": "connect", "client": "first", "url": url, "options": options })).await;
        let connected = self.agent.take("first", "connected").await;
        assert_eq!(connected["data"], json!({ "hi": 1 }), "{connected}");
        let asked = self.backend.asked("/connect").await;
        assert_eq!(asked.body["client"], connected["client"], "{}", asked.body);
        assert_eq!(
            [&asked.body["transport"], &asked.body["protocol"], &asked.body["encoding"]],
            ["websocket", "json", "json"]
        );
        assert!(asked.body.get("user").is_none(), "{}", asked.body);
        assert_eq!(asked.header("authorization"), "Bearer t");
        assert_eq!(asked.header("x-key"), "backend-secret");
        assert_eq!(asked.header("content-type"), "application/json");

        self.backend.accept("/rpc", json!({ "data": { "sum": 3 } }));
        let result = self.agent.ok(json!({ "op": "rpc", "client": "first", "method": "add", "data": [1, 2] })).await;
        assert_eq!(result["data"], json!({ "sum": 3 }));
        let asked = self.backend.asked("/rpc").await;
        assert_eq!(asked.body["user"], json!("ann"));
        assert_eq!(asked.body["meta"], json!({ "m": 1 }));
        assert_eq!([&asked.body["method"], &asked.body["data"]], [&json!("add"), &json!([1, 2])]);
        assert_eq!(asked.header("authorization"), "Bearer t", "what was emulated at connect goes with every call");

        self.backend.answer("/connect", error());
        let name = self.start_client().await;
        assert_eq!(self.agent.take(&name, "disconnected").await["code"], json!(1000), "an error of the application");
        self.backend.answer("/connect", disconnect(4500));
        let name = self.start_client().await;
        assert_eq!(self.agent.take(&name, "disconnected").await["code"], json!(4500), "a final disconnect");
        self.backend.answer("/connect", disconnect(4001));
        let name = self.start_client().await;
        self.asked_again("/connect", "a disconnect that is not final").await;
        self.backend.accept("/connect", json!({ "user": "ann" }));
        self.agent.take(&name, "connected").await;

        self.backend.answer("/connect", Answer::Json(json!({})));
        let name = self.start_client().await;
        assert_eq!(self.agent.take(&name, "disconnected").await["code"], json!(3501), "nobody said who it is");
        for (why, failure) in failures() {
            self.backend.answer("/connect", failure);
            let name = self.start_client().await;
            self.asked_again("/connect", why).await;
            self.backend.accept("/connect", json!({ "user": "ann" }));
            self.agent.take(&name, "connected").await;
        }
    }

    async fn subscribes(&mut self) {
        let name = self.client().await;
        self.backend.accept("/subscribe", json!({ "data": { "topic": 1 } }));
        let subscribed = self.agent.subscribe(&name, "gated:a").await;
        assert_eq!(subscribed["data"], json!({ "topic": 1 }));
        self.backend.forget();
        self.agent.subscribe(&name, "gated:b").await;
        let asked = self.backend.asked("/subscribe").await;
        assert_eq!([&asked.body["user"], &asked.body["channel"]], ["ann", "gated:b"]);

        self.backend.answer("/subscribe", error());
        self.agent.ok(json!({ "op": "subscribe", "client": name, "channel": "gated:c" })).await;
        assert_eq!(self.agent.take_from(&name, "gated:c", "unsubscribed").await["code"], json!(1000));
        self.backend.answer("/subscribe", Answer::Json(json!({})));
        self.agent.ok(json!({ "op": "subscribe", "client": name, "channel": "gated:d" })).await;
        assert_eq!(self.agent.take_from(&name, "gated:d", "unsubscribed").await["code"], json!(103));
        for (why, failure) in failures() {
            let channel = format!("gated:{}", why.replace(' ', "_"));
            self.backend.answer("/subscribe", failure);
            self.agent.ok(json!({ "op": "subscribe", "client": name, "channel": channel })).await;
            self.asked_again("/subscribe", why).await;
            self.backend.accept("/subscribe", json!({}));
            self.agent.take_from(&name, &channel, "subscribed").await;
        }
        self.backend.answer("/subscribe", disconnect(4500));
        self.agent.ok(json!({ "op": "subscribe", "client": name, "channel": "gated:z" })).await;
        assert_eq!(self.agent.take(&name, "disconnected").await["code"], json!(4500));
    }

    /// Publish and rpc: the answer goes to the caller.
    async fn calls(&mut self) {
        let name = self.subscribed("gated:a").await;
        let publish = json!({ "op": "publish", "client": name, "channel": "gated:a", "data": { "n": 1 } });
        self.backend.accept("/publish", json!({}));
        self.agent.ok(publish.clone()).await;
        let publication = self.agent.take_number(&name, "gated:a", 1).await;
        assert_eq!(publication["info"]["user"], json!("ann"), "{publication}");
        self.backend.accept("/publish", json!({ "data": { "n": 2 }, "tags": { "a": "b" } }));
        self.agent.ok(publish.clone()).await;
        let publication = self.agent.take_number(&name, "gated:a", 2).await;
        assert_eq!(publication["tags"], json!({ "a": "b" }), "{publication}");
        let asked = self.backend.asked("/publish").await;
        assert_eq!([&asked.body["user"], &asked.body["channel"]], ["ann", "gated:a"]);
        assert_eq!(asked.body["data"], json!({ "n": 1 }));

        let rpc = json!({ "op": "rpc", "client": name, "method": "m", "data": {} });
        for (path, command) in [("/publish", publish), ("/rpc", rpc)] {
            self.backend.answer(path, error());
            assert_eq!(self.agent.error(command.clone()).await, 1000, "{path}");
            for (why, failure) in failures() {
                self.backend.answer(path, failure);
                assert_eq!(self.agent.error(command.clone()).await, 100, "{path}: {why}");
            }
            self.backend.answer(path, disconnect(4001));
            // What the SDK tells the caller differs from one to the other; all connect again.
            self.agent.send(command);
            self.agent.take_that(&name, "", "connecting", |context| context["code"] == json!(4001)).await;
            self.agent.take(&name, "connected").await;
        }
        assert_eq!(self.agent.numbers(&name, "gated:a"), [1, 2], "what was refused is not published");
    }

    async fn expires(&mut self) {
        let soon = || Answer::Expiring(json!({ "user": "ann" }), SOON);
        // Prolonged once, then over: the SDK comes back.
        self.backend.answer("/connect", soon());
        self.backend.answer("/refresh", Answer::Expiring(json!({}), SOON));
        let name = self.start_client().await;
        let connected = self.agent.take(&name, "connected").await;
        let asked = self.backend.asked("/refresh").await;
        assert_eq!([&asked.body["user"], &asked.body["client"]], [&json!("ann"), &connected["client"]]);
        self.backend.accept("/connect", json!({ "user": "ann" }));
        self.backend.accept("/refresh", json!({ "expired": true }));
        self.backend.asked("/refresh").await;
        self.agent.take_that(&name, "", "connecting", |context| context["code"] == json!(3005)).await;
        self.agent.take(&name, "connected").await;

        // A backend that fails costs nobody the connection; one that refuses does.
        self.backend.answer("/connect", soon());
        self.backend.answer("/refresh", Answer::Text(500, String::new()));
        let kept = self.start_client().await;
        self.agent.take(&kept, "connected").await;
        self.backend.asked("/refresh").await;
        self.backend.accept("/rpc", json!({ "data": {} }));
        self.agent.ok(json!({ "op": "rpc", "client": kept, "method": "m", "data": {} })).await;
        self.backend.answer("/connect", soon());
        self.backend.answer("/refresh", error());
        let name = self.start_client().await;
        self.agent.take(&name, "connected").await;
        self.agent.take_that(&name, "", "connecting", |context| context["code"] == json!(3005)).await;
        let of_kept = self.agent.contexts(&kept, "", "connecting");
        assert!(of_kept.iter().all(|context| context["code"] != json!(3005)), "{of_kept:?}");
    }

    async fn subscriptions_expire(&mut self) {
        let name = self.client().await;
        self.backend.answer("/subscribe", Answer::Expiring(json!({}), SOON));
        self.backend.answer("/sub_refresh", Answer::Expiring(json!({}), SOON));
        self.agent.subscribe(&name, "gated:a").await;
        let asked = self.backend.asked("/sub_refresh").await;
        assert_eq!([&asked.body["user"], &asked.body["channel"]], ["ann", "gated:a"]);
        self.backend.accept("/subscribe", json!({}));
        self.backend.answer("/sub_refresh", Answer::Json(json!({})));
        self.backend.asked("/sub_refresh").await;
        self.agent.take_that(&name, "gated:a", "subscribing", |context| context["code"] == json!(2501)).await;
        self.agent.take_from(&name, "gated:a", "subscribed").await;

        self.backend.answer("/subscribe", Answer::Expiring(json!({}), SOON));
        self.backend.answer("/sub_refresh", Answer::Silence);
        self.agent.subscribe(&name, "gated:b").await;
        self.backend.asked("/sub_refresh").await;
        let timeouts = r#"gateway_proxy_seconds_count{proxy="sub_refresh",outcome="timeout"}"#;
        let given_up = async || self.gateway.metric(timeouts).await.is_some_and(|count| count >= 1.0);
        until("the gateway to wait no longer", given_up).await;
        self.backend.accept("/publish", json!({}));
        self.agent.ok(json!({ "op": "publish", "client": name, "channel": "gated:b", "data": { "n": 1 } })).await;
        self.agent.take_number(&name, "gated:b", 1).await;
        assert!(self.agent.contexts(&name, "gated:b", "unsubscribed").is_empty());
        assert_eq!(self.agent.contexts(&name, "gated:b", "subscribing").len(), 1, "it was never made anew");
    }

    /// A backend that is away: calls fail at once after a few, and are made again when it is back.
    async fn outage(&mut self) {
        let name = self.client().await;
        let rpc = json!({ "op": "rpc", "client": name, "method": "m", "data": {} });
        self.backend.accept("/rpc", json!({ "data": {} }));
        self.agent.ok(rpc.clone()).await;
        self.backend.go_down();
        let open = r#"gateway_proxy_breaker_open{proxy="rpc"}"#;
        let refused = r#"gateway_proxy_refused_total{proxy="rpc"}"#;
        let before = self.gateway.metric(refused).await.unwrap_or_default();
        let (agent, gateway) = (&mut self.agent, &self.gateway);
        until("calls are refused without being made", async || {
            assert_eq!(agent.error(rpc.clone()).await, 100);
            gateway.metric(refused).await.is_some_and(|refused| refused > before)
        })
        .await;
        assert_eq!(gateway.metric(open).await, Some(1.0));
        self.backend.go_up();
        until("calls succeed again", async || agent.call(rpc.clone()).await.get("error").is_none()).await;
        until("the metric tells", async || gateway.metric(open).await == Some(0.0)).await;
        let unreachable = r#"gateway_proxy_seconds_count{proxy="rpc",outcome="unreachable"}"#;
        assert!(gateway.metric(unreachable).await.is_some_and(|count| count >= 3.0));
        let in_flight = r#"gateway_proxy_calls_in_flight{proxy="rpc"}"#;
        assert_eq!(gateway.metric(in_flight).await, Some(0.0));
    }

    async fn everything(mut self) {
        self.connects().await;
        self.subscribes().await;
        self.calls().await;
        self.expires().await;
        self.subscriptions_expire().await;
        self.outage().await;
        let log = self.gateway.log();
        assert!(!log.contains("backend-secret") && !log.contains("Bearer t"), "a secret is in the log");
    }
}

#[tokio::test]
async fn every_hook_with_the_javascript_sdk() {
    Scene::new(Agent::node().await).await.everything().await;
}

#[tokio::test]
async fn every_hook_with_the_python_sdk() {
    Scene::new(Agent::python().await).await.everything().await;
}
