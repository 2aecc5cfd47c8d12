//! What changes while the process runs, and what does not.

use super::*;

const OLD: &str = r#"
listen = "127.0.0.1:8001"
[api]
keys = ["old"]
body_bytes = "2MiB"
[client]
ping_interval = "20s"
[client.token]
hmac_secret = "the old secret with its 32 bytes"
[drain]
window = "10s"
"#;

const NEW: &str = r#"
listen = "127.0.0.1:8002"
[api]
keys = ["new", "newer"]
body_bytes = "2MiB"
[client]
ping_interval = "21s"
allowed_origins = ["https://a.test"]
[client.token]
hmac_secret = "the new secret with its 32 bytes"
[channel]
presence = true
[[namespaces]]
name = "chat"
"#;

#[test]
fn keys_origins_and_channels_change_and_the_rest_is_told() {
    let bench = Bench::bare().toml(OLD);
    let old = bench.config();
    bench.write("gateway.toml", NEW);
    let (new, restart) = old.reload(&bench.sources).expect("a valid configuration");
    assert_eq!(new.api.keys, [Secret::new("new"), Secret::new("newer")]);
    assert_eq!(new.hmac_secret(), Some(Secret::new("the new secret with its 32 bytes")));
    assert!(new.client.origins.allows(Some("https://a.test"), None));
    assert!(new.channels.resolve("a").expect("without a namespace").presence);
    assert!(new.channels.resolve("chat:a").is_ok());

    assert_eq!(restart, ["listen", "client.ping_interval", "drain.window", "drain.deadline"]);
    assert_eq!(
        (new.listen, new.client.session.clone(), new.drain.clone()),
        (old.listen, old.client.session, old.drain)
    );

    // The same keys are told again by the next reload: they still wait for the restart.
    let (_, restart) = new.reload(&bench.sources).expect("a valid configuration");
    assert_eq!(restart, ["listen", "client.ping_interval", "drain.window", "drain.deadline"]);
    bench.write("gateway.toml", OLD);
    let (_, restart) = new.reload(&bench.sources).expect("a valid configuration");
    assert_eq!(restart, Vec::<String>::new());
}

#[test]
fn a_reload_with_mistakes_changes_nothing() {
    let bench = Bench::bare().toml(OLD);
    let old = bench.config();
    bench.write("gateway.toml", "listen = 5\nshards = 1000");
    let problems = old.reload(&bench.sources).expect_err("mistakes");
    assert_eq!(problems.0.len(), 3, "{problems}");
}

#[test]
fn what_dev_made_up_stays_until_it_is_configured() {
    let bench = Bench::bare().dev().toml("");
    let old = bench.config();
    let (new, restart) = old.reload(&bench.sources).expect("a valid configuration");
    assert_eq!((new.api.keys.clone(), new.hmac_secret()), (old.api.keys.clone(), old.hmac_secret()));
    assert_eq!((new.generated, restart), (old.generated, Vec::new()));
    bench.write("gateway.toml", &format!("api.keys = [\"k\"]\nclient.token.hmac_secret = \"{SECRET}\""));
    let (new, _) = new.reload(&bench.sources).expect("a valid configuration");
    assert_eq!(new.api.keys, [Secret::new("k")]);
    assert_eq!(new.hmac_secret(), Some(Secret::new(SECRET)));
    assert_eq!(new.generated, Generated::default());
}
