//! What is wrong with single keys and with keys together.

use rcgen::{CertifiedKey, generate_simple_self_signed};

use ::backplane::nats::{Address, NatsAuth, NatsConfig, Storage};

use super::*;

#[test]
fn ten_mistakes_are_ten_lines() {
    let toml = r#"
listen = "somewhere"
shards = 1000
[api]
listen = "secret"
body_bytes = "1MB"
[client]
ping_interval = 25
pong_timeout = "1m"
alow_anonymous = true
allowed_origins = ["app.test"]
[channel]
force_recovery = true
"#;
    let problems = Bench::new().toml(toml).variable("EVENKEEL_DRAIN__WINDOW", "soon").problems();
    assert_eq!(problems.len(), 10);
    assert_eq!(
        problems,
        [
            "gateway.toml:2: listen = \"somewhere\": must be an IP address and a port, such as \"0.0.0.0:8000\"",
            "gateway.toml:3: shards = 1000: must be at most 64",
            "gateway.toml:5: api.listen = \"secret\": must be one of \"public\", \"internal\"",
            "gateway.toml:6: api.body_bytes = \"1MB\": is not a size such as 65536, \"64KiB\", \"1MiB\" or \"2GiB\"",
            "gateway.toml:11: client.allowed_origins = [\"app.test\"]: \"app.test\" must be an origin such as \
             https://app.example.com, or *",
            "gateway.toml:8: client.ping_interval = 25: has no unit; write \"25s\", \"500ms\", \"2m\" or \"1h\"",
            "gateway.toml:9: client.pong_timeout = \"1m\": must be below ping_interval",
            "gateway.toml:13: channel.force_recovery = true: needs history: set history_size and history_ttl too",
            "EVENKEEL_DRAIN__WINDOW: drain.window = \"soon\": is not a duration such as \"25s\", \"500ms\", \"2m\" or \
             \"1h30m\"",
            "gateway.toml:10: client.alow_anonymous: unknown key, did you mean client.allow_anonymous?",
        ]
    );
}

#[track_caller]
fn check(toml: &str, expected: &[&str]) {
    assert_eq!(Bench::new().toml(toml).problems(), expected, "{toml}");
}

#[test]
fn values_of_a_wrong_type_or_range_are_refused() {
    check("listen = 8000", &["gateway.toml:1: listen = 8000: must be text: put it in quotes"]);
    check("hub = 1", &["gateway.toml:1: hub = 1: is a section: write its keys, not a value"]);
    check("namespaces = 1", &["gateway.toml:1: namespaces = 1: must be a list"]);
    check("namespaces = [1]", &["gateway.toml:1: namespaces[0] = 1: is not a table of keys"]);
    check("client.insecure = \"true\"", &["gateway.toml:1: client.insecure = \"true\": must be true or false"]);
    check("shards = -1", &["gateway.toml:1: shards = -1: must not be negative"]);
    check("shards = 1.5", &["gateway.toml:1: shards = 1.5: must be a number without a fraction"]);
    check("shards = \"1\"", &["gateway.toml:1: shards = \"1\": must be a number without a fraction"]);
    check("hub.linger = \"2h\"", &["gateway.toml:1: hub.linger = \"2h\": must be at most 1h"]);
    check("client.message_bytes = 10", &["gateway.toml:1: client.message_bytes = 10: must be at least 1KiB"]);
    check(
        "client.allowed_origins = \"*\"",
        &["gateway.toml:1: client.allowed_origins = \"*\": must be a list of texts"],
    );
    check(
        "client.allowed_origins = [1]",
        &["gateway.toml:1: client.allowed_origins = [1 values]: each entry must be text: put it in quotes"],
    );
    check("log.format = \"xml\"", &["gateway.toml:1: log.format = \"xml\": must be one of \"text\", \"json\""]);
    let problems = Bench::new().toml("log.level = \"a=b=c\"").problems();
    assert!(problems[0].starts_with("gateway.toml:1: log.level = \"a=b=c\": must be error, warn"), "{problems:?}");
    let long = format!("log.format = \"{}\"", "x".repeat(5000));
    assert!(Bench::new().toml(&long).problems()[0].len() < 300, "a long value floods the terminal");
}

