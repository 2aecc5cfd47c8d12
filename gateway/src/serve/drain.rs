//! The end of a node: not ready, an accept grace, then closes with 1001 spread over a window.

use std::process::ExitCode;
use std::time::Duration;

use metrics::gauge;
use tokio::time::Instant;

use crate::metrics::DRAIN_REMAINING;
use crate::node::Node;

/// Times of a drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DrainTimes {
    /// How long new connections are still accepted: load balancers need this time to see that the node is not ready.
    pub grace_accept: Duration,
    /// Over how long the closes are spread, so that clients do not come back all at once.
    pub window: Duration,
}

/// After the window a closing connection has this long to answer the close frame. The shards drop it after 5 s.
const LAST_CLOSES: Duration = Duration::from_secs(7);

/// How often progress is looked at, and how often it is logged.
const POLL: Duration = Duration::from_millis(10);
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Drains; exit code 0 as soon as no connection is left.
pub(super) async fn drain(node: &Node, times: DrainTimes) -> ExitCode {
    node.set_unready();
    tracing::info!(connections = node.connections(), grace = ?times.grace_accept, window = ?times.window, "draining");
    tokio::time::sleep(times.grace_accept).await;
    node.begin_drain();
    node.close_connections(times.window);
    let deadline = Instant::now() + times.window + LAST_CLOSES;
    let mut logged = Instant::now();
    let mut poll = tokio::time::interval(POLL);
    loop {
        poll.tick().await;
        let remaining = node.connections();
        gauge!(DRAIN_REMAINING).set(remaining as f64);
        if remaining == 0 {
            tracing::info!("drained: no connection is left");
            return ExitCode::SUCCESS;
        }
        if Instant::now() >= deadline {
            tracing::warn!(remaining, "drain deadline: these connections did not answer their close frame");
            return ExitCode::SUCCESS;
        }
        if logged.elapsed() >= LOG_EVERY {
            logged = Instant::now();
            tracing::info!(remaining, "draining");
        }
    }
}
