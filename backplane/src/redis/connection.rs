//! Connections to servers, and what their answers and errors mean.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::{Client, WithOptions};
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::{Config, Options, ReconnectError, Server, ServerConfig, TlsConfig};
use fred::types::{Builder, ClusterHash, ConnectHandle, CustomCommand, RespVersion, Value};

use super::config::{Address, RedisConfig, Topology};
use crate::BackplaneError;
use crate::health::Health;
use crate::tls::client_config;

/// A Lua script with its digest.
pub(super) struct Script {
    pub(super) text: &'static str,
    pub(super) digest: LazyLock<String>,
}

impl Script {
    pub(super) const fn new(text: &'static str, digest: fn() -> String) -> Self {
        Self { text, digest: LazyLock::new(digest) }
    }
}

/// Makes a [`Script`] of a file beside this one.
macro_rules! script {
    ($file:literal) => {
        $crate::redis::connection::Script::new(include_str!($file), || fred::util::sha1_hash(include_str!($file)))
    };
}
pub(super) use script;

/// The settings shared by every connection. They answer traps of the client library: RESP3, so that any command is legal
/// on a subscriber connection; one attempt per command, because a publish must not be repeated behind our back; a
/// bounded wait for answers; no limit of its own on waiting commands (it leaks its counter after an overflow).
fn builder(access: &Access, address: &Address, gives_up: bool) -> Builder {
    let config = &*access.config;
    let mut builder = Builder::from_config(Config {
        // Always one server: which one is found out here, for all topologies alike.
        server: ServerConfig::Centralized { server: Server::new(address.host.as_str(), address.port) },
        username: config.username.clone(),
        password: config.password.clone(),
        database: (config.database != 0).then_some(config.database),
        version: RespVersion::RESP3,
        tls: access.tls.clone(),
        fail_fast: gives_up,
        ..Config::default()
    });
    let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    let (timeout, connect_timeout) = (config.command_timeout, config.connect_timeout);
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = connect_timeout;
            connection.internal_command_timeout = connect_timeout;
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = 0;
            connection.unresponsive.max_timeout = Some(timeout);
            connection.unresponsive.interval = timeout / 4;
            connection.reconnect_on_auth_error = true;
            connection.auto_client_setname = false;
            connection.tcp.nodelay = Some(true);
            connection.reconnect_errors = vec![
                ReconnectError::ReadOnly,
                ReconnectError::Loading,
                ReconnectError::MasterDown,
                ReconnectError::ClusterDown,
            ];
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = timeout;
            performance.broadcast_channel_capacity = access.events_waiting;
        })
        // 0 attempts: for ever. The jitter keeps the nodes of a fleet from returning all at once.
        .set_policy(fred::types::config::ReconnectPolicy::Exponential {
            attempts: 0,
            max_attempts: 0,
            min_delay: 50,
            max_delay: millis(config.reconnect_delay_max),
            base: 2,
            jitter: 50,
        });
    builder
}

/// A client that fails at once while it is not connected, instead of queueing.
pub(super) type FailFast = WithOptions<Client>;

pub(super) fn fail_fast(client: &Client) -> FailFast {
    client.with_options(&Options { fail_fast: true, max_attempts: Some(1), ..Options::default() })
}

/// Says of a mistake in the settings whose they are.
fn of_redis(error: BackplaneError) -> BackplaneError {
    match error {
        BackplaneError::Protocol(why) => BackplaneError::Protocol(format!("redis {why}")),
        unavailable @ BackplaneError::Unavailable(_) => unavailable,
    }
}

/// Everything that is needed to connect to a server of known address.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) config: Arc<RedisConfig>,
    /// What all connections have done.
    pub(super) health: Arc<Health>,
    tls: Option<TlsConfig>,
    /// Messages and other events that may wait for whoever takes them. Every connection has the room for them from the
    /// start, so only those for deliveries have much.
    events_waiting: usize,
}

impl Access {
    pub(super) fn new(config: &RedisConfig) -> Result<Self, BackplaneError> {
        let tls = config.tls.as_ref().map(client_config).transpose().map_err(of_redis)?.map(TlsConfig::from);
        Ok(Self { config: Arc::new(config.clone()), health: Arc::new(Health::new("redis")), tls, events_waiting: 16 })
    }

    /// The same for connections that have subscriptions.
    pub(super) fn for_deliveries(&self) -> Self {
        Self { events_waiting: self.config.deliveries_waiting_max, ..self.clone() }
    }

    /// The same to the Sentinels, which have users of their own and no databases.
    pub(super) fn for_sentinels(&self) -> Self {
        let mut config = RedisConfig { database: 0, ..(*self.config).clone() };
        if let Topology::Sentinel { username, password, .. } = &self.config.topology {
            (config.username, config.password) = (username.clone(), password.clone());
        }
        Self { config: Arc::new(config), ..self.clone() }
    }

    /// One more connection, connected.
    pub(super) async fn connect(&self, address: &Address) -> Result<Connection, BackplaneError> {
        let connect_timeout = self.config.connect_timeout;
        let client = builder(self, address, true).build().map_err(unavailable_or_refused)?;
        let connected = tokio::time::timeout(2 * connect_timeout, client.init()).await;
        let problem = match connected {
            Ok(Ok(task)) => return Ok(Connection { commands: fail_fast(&client), client, task }),
            Ok(Err(error)) => unavailable_or_refused(error),
            Err(_) => BackplaneError::Unavailable("redis did not answer in time".to_owned()),
        };
        // Otherwise it would go on trying in the background.
        let _ = tokio::time::timeout(connect_timeout, client.quit()).await;
        Err(match problem {
            BackplaneError::Unavailable(why) => BackplaneError::Unavailable(format!("redis at {address}: {why}")),
            BackplaneError::Protocol(why) => BackplaneError::Protocol(format!("redis at {address}: {why}")),
        })
    }

