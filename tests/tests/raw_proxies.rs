//! Event proxies where the SDKs do not look: order, limits, reload, payloads in base64, and a backend behind TLS.

use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::{Value, json};
use tests::backend::{Answer, Backend};
use tests::client::Client;
use tests::gateway::{CONFIG, Gateway};
use tests::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// One endpoint for everything, with these further lines.
fn config(endpoint: &str, more: &str) -> String {
    format!(
        r#"{CONFIG}
[rpc]
proxy_enabled = true

[[namespaces]]
name = "gated"
history_size = 100
history_ttl = "60s"
allow_subscribe_for_client = true
publish_proxy_enabled = true

[[proxy.endpoints]]
name = "default"
endpoint = "{endpoint}"
{more}
"#
    )
}

fn rpc(id: u32) -> Value {
    json!({ "id": id, "rpc": { "method": "m", "data": { "id": id } } })
}

async fn rpc_result(client: &mut Client) -> Option<Value> {
    client.call(json!({ "rpc": { "method": "m" } })).await.get("rpc").cloned()
}

#[tokio::test]
async fn publications_of_a_client_stay_in_order() {
    let mut backend = Backend::start();
    let gateway = Gateway::with(&config(&backend.url("/"), "")).start();
    let mut client = gateway.connect("ann").await;
    client.subscribe("gated:a").await;
    let publish = |n: u32| json!({ "id": 100 + n, "publish": { "channel": "gated:a", "data": { "n": n } } });
    client.send_all(&(1..=40).map(publish).collect::<Vec<_>>()).await;
    let mut published = Vec::new();
    while published.len() < 40 {
        // Between the replies.
        let message = client.message().await;
        published.extend(message["push"]["pub"]["data"]["n"].as_u64());
    }
    assert_eq!(published, (1..=40).collect::<Vec<_>>());
    for n in 1..=40 {
        assert_eq!(backend.asked("/").await.body["data"]["n"], json!(n));
    }
}

#[tokio::test]
async fn calls_beyond_the_limits_fail_at_once() {
    let mut backend = Backend::start();
    backend.answer("/", Answer::Silence);
    let limits = "concurrency = 1\nqueue = 1\ntimeout = \"1s\"";
    let gateway = Gateway::with(&config(&backend.url("/"), limits)).start();
    let mut client = gateway.connect("ann").await;
    client.send_json(rpc(11)).await;
    backend.asked("/").await;
    client.send_all(&[rpc(12), rpc(13)]).await;
    // The third finds the queue full; the first waits for its answer in vain, and the second for the first.
    let refused = client.message().await;
    assert_eq!([&refused["id"], &refused["error"]["code"]], [&json!(13), &json!(100)], "{refused}");
    for id in [11, 12] {
        let failed = client.reply(id).await;
        assert_eq!(failed["error"], json!({ "code": 100, "message": "internal server error", "temporary": true }));
    }
    let count = async |outcome: &str| {
        let name = format!(r#"gateway_proxy_seconds_count{{proxy="default",outcome="{outcome}"}}"#);
        gateway.metric(&name).await
    };
    assert_eq!(count("timeout").await, Some(1.0));
    assert_eq!(count("busy").await, Some(2.0));
    backend.accept("/", json!({ "data": 1 }));
    until("the slot is free again", async || rpc_result(&mut client).await.is_some()).await;
}

#[tokio::test]
async fn a_reload_changes_where_questions_go() {
    let backend = Backend::start();
    backend.accept("/old", json!({ "data": "old" }));
    backend.accept("/new", json!({ "data": "new" }));
    let gateway = Gateway::with(&config(&backend.url("/old"), "")).start();
    let mut client = gateway.connect("ann").await;
    assert_eq!(rpc_result(&mut client).await, Some(json!({ "data": "old" })));
    gateway.rewrite_config(&config(&backend.url("/new"), ""));
    gateway.hang_up();
    until("the new address is asked", async || rpc_result(&mut client).await == Some(json!({ "data": "new" }))).await;
    // A mistake changes nothing.
    gateway.rewrite_config(&config("ftp://backend/", ""));
    gateway.hang_up();
    until("the mistake is logged", async || gateway.log().contains("must begin with http:// or https://")).await;
    assert_eq!(rpc_result(&mut client).await, Some(json!({ "data": "new" })));
}

#[tokio::test]
async fn payloads_go_in_base64_where_that_is_wanted() {
    let mut backend = Backend::start();
    backend.accept("/", json!({ "b64data": "eyJyIjoxfQ" }));
    let gateway = Gateway::with(&config(&backend.url("/"), "binary_encoding = true")).start();
    let mut client = gateway.connect("ann").await;
    let reply = client.call(json!({ "rpc": { "method": "m", "data": { "a": 1 } } })).await;
    assert_eq!(reply["rpc"], json!({ "data": { "r": 1 } }), "{reply}");
    let body = backend.asked("/").await.body;
    assert_eq!(
        [&body["encoding"], &body["b64data"], &body["data"]],
        [&json!("binary"), &json!("eyJhIjoxfQ=="), &json!(null)]
    );
}

/// A backend behind TLS that answers every connection once. Returns its port and certificate.
async fn secure_backend() -> (u16, String) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate can be made");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider knows the versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("key and certificate fit");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Who does not trust the certificate leaves here.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4096];
            let _whatever_it_was = stream.read(&mut request).await;
            let body = r#"{"result":{"data":"secret"}}"#;
            let answer =
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _gone_meanwhile = stream.write_all(answer.as_bytes()).await;
            let _gone_meanwhile = stream.shutdown().await;
        }
    });
    (port, cert.pem())
}

#[tokio::test]
async fn a_backend_behind_tls_is_trusted_by_its_authority_only() {
    let (port, pem) = secure_backend().await;
    let other = generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate can be made").cert.pem();
    let url = format!("https://localhost:{port}/");
    for (authority, expected) in [(pem, Some(json!({ "data": "secret" }))), (other, None)] {
        let config = config(&url, "ca_file = \"{dir}/ca.pem\"");
        let gateway = Gateway::with(&config).file("ca.pem", &authority).start();
        let mut client = gateway.connect("ann").await;
        assert_eq!(rpc_result(&mut client).await, expected);
    }
}