#[test]
fn listeners_must_not_overlap() {
    let overlap = |public: &str, internal: &str| {
        let toml = format!("listen = {public:?}\ninternal.listen = {internal:?}");
        Config::load(&Bench::new().toml(&toml).sources).is_err()
    };
    assert!(overlap("0.0.0.0:9000", "127.0.0.1:9000"));
    assert!(overlap("127.0.0.1:9000", "127.0.0.1:9000"));
    assert!(overlap("127.0.0.1:9000", "0.0.0.0:9000"));
    assert!(!overlap("127.0.0.1:9001", "127.0.0.1:9000"));
    assert!(!overlap("127.0.0.2:9000", "127.0.0.1:9000"));
    assert!(!overlap("127.0.0.1:0", "127.0.0.1:0"));
}

#[test]
fn channel_options_that_contradict_each_other_are_refused() {
    check(
        "channel.force_positioning = true",
        &["gateway.toml:1: channel.force_positioning = true: needs history: set history_size and history_ttl too"],
    );
    check(
        "[channel]\nhistory_size = 1\nhistory_ttl = \"60s\"\nhistory_meta_ttl = \"30s\"",
        &["gateway.toml:4: channel.history_meta_ttl = \"30s\": must not be below history_ttl"],
    );
    check(
        "[channel]\nhistory_size = 1\nhistory_ttl = \"1000h\"",
        &["channel.history_meta_ttl = \"720h\" (the default): must not be below history_ttl"],
    );
    check(
        "[channel]\nhistory_size = 1\nhistory_ttl = \"1500ms\"",
        &["gateway.toml:3: channel.history_ttl = \"1500ms\": must be whole seconds"],
    );
    let cache =
        "gateway.toml:4: channel.auto_cache_recover = true: needs force_recovery and force_recovery_mode = \"cache\"";
    check(
        "[channel]\nhistory_size = 1\nhistory_ttl = \"60s\"\nauto_cache_recover = true\nforce_recovery = true",
        &[cache],
    );
    let problems = Bench::new().toml("channel.channel_regex = \"[\"").problems();
    assert!(
        problems[0].contains("channel.channel_regex = \"[\": is not a regular expression: unclosed"),
        "{problems:?}"
    );
    check(
        "channel_syntax.user_boundary = \":\"",
        &["gateway.toml:1: channel_syntax.user_boundary = \":\": is the same text as namespace_boundary"],
    );
}

#[test]
fn namespaces_have_good_names_of_their_own() {
    let toml = "[[namespaces]]\nname = \"chat\"\n[[namespaces]]\nname = \"chat\"\n[[namespaces]]\npresence = true\n\
                [[namespaces]]\nname = \"a:b\"\npresense = true";
    check(
        toml,
        &[
            "gateway.toml:4: namespaces[1].name = \"chat\": is the name of another namespace too",
            "namespaces[2].name = \"\" (the default): must be two or more of the characters A-Z a-z 0-9 - _ .",
            "gateway.toml:8: namespaces[3].name = \"a:b\": must be two or more of the characters A-Z a-z 0-9 - _ .",
            "gateway.toml:9: namespaces[3].presense: unknown key, did you mean namespaces[].presence?",
        ],
    );
    // A name that is fine by itself but not with the configured boundary.
    let problems =
        Bench::new().toml("channel_syntax.namespace_boundary = \".\"\nnamespaces = [{name = \"a.b\"}]").problems();
    assert!(problems[0].starts_with("namespaces: namespace \"a.b\""), "{problems:?}");
}

#[test]
fn a_namespace_keeps_all_its_options() {
    let toml = r#"
[[namespaces]]
name = "chat"
presence = true
join_leave = true
force_push_join_leave = true
history_size = 10
history_ttl = "60s"
history_meta_ttl = "2m"
force_positioning = true
allow_positioning = true
force_recovery = true
allow_recovery = true
force_recovery_mode = "cache"
auto_cache_recover = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_subscriber = true
allow_publish_for_anonymous = true
allow_presence_for_client = true
allow_presence_for_subscriber = true
allow_presence_for_anonymous = true
allow_history_for_client = true
allow_history_for_subscriber = true
allow_history_for_anonymous = true
allow_user_limited_channels = true
channel_regex = "^[a-z]+$"
publication_data_format = "json_object"
"#;
    let config = Bench::new().toml(toml).config();
    let shown = format!("{:?}", config.channels.resolve("chat:a").expect("configured"));
    assert!(!shown.contains("false"), "an option is lost: {shown}");
    for part in ["size: 10", "ttl: 60s", "meta_ttl: 120s", "Cache", "JsonObject", "[a-z]+"] {
        assert!(shown.contains(part), "{part} is lost: {shown}");
    }
    let plain = format!("{:?}", config.channels.resolve("a").expect("without a namespace"));
    assert!(!plain.contains("true"), "options leak out of the namespace: {plain}");
}

