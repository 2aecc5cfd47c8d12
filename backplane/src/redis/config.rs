//! Where Redis is and how it is used.

use std::fmt;
use std::time::Duration;

pub use crate::address::Address;
pub use crate::tls::TlsFiles as RedisTls;

/// What stands behind the addresses.
#[derive(Clone, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Standalone(Address),
    /// A primary and replicas, watched by Sentinels. Encryption is for all of them or for none.
    Sentinel {
        /// Some or all of the Sentinels; the others are found.
        sentinels: Vec<Address>,
        /// The name under which they watch the primary.
        primary: String,
        /// User name for the Sentinels themselves; `None` without.
        username: Option<String>,
        /// Password for the Sentinels themselves. Never shown by `Debug`.
        password: Option<String>,
    },
    /// A Redis Cluster, version 7 or newer: some of its nodes, the others are found. With encryption they are addressed by
    /// the host names that they announce, if they do, since that is what certificates name.
    Cluster(Vec<Address>),
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standalone(address) => write!(f, "Standalone({address})"),
            Self::Sentinel { sentinels, primary, .. } => write!(f, "Sentinel({sentinels:?}, {primary})"),
            Self::Cluster(nodes) => write!(f, "Cluster({nodes:?})"),
        }
    }
}

/// When a publish is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// When the primary has carried it out. A failover may lose it.
    #[default]
    Primary,
    /// When so many replicas have it too.
    Replicated {
        /// How many; with all of them a publish survives any promotion.
        replicas: u32,
        /// How long to wait for them. Afterwards the publish fails, but may have happened.
        timeout: Duration,
    },
}

/// Settings of a [`RedisBackplane`](super::RedisBackplane).
#[derive(Clone)]
pub struct RedisConfig {
    /// Where Redis is.
    pub topology: Topology,
    /// Encryption; `None` speaks plain TCP.
    pub tls: Option<RedisTls>,
    /// What an acknowledged publish has survived.
    pub durability: Durability,
    /// User name of the ACL; `None` is the user `default`.
    pub username: Option<String>,
    /// Password of the user. Never shown by `Debug`.
    pub password: Option<String>,
    /// Number of the database, 0 by default. Pub/sub names are shared by all databases of a server: use different
    /// prefixes for different systems.
    pub database: u8,
    /// Beginning of every key and pub/sub name, of `[A-Za-z0-9_.:-]`. `ek` by default.
    pub prefix: String,
    /// Connections for commands, to each primary. A channel always uses the same one, so that concurrent publishes to it keep their
    /// order. 2 by default: one carries about 40,000 publishes per second, a second one spares large answers' neighbours.
    pub connections: usize,
    /// Connections for deliveries, to each primary, over which channels are spread. 1 by default: one carries more than Redis publishes.
    pub subscriber_connections: usize,
    /// How long a call may take before it fails with `Unavailable`. 2 s by default: a client's request has not timed out
    /// by then (5 s), so it gets an answer.
    pub command_timeout: Duration,
    /// How long a connection attempt may take, greeting included. 2 s by default.
    pub connect_timeout: Duration,
    /// Longest pause between connection attempts; the first is 50 ms. 1 s by default.
    pub reconnect_delay_max: Duration,
    /// Calls under way at the same time; more of them wait (within `command_timeout`), which bounds memory while Redis
    /// is slow. 4,096 by default: some ten milliseconds of work for Redis.
    pub in_flight_max: usize,
    /// Deliveries that may wait between a connection and the node's hub. When they are more, the oldest are lost and
    /// all channels are repaired from history. 16,384 by default, a fifth of a second at full speed; the client library
    /// sets 12 MB aside for as many.
    pub deliveries_waiting_max: usize,
    /// How often each subscriber connection is tested, and Sentinels or the cluster are asked who is primary. 1 s by
    /// default; together with `command_timeout` it bounds how long a silent connection goes unnoticed.
    pub liveness_interval: Duration,
    /// A node's presence entries are ignored when its lease was not renewed for this long. 30 s by default.
    pub lease_ttl: Duration,
    /// How often the lease is renewed, and how often others' leases are looked at. 5 s by default.
    pub lease_interval: Duration,
    /// Name of this node in the table of leases, for people who look at it.
    pub node_name: String,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            topology: Topology::Standalone(Address::new("127.0.0.1", 6379)),
            tls: None,
            durability: Durability::Primary,
            username: None,
            password: None,
            database: 0,
            prefix: "ek".to_owned(),
            connections: 2,
            subscriber_connections: 1,
            command_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            reconnect_delay_max: Duration::from_secs(1),
            in_flight_max: 4096,
            deliveries_waiting_max: 16_384,
            liveness_interval: Duration::from_secs(1),
            lease_ttl: Duration::from_secs(30),
            lease_interval: Duration::from_secs(5),
            node_name: "node".to_owned(),
        }
    }
}

