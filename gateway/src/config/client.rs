//! Clients: who may connect, and what a connection may use.

use std::time::Duration;

use auth::{Expected, JwksOptions, KeyError, KeySet, PreviousSecret, Verifier, VerifierConfig};
use session::Settings;
use session::proxy::ProxySettings;

use super::channels::regex;
use super::origin::{OriginPattern, OriginRule};
use super::reader::Section;
use super::secret::Secret;

/// An HMAC secret shorter than the hash is weaker than the signature (RFC 7518 section 3.2).
const HMAC_SECRET_BYTES_MIN: usize = 32;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// The part of the configuration that is about clients.
#[derive(Clone, Debug)]
pub struct Client {
    /// Keys and claim rules of tokens.
    pub tokens: VerifierConfig,
    /// Which web pages may connect.
    pub origins: OriginRule,
    /// Limits and times of sessions.
    pub session: Settings,
    /// Bounds on one frame of a client.
    pub frames: protocol::Limits,
    /// Bytes that may wait for a client; above it the connection is closed with 3008.
    pub queue_bytes: usize,
    /// Connections of one user on this node; 0 is no bound. Above it new ones are closed with 3504.
    pub connections_per_user: usize,
}

/// Reads the table `client`. The second result is whether the HMAC secret was made up.
pub(super) fn read(
    root: &mut Section<'_>,
    dev: bool,
    kept_secret: Option<&Secret>,
    proxy: ProxySettings,
) -> (Client, bool) {
    let mut section = root.section("client");
    let insecure = section.flag("insecure", false);
    let allow_anonymous = section.flag("allow_anonymous", dev);
    let origins = origins(&mut section, dev);
    let problems = section.context.problem_count();
    let (tokens, generated) = tokens(&mut section, dev, kept_secret);
    let keys_are_fine = section.context.problem_count() == problems;
    if insecure {
        section.context.warn("client.insecure is on: everybody may do everything, and connections do not expire");
    } else if !allow_anonymous && !proxy.connect && keys_are_fine && !tokens.connection.has_keys() {
        // Not a warning: a pod that lacks its secret should fail its rollout, not replace one that works.
        section.problem(
            "token",
            "has no key, so that no client could connect: set client.token.hmac_secret (EVENKEEL_TOKEN_HMAC_SECRET), \
             another key or jwks_url there, or client.allow_anonymous = true, or proxy.connect.endpoint",
        );
    }
    let (session, frames, queue_bytes) = limits(&mut section, insecure, allow_anonymous, proxy);
    let connections_per_user = section.count("connections_per_user", 0, 0..=1_000_000);
    (Client { tokens, origins, session, frames, queue_bytes, connections_per_user }, generated)
}

fn origins(section: &mut Section<'_>, dev: bool) -> OriginRule {
    let texts = section.texts("allowed_origins");
    if texts.is_empty() {
        return if dev { OriginRule::Localhost } else { OriginRule::SameHost };
    }
    let patterns = texts.iter().filter_map(|text| match OriginPattern::parse(text) {
        Ok(pattern) => Some(pattern),
        Err(reason) => {
            section.problem("allowed_origins", format!("{text:?} {reason}"));
            None
        }
    });
    OriginRule::Listed(patterns.collect())
}