#[test]
fn token_keys_are_checked_one_by_one() {
    check(
        "[client.token]\nhmac_previous_secret_until = 5",
        &["gateway.toml:2: client.token.hmac_previous_secret_until = 5: needs hmac_previous_secret"],
    );
    check(
        "[client.token]\nissuer = \"a\"\nissuer_regex = \"^a$\"\naudience = \"b\"\naudience_regex = \"^b$\"",
        &[
            "gateway.toml:3: client.token.issuer_regex = \"^a$\": client.token.issuer is given too; keep one of them",
            "gateway.toml:5: client.token.audience_regex = \"^b$\": client.token.audience is given too; keep one of them",
        ],
    );
    let toml = "[client.token]\nrsa_public_key = \"x\"\necdsa_public_key = \"y\"\neddsa_public_key = \"z\"\n\
                jwks_url = \"ftp://k.test\"\nissuer_regex = \"(\"";
    let problems = Bench::new().toml(toml).problems();
    let starts = [
        "gateway.toml:6: client.token.issuer_regex = \"(\": is not a regular expression",
        "gateway.toml:2: client.token.rsa_public_key = \"x\": is not a usable PEM",
        "gateway.toml:3: client.token.ecdsa_public_key = \"y\": is not a usable PEM",
        "gateway.toml:4: client.token.eddsa_public_key = \"z\": is not a usable PEM",
        "gateway.toml:5: client.token.jwks_url = \"ftp://k.test\": is neither http nor https",
    ];
    assert_eq!(problems.len(), starts.len(), "{problems:#?}");
    for (problem, start) in problems.iter().zip(starts) {
        assert!(problem.starts_with(start), "{problem}\n{start}");
    }
    check(
        "[client.subscription_token]\nissuer = \"a\"",
        &["client.subscription_token: has no key: subscription tokens could never be verified"],
    );
    assert_eq!(
        Bench::bare().variable("EVENKEEL_TOKEN_HMAC_SECRET", "").problems(),
        ["EVENKEEL_TOKEN_HMAC_SECRET: client.token.hmac_secret: is empty",]
    );
    assert_eq!(
        Bench::new().variable("EVENKEEL_API__KEYS", "[\"a\", \"\"]").problems(),
        ["EVENKEEL_API__KEYS: api.keys: has an empty entry",]
    );
    let toml = format!("[client.token]\nhmac_previous_secret = \"{SECRET}\"\nuser_id_claim = \"uid\"");
    assert_eq!(
        Bench::bare().toml(&toml).problems(),
        ["gateway.toml:2: client.token.hmac_previous_secret: needs hmac_secret, the current one",]
    );
}

#[test]
fn every_kind_of_key_lets_the_gateway_start() {
    let keys = rcgen::KeyPair::generate().expect("randomness");
    let bench = Bench::bare();
    let file = bench.write("key.pem", &keys.public_key_pem());
    for toml in [
        format!("client.token.ecdsa_public_key_file = {file:?}"),
        format!("client.token.ecdsa_public_key = {:?}", keys.public_key_pem()),
        "client.token.jwks_url = \"https://keys.test/jwks\"".to_owned(),
        "client.allow_anonymous = true".to_owned(),
        "client.insecure = true".to_owned(),
    ] {
        let config = Bench::bare().toml(&toml).config();
        auth::Verifier::new(&config.client.tokens).expect("usable keys");
    }
    let toml = format!("client.token.rsa_public_key_file = {file:?}");
    let problems = Bench::bare().toml(&toml).problems();
    assert!(problems[0].contains("client.token.rsa_public_key_file"), "{problems:?}");
    assert!(problems[0].contains("not a usable PEM public key"), "{problems:?}");
}

