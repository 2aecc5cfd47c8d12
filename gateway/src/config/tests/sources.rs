//! File, environment and flags, and which of them wins.

use std::time::Duration;

use super::*;

#[test]
fn without_anything_no_client_could_connect_and_that_is_an_error() {
    let problems = Bench::bare().problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("client.token: has no key"), "{problems:?}");
    assert!(problems[0].contains("EVENKEEL_TOKEN_HMAC_SECRET"), "{problems:?}");
}

#[test]
fn the_defaults_are_closed() {
    let config = Bench::new().config();
    assert_eq!(config.listen.to_string(), "0.0.0.0:8000");
    assert_eq!(config.internal.listen.to_string(), "127.0.0.1:9000");
    assert!(!config.dev && !config.client.session.insecure && !config.client.session.allow_anonymous);
    assert!(config.api.keys.is_empty() && !config.api.key_in_query);
    assert_eq!(config.client.origins, origin::OriginRule::SameHost);
    assert_eq!(config.generated, Generated::default());
    let options = config.channels.resolve("lobby").expect("channels without a namespace exist");
    assert!(!options.allow_subscribe_for_client && !options.presence && options.history.is_none());
    assert!(config.channels.resolve("chat:lobby").is_err());
    assert_eq!(config.warnings, ["api.keys is empty: the server API answers every call with 401"]);
}

#[test]
fn the_defaults_are_those_of_the_parts() {
    let config = Bench::new().config();
    assert_eq!(config.client.session, session::Settings::default());
    assert_eq!(config.client.frames, protocol::Limits::default());
    assert_eq!(config.client.tokens.jwks, auth::JwksOptions::default());
    assert_eq!(config.memory, MemoryLimits::default());
}

#[test]
fn dev_is_an_open_playground_on_loopback() {
    let config = Bench::bare().dev().config();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
    assert!(config.client.session.allow_anonymous && !config.client.session.insecure);
    assert!(config.api.key_in_query);
    assert_eq!(config.client.origins, origin::OriginRule::Localhost);
    assert_eq!((config.drain.grace_accept, config.drain.window), (Duration::ZERO, Duration::ZERO));
    assert_eq!(config.generated, Generated { api_key: true, hmac_secret: true });
    assert_eq!(config.api.keys.len(), 1);
    assert_eq!(config.api.keys[0].expose().len(), 64);
    assert_eq!(config.hmac_secret().expect("a secret").expose().len(), 64);
    for channel in ["lobby", "chat:lobby", "a:b:c"] {
        let options = config.channels.resolve(channel).expect("every channel exists");
        assert!(options.presence && options.join_leave && options.force_recovery);
        assert!(options.allow_subscribe_for_client && options.allow_subscribe_for_anonymous);
        assert!(options.allow_publish_for_client && options.allow_publish_for_anonymous);
        assert!(options.allow_presence_for_client && options.allow_presence_for_anonymous);
        assert!(options.allow_history_for_client && options.allow_history_for_anonymous);
        let history = options.history.expect("history is on");
        assert_eq!((history.size, history.ttl), (100, Duration::from_secs(300)));
    }
    assert_eq!(config.warnings, Vec::<String>::new());

    let other = Bench::bare().dev().config();
    assert_ne!(config.api.keys, other.api.keys, "keys are made up anew for every process");
    assert_ne!(config.hmac_secret(), other.hmac_secret());
}

