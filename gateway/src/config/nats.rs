//! Where NATS is.

use std::path::PathBuf;
use std::time::Duration;

use backplane::nats::{Address, NatsAuth, NatsConfig, NatsTls, Storage};

use super::reader::Section;
use super::remote::{parse_address, tls};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const MILLISECOND: Duration = Duration::from_millis(1);

/// The port that NATS has unless told otherwise.
const NATS_PORT: u16 = 4222;

/// Reads `[nats]`, and whether it says anything.
pub(super) fn read(section: &mut Section<'_>) -> (NatsConfig, bool) {
    let nats = nats(section);
    let is_set = nats.servers != NatsConfig::default().servers;
    (nats, is_set)
}

fn nats(section: &mut Section<'_>) -> NatsConfig {
    let defaults = NatsConfig::default();
    let servers = servers(section);
    let auth = auth(section);
    let (files, is_encrypted) = tls(section);
    if !is_encrypted && files != NatsTls::default() {
        section.problem("tls", "has files but is not enabled: set nats.tls.enabled = true");
    }
    let prefix = section.text("prefix", &defaults.prefix);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if prefix.is_empty() || !prefix.chars().all(is_plain) {
        section.problem("prefix", "must be made of [A-Za-z0-9_-] and not be empty");
    }
    let words = [("file", Storage::File), ("memory", Storage::Memory)];
    let storage = section.choice("storage", defaults.storage, &words);
    let replicas = section.count("replicas", usize::from(defaults.replicas), 1..=5);
    let partitions = section.count("partitions", usize::from(defaults.partitions), 1..=16_384);
    let short = MILLISECOND * 10..=MINUTE;
    let config = NatsConfig {
        servers,
        auth,
        tls: is_encrypted.then_some(files),
        prefix,
        storage,
        replicas: u8::try_from(replicas).unwrap_or(defaults.replicas),
        partitions: u16::try_from(partitions).unwrap_or(defaults.partitions),
        command_timeout: section.duration("command_timeout", defaults.command_timeout, short.clone()),
        connect_timeout: section.duration("connect_timeout", defaults.connect_timeout, short.clone()),
        reconnect_delay_max: section.duration("reconnect_delay_max", defaults.reconnect_delay_max, short.clone()),
        liveness_interval: section.duration("liveness_interval", defaults.liveness_interval, short),
        in_flight_max: section.count("in_flight_max", defaults.in_flight_max, 1..=1_000_000),
        deliveries_waiting_max: section.count(
            "deliveries_waiting_max",
            defaults.deliveries_waiting_max,
            1024..=1 << 24,
        ),
        partition_linger: section.duration(
            "partition_linger",
            defaults.partition_linger,
            MILLISECOND * 10..=10 * MINUTE,
        ),
        lease_ttl: section.duration("lease_ttl", defaults.lease_ttl, SECOND..=10 * MINUTE),
        lease_interval: section.duration("lease_interval", defaults.lease_interval, MILLISECOND * 100..=MINUTE),
        node_name: String::new(),
    };
    // A renewal may fail once and be late once without the lease being lost.
    if config.lease_ttl < 3 * config.lease_interval {
        section.problem("lease_ttl", "must be at least three times nats.lease_interval");
    }
    config
}

fn servers(section: &mut Section<'_>) -> Vec<Address> {
    let texts = section.texts("servers");
    if texts.is_empty() {
        return NatsConfig::default().servers;
    }
    let mut servers = Vec::with_capacity(texts.len());
    for text in &texts {
        // As people write them; encryption and credentials have keys of their own.
        let bare = text.strip_prefix("nats://").unwrap_or(text);
        match parse_address(bare, NATS_PORT) {
            Some(address) => servers.push(address),
            None => section.problem(
                "servers",
                "must be a list of host:port, or host; tls, username, password and so on have keys of their own",
            ),
        }
    }
    servers
}

/// One way to prove who this node is, or none.
fn auth(section: &mut Section<'_>) -> NatsAuth {
    let secret = |secret: Option<super::Secret>| secret.map(|secret| secret.expose().to_owned());
    let username = section.text_opt("username");
    let password = secret(section.secret("password"));
    let token = secret(section.secret("token"));
    let seed = secret(section.secret("nkey_seed"));
    let credentials = section.text_opt("credentials_file").map(PathBuf::from);
    let ways = [username.is_some(), token.is_some(), seed.is_some(), credentials.is_some()];
    if ways.into_iter().filter(|is_given| *is_given).count() > 1 {
        section
            .problem("username", "one of username, token, nkey_seed and credentials_file is enough; keep one of them");
    }
    if username.is_some() != password.is_some() {
        let (given, missing) = if username.is_some() { ("username", "password") } else { ("password", "username") };
        section.problem(given, format!("needs nats.{missing} too"));
    }
    if let Some(seed) = &seed
        && !seed.starts_with("SU")
    {
        section.problem("nkey_seed", "must be the seed of a user, which begins with SU");
    }
    if let Some(file) = &credentials
        && let Err(error) = std::fs::read_to_string(file)
    {
        section.problem("credentials_file", format!("cannot be read: {error}"));
    }
    match (username, password, token, seed, credentials) {
        (Some(name), Some(password), ..) => NatsAuth::User { name, password },
        (_, _, Some(token), ..) => NatsAuth::Token(token),
        (_, _, _, Some(seed), _) => NatsAuth::Nkey(seed),
        (.., Some(file)) => NatsAuth::Credentials(file),
        _ => NatsAuth::None,
    }
}