#[test]
fn certificate_and_key_come_together_and_are_readable() {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate");
    let bench = Bench::new();
    let (cert, key) = (bench.write("cert.pem", &cert.pem()), bench.write("key.pem", &signing_key.serialize_pem()));
    let toml = |cert: &PathBuf, key: &PathBuf| format!("[tls]\ncert_file = {cert:?}\nkey_file = {key:?}");
    let expected = Tls { cert_file: cert.clone(), key_file: key.clone() };
    assert_eq!(Bench::new().toml(&toml(&cert, &key)).config().tls, Some(expected));

    let problems = Bench::new().toml(&toml(&key, &cert)).problems();
    assert!(problems[0].ends_with("has no certificate in it"), "{problems:?}");
    assert!(problems[1].contains("has no usable private key"), "{problems:?}");
    let missing = PathBuf::from("/nonexistent/cert.pem");
    let problems = Bench::new().toml(&toml(&missing, &missing)).problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems.iter().all(|problem| problem.contains("cannot read /nonexistent/cert.pem")), "{problems:?}");
    let problems = Bench::new().toml(&format!("tls.cert_file = {cert:?}")).problems();
    assert!(problems[0].ends_with("needs key_file too"), "{problems:?}");
    let problems = Bench::new().toml(&format!("tls.key_file = {key:?}")).problems();
    assert!(problems[0].ends_with("needs cert_file too"), "{problems:?}");
}

#[test]
fn what_is_doubtful_is_warned_about() {
    let warnings = |bench: Bench| bench.variable("EVENKEEL_API_KEY", "k").config().warnings.join("\n");
    assert_eq!(warnings(Bench::new()), "");
    for (toml, part) in [
        ("client.insecure = true", "client.insecure is on"),
        ("channel.history_size = 5", "channel.history_size is set but channel.history_ttl is 0"),
        ("channel.history_ttl = \"5s\"", "channel.history_ttl is set but channel.history_size is 0"),
        ("client.token.issuer_regex = \"a.test\"", "client.token.issuer_regex matches any part"),
        ("client.token.jwks_url = \"http://k.test\"", "client.token.jwks_url replaces the other keys"),
    ] {
        let text = warnings(Bench::new().toml(toml));
        assert!(text.contains(part), "{toml}: {text:?}");
    }
    let text = warnings(Bench::bare().variable("EVENKEEL_TOKEN_HMAC_SECRET", "short"));
    assert!(text.contains("client.token.hmac_secret has fewer than 32 bytes"), "{text:?}");
}

#[test]
fn secrets_are_shown_nowhere() {
    let toml = "[api]\nkeys = [\"hidden-1\"]\n[client.token]\n\
                hmac_secret = \"hidden-3\"\nhmac_previous_secret = \"hidden-4\"\n[client.subscription_token]\n\
                hmac_secret = \"hidden-5\"";
    let config = Bench::bare().toml(toml).config();
    let shown = format!("{config:?}{}", config.summary());
    assert!(!shown.contains("hidden"), "{shown}");
    let bytes = format!("{:?}", b"hidden");
    assert!(!shown.contains(&bytes[..bytes.len() - 1]), "{shown}");
    assert!(config.summary().contains("client.token.hmac_secret = [secret]"), "{}", config.summary());

    let wrong = "[api]\nkeys = [\"hidden\", 5]\n[client.token]\nhmac_secret = 1234567\n\
                 hmac_sekret = \"hidden\"";
    let problems = Bench::bare().toml(wrong).problems().join("\n");
    assert!(!problems.contains("hidden") && !problems.contains("1234567"), "{problems}");
    assert_eq!(problems.lines().count(), 3, "{problems}");
}

