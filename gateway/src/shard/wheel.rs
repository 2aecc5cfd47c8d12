//! A timer wheel for the deadlines of a shard's connections: about 8 bytes per connection, no timer task each.
//!
//! A connection has at most one entry that counts, the one at its `armed` slot; entries left behind by deadlines that
//! moved are recognised by the caller and dropped. Deadlines beyond the horizon are looked at once per turn.

use session::time::Tick;

use crate::hub::ConnKey;

/// Milliseconds per slot: deadlines are seconds, so an eighth of one is exact enough.
const SLOT_MS: u64 = 128;

/// Slots of the wheel: a turn takes 65 s, longer than any ping interval in use.
const SLOTS: u64 = 512;

/// Deadlines of connections, in slots.
pub struct Wheel {
    slots: Vec<Vec<ConnKey>>,
    /// The next slot to look at, counted from the start of time.
    cursor: u64,
    entries: usize,
}

impl Wheel {
    /// An empty wheel that starts now.
    pub fn new(now: Tick) -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), cursor: now.0 / SLOT_MS, entries: 0 }
    }

    /// The slot a deadline belongs to now: never in the past, at most one turn ahead.
    pub fn slot_for(&self, deadline: Tick) -> u64 {
        (deadline.0.div_ceil(SLOT_MS)).clamp(self.cursor, self.cursor + SLOTS - 1)
    }

    /// Puts a connection into a slot of [`Wheel::slot_for`].
    pub fn insert(&mut self, slot: u64, conn: ConnKey) {
        self.slots[(slot % SLOTS) as usize].push(conn);
        self.entries += 1;
    }

    /// Takes the next slot that is due, with its number; `None` when the wheel has caught up.
    pub fn next_due(&mut self, now: Tick) -> Option<(u64, Vec<ConnKey>)> {
        let end = now.0 / SLOT_MS;
        while self.cursor <= end {
            let slot = self.cursor;
            self.cursor += 1;
            let due = std::mem::take(&mut self.slots[(slot % SLOTS) as usize]);
            if !due.is_empty() {
                self.entries -= due.len();
                return Some((slot, due));
            }
        }
        None
    }

    /// Entries, those left behind included.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> ConnKey {
        ConnKey { index, generation: 1 }
    }

    #[test]
    fn entries_come_due_in_their_slot_and_not_before() {
        let mut wheel = Wheel::new(Tick(1_000));
        let slot = wheel.slot_for(Tick(3_000));
        wheel.insert(slot, key(7));
        assert_eq!(wheel.next_due(Tick(2_900)), None);
        assert_eq!(wheel.next_due(Tick(3_128)), Some((slot, vec![key(7)])));
        assert!(wheel.is_empty());
    }

    #[test]
    fn a_deadline_in_the_past_is_due_at_once_and_one_far_away_after_a_turn() {
        let mut wheel = Wheel::new(Tick(10_000));
        let past = wheel.slot_for(Tick(1));
        let far = wheel.slot_for(Tick(u64::MAX));
        wheel.insert(past, key(1));
        wheel.insert(far, key(2));
        assert_eq!(wheel.next_due(Tick(10_000)), Some((past, vec![key(1)])));
        assert_eq!(wheel.next_due(Tick(10_000 + 64_000)), None);
        assert_eq!(wheel.next_due(Tick(10_000 + 66_000)), Some((far, vec![key(2)])));
    }
}
