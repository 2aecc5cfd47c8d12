//! The in-memory backplane passes the conformance suite, on a clock that stands still until a case lets time pass.

use std::future::{Future, ready};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use backplane::conformance::Factory;
use backplane::memory::{ManualClock, MemoryBackplane, MemoryLimits};

#[derive(Default)]
struct Memory {
    clock: Arc<ManualClock>,
}

impl Factory for Memory {
    type Backplane = MemoryBackplane;

    fn create(&self) -> impl Future<Output = Arc<MemoryBackplane>> + Send {
        let clock = Arc::clone(&self.clock);
        ready(Arc::new(MemoryBackplane::with_clock(MemoryLimits::default(), clock)))
    }

    fn wait(&self, time: Duration) -> impl Future<Output = ()> + Send {
        self.clock.advance(time);
        ready(())
    }

    fn patience(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    fn lose_data(&self, backplane: &MemoryBackplane) -> impl Future<Output = ()> + Send {
        backplane.forget();
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
fn ready_at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a call of the in-memory backplane was not ready at once"),
    }
}

backplane::conformance_tests!(Memory::default(), ready_at_once);

#[test]
fn the_whole_suite_runs_in_one_go() {
    ready_at_once(backplane::conformance::run_all(&Memory::default())).expect("every case passes");
}
