//! Clients without tokens that come back with a session: what the application has said about them is said again without
//! asking it, for a time, to nobody else, and not after it was taken back.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::agent::Agent;
use tests::backend::{Answer, Backend};
use tests::client::Client;
use tests::fleet::Fleet;
use tests::front::Front;
use tests::gateway::{Gateway, config_with};
use tests::store::{Kind, Store};
use tests::until;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

tests::on_every_store! {
    a_client_that_comes_back_to_another_node_is_not_asked_about
    after_its_time_everything_is_asked_once
    other_credentials_are_asked_about
    whoever_is_banned_is_asked_about_on_every_node
    javascript_comes_back_to_another_node
    python_comes_back_to_another_node
}

const SESSION: &str = "page-load-0001";

const CHANNEL: &str = "gated:a";

/// Asks about connects and about subscribes in one namespace; cookies are passed on.
fn settings(backend: &Backend, verdict_ttl: &str) -> String {
    let (connect, subscribe) = (backend.url("/connect"), backend.url("/subscribe"));
    format!(
        r#"
[session]
verdict_ttl = "{verdict_ttl}"
[proxy]
http_headers = ["Cookie"]
[proxy.connect]
endpoint = "{connect}"
[[proxy.endpoints]]
name = "subscribe"
endpoint = "{subscribe}"
[[namespaces]]
name = "gated"
subscribe_proxy_enabled = true
subscribe_proxy_name = "subscribe"
presence = true
history_size = 100
history_ttl = "60s"
force_recovery = true
"#
    )
}

/// An application that lets everybody in as `ann`.
fn backend() -> Backend {
    let backend = Backend::start();
    welcome(&backend);
    backend
}

fn welcome(backend: &Backend) {
    let welcome = json!({ "user": "ann", "info": { "name": "Ann" }, "data": { "theme": 1 }, "channels": ["news:a"] });
    backend.accept("/connect", welcome);
    backend.accept("/subscribe", json!({ "info": { "role": "editor" }, "data": { "draft": 2 } }));
}

async fn fleet(kind: Kind, backend: &Backend, verdict_ttl: &str) -> (Store, Fleet) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(&settings(backend, verdict_ttl)), 2).await;
    (store, fleet)
}

/// One node without a shared backplane.
fn alone(backend: &Backend, verdict_ttl: &str) -> Gateway {
    Gateway::with(&(config_with("client", "") + &settings(backend, verdict_ttl))).start()
}

/// What a client shows of itself.
#[derive(Clone, Copy)]
struct Guise {
    session: &'static str,
    cookie: &'static str,
    connect: &'static str,
    subscribe: &'static str,
}

const ANN: Guise = Guise { session: SESSION, cookie: "sid=1", connect: "{}", subscribe: "[1]" };

/// Data that is there, or `null`.
fn data(text: &str) -> Value {
    serde_json::from_str(text).expect("the test writes JSON")
}

async fn open(node: &Gateway, guise: Guise) -> Client {
    let url = format!("{}?session={}", node.url(), guise.session);
    let mut request = url.into_client_request().expect("the gateway's own URL is valid");
    if !guise.cookie.is_empty() {
        request.headers_mut().insert("cookie", guise.cookie.parse().expect("a header value"));
    }
    Client::open_request(request).await.0
}

/// Connects and subscribes; returns both results as well.
async fn visit(node: &Gateway, guise: Guise) -> (Client, Value, Value) {
    let mut client = open(node, guise).await;
    let reply = client.call(json!({ "connect": { "data": data(guise.connect) } })).await;
    assert!(reply["connect"].is_object(), "{reply}");
    let subscribed = client.subscribe_with(json!({ "channel": CHANNEL, "data": data(guise.subscribe) })).await;
    (client, reply["connect"].clone(), subscribed)
}

async fn session(node: &Gateway) -> Value {
    node.api().ok("session_get", json!({ "user": "ann", "session": SESSION })).await
}

/// Waits until the session is written down at the end of its connection.
async fn until_ended(node: &Gateway) {
    until("the session to be without a connection", async || session(node).await["connected"] == json!(false)).await;
}

