//! One receiving thread: its connections, its epoll loop, its share of the audit.
//!
//! ```text
//! Idle -> Connecting -> Upgrading -> Greeting -> Live
//!   ^         |             |           |         |
//!   |         +-------------+-----------+---------+--> Over
//!   +------------------- only with --resume ------+
//! ```

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;
use rand::Rng;

use super::plan::Plan;
use super::publisher::Publishers;
use super::shared::{Phase, Progress, Reasons, Shared, microseconds};
use super::socket::{Cut, Outbox, open};
use crate::audit::{Audit, Outcome};
use crate::frame::{Assembler, CLOSE, write_frame};
use crate::http::upgrade_request;
use crate::stamp::Scanner;
use crate::wire::Position;
use crate::{procfs, sys};

/// Bytes taken from a socket at once. Large, because a server that coalesces sends much in one piece, and shared by all
/// connections of a worker.
const READ_BYTES: usize = 256 * 1024;
/// Events handled before the loop looks at the schedule again, which keeps publishing punctual while much arrives.
const EVENTS_PER_PASS: usize = 128;
/// How long the loop sleeps at most, so that a change of phase is noticed.
const PASS_MAX: Duration = Duration::from_millis(20);
/// How often connections that are being opened are checked for having taken too long.
const TIMEOUT_CHECK_NS: u64 = 100_000_000;
/// Longest wait before a cut connection is tried again; the actual one is random, as that of the SDKs.
const RESUME_DELAY_NS: u64 = 300_000_000;
/// Times one connection is resumed before it counts as lost.
const RESUMES_MAX: u32 = 1000;
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
    pub resumes: u32,
}

/// One thread's part of a run.
pub(super) struct Worker {
    pub plan: Arc<Plan>,
    pub shared: Arc<Shared>,
    index: usize,
    /// Index of the first of its connections among all.
    pub first: usize,
    epoll: sys::Epoll,
    pub connections: Vec<Connection>,
    next_to_open: usize,
    /// When the first connection was opened, from which the others are scheduled.
    opened_from_ns: Option<u64>,
    opening: usize,
    opening_max: usize,
    next_timeout_check_ns: u64,
    /// Cut connections and when to try them again.
    resumes: VecDeque<(u64, usize)>,
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
}

