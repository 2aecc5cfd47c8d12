//! The harness of the black-box tests: real gateway processes, spoken to over their sockets only.
//!
//! Reading order: [`gateway`] starts and stops a process (`process` has the signals, [`ports`] the ports), [`client`] is a WebSocket client that shows every message,
//! [`frames`] and [`wire`] build what a well-behaved client never sends, [`http`] and [`api`] are the HTTP side,
//! [`tokens`] signs JWTs, [`backend`] is the application that event proxies ask, [`bystander`] is the connection that must notice nothing, [`script`] runs the SDK scenarios.
//!
//! For several nodes: [`redis`] and [`nats`] start and trouble real servers, [`store`] is one of either, [`fleet`] is a few gateways on it,
//! [`front`] a load balancer whose clients can be moved, [`balancer`] real ones with the configurations of `deploy/`, [`haproxy`] a real one that asks the agents of nodes, [`agent`] a process with real SDK clients, [`load`] publishes
//! numbered messages, [`audit`] judges what clients were given, [`trial`] puts the last three together.
//!
//! For Kubernetes: [`pods`] is a small API server with gateways as pods, [`network`] gives them machines with addresses.
//!
//! No wait is a guess: every one ends with an event or fails at [`DEADLINE`].

#![forbid(unsafe_code)]

pub mod agent;
pub mod api;
pub mod audit;
pub mod backend;
pub mod balancer;
pub mod bystander;
pub mod client;
pub mod fleet;
pub mod frames;
pub mod front;
pub mod gateway;
pub mod haproxy;
pub mod http;
pub mod load;
pub mod nats;
pub mod network;
pub mod pods;
pub mod ports;
mod process;
pub mod redis;
pub mod script;
pub mod store;
pub mod tokens;
pub mod trial;
mod turn;
pub mod wire;

use std::future::Future;
use std::time::Duration;

/// The longest that any single expected event may take: far more than a busy two-core machine needs.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// The result of `future`.
///
/// # Panics
///
/// With `what` when nothing has come by [`DEADLINE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("nothing within {DEADLINE:?}: {what}"),
    }
}

/// The longest that something may take that waits by rules of its own, such as for a lease to run out.
pub const PATIENCE: Duration = Duration::from_secs(80);

/// How often [`until`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until `holds` says yes, where nothing tells when it does.
///
/// # Panics
///
/// With `what` when it has not by [`DEADLINE`].
pub async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    within(what, look_until(holds)).await;
}

/// The same for what may take until [`PATIENCE`] ends.
///
/// # Panics
///
/// With `what` when it has not by then.
pub async fn until_some_time(what: &str, holds: impl AsyncFnMut() -> bool) {
    let is_late = tokio::time::timeout(PATIENCE, look_until(holds)).await.is_err();
    assert!(!is_late, "nothing within {PATIENCE:?}: {what}");
}

async fn look_until(mut holds: impl AsyncFnMut() -> bool) {
    while !holds().await {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
