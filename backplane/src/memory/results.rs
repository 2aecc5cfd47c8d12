//! Remembered results of publishes with an idempotency key.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::clock::Moment;
use super::limits::Counters;
use super::presence::shrink;
use crate::{IDEMPOTENCY_TTL, StreamPosition};

/// The results of one channel. All live equally long, so the order of arrival is the order of expiry.
///
/// Invariant: every key of `by_key` has an element with its expiry in `expiring`.
#[derive(Debug, Default)]
pub(super) struct Results {
    by_key: HashMap<Arc<str>, Remembered>,
    expiring: VecDeque<(Moment, Arc<str>)>,
}

#[derive(Debug)]
struct Remembered {
    position: Option<StreamPosition>,
    expires: Moment,
}

impl Results {
    /// The position that the first publish with this key was answered with; `None` if there was none in time.
    pub(super) fn find(&self, key: &str, now: Moment) -> Option<&Option<StreamPosition>> {
        self.by_key.get(key).filter(|result| result.expires > now).map(|result| &result.position)
    }

    pub(super) fn remember(&mut self, key: &str, position: Option<StreamPosition>, now: Moment, counters: &Counters) {
        let key: Arc<str> = Arc::from(key);
        let expires = now.after(IDEMPOTENCY_TTL);
        self.expiring.push_back((expires, Arc::clone(&key)));
        if self.by_key.insert(key, Remembered { position, expires }).is_none() {
            counters.idempotency_keys.add(1);
        }
    }

    /// Frees what has expired, at most `budget` results; returns how many were looked at.
    pub(super) fn expire(&mut self, now: Moment, budget: usize, counters: &Counters) -> usize {
        let mut work = 0;
        while work < budget && self.next_expiry() <= now {
            let Some((expires, key)) = self.expiring.pop_front() else { break };
            // A key that was used again after its expiry has a younger element further back.
            if self.by_key.get(&key).is_some_and(|result| result.expires == expires) {
                self.by_key.remove(&key);
                counters.idempotency_keys.sub(1);
            }
            work += 1;
        }
        if work > 0 {
            shrink(&mut self.by_key);
            if self.expiring.capacity() > 32 && self.expiring.len() * 4 < self.expiring.capacity() {
                self.expiring.shrink_to(self.expiring.len() * 2);
            }
        }
        work
    }

    /// When the oldest result expires.
    pub(super) fn next_expiry(&self) -> Moment {
        self.expiring.front().map_or(Moment::NEVER, |&(expires, _)| expires)
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.expiring.is_empty()
    }
}
