//! Connections for commands, scripts on them, and what errors mean.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::{Client, WithOptions};
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::{ClusterDiscoveryPolicy, Config, Options, ReconnectError, Server, ServerConfig};
use fred::types::{Builder, ClusterHash, ConnectHandle, CustomCommand, RespVersion, Value};
use tokio::sync::Semaphore;

use super::config::{Address, RedisConfig, Topology};
use super::status::{Health, Link, Watches};
use crate::BackplaneError;

/// A Lua script with its digest.
pub(super) struct Script {
    text: &'static str,
    digest: LazyLock<String>,
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

fn server_config(topology: &Topology) -> ServerConfig {
    let server = |address: &Address| Server::new(address.host.as_str(), address.port);
    match topology {
        Topology::Standalone(address) => ServerConfig::Centralized { server: server(address) },
        Topology::Sentinel { sentinels, primary, username, password } => ServerConfig::Sentinel {
            hosts: sentinels.iter().map(server).collect(),
            service_name: primary.clone(),
            username: username.clone(),
            password: password.clone(),
        },
        Topology::Cluster(nodes) => ServerConfig::Clustered {
            hosts: nodes.iter().map(server).collect(),
            policy: ClusterDiscoveryPolicy::default(),
        },
    }
}

/// The settings shared by every connection. They answer traps of the client library: RESP3, so that any command is legal
/// on a subscriber connection; one attempt per command, because a publish must not be repeated behind our back; a
/// bounded wait for answers; no limit of its own on waiting commands (it leaks its counter after an overflow).
fn builder(config: &RedisConfig) -> Builder {
    let mut builder = Builder::from_config(Config {
        server: server_config(&config.topology),
        username: config.username.clone(),
        password: config.password.clone(),
        database: (config.database != 0).then_some(config.database),
        version: RespVersion::RESP3,
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
            performance.broadcast_channel_capacity = config.deliveries_waiting_max;
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

/// The connections for commands.
pub(super) struct Commands {
    connections: Vec<(Connection, Arc<Link>)>,
    permits: Semaphore,
    timeout: Duration,
    health: Arc<Health>,
}

impl Commands {
    /// Connects, and fails when the first attempt does.
    pub(super) async fn connect(config: &RedisConfig, health: Arc<Health>) -> Result<Self, BackplaneError> {
        let mut commands = Self {
            connections: Vec::new(),
            permits: Semaphore::new(config.in_flight_max.min(Semaphore::MAX_PERMITS)),
            timeout: config.command_timeout,
            health,
        };
        for _ in 0..config.connections {
            let link = Arc::new(Link::new(Arc::clone(&commands.health), "commands"));
            commands.connections.push((connect(config).await?, link));
        }
        Ok(commands)
    }

    /// Starts to look after the connections.
    pub(super) fn watch(&self, interval: Duration) -> Watches {
        Watches::start(self.connections.iter().map(|(connection, link)| (&connection.client, link)), interval)
    }

    /// Runs a command. Everything that is called with one `route` goes over one connection, in order.
    pub(super) async fn call(
        &self,
        route: &str,
        command: &'static str,
        arguments: Vec<Value>,
    ) -> Result<Value, BackplaneError> {
        let (client, link) = self.client(route);
        self.within_limits(link, send(client, command, arguments)).await
    }

    /// Runs a script on the keys; loads it where the server does not know it.
    pub(super) async fn script(
        &self,
        script: &'static Script,
        keys: Vec<String>,
        arguments: Vec<Value>,
    ) -> Result<Value, BackplaneError> {
        let (client, link) = self.client(keys.first().map_or("", String::as_str));
        let count = i64::try_from(keys.len()).expect("a script has a few keys");
        let compose = |program: &str| {
            let mut all = vec![Value::from(program), Value::from(count)];
            all.extend(keys.iter().map(|key| Value::from(key.as_str())));
            all.extend(arguments.iter().cloned());
            all
        };
        self.within_limits(link, async {
            match send(client, "EVALSHA", compose(&script.digest)).await {
                // The server has not run it, so that running it now is no repetition. EVAL also loads it.
                Err(error) if error.details().starts_with("NOSCRIPT") => {
                    send(client, "EVAL", compose(script.text)).await
                }
                result => result,
            }
        })
        .await
    }

    /// Ends the connections.
    pub(super) async fn close(&self) {
        for (connection, _) in &self.connections {
            // Nothing is left to do for a connection that cannot be told goodbye.
            let _ = tokio::time::timeout(self.timeout, connection.client.quit()).await;
        }
    }

    fn client(&self, route: &str) -> (&FailFast, &Link) {
        let mut hasher = DefaultHasher::new();
        route.hash(&mut hasher);
        let index = hasher.finish() % self.connections.len() as u64;
        let (connection, link) = &self.connections[index as usize];
        (&connection.commands, link)
    }

    async fn within_limits(
        &self,
        link: &Link,
        call: impl Future<Output = Result<Value, Error>>,
    ) -> Result<Value, BackplaneError> {
        let limited = async {
            let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
            let result = call.await;
            let is_timeout = result.as_ref().is_err_and(|error| *error.kind() == ErrorKind::Timeout);
            (result.map_err(unavailable_or_refused), is_timeout)
        };
        let under_way = self.health.begin();
        match tokio::time::timeout(self.timeout, limited).await {
            Ok((Ok(value), _)) => {
                link.answered();
                Ok(value)
            }
            Ok((Err(error), is_timeout)) => {
                under_way.failed(is_timeout);
                Err(error)
            }
            Err(_) => {
                under_way.failed(true);
                Err(BackplaneError::Unavailable("redis did not answer in time".to_owned()))
            }
        }
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

impl Drop for Connection {
    fn drop(&mut self) {
        // The client library's task does not end with its clients.
        self.task.abort();
    }
}

/// One more connection, connected.
pub(super) async fn connect(config: &RedisConfig) -> Result<Connection, BackplaneError> {
    let client = builder(config).build().map_err(unavailable_or_refused)?;
    let connected = tokio::time::timeout(2 * config.connect_timeout, client.init()).await;
    let problem = match connected {
        Ok(Ok(task)) => return Ok(Connection { commands: fail_fast(&client), client, task }),
        Ok(Err(error)) => unavailable_or_refused(error),
        Err(_) => BackplaneError::Unavailable("redis did not answer in time".to_owned()),
    };
    // Otherwise it would go on trying in the background.
    let _ = tokio::time::timeout(config.connect_timeout, client.quit()).await;
    Err(match problem {
        BackplaneError::Unavailable(why) => {
            BackplaneError::Unavailable(format!("redis at {:?}: {why}", config.topology))
        }
        refused @ BackplaneError::Protocol(_) => refused,
    })
}

pub(super) async fn send(client: &FailFast, command: &'static str, arguments: Vec<Value>) -> Result<Value, Error> {
    // Scripts name their first key third; of other commands the first argument decides. No effect on a single server.
    let route = if command.starts_with("EVAL") { ClusterHash::Offset(2) } else { ClusterHash::FirstKey };
    client.custom(CustomCommand::new_static(command, route, false), arguments).await
}

/// Beginnings of error replies that say "not now": another server or a later attempt can do it.
const TEMPORARY: &[&str] = &[
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
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
        ErrorKind::Config | ErrorKind::Auth | ErrorKind::Url | ErrorKind::InvalidArgument | ErrorKind::InvalidCommand
    );
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
        assert!(refused(ErrorKind::Auth, "WRONGPASS invalid username-password pair or user is disabled."));
        assert!(!refused(ErrorKind::Unknown, "LOADING Redis is loading the dataset in memory"));
        assert!(!refused(ErrorKind::Unknown, "OOM command not allowed when used memory > 'maxmemory'."));
        assert!(!refused(ErrorKind::Unknown, "Failed to route command."));
        assert!(!refused(ErrorKind::IO, "Connection refused (os error 111)"));
        assert!(!refused(ErrorKind::Timeout, "Request timed out."));
    }
}
