//! Who is let in: rates, bounds on handshakes, addresses and users, and who a client is behind a load balancer.

use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Socket, Type};
use tests::client::Client;
use tests::gateway::{CONFIG, Gateway, config_with};
use tests::http::{Response, handshake_lines, request};
use tests::{until, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn with_section(section: &str) -> Gateway {
    Gateway::with(&format!("{CONFIG}\n{section}\n")).start()
}

/// A handshake with these headers.
async fn handshake(gateway: &Gateway, headers: &[&str]) -> Response {
    let mut lines = handshake_lines(gateway.public_address());
    lines.extend(headers.iter().map(|line| (*line).to_owned()));
    request(gateway.public_address(), &lines).await
}

/// A TCP connection from this address of the loopback network.
async fn connect_from(source: &str, gateway: &Gateway) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let source: std::net::SocketAddr = format!("{source}:0").parse().expect("an address");
    socket.bind(&source.into()).expect("all of 127.0.0.0/8 is ours");
    let target: std::net::SocketAddr = gateway.public_address().parse().expect("an address");
    socket.connect(&target.into()).expect("the gateway listens");
    socket.set_nonblocking(true).expect("the option is known");
    TcpStream::from_std(socket.into()).expect("the runtime runs")
}

/// What comes back when these bytes and then a handshake are sent; empty when the connection just ends.
async fn answer_to(gateway: &Gateway, mut stream: TcpStream, first: &[u8]) -> String {
    let head = format!("{}\r\n\r\n", handshake_lines(gateway.public_address()).join("\r\n"));
    let _closed_meanwhile = within("room to write", stream.write_all(&[first, head.as_bytes()].concat())).await;
    let mut chunk = [0; 1024];
    let read = within("an answer", stream.read(&mut chunk)).await.unwrap_or(0);
    String::from_utf8_lossy(&chunk[..read]).lines().next().unwrap_or_default().to_owned()
}

fn retry_after(response: &Response) -> u32 {
    response.header("retry-after").and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{response:?}"))
}

#[tokio::test]
async fn more_upgrades_than_the_rate_are_sent_away_and_the_api_goes_on() {
    let gateway = with_section("[admission]\nrate = 4\nramp = \"0s\"");
    let mut refused = 0;
    for _ in 0..100 {
        let response = handshake(&gateway, &[]).await;
        if response.status == 503 {
            assert!((1..=4).contains(&retry_after(&response)));
            refused += 1;
        } else {
            assert_eq!(response.status, 101);
        }
    }
    // Each shard has a bucket of ten; the rest is what a slow run earns.
    assert!(refused >= 20, "{refused} refused");
    assert_eq!(gateway.metric("gateway_connects_total{result=\"rate\"}").await, Some(f64::from(refused)));
    gateway.api().publish("chat:a", json!(1)).await;
}

#[tokio::test]
async fn a_user_has_so_many_connections() {
    let gateway = Gateway::with(&config_with("client", "connections_per_user = 2")).start();
    let one = gateway.connect("ann").await;
    let mut two = gateway.connect("ann").await;
    let mut three = gateway.open().await;
    three
        .send_json(json!({ "id": 1, "connect": { "token": tests::tokens::connection(json!({ "sub": "ann" })) } }))
        .await;
    three.expect_close(3504, "connection limit").await;
    gateway.connect("bob").await;
    one.vanish();
    until("room for another", async || {
        let mut again = gateway.open().await;
        again
            .send_json(json!({ "id": 1, "connect": { "token": tests::tokens::connection(json!({ "sub": "ann" })) } }))
            .await;
        again.peek_message().await.is_some()
    })
    .await;
    assert!(two.call(json!({ "rpc": {} })).await["error"].is_object(), "the others noticed nothing");
    assert!(
        gateway.metric("gateway_connects_total{result=\"user_connections\"}").await.is_some_and(|count| count >= 1.0)
    );
}

