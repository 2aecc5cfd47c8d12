//! Carrying out a drain: what [`crate::drain`] decides, on the control thread.

use std::time::{Duration, Instant};

use metrics::{counter, gauge};

use crate::drain::DrainPhase;
use crate::metrics::{DRAIN_ABANDONED, DRAIN_DEADLINE_SECONDS, DRAIN_REMAINING, DRAINING};
use crate::node::Node;

/// How often progress is looked at, and how often it is logged.
const POLL: Duration = Duration::from_millis(10);
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Waits until a drain is requested, carries it out, and says when it is over.
pub(super) async fn drive(node: &Node) {
    let began = node.drain.requested().await;
    let times = *node.drain.times();
    node.set_unready();
    gauge!(DRAINING).set(1.0);
    let window = times.closes_over();
    tracing::info!(connections = node.connections(), grace = ?times.accepts_for(), ?window, "draining");
    if window < times.window {
        tracing::warn!(?window, configured = ?times.window, "drain.deadline leaves less than drain.window");
    }
    let mut is_closing = false;
    let mut logged = Instant::now();
    let mut poll = tokio::time::interval(POLL);
    loop {
        poll.tick().await;
        let (elapsed, remaining) = (began.elapsed(), node.connections());
        gauge!(DRAIN_REMAINING).set(remaining as f64);
        gauge!(DRAIN_DEADLINE_SECONDS).set(times.deadline.saturating_sub(elapsed).as_secs_f64());
        match times.phase(elapsed, remaining) {
            DrainPhase::Accepting => {}
            DrainPhase::Closing => {
                if !is_closing {
                    is_closing = true;
                    node.begin_drain();
                    node.close_connections(window);
                }
            }
            DrainPhase::Drained => {
                node.begin_drain();
                // Whoever is between the handshake and his place on a shard is closed there.
                node.close_connections(Duration::ZERO);
                tracing::info!(took = ?elapsed, "drained: no connection is left");
                break;
            }
            DrainPhase::Overdue => {
                counter!(DRAIN_ABANDONED).increment(remaining as u64);
                tracing::warn!(remaining, "drain deadline: these connections have not ended");
                break;
            }
        }
        if logged.elapsed() >= LOG_EVERY {
            logged = Instant::now();
            tracing::info!(remaining, "draining");
        }
    }
    gauge!(DRAIN_DEADLINE_SECONDS).set(0.0);
    node.drain.set_over();
}
