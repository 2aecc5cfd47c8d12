//! One receiving thread: its connections, its epoll loop, its share of the audit.
//!
//! ```text
//! Idle -> Connecting -> Upgrading -> Greeting -> Live
//!   ^         |             |           |         |
//!   |         +-------------+-----------+---------+--> Over
//!   +------------ when connections resume --------+
//! ```
//!
//! What happens at the edges of a connection, opening, cutting and coming back, is in `reconnect`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;
use rand::Rng;

use super::plan::Plan;
use super::presence::Events;
use super::publisher::Publishers;
use super::reconnect::Timer;
use super::shared::{Phase, Progress, Reasons, Shared, microseconds};
use super::socket::{Cut, Outbox};
use crate::audit::{Audit, Outcome};
use crate::frame::{Assembler, CLOSE, write_frame};
use crate::http::upgrade_request;
use crate::stamp::Scanner;
use crate::timeline::{Event, Timeline};
use crate::wire::Position;
use crate::{procfs, sys};

/// Bytes taken from a socket at once. Large, because a server that coalesces sends much in one piece, and shared by all
/// connections of a worker.
const READ_BYTES: usize = 256 * 1024;
/// Events handled before the loop looks at the schedule again, which keeps publishing punctual while much arrives.
const EVENTS_PER_PASS: usize = 128;
/// How long the loop sleeps at most, so that a change of phase is noticed.
const PASS_MAX: Duration = Duration::from_millis(20);
/// Tokens from here on belong to publishers; connections are numbered from 0.
pub const FIRST_PUBLISHER_TOKEN: u64 = 1 << 32;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum State {
    #[default]
    Idle,
    Connecting,
    Upgrading,
    Greeting,
    Live,
    Over,
}

#[derive(Default)]
pub(super) struct Connection {
    pub socket: Option<TcpStream>,
    pub state: State,
    /// Replies to the first frame that have not come yet.
    pub awaited: u32,
    /// Start of a frame whose end has not come yet.
    pub stash: Vec<u8>,
    pub assembler: Assembler,
    pub outbox: Outbox,
    /// When it should have been opened by the schedule, or was.
    pub started_ns: u64,
    /// When the present step of opening it began, which has a time limit.
    pub step_ns: u64,
    /// The server has answered the connect command.
    pub is_up: bool,
}

impl State {
    /// On its way to being live.
    pub fn is_opening(self) -> bool {
        matches!(self, Self::Connecting | Self::Upgrading | Self::Greeting)
    }
}

/// What is known of a client beyond a single connection.
#[derive(Clone, Copy, Default)]
pub(super) struct Life {
    /// It had all its subscriptions once.
    pub has_lived: bool,
    /// Number of its connections that ended so far.
    pub ended: u32,
    /// Attempts to connect since the last success.
    pub attempts: u32,
    /// Node of the present connection.
    pub node: usize,
    /// When the last live connection was cut; 0 while it is live.
    pub cut_ns: u64,
    /// When the first attempt after that began.
    pub first_attempt_ns: u64,
    /// Identity of the client id it was given last; 0 before the first connect.
    pub client: u64,
    /// It stays away for good, as planned.
    pub is_away: bool,
}

/// One thread's part of a run.
pub(super) struct Worker {
    pub plan: Arc<Plan>,
    pub shared: Arc<Shared>,
    pub index: usize,
    /// Index of the first of its connections among all.
    pub first: usize,
    pub epoll: sys::Epoll,
    pub connections: Vec<Connection>,
    pub lives: Vec<Life>,
    pub next_to_open: usize,
    /// When the first connection was opened, from which the others are scheduled.
    pub opened_from_ns: Option<u64>,
    pub opening: usize,
    pub opening_max: usize,
    pub next_timeout_check_ns: u64,
    /// What is to be done later, the soonest first.
    pub timers: BinaryHeap<Reverse<(u64, Timer)>>,
    /// Of subscriptions being asked for again on a live connection: the attempts so far.
    pub resubscribing: HashMap<usize, u32>,
    /// Connections with all their subscriptions.
    pub live_count: usize,
    /// The drop of many connections at once is done.
    pub has_dropped: bool,
    /// Steady drops: since when, and how many so far.
    pub dropping_since_ns: Option<u64>,
    pub dropped_steadily: u64,
    pub events: Events,
    publishers: Option<Publishers>,
    buffer: Vec<u8>,
    pub scanner: Scanner,
    /// What a publication of each channel looks like before its data, once it has been decoded in full.
    pub familiar: Vec<Vec<u8>>,
    pub audit: Audit,
    /// Of each subscription: it was answered once.
    pub subscribed: Vec<bool>,
    /// Of each subscription that the server can recover, when resuming.
    pub positions: Vec<Option<Position>>,
    pub mask: [u8; 4],
    pub tally: Tally,
    /// When deliveries count as late, in nanoseconds after the intended time.
    pub late_after_ns: u64,
    load: Option<LoadWindow>,
}

