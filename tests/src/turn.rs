//! One process test at a time: two cores are too few for several gateways and their deadlines at once.
//!
//! The test runner runs the tests of a file on threads of their own, so a test takes its turn with the first process
//! it starts and gives it back with its last. The lock belongs to the thread, which lets one test start several
//! gateways.

use std::cell::RefCell;
use std::sync::{Mutex, MutexGuard, PoisonError};

static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    static HELD: RefCell<Held> = const { RefCell::new(Held { guard: None, count: 0 }) };
}

struct Held {
    guard: Option<MutexGuard<'static, ()>>,
    count: usize,
}

/// The right to run processes. It stays on the thread that took it.
pub(crate) struct Turn {
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Turn {
    /// Waits until no other test runs a process.
    pub(crate) fn take() -> Self {
        HELD.with_borrow_mut(|held| {
            if held.guard.is_none() {
                // A test that failed while holding the lock has left nothing behind that could be broken.
                held.guard = Some(TURN.lock().unwrap_or_else(PoisonError::into_inner));
            }
            held.count += 1;
        });
        Self { _not_send: std::marker::PhantomData }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| {
            held.count -= 1;
            if held.count == 0 {
                held.guard = None;
            }
        });
    }
}
