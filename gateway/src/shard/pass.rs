//! The fan-out pass: everything that waits is gathered per connection, then each connection is written once.
//!
//! Under load the next pass gathers what came in during this one, so writes coalesce by themselves; an idle gateway
//! writes each publication at once.

use std::rc::Rc;
use std::time::{Duration, Instant};

use session::io::Input;

use super::drive::AbortOnPanic;
use super::inbox::Item;
use super::{Shard, Work};

/// Deliveries of one pass. More would only make the joined buffers larger, not the writes fewer.
const DELIVERIES_PER_PASS: usize = 1024;

/// Bytes of one pass, or half of what may be queued for a connection if that is less: one pass must neither fill the
/// queue of a connection that is barely behind, nor let a queue outgrow its bound by much.
const BYTES_PER_PASS: usize = 256 << 10;

/// Batches of one pass before it writes: bounds the memory when hardly any connections share one.
const BATCHES_PER_PASS: usize = 64 << 10;

/// Connections written before other tasks get their turn: about a millisecond.
const WRITES_PER_TURN: usize = 200;

/// How often timers, position checks and meters are looked at.
const TICK: Duration = Duration::from_millis(100);

impl Shard {
    /// Fans out until the thread ends.
    pub async fn fan_out(self: Rc<Self>) {
        let _guard = AbortOnPanic("fan-out");
        loop {
            self.inbox.ready().await;
            self.passing.set(true);
            self.pass().await;
            self.passing.set(false);
            // Channels with few subscribers make short passes: without this, a stream of them would starve the sockets.
            tokio::task::yield_now().await;
        }
    }

    /// Turns the wheel and the hub until the thread ends.
    pub async fn keep_time(self: Rc<Self>) {
        let _guard = AbortOnPanic("timers");
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.turn_wheel();
            let now = self.now().tick;
            self.with_hub(|hub, port| hub.tick(now, port));
            let due = self.losses.borrow_mut().due();
            for (conn, channel) in due {
                if let Some(connection) = self.connection(conn) {
                    self.enqueue(Work::Input(connection, Input::PositionLost { channel }));
                }
            }
            self.run();
            self.report();
            if self.reported.borrow().ticks.is_multiple_of(10) {
                self.tend_sessions();
                self.run();
            }
        }
    }

    async fn pass(self: &Rc<Self>) {
        let bytes_max = BYTES_PER_PASS.min(self.io_limits().queue_bytes / 2);
        let taken = self.inbox.take(DELIVERIES_PER_PASS, bytes_max);
        let now = self.now().tick;
        let mut started = Vec::with_capacity(taken.items.len().min(DELIVERIES_PER_PASS));
        for item in taken.items {
            match item {
                Item::Delivery(outgoing) => {
                    self.with_hub(|hub, port| hub.deliver(&outgoing, now, port));
                    started.push(outgoing.received);
                    if self.batches.borrow().len() > BATCHES_PER_PASS {
                        self.run();
                        self.write_dirty().await;
                    }
                }
                Item::Acknowledged(channel, result) => self.acknowledged(&channel, result.map(|()| None)),
                Item::Disturbed(backplane::Disturbance::Channel(channel)) => {
                    self.hub.borrow_mut().disturbed(Some(&channel));
                }
                Item::Disturbed(backplane::Disturbance::All) => self.hub.borrow_mut().disturbed(None),
                Item::Command(command) => {
                    self.run();
                    self.command(*command);
                }
            }
        }
        if taken.dropped > 0 {
            self.meters.lagged(taken.dropped);
        }
        for channel in &taken.lagged {
            self.hub.borrow_mut().disturbed(Some(channel));
        }
        self.run();
        self.write_dirty().await;
        let finished = Instant::now();
        for received in started {
            self.meters.fanned_out(finished.saturating_duration_since(received));
        }
    }

    /// Writes every connection that has a batch, until none has. Only this task does so: at its end no connection holds
    /// a batch, and they can be forgotten. Deliveries that arrive meanwhile wait for the next pass; replies go
    /// out at once, behind the batch of their connection.
    async fn write_dirty(self: &Rc<Self>) {
        loop {
            let mut dirty = std::mem::take(&mut *self.dirty.borrow_mut());
            if dirty.is_empty() {
                *self.dirty.borrow_mut() = dirty;
                self.batches.borrow_mut().clear();
                return;
            }
            let mut written = 0;
            for connection in dirty.drain(..) {
                self.flush(&connection);
                written += 1;
                if written % WRITES_PER_TURN == 0 {
                    self.run();
                    tokio::task::yield_now().await;
                }
            }
            let mut place = self.dirty.borrow_mut();
            if place.is_empty() {
                *place = dirty;
            }
            drop(place);
            self.run();
        }
    }
}
