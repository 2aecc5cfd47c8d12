//! Proxies: what is read, what is inherited, and what is refused.

use std::time::Duration;

use session::ClientError;
use session::proxy::{CONNECT, REFRESH};

use super::*;

const ALL: &str = r#"
[proxy]
timeout = "2s"
http_headers = ["Cookie", "X-Real-Ip"]
static_headers = ["X-Key: hush-hush", "X-From:  gateway "]
include_connection_meta = true
[proxy.connect]
endpoint = "http://127.0.0.1:3000/connect"
emulated_headers = ["Authorization"]
[proxy.refresh]
endpoint = "https://backend.test/refresh"
static_headers = []
[[proxy.endpoints]]
name = "default"
endpoint = "http://127.0.0.1:3000/events"
timeout = "500ms"
concurrency = 7
http_headers = []
[[namespaces]]
name = "chat"
subscribe_proxy_enabled = true
publish_proxy_enabled = true
[[namespaces]]
name = "quiet"
publish_proxy_name = "not used"
[rpc]
proxy_enabled = true
[[rpc.namespaces]]
name = "off"
"#;

#[test]
fn endpoints_inherit_what_they_do_not_say() {
    let config = Bench::bare().toml(ALL).config();
    let of = |name: &str| config.proxies.endpoints[name].clone();
    let (connect, refresh, default) = (of(CONNECT), of(REFRESH), of("default"));
    assert_eq!(connect.url.as_str(), "http://127.0.0.1:3000/connect");
    assert_eq!([connect.timeout, default.timeout], [2_000, 500].map(Duration::from_millis));
    assert_eq!((connect.concurrency, default.concurrency, default.queue), (256, 7, 4096));
    assert_eq!(connect.http_headers, ["cookie", "x-real-ip"]);
    assert_eq!((default.http_headers.len(), connect.emulated_headers.len(), refresh.emulated_headers.len()), (0, 1, 0));
    let shown: Vec<_> = connect.static_headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(shown, [("x-key", &b"hush-hush"[..]), ("x-from", &b"gateway"[..])]);
    assert_eq!((default.static_headers.len(), refresh.static_headers.len()), (2, 0));
    assert!(!format!("{config:?}").contains("hush-hush"), "a secret is shown");
    assert!(config.settings.iter().all(|setting| !format!("{setting:?}").contains("X-Key")), "a secret is shown");

    let asked = &config.client.session.proxy;
    assert!(asked.connect && asked.refresh && asked.keeps_meta && asked.emulates_headers);
    assert_eq!(asked.rpc.route("m").map(|name| &**name), Ok("default"));
    assert_eq!(asked.rpc.route("off:m"), Err(ClientError::NotAvailable));
    let chat = config.channels.resolve("chat:a").expect("configured");
    assert_eq!((chat.subscribe_proxy.as_deref(), chat.sub_refresh_proxy.as_deref()), (Some("default"), None));
    assert_eq!(config.channels.resolve("quiet:a").expect("configured").publish_proxy, None);
}

#[test]
fn without_a_word_nothing_is_asked() {
    let config = Bench::new().config();
    assert_eq!(config.proxies, Proxies::default());
    let asked = &config.client.session.proxy;
    assert!(!asked.connect && !asked.refresh && !asked.keeps_meta && !asked.emulates_headers);
    assert_eq!(asked.rpc.route("m"), Err(ClientError::NotAvailable));
}

#[test]
fn mistakes_are_reported_at_once_and_secrets_are_not() {
    let toml = r#"
[proxy]
timeout = "1m"
http_headers = ["Host"]
emulated_headers = ["X Y"]
static_headers = ["hush", "Content-Length: 5", "X-Key: caf\u0000"]
ca_file = "/nowhere"
[proxy.connect]
endpoint = "grpc://backend"
[proxy.refresh]
endpoint = "https://me:pw@backend/"
[[proxy.endpoints]]
name = "connect"
endpoint = "http://127.0.0.1/"
[[proxy.endpoints]]
name = "a b"
[channel]
subscribe_proxy_enabled = true
publish_proxy_enabled = true
publish_proxy_name = "connect"
[rpc]
proxy_enabled = true
[[rpc.namespaces]]
name = "a:b"
"#;
    let problems = Bench::new().toml(toml).problems();
    let expected = [
        "gateway.toml:7: proxy.ca_file = \"/nowhere\": cannot read /nowhere: No such file or directory (os error 2)",
        "gateway.toml:3: proxy.timeout = \"1m\": must be at most 30s",
        "gateway.toml:4: proxy.http_headers = [\"Host\"]: \"Host\" belongs to the gateway's own request and cannot be set",
        "gateway.toml:5: proxy.emulated_headers = [\"X Y\"]: \"X Y\" is not the name of a header",
        "gateway.toml:6: proxy.static_headers: has an entry that is not \"Name: value\"",
        "gateway.toml:6: proxy.static_headers: has an entry whose name belongs to the gateway's own request and cannot \
         be set",
        "gateway.toml:6: proxy.static_headers: has a value of x-key with characters that no header may have",
        "proxy.connect.endpoint: must begin with http:// or https://",
        "proxy.refresh.endpoint: has a user name in it: put credentials into static_headers, which \
         are never shown",
        "gateway.toml:13: proxy.endpoints[0].name = \"connect\": connect has a section of its own",
        "proxy.endpoints[1].endpoint: is missing",
        "gateway.toml:16: proxy.endpoints[1].name = \"a b\": must be one or more of the characters A-Z a-z 0-9 - _ .",
        "gateway.toml:22: rpc.proxy_enabled = true: there is no usable endpoint \"default\" in proxy.endpoints",
        "gateway.toml:24: rpc.namespaces[0].name = \"a:b\": must be one or more of the characters A-Z a-z 0-9 - _ ., \
         without the boundary",
        "gateway.toml:18: channel.subscribe_proxy_enabled = true: there is no usable endpoint \"default\" in \
         proxy.endpoints",
        "gateway.toml:20: channel.publish_proxy_name = \"connect\": there is no usable endpoint \"connect\" in \
         proxy.endpoints",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn a_header_that_clients_could_replace_is_warned_of() {
    let toml = "proxy.static_headers = [\"X-Key: s\"]\nproxy.emulated_headers = [\"x-key\"]\n\
                proxy.connect.endpoint = \"http://127.0.0.1/\"";
    let config = Bench::new().toml(toml).config();
    let warned = config.warnings.iter().filter(|warning| warning.contains("lets clients replace the header x-key"));
    assert!(warned.count() > 0, "{:?}", config.warnings);
}

#[test]
fn proxies_change_with_a_reload() {
    let bench = Bench::bare().toml("proxy.connect.endpoint = \"http://127.0.0.1:1/\"");
    let old = bench.config();
    bench.write("gateway.toml", ALL);
    let (new, restart) = old.reload(&bench.sources).expect("a valid configuration");
    assert_eq!(restart, Vec::<String>::new());
    assert_eq!(new.proxies.endpoints.len(), 3);
    assert!(new.client.session.proxy.refresh);
}
