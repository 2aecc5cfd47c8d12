//! Channels: the options of those without a namespace, and the namespaces (protocol section 8).

use std::collections::BTreeSet;
use std::time::Duration;

use backplane::HistoryOptions;
use regex::Regex;
use session::{ChannelOptions, ChannelSyntax, Channels, DataFormat, RecoveryMode};

use super::problem::Problem;
use super::proxy::{self, Proxies};
use super::reader::Section;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long a retention may be: a year. What must be kept longer belongs into a database.
const RETENTION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// How long the epoch and top offset of an unused channel are kept: 30 days, as in the reference server.
const META_TTL: Duration = Duration::from_secs(30 * DAY.as_secs());

/// Most publications kept per channel; the memory limits bound the sum.
const HISTORY_SIZE_MAX: usize = 1_000_000;

/// Reads the tables `channel`, `namespaces` and `channel_syntax`.
pub(super) fn read(root: &mut Section<'_>, dev: bool, proxies: &Proxies) -> Channels {
    let mut namespaces = Vec::new();
    let mut names = BTreeSet::new();
    for mut section in root.sections("namespaces") {
        let name = section.text("name", "");
        let options = options(&mut section, &ChannelOptions::default(), proxies);
        if !is_namespace_name(&name) {
            section.problem("name", "must be two or more of the characters A-Z a-z 0-9 - _ .");
        } else if !names.insert(name.clone()) {
            section.problem("name", "is the name of another namespace too");
        } else {
            namespaces.push((name, options));
        }
    }
    // In the playground every channel name should just work, also one with a colon in it.
    let open = dev && namespaces.is_empty();
    let syntax = syntax(root, open);
    let defaults = if dev { playground() } else { ChannelOptions::default() };
    let without_namespace = options(&mut root.section("channel"), &defaults, proxies);
    if root.context.problem_count() > 0 {
        return Channels::default();
    }
    Channels::new(Some(without_namespace), namespaces, syntax).unwrap_or_else(|errors| {
        for error in errors {
            let (key, reason) = ("namespaces".to_owned(), error.to_string());
            root.context.problem(Problem { place: None, key, value: None, reason });
        }
        Channels::default()
    })
}

/// What channels may do with `--dev`: everything, for everybody.
fn playground() -> ChannelOptions {
    ChannelOptions {
        presence: true,
        join_leave: true,
        history: Some(HistoryOptions { size: 100, ttl: Duration::from_secs(300), meta_ttl: META_TTL }),
        force_recovery: true,
        allow_subscribe_for_client: true,
        allow_subscribe_for_anonymous: true,
        allow_publish_for_client: true,
        allow_publish_for_anonymous: true,
        allow_presence_for_client: true,
        allow_presence_for_anonymous: true,
        allow_history_for_client: true,
        allow_history_for_anonymous: true,
        ..ChannelOptions::default()
    }
}