/// CPU of the worker at the start of the schedule.
struct LoadWindow {
    from_ns: u64,
    cpu_ns: u64,
    run_delay_ns: Option<u64>,
}

/// What a worker counts apart from the audit.
pub struct Tally {
    /// From the start of a connection to the last subscribe reply.
    pub connect_us: Histogram<u64>,
    /// From the intended send time to the delivery.
    pub latency_us: Histogram<u64>,
    /// Why connections could not be opened.
    pub refused: Reasons,
    /// Why open ones ended.
    pub lost: Reasons,
    /// Connections resumed after a cut.
    pub resumed: u64,
    /// Why connections that were up ended, whether they came back or not.
    pub cuts: Reasons,
    /// Why attempts to connect failed, in short, whether they were repeated or not.
    pub failed_attempts: Reasons,
    /// From the first attempt after a cut to the connect reply.
    pub reconnect_us: Histogram<u64>,
    /// From the cut to the connect reply.
    pub cut_to_connect_us: Histogram<u64>,
    /// From the cut to the last subscribe reply.
    pub cut_to_live_us: Histogram<u64>,
    /// Resubscribes answered with `recovered: true`.
    pub recovered: u64,
    /// Resubscribes that asked to recover and were answered otherwise.
    pub not_recovered: u64,
    /// Connects after a cut that were given the client id they had before.
    pub client_kept: u64,
    /// Those that were given another one.
    pub client_changed: u64,
    /// When something last went wrong: a cut, a late delivery, a subscription taken away or not granted.
    pub last_trouble_ns: u64,
    /// Channel index and client identity of those in presence channels that stay away.
    pub away: Vec<(u32, u64)>,
    /// What happened when.
    pub timeline: Timeline,
    /// Pings answered.
    pub pings: u64,
    /// Messages of other runs, ignored.
    pub foreign: u64,
    /// Bytes read since the schedule started.
    pub received_bytes: u64,
    /// Successful reads since the schedule started.
    pub reads: u64,
    /// Bytes of all delivered messages, without WebSocket headers.
    pub message_bytes: u64,
    /// When the last message was delivered.
    pub last_delivery_ns: u64,
    /// CPU use while the schedule ran.
    pub busy: Busy,
    /// What ended the worker early.
    pub broken: Option<String>,
}

/// How busy threads were while the schedule ran.
#[derive(Clone, Copy, Debug, Default)]
pub struct Busy {
    /// Wall-clock time of the window.
    pub wall_ns: u64,
    /// CPU time used.
    pub cpu_ns: u64,
    /// Time spent ready to run without a core; None where the kernel does not say.
    pub run_delay_ns: Option<u64>,
}

/// What a worker hands in.
pub struct Harvest {
    /// Join and leave events it saw.
    pub events: Events,
    /// Index of its first connection among all.
    pub first: usize,
    /// Its audit, to be closed with the ledger of the publishers.
    pub audit: Audit,
    /// Its counts.
    pub tally: Tally,
    /// Of the publishers, if it had them.
    pub published: Option<Published>,
}

/// What became of the messages.
pub struct Published {
    /// Outcome of each message.
    pub outcomes: Vec<Outcome>,
    /// From the intended send time to the answer.
    pub ack_us: Histogram<u64>,
    /// Why publishes failed.
    pub failures: Reasons,
    /// When publishes were answered or given up.
    pub timeline: Timeline,
    /// When a publish last failed or was answered late.
    pub last_trouble_ns: u64,
}

impl Worker {
    /// The worker with the connections `from..to`; worker 0 also publishes.
    pub fn new(plan: Arc<Plan>, shared: Arc<Shared>, index: usize, from: usize, to: usize) -> io::Result<Self> {
        let channels = plan.layout.channels_between(from, to).to_vec();
        let subscriptions = channels.len();
        Ok(Self {
            epoll: sys::Epoll::new()?,
            connections: (from..to).map(|_| Connection::default()).collect(),
            lives: vec![Life::default(); to - from],
            next_to_open: 0,
            opened_from_ns: None,
            opening: 0,
            opening_max: plan.opening_max.div_ceil(plan.threads).max(1),
            next_timeout_check_ns: 0,
            timers: BinaryHeap::new(),
            resubscribing: HashMap::new(),
            live_count: 0,
            has_dropped: false,
            dropping_since_ns: None,
            dropped_steadily: 0,
            events: Events::default(),
            publishers: (index == 0).then(|| Publishers::new(&plan, shared.origin_ns)).flatten(),
            buffer: vec![0; READ_BYTES],
            scanner: Scanner::default(),
            familiar: vec![Vec::new(); plan.channels.len()],
            audit: Audit::new(plan.schedule, channels),
            subscribed: vec![false; subscriptions],
            positions: vec![None; if plan.resumes() { subscriptions } else { 0 }],
            mask: rand::rng().random(),
            tally: Tally::new(shared.origin_ns),
            late_after_ns: plan.late_after.map_or(u64::MAX, |late| late.as_nanos() as u64),
            load: None,
            first: from,
            index,
            plan,
            shared,
        })
    }