#[tokio::test]
async fn an_address_is_what_a_trusted_proxy_says_it_is() {
    let gateway =
        with_section("[admission]\nconnections_per_address = 2\n[client_address]\ntrusted_proxies = [\"127.0.0.1\"]");
    let host = gateway.public_address().to_owned();
    // Held open: only live connections count.
    let mut held = Vec::new();
    let mut open = async |address: &str| {
        let mut stream = TcpStream::connect(&host).await.expect("the gateway listens");
        let mut lines = handshake_lines(&host);
        lines.push(format!("X-Forwarded-For: 198.51.100.99, {address}"));
        let head = format!("{}\r\n\r\n", lines.join("\r\n"));
        stream.write_all(head.as_bytes()).await.expect("room to write");
        let mut chunk = [0; 256];
        let read = within("an answer", stream.read(&mut chunk)).await.expect("an answer");
        held.push(stream);
        String::from_utf8_lossy(&chunk[..read]).split(' ').nth(1).map(str::to_owned).unwrap_or_default()
    };
    for (address, expected) in [
        ("203.0.113.7", "101"),
        ("203.0.113.7", "101"),
        ("203.0.113.7", "429"),
        ("203.0.113.8", "101"),
        ("2001:db8::1", "101"),
        ("2001:db8::2", "101"),
        ("2001:db8::3", "429"),
    ] {
        assert_eq!(open(address).await, expected, "{address}");
    }
    for _ in 0..5 {
        // Loopback, but not that of the proxy.
        assert_eq!(open("127.0.0.9").await, "101", "loopback is never counted");
    }
    let refused = gateway.metric("gateway_connects_total{result=\"address_connections\"}").await;
    assert_eq!(refused, Some(2.0));
    held.clear();
    until("room for the address", async || handshake(&gateway, &["X-Forwarded-For: 203.0.113.7"]).await.status == 101)
        .await;
}

#[tokio::test]
async fn an_address_that_asks_too_often_is_sent_away() {
    let gateway =
        with_section("[admission]\nrate_per_address = 3\n[client_address]\ntrusted_proxies = [\"127.0.0.0/8\"]");
    let mut statuses = Vec::new();
    for _ in 0..30 {
        let response = handshake(&gateway, &["X-Forwarded-For: 203.0.113.7"]).await;
        if response.status == 429 {
            retry_after(&response);
        }
        statuses.push(response.status);
    }
    assert_eq!(statuses[..3], [101, 101, 101]);
    assert!(statuses.contains(&429), "{statuses:?}");
    assert_eq!(handshake(&gateway, &["X-Forwarded-For: 203.0.113.8"]).await.status, 101);
}

#[tokio::test]
async fn a_proxy_header_is_needed_from_those_who_are_trusted_and_read_from_nobody_else() {
    let gateway = with_section(
        "[admission]\nconnections_per_address = 1\n[client_address]\ntrusted_proxies = [\"127.0.0.2\"]\nproxy_protocol = true",
    );
    let v1 = b"PROXY TCP4 203.0.113.7 10.0.0.1 4660 443\r\n".as_slice();
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    v2.extend([203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x34, 0x01, 0xbb]);
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00".as_slice();
    // One connection of the address stays open.
    let first = connect_from("127.0.0.2", &gateway).await;
    let mut client = {
        let request = tokio_tungstenite::tungstenite::client::IntoClientRequest::into_client_request(gateway.url());
        let mut first = first;
        within("room to write", first.write_all(v1)).await.expect("the connection is open");
        Client::open_on(first, request.expect("a valid URL")).await.0
    };
    client.connect_as("ann").await;
    for (what, source, header, expected) in [
        ("version 1, the same client", "127.0.0.2", v1, "HTTP/1.1 429 Too Many Requests"),
        ("version 2, the same client", "127.0.0.2", v2.as_slice(), "HTTP/1.1 429 Too Many Requests"),
        ("the proxy's own check", "127.0.0.2", local, "HTTP/1.1 101 Switching Protocols"),
        ("a trusted proxy without a header", "127.0.0.2", b"".as_slice(), ""),
        ("somebody else with one", "127.0.0.3", v1, "HTTP/1.1 400 Bad Request"),
        ("somebody else without", "127.0.0.3", b"".as_slice(), "HTTP/1.1 101 Switching Protocols"),
    ] {
        let stream = connect_from(source, &gateway).await;
        assert_eq!(answer_to(&gateway, stream, header).await, expected, "{what}");
    }
    assert_eq!(gateway.metric("gateway_connects_total{result=\"bad_proxy_header\"}").await, Some(1.0));
}

