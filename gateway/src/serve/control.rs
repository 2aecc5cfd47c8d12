//! The control thread: internal listener, signals, sweeps, and the end.

use std::net::TcpListener as StdListener;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use backplane::memory::MemoryBackplane;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::drain::{self, DrainTimes};
use super::startup::{Places, Reload};
use crate::node::Node;

/// How often expired channels are freed. See [`MemoryBackplane::sweep`] for the budget.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
const SWEEP_BUDGET: usize = 10_000;

/// How often the histogram samples are folded; without it they pile up.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Control {
    pub node: Arc<Node>,
    pub memory: Arc<MemoryBackplane>,
    pub prometheus: PrometheusHandle,
    pub internal: StdListener,
    pub internal_routes: Router,
    pub drain: DrainTimes,
    pub places: Places,
    pub announce: Box<dyn Fn(&Places) -> String + Send>,
    pub reload: Reload,
    pub failures: mpsc::Receiver<String>,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// SIGTERM or SIGINT.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

pub(super) fn run(control: Control) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(control))
}

async fn serve(control: Control) -> Result<ExitCode> {
    let Control { node, memory, prometheus, internal, internal_routes, drain, places, announce, reload, failures } =
        control;
    let mut signals = Signals::new().context("cannot handle signals")?;
    let internal = TcpListener::from_std(internal)?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(internal, internal_routes).await {
            tracing::error!(%error, "the internal listener stopped");
        }
    });
    let watched = node.clone();
    tokio::spawn(async move {
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
            crate::metrics::jwks(&watched.runtime().verifier.jwks_stats());
        }
    });
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            interval.tick().await;
            prometheus.run_upkeep();
        }
    });
    // The memory backplane is there from the start.
    gauge!(crate::metrics::BACKPLANE_UP).set(1.0);
    node.set_ready();
    print!("{}", announce(&places));
    tracing::info!(public = %places.public, internal = %places.internal, "ready");

    let mut watch = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = signals.hangup.recv() => reload_now(&node, &reload),
            _ = watch.tick() => {
                if let Ok(failure) = failures.try_recv() {
                    anyhow::bail!("{failure}");
                }
            }
        }
    }
    tokio::select! {
        drained = drain::drain(&node, drain) => Ok(drained),
        () = signals.stop() => {
            tracing::warn!(connections = node.connections(), "second signal: exiting at once");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// SIGHUP: keys, origins and namespaces. A configuration with mistakes changes nothing.
fn reload_now(node: &Node, reload: &Reload) {
    match reload(&node.runtime()) {
        Ok((runtime, needs_restart)) => {
            node.reload(runtime);
            tracing::info!("configuration reloaded: keys, origins and namespaces");
            if !needs_restart.is_empty() {
                tracing::warn!(keys = %needs_restart.join(", "), "changed as well, but only a restart applies these");
            }
        }
        Err(problems) => tracing::error!("configuration not reloaded, the old one stays:\n{problems}"),
    }
}
