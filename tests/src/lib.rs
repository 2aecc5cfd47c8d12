//! The harness of the black-box tests: real gateway processes, spoken to over their sockets only.
//!
//! Reading order: [`gateway`] starts and stops a process, [`client`] is a WebSocket client that shows every message,
//! [`frames`] and [`wire`] build what a well-behaved client never sends, [`http`] and [`api`] are the HTTP side,
//! [`tokens`] signs JWTs, [`bystander`] is the connection that must notice nothing, [`script`] runs the SDK scenarios.
//!
//! Nothing here sleeps: every wait ends with an event or fails at [`DEADLINE`].

#![forbid(unsafe_code)]

pub mod api;
pub mod bystander;
pub mod client;
pub mod frames;
pub mod gateway;
pub mod http;
pub mod script;
pub mod tokens;
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