impl RedisConfig {
    /// What is wrong with the numbers, in words; the prefix is checked by [`Keys::new`](super::keys::Keys::new).
    pub(super) fn problem(&self) -> Option<String> {
        let zero = [
            ("connections", self.connections == 0),
            ("subscriber_connections", self.subscriber_connections == 0),
            ("in_flight_max", self.in_flight_max == 0),
            ("command_timeout", self.command_timeout.is_zero()),
            ("connect_timeout", self.connect_timeout.is_zero()),
            ("reconnect_delay_max", self.reconnect_delay_max.is_zero()),
            ("liveness_interval", self.liveness_interval.is_zero()),
            ("lease_interval", self.lease_interval.is_zero()),
        ];
        if let Some((name, _)) = zero.into_iter().find(|(_, is_zero)| *is_zero) {
            return Some(format!("{name} must not be 0"));
        }
        // A smaller buffer loses deliveries in every burst; a larger one is refused by the channel it is made of.
        if !(1024..=1 << 24).contains(&self.deliveries_waiting_max) {
            return Some("deliveries_waiting_max must be between 1024 and 16777216".to_owned());
        }
        if let Durability::Replicated { replicas, timeout } = self.durability {
            if replicas == 0 {
                return Some("durability: replicas must not be 0".to_owned());
            }
            // Redis counts in milliseconds, and takes 0 for no limit.
            if timeout < Duration::from_millis(1) || timeout >= self.command_timeout {
                return Some("durability: timeout must be at least 1 ms and below command_timeout".to_owned());
            }
        }
        match &self.topology {
            Topology::Sentinel { sentinels, .. } if sentinels.is_empty() => {
                return Some("no Sentinel is given".to_owned());
            }
            Topology::Cluster(nodes) if nodes.is_empty() => return Some("no node of the cluster is given".to_owned()),
            Topology::Cluster(_) if self.database != 0 => return Some("a cluster has no databases".to_owned()),
            _ => {}
        }
        // A renewal may fail once and be late once without the lease being lost.
        if self.lease_ttl < 3 * self.lease_interval {
            return Some("lease_ttl must be at least three times lease_interval".to_owned());
        }
        None
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("topology", &self.topology)
            .field("tls", &self.tls)
            .field("durability", &self.durability)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("database", &self.database)
            .field("prefix", &self.prefix)
            .field("node_name", &self.node_name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_and_the_password_is_not_shown() {
        let config = RedisConfig { password: Some("s3cret".to_owned()), ..RedisConfig::default() };
        assert_eq!(config.problem(), None);
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn nonsense_is_named() {
        let problem = |config: RedisConfig| config.problem().unwrap_or_default();
        assert!(problem(RedisConfig { connections: 0, ..RedisConfig::default() }).contains("connections"));
        assert!(problem(RedisConfig { deliveries_waiting_max: 32, ..RedisConfig::default() }).contains("1024"));
        let lease_ttl = Duration::from_secs(10);
        let replicated = |replicas, millis| {
            let durability = Durability::Replicated { replicas, timeout: Duration::from_millis(millis) };
            problem(RedisConfig { durability, ..RedisConfig::default() })
        };
        assert!(replicated(0, 200).contains("replicas"));
        assert!(replicated(1, 0).contains("timeout") && replicated(1, 2000).contains("timeout"));
        assert_eq!(replicated(1, 200), "");
        let cluster = || Topology::Cluster(vec![Address::new("a", 1)]);
        assert!(
            problem(RedisConfig { topology: cluster(), database: 1, ..RedisConfig::default() }).contains("databases")
        );
        assert_eq!(RedisConfig { topology: cluster(), ..RedisConfig::default() }.problem(), None);
        let topology = Topology::Cluster(Vec::new());
        assert!(problem(RedisConfig { topology, ..RedisConfig::default() }).contains("cluster"));
        assert!(problem(RedisConfig { lease_ttl, ..RedisConfig::default() }).contains("lease_ttl"));
    }
}
