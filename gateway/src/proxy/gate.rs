//! How many calls to one backend are under way, and how many wait: more are refused rather than kept.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Slots, and a bounded queue for them.
pub(super) struct Gate {
    slots: Semaphore,
    waiting: AtomicUsize,
    waiting_max: usize,
}

/// There are as many waiting as may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Full;

impl Gate {
    pub fn new(slots: usize, waiting_max: usize) -> Self {
        Self { slots: Semaphore::new(slots), waiting: AtomicUsize::new(0), waiting_max }
    }

    /// Waits for a slot, first come first served.
    ///
    /// # Errors
    /// [`Full`], at once.
    pub async fn enter(&self) -> Result<SemaphorePermit<'_>, Full> {
        if let Ok(slot) = self.slots.try_acquire() {
            return Ok(slot);
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.waiting_max {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Full);
        }
        // However the wait ends.
        let _waiting = Waiting(&self.waiting);
        // The slots are never closed.
        self.slots.acquire().await.map_err(|_| Full)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn slots_then_places_then_nothing() {
        let gate = Gate::new(1, 1);
        let slot = gate.enter().await.expect("the slot");
        let mut waits = Box::pin(gate.enter());
        assert!(matches!(poll!(&mut waits), Poll::Pending));
        assert_eq!(gate.enter().await.err(), Some(Full));
        // Who gives up makes room in the queue.
        drop(waits);
        let mut waits = Box::pin(gate.enter());
        assert!(matches!(poll!(&mut waits), Poll::Pending));
        drop(slot);
        assert!(waits.await.is_ok());
        assert!(gate.enter().await.is_ok());
    }
}
