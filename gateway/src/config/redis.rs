//! Where Redis is.

use std::time::Duration;

use backplane::redis::keys::Keys;
use backplane::redis::{Address, Durability, RedisConfig, RedisTls, Topology};
use url::Url;

use super::reader::Section;
use super::remote::{parse_address, tls};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const MILLISECOND: Duration = Duration::from_millis(1);

/// The ports that Redis and its Sentinels have unless told otherwise.
const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Standalone,
    Sentinel,
    Cluster,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DurabilityWord {
    Primary,
    Replicated,
}

/// Reads `[redis]`, and whether it says anything.
pub(super) fn read(section: &mut Section<'_>) -> (RedisConfig, bool) {
    let redis = redis(section);
    let is_set = section.is_set("url") || redis.topology != RedisConfig::default().topology;
    (redis, is_set)
}

fn redis(section: &mut Section<'_>) -> RedisConfig {
    let defaults = RedisConfig::default();
    let modes = [("standalone", Mode::Standalone), ("sentinel", Mode::Sentinel), ("cluster", Mode::Cluster)];
    let mode = section.choice("mode", Mode::Standalone, &modes);
    let addresses = addresses(section, mode);
    let mut username = section.text_opt("username");
    let mut password = section.secret("password").map(|secret| secret.expose().to_owned());
    let database_max = if mode == Mode::Cluster { 0 } else { usize::from(u8::MAX) };
    let mut database = u8::try_from(section.count("database", 0, 0..=database_max)).unwrap_or(0);
    let (files, is_enabled) = tls(section);
    let mut is_encrypted = is_enabled;
    let mut address = addresses.first().cloned().unwrap_or_else(|| Address::new("127.0.0.1", REDIS_PORT));
    if let Some(url) = section.secret("url") {
        if mode != Mode::Standalone {
            section.problem("url", "names one server: with Sentinel or Cluster use addresses");
        }
        for key in ["addresses", "username", "password", "database"] {
            if section.is_set(key) {
                section.problem(key, "is part of redis.url too; keep one of them");
            }
        }
        match parse_url(url.expose()) {
            Ok(parsed) => {
                (address, username, password, database) =
                    (parsed.address, parsed.username, parsed.password, parsed.database);
                if parsed.is_encrypted {
                    is_encrypted = true;
                } else if is_enabled {
                    section.problem("url", "begins with redis://, but redis.tls is on: write rediss://");
                }
            }
            Err(reason) => section.problem("url", reason),
        }
    }
    if !is_encrypted && files != RedisTls::default() {
        section
            .problem("tls", "has files but is not enabled: set redis.tls.enabled = true, or use a URL with rediss://");
    }
    let sentinels = sentinels(section, mode);
    let topology = match mode {
        Mode::Standalone => {
            if addresses.len() > 1 {
                section.problem("addresses", "names several servers: set redis.mode to \"sentinel\" or \"cluster\"");
            }
            Topology::Standalone(address)
        }
        Mode::Sentinel => Topology::Sentinel {
            sentinels: addresses,
            primary: sentinels.primary,
            username: sentinels.username,
            password: sentinels.password,
        },
        Mode::Cluster => Topology::Cluster(addresses),
    };
    let prefix = section.text("prefix", &defaults.prefix);
    if Keys::new(&prefix).is_none() {
        section.problem("prefix", "must be made of [A-Za-z0-9_.:-] and not be empty");
    }
    let short = MILLISECOND * 10..=MINUTE;
    let config = RedisConfig {
        topology,
        tls: is_encrypted.then_some(files),
        username,
        password,
        database,
        prefix,
        command_timeout: section.duration("command_timeout", defaults.command_timeout, short.clone()),
        durability: Durability::Primary,
        connections: section.count("connections", defaults.connections, 1..=64),
        subscriber_connections: section.count("subscriber_connections", defaults.subscriber_connections, 1..=64),
        connect_timeout: section.duration("connect_timeout", defaults.connect_timeout, short.clone()),
        reconnect_delay_max: section.duration("reconnect_delay_max", defaults.reconnect_delay_max, short.clone()),
        in_flight_max: section.count("in_flight_max", defaults.in_flight_max, 1..=1_000_000),
        deliveries_waiting_max: section.count(
            "deliveries_waiting_max",
            defaults.deliveries_waiting_max,
            1024..=1 << 24,
        ),
        liveness_interval: section.duration("liveness_interval", defaults.liveness_interval, short),
        lease_ttl: section.duration("lease_ttl", defaults.lease_ttl, SECOND..=10 * MINUTE),
        lease_interval: section.duration("lease_interval", defaults.lease_interval, MILLISECOND * 100..=MINUTE),
        node_name: String::new(),
    };
    // A renewal may fail once and be late once without the lease being lost.
    if config.lease_ttl < 3 * config.lease_interval {
        section.problem("lease_ttl", "must be at least three times redis.lease_interval");
    }
    let durability = durability(section, config.command_timeout);
    RedisConfig { durability, ..config }
}

