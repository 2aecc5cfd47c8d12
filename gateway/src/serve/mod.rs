//! Putting the gateway together: bind, start the shards, serve, drain.
//!
//! ```text
//!   main thread: control runtime (backplane, fleet, signals, internal listener, sweeps, drain)
//!   shard 0..n : own thread, own current-thread runtime, own listener
//! ```

mod carrier;
mod control;
mod drain;
mod startup;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result};
use axum::Router;
use backplane::NodeId;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::LocalSet;
use tower_http::catch_panic::CatchPanicLayer;

use crate::hub::HubSettings;
use crate::node::Node;
use crate::sessions::store::Sessions;
use crate::shard::Shard;
use crate::shard::inbox::Inbox;
use crate::transport::accept::{self, Acceptor, AcceptorOptions};

use carrier::Carrier;
use startup::Reload;
pub use startup::{Options, Places};

/// The binary: arguments and environment in, exit code out.
pub fn run(arguments: impl IntoIterator<Item = OsString>, environment: BTreeMap<String, String>) -> ExitCode {
    startup::run(arguments, environment)
}

/// Serves until a signal ends it, then drains.
///
/// # Errors
/// When an address cannot be bound, a thread cannot be started, or the backplane refuses this node. Nothing has been
/// accepted then.
pub fn serve(options: Options) -> Result<ExitCode> {
    let prometheus = crate::metrics::install()?;
    let (public, listeners) = accept::bind(options.listen, options.shards)
        .with_context(|| format!("cannot listen on {} (listen)", options.listen))?;
    let internal = StdListener::bind(options.internal_listen)
        .with_context(|| format!("cannot listen on {} (internal.listen)", options.internal_listen))?;
    internal.set_nonblocking(true)?;
    let agent = match options.node.placement.agent_listen {
        Some(address) => Some(
            crate::placing::agent::bind(address)
                .with_context(|| format!("cannot listen on {address} (placement.agent_listen)"))?,
        ),
        None => None,
    };
    let places = Places { public, internal: internal.local_addr()?, tls: options.tls.is_some() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(control::run(options, Bound { places, internal, agent, listeners }, prometheus))
}

/// What was bound before anything else was done.
struct Bound {
    places: Places,
    internal: StdListener,
    /// For HAProxy's agent check.
    agent: Option<StdListener>,
    /// One for each shard.
    listeners: Vec<StdListener>,
}

/// What runs once the backplane is there.
struct Started {
    node: Arc<Node>,
    internal_routes: Router,
    failures: mpsc::Receiver<String>,
    reload: Reload,
}

/// Starts the shards, which accept clients from here on.
fn start(
    options: Options,
    carrier: &Carrier,
    listeners: Vec<StdListener>,
    prometheus: &PrometheusHandle,
) -> Result<Started> {
    let inboxes: Vec<_> = (0..options.shards).map(|_| Arc::new(Inbox::new(options.inbox))).collect();
    let node = Node::new(options.name, carrier.streams(), inboxes.clone(), options.runtime, options.node);
    node.set_sessions(Sessions::new(carrier.sessions(), NodeId(node.uid)));

    // A bug in one request costs that request, not the connection it shares with others.
    let api = crate::api::router(node.clone(), options.api).layer(CatchPanicLayer::new());
    let mut public_routes = Router::new()
        .route("/connection/websocket", axum::routing::any(crate::transport::upgrade::websocket))
        .with_state(node.clone());
    let mut internal_routes = crate::ops::router(node.clone(), prometheus.clone())
        .merge(crate::admin::router(node.clone(), options.admin_token.as_ref()));
    if options.api_is_internal {
        internal_routes = internal_routes.merge(api);
    } else {
        public_routes = public_routes.merge(api);
    }
    if options.demo {
        public_routes = public_routes.merge(crate::demo::router());
    }

    let acceptor = AcceptorOptions {
        node: node.clone(),
        router: public_routes,
        tls: options.tls,
        handshake: options.handshake,
        shards: options.shards,
        addresses: Arc::new(options.addresses),
    };
    let (failed, failures) = mpsc::channel();
    for (index, (listener, inbox)) in listeners.into_iter().zip(inboxes).enumerate() {
        start_shard(index, &node, inbox, options.hub, listener, acceptor.clone(), failed.clone())?;
    }
    Ok(Started { node, internal_routes, failures, reload: options.reload })
}

/// Starts the thread of a shard.
fn start_shard(
    index: usize,
    node: &Arc<Node>,
    inbox: Arc<Inbox>,
    hub: HubSettings,
    listener: StdListener,
    acceptor: AcceptorOptions,
    failed: mpsc::Sender<String>,
) -> Result<()> {
    let node = node.clone();
    thread::Builder::new()
        .name(format!("shard-{index}"))
        .spawn(move || {
            if let Err(error) = run_shard(index, node, inbox, hub, listener, acceptor) {
                // The receiver lives as long as the process.
                let _ = failed.send(format!("shard {index}: {error}"));
            }
        })
        .with_context(|| format!("cannot start the thread of shard {index}"))?;
    Ok(())
}

fn run_shard(
    index: usize,
    node: Arc<Node>,
    inbox: Arc<Inbox>,
    hub: HubSettings,
    listener: StdListener,
    acceptor: AcceptorOptions,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let shard = Shard::new(index, node, inbox, hub);
        shard.enter();
        tokio::task::spawn_local(shard.clone().fan_out());
        tokio::task::spawn_local(shard.keep_time());
        Acceptor::new(acceptor).run(listener).await
    })?;
    Ok(())
}

/// Where a client and an operator find this gateway.
pub(crate) fn websocket_url(public: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "wss" } else { "ws" };
    format!("{scheme}://{public}/connection/websocket")
}
