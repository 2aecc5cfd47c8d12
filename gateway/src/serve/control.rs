//! The control thread: internal listener, signals, sweeps, and the end.

use std::net::TcpListener as StdListener;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::Request;
use backplane::NodeId;
use http::StatusCode;
use http::header::{CONNECTION, RETRY_AFTER};
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};
use tower::ServiceExt;

use super::carrier::Carrier;
use super::drain::drive;
use super::startup::{Options, Places, Reload};
use super::{Bound, Started};
use crate::cluster::commands::Commands;
use crate::cluster::follow::Follower;
use crate::cluster::roster::Roster;
use crate::drain::Afterwards;
use crate::kubernetes::OpenSetWriter;
use crate::node::Node;
use crate::process::Usage;

/// How often the histogram samples are folded; without it they pile up.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How often the state of the backplane is looked at: it shows in metrics and readiness this late.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long clients wait for the backplane of a node that starts, before they are told that it is not there.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the end of the process waits for the backplane to take note of it.
const GOODBYE: Duration = Duration::from_secs(2);

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

    async fn stop(&mut self) {
        stop(&mut self.terminate, &mut self.interrupt).await;
    }
}

/// SIGTERM or SIGINT.
async fn stop(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

pub(super) async fn run(options: Options, bound: Bound, prometheus: PrometheusHandle) -> Result<ExitCode> {
    let Bound { places, internal, agent, listeners } = bound;
    let mut signals = Signals::new().context("cannot handle signals")?;
    let routes: Routes = Arc::new(ArcSwap::from_pointee(crate::ops::starting(prometheus.clone())));
    serve_internal(TcpListener::from_std(internal)?, routes.clone());
    gauge!(crate::metrics::BACKPLANE_UP).set(0.0);
    let carrier = tokio::select! {
        carrier = connect(&options, &listeners, places) => carrier?,
        () = signals.stop() => return Ok(ExitCode::SUCCESS),
    };
    let kubernetes = options.kubernetes.clone();
    let Started { node, internal_routes, failures, reload } = super::start(options, &carrier, listeners, &prometheus)?;
    routes.store(Arc::new(internal_routes));
    tokio::spawn(carrier.clone().look_after());
    tokio::spawn(watch(node.clone(), prometheus));
    let roster = tokio::select! {
        roster = join_fleet(&node, &carrier) => roster,
        () = signals.stop() => return Ok(ExitCode::SUCCESS),
    };
    node.set_ready();
    tracing::info!(public = %places.public, internal = %places.internal, "ready");
    roster.report(&node).await;
    let reporting = tokio::spawn(roster.clone().run(node.clone()));
    tokio::spawn(crate::placing::mover::run(node.clone(), roster.clone()));
    let open_set = OpenSetWriter::start(kubernetes, node.clone(), roster.clone()).map(Arc::new);
    let choosing = open_set.clone().map(|open_set| tokio::spawn(open_set.run()));
    if let Some(agent) = agent {
        tokio::spawn(crate::placing::agent::serve(TcpListener::from_std(agent)?, node.clone()));
    }

    let draining = node.clone();
    tokio::spawn(async move { drive(&draining).await });
    let mut look = tokio::time::interval(Duration::from_secs(1));
    let mut signalled = false;
    loop {
        tokio::select! {
            () = stop(&mut signals.terminate, &mut signals.interrupt) => {
                if signalled {
                    return Ok(at_once(&node));
                }
                signalled = true;
                node.drain.request(Afterwards::Exit, node.connections());
            }
            _ = signals.hangup.recv() => reload_now(&node, &reload),
            _ = look.tick() => {
                if let Ok(failure) = failures.try_recv() {
                    anyhow::bail!("{failure}");
                }
            }
            () = node.drain.to_exit() => break,
        }
    }
    let goodbye = async {
        reporting.abort();
        // Before the lease is released: until then entries that linger are not this node's any more.
        node.tidied().await;
        roster.leave().await;
        carrier.close().await;
    };
    // Two servers, and neither waits for the other.
    let goodbyes = async { tokio::join!(goodbye, hand_over(open_set, choosing)) };
    tokio::select! {
        // Others notice by themselves when it does not work out.
        _ = tokio::time::timeout(GOODBYE, goodbyes) => Ok(ExitCode::SUCCESS),
        () = signals.stop() => Ok(if signalled { at_once(&node) } else { ExitCode::SUCCESS }),
    }
}

/// Lets another node write the open set, if it was this one. As a rule that was done when the drain began.
async fn hand_over(open_set: Option<Arc<OpenSetWriter>>, choosing: Option<JoinHandle<()>>) {
    if let Some(task) = choosing {
        task.abort();
        // With the task goes what it holds of the writer.
        let _ = task.await;
    }
    if let Some(writer) = open_set.and_then(Arc::into_inner) {
        writer.shutdown().await;
    }
}

fn at_once(node: &Node) -> ExitCode {
    tracing::warn!(connections = node.connections(), "second signal: exiting at once");
    ExitCode::FAILURE
}

/// Connects to the backplane and says where the gateway listens. Clients wait for a backplane that is there, and are
/// turned away while one is not.
async fn connect(options: &Options, listeners: &[StdListener], places: Places) -> Result<Carrier> {
    let mut connecting = pin!(Carrier::connect(&options.backplane, options.memory, &options.name));
    let at_once = tokio::time::timeout(PATIENCE, &mut connecting).await;
    print!("{}", (options.announce)(&places));
    if let Ok(carrier) = at_once {
        return carrier;
    }
    let mut turned_away = turn_away(listeners, places.tls)?;
    let carrier = connecting.await;
    turned_away.shutdown().await;
    carrier
}

/// Answers everybody on the public listeners with 503 until the returned tasks are dropped: nothing can be done for a
/// client before the backplane is there, and one that is not answered at all does not try elsewhere.
fn turn_away(listeners: &[StdListener], tls: bool) -> Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let listener = TcpListener::from_std(listener.try_clone()?)?;
        if tls {
            // A certificate is not worth its cost here: the connection is closed.
            tasks.spawn(async move {
                loop {
                    if listener.accept().await.is_err() {
                        tokio::time::sleep(LOOK_INTERVAL).await;
                    }
                }
            });
            continue;
        }
        let answer = || async { (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1"), (CONNECTION, "close")]) };
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, Router::new().fallback(answer)).await {
                tracing::debug!(%error, "clients wait unanswered for the backplane");
            }
        });
    }
    Ok(tasks)
}