    /// Runs until the scenario says stop, and hands in the results.
    pub fn run(mut self) -> Harvest {
        let mut events = vec![sys::Event::EMPTY; EVENTS_PER_PASS];
        while self.shared.phase() < Phase::Stop {
            if let Err(error) = self.pass(&mut events) {
                self.tally.broken = Some(error.to_string());
                self.shared.broken.store(true, Ordering::Release);
                break;
            }
        }
        self.close_window(sys::monotonic_ns());
        self.end_those_not_live();
        self.say_goodbye();
        Harvest {
            audit: self.audit,
            tally: self.tally,
            events: self.events,
            first: self.first,
            published: self.publishers.map(Publishers::finish),
        }
    }

    /// Ends open connections as the protocol wants it. Errors do not matter any more.
    fn say_goodbye(&mut self) {
        let mut close = Vec::new();
        write_frame(CLOSE, &1000u16.to_be_bytes(), Some(self.mask), &mut close);
        for Connection { socket, outbox, .. } in &mut self.connections {
            if let Some(socket) = socket {
                let _ = outbox.write(socket, &close);
            }
        }
    }

    fn pass(&mut self, events: &mut [sys::Event]) -> io::Result<()> {
        let now = sys::monotonic_ns();
        self.watch_window(now);
        let mut wait_until = now + PASS_MAX.as_nanos() as u64;
        self.open_due(now, &mut wait_until);
        self.drop_due(now);
        self.timers_due(now, &mut wait_until);
        self.check_timeouts(now);
        let start = self.shared.start_ns().filter(|_| self.shared.phase() == Phase::Load);
        if let Some(publishers) = &mut self.publishers {
            publishers.pump(&self.epoll, now, start, self.shared.publishing_stopped_ns())?;
            wait_until = wait_until.min(publishers.next_due_ns(now, start).unwrap_or(u64::MAX));
            self.shared.progress[self.index].published.store(publishers.settled(), Ordering::Relaxed);
            self.shared.publishers_ready.store(publishers.are_ready(), Ordering::Release);
            self.shared.published.store(publishers.are_done(now), Ordering::Release);
        }
        let timeout = Duration::from_nanos(wait_until.saturating_sub(sys::monotonic_ns()));
        let ready = self.epoll.wait(events, timeout)?.len();
        for event in &events[..ready] {
            if event.token() >= FIRST_PUBLISHER_TOKEN {
                if let Some(publishers) = &mut self.publishers {
                    publishers.ready((event.token() - FIRST_PUBLISHER_TOKEN) as usize, *event);
                }
                continue;
            }
            let connection = event.token() as usize;
            if event.is_writable() {
                let result = self.writable(connection);
                self.cut_on_error(connection, result);
            }
            if event.is_readable() {
                self.readable(connection, event.is_closing());
            }
        }
        self.progress().delivered.store(self.audit.delivered(), Ordering::Relaxed);
        self.progress().live.store(self.live_count as u64, Ordering::Relaxed);
        Ok(())
    }

    pub fn progress(&self) -> &Progress {
        &self.shared.progress[self.index]
    }

    fn writable(&mut self, connection: usize) -> Result<(), Cut> {
        let Connection { socket, state, outbox, .. } = &mut self.connections[connection];
        let Some(socket) = socket else { return Ok(()) };
        if *state == State::Connecting {
            if let Some(error) = socket.take_error()? {
                return Err(Cut::Io(error));
            }
            *state = State::Upgrading;
            let (client, node) = (self.first + connection, self.lives[connection].node);
            let (host, path) = (&self.plan.nodes.target(node).host, self.plan.path_of(client, node));
            return outbox.write(socket, &upgrade_request(host, &path, self.plan.subprotocol()));
        }
        outbox.flush(socket)
    }

