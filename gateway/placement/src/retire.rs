//! Emptying a node that goes first when the fleet shrinks, while it still runs: when it is deleted at last, nobody is
//! disconnected by that.

use std::time::{Duration, Instant};

use crate::digest::{Heard, NodeKey};
use crate::rate::Paced;
use crate::shed::{Hold, Shed, ShedSettings, may_move, usable};

/// The time in which a node that retires closes what it has. An autoscaler waits longer than this before it deletes a
/// node, and there is no other hurry.
pub const RETIRE_WINDOW: Duration = Duration::from_secs(600);

/// A node that may be under the order to empty itself. It follows only a digest that is fresh, and stops as soon as the
/// order is gone.
#[derive(Clone, Debug)]
pub struct Retirement {
    key: NodeKey,
    paced: Paced,
    /// Connections per second, set when the order came.
    even: Option<f64>,
}

impl Retirement {
    /// Of the node with this name; `phase` in 0..1 differs for each node.
    pub fn new(key: NodeKey, phase: f64) -> Self {
        Self { key, paced: Paced::new(phase), even: None }
    }

    /// Whether the node is under the order, as far as it knows. It keeps reporting so while it hears nothing.
    pub fn is_ordered(&self, heard: Option<Heard<'_>>) -> bool {
        heard.is_some_and(|heard| heard.digest.retire.contains(&self.key))
    }

    /// What to close now out of `movable` connections: evenly over [`RETIRE_WINDOW`] from the order on, within the
    /// budget of the cluster, and only while connections may be moved at all.
    pub fn tick(&mut self, now: Instant, movable: u64, heard: Option<Heard<'_>>, settings: &ShedSettings) -> Shed {
        match self.rate(now, movable, heard, settings) {
            Ok(rate) => Shed::Moving { close: self.paced.due(now, rate, movable), rate },
            Err(hold) => {
                self.paced.idle(now);
                Shed::Held(hold)
            }
        }
    }

    fn rate(
        &mut self,
        now: Instant,
        movable: u64,
        heard: Option<Heard<'_>>,
        settings: &ShedSettings,
    ) -> Result<f64, Hold> {
        let digest = usable(settings, now, heard)?;
        if !self.is_ordered(heard) {
            self.even = None;
            return Err(Hold::NoOrder);
        }
        may_move(settings, now, heard)?;
        if movable == 0 {
            return Err(Hold::TooYoung);
        }
        // The pace does not slow down as connections go; it rises when more have come than went.
        let now_even = movable as f64 / RETIRE_WINDOW.as_secs_f64();
        let even = self.even.map_or(now_even, |even| even.max(now_even));
        self.even = Some(even);
        // The other half is for those that level.
        Ok(even.min(0.5 * digest.budget / digest.retire.len().max(1) as f64))
    }
}

#[cfg(test)]
mod tests {
    use backplane::NodeId;
    use uuid::Uuid;

    use super::*;
    use crate::digest::{Digest, Pause};

    #[test]
    fn it_follows_the_order_and_stops_with_it() {
        let key = NodeKey::of(NodeId(Uuid::from_u128(7 << 80)));
        let other = NodeKey::of(NodeId(Uuid::from_u128(8 << 80)));
        let start = Instant::now();
        let settings = ShedSettings::default();
        let mut retirement = Retirement::new(key, 0.0);
        let mut tick = |digest: &Digest, age: u64| {
            let now = start + Duration::from_secs(100);
            retirement.tick(now, 1200, Some(Heard { digest, at: now - Duration::from_secs(age) }), &settings)
        };
        let ordered = Digest { retire: vec![other, key], budget: 100.0, ..Digest::empty(1, 1) };
        let idle = Digest { retire: vec![other], ..ordered.clone() };
        assert_eq!(tick(&idle, 0), Shed::Held(Hold::NoOrder));
        assert!(matches!(tick(&ordered, 0), Shed::Moving { rate: 2.0, .. }));
        assert!(matches!(tick(&Digest { budget: 1.0, ..ordered.clone() }, 0), Shed::Moving { rate: 0.25, .. }));
        assert!(matches!(tick(&ordered, 6), Shed::Held(Hold::DigestStale { .. })));
        let paused = Digest { pauses: vec![Pause::Busy], ..ordered.clone() };
        assert_eq!(tick(&paused, 0), Shed::Held(Hold::Paused(Pause::Busy)));
        assert_eq!(tick(&idle, 0), Shed::Held(Hold::NoOrder));
    }
}
