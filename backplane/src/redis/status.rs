//! Looks at connections for commands, so that it is known at any time whether Redis can be used.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::EventInterface;
use fred::types::Value;
use fred::types::config::Server;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use super::connection::{FailFast, fail_fast, send, text, unavailable_or_refused};
use crate::BackplaneError;
use crate::health::Link;

/// Pause between looks at a connection that does not work. While it is not even made, a look is answered at once.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// A task that ends with this.
pub(super) struct Watch(JoinHandle<()>);

impl Watch {
    /// Watches a connection for commands, so that its link says at any time whether it works.
    pub(super) fn start(client: &Client, link: &Arc<Link>, interval: Duration) -> Self {
        Self(tokio::spawn(watch(client.clone(), Arc::clone(link), client.error_rx(), interval)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An outage that the operating system tells of shows at once; a silent one within `interval` and the time limit of a
/// call.
async fn watch(client: Client, link: Arc<Link>, mut errors: Receiver<(Error, Option<Server>)>, interval: Duration) {
    let commands = fail_fast(&client);
    loop {
        let is_up = link.is_up();
        // Half of it, because an answer just after a look hides a loss until the second look after it.
        let pause = if is_up { interval / 2 } else { RETRY_INTERVAL.min(interval / 2) };
        tokio::select! {
            biased;
            error = errors.recv() => match error {
                Ok((error, _)) => drop(link.down(&error)),
                Err(lagged @ RecvError::Lagged(_)) => drop(link.down(&lagged)),
                Err(RecvError::Closed) => return,
            },
            () = tokio::time::sleep(pause) => {
                if link.take_answered() && is_up {
                    continue;
                }
                match probe(&commands).await {
                    Ok(()) => link.up(),
                    Err(why) => drop(link.down(&why)),
                }
            }
        }
    }
}

/// Whether the server can be used.
async fn probe(commands: &FailFast) -> Result<(), BackplaneError> {
    let info = send(commands, "INFO", vec![Value::from("replication")]).await;
    match info.map_err(unavailable_or_refused).and_then(text) {
        // It answers, but takes no writes; the connection is made anew when one is tried.
        Ok(info) if info.lines().any(|line| line == "role:slave") => {
            Err(BackplaneError::Unavailable("the server is a replica".to_owned()))
        }
        Ok(_) | Err(BackplaneError::Protocol(_)) => Ok(()),
        Err(error) => Err(error),
    }
}