    /// One more connection, which is made in the background, however long it takes.
    pub(super) fn connect_later(&self, address: &Address) -> Connection {
        let client = builder(self, address, false).build().expect("the same settings have led to connections before");
        let task = client.connect();
        Connection { commands: fail_fast(&client), client, task }
    }
}

/// A connection that is made again for ever when it breaks, until this is dropped.
pub(super) struct Connection {
    /// For events.
    pub(super) client: Client,
    /// For commands.
    pub(super) commands: FailFast,
    task: ConnectHandle,
}

impl Connection {
    pub(super) async fn close(&self, timeout: Duration) {
        // Nothing is left to do for a connection that cannot be told goodbye.
        let _ = tokio::time::timeout(timeout, self.client.quit()).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The client library's task does not end with its clients.
        self.task.abort();
    }
}

pub(super) async fn send(client: &FailFast, command: &'static str, arguments: Vec<Value>) -> Result<Value, Error> {
    // No key has to be found in it: the connection is that of the right server already.
    client.custom(CustomCommand::new_static(command, ClusterHash::Random, false), arguments).await
}

/// Sends a command to a server that is taking its slot over.
pub(super) async fn send_asking(client: &Client, command: &'static str, arguments: Vec<Value>) -> Result<Value, Error> {
    let pipeline = client.pipeline();
    let _: Value =
        pipeline.custom(CustomCommand::new_static("ASKING", ClusterHash::Random, false), Vec::<Value>::new()).await?;
    let _: Value = pipeline.custom(CustomCommand::new_static(command, ClusterHash::Random, false), arguments).await?;
    pipeline.last().await
}

/// Beginnings of error replies that say "not now": another server or a later attempt can do it.
const TEMPORARY: &[&str] = &[
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "BUSY",
    "UNKILLABLE",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "ERR max number of clients",
];

/// What an error means to the caller. What Redis itself replied is for good unless it is known to be temporary; what the
/// client library found out by itself is about the connection, but for settings that cannot work.
pub(super) fn unavailable_or_refused(error: Error) -> BackplaneError {
    let details = error.details();
    let is_temporary = TEMPORARY.iter().any(|word| details.starts_with(word));
    // Replies begin with a code like ERR or NOPERM.
    let code = details.split(' ').next().unwrap_or_default();
    let is_reply = code.len() > 1 && code.bytes().all(|byte| byte.is_ascii_uppercase());
    let is_setting = matches!(
        error.kind(),
        ErrorKind::Config
            | ErrorKind::Auth
            | ErrorKind::Url
            | ErrorKind::Tls
            | ErrorKind::InvalidArgument
            | ErrorKind::InvalidCommand
    );
    // The way in which the TLS library says that it does not trust the other side, or is not trusted.
    let is_setting = is_setting || details.contains("InvalidCertificate(") || details.contains("AlertReceived(");
    if !is_temporary && (is_reply || is_setting) {
        BackplaneError::Protocol(details.to_owned())
    } else {
        BackplaneError::Unavailable(details.to_owned())
    }
}

/// The parts of an answer, or an error that says it is not one.
pub(super) fn list(value: Value) -> Result<Vec<Value>, BackplaneError> {
    match value {
        Value::Array(items) => Ok(items),
        Value::Null => Ok(Vec::new()),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn blob(value: Value) -> Result<Bytes, BackplaneError> {
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        Value::String(text) => Ok(text.into_inner()),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn text(value: Value) -> Result<String, BackplaneError> {
    match value {
        Value::String(text) => Ok(text.to_string()),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn number(value: &Value) -> Result<u64, BackplaneError> {
    let number = match value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| unexpected(value))
}

pub(super) fn unexpected(value: &Value) -> BackplaneError {
    BackplaneError::Protocol(format!("redis answered something unexpected ({:?})", value.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_for_now_or_for_good() {
        let refused = |kind, details: &'static str| {
            matches!(unavailable_or_refused(Error::new(kind, details)), BackplaneError::Protocol(_))
        };
        assert!(refused(ErrorKind::Unknown, "NOPERM this user has no permissions to run the 'info' command"));
        assert!(refused(ErrorKind::Unknown, "ERR unknown command"));
        let untrusted = "Custom { kind: InvalidData, error: InvalidCertificate(UnknownIssuer) }";
        assert!(refused(ErrorKind::IO, untrusted));
        assert!(!refused(ErrorKind::Unknown, "MOVED 3999 127.0.0.1:6381"));
        assert!(refused(ErrorKind::Auth, "WRONGPASS invalid username-password pair or user is disabled."));
        assert!(!refused(ErrorKind::Unknown, "LOADING Redis is loading the dataset in memory"));
        assert!(!refused(ErrorKind::Unknown, "OOM command not allowed when used memory > 'maxmemory'."));
        assert!(!refused(ErrorKind::Unknown, "Failed to route command."));
        assert!(!refused(ErrorKind::IO, "Connection refused (os error 111)"));
        assert!(!refused(ErrorKind::Timeout, "Request timed out."));
    }
}