#[tokio::test]
async fn whoever_dawdles_is_sent_away_and_meanwhile_others_are_let_in() {
    let gateway = with_section(
        "[handshake]\nheader_timeout = \"500ms\"\n[client_address]\ntrusted_proxies = [\"127.0.0.2\"]\nproxy_protocol = true",
    );
    let began = Instant::now();
    let mut slow = Vec::new();
    for (source, bytes) in [
        ("127.0.0.1", "GET /connection/websocket HTTP/1.1\r\nHost: "),
        ("127.0.0.1", ""),
        ("127.0.0.2", "PROXY TCP4 203.0"),
        ("127.0.0.2", ""),
    ] {
        let mut stream = connect_from(source, &gateway).await;
        within("room to write", stream.write_all(bytes.as_bytes())).await.expect("the connection is open");
        slow.push(stream);
    }
    gateway.connect("ann").await;
    for mut stream in slow {
        // A reset is an end, too.
        let mut rest = Vec::new();
        let _reset = within("the end of a slow handshake", stream.read_to_end(&mut rest)).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(400), "they had their time");
}

#[tokio::test]
async fn handshakes_that_hang_leave_room_for_the_api() {
    let gateway = Gateway::with(&format!("shards = 1\n{CONFIG}\n[handshake]\nin_flight = 8\n")).start();
    let api = gateway.api();
    api.publish("chat:a", json!(1)).await;
    let mut hanging = Vec::new();
    for _ in 0..8 {
        hanging.push(connect_from("127.0.0.1", &gateway).await);
    }
    let crowded = async || handshake(&gateway, &[]).await;
    until("the eight to be counted", async || crowded().await.status == 503).await;
    retry_after(&crowded().await);
    // On a new connection, not on one that has its place already.
    gateway.api().publish("chat:a", json!(2)).await;
    let full: Vec<_> = {
        for _ in 0..2 {
            hanging.push(connect_from("127.0.0.1", &gateway).await);
        }
        hanging.iter().collect()
    };
    assert_eq!(full.len(), 10);
    api.publish("chat:a", json!(3)).await;
    // Whoever comes now is refused unheard.
    let refused = async || gateway.metric("gateway_connects_total{result=\"overloaded\"}").await;
    let before = refused().await;
    retry_after(&crowded().await);
    assert!(refused().await > before);
    drop(hanging);
    until("room again", async || crowded().await.status == 101).await;
}

#[tokio::test]
async fn a_connection_sends_so_many_commands_and_bytes() {
    let limits = "commands_per_second = 10\npublish_bytes_per_second = 65536";
    let gateway = Gateway::with(&config_with("client", limits)).start();
    let mut client = gateway.connect("ann").await;
    let codes = {
        let commands: Vec<_> = (0..60).map(|n| json!({ "id": 100 + n, "rpc": {} })).collect();
        client.send_all(&commands).await;
        let mut codes = Vec::new();
        while let Some(message) = client.peek_message().await.cloned() {
            client.message().await;
            codes.push(message["error"]["code"].as_u64().unwrap_or_default());
        }
        codes
    };
    assert_eq!(codes.iter().filter(|code| **code == 108).count(), 20, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 111).count(), 20, "{codes:?}");
    client.expect_close(3013, "too many requests").await;
    assert_eq!(gateway.metric("gateway_commands_refused_total").await, Some(20.0));
    let mut bob = gateway.connect("bob").await;
    let text = "x".repeat(60_000);
    let publish = || json!({ "publish": { "channel": "bare:a", "data": text } });
    let mut taken = 0;
    let refused = loop {
        let reply = bob.call(publish()).await;
        if reply["error"].is_object() {
            break reply;
        }
        taken += 1;
        // Two at once; more are what a slow run earns.
        assert!(taken < 20, "so many publishes are taken");
    };
    assert!(taken >= 2, "{taken} publishes are taken");
    assert_eq!(refused["error"]["code"], json!(111), "{refused}");
}