fn limits(
    section: &mut Section<'_>,
    insecure: bool,
    allow_anonymous: bool,
    proxy: ProxySettings,
) -> (Settings, protocol::Limits, usize) {
    let defaults = Settings::default();
    let frame_defaults = protocol::Limits::default();
    let some = Duration::from_millis(1)..=HOUR;
    let session = Settings {
        ping_interval: section.duration("ping_interval", defaults.ping_interval, Duration::ZERO..=HOUR),
        pong_timeout: section.duration("pong_timeout", defaults.pong_timeout, Duration::ZERO..=HOUR),
        stale_delay: section.duration("stale_delay", defaults.stale_delay, some),
        expired_close_delay: section.duration(
            "expired_close_delay",
            defaults.expired_close_delay,
            Duration::ZERO..=24 * HOUR,
        ),
        expired_subscription_close_delay: section.duration(
            "expired_subscription_close_delay",
            defaults.expired_subscription_close_delay,
            Duration::ZERO..=24 * HOUR,
        ),
        channels_per_connection: section.count(
            "channels_per_connection",
            defaults.channels_per_connection,
            1..=100_000,
        ),
        channel_name_bytes: section.count("channel_name_bytes", defaults.channel_name_bytes, 1..=4096),
        client_history_limit: section.count("history_limit", defaults.client_history_limit, 1..=100_000),
        recovery_limit: section.count("recovery_limit", defaults.recovery_limit, 1..=100_000),
        reply_bytes: section.size("reply_bytes", defaults.reply_bytes, 4096..=1 << 30),
        commands_in_flight: section.count("commands_in_flight", defaults.commands_in_flight, 1..=10_000),
        commands_queued: section.count("commands_queued", defaults.commands_queued, 1..=100_000),
        commands_per_second: u32::try_from(section.count("commands_per_second", 0, 0..=1_000_000)).unwrap_or(0),
        publish_bytes_per_second: section.size("publish_bytes_per_second", 0, 0..=1 << 40),
        // Not longer: a drain gives the last connection 10 s, 5 of them to answer the close frame.
        close_patience: section.duration("close_patience", defaults.close_patience, Duration::ZERO..=5 * SECOND),
        insecure,
        allow_anonymous,
        proxy,
        server_version: defaults.server_version,
    };
    if session.ping_interval.subsec_nanos() != 0 {
        section.problem("ping_interval", "must be whole seconds: it is sent to clients as such");
    } else if !session.ping_interval.is_zero() && session.pong_timeout >= session.ping_interval {
        section.problem("pong_timeout", "must be below ping_interval");
    }
    let frames = protocol::Limits {
        frame_bytes: section.size("message_bytes", frame_defaults.frame_bytes, 1024..=64 << 20),
        depth: section.count("json_depth", frame_defaults.depth, 4..=1024),
        commands: section.count("commands_per_frame", frame_defaults.commands, 1..=65_536),
    };
    let publish_rate = session.publish_bytes_per_second;
    if publish_rate > 0 && publish_rate < frames.frame_bytes.div_ceil(2) {
        section.problem(
            "publish_bytes_per_second",
            "must be at least half of message_bytes, or no message could be that long",
        );
    }
    let queue_bytes = section.size("queue_bytes", 1 << 20, 4096..=1 << 30);
    (session, frames, queue_bytes)
}

fn tokens(section: &mut Section<'_>, dev: bool, kept_secret: Option<&Secret>) -> (VerifierConfig, bool) {
    let mut connection = key_set(&mut section.section("token"));
    let generated = dev && !connection.has_keys();
    if generated {
        let secret = kept_secret.cloned().unwrap_or_else(Secret::random);
        connection.hmac_secret = Some(secret.expose().as_bytes().to_vec());
    }
    let mut own = section.section("subscription_token");
    let separate = !own.is_empty();
    let problems = section.context.problem_count();
    let subscription = key_set(&mut own);
    if separate && !subscription.has_keys() && section.context.problem_count() == problems {
        section.problem("subscription_token", "has no key: subscription tokens could never be verified");
    }
    let jwks = jwks(section);
    (VerifierConfig { connection, subscription: separate.then_some(subscription), jwks }, generated)
}

fn jwks(section: &mut Section<'_>) -> JwksOptions {
    let defaults = JwksOptions::default();
    let mut section = section.section("jwks");
    JwksOptions {
        ttl: section.duration("ttl", defaults.ttl, SECOND..=24 * HOUR),
        cooldown: section.duration("cooldown", defaults.cooldown, SECOND..=HOUR),
        timeout: section.duration("timeout", defaults.timeout, Duration::from_millis(10)..=60 * SECOND),
        attempts: u32::try_from(section.count("attempts", defaults.attempts as usize, 1..=10)).unwrap_or(1),
    }
}