#[test]
fn dev_takes_what_is_given() {
    let bench = Bench::new().dev().variable("EVENKEEL_API_KEY", "k-demo").toml(
        "listen = \"0.0.0.0:8001\"\n[client]\nallow_anonymous = false\nallowed_origins = [\"https://a.test\"]\n\
         [channel]\nhistory_size = 0\n[[namespaces]]\nname = \"chat\"\n[drain]\nwindow = \"1s\"",
    );
    let config = bench.config();
    assert_eq!(config.api.keys, [Secret::new("k-demo")]);
    assert_eq!(config.hmac_secret(), Some(Secret::new(SECRET)));
    assert_eq!(config.generated, Generated::default());
    assert!(!config.client.session.allow_anonymous);
    assert!(matches!(config.client.origins, origin::OriginRule::Listed(_)));
    assert_eq!(config.drain.window, Duration::from_secs(1));
    // Configured namespaces are as they would be without --dev, and a colon means one.
    assert!(!config.channels.resolve("chat:a").expect("configured").allow_subscribe_for_client);
    assert!(config.channels.resolve("other:a").is_err());
    let options = config.channels.resolve("a").expect("without a namespace");
    assert!(options.history.is_none() && !options.force_recovery && options.allow_subscribe_for_client);
    assert!(config.warnings.iter().any(|warning| warning.contains("0.0.0.0:8001")), "{:?}", config.warnings);
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    let toml =
        "listen = \"1.1.1.1:1\"\n[internal]\nlisten = \"1.1.1.1:2\"\n[drain]\nwindow = \"1s\"\ngrace_accept = \"2s\"";
    let mut bench = Bench::new()
        .toml(toml)
        .variable("EVENKEEL_LISTEN", "2.2.2.2:1")
        .variable("EVENKEEL_INTERNAL__LISTEN", "2.2.2.2:2")
        .variable("EVENKEEL_DRAIN__WINDOW", "3s");
    let config = bench.config();
    assert_eq!(
        (config.listen.to_string(), config.internal.listen.to_string()),
        ("2.2.2.2:1".into(), "2.2.2.2:2".into())
    );
    assert_eq!((config.drain.window.as_secs(), config.drain.grace_accept.as_secs()), (3, 2));
    bench.sources.flags.listen = Some("3.3.3.3:1".to_owned());
    bench.sources.flags.internal_listen = Some(":2".to_owned());
    let config = bench.config();
    assert_eq!(
        (config.listen.to_string(), config.internal.listen.to_string()),
        ("3.3.3.3:1".into(), "0.0.0.0:2".into())
    );
    bench.sources.flags.listen = Some("here".to_owned());
    assert_eq!(
        bench.problems(),
        ["--listen: listen = \"here\": must be an IP address and a port, such as \"0.0.0.0:8000\""]
    );
}

