//! Commands and scripts: which server they go to, in which order, and which of them are sent again.
//!
//! A call is sent again only when the server has said that it did not carry it out: a script that it does not know, or a
//! slot that is elsewhere or on its way (MOVED, ASK, TRYAGAIN). Whatever else happens, the caller decides.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fred::error::{Error, ErrorKind};
use fred::types::Value;
use futures_util::future::try_join_all;
use futures_util::{FutureExt, poll};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::config::{RedisConfig, Topology};
use super::connection::{Access, Script, send, send_asking, unavailable_or_refused};
use super::layout::slot_of;
use super::order::Order;
use super::servers::Servers;
use crate::BackplaneError;
use crate::health::Health;

/// Pause before a call is sent again whose slot is between two servers.
const PAUSE: Duration = Duration::from_millis(5);

/// The calls of a backplane.
pub(super) struct Commands {
    servers: Arc<Servers>,
    health: Arc<Health>,
    order: Order,
    permits: Semaphore,
    timeout: Duration,
    publish_command: &'static str,
    watch: JoinHandle<()>,
}

struct Call {
    command: Result<&'static str, &'static Script>,
    arguments: Vec<Value>,
}

impl Call {
    /// Name and arguments for the wire.
    fn compose(&self, with_text: bool) -> (&'static str, Vec<Value>) {
        let (name, program) = match self.command {
            Ok(command) => return (command, self.arguments.clone()),
            Err(script) if with_text => ("EVAL", script.text),
            Err(script) => ("EVALSHA", script.digest.as_str()),
        };
        (name, std::iter::once(Value::from(program)).chain(self.arguments.iter().cloned()).collect())
    }
}

/// Why a server has not carried a call out, and what to do.
#[derive(Debug, PartialEq, Eq)]
enum SentBack<'a> {
    /// It does not know the script: send its text, which also loads it.
    UnknownScript,
    /// The slot is elsewhere: find out where.
    Moved,
    /// The slot is on its way to this address, and so are the keys.
    Ask(&'a str),
    /// Some of the keys are on their way.
    TryAgain,
}

impl<'a> SentBack<'a> {
    fn of(error: &'a Error) -> Option<Self> {
        let mut words = error.details().split(' ');
        match words.next()? {
            "NOSCRIPT" => Some(Self::UnknownScript),
            "MOVED" => Some(Self::Moved),
            "ASK" => Some(Self::Ask(words.nth(1)?)),
            "TRYAGAIN" => Some(Self::TryAgain),
            _ => None,
        }
    }
}

impl Commands {
    /// Connects, and fails when the first attempt does.
    pub(super) async fn connect(config: &RedisConfig) -> Result<Self, BackplaneError> {
        let access = Access::new(config)?;
        let health = Arc::clone(&access.health);
        let (servers, discovery) = Servers::connect(access).await?;
        let watch = tokio::spawn(Arc::clone(&servers).watch(discovery));
        Ok(Self {
            servers,
            health,
            order: Order::new(),
            permits: Semaphore::new(config.in_flight_max.min(Semaphore::MAX_PERMITS)),
            timeout: config.command_timeout,
            // In a cluster PUBLISH goes to every node, SPUBLISH only to those of the shard.
            publish_command: if matches!(config.topology, Topology::Cluster(_)) { "SPUBLISH" } else { "PUBLISH" },
            watch,
        })
    }

    /// The servers, for those who keep connections of their own to them.
    pub(super) fn servers(&self) -> &Arc<Servers> {
        &self.servers
    }

