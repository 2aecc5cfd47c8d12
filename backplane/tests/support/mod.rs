//! Factories over the in-memory backplane on a clock that stands still until a case lets time pass.

// Each test target uses a part of this.
#![allow(dead_code)]

pub mod broken;
mod broken_stores;

use std::future::{Future, ready};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use backplane::Backplane;
use backplane::conformance::Factory;
use backplane::memory::{ManualClock, MemoryBackplane, MemoryLimits};

/// The in-memory backplane inside of something.
pub struct Wrapped<W, L> {
    clock: Arc<ManualClock>,
    wrap: W,
    lose: L,
}

impl<W, L> Wrapped<W, L> {
    /// `wrap` puts something around a fresh backplane, `lose` makes the one inside forget its streams.
    pub fn new(wrap: W, lose: L) -> Self {
        Self { clock: Arc::default(), wrap, lose }
    }
}

impl<B: Backplane, W, L> Factory for Wrapped<W, L>
where
    W: Fn(MemoryBackplane) -> B + Send + Sync,
    L: Fn(&B) + Send + Sync,
{
    type Backplane = B;

    fn create(&self) -> impl Future<Output = Arc<B>> + Send {
        let clock = Arc::clone(&self.clock);
        ready(Arc::new((self.wrap)(MemoryBackplane::with_clock(MemoryLimits::default(), clock))))
    }

    fn wait(&self, time: Duration) -> impl Future<Output = ()> + Send {
        self.clock.advance(time);
        ready(())
    }

    /// What is not there at once never comes.
    fn patience(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    fn lose_data(&self, backplane: &B) -> impl Future<Output = ()> + Send {
        (self.lose)(backplane);
        ready(())
    }

    fn short_ttl(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// Expiry is exact to the nanosecond.
    fn expiry_slack(&self) -> Duration {
        Duration::ZERO
    }
}

/// The promise that every future is ready at once, checked by every call of the suite.
pub fn ready_at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a call of the in-memory backplane was not ready at once"),
    }
}

/// The in-memory backplane as it is.
pub fn memory() -> impl Factory<Backplane = MemoryBackplane> {
    Wrapped::new(|backplane| backplane, |backplane: &MemoryBackplane| backplane.forget())
}
