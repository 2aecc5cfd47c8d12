//! The edges of a connection: opening it, ending it, coming back.
//!
//! How a client comes back is the plan's choice: within a moment, or as an SDK does, with its back-off, its time limits and
//! another node if a load balancer would choose one. A client may also be told to drop its connection itself.

use std::cmp::Reverse;
use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering;

use rand::Rng;

use super::plan::{DropHow, Reconnect};
use super::shared::Phase;
use super::socket::{Cut, open, reset};
use super::worker::{Connection, State, Worker};
use crate::backoff::COMMAND_TIMEOUT;
use crate::frame::{CLOSE, write_frame};
use crate::sys;
use crate::timeline::Event;
use crate::wire::{self, FIRST_SUBSCRIBE_ID, Subscription};

/// How often connections that are being opened are checked for having taken too long.
const TIMEOUT_CHECK_NS: u64 = 100_000_000;
/// Longest wait of those that resume quickly; the actual one is random, as that of the SDKs.
const QUICK_DELAY_NS: u64 = 300_000_000;
/// Times one connection is resumed quickly before it counts as lost: a server that keeps cutting it has failed.
const QUICK_RESUMES_MAX: u32 = 1000;
/// Timers handled before the loop reads again. Opening a connection takes some ten microseconds.
const TIMERS_PER_PASS: usize = 16;

/// Something to be done later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    /// Try to connect.
    Reconnect(usize),
    /// Subscribe again: connection, index of the subscription within it, and the life it belongs to.
    Resubscribe(usize, usize, u32),
    /// The same subscription must have been answered.
    SubscribeTimeout(usize, usize, u32),
}

impl Worker {
    /// Opens what is due, bounded by how many may be on their way at a time.
    pub(super) fn open_due(&mut self, now: u64, wait_until: &mut u64) {
        while self.next_to_open < self.connections.len() && self.opening < self.opening_max {
            let connection = self.next_to_open;
            let mut started_ns = now;
            if let Some(rate) = self.plan.connect_rate {
                // Each worker opens its share, so that together they keep the rate.
                let from = *self.opened_from_ns.get_or_insert(now);
                started_ns = from + (connection as f64 * self.plan.threads as f64 * 1e9 / rate) as u64;
                if started_ns > now {
                    *wait_until = (*wait_until).min(started_ns);
                    return;
                }
            }
            self.next_to_open += 1;
            self.lives[connection].node = self.plan.nodes.first_of(self.first + connection);
            self.open(connection, started_ns);
        }
    }

