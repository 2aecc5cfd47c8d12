//! Calls that may have to wait: tried at once, and only if they are not ready does a task wait for them.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::Shard;

impl Shard {
    /// Runs a future and hands its result to `then` on this shard. With the memory backplane and static keys every
    /// call is ready at once, so a connect or a subscribe is one uninterrupted piece of work and needs no task.
    pub(super) fn perform<T: 'static>(
        self: &Rc<Self>,
        future: impl Future<Output = T> + 'static,
        then: impl FnOnce(&Rc<Self>, T) + 'static,
    ) {
        let mut future: Pin<Box<dyn Future<Output = T>>> = Box::pin(future);
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => then(self, value),
            Poll::Pending => {
                let shard = self.clone();
                tokio::task::spawn_local(async move {
                    let value = future.await;
                    then(&shard, value);
                    shard.run();
                });
            }
        }
    }
}
