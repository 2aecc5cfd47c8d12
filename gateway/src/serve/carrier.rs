//! The configured backplane: made, looked after, closed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use backplane::memory::{MemoryBackplane, MemoryLimits};
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
}

impl Carrier {
    /// Connects, and waits for a backplane that cannot be reached yet.
    pub(super) async fn connect(kind: &BackplaneKind, limits: MemoryLimits, node_name: &str) -> Result<Self> {
        match kind {
            BackplaneKind::Memory => Ok(Self::Memory(Arc::new(MemoryBackplane::new(limits)))),
            BackplaneKind::Redis(config) => {
                let config = RedisConfig { node_name: node_name.to_owned(), ..(**config).clone() };
                connect_redis(&config).await.map(|redis| Self::Redis(Arc::new(redis)))
            }
        }
    }

    pub(super) fn streams(&self) -> Arc<dyn Backplane> {
        match self {
            Self::Memory(memory) => memory.clone(),
            Self::Redis(redis) => redis.clone(),
        }
    }

    pub(super) fn members(&self) -> Arc<dyn Members> {
        match self {
            Self::Memory(memory) => memory.clone(),
            Self::Redis(redis) => redis.clone(),
        }
    }

    pub(super) fn sessions(&self) -> Arc<dyn SessionStore> {
        match self {
            Self::Memory(memory) => memory.clone(),
            Self::Redis(redis) => redis.clone(),
        }
    }

    /// Whether other nodes share it.
    pub(super) fn is_shared(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Redis(_) => true,
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
        if let Self::Redis(redis) = self
            && let Err(error) = redis.close().await
        {
            tracing::debug!(%error, "the presence lease could not be given up and ends by itself");
        }
    }
}

async fn connect_redis(config: &RedisConfig) -> Result<RedisBackplane> {
    let mut attempt = 0;
    loop {
        match RedisBackplane::connect(config).await {
            Ok(redis) => {
                if attempt > 0 {
                    tracing::info!("the backplane can be reached now");
                }
                return Ok(redis);
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