/// The tables `token` and `subscription_token` have the same keys.
fn key_set(section: &mut Section<'_>) -> KeySet {
    let hmac_secret = section.secret("hmac_secret");
    let previous = section.secret("hmac_previous_secret");
    let until = section.integer_opt("hmac_previous_secret_until");
    for (name, secret) in [("hmac_secret", &hmac_secret), ("hmac_previous_secret", &previous)] {
        if secret.as_ref().is_some_and(|secret| secret.expose().len() < HMAC_SECRET_BYTES_MIN) {
            let key = section.key(name);
            section.context.warn(format!("{key} has fewer than {HMAC_SECRET_BYTES_MIN} bytes, which is weak"));
        }
    }
    if previous.is_some() && hmac_secret.is_none() {
        section.problem("hmac_previous_secret", "needs hmac_secret, the current one");
    }
    if until.is_some() && previous.is_none() {
        section.problem("hmac_previous_secret_until", "needs hmac_previous_secret");
    }
    let bytes = |secret: Secret| secret.expose().as_bytes().to_vec();
    let set = KeySet {
        hmac_secret: hmac_secret.map(bytes),
        hmac_previous_secret: previous.map(|secret| PreviousSecret { secret: bytes(secret), until }),
        rsa_public_key: section.text_or_file("rsa_public_key"),
        ecdsa_public_key: section.text_or_file("ecdsa_public_key"),
        eddsa_public_key: section.text_or_file("eddsa_public_key"),
        jwks_url: section.text_opt("jwks_url"),
        issuer: expected(section, "issuer"),
        audience: expected(section, "audience"),
        user_id_claim: section.text_opt("user_id_claim"),
    };
    check_keys(section, &set);
    if set.jwks_url.is_some() && (KeySet { jwks_url: None, ..set.clone() }).has_keys() {
        let key = section.key("jwks_url");
        section.context.warn(format!("{key} replaces the other keys of its section, which are not used"));
    }
    set
}

/// Tries each key alone, so that every unusable one is reported.
fn check_keys(section: &Section<'_>, set: &KeySet) {
    let alone = [
        ("rsa_public_key", KeySet { rsa_public_key: set.rsa_public_key.clone(), ..KeySet::default() }),
        ("ecdsa_public_key", KeySet { ecdsa_public_key: set.ecdsa_public_key.clone(), ..KeySet::default() }),
        ("eddsa_public_key", KeySet { eddsa_public_key: set.eddsa_public_key.clone(), ..KeySet::default() }),
        ("jwks_url", KeySet { jwks_url: set.jwks_url.clone(), ..KeySet::default() }),
    ];
    for (name, connection) in alone {
        let config = VerifierConfig { connection, ..VerifierConfig::default() };
        if let Err(error) = Verifier::new(&config) {
            let reason = match error {
                KeyError::Empty(_) => "is empty".to_owned(),
                KeyError::Pem { reason, .. } => format!("is not a usable PEM public key: {reason}"),
                KeyError::Url { reason, .. } => reason,
                KeyError::Client(reason) => reason,
            };
            let file = format!("{name}_file");
            section.problem(if section.is_set(&file) { &file } else { name }, reason);
        }
    }
}

/// `<name>` or `<name>_regex`.
fn expected(section: &mut Section<'_>, name: &str) -> Option<Expected> {
    let regex_name = format!("{name}_regex");
    let exact = section.text_opt(name);
    let matching = regex(section, &regex_name);
    match (exact, matching) {
        (Some(_), Some(_)) => {
            section.problem(&regex_name, format!("{} is given too; keep one of them", section.key(name)));
            None
        }
        (Some(text), None) => Some(Expected::Exact(text)),
        (None, matching) => matching.map(Expected::Matching),
    }
}