/// Ends a connection.
async fn leave(client: Client, node: &Gateway) {
    client.vanish();
    until_ended(node).await;
}

/// How often the application was asked since this was last looked at: about connects and about subscribes.
fn asked(backend: &mut Backend) -> [usize; 2] {
    let counts = ["/connect", "/subscribe"].map(|path| backend.count(path));
    backend.forget();
    counts
}

async fn reused(node: &Gateway, event: &str) -> f64 {
    node.metric(&format!("gateway_proxy_verdicts_reused_total{{event=\"{event}\"}}")).await.unwrap_or(0.0)
}

/// Everything but what must differ.
fn without_positions(mut result: Value) -> Value {
    for field in ["epoch", "offset"] {
        if let Some(result) = result.as_object_mut() {
            result.remove(field);
        }
    }
    result
}

/// From the first of these nodes to the second and back; they may be one and the same.
async fn comes_and_goes(backend: &mut Backend, nodes: [&Gateway; 2]) {
    let (mut client, first, subscribed) = visit(nodes[0], ANN).await;
    assert_eq!(asked(backend), [1, 1]);
    assert_eq!(first["data"], json!({ "theme": 1 }));
    assert_eq!(subscribed["data"], json!({ "draft": 2 }));
    for round in 0..3 {
        leave(client, nodes[round % 2]).await;
        let (back, again, subscribed_again) = visit(nodes[(round + 1) % 2], ANN).await;
        client = back;
        assert_eq!(asked(backend), [0, 0], "in round {round}");
        assert_eq!(again["client"], first["client"]);
        assert_eq!(again["data"], first["data"]);
        assert!(again["subs"]["news:a"].is_object(), "{again}");
        assert_eq!(without_positions(subscribed_again), without_positions(subscribed.clone()));
        let presence = nodes[0].api().ok("presence", json!({ "channel": CHANNEL })).await;
        let seen = &presence["presence"][first["client"].as_str().expect("an id")];
        assert_eq!(seen["user"], json!("ann"), "{presence}");
        assert_eq!(seen["conn_info"], json!({ "name": "Ann" }), "{presence}");
        assert_eq!(seen["chan_info"], json!({ "role": "editor" }), "{presence}");
    }
    // Whoever subscribes once more on the same connection is asked about.
    client.call(json!({ "unsubscribe": { "channel": CHANNEL } })).await;
    client.subscribe_with(json!({ "channel": CHANNEL, "data": [1] })).await;
    assert_eq!(asked(backend), [0, 1]);
}

async fn a_client_that_comes_back_to_another_node_is_not_asked_about(kind: Kind) {
    let mut backend = backend();
    let (_store, fleet) = fleet(kind, &backend, "1m").await;
    comes_and_goes(&mut backend, [&fleet[0], &fleet[1]]).await;
    for event in ["connect", "subscribe"] {
        assert_eq!((reused(&fleet[0], event).await, reused(&fleet[1], event).await), (1.0, 2.0), "{event}");
    }
}

#[tokio::test]
async fn on_one_node_in_memory_it_is_the_same() {
    let mut backend = backend();
    let node = alone(&backend, "1m");
    comes_and_goes(&mut backend, [&node, &node]).await;
    assert_eq!((reused(&node, "connect").await, reused(&node, "subscribe").await), (3.0, 3.0));
}

#[tokio::test]
async fn where_it_is_switched_off_everything_is_asked() {
    let mut backend = backend();
    let node = alone(&backend, "0s");
    for _ in 0..2 {
        let (client, ..) = visit(&node, ANN).await;
        assert_eq!(asked(&mut backend), [1, 1]);
        leave(client, &node).await;
    }
}