/// `^[-a-zA-Z0-9_.]{2,}$`
fn is_namespace_name(name: &str) -> bool {
    name.len() >= 2 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn options(section: &mut Section<'_>, defaults: &ChannelOptions, proxies: &Proxies) -> ChannelOptions {
    let history = history(section, defaults.history);
    // Where history was switched off, the default of an option that needs it goes with it.
    let force_recovery = section.flag("force_recovery", defaults.force_recovery && history.is_some());
    let options = ChannelOptions {
        presence: section.flag("presence", defaults.presence),
        join_leave: section.flag("join_leave", defaults.join_leave),
        force_push_join_leave: section.flag("force_push_join_leave", defaults.force_push_join_leave),
        history,
        force_positioning: section.flag("force_positioning", defaults.force_positioning),
        allow_positioning: section.flag("allow_positioning", defaults.allow_positioning),
        force_recovery,
        allow_recovery: section.flag("allow_recovery", defaults.allow_recovery),
        force_recovery_mode: section.choice(
            "force_recovery_mode",
            defaults.force_recovery_mode,
            &[("stream", RecoveryMode::Stream), ("cache", RecoveryMode::Cache)],
        ),
        auto_cache_recover: section.flag("auto_cache_recover", defaults.auto_cache_recover),
        allow_subscribe_for_client: section.flag("allow_subscribe_for_client", defaults.allow_subscribe_for_client),
        allow_subscribe_for_anonymous: section
            .flag("allow_subscribe_for_anonymous", defaults.allow_subscribe_for_anonymous),
        allow_publish_for_client: section.flag("allow_publish_for_client", defaults.allow_publish_for_client),
        allow_publish_for_subscriber: section
            .flag("allow_publish_for_subscriber", defaults.allow_publish_for_subscriber),
        allow_publish_for_anonymous: section.flag("allow_publish_for_anonymous", defaults.allow_publish_for_anonymous),
        allow_presence_for_client: section.flag("allow_presence_for_client", defaults.allow_presence_for_client),
        allow_presence_for_subscriber: section
            .flag("allow_presence_for_subscriber", defaults.allow_presence_for_subscriber),
        allow_presence_for_anonymous: section
            .flag("allow_presence_for_anonymous", defaults.allow_presence_for_anonymous),
        allow_history_for_client: section.flag("allow_history_for_client", defaults.allow_history_for_client),
        allow_history_for_subscriber: section
            .flag("allow_history_for_subscriber", defaults.allow_history_for_subscriber),
        allow_history_for_anonymous: section.flag("allow_history_for_anonymous", defaults.allow_history_for_anonymous),
        allow_user_limited_channels: section.flag("allow_user_limited_channels", defaults.allow_user_limited_channels),
        channel_regex: regex(section, "channel_regex"),
        publication_data_format: section.choice(
            "publication_data_format",
            defaults.publication_data_format,
            &[
                ("", DataFormat::NotEmpty),
                ("json", DataFormat::Json),
                ("json_object", DataFormat::JsonObject),
                ("binary", DataFormat::Binary),
            ],
        ),
        subscribe_proxy: proxy::reference(section, "subscribe_", proxies),
        publish_proxy: proxy::reference(section, "publish_", proxies),
        sub_refresh_proxy: proxy::reference(section, "sub_refresh_", proxies),
    };
    check(section, &options);
    options
}

/// What the options say about each other.
fn check(section: &Section<'_>, options: &ChannelOptions) {
    if options.history.is_none() {
        for (name, set) in
            [("force_recovery", options.force_recovery), ("force_positioning", options.force_positioning)]
        {
            if set {
                section.problem(name, "needs history: set history_size and history_ttl too");
            }
        }
    }
    if options.auto_cache_recover && !(options.force_recovery && options.force_recovery_mode == RecoveryMode::Cache) {
        section.problem("auto_cache_recover", "needs force_recovery and force_recovery_mode = \"cache\"");
    }
}

fn history(section: &mut Section<'_>, default: Option<HistoryOptions>) -> Option<HistoryOptions> {
    let default = default.unwrap_or(HistoryOptions { size: 0, ttl: Duration::ZERO, meta_ttl: META_TTL });
    let size = section.count("history_size", default.size, 0..=HISTORY_SIZE_MAX);
    let ttl = section.duration("history_ttl", default.ttl, Duration::ZERO..=RETENTION_MAX);
    let meta_ttl = section.duration("history_meta_ttl", default.meta_ttl, Duration::ZERO..=RETENTION_MAX);
    for (name, time) in [("history_ttl", ttl), ("history_meta_ttl", meta_ttl)] {
        if time.subsec_nanos() != 0 {
            section.problem(name, "must be whole seconds");
        }
    }
    if meta_ttl < ttl {
        section.problem("history_meta_ttl", "must not be below history_ttl");
    }
    if (size == 0) != ttl.is_zero() {
        let (set, missing) = if size == 0 { ("history_ttl", "history_size") } else { ("history_size", "history_ttl") };
        let (set, missing) = (section.key(set), section.key(missing));
        section.context.warn(format!("{set} is set but {missing} is 0: there is no history"));
    }
    (size > 0 && !ttl.is_zero()).then_some(HistoryOptions { size, ttl, meta_ttl })
}

/// An optional regular expression.
pub(super) fn regex(section: &mut Section<'_>, name: &str) -> Option<Regex> {
    let text = section.text_opt(name)?;
    match Regex::new(&text) {
        Ok(regex) => {
            if !(text.starts_with('^') && text.ends_with('$')) {
                let key = section.key(name);
                section.context.warn(format!("{key} matches any part of the text: put ^ before and $ behind it"));
            }
            Some(regex)
        }
        Err(error) => {
            // The library draws a picture over several lines; its last line is the reason.
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            section.problem(name, format!("is not a regular expression: {reason}"));
            None
        }
    }
}

fn syntax(root: &mut Section<'_>, open: bool) -> ChannelSyntax {
    let defaults = ChannelSyntax::default();
    let mut section = root.section("channel_syntax");
    let boundary = if open { "" } else { defaults.namespace_boundary.as_str() };
    let syntax = ChannelSyntax {
        namespace_boundary: section.text("namespace_boundary", boundary),
        private_prefix: section.text("private_prefix", &defaults.private_prefix),
        user_boundary: section.text("user_boundary", &defaults.user_boundary),
        user_separator: section.text("user_separator", &defaults.user_separator),
    };
    let texts = [
        ("namespace_boundary", &syntax.namespace_boundary),
        ("private_prefix", &syntax.private_prefix),
        ("user_boundary", &syntax.user_boundary),
        ("user_separator", &syntax.user_separator),
    ];
    for (index, (name, text)) in texts.iter().enumerate() {
        if let Some((other, _)) = texts[..index].iter().find(|(_, other)| !text.is_empty() && text == other) {
            section.problem(name, format!("is the same text as {other}"));
        }
    }
    syntax
}