/// The routes of the internal listener, replaced when the backplane is there.
type Routes = Arc<ArcSwap<Router>>;

fn serve_internal(listener: TcpListener, routes: Routes) {
    let current = Router::new().fallback(move |request: Request| {
        let routes = routes.load().as_ref().clone();
        async move {
            let Ok(response) = routes.oneshot(request).await;
            response
        }
    });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, current).await {
            tracing::error!(%error, "the internal listener stopped");
        }
    });
}

/// Reads what others keep count of, for the metrics and for readiness.
async fn watch(node: Arc<Node>, prometheus: PrometheusHandle) {
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    let mut upkeep = Instant::now();
    loop {
        looks.tick().await;
        let status = node.backplane.status();
        node.set_backplane_up(status.is_up);
        crate::metrics::backplane(&status);
        crate::metrics::jwks(&node.runtime().verifier.jwks_stats());
        if upkeep.elapsed() >= UPKEEP_INTERVAL {
            upkeep = Instant::now();
            prometheus.run_upkeep();
            crate::metrics::process(&Usage::now());
        }
    }
}

/// Makes this node one of the fleet: from here on it carries out what others ask of all.
async fn join_fleet(node: &Arc<Node>, carrier: &Carrier) -> Arc<Roster> {
    let id = NodeId(node.uid);
    let commands = Arc::new(Commands::new(id, carrier.streams(), carrier.members()));
    let roster = Arc::new(Roster::new(id, carrier.streams(), carrier.members(), node.placement().coordinator.clone()));
    if carrier.is_shared() {
        // From here on: a command that only this node carried out must not succeed.
        node.join_fleet(commands.clone());
    }
    let follower = Follower::start(node.clone(), commands, roster.clone()).await;
    tokio::spawn(follower.run());
    node.set_roster(roster.clone());
    roster
}

/// SIGHUP: keys, origins, namespaces, proxies and rebalancing. A configuration with mistakes changes nothing.
fn reload_now(node: &Node, reload: &Reload) {
    match reload(&node.runtime()) {
        Ok((runtime, needs_restart)) => {
            node.reload(runtime);
            tracing::info!("configuration reloaded: keys, origins, namespaces, proxies and rebalancing");
            if !needs_restart.is_empty() {
                tracing::warn!(keys = %needs_restart.join(", "), "changed as well, but only a restart applies these");
            }
        }
        Err(problems) => tracing::error!("configuration not reloaded, the old one stays:\n{problems}"),
    }
}