    fn readable(&mut self, connection: usize, to_the_end: bool) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.read_all(connection, &mut buffer, to_the_end);
        self.buffer = buffer;
        self.cut_on_error(connection, result);
    }

    /// Reads what is there. A short read means that no more is there, and saves the call that would only say so.
    fn read_all(&mut self, connection: usize, buffer: &mut Vec<u8>, to_the_end: bool) -> Result<(), Cut> {
        loop {
            let Connection { socket, stash, .. } = &mut self.connections[connection];
            let Some(socket) = socket else { return Ok(()) };
            let kept = stash.len();
            if buffer.len() < kept + READ_BYTES {
                buffer.resize(kept + READ_BYTES, 0);
            }
            let count = match socket.read(&mut buffer[kept..kept + READ_BYTES]) {
                Ok(0) => return Err(Cut::Ended),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Cut::Io(error)),
            };
            buffer[..kept].copy_from_slice(&std::mem::take(stash));
            if self.load.is_some() {
                self.tally.received_bytes += count as u64;
                self.tally.reads += 1;
            }
            let input = &buffer[..kept + count];
            let used = self.consume(connection, input, sys::monotonic_ns())?;
            if used < input.len() {
                self.connections[connection].stash = input[used..].to_vec();
            }
            if count < READ_BYTES && !to_the_end {
                return Ok(());
            }
        }
    }

    /// The server has answered the connect command with this client id.
    pub fn up(&mut self, connection: usize, client: u64, now: u64) {
        self.connections[connection].is_up = true;
        let life = &mut self.lives[connection];
        life.attempts = 0;
        let before = std::mem::replace(&mut life.client, client);
        if life.cut_ns == 0 {
            return;
        }
        self.tally.cut_to_connect_us.saturating_record(now.saturating_sub(life.cut_ns) / 1000);
        self.tally.reconnect_us.saturating_record(now.saturating_sub(life.first_attempt_ns) / 1000);
        if before == client {
            self.tally.client_kept += 1;
        } else {
            self.tally.client_changed += 1;
        }
    }

    /// The first frame was answered in full.
    pub fn live(&mut self, connection: usize, now: u64) {
        self.set_opening(self.opening - 1, now);
        self.live_count += 1;
        self.tally.timeline.count(now, Event::Ready);
        self.connections[connection].state = State::Live;
        let started_ns = self.connections[connection].started_ns;
        let life = &mut self.lives[connection];
        let cut_ns = std::mem::take(&mut life.cut_ns);
        life.first_attempt_ns = 0;
        if std::mem::replace(&mut life.has_lived, true) {
            self.tally.resumed += 1;
            self.tally.cut_to_live_us.saturating_record(now.saturating_sub(cut_ns) / 1000);
            self.tally.last_trouble_ns = self.tally.last_trouble_ns.max(now);
            self.progress().resumed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.tally.connect_us.saturating_record(now.saturating_sub(started_ns) / 1000);
        self.progress().connected.fetch_add(1, Ordering::Relaxed);
    }

    pub fn cut_on_error(&mut self, connection: usize, result: Result<(), Cut>) {
        if let Err(cut) = result {
            self.cut(connection, cut);
        }
    }

    /// First subscription of a connection, counted within this worker, and how many there are.
    pub fn subscriptions_of(&self, connection: usize) -> (usize, usize) {
        let layout = &self.plan.layout;
        let from = layout.first_subscription(self.first + connection) - layout.first_subscription(self.first);
        (from, layout.channels_of(self.first + connection).len())
    }

    /// Starts and ends the window in which the client's own load is measured: exactly the schedule.
    fn watch_window(&mut self, now: u64) {
        let Some(start) = self.shared.start_ns() else { return };
        if self.load.is_none() && now >= start && self.tally.busy.wall_ns == 0 {
            let run_delay_ns = procfs::own_run_delay_ns();
            self.load = Some(LoadWindow { from_ns: now, cpu_ns: sys::thread_cpu_ns(), run_delay_ns });
        }
        if now >= start + self.plan.schedule.duration_ns() {
            self.close_window(now);
        }
    }

    fn close_window(&mut self, now: u64) {
        let Some(window) = &self.load else { return };
        if self.tally.busy.wall_ns == 0 {
            let run_delay = procfs::own_run_delay_ns().zip(window.run_delay_ns);
            self.tally.busy = Busy {
                wall_ns: (now - window.from_ns).max(1),
                cpu_ns: sys::thread_cpu_ns() - window.cpu_ns,
                run_delay_ns: run_delay.map(|(now, then)| now.saturating_sub(then)),
            };
        }
    }
}

impl Tally {
    fn new(origin_ns: u64) -> Self {
        Self {
            cuts: Reasons::default(),
            failed_attempts: Reasons::default(),
            reconnect_us: microseconds(),
            cut_to_connect_us: microseconds(),
            cut_to_live_us: microseconds(),
            recovered: 0,
            not_recovered: 0,
            client_kept: 0,
            client_changed: 0,
            last_trouble_ns: 0,
            away: Vec::new(),
            timeline: Timeline::new(origin_ns),
            connect_us: microseconds(),
            latency_us: microseconds(),
            refused: Reasons::default(),
            lost: Reasons::default(),
            resumed: 0,
            pings: 0,
            foreign: 0,
            received_bytes: 0,
            reads: 0,
            message_bytes: 0,
            last_delivery_ns: 0,
            busy: Busy::default(),
            broken: None,
        }
    }
}