impl Worker {
    /// The worker with the connections `from..to`; worker 0 also publishes.
    pub fn new(plan: Arc<Plan>, shared: Arc<Shared>, index: usize, from: usize, to: usize) -> io::Result<Self> {
        let channels = plan.layout.channels_between(from, to).to_vec();
        let subscriptions = channels.len();
        Ok(Self {
            epoll: sys::Epoll::new()?,
            connections: (from..to).map(|_| Connection::default()).collect(),
            next_to_open: 0,
            opened_from_ns: None,
            opening: 0,
            opening_max: plan.opening_max.div_ceil(plan.threads).max(1),
            next_timeout_check_ns: 0,
            resumes: VecDeque::new(),
            publishers: (index == 0).then(|| Publishers::new(&plan)).flatten(),
            buffer: vec![0; READ_BYTES],
            scanner: Scanner::default(),
            familiar: vec![Vec::new(); plan.channels.len()],
            audit: Audit::new(plan.schedule, channels),
            subscribed: vec![false; subscriptions],
            positions: vec![None; if plan.resume { subscriptions } else { 0 }],
            mask: rand::rng().random(),
            tally: Tally::new(),
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
        self.say_goodbye();
        Harvest { audit: self.audit, tally: self.tally, published: self.publishers.map(Publishers::finish) }
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
        self.resume_due(now);
        self.check_timeouts(now);
        let start = self.shared.start_ns().filter(|_| self.shared.phase() == Phase::Load);
        if let Some(publishers) = &mut self.publishers {
            publishers.pump(&self.epoll, now, start)?;
            wait_until = wait_until.min(publishers.next_due_ns(start).unwrap_or(u64::MAX));
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
        Ok(())
    }

    fn progress(&self) -> &Progress {
        &self.shared.progress[self.index]
    }

    /// Opens what is due, bounded by how many may be on their way at a time.
    fn open_due(&mut self, now: u64, wait_until: &mut u64) {
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
            self.open(connection, started_ns);
        }
    }

    fn open(&mut self, connection: usize, started_ns: u64) {
        self.opening += 1;
        self.connections[connection].started_ns = started_ns;
        self.connections[connection].state = State::Connecting;
        let source = self.plan.sources.of(self.first + connection);
        let opened = open(self.plan.target.address, source).and_then(|socket| {
            self.epoll.add_edge(&socket, connection as u64)?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => self.connections[connection].socket = Some(socket),
            Err(error) => self.cut(connection, Cut::Io(error)),
        }
    }

    fn resume_due(&mut self, now: u64) {
        while let Some((due, connection)) = self.resumes.front().copied()
            && due <= now
            && self.opening < self.opening_max
        {
            self.resumes.pop_front();
            self.open(connection, now);
        }
    }

    fn check_timeouts(&mut self, now: u64) {
        if self.opening == 0 || now < self.next_timeout_check_ns {
            return;
        }
        self.next_timeout_check_ns = now + TIMEOUT_CHECK_NS;
        let limit = self.plan.connect_timeout.as_nanos() as u64;
        for connection in 0..self.next_to_open {
            let Connection { state, started_ns, .. } = &self.connections[connection];
            let opening = matches!(state, State::Connecting | State::Upgrading | State::Greeting);
            if opening && now.saturating_sub(*started_ns) > limit {
                self.cut(connection, Cut::Timeout);
            }
        }
    }

    fn writable(&mut self, connection: usize) -> Result<(), Cut> {
        let Connection { socket, state, outbox, .. } = &mut self.connections[connection];
        let Some(socket) = socket else { return Ok(()) };
        if *state == State::Connecting {
            if let Some(error) = socket.take_error()? {
                return Err(Cut::Io(error));
            }
            *state = State::Upgrading;
            let Plan { target, .. } = &*self.plan;
            let request = upgrade_request(&target.host, &target.path, self.plan.subprotocol());
            return outbox.write(socket, &request);
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

    /// The first frame was answered in full.
    pub fn live(&mut self, connection: usize, now: u64) {
        self.opening -= 1;
        let Connection { state, started_ns, resumes, .. } = &mut self.connections[connection];
        *state = State::Live;
        if *resumes > 0 {
            self.tally.resumed += 1;
            return;
        }
        self.tally.connect_us.saturating_record(now.saturating_sub(*started_ns) / 1000);
        self.progress().connected.fetch_add(1, Ordering::Relaxed);
    }

    fn cut_on_error(&mut self, connection: usize, result: Result<(), Cut>) {
        if let Err(cut) = result {
            self.cut(connection, cut);
        }
    }

    /// Ends a connection, or schedules it to be resumed.
    pub fn cut(&mut self, connection: usize, cut: Cut) {
        let was = self.connections[connection].state;
        if matches!(was, State::Idle | State::Over) {
            return;
        }
        if was != State::Live {
            self.opening -= 1;
        }
        let resumes = self.connections[connection].resumes;
        let never_live = was != State::Live && resumes == 0;
        self.connections[connection] = Connection { state: State::Over, resumes, ..Connection::default() };
        if never_live {
            self.tally.refused.count(&cut.to_string());
            self.progress().refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if self.plan.resume && !cut.is_terminal() && resumes < RESUMES_MAX {
            self.connections[connection].state = State::Idle;
            self.connections[connection].resumes += 1;
            // Delays differ only within the range, and connections wait in a queue: none waits much longer than that.
            let delay = rand::rng().random_range(RESUME_DELAY_NS / 10..RESUME_DELAY_NS);
            self.resumes.push_back((sys::monotonic_ns() + delay, connection));
            return;
        }
        self.tally.lost.count(&cut.to_string());
        self.progress().lost.fetch_add(1, Ordering::Relaxed);
        let (from, channels) = self.subscriptions_of(connection);
        (from..from + channels).for_each(|subscription| self.audit.ended(subscription));
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
    fn new() -> Self {
        Self {
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
