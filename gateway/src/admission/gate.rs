//! The bounds of one shard on connections of the public listener that are no WebSockets yet.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::AdmissionSettings;
use super::bucket::Bucket;

/// What a connection of the public listener is, as long as hyper serves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// It has not said yet what it wants, or wants to become a WebSocket.
    Handshake,
    /// It calls the server API, or gets a page.
    Other,
}

/// The bounds of one shard on connections that are no WebSockets yet. Handshakes and calls of the API are counted apart,
/// so that a storm of the former leaves room for the latter.
pub struct Gate {
    in_flight_max: usize,
    handshakes: Cell<usize>,
    others: Cell<usize>,
    waiting: Cell<usize>,
    upgraded_at: Cell<Instant>,
    bucket: RefCell<Bucket>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Gate>>> = const { RefCell::new(None) };
}

impl Gate {
    /// With room for so many handshakes, and as many other connections.
    pub fn new(in_flight_max: usize, settings: &AdmissionSettings) -> Rc<Self> {
        Rc::new(Self {
            in_flight_max,
            handshakes: Cell::new(0),
            others: Cell::new(0),
            waiting: Cell::new(0),
            upgraded_at: Cell::new(Instant::now()),
            bucket: RefCell::new(Bucket::new(settings.rate, settings.ramp)),
        })
    }

    /// Makes this the gate of the calling thread.
    pub fn enter(self: &Rc<Self>) {
        CURRENT.with(|current| *current.borrow_mut() = Some(self.clone()));
    }

    /// The gate of the calling thread. `None` on other threads.
    pub fn current() -> Option<Rc<Self>> {
        CURRENT.with(|current| current.borrow().clone())
    }

    fn is_crowded(&self) -> bool {
        self.handshakes.get() > self.in_flight_max
    }

    /// Whether a handshake may begin with a connection that has waited for so long. While as many are under way as may be, it
    /// waits for one of them to end, as long as clients get in: a crowd of which nobody gets in for `patience` is none of
    /// clients, and behind it may be calls of the API, for which there is room.
    pub fn may_begin(&self, waited: Duration, patience: Duration) -> bool {
        self.handshakes.get() < self.in_flight_max || waited.min(self.upgraded_at.get().elapsed()) >= patience
    }

    /// Notes that a client got in.
    pub fn upgraded(&self) {
        self.upgraded_at.set(Instant::now());
    }

    /// Whether not even a refusal can be afforded: a quarter more than the bound. Between the two, connections are
    /// accepted and read, as they may call the API.
    pub fn is_full(&self) -> bool {
        self.handshakes.get() >= self.in_flight_max + self.in_flight_max.div_ceil(4)
    }

    /// Notes how many connections wait until a handshake with them begins.
    pub fn set_waiting(&self, waiting: usize) {
        self.waiting.set(waiting);
    }

    /// How many connections wait until a handshake with them begins.
    pub fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// Takes one of the tokens for upgrade requests.
    pub fn take(&self, since_start: Duration) -> bool {
        self.bucket.borrow_mut().take(since_start)
    }

    /// Counts a connection that was just accepted.
    pub fn admit(self: &Rc<Self>) -> Slot {
        self.handshakes.set(self.handshakes.get() + 1);
        Slot { gate: self.clone(), kind: Cell::new(Kind::Handshake), has_place: Cell::new(!self.is_crowded()) }
    }
}

/// The place of one connection in the counts of its shard, until it is dropped.
pub struct Slot {
    gate: Rc<Gate>,
    kind: Cell<Kind>,
    /// It is one of those that may be under way at once.
    has_place: Cell<bool>,
}

/// Goes with an upgrade request that has to be refused because of the others that are under way.
#[derive(Clone, Copy, Debug)]
pub struct Crowded;

impl Slot {
    /// Whether the connection may become a WebSocket as far as the others that are under way are concerned. One that was
    /// accepted while there was room keeps its place, however many come after it: else a storm that arrives faster than
    /// handshakes end would have all of them refused, and nobody would get in.
    #[must_use]
    pub fn may_upgrade(&self) -> bool {
        if !self.has_place.get() {
            self.has_place.set(!self.gate.is_crowded());
        }
        self.has_place.get()
    }

    /// The connection does not want to become a WebSocket. False when there are too many of its kind.
    #[must_use]
    pub fn is_other(&self) -> bool {
        if self.kind.get() == Kind::Other {
            return true;
        }
        if self.gate.others.get() >= self.gate.in_flight_max {
            return false;
        }
        self.kind.set(Kind::Other);
        self.gate.handshakes.set(self.gate.handshakes.get() - 1);
        self.gate.others.set(self.gate.others.get() + 1);
        true
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let count = match self.kind.get() {
            Kind::Handshake => &self.gate.handshakes,
            Kind::Other => &self.gate.others,
        };
        count.set(count.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_came_in_time_is_not_refused_for_those_who_come_after() {
        let gate = Gate::new(2, &AdmissionSettings::default());
        let first = gate.admit();
        let second = gate.admit();
        let late = gate.admit();
        assert!(first.may_upgrade() && second.may_upgrade());
        assert!(!late.may_upgrade(), "two are under way");
        drop(first);
        assert!(late.may_upgrade(), "there is room again");
        let after = gate.admit();
        assert!(late.may_upgrade() && second.may_upgrade() && !after.may_upgrade());
    }

    #[test]
    fn a_crowd_is_waited_for_as_long_as_clients_get_in() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let gate = Gate::new(1, &AdmissionSettings::default());
        assert!(gate.may_begin(Duration::ZERO, PATIENCE), "there is room");
        let slot = gate.admit();
        assert!(!gate.may_begin(Duration::ZERO, PATIENCE));
        gate.upgraded_at.set(Instant::now().checked_sub(2 * PATIENCE).expect("the machine is up for longer"));
        assert!(!gate.may_begin(PATIENCE / 2, PATIENCE), "it has not waited for long");
        assert!(gate.may_begin(PATIENCE, PATIENCE), "nobody gets in");
        gate.upgraded();
        assert!(!gate.may_begin(PATIENCE, PATIENCE), "they do get in");
        drop(slot);
        assert!(gate.may_begin(Duration::ZERO, PATIENCE));
    }

    #[test]
    fn calls_of_the_api_leave_room_for_handshakes_and_the_other_way_round() {
        let gate = Gate::new(4, &AdmissionSettings::default());
        let mut slots: Vec<Slot> = (0..4).map(|_| gate.admit()).collect();
        assert!(!gate.is_crowded());
        assert!(slots[0].is_other() && slots[0].is_other());
        slots.extend((0..2).map(|_| gate.admit()));
        assert!(gate.is_crowded() && gate.is_full(), "five handshakes, where four may be");
        slots.truncate(4);
        assert!(!gate.is_crowded());
        for slot in &slots[1..] {
            assert!(slot.is_other());
        }
        let fifth = gate.admit();
        assert!(!fifth.is_other(), "four others");
        slots.clear();
        assert!(fifth.is_other());
        drop(fifth);
        assert_eq!((gate.handshakes.get(), gate.others.get()), (0, 0));
    }
}
