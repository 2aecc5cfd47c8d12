//! What goes wrong at certain times, beside the rates at which calls and deliveries fail.

use super::bus::{Bus, Event};
use super::clock::Millis;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A node loses its connection to the backplane for a while: calls fail, deliveries are lost.
    Cut { node: usize, time: Millis },
    /// It has it again.
    Joined { node: usize },
    /// The backplane answers nothing for a while, and then everything.
    Pause { time: Millis },
    /// The backplane has lost everything.
    Restart,
    /// The backplane has lost its newest publications.
    RollBack,
    /// Whatever went wrong until now is over: calls succeed and nothing is dropped any more.
    Heal,
}

/// Enters the faults of a run, all of them before `end`.
pub fn plan(bus: &mut Bus, end: Millis) {
    let scenario = bus.scenario.clone();
    let any_time = |bus: &mut Bus| bus.random.between((500, end - 500));
    for _ in 0..scenario.partitions {
        let node = bus.random.index(scenario.nodes);
        let (at, time) = (any_time(bus), bus.random.between((100, 3000)));
        bus.agenda.at(at, Event::Fault(Fault::Cut { node, time }));
    }
    for _ in 0..scenario.pauses {
        let (at, time) = (any_time(bus), bus.random.between((100, 2000)));
        bus.agenda.at(at, Event::Fault(Fault::Pause { time }));
    }
    for _ in 0..scenario.restarts {
        let at = any_time(bus);
        bus.agenda.at(at, Event::Fault(Fault::Restart));
    }
    for _ in 0..scenario.rollbacks {
        let at = any_time(bus);
        bus.agenda.at(at, Event::Fault(Fault::RollBack));
    }
    bus.agenda.at(end, Event::Fault(Fault::Heal));
}

impl Fault {
    pub fn strike(self, bus: &mut Bus) {
        let nodes = bus.scenario.nodes;
        let now = bus.now();
        match self {
            Self::Cut { node, time } => {
                bus.cut(node, now + time);
                bus.agenda.after(time, Event::Fault(Self::Joined { node }));
            }
            Self::Joined { node } => bus.disturb(node..node + 1),
            Self::Pause { time } => bus.pause(now + time),
            Self::Restart => {
                bus.store.restart();
                bus.disturb(0..nodes);
            }
            Self::RollBack => {
                let mut random = bus.random.clone();
                bus.store.roll_back(&mut random);
                bus.random.next();
                bus.disturb(0..nodes);
            }
            Self::Heal => {
                bus.rates.drop = 0;
                bus.rates.fail_call = 0;
                bus.disturb(0..nodes);
                // Calls whose failure was decided before are over by then.
                for node in 0..nodes {
                    bus.agenda.after(1500, Event::Fault(Self::Joined { node }));
                }
            }
        }
    }
}
