//! The configured backplane: made, looked after, closed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use backplane::memory::{MemoryBackplane, MemoryLimits};
use backplane::nats::{NatsBackplane, NatsConfig};
use backplane::redis::{RedisBackplane, RedisConfig};
use backplane::{Backplane, BackplaneError, Members, SessionStore};

use crate::config::BackplaneKind;

/// Pause between attempts to reach a backplane that was never there, and how often the log says so.
const RETRY_AFTER: Duration = Duration::from_millis(500);
const SAY_EVERY: u32 = 20;

/// How often expired channels are freed. See [`MemoryBackplane::sweep`] for the budget.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
const SWEEP_BUDGET: usize = 10_000;

/// What carries publications.
#[derive(Clone)]
pub(super) enum Carrier {
    Memory(Arc<MemoryBackplane>),
    Redis(Arc<RedisBackplane>),
    Nats(Arc<NatsBackplane>),
}

impl Carrier {
    /// Connects, and waits for a backplane that cannot be reached yet.
    pub(super) async fn connect(kind: &BackplaneKind, limits: MemoryLimits, node_name: &str) -> Result<Self> {
        match kind {
            BackplaneKind::Memory => Ok(Self::Memory(Arc::new(MemoryBackplane::new(limits)))),
            BackplaneKind::Redis(config) => {
                let config = RedisConfig { node_name: node_name.to_owned(), ..(**config).clone() };
                let redis = persistently(async || RedisBackplane::connect(&config).await).await?;
                Ok(Self::Redis(Arc::new(redis)))
            }
            BackplaneKind::Nats(config) => {
                let config = NatsConfig { node_name: node_name.to_owned(), ..(**config).clone() };
                let nats = persistently(async || NatsBackplane::connect(&config).await).await?;
                Ok(Self::Nats(Arc::new(nats)))
            }
        }
    }

    pub(super) fn streams(&self) -> Arc<dyn Backplane> {
        match self {
            Self::Memory(memory) => memory.clone(),
            Self::Redis(redis) => redis.clone(),
            Self::Nats(nats) => nats.clone(),
        }
    }

    pub(super) fn members(&self) -> Arc<dyn Members> {
        match self {
            Self::Memory(memory) => memory.clone(),
            Self::Redis(redis) => redis.clone(),
            Self::Nats(nats) => nats.clone(),
        }
    }

    pub(super) fn sessions(&self) -> Arc<dyn SessionStore> {
        match self {
            Self::Memory(memory) => memory.clone(),
            Self::Redis(redis) => redis.clone(),
            Self::Nats(nats) => nats.clone(),
        }
    }

    /// Whether other nodes share it.
    pub(super) fn is_shared(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Redis(_) | Self::Nats(_) => true,
        }
    }

    /// What has to be done now and then, for ever.
    pub(super) async fn look_after(self) {
        let Self::Memory(memory) = self else { return };
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        let mut refusals = 0;
        loop {
            interval.tick().await;
            while memory.sweep(SWEEP_BUDGET) {
                tokio::task::yield_now().await;
            }
            let stats = memory.stats();
            if stats.refusals > refusals {
                let new = stats.refusals - refusals;
                refusals = stats.refusals;
                tracing::warn!(refused = new, ?stats, "a limit under backplane.memory is reached: calls are refused");
            }
            crate::metrics::memory(&stats);
        }
    }

    /// Says goodbye, so that nobody waits for this node's lease to end.
    pub(super) async fn close(&self) {
        let closed = match self {
            Self::Memory(_) => Ok(()),
            Self::Redis(redis) => redis.close().await,
            Self::Nats(nats) => nats.close().await,
        };
        if let Err(error) = closed {
            tracing::debug!(%error, "the presence lease could not be given up and ends by itself");
        }
    }
}

/// Connects, again and again while the server cannot be reached.
async fn persistently<T>(connect: impl AsyncFn() -> Result<T, BackplaneError>) -> Result<T> {
    let mut attempt = 0;
    loop {
        match connect().await {
            Ok(connected) => {
                if attempt > 0 {
                    tracing::info!("the backplane can be reached now");
                }
                return Ok(connected);
            }
            Err(BackplaneError::Unavailable(why)) => {
                if attempt % SAY_EVERY == 0 {
                    tracing::warn!("not ready: the backplane cannot be reached yet: {why}");
                }
                attempt += 1;
                tokio::time::sleep(RETRY_AFTER).await;
            }
            Err(BackplaneError::Protocol(why)) => bail!("the backplane cannot be used: {why}"),
        }
    }
}
