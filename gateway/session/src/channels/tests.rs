use std::time::Duration;

use super::*;

fn options() -> ChannelOptions {
    ChannelOptions::default()
}

fn history(size: usize, ttl: u64, meta_ttl: u64) -> Option<HistoryOptions> {
    Some(HistoryOptions { size, ttl: Duration::from_secs(ttl), meta_ttl: Duration::from_secs(meta_ttl) })
}

fn channels() -> Channels {
    let regex = ChannelOptions { channel_regex: Some(Regex::new("^[a-z\u{e4}]+$").unwrap()), ..options() };
    let users = ChannelOptions { allow_user_limited_channels: true, ..options() };
    Channels::new(
        Some(ChannelOptions { presence: true, ..options() }),
        [("news".to_owned(), options()), ("words".to_owned(), regex), ("dialog".to_owned(), users)],
        ChannelSyntax::default(),
    )
    .unwrap()
}

#[test]
fn names_lead_to_options_or_to_the_rule_they_break() {
    let channels = channels();
    let long = format!("news:{}", "x".repeat(251));
    for (name, expected) in [
        ("lobby", Ok(())),
        ("news:a", Ok(())),
        ("$news:a", Ok(())),
        ("news:a:b", Ok(())),
        ("news:", Ok(())),
        ("", Err(ChannelError::Empty)),
        ("nosuch:a", Err(ChannelError::UnknownNamespace)),
        ("$nosuch:a", Err(ChannelError::UnknownNamespace)),
        (":a", Err(ChannelError::UnknownNamespace)),
        ("News:a", Err(ChannelError::UnknownNamespace)),
        (long.as_str(), Err(ChannelError::TooLong)),
        (&long[..255], Ok(())),
        ("caf\u{e9}", Err(ChannelError::BadName)),
        ("news:caf\u{e9}", Err(ChannelError::BadName)),
        ("words:sp\u{e4}t", Ok(())),
        ("$words:abc", Ok(())),
        ("words:UPPER", Err(ChannelError::BadName)),
        ("words:", Err(ChannelError::BadName)),
    ] {
        assert_eq!(channels.check_name(name, 255).map(|_| ()), expected, "{name:?}");
    }
}

#[test]
fn only_clients_are_held_to_length_and_alphabet() {
    let channels = channels();
    assert!(channels.resolve("words:UPPER").is_ok());
    assert!(channels.resolve(&"x".repeat(300)).is_ok());
    assert!(channels.resolve("lobby").unwrap().presence, "no namespace has options of its own");
    assert!(!channels.resolve("news:a").unwrap().presence);
    assert_eq!(Channels::default().resolve("lobby").unwrap_err(), ChannelError::UnknownNamespace);
}

#[test]
fn user_limited_names_list_users_after_the_last_boundary() {
    let channels = channels();
    for (name, user, listed) in [
        ("dialog:x#17", "17", true),
        ("dialog:x#17,42", "42", true),
        ("dialog:x#17,42", "4", false),
        ("dialog:x#17#42", "42", true),
        ("dialog:x#17#42", "17", false),
        ("dialog:x#17", "", false),
        ("dialog:x#", "", false),
        ("dialog:x#,17", "", false),
        ("dialog:x#,17", "17", true),
        ("dialog:x", "17", false),
    ] {
        assert_eq!(channels.lists_user(name, &UserId::from(user)), listed, "{name} {user:?}");
    }
    let dialog = channels.resolve("dialog:x#1").unwrap();
    assert!(channels.is_user_limited(dialog, "dialog:x#1") && channels.is_user_limited(dialog, "dialog:x#"));
    assert!(!channels.is_user_limited(dialog, "dialog:x"));
    let news = channels.resolve("news:x#1").unwrap();
    assert!(!channels.is_user_limited(news, "news:x#1"), "without the option # means nothing");
}

#[test]
fn every_part_of_the_syntax_can_be_changed_or_switched_off() {
    let syntax = ChannelSyntax {
        namespace_boundary: "::".into(),
        private_prefix: "private-".into(),
        user_boundary: "@".into(),
        user_separator: "+".into(),
    };
    let users = ChannelOptions { allow_user_limited_channels: true, ..options() };
    let channels = Channels::new(None, [("dialog".to_owned(), users.clone())], syntax).unwrap();
    assert!(channels.resolve("private-dialog::x").is_ok() && channels.is_private("private-dialog::x"));
    assert!(channels.lists_user("dialog::x@a+b", &"b".into()));

    let off = ["", "", "", ""].map(String::from);
    let [namespace_boundary, private_prefix, user_boundary, user_separator] = off;
    let syntax = ChannelSyntax { namespace_boundary, private_prefix, user_boundary, user_separator };
    let channels = Channels::new(Some(users.clone()), [], syntax).unwrap();
    assert!(channels.resolve("$any:name#at,all").is_ok() && !channels.is_private("$x"));
    assert!(!channels.is_user_limited(&users, "x#1"));
}

#[test]
fn every_problem_of_a_configuration_is_reported() {
    let bad = ChannelOptions { force_recovery: true, force_positioning: true, auto_cache_recover: true, ..options() };
    let empty = ChannelOptions { history: history(0, 10, 5), ..options() };
    let problem = |namespace: &str, problem| ChannelsError::Options { namespace: namespace.into(), problem };
    let syntax = ChannelSyntax { user_separator: "#".into(), ..ChannelSyntax::default() };
    let namespaces = [("a", options()), ("b:c", options()), ("ok", empty), ("ok", options())];
    let errors =
        Channels::new(Some(bad), namespaces.map(|(name, options)| (name.to_owned(), options)), syntax).unwrap_err();
    assert_eq!(
        errors,
        [
            problem("", OptionProblem::NeedsHistory("force_recovery")),
            problem("", OptionProblem::NeedsHistory("force_positioning")),
            problem("", OptionProblem::AutoCacheRecover),
            problem("ok", OptionProblem::EmptyHistory),
            problem("ok", OptionProblem::ShortMetaTtl),
            ChannelsError::Name("a".into()),
            ChannelsError::Name("b:c".into()),
            ChannelsError::Repeated("ok".into()),
            ChannelsError::Syntax { first: "user_boundary", second: "user_separator", text: "#".into() },
        ]
    );
    let cache = ChannelOptions {
        history: history(1, 10, 10),
        force_recovery: true,
        force_recovery_mode: RecoveryMode::Cache,
        auto_cache_recover: true,
        ..options()
    };
    assert!(Channels::new(Some(cache), [], ChannelSyntax::default()).is_ok());
    let dotted = ChannelSyntax { namespace_boundary: ".".into(), ..ChannelSyntax::default() };
    assert!(Channels::new(None, [("a.b".to_owned(), options())], dotted).is_err(), "no channel could reach it");
}

#[test]
fn payload_formats() {
    let deep = "[".repeat(200_000);
    for (data, not_empty, json, object) in [
        ("", false, false, false),
        ("plain", true, false, false),
        ("17", true, true, false),
        ("[{}]", true, true, false),
        (" \r\n\t{\"a\":1} ", true, true, true),
        ("{\"a\":1", true, false, false),
        ("{} {}", true, false, false),
        (deep.as_str(), true, false, false),
    ] {
        let checks = [DataFormat::NotEmpty, DataFormat::Json, DataFormat::JsonObject, DataFormat::Binary]
            .map(|format| format.check(data.as_bytes()));
        assert_eq!(checks, [not_empty, json, object, true], "{:.20}", data);
    }
    assert!(!DataFormat::Json.check(b"\"\xff\""), "JSON text is UTF-8");
}