#[test]
fn variables_are_read_as_every_type() {
    let config = Bench::new()
        .variable("EVENKEEL_API__KEYS", "one, two")
        .variable("EVENKEEL_CLIENT__ALLOWED_ORIGINS", "[\"https://a.test\", \"https://b.test\"]")
        .variable("EVENKEEL_CLIENT__ALLOW_ANONYMOUS", "true")
        .variable("EVENKEEL_CLIENT__CHANNELS_PER_CONNECTION", "7")
        .variable("EVENKEEL_CLIENT__QUEUE_BYTES", "2MiB")
        .variable("EVENKEEL_CLIENT__MESSAGE_BYTES", "2048")
        .variable("EVENKEEL_CLIENT__PING_INTERVAL", "20s")
        .variable("EVENKEEL_CLIENT__TOKEN__HMAC_PREVIOUS_SECRET", SECRET)
        .variable("EVENKEEL_CLIENT__TOKEN__HMAC_PREVIOUS_SECRET_UNTIL", "1800000000")
        .variable("EVENKEEL_LOG__FORMAT", "json")
        .variable("EVENKEEL_CHANNEL__PRESENCE", "true")
        .variable("EVENKEEL_NAMESPACES", r#"[{"name": "chat", "history_size": 5, "history_ttl": "60s"}]"#)
        .config();
    assert_eq!(config.api.keys, [Secret::new("one"), Secret::new("two")]);
    let patterns = ["https://a.test", "https://b.test"].map(|text| origin::OriginPattern::parse(text).expect("valid"));
    assert_eq!(config.client.origins, origin::OriginRule::Listed(patterns.to_vec()));
    assert!(config.client.session.allow_anonymous);
    assert_eq!(config.client.session.channels_per_connection, 7);
    assert_eq!((config.client.queue_bytes, config.client.frames.frame_bytes), (2 << 20, 2048));
    assert_eq!(config.client.session.ping_interval, Duration::from_secs(20));
    let previous = config.client.tokens.connection.hmac_previous_secret.expect("a previous secret");
    assert_eq!(previous.until, Some(1_800_000_000));
    assert_eq!(config.log.format, LogFormat::Json);
    assert!(config.channels.resolve("a").expect("without a namespace").presence);
    assert_eq!(config.channels.resolve("chat:a").expect("configured").history.expect("history").size, 5);
}

#[test]
fn a_variable_that_names_no_key_is_an_error() {
    let mut problems = Bench::new()
        .variable("EVENKEEL_DRAIN__WINDWO", "1s")
        .variable("EVENKEEL_COLOUR", "blue")
        .variable("EVENKEEL_LISTEN__ADDRESS", "1.1.1.1:1")
        .variable("EVENKEEL_API", "x")
        .variable("OTHER", "not ours")
        .problems();
    // The order is that of reading, which is no promise.
    problems.sort();
    assert_eq!(
        problems,
        [
            "EVENKEEL_API: api = \"x\": is a section: write its keys, not a value",
            "EVENKEEL_COLOUR: colour: unknown key",
            "EVENKEEL_DRAIN__WINDWO: drain.windwo: unknown key, did you mean drain.window?",
            "EVENKEEL_LISTEN__ADDRESS: listen = {1 keys}: must be text",
        ]
    );
}

#[test]
fn variables_that_kubernetes_adds_for_a_service_are_no_settings() {
    let config = Bench::new()
        .variable("EVENKEEL_PORT", "tcp://10.0.0.1:8000")
        .variable("EVENKEEL_PORT_8000_TCP_PORT", "8000")
        .variable("EVENKEEL_SERVICE_HOST", "10.0.0.1")
        .variable("EVENKEEL_WS_ALL_SERVICE_PORT_WS", "8000")
        .config();
    assert_eq!(config.listen.port(), 8000);
}

#[test]
fn an_alias_and_its_long_name_exclude_each_other() {
    let problems = Bench::new().variable("EVENKEEL_CLIENT__TOKEN__HMAC_SECRET", "x").problems();
    assert_eq!(
        problems,
        ["EVENKEEL_TOKEN_HMAC_SECRET: client.token.hmac_secret: EVENKEEL_CLIENT__TOKEN__HMAC_SECRET is set too; keep \
          one of them"]
    );
    let config = Bench::new().variable("EVENKEEL_API_KEY", "a,b").config();
    assert_eq!(config.api.keys, [Secret::new("a,b")], "an API key may have a comma in it");
}

#[test]
fn secrets_may_be_in_files_and_the_later_layer_wins() {
    let bench = Bench::bare();
    let secret = bench.write("secret", &format!("{SECRET}\n"));
    let keys = bench.write("keys", "one\n\n two \n");
    let toml = format!("[api]\nkeys_file = {keys:?}\n[client.token]\nhmac_secret_file = {secret:?}");
    let bench = bench.toml(&toml);
    let config = bench.config();
    assert_eq!(config.hmac_secret(), Some(Secret::new(SECRET)));
    assert_eq!(config.api.keys, [Secret::new("one"), Secret::new("two")]);

    let other = "another secret of 32 bytes, here";
    let bench = bench.variable("EVENKEEL_TOKEN_HMAC_SECRET", other).variable("EVENKEEL_API_KEY", "three");
    let config = bench.config();
    assert_eq!(config.hmac_secret(), Some(Secret::new(other)));
    assert_eq!(config.api.keys, [Secret::new("three")]);

    let bench = Bench::bare();
    let path = bench.write("secret", SECRET).display().to_string();
    let bench = bench.toml(&format!("[client.token]\nhmac_secret = {other:?}"));
    let config = bench.variable("EVENKEEL_CLIENT__TOKEN__HMAC_SECRET_FILE", &path).config();
    assert_eq!(config.hmac_secret(), Some(Secret::new(SECRET)));
}

#[test]
fn a_secret_comes_from_one_place_per_layer() {
    let bench = Bench::bare();
    let path = bench.write("secret", SECRET);
    let both = bench.toml(&format!("[client.token]\nhmac_secret = {SECRET:?}\nhmac_secret_file = {path:?}"));
    let problems = both.problems();
    assert!(problems[0].ends_with("client.token.hmac_secret is given too; keep one of them"), "{problems:?}");
    let problems = Bench::bare().toml("client.token.hmac_secret_file = \"/nonexistent/secret\"").problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("hmac_secret_file = \"/nonexistent/secret\": cannot read"), "{problems:?}");
    let bench = Bench::bare();
    let empty = bench.write("secret", "\n");
    let problems = bench.toml(&format!("client.token.hmac_secret_file = {empty:?}")).problems();
    assert_eq!(problems, ["client.token.hmac_secret: is empty"]);
}

