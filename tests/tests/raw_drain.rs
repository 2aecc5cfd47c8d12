//! How a node ends, or is emptied: who is closed when, who is still let in, and what an operator sees of it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::api::{Answer, send};
use tests::client::Client;
use tests::gateway::{CONFIG, Gateway};
use tests::http::{handshake_lines, request};
use tests::{until, within};

/// A gateway whose drain takes this long.
fn gateway(grace: &str, window: &str) -> Gateway {
    let config = CONFIG
        .replace("grace_accept = \"0s\"", &format!("grace_accept = \"{grace}\""))
        .replace("window = \"0s\"", &format!("window = \"{window}\""));
    Gateway::with(&config).start()
}

async fn connected(gateway: &Gateway, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for n in 0..count {
        clients.push(gateway.connect(&format!("user-{n}")).await);
    }
    clients
}

fn drain_url(gateway: &Gateway) -> String {
    format!("{}/admin/drain", gateway.internal_http())
}

async fn ask_to_drain(gateway: &Gateway) -> Answer {
    send(gateway.api().post_without_key(&drain_url(gateway)).header("X-Evenkeel-Admin", "1")).await
}

async fn progress(gateway: &Gateway) -> Value {
    send(gateway.api().get(&drain_url(gateway)).header("X-Evenkeel-Admin", "1")).await.json()
}

async fn not_ready(gateway: &Gateway) {
    until("readiness to go", async || gateway.internal_status("/health/ready").await == 503).await;
}

#[tokio::test]
async fn closes_are_spread_evenly_over_the_window() {
    const CLIENTS: usize = 60;
    const WINDOW: Duration = Duration::from_secs(6);
    // As many as go in three seconds.
    const LATE: usize = CLIENTS / 2;
    let gateway = gateway("0s", "6s");
    let clients = connected(&gateway, CLIENTS).await;
    let waiting: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                let closed = client.closed().await;
                assert_eq!(closed.code, Some(1001));
                Instant::now()
            })
        })
        .collect();
    let began = Instant::now();
    gateway.terminate();
    let mut times = Vec::new();
    for task in waiting {
        times.push(within("a close", task).await.expect("the client was closed with 1001").duration_since(began));
    }
    assert_eq!(gateway.exit_code().await, 0);
    let order: Vec<usize> = {
        let mut order: Vec<usize> = (0..CLIENTS).collect();
        order.sort_by_key(|index| times[*index]);
        order
    };
    assert!(!order.is_sorted(), "in random order");
    times.sort();
    // At an even pace that varies by a fifth. Nobody goes before that, but a machine that stands still makes everybody late.
    for third in 1..=3_u32 {
        let until = WINDOW * third / 3;
        let closed = times.iter().filter(|time| **time < until).count();
        let even = CLIENTS * third as usize / 3;
        let is_even = closed <= even + 6 && closed + LATE >= even;
        assert!(is_even, "{closed} closed after {until:?}, evenly {even}: {times:?}");
    }
}

#[tokio::test]
async fn during_the_grace_clients_are_let_in_and_afterwards_sent_away() {
    let gateway = gateway("2s", "10m");
    let mut early = gateway.connect("early").await;
    gateway.terminate();
    not_ready(&gateway).await;
    // Load balancers have not noticed yet.
    gateway.connect("late").await;
    let refused = async || request(gateway.public_address(), &handshake_lines(gateway.public_address())).await;
    until("the end of the grace", async || refused().await.status == 503).await;
    let response = refused().await;
    let after: u32 = response.header("retry-after").and_then(|value| value.parse().ok()).expect("Retry-After");
    assert!((1..=4).contains(&after), "{response:?}");
    assert_eq!(gateway.metric("gateway_draining ").await, Some(1.0));
    assert!(gateway.metric("gateway_drain_remaining ").await.is_some_and(|remaining| remaining >= 1.0));
    // Who has a connection can go on with it until it is closed.
    assert!(early.call(json!({ "rpc": {} })).await["error"].is_object());
}

#[tokio::test]
async fn an_operator_empties_a_node_and_a_signal_then_ends_it_at_once() {
    let gateway = gateway("0s", "200ms");
    let mut clients = connected(&gateway, 10).await;
    let url = drain_url(&gateway);
    // A page in an operator's browser could send this.
    assert_eq!(send(gateway.api().post_without_key(&url)).await.status, 403);
    assert_eq!(send(gateway.api().get(&url)).await.status, 403);
    assert_eq!(progress(&gateway).await["phase"], json!("serving"));
    let answer = ask_to_drain(&gateway).await;
    assert_eq!(answer.status, 202);
    assert_eq!((&answer.json()["at_start"], &answer.json()["exits"]), (&json!(10), &json!(false)));
    for client in &mut clients {
        client.expect_close(1001, "going away").await;
    }
    until("the node to be empty", async || progress(&gateway).await["phase"] == json!("drained")).await;
    let facts = send(gateway.api().get(&format!("{}/v1/node", gateway.internal_http()))).await.json();
    assert_eq!((&facts["drain"]["phase"], &facts["connections"]), (&json!("drained"), &json!(0)));
    assert!(gateway.is_running(), "the process stays");
    assert_eq!(ask_to_drain(&gateway).await.status, 202, "again is no mistake");
    gateway.terminate();
    assert_eq!(gateway.exit_code().await, 0);
}

#[tokio::test]
async fn a_token_is_needed_where_one_is_configured() {
    let config = format!("{CONFIG}\n[internal]\nadmin_token = \"a-token-for-operators\"\n");
    let gateway = Gateway::with(&config).start();
    let url = drain_url(&gateway);
    assert_eq!(ask_to_drain(&gateway).await.status, 401);
    let with_token = |token: &str| {
        let request = gateway.api().post_without_key(&format!("{url}?exit=true")).header("X-Evenkeel-Admin", "1");
        request.header("Authorization", format!("Bearer {token}"))
    };
    assert_eq!(send(with_token("a-token-for-operator")).await.status, 401);
    assert_eq!(send(with_token("a-token-for-operators")).await.status, 202);
    assert_eq!(gateway.exit_code().await, 0, "asked to, the process ends with the drain");
}

#[tokio::test]
async fn a_signal_during_an_operators_drain_does_not_cut_it_short_but_a_second_one_does() {
    let gateway = gateway("0s", "10m");
    let _clients = connected(&gateway, 3).await;
    ask_to_drain(&gateway).await;
    not_ready(&gateway).await;
    gateway.terminate();
    until("the signal to be noticed", async || progress(&gateway).await["exits"] == json!(true)).await;
    assert!(gateway.is_running());
    gateway.terminate();
    assert!(gateway.exit_code().await > 0, "a second signal ends at once, and not with success");
}

#[tokio::test]
async fn nobody_who_does_not_answer_holds_up_the_end_beyond_the_deadline() {
    let config = CONFIG.replace("window = \"0s\"", "window = \"0s\"\ndeadline = \"2s\"");
    let gateway = Gateway::with(&config).start();
    let _silent = gateway.connect("silent").await;
    let began = Instant::now();
    gateway.terminate();
    assert_eq!(gateway.exit_code().await, 0);
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(10), "{took:?}");
    assert!(gateway.log().contains("drain deadline"), "{}", gateway.log());
}