async fn after_its_time_everything_is_asked_once(kind: Kind) {
    const TTL: Duration = Duration::from_secs(5);
    let mut backend = backend();
    let (_store, fleet) = fleet(kind, &backend, "5s").await;
    let began = Instant::now();
    let (mut client, ..) = visit(&fleet[0], ANN).await;
    assert_eq!(asked(&mut backend), [1, 1]);
    let told = Instant::now();
    let (mut visits, mut torn) = (0, 0);
    loop {
        leave(client, &fleet[visits % 2]).await;
        visits += 1;
        let age = told.elapsed();
        (client, ..) = visit(&fleet[visits % 2], ANN).await;
        match asked(&mut backend) {
            [0, 0] => {}
            [1, 1] => break,
            // Its time may come between the two questions of one visit.
            [0, 1] if torn == 0 => torn += 1,
            counts => panic!("asked {counts:?} on visit {visits}"),
        }
        assert!(age < 2 * TTL, "a verdict holds for too long");
    }
    // It counts from the question, in whole seconds, however often it was said again, which it was until then.
    assert!(began.elapsed() >= TTL - Duration::from_secs(1), "{:?}", began.elapsed());
}

async fn other_credentials_are_asked_about(kind: Kind) {
    let mut backend = backend();
    let (_store, fleet) = fleet(kind, &backend, "1m").await;
    let mut node = 0;
    let mut come = async |guise: Guise| {
        let (client, ..) = visit(&fleet[node], guise).await;
        leave(client, &fleet[node]).await;
        node = 1 - node;
        asked(&mut backend)
    };
    assert_eq!(come(ANN).await, [1, 1]);
    assert_eq!(come(ANN).await, [0, 0]);
    let other_cookie = Guise { cookie: "sid=2", ..ANN };
    assert_eq!(come(other_cookie).await, [1, 1]);
    assert_eq!(come(other_cookie).await, [0, 0]);
    let other_data = Guise { connect: r#"{"token":"t"}"#, ..other_cookie };
    assert_eq!(come(other_data).await, [1, 1]);
    assert_eq!(come(other_data).await, [0, 0]);
    // Only the subscribe is another one.
    let other_wish = Guise { subscribe: "[2]", ..other_data };
    assert_eq!(come(other_wish).await, [0, 1]);
    assert_eq!(come(other_wish).await, [0, 0]);
    // Whoever knows nothing but the id is asked about every time, and leaves nothing for others.
    let bare = Guise { cookie: "", connect: "null", ..ANN };
    for _ in 0..2 {
        assert_eq!(come(bare).await, [1, 1]);
    }
    assert_eq!(come(other_wish).await, [1, 1]);
    // Another session is another matter.
    let other_session = Guise { session: "page-load-0002", ..other_wish };
    let (_client, ..) = visit(&fleet[0], other_session).await;
    assert_eq!(asked(&mut backend), [1, 1]);
}

async fn whoever_is_banned_is_asked_about_on_every_node(kind: Kind) {
    let mut backend = backend();
    let (_store, fleet) = fleet(kind, &backend, "1m").await;
    let gone = json!({ "disconnect": { "code": 4500, "reason": "banned" } });
    for is_connected in [true, false] {
        welcome(&backend);
        let (mut client, ..) = visit(&fleet[0], ANN).await;
        assert_eq!(asked(&mut backend), [1, 1], "connected: {is_connected}");
        let ban = json!({ "user": "ann" });
        if is_connected {
            fleet[1].api().ok("disconnect", ban).await;
            client.expect_close(3503, "force disconnect").await;
            client.finish().await;
        } else {
            leave(client, &fleet[0]).await;
            fleet[1].api().ok("disconnect", ban).await;
        }
        backend.answer("/connect", Answer::Json(gone.clone()));
        for node in [0, 1, 0] {
            let mut client = open(&fleet[node], ANN).await;
            client.send_json(json!({ "id": 1, "connect": { "data": {} } })).await;
            client.expect_close(4500, "banned").await;
            client.finish().await;
            assert_eq!(asked(&mut backend), [1, 0], "connected: {is_connected}, node {node}");
        }
    }
    // What is taken away while she stays connected is asked about, too, when she comes back.
    welcome(&backend);
    for (method, request) in
        [("unsubscribe", json!({ "user": "ann", "channel": CHANNEL })), ("refresh", json!({ "user": "ann" }))]
    {
        // Her first visit after a ban is asked about, and so is the one after.
        visit(&fleet[0], ANN).await.0.say_goodbye().await;
        let (client, ..) = visit(&fleet[0], ANN).await;
        asked(&mut backend);
        leave(client, &fleet[0]).await;
        let (client, ..) = visit(&fleet[0], ANN).await;
        assert_eq!(asked(&mut backend), [0, 0], "before {method}");
        fleet[1].api().ok(method, request).await;
        // Within a second her node says again that she has a session, but not what was said before.
        until("the session to be authorised", async || session(&fleet[1]).await.get("revoked").is_none()).await;
        leave(client, &fleet[0]).await;
        let (client, ..) = visit(&fleet[1], ANN).await;
        assert_eq!(asked(&mut backend), [1, 1], "after {method}");
        leave(client, &fleet[1]).await;
    }
    // So is a subscribe that was refused since.
    let (client, ..) = visit(&fleet[0], ANN).await;
    leave(client, &fleet[0]).await;
    asked(&mut backend);
    let (mut client, ..) = visit(&fleet[1], ANN).await;
    assert_eq!(asked(&mut backend), [0, 0]);
    client.call(json!({ "unsubscribe": { "channel": CHANNEL } })).await;
    backend.answer("/subscribe", Answer::Json(json!({ "error": { "code": 1000, "message": "no" } })));
    let subscribe = json!({ "subscribe": { "channel": CHANNEL, "data": [1] } });
    assert_eq!(client.error_code(subscribe.clone()).await, 1000);
    leave(client, &fleet[1]).await;
    asked(&mut backend);
    let mut client = open(&fleet[0], ANN).await;
    client.call(json!({ "connect": { "data": {} } })).await;
    assert_eq!(client.error_code(subscribe).await, 1000);
    assert_eq!(asked(&mut backend), [0, 1]);
}

async fn javascript_comes_back_to_another_node(kind: Kind) {
    moves(kind, Agent::node().await).await;
}

async fn python_comes_back_to_another_node(kind: Kind) {
    moves(kind, Agent::python().await).await;
}

/// The real SDK, which shows who it is in the data of its connect, cut off and drained.
async fn moves(kind: Kind, mut agent: Agent) {
    let mut backend = backend();
    let (_store, fleet) = fleet(kind, &backend, "1m").await;
    let front = Front::to(&fleet[0]).await;
    let (url, options) = (format!("{}?session={SESSION}", front.url()), json!({ "data": { "ticket": 17 } }));
    agent.ok(json!({ "op": "connect", "client": "ann", "url": url, "options": options })).await;
    let first = agent.take("ann", "connected").await;
    agent.subscribe("ann", CHANNEL).await;
    assert_eq!(asked(&mut backend), [1, 1]);
    // What is said about a subscribe is written down within a second.
    fleet[1].api().publish(CHANNEL, json!({ "n": 1 })).await;
    agent.take_number("ann", CHANNEL, 1).await;

    front.cut();
    agent.take_that("ann", "", "connecting", |context| context["code"] != json!(0)).await;
    until_ended(&fleet[1]).await;
    fleet[1].api().publish(CHANNEL, json!({ "n": 2 })).await;
    front.lead_to(&fleet[1]);
    let again = agent.take("ann", "connected").await;
    assert_eq!(again["client"], first["client"]);
    let subscribed = agent.take_from("ann", CHANNEL, "subscribed").await;
    assert_eq!(subscribed["recovered"], json!(true), "{subscribed}");
    agent.take_number("ann", CHANNEL, 2).await;
    assert_eq!(asked(&mut backend), [0, 0]);

    front.lead_to(&fleet[0]);
    fleet[1].terminate();
    let again = agent.take("ann", "connected").await;
    assert_eq!(again["client"], first["client"]);
    let subscribed = agent.take_from("ann", CHANNEL, "subscribed").await;
    assert_eq!(subscribed["recovered"], json!(true), "{subscribed}");
    assert_eq!(asked(&mut backend), [0, 0]);
    assert_eq!(agent.numbers("ann", CHANNEL), [1, 2]);
}
