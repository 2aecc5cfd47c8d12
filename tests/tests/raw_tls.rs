//! `wss`, when a certificate and a key are configured.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::{Value, json};
use tests::gateway::{CONFIG, Gateway};
use tests::{tokens, within};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::Message;

fn start() -> (Gateway, ClientConfig) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate can be made");
    let gateway =
        Gateway::with(&format!("[tls]\ncert_file = \"{{dir}}/cert.pem\"\nkey_file = \"{{dir}}/key.pem\"\n{CONFIG}"))
            .file("cert.pem", &cert.pem())
            .file("key.pem", &signing_key.serialize_pem())
            .start();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).expect("the certificate is valid");
    let client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider knows the versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (gateway, client)
}

#[tokio::test]
async fn wss_carries_the_same_protocol() {
    let (gateway, config) = start();
    assert!(gateway.url().starts_with("wss://"), "{}", gateway.url());
    let tcp = TcpStream::connect(gateway.public_address()).await.expect("the gateway listens");
    let name = ServerName::try_from("localhost").expect("a name");
    let connect = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    let tls = within("a TLS handshake", connect).await.expect("the certificate is trusted");
    let upgrade = tokio_tungstenite::client_async("wss://localhost/connection/websocket", tls);
    let (mut ws, _) = within("a WebSocket handshake", upgrade).await.expect("the handshake succeeds");
    let token = tokens::connection(json!({ "sub": "ann" }));
    let frame =
        [json!({ "id": 1, "connect": { "token": token } }), json!({ "id": 2, "subscribe": { "channel": "chat:a" } })]
            .map(|command| command.to_string())
            .join("\n");
    ws.send(Message::text(frame)).await.expect("the connection is open");
    // A payload of many TLS records, published by the client itself since the API is behind the same certificate.
    let text = "x".repeat(50_000);
    let publish = json!({ "id": 3, "publish": { "channel": "chat:a", "data": { "text": text } } });
    ws.send(Message::text(publish.to_string())).await.expect("the connection is open");
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let message = within("a frame", ws.next()).await.expect("the connection is open").expect("a frame");
        let text = message.into_text().expect("a text frame");
        seen.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")));
    }
    assert!(seen[0]["connect"].is_object() && seen[1]["subscribe"].is_object(), "{seen:?}");
    let publication = seen.iter().find(|message| message["push"].is_object()).expect("the publication");
    assert_eq!(publication["push"]["pub"]["data"]["text"], json!(text));
    gateway.terminate();
    let last = within("a close", ws.next()).await.expect("the connection is open").expect("a frame");
    let Message::Close(Some(frame)) = last else { panic!("a close was expected: {last:?}") };
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1001, "going away"));
    assert_eq!(gateway.exit_code().await, 0);
}

#[tokio::test]
async fn plain_text_on_the_tls_port_is_refused_and_harmless() {
    let (gateway, config) = start();
    let mut tcp = TcpStream::connect(gateway.public_address()).await.expect("the gateway listens");
    let hello = b"GET /connection/websocket HTTP/1.1\r\nHost: localhost\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut tcp, hello).await.expect("the connection is open");
    let mut answer = Vec::new();
    // A TLS alert or nothing, then the end.
    let _reset = within("the end", tokio::io::AsyncReadExt::read_to_end(&mut tcp, &mut answer)).await;
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    let tcp = TcpStream::connect(gateway.public_address()).await.expect("the gateway listens");
    let name = ServerName::try_from("localhost").expect("a name");
    within("a TLS handshake", TlsConnector::from(Arc::new(config)).connect(name, tcp)).await.expect("it still serves");
}