#[test]
fn toml_and_yaml_say_the_same() {
    let toml = r#"
listen = "127.0.0.1:0"
[client]
ping_interval = "20s"
allowed_origins = ["https://a.test"]
channels_per_connection = 5
[client.token]
issuer = "https://i.test"
[[namespaces]]
name = "chat"
presence = true
[[namespaces]]
name = "news"
history_size = 10
history_ttl = "60s"
"#;
    let yaml = r"
listen: 127.0.0.1:0
client:
  ping_interval: 20s
  allowed_origins: [https://a.test]
  channels_per_connection: 5
  token:
    issuer: https://i.test
namespaces:
  - name: chat
    presence: true
  - name: news
    history_size: 10
    history_ttl: 60s
";
    let from_toml = Bench::new().toml(toml).config();
    for name in ["gateway.yaml", "gateway.yml"] {
        let from_yaml = Bench::new().file(name, yaml).config();
        assert_eq!(values(&from_toml), values(&from_yaml));
        assert_eq!(format!("{:?}", from_toml.client), format!("{:?}", from_yaml.client));
    }
    assert_eq!(values(&from_toml)["namespaces[1].history_ttl"].as_deref(), Some("\"1m\""));
}

#[test]
fn an_empty_file_changes_nothing() {
    let plain = values(&Bench::new().config());
    for (name, content) in
        [("a.toml", ""), ("a.toml", "# nothing\n"), ("a.yaml", ""), ("a.yaml", "# nothing\n"), ("a.yml", "client:\n")]
    {
        assert_eq!(values(&Bench::new().file(name, content).config()), plain, "{name} {content:?}");
    }
}

#[test]
fn places_are_told_for_yaml_too() {
    let yaml = "client:\n  ping_interval: 20\n  colour: blue\nnamespaces:\n  - name: chat\n    presence: maybe\n";
    assert_eq!(
        Bench::new().file("gateway.yaml", yaml).problems(),
        [
            "gateway.yaml:2: client.ping_interval = 20: has no unit; write \"25s\", \"500ms\", \"2m\" or \"1h\"",
            "gateway.yaml:6: namespaces[0].presence = \"maybe\": must be true or false",
            "gateway.yaml:3: client.colour: unknown key",
        ]
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let problem = |bench: Bench| {
        let problems = bench.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].clone()
    };
    let mut missing = Bench::new();
    missing.sources.file = Some(missing.directory.path().join("none.toml"));
    assert!(problem(missing).starts_with("none.toml: cannot read"));
    assert!(problem(Bench::new().file("gateway.json", "{}")).contains("ends with .toml, .yaml or .yml"));
    assert!(problem(Bench::new().toml("[client\nx = 1")).starts_with("gateway.toml:1: TOML: "));
    assert!(problem(Bench::new().toml("listen = \"a\"\nlisten = \"b\"")).starts_with("gateway.toml:2: TOML: "));
    assert!(problem(Bench::new().file("a.yaml", "client:\n  - a\n b: {")).starts_with("a.yaml:3: YAML: "));
    assert!(problem(Bench::new().file("a.yaml", "a: 1\na: 2\n")).starts_with("a.yaml:2: YAML: "));
    assert!(problem(Bench::new().file("a.yaml", "- a\n")).contains("not a mapping"));
    assert!(problem(Bench::new().file("a.toml", &"#".repeat((1 << 20) + 1))).contains("more than 1048576 bytes"));
}