    /// What fans a message out, to be given to scripts.
    pub(super) fn publish_command(&self) -> &'static str {
        self.publish_command
    }

    /// Runs a command on the server of `route`, a key or pub/sub name. Calls of one channel take effect in the order in
    /// which they were first polled.
    pub(super) async fn call(
        &self,
        route: &str,
        command: &'static str,
        arguments: Vec<Value>,
    ) -> Result<Value, BackplaneError> {
        let call = Call { command: Ok(command), arguments };
        self.in_time(self.carry_out(slot_of(route), &call)).await
    }

    /// Runs a script on the keys, which have one slot; loads it where the server does not know it.
    pub(super) async fn script(
        &self,
        script: &'static Script,
        keys: Vec<String>,
        arguments: Vec<Value>,
    ) -> Result<Value, BackplaneError> {
        let slot = slot_of(keys.first().map_or("", String::as_str));
        let count = i64::try_from(keys.len()).expect("a script has a few keys");
        let keys = keys.into_iter().map(Value::from);
        let arguments = std::iter::once(Value::from(count)).chain(keys).chain(arguments).collect();
        let call = Call { command: Err(script), arguments };
        self.in_time(self.carry_out(slot, &call)).await
    }

    /// Runs a command on every primary. The answers are in the order of their addresses.
    pub(super) async fn call_all(
        &self,
        command: &'static str,
        arguments: Vec<Value>,
    ) -> Result<Vec<Value>, BackplaneError> {
        let serving = self.servers.now();
        let calls = serving.servers.iter().map(|server| async {
            let lane = server.lane(0);
            send(lane.commands(), command, arguments.clone()).await.inspect(|_| lane.link.answered())
        });
        self.in_time(async { try_join_all(calls).await.map_err(Failed::from) }).await
    }

    /// Ends the connections.
    pub(super) async fn close(&self) {
        self.watch.abort();
        self.servers.close().await;
    }

    /// What the connections have done so far, and which of them work.
    pub(super) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T, Failed>>) -> Result<T, BackplaneError> {
        let under_way = self.health.begin();
        let timed = tokio::time::timeout(self.timeout, call).await;
        let result = timed.unwrap_or_else(|_| {
            let error = BackplaneError::Unavailable("redis did not answer in time".to_owned());
            Err(Failed { error, is_timeout: true })
        });
        result.map_err(|failed| {
            under_way.failed(failed.is_timeout);
            failed.error
        })
    }

    async fn carry_out(&self, slot: u16, call: &Call) -> Result<Value, Failed> {
        let mut turn = self.order.enter(slot);
        let mut with_text = false;
        let mut asked = None;
        loop {
            if !turn.come().await {
                let why = "the slot has moved, and a later call of the channel was faster".to_owned();
                return Err(BackplaneError::Unavailable(why).into());
            }
            let permit = self.permits.acquire().await.expect("the semaphore is never closed");
            // An earlier call may have been sent back while this one waited.
            if turn.come().now_or_never() != Some(true) {
                continue;
            }
            let serving = self.servers.now();
            let new_owner = asked.take().and_then(|address: String| {
                serving.servers.iter().find(|server| server.address.to_string() == address)
            });
            let (command, arguments) = call.compose(with_text);
            let result = {
                let mut attempt = pin!(async {
                    match new_owner {
                        Some(server) => send_asking(server.lane(slot).client(), command, arguments).await,
                        None => {
                            let lane = serving.owner(slot)?.lane(slot);
                            send(lane.commands(), command, arguments).await.inspect(|_| lane.link.answered())
                        }
                    }
                    .map_err(Problem::Redis)
                });
                // The first poll sends it; the next call may follow.
                let first = poll!(&mut attempt);
                turn.sent();
                match first {
                    Poll::Ready(result) => result,
                    Poll::Pending => attempt.await,
                }
            };
            let error = match result {
                Ok(value) => return Ok(value),
                Err(Problem::NoOwner(error)) => {
                    self.servers.look_soon();
                    return Err(error.into());
                }
                Err(Problem::Redis(error)) => error,
            };
            let Some(sent_back) = SentBack::of(&error) else {
                self.servers.look_soon();
                return Err(error.into());
            };
            turn.sent_back();
            drop(permit);
            match sent_back {
                SentBack::UnknownScript => with_text = true,
                SentBack::Moved => self.servers.look().await,
                SentBack::Ask(address)
                    if serving.servers.iter().any(|server| server.address.to_string() == address) =>
                {
                    asked = Some(address.to_owned());
                }
                // A server that has no slot yet is not known yet.
                SentBack::Ask(_) => {
                    self.servers.look_soon();
                    tokio::time::sleep(PAUSE).await;
                }
                SentBack::TryAgain => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// What the caller is told, and what is counted.
struct Failed {
    error: BackplaneError,
    is_timeout: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let is_timeout = *error.kind() == ErrorKind::Timeout;
        Self { error: unavailable_or_refused(error), is_timeout }
    }
}

impl From<BackplaneError> for Failed {
    fn from(error: BackplaneError) -> Self {
        Self { error, is_timeout: false }
    }
}

enum Problem {
    NoOwner(BackplaneError),
    Redis(Error),
}

impl From<BackplaneError> for Problem {
    fn from(error: BackplaneError) -> Self {
        Self::NoOwner(error)
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_carried_out_is_sent_again() {
        let error = |details: &'static str| Error::new(ErrorKind::Unknown, details);
        assert_eq!(SentBack::of(&error("NOSCRIPT No matching script.")), Some(SentBack::UnknownScript));
        assert_eq!(SentBack::of(&error("MOVED 3999 127.0.0.1:6381")), Some(SentBack::Moved));
        assert_eq!(SentBack::of(&error("ASK 3999 127.0.0.1:6381")), Some(SentBack::Ask("127.0.0.1:6381")));
        assert_eq!(
            SentBack::of(&error("TRYAGAIN Multiple keys request during rehashing of slot")),
            Some(SentBack::TryAgain)
        );
        for other in ["", "READONLY You can't write", "CLUSTERDOWN", "Request timed out.", "Connection closed"] {
            assert_eq!(SentBack::of(&error(other)), None, "{other:?}");
        }
    }
}
