//! Where NATS is and how it is used.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::address::Address;
pub use crate::tls::TlsFiles as NatsTls;

/// Partitions of the channels, fixed for a system when its streams are made. 1,024: a node with many channels holds at
/// most as many NATS subscriptions, at some 5 KB each, and one with few channels receives little that it did not ask
/// for.
pub const PARTITIONS: u16 = 1024;

/// How this node proves who it is.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum NatsAuth {
    /// Not at all.
    #[default]
    None,
    /// By user name and password.
    User {
        /// The user.
        name: String,
        /// The password.
        password: String,
    },
    /// By a token.
    Token(String),
    /// By signing the server's challenge with the key of this seed (`SU...`).
    Nkey(String),
    /// By the user token and key in a file as `nsc` writes it (`.creds`).
    Credentials(PathBuf),
}

impl fmt::Debug for NatsAuth {
    /// Tells no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::User { name, .. } => write!(f, "User({name})"),
            Self::Token(_) => f.write_str("Token"),
            Self::Nkey(_) => f.write_str("Nkey"),
            Self::Credentials(file) => write!(f, "Credentials({})", file.display()),
        }
    }
}

/// Where streams are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Storage {
    /// On disk: they outlive a restart of the server.
    #[default]
    File,
    /// In memory: a server that restarts has lost them, unless there are replicas. Clients are told so.
    Memory,
}

impl Storage {
    /// The word NATS has for it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Memory => "memory",
        }
    }
}

/// Settings of a [`NatsBackplane`](super::NatsBackplane).
#[derive(Clone)]
pub struct NatsConfig {
    /// Some or all of the servers; those that they name of themselves are used too.
    pub servers: Vec<Address>,
    /// Who this node is.
    pub auth: NatsAuth,
    /// Encryption; `None` speaks plain TCP, unless the server asks for more.
    pub tls: Option<NatsTls>,
    /// Beginning of every stream name and subject, of `[A-Za-z0-9_-]`. `ek` by default.
    pub prefix: String,
    /// Where streams are kept. A stream that exists is not moved: another value is refused.
    pub storage: Storage,
    /// Copies of each stream, 1 to 5; more than 1 need a cluster. 1 by default.
    pub replicas: u8,
    /// Partitions of the channels, the same on all nodes for ever; [`PARTITIONS`] by default, 1 to 16,384.
    pub partitions: u16,
    /// How long a call may take before it fails with `Unavailable`. 2 s by default: a client's request has not timed out
    /// by then (5 s), so it gets an answer.
    pub command_timeout: Duration,
    /// How long a connection attempt may take, greeting included. 2 s by default.
    pub connect_timeout: Duration,
    /// Longest pause between connection attempts; the first is 50 ms. 1 s by default.
    pub reconnect_delay_max: Duration,
    /// How often connections and streams are looked at. 1 s by default; together with `command_timeout` it bounds how
    /// long a silent connection goes unnoticed.
    pub liveness_interval: Duration,
    /// Calls under way at the same time; more of them wait (within `command_timeout`), which bounds memory while NATS is
    /// slow. 4,096 by default: some 50 milliseconds of work for one stream.
    pub in_flight_max: usize,
    /// Deliveries that may wait in each partition between the connection and the node's hub. When they are more, some
    /// are lost and all channels are repaired from history. 16,384 by default.
    pub deliveries_waiting_max: usize,
    /// How long the subscription of a partition without channels is kept, so that channels that come and go cost
    /// nothing. 5 s by default.
    pub partition_linger: Duration,
    /// A node's presence entries are ignored when its lease was not renewed for this long. 30 s by default.
    pub lease_ttl: Duration,
    /// How often the lease is renewed, and how often others' leases are looked at. 5 s by default.
    pub lease_interval: Duration,
    /// Name of this node at the server, for people who look there.
    pub node_name: String,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            servers: vec![Address::new("127.0.0.1", 4222)],
            auth: NatsAuth::None,
            tls: None,
            prefix: "ek".to_owned(),
            storage: Storage::File,
            replicas: 1,
            partitions: PARTITIONS,
            command_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            reconnect_delay_max: Duration::from_secs(1),
            liveness_interval: Duration::from_secs(1),
            in_flight_max: 4096,
            deliveries_waiting_max: 16_384,
            partition_linger: Duration::from_secs(5),
            lease_ttl: Duration::from_secs(30),
            lease_interval: Duration::from_secs(5),
            node_name: "node".to_owned(),
        }
    }
}

impl NatsConfig {
    /// What is wrong with the settings, in words.
    pub(super) fn problem(&self) -> Option<String> {
        let zero = [
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
        if self.servers.is_empty() {
            return Some("no server is given".to_owned());
        }
        if self.prefix.is_empty() || !self.prefix.bytes().all(crate::encoding::is_plain) {
            return Some("prefix must be made of [A-Za-z0-9_-] and not be empty".to_owned());
        }
        if !(1..=5).contains(&self.replicas) {
            return Some("replicas must be between 1 and 5".to_owned());
        }
        if !(1..=16_384).contains(&self.partitions) {
            return Some("partitions must be between 1 and 16384".to_owned());
        }
        // A smaller buffer loses deliveries in every burst; a larger one is refused by the channel it is made of.
        if !(1024..=1 << 24).contains(&self.deliveries_waiting_max) {
            return Some("deliveries_waiting_max must be between 1024 and 16777216".to_owned());
        }
        // A renewal may fail once and be late once without the lease being lost.
        if self.lease_ttl < 3 * self.lease_interval {
            return Some("lease_ttl must be at least three times lease_interval".to_owned());
        }
        None
    }
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsConfig")
            .field("servers", &self.servers)
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .field("prefix", &self.prefix)
            .field("storage", &self.storage)
            .field("replicas", &self.replicas)
            .field("partitions", &self.partitions)
            .field("node_name", &self.node_name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_and_secrets_are_not_shown() {
        assert_eq!(NatsConfig::default().problem(), None);
        let secret = || "s3cret".to_owned();
        for auth in [
            NatsAuth::User { name: "ann".to_owned(), password: secret() },
            NatsAuth::Token(secret()),
            NatsAuth::Nkey(secret()),
        ] {
            let config = NatsConfig { auth, ..NatsConfig::default() };
            assert!(!format!("{config:?}").contains("s3cret"));
        }
    }

    #[test]
    fn nonsense_is_named() {
        let problem = |config: NatsConfig| config.problem().unwrap_or_default();
        let default = NatsConfig::default;
        assert!(problem(NatsConfig { servers: Vec::new(), ..default() }).contains("server"));
        assert!(problem(NatsConfig { prefix: "a.b".to_owned(), ..default() }).contains("prefix"));
        assert!(problem(NatsConfig { prefix: String::new(), ..default() }).contains("prefix"));
        assert!(problem(NatsConfig { replicas: 0, ..default() }).contains("replicas"));
        assert!(problem(NatsConfig { replicas: 6, ..default() }).contains("replicas"));
        assert!(problem(NatsConfig { partitions: 0, ..default() }).contains("partitions"));
        assert!(problem(NatsConfig { in_flight_max: 0, ..default() }).contains("in_flight_max"));
        assert!(problem(NatsConfig { deliveries_waiting_max: 32, ..default() }).contains("1024"));
        assert!(problem(NatsConfig { lease_ttl: Duration::from_secs(10), ..default() }).contains("lease_ttl"));
    }
}
