//! What happens to deliveries: they are lost, repeated, or held back until others have overtaken them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::policy::{Dice, FaultPolicy};
use super::{FaultCounts, Release};
use crate::{ChannelName, Delivery, Disturbance, Sink};

/// What to do with one delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    Drop,
    Duplicate,
    Hold,
}

/// The sink of the wrapped backplane, in front of the node's own.
#[derive(Default)]
pub(super) struct Outlet {
    sink: OnceLock<Arc<dyn Sink>>,
    /// Held while the node's sink is called, so that deliveries of a channel stay one at a time although a release
    /// comes from elsewhere. The sink only queues (its contract), so nothing can wait for this lock in turn.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    cut: bool,
    /// Faults ordered for the next deliveries of a channel.
    ordered: HashMap<ChannelName, VecDeque<Fault>>,
    held: HashMap<ChannelName, Vec<Held>>,
    chance: Option<(FaultPolicy, Dice)>,
    counts: FaultCounts,
}

struct Held {
    delivery: Delivery,
    /// Deliveries of its channel that still overtake it; `None` waits for a release.
    overtakers: Option<u16>,
}

impl Outlet {
    pub(super) fn attach(&self, sink: Arc<dyn Sink>) {
        assert!(self.sink.set(sink).is_ok(), "a backplane is attached to one sink only");
    }

    pub(super) fn order(&self, channel: &ChannelName, fault: Fault, deliveries: usize) {
        let mut state = self.state.lock();
        let ordered = state.ordered.entry(channel.clone()).or_default();
        ordered.extend(std::iter::repeat_n(fault, deliveries));
    }

    pub(super) fn set_cut(&self, cut: bool) {
        self.state.lock().cut = cut;
    }

    pub(super) fn set_policy(&self, policy: Option<FaultPolicy>) {
        // Another constant than the calls': the two sequences must not be the same.
        self.state.lock().chance = policy.map(|policy| (policy, Dice::new(!policy.seed)));
    }

    pub(super) fn counts(&self) -> FaultCounts {
        self.state.lock().counts
    }

    /// Hands over what is held of one channel, or of all in the order of their names.
    pub(super) fn release(&self, channel: Option<&ChannelName>, release: Release) -> usize {
        let mut state = self.state.lock();
        let mut names: Vec<_> = match channel {
            Some(channel) => vec![channel.clone()],
            None => state.held.keys().cloned().collect(),
        };
        names.sort();
        let mut released = 0;
        for name in names {
            let mut held = state.held.remove(&name).unwrap_or_default();
            if release == Release::Reversed {
                held.reverse();
            }
            released += held.len();
            held.into_iter().for_each(|held| self.hand_over(&name, held.delivery));
        }
        state.counts.released += released as u64;
        released
    }

    fn hand_over(&self, channel: &ChannelName, delivery: Delivery) {
        if let Some(sink) = self.sink.get() {
            sink.deliver(channel, delivery);
        }
    }
}

impl State {
    /// The fault of the next delivery of a channel, with the number of overtakers of a held one.
    fn fault(&mut self, channel: &ChannelName) -> Option<(Fault, Option<u16>)> {
        if self.cut {
            return Some((Fault::Drop, None));
        }
        if let Some(ordered) = self.ordered.get_mut(channel) {
            let fault = ordered.pop_front();
            if ordered.is_empty() {
                self.ordered.remove(channel);
            }
            return fault.map(|fault| (fault, None));
        }
        let (policy, dice) = self.chance.as_mut()?;
        let fault = dice.pick(&[
            (policy.drop_per_mille, Fault::Drop),
            (policy.duplicate_per_mille, Fault::Duplicate),
            (policy.hold_per_mille, Fault::Hold),
        ])?;
        Some((fault, Some(dice.up_to(policy.hold_deliveries_max))))
    }

    /// Takes out what the delivery just made was the last to overtake.
    fn overtaken(&mut self, channel: &ChannelName) -> Vec<Delivery> {
        let Some(held) = self.held.get_mut(channel) else { return Vec::new() };
        held.iter_mut().for_each(|held| held.overtakers = held.overtakers.map(|left| left.saturating_sub(1)));
        let due: Vec<_> = held.extract_if(.., |held| held.overtakers == Some(0)).map(|held| held.delivery).collect();
        if held.is_empty() {
            self.held.remove(channel);
        }
        self.counts.released += due.len() as u64;
        due
    }
}

impl Sink for Outlet {
    fn deliver(&self, channel: &ChannelName, delivery: Delivery) {
        let mut state = self.state.lock();
        match state.fault(channel) {
            Some((Fault::Drop, _)) => {
                state.counts.dropped += 1;
                return;
            }
            Some((Fault::Hold, overtakers)) => {
                state.counts.held += 1;
                state.held.entry(channel.clone()).or_default().push(Held { delivery, overtakers });
                return;
            }
            Some((Fault::Duplicate, _)) => {
                state.counts.duplicated += 1;
                self.hand_over(channel, delivery.clone());
                self.hand_over(channel, delivery);
            }
            None => self.hand_over(channel, delivery),
        }
        state.overtaken(channel).into_iter().for_each(|delivery| self.hand_over(channel, delivery));
    }

    fn disturbed(&self, disturbance: Disturbance) {
        if let Some(sink) = self.sink.get() {
            sink.disturbed(disturbance);
        }
    }
}
