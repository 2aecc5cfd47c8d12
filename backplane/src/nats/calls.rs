//! The connection for calls: made again for ever, and used only while it is known to work.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rand::Rng;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

use super::connection::{Access, Connection, Purpose};
use super::request::CallError;
use crate::BackplaneError;
use crate::health::Link;

/// The first pause between connection attempts.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Everything but deliveries goes over this.
pub(super) struct Calls {
    access: Arc<Access>,
    /// `None` while there is no connection that works.
    current: RwLock<Option<Arc<Connection>>>,
    permits: Semaphore,
    link: Arc<Link>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Calls {
    /// Connects, and fails when no server can be reached or none has JetStream.
    pub(super) async fn connect(access: Arc<Access>) -> Result<Arc<Self>, BackplaneError> {
        let first = access.connect_any(Purpose::Calls).await?;
        let limit = access.config.connect_timeout;
        match tokio::time::timeout(limit, has_jetstream(&first)).await {
            Ok(Ok(())) => {}
            Ok(Err(CallError::NoStream)) => {
                return Err(BackplaneError::Protocol(
                    "the nats server has no JetStream, or the user may not use it ($JS.API.>)".to_owned(),
                ));
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(BackplaneError::Unavailable("JetStream of nats does not answer".to_owned())),
        }
        let calls = Arc::new(Self {
            permits: Semaphore::new(access.config.in_flight_max.min(Semaphore::MAX_PERMITS)),
            link: Arc::new(Link::new(Arc::clone(&access.health), "calls")),
            current: RwLock::new(Some(Arc::clone(&first))),
            keeper: Mutex::default(),
            access,
        });
        let keeper = tokio::spawn(keep(Arc::downgrade(&calls), first));
        *calls.keeper.lock() = Some(keeper);
        Ok(calls)
    }

    /// How it connects, and with which settings.
    pub(super) fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// The connection, if there is one that works.
    pub(super) fn connection(&self) -> Result<Arc<Connection>, CallError> {
        let current = self.current.read().clone();
        current.filter(|connection| !connection.is_over()).ok_or_else(CallError::away)
    }

    /// Carries out a call: counted, bounded in number and in time. Not to be used inside another one.
    pub(super) async fn call<T, E: Into<BackplaneError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, BackplaneError> {
        self.timed(async {
            let _permit = self.permit().await;
            work.await
        })
        .await
    }

    /// The same without the bound on the number: for work that takes a [`permit`](Self::permit) when its turn has come.
    pub(super) async fn timed<T, E: Into<BackplaneError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, BackplaneError> {
        let under_way = self.access.health.begin();
        let timed = tokio::time::timeout(self.access.config.command_timeout, work).await;
        let answered = match timed {
            Ok(answered) => answered.map_err(Into::into),
            Err(_) => Err(BackplaneError::Unavailable("nats did not answer in time".to_owned())),
        };
        if answered.is_err() {
            under_way.failed(timed_out(&answered));
        }
        answered
    }

    /// Leave to have one more request under way.
    pub(super) async fn permit(&self) -> SemaphorePermit<'_> {
        self.permits.acquire().await.expect("nobody closes it")
    }

    /// Ends the connection for good.
    pub(super) fn close(&self) {
        if let Some(keeper) = self.keeper.lock().take() {
            keeper.abort();
        }
        if let Some(connection) = self.current.write().take() {
            connection.end();
        }
        self.link.down(&"closed");
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.lock().take() {
            keeper.abort();
        }
    }
}

fn timed_out<T>(answered: &Result<T, BackplaneError>) -> bool {
    matches!(answered, Err(BackplaneError::Unavailable(why)) if why == "nats did not answer in time")
}

/// Whether requests to JetStream are answered.
async fn has_jetstream(connection: &Connection) -> Result<(), CallError> {
    let _: Value = connection.api("INFO", &Value::Null).await?;
    Ok(())
}

/// Watches the connection, and makes the next one when it has ended.
async fn keep(calls: Weak<Calls>, mut connection: Arc<Connection>) {
    loop {
        let Some(config) = calls.upgrade().map(|calls| Arc::clone(&calls.access.config)) else { return };
        let why = live(&connection, config.liveness_interval, config.command_timeout).await;
        drop(connection);
        {
            let Some(calls) = calls.upgrade() else { return };
            *calls.current.write() = None;
            calls.link.down(&why);
        }
        let mut pauses = Pauses::new(config.reconnect_delay_max);
        connection = loop {
            let Some(access) = calls.upgrade().map(|calls| Arc::clone(&calls.access)) else { return };
            match again(&access).await {
                Ok(connection) => break connection,
                Err(error) => tracing::debug!(%error, "nats cannot be used for calls yet"),
            }
            drop(access);
            pauses.pause().await;
        };
        let Some(calls) = calls.upgrade() else { return };
        *calls.current.write() = Some(Arc::clone(&connection));
        calls.link.up();
    }
}

async fn again(access: &Access) -> Result<Arc<Connection>, BackplaneError> {
    let connection = access.connect(Purpose::Calls).await?;
    match tokio::time::timeout(access.config.command_timeout, has_jetstream(&connection)).await {
        Ok(Ok(())) => Ok(connection),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(BackplaneError::Unavailable("JetStream of nats does not answer".to_owned())),
    }
}

/// Returns when the connection has ended, or does not answer any more; says which.
pub(super) async fn live(connection: &Connection, interval: Duration, timeout: Duration) -> &'static str {
    loop {
        tokio::select! {
            biased;
            () = connection.ended() => return "the connection ended",
            () = tokio::time::sleep(interval) => {
                if !matches!(tokio::time::timeout(timeout, connection.confirm()).await, Ok(Ok(()))) {
                    connection.end();
                    return "the server does not answer";
                }
            }
        }
    }
}

/// Pauses between attempts: longer and longer, and not the same on all nodes of a fleet.
pub(super) struct Pauses {
    next: Duration,
    max: Duration,
}

impl Pauses {
    pub(super) fn new(max: Duration) -> Self {
        Self { next: PAUSE_MIN.min(max), max }
    }

    pub(super) async fn pause(&mut self) {
        let share = rand::rng().random_range(0.5..1.5);
        tokio::time::sleep(self.next.mul_f64(share)).await;
        self.next = (2 * self.next).min(self.max);
    }
}