    fn open(&mut self, connection: usize, started_ns: u64) {
        let now = sys::monotonic_ns();
        self.set_opening(self.opening + 1, now);
        self.tally.timeline.count(now, Event::Attempt);
        let opened = &mut self.connections[connection];
        (opened.started_ns, opened.step_ns, opened.state) = (started_ns, now, State::Connecting);
        let life = &mut self.lives[connection];
        if life.cut_ns > 0 && life.first_attempt_ns == 0 {
            life.first_attempt_ns = now;
        }
        let source = self.plan.sources.of(self.first + connection);
        let address = self.plan.nodes.target(life.node).address;
        let opened = open(address, source).and_then(|socket| {
            self.epoll.add_edge(&socket, connection as u64)?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => self.connections[connection].socket = Some(socket),
            Err(error) => self.cut(connection, Cut::Io(error)),
        }
    }

    /// Notes how many connections are on their way.
    pub(super) fn set_opening(&mut self, opening: usize, now: u64) {
        self.opening = opening;
        self.tally.timeline.set_in_flight(now, opening);
    }

    /// Does what is due, and says when there is more.
    pub(super) fn timers_due(&mut self, now: u64, wait_until: &mut u64) {
        let quickly = self.plan.reconnect == Reconnect::Quickly;
        for _ in 0..TIMERS_PER_PASS {
            let Some(Reverse((due, timer))) = self.timers.peek().copied() else { return };
            // Many that come back quickly are bounded like those that are opened first; SDKs know nothing of each other.
            if due > now || (quickly && self.opening >= self.opening_max) {
                *wait_until = (*wait_until).min(due.max(now + 1_000_000));
                return;
            }
            self.timers.pop();
            match timer {
                Timer::Reconnect(connection) => {
                    self.lives[connection].node = self.plan.nodes.next();
                    self.open(connection, now);
                }
                Timer::Resubscribe(connection, index, life) if self.is_alive(connection, life) => {
                    let result = self.resubscribe(connection, index, now);
                    self.cut_on_error(connection, result);
                }
                Timer::SubscribeTimeout(connection, index, life) if self.is_alive(connection, life) => {
                    let (from, _) = self.subscriptions_of(connection);
                    if self.resubscribing.contains_key(&(from + index)) {
                        self.cut(connection, Cut::Timeout);
                    }
                }
                Timer::Resubscribe(..) | Timer::SubscribeTimeout(..) => {}
            }
        }
        *wait_until = now;
    }

    fn is_alive(&self, connection: usize, life: u32) -> bool {
        let Connection { state, is_up, .. } = &self.connections[connection];
        self.lives[connection].ended == life && *is_up && matches!(state, State::Greeting | State::Live)
    }

    /// The server took a subscription away, or could not grant it for now. `at_once` is how SDKs react to the former.
    pub(super) fn resubscribe_later(&mut self, connection: usize, index: usize, at_once: bool) {
        let now = sys::monotonic_ns();
        self.tally.last_trouble_ns = self.tally.last_trouble_ns.max(now);
        let (from, _) = self.subscriptions_of(connection);
        let attempts = self.resubscribing.entry(from + index).or_default();
        let delay = match self.plan.sdk_of(self.first + connection) {
            Some(sdk) if !at_once => sdk.delay(*attempts, rand::rng().random()).as_nanos() as u64,
            _ => 0,
        };
        *attempts += 1;
        self.connections[connection].step_ns = now + delay;
        let life = self.lives[connection].ended;
        self.timers.push(Reverse((now + delay, Timer::Resubscribe(connection, index, life))));
    }

    fn resubscribe(&mut self, connection: usize, index: usize, now: u64) -> Result<(), Cut> {
        let (from, _) = self.subscriptions_of(connection);
        let plan = self.plan.clone();
        let channel = plan.layout.channels_of(self.first + connection)[index];
        let subscription = Subscription {
            channel: &plan.channels[channel as usize],
            position: self.positions.get(from + index).and_then(Option::as_ref),
            join_leave: channel < plan.presence_channels,
        };
        let payload = wire::subscribe_frame(plan.encoding, FIRST_SUBSCRIBE_ID + index as u32, subscription);
        if plan.sdk_of(self.first + connection).is_some() {
            let life = self.lives[connection].ended;
            let due = now + COMMAND_TIMEOUT.as_nanos() as u64;
            self.timers.push(Reverse((due, Timer::SubscribeTimeout(connection, index, life))));
        }
        self.send_frame(connection, wire::opcode(plan.encoding), &payload)
    }

    /// Ends attempts that take longer than the plan allows or, after a cut, longer than an SDK waits for each step.
    pub(super) fn check_timeouts(&mut self, now: u64) {
        if self.opening == 0 || now < self.next_timeout_check_ns {
            return;
        }
        self.next_timeout_check_ns = now + TIMEOUT_CHECK_NS;
        let limit = self.plan.connect_timeout.as_nanos() as u64;
        for connection in 0..self.next_to_open {
            let Connection { state, started_ns, step_ns, .. } = &self.connections[connection];
            let step_limit = match self.plan.sdk_of(self.first + connection) {
                Some(_) if self.lives[connection].has_lived => COMMAND_TIMEOUT.as_nanos() as u64,
                _ => u64::MAX,
            };
            let overdue = match step_limit {
                u64::MAX => now.saturating_sub(*started_ns) > limit,
                step_limit => now.saturating_sub(*step_ns) > step_limit,
            };
            if state.is_opening() && overdue {
                self.cut(connection, Cut::Timeout);
            }
        }
    }

    /// Ends a connection, or schedules it to come back.
    pub(super) fn cut(&mut self, connection: usize, cut: Cut) {
        let Connection { state: was, is_up, .. } = self.connections[connection];
        if matches!(was, State::Idle | State::Over) {
            return;
        }
        let now = sys::monotonic_ns();
        if was == State::Live {
            self.live_count -= 1;
        } else {
            self.set_opening(self.opening - 1, now);
        }
        let ended = std::mem::replace(
            &mut self.connections[connection],
            Connection { state: State::Over, ..Connection::default() },
        );
        if !self.resubscribing.is_empty() {
            let (from, channels) = self.subscriptions_of(connection);
            self.resubscribing.retain(|subscription, _| !(from..from + channels).contains(subscription));
        }
        if let (Some(socket), Cut::Dropped) = (ended.socket, &cut) {
            self.end_as_planned(socket);
        }
        let client = self.first + connection;
        let life = &mut self.lives[connection];
        life.ended += 1;
        if is_up {
            self.tally.cuts.count(&cut.to_string());
            self.tally.timeline.count(now, Event::Cut);
            if life.cut_ns == 0 {
                life.cut_ns = now;
            }
        } else {
            self.tally.failed_attempts.count(&cut.kind());
            self.tally.timeline.count(now, Event::Failed);
        }
        let (has_lived, attempts, resumes) = (life.has_lived, life.attempts, life.ended);
        life.attempts += 1;
        if has_lived {
            self.tally.last_trouble_ns = self.tally.last_trouble_ns.max(now);
            self.progress().cut.fetch_add(u64::from(was == State::Live), Ordering::Relaxed);
        }
        let delay_ns = match (&self.plan.reconnect, self.plan.sdk_of(client)) {
            (_, Some(sdk)) => Some(sdk.delay(attempts, rand::rng().random()).as_nanos() as u64),
            (Reconnect::Quickly, None) if has_lived && resumes <= QUICK_RESUMES_MAX => {
                Some(rand::rng().random_range(QUICK_DELAY_NS / 10..QUICK_DELAY_NS))
            }
            _ => None,
        };
        let stays_away = has_lived && self.plan.stays_away(client) && self.shared.phase() == Phase::Load;
        match delay_ns.filter(|_| !cut.is_terminal()) {
            Some(_) if stays_away => self.stay_away(connection),
            Some(delay_ns) => {
                self.connections[connection].state = State::Idle;
                self.timers.push(Reverse((now + delay_ns, Timer::Reconnect(connection))));
            }
            None if has_lived => {
                self.tally.lost.count(&cut.to_string());
                self.progress().lost.fetch_add(1, Ordering::Relaxed);
                self.end_subscriptions(connection);
            }
            None => {
                self.tally.refused.count(&cut.to_string());
                self.progress().refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// At the end of a run: who is not connected knows that it misses messages.
    pub(super) fn end_those_not_live(&mut self) {
        for connection in 0..self.connections.len() {
            if self.lives[connection].has_lived && self.connections[connection].state != State::Live {
                self.end_subscriptions(connection);
            }
        }
        let waiting: Vec<usize> = self.resubscribing.keys().copied().collect();
        waiting.into_iter().for_each(|subscription| self.audit.ended(subscription));
    }

    fn end_subscriptions(&mut self, connection: usize) {
        let (from, channels) = self.subscriptions_of(connection);
        (from..from + channels).for_each(|subscription| self.audit.ended(subscription));
    }

    fn stay_away(&mut self, connection: usize) {
        self.end_subscriptions(connection);
        let life = &mut self.lives[connection];
        life.is_away = true;
        let client = life.client;
        let channels = self.plan.layout.channels_of(self.first + connection);
        let with_presence = channels.iter().filter(|channel| **channel < self.plan.presence_channels);
        self.tally.away.extend(with_presence.map(|channel| (*channel, client)));
        self.progress().away.fetch_add(1, Ordering::Relaxed);
    }

    fn end_as_planned(&mut self, mut socket: std::net::TcpStream) {
        let by_reset = match self.plan.drops.how {
            DropHow::Reset => true,
            DropHow::CloseFrame => false,
            DropHow::Either => rand::rng().random(),
        };
        if by_reset {
            return reset(socket);
        }
        let mut close = Vec::new();
        write_frame(CLOSE, &1000u16.to_be_bytes(), Some(self.mask), &mut close);
        // It ends either way.
        let _: io::Result<()> = socket.write_all(&close).and_then(|()| socket.shutdown(Shutdown::Write));
    }

    /// Drops what the scenario wants dropped by now.
    pub(super) fn drop_due(&mut self, now: u64) {
        if !self.has_dropped && self.shared.drop_at_ns().is_some_and(|at| at <= now) {
            self.has_dropped = true;
            let chosen = self.choose(self.plan.drops.share_at_once);
            for connection in chosen {
                self.cut(connection, Cut::Dropped);
            }
        }
        if !self.shared.dropping.load(Ordering::Acquire) {
            self.dropping_since_ns = None;
            return;
        }
        let since = *self.dropping_since_ns.get_or_insert(now);
        let own_share = self.connections.len() as f64 / self.plan.layout.connections().max(1) as f64;
        let due = ((now - since) as f64 / 1e9 * self.plan.drops.per_second * own_share) as u64;
        while self.dropped_steadily < due {
            self.dropped_steadily += 1;
            let connection = rand::rng().random_range(0..self.connections.len());
            if self.connections[connection].state == State::Live {
                self.cut(connection, Cut::Dropped);
            }
        }
    }

    /// A random choice of this share of the live connections.
    fn choose(&self, share: f64) -> Vec<usize> {
        let live = |connection: &usize| self.connections[*connection].state == State::Live;
        let mut all: Vec<usize> = (0..self.connections.len()).filter(live).collect();
        let wanted = (all.len() as f64 * share).round() as usize;
        let mut random = rand::rng();
        for at in 0..wanted.min(all.len()) {
            let other = random.random_range(at..all.len());
            all.swap(at, other);
        }
        all.truncate(wanted);
        all
    }
}