fn durability(section: &mut Section<'_>, command_timeout: Duration) -> Durability {
    let words = [("primary", DurabilityWord::Primary), ("replicated", DurabilityWord::Replicated)];
    let word = section.choice("durability", DurabilityWord::Primary, &words);
    let replicas = u32::try_from(section.count("replicas", 1, 1..=16)).unwrap_or(1);
    let timeout = section.duration("replicated_timeout", MILLISECOND * 200, MILLISECOND * 10..=MINUTE);
    match word {
        DurabilityWord::Primary => Durability::Primary,
        DurabilityWord::Replicated => {
            if timeout >= command_timeout {
                section.problem("replicated_timeout", "must be less than redis.command_timeout");
            }
            Durability::Replicated { replicas, timeout }
        }
    }
}

fn addresses(section: &mut Section<'_>, mode: Mode) -> Vec<Address> {
    let default_port = if mode == Mode::Sentinel { SENTINEL_PORT } else { REDIS_PORT };
    let texts = section.texts("addresses");
    if texts.is_empty() {
        if mode != Mode::Standalone {
            section.problem("addresses", "must name at least one server");
        }
        return vec![Address::new("127.0.0.1", default_port)];
    }
    let mut addresses = Vec::with_capacity(texts.len());
    for text in &texts {
        match parse_address(text, default_port) {
            Some(address) => addresses.push(address),
            None => section.problem("addresses", "must be a list of host:port, or host"),
        }
    }
    addresses
}

/// How to ask the Sentinels.
struct Sentinels {
    primary: String,
    username: Option<String>,
    password: Option<String>,
}

fn sentinels(section: &mut Section<'_>, mode: Mode) -> Sentinels {
    let mut own = section.section("sentinel");
    let sentinels = Sentinels {
        primary: own.text_opt("primary").unwrap_or_default(),
        username: own.text_opt("username"),
        password: own.secret("password").map(|secret| secret.expose().to_owned()),
    };
    if mode == Mode::Sentinel && sentinels.primary.is_empty() {
        own.problem("primary", "must be the name under which the Sentinels watch the primary");
    }
    if mode != Mode::Sentinel && ["primary", "username", "password"].iter().any(|name| own.is_set(name)) {
        own.context.warn("redis.sentinel is configured but not used: redis.mode is not \"sentinel\"");
    }
    sentinels
}

/// The parts of `redis://user:password@host:port/database`, or of `rediss://` with encryption.
struct Parsed {
    address: Address,
    username: Option<String>,
    password: Option<String>,
    database: u8,
    is_encrypted: bool,
}

/// Reasons never repeat the address, which may hold a password.
fn parse_url(text: &str) -> Result<Parsed, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    let is_encrypted = match url.scheme() {
        "redis" => false,
        "rediss" => true,
        _ => return Err("must begin with redis:// or rediss://".to_owned()),
    };
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or("has no host")?;
    let decode = |text: &str| {
        let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
        decoded.map(|text| text.into_owned()).map_err(|_| "has a part that is not UTF-8".to_owned())
    };
    let username = decode(url.username())?;
    let password = url.password().map(decode).transpose()?;
    let database = match url.path().trim_start_matches('/') {
        "" => 0,
        path => path.parse().map_err(|_| "must end with the number of a database, such as /0".to_owned())?,
    };
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has options behind a ? or #, which are not used: write them as keys of redis".to_owned());
    }
    Ok(Parsed {
        address: Address::new(host.trim_matches(['[', ']']), url.port().unwrap_or(REDIS_PORT)),
        username: Some(username).filter(|name| !name.is_empty()),
        password,
        database,
        is_encrypted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_everything_in_it() {
        let parsed = parse_url("rediss://app:p%40ss@[::1]:6380/3").unwrap_or_else(|reason| panic!("{reason}"));
        assert_eq!((parsed.address.to_string().as_str(), parsed.database), ("[::1]:6380", 3));
        assert_eq!((parsed.username.as_deref(), parsed.password.as_deref()), (Some("app"), Some("p@ss")));
        assert!(parsed.is_encrypted);
        let plain = parse_url("redis://:secret@db").unwrap_or_else(|reason| panic!("{reason}"));
        assert_eq!((plain.username, plain.password.as_deref(), plain.address.port), (None, Some("secret"), 6379));
        for wrong in ["http://a", "redis://", "redis://a/x", "redis://a?tls=1", "redis:a", "a:6379"] {
            let reason = parse_url(wrong).err().unwrap_or_else(|| panic!("{wrong} must be refused"));
            assert!(!reason.contains(wrong), "{reason}");
        }
    }
}
