//! Putting copies back into order, for servers older than 2.10.25: with several publishers they send copies of what a
//! stream takes in another order than the stream's, some milliseconds apart.
//!
//! A message whose predecessor has not come waits for it. When it waited too long, or too many wait, all go on in order:
//! whoever misses one reads it from history.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::Delivery;

/// How long a message waits. Seen were up to 24 ms.
const WAIT: Duration = Duration::from_millis(100);

/// Messages of one channel that wait. Seen were predecessors up to 1,023 numbers away, in a whole stream.
const WAITING_MAX: usize = 256;

/// The order in one channel.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// The last number that went on, and the epoch it belongs to.
    last: u64,
    epoch: String,
    waiting: BTreeMap<u64, (u64, Delivery)>,
    deadline: Option<Instant>,
}

impl Hold {
    /// Takes a delivery of the message `number` that followed `previous` (0: unknown), and hands on what may go.
    pub(super) fn push(
        &mut self,
        epoch: &str,
        number: u64,
        previous: u64,
        delivery: Delivery,
        now: Instant,
        mut hand_on: impl FnMut(Delivery),
    ) {
        if self.epoch != epoch {
            self.release(&mut hand_on);
            self.last = 0;
            epoch.clone_into(&mut self.epoch);
        }
        if number <= self.last {
            // It came too late, or a second time.
            return;
        }
        if self.last != 0 && previous > self.last {
            self.waiting.insert(number, (previous, delivery));
            self.deadline.get_or_insert(now + WAIT);
            if self.waiting.len() > WAITING_MAX {
                self.release(&mut hand_on);
            }
            return;
        }
        self.last = number;
        hand_on(delivery);
        while let Some(entry) = self.waiting.first_entry() {
            if entry.get().0 > self.last {
                return;
            }
            let (number, (_, delivery)) = entry.remove_entry();
            if number > self.last {
                self.last = number;
                hand_on(delivery);
            }
        }
        self.deadline = None;
    }

    /// When those that wait have waited too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Hands on all that wait.
    pub(super) fn release(&mut self, mut hand_on: impl FnMut(Delivery)) {
        self.deadline = None;
        for (number, (_, delivery)) in std::mem::take(&mut self.waiting) {
            if number > self.last {
                self.last = number;
                hand_on(delivery);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Offset, Previous, Publication};

    fn delivery(number: u64) -> Delivery {
        let publication = Publication {
            offset: Some(Offset(number)),
            data: bytes::Bytes::new(),
            info: None,
            tags: Default::default(),
        };
        Delivery::Positioned { epoch: "e".into(), previous: Previous::Unknown, publication: Arc::new(publication) }
    }

    fn number(delivery: Delivery) -> u64 {
        match delivery {
            Delivery::Positioned { publication, .. } => publication.offset.unwrap_or_default().0,
            other => panic!("{other:?}"),
        }
    }

    fn push(hold: &mut Hold, epoch: &str, (at, previous): (u64, u64)) -> Vec<u64> {
        let mut out = Vec::new();
        hold.push(epoch, at, previous, delivery(at), Instant::now(), |delivery| out.push(number(delivery)));
        out
    }

    #[test]
    fn messages_wait_for_their_predecessors() {
        let mut hold = Hold::default();
        let mut push = |message| push(&mut hold, "e", message);
        assert_eq!(push((10, 7)), [10], "nothing is known of what came before the first");
        assert_eq!(push((14, 13)), [0; 0]);
        assert_eq!(push((13, 11)), [0; 0]);
        assert_eq!(push((13, 11)), [0; 0]);
        assert_eq!(push((11, 10)), [11, 13, 14]);
        assert_eq!(push((13, 11)), [0; 0], "a second time");
        assert_eq!(push((20, 0)), [20], "its predecessor has expired");
        assert_eq!(push((21, 20)), [21]);
        assert_eq!(hold.deadline(), None);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut hold = Hold::default();
        push(&mut hold, "e", (1, 0));
        push(&mut hold, "e", (5, 4));
        push(&mut hold, "e", (4, 3));
        assert!(hold.deadline().is_some());
        let mut out = Vec::new();
        hold.release(|delivery| out.push(number(delivery)));
        assert_eq!((out, hold.deadline()), (vec![4, 5], None));
        assert_eq!(push(&mut hold, "e", (3, 1)), [0; 0], "it would be out of order");
        assert_eq!(push(&mut hold, "e", (9, 8)), [0; 0]);
        assert_eq!(push(&mut hold, "f", (2, 1)), [9, 2], "another epoch begins anew");
        for at in 0..=WAITING_MAX as u64 {
            push(&mut hold, "f", (100 + at, 99 + at));
        }
        assert_eq!(hold.waiting.len(), 0, "too many do not wait");
    }
}
