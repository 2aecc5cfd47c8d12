//! Carrying out a drain: what [`crate::drain`] and [`placement::drain`] decide, on the control thread.

use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use placement::drain::PaceSetter;
use placement::{DrainSettings, Heard};
use rand::Rng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;

use crate::drain::plan::LAST_CLOSE;
use crate::drain::{DrainPhase, DrainTimes};
use crate::metrics::{DRAIN_ABANDONED, DRAIN_DEADLINE_SECONDS, DRAIN_REMAINING, DRAINING};
use crate::node::Node;

/// How often progress is looked at, and how often it is logged. Small enough that closes are even, large enough that a
/// long drain costs nothing.
const POLL: Duration = Duration::from_millis(20);
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
    let mut closing = None;
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
                if closing.is_none() {
                    node.begin_drain();
                    closing = Some(Closing::begin(node, &times, began).await);
                }
                if let Some(closing) = &mut closing {
                    closing.step(node);
                }
            }
            DrainPhase::Drained => {
                node.begin_drain();
                // Whoever is between the handshake and his place on a shard is closed there.
                if node.stop_accepting().await.is_err() {
                    tracing::debug!("a shard was slow to hear that nobody is accepted any more");
                }
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

/// The part of a drain that closes connections.
struct Closing {
    pace: placement::Drain,
    /// Connections of each shard that were not told to go, or fewer: some leave by themselves.
    left: Vec<usize>,
    set_by: PaceSetter,
}

impl Closing {
    async fn begin(node: &Node, times: &DrainTimes, began: Instant) -> Self {
        let settings = DrainSettings { window: times.closes_over(), margin: LAST_CLOSE, ..DrainSettings::default() };
        let phase = rand::rng().random_range(0.0..1.0);
        let left = match node.stop_accepting().await {
            Ok(left) => left,
            Err(error) => {
                tracing::warn!(%error, "its connections are closed all the same");
                vec![node.connections(); node.shards()]
            }
        };
        let pace = placement::Drain::new(settings, Instant::now(), Some(began + times.deadline), phase);
        Self { pace, left, set_by: PaceSetter::Window }
    }

    /// Closes what is due now.
    fn step(&mut self, node: &Node) {
        let now = Instant::now();
        let remaining = node.staying_connections();
        if remaining == 0 {
            return;
        }
        let last = node.roster().and_then(|roster| roster.last());
        // Where nobody else is, nobody's capacity counts.
        let heard = last.as_ref().filter(|(digest, _)| digest.ready > 0).map(|(digest, at)| Heard { digest, at: *at });
        let pace = self.pace.tick(now, remaining, heard, rand::rng().random_range(0.0..1.0));
        if pace.set_by != self.set_by {
            self.set_by = pace.set_by;
            tracing::info!(remaining, rate = pace.rate, "drain: the pace is set by {}", name(pace.set_by));
        }
        if pace.close >= remaining {
            // Also those that are between their handshake and the count.
            node.close_some(&vec![usize::MAX; self.left.len()]);
            return;
        }
        let mut shares = vec![0; self.left.len()];
        for _ in 0..pace.close {
            let Ok(shards) = WeightedIndex::new(&self.left) else { break };
            let shard = shards.sample(&mut rand::rng());
            self.left[shard] -= 1;
            shares[shard] += 1;
        }
        node.close_some(&shares);
    }
}

fn name(set_by: PaceSetter) -> &'static str {
    match set_by {
        PaceSetter::Window => "drain.window",
        PaceSetter::SpareAccepts => "what the other nodes can accept",
        PaceSetter::Deadline => "drain.deadline",
    }
}