#[test]
fn nats_is_used_as_it_is_configured() {
    let nats = |toml: &str| {
        let toml = format!("backplane.kind = \"nats\"\n{toml}");
        match Bench::new().toml(&toml).config().backplane.kind {
            BackplaneKind::Nats(config) => *config,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(nats("").servers, NatsConfig::default().servers);
    let config = nats("nats.servers = [\"nats://a\", \"b:4223\"]\nnats.replicas = 3\nnats.storage = \"memory\"");
    assert_eq!(config.servers, [Address::new("a", 4222), Address::new("b", 4223)]);
    assert_eq!((config.replicas, config.storage, config.auth), (3, Storage::Memory, NatsAuth::None));
    let user = NatsAuth::User { name: "ann".to_owned(), password: "secret".to_owned() };
    assert_eq!(nats("nats.username = \"ann\"\nnats.password = \"secret\"").auth, user);
    assert_eq!(nats("nats.token = \"secret\"").auth, NatsAuth::Token("secret".to_owned()));
    assert!(nats("nats.tls.enabled = true").tls.is_some());
}

#[test]
fn mistakes_about_nats_are_told() {
    let place = "gateway.toml:1: nats";
    let check = |toml: &str, expected: &str| check(toml, &[&format!("{place}.{expected}")]);
    check(
        "nats.servers = [\"tls://a\"]",
        "servers = [\"tls://a\"]: must be a list of host:port, or host; tls, username, password and so on have keys of their own",
    );
    check("nats.username = \"ann\"", "username = \"ann\": needs nats.password too");
    check("nats.prefix = \"a.b\"", "prefix = \"a.b\": must be made of [A-Za-z0-9_-] and not be empty");
    check("nats.replicas = 6", "replicas = 6: must be at most 5");
    check("nats.lease_ttl = \"10s\"", "lease_ttl = \"10s\": must be at least three times nats.lease_interval");
    let warnings = Bench::new().toml("nats.servers = [\"a\"]").config().warnings;
    let unused = "nats is configured but not used: backplane.kind is not \"nats\"";
    assert!(warnings.iter().any(|warning| warning == unused), "{warnings:?}");
}

#[test]
fn moving_connections_must_make_sense() {
    check(
        "[rebalance]\nstart = \"5%\"\nstop = 0.05\nrate = 0\nbudget = \"half\"\n",
        &[
            "gateway.toml:4: rebalance.rate = 0: must be at least 0.1",
            "gateway.toml:5: rebalance.budget = \"half\": must be a number, such as 0.02 or \"2%\"",
            "gateway.toml:3: rebalance.stop = 0.05: must be less than rebalance.start: a node would begin again as soon \
             as it stops",
        ],
    );
    check(
        "[connection]\nmax_age = \"30s\"\n",
        &["gateway.toml:2: connection.max_age = \"30s\": must be 0s (off) or at least 1m and rebalance.min_age"],
    );
    let agent = "[placement]\nagent_listen = \"everywhere\"\nweight = 0\n";
    check(
        agent,
        &[
            "gateway.toml:3: placement.weight = 0: must be at least 0.01",
            "gateway.toml:2: placement.agent_listen = \"everywhere\": must be an IP address and a port, such as \
             \"0.0.0.0:9001\"",
        ],
    );
}

#[test]
fn parts_are_numbers_or_percents() {
    let config =
        Bench::new().toml("[rebalance]\nbudget = \"2%\"\n").variable("EVENKEEL_REBALANCE__START", "0.25").config();
    assert_eq!((config.rebalance.shed.budget, config.rebalance.shed.start), (0.02, 0.25));
    assert_eq!(config.placement.coordinator.shed, config.rebalance.shed);
}

#[test]
fn the_open_set_needs_a_fleet_and_names_that_kubernetes_takes() {
    let open_set = |toml: &str| Bench::new().toml(toml).config().kubernetes;
    let redis = "backplane.kind = \"redis\"\n";
    assert_eq!(open_set("").mode, ::kubernetes::Mode::Off, "a node alone has no open set");
    assert_eq!(open_set(redis).mode, ::kubernetes::Mode::Auto);
    let place = "gateway.toml:1: kubernetes";
    check(
        "kubernetes.open_set = \"on\"",
        &[&format!(
            "{place}.open_set = \"on\": needs nodes that know each other: backplane.kind = \"redis\" or \"nats\""
        )],
    );
    check(
        "kubernetes.all_service = \"ws\"",
        &[&format!(
            "{place}.all_service = \"ws\": must not be kubernetes.service: that one has no selector, this one says which \
             pods there are"
        )],
    );
    check(
        "kubernetes.service = \"Web_Sockets\"",
        &[&format!(
            "{place}.service = \"Web_Sockets\": must be a name in Kubernetes: at most 63 characters of a-z, 0-9, '-', no \
             '-' at its ends"
        )],
    );
    check(
        "kubernetes.pod_name = \"a.-\"",
        &[&format!(
            "{place}.pod_name = \"a.-\": must be a name in Kubernetes: at most 253 characters of a-z, 0-9, '-', '.', no '-' \
             at its ends"
        )],
    );
}
