//! The HTTP side of a WebSocket: what is upgraded, with which subprotocol, and what is refused.

use serde_json::json;
use tests::client::Client;
use tests::gateway::{CONFIG, Gateway};
use tests::http::{handshake_lines, request};
use tests::tokens;
use tests::wire::{Message, number_of, split};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// A handshake without the header of this name (in the case of [`handshake_lines`]) and with these lines.
fn changed(gateway: &Gateway, without: &str, with: &[&str]) -> Vec<String> {
    let mut lines = handshake_lines(gateway.public_address());
    lines.retain(|line| without.is_empty() || !line.starts_with(&format!("{without}:")));
    lines.extend(with.iter().map(|&line| line.to_owned()));
    lines
}

async fn status(gateway: &Gateway, lines: &[String]) -> u16 {
    request(gateway.public_address(), lines).await.status
}

#[tokio::test]
async fn a_good_handshake_is_accepted() {
    let gateway = Gateway::start();
    let response = request(gateway.public_address(), &changed(&gateway, "", &[])).await;
    assert_eq!(response.status, 101);
    assert_eq!(response.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "RFC 6455 section 1.3");
    assert_eq!(response.header("sec-websocket-protocol"), None);
    assert_eq!(response.header("upgrade").map(str::to_ascii_lowercase).as_deref(), Some("websocket"));
    // Tokens of `Connection` and `Upgrade` are case-insensitive and may be in a list.
    let lines = changed(&gateway, "Connection", &["Connection: keep-alive, UPGRADE"]);
    assert_eq!(status(&gateway, &lines).await, 101);
}

#[tokio::test]
async fn a_bad_handshake_is_refused() {
    let gateway = Gateway::start();
    for (what, without, with) in [
        ("no key", "Sec-WebSocket-Key", None),
        ("a key that is not 16 bytes", "Sec-WebSocket-Key", Some("Sec-WebSocket-Key: abc")),
        ("no upgrade", "Upgrade", None),
        ("another upgrade", "Upgrade", Some("Upgrade: h2c")),
        ("no connection header", "Connection", None),
    ] {
        let with: Vec<&str> = with.into_iter().collect();
        assert_eq!(status(&gateway, &changed(&gateway, without, &with)).await, 400, "{what}");
    }
    for version in ["Sec-WebSocket-Version: 8", "Sec-WebSocket-Version: abc"] {
        let lines = changed(&gateway, "Sec-WebSocket-Version", &[version]);
        let response = request(gateway.public_address(), &lines).await;
        assert_eq!((response.status, response.header("sec-websocket-version")), (426, Some("13")), "{version}");
    }
    let mut post = changed(&gateway, "", &["Content-Length: 0"]);
    post[0] = "POST /connection/websocket HTTP/1.1".to_owned();
    assert_eq!(status(&gateway, &post).await, 405);
    let mut elsewhere = changed(&gateway, "", &[]);
    elsewhere[0] = "GET /connection/nosuch HTTP/1.1".to_owned();
    assert_eq!(status(&gateway, &elsewhere).await, 404);
}

#[tokio::test]
async fn origins_follow_the_list() {
    let gateway = Gateway::start();
    for (origin, expected) in [
        ("http://127.0.0.1:4000", 101),
        ("https://app.example.org", 101),
        ("HTTPS://APP.EXAMPLE.ORG", 101),
        ("https://example.org.evil.com", 403),
        ("https://evil.com", 403),
        ("null", 403),
    ] {
        let lines = changed(&gateway, "", &[&format!("Origin: {origin}")]);
        assert_eq!(status(&gateway, &lines).await, expected, "{origin}");
    }
    // With no list, an origin is accepted when its host is the one that was asked for.
    let gateway = Gateway::with(&CONFIG.replace("allowed_origins", "# allowed_origins")).start();
    let host = gateway.public_address();
    for (origin, expected) in
        [(format!("http://{host}"), 101), ("http://127.0.0.1:1".to_owned(), 403), ("https://evil.com".to_owned(), 403)]
    {
        let lines = changed(&gateway, "", &[&format!("Origin: {origin}")]);
        assert_eq!(status(&gateway, &lines).await, expected, "{origin}");
    }
    assert_eq!(status(&gateway, &changed(&gateway, "", &[])).await, 101, "no origin: not a browser");
}

#[tokio::test]
async fn subprotocols_are_echoed_and_select_the_encoding() {
    let gateway = Gateway::start();
    for (offered, echoed, binary) in [
        (Some("centrifuge-json"), Some("centrifuge-json"), false),
        (Some("centrifuge-protobuf"), Some("centrifuge-protobuf"), true),
        (Some("chat, centrifuge-protobuf"), Some("centrifuge-protobuf"), true),
        (Some("chat"), None, false),
        (None, None, false),
    ] {
        let mut lines = changed(&gateway, "", &[]);
        lines.extend(offered.map(|offered| format!("Sec-WebSocket-Protocol: {offered}")));
        let response = request(gateway.public_address(), &lines).await;
        assert_eq!((response.status, response.header("sec-websocket-protocol")), (101, echoed), "{offered:?}");
        if let Some(echoed) = echoed {
            let mut request = gateway.url().into_client_request().expect("a valid URL");
            let value = echoed.parse().expect("a valid header value");
            request.headers_mut().insert("sec-websocket-protocol", value);
            let (mut client, _) = Client::open_request(request).await;
            assert_eq!(speaks_protobuf(&mut client, binary).await, binary, "{offered:?}");
        }
    }
    for query in ["format=protobuf", "cf_protocol=protobuf"] {
        let mut client = Client::open(&format!("{}?{query}", gateway.url())).await;
        assert!(speaks_protobuf(&mut client, true).await, "{query}");
    }
}

async fn speaks_protobuf(client: &mut Client, binary: bool) -> bool {
    let token = tokens::connection(json!({ "sub": "ann" }));
    if binary {
        let connect = Message::new().bytes(1, token.as_bytes());
        client.send_binary(&Message::new().number(1, 1).message(4, &connect).framed()).await;
        return number_of(&split(&client.binary().await)[0], 1) == 1;
    }
    client.connect_with(&token).await;
    false
}
