//! A shard: one core's listener, connections, sessions and channels, on one thread with its own runtime.
//!
//! A connection lives and dies on its shard, so nothing of it needs a lock. Reading order: [`connection`] (socket,
//! session, task), `drive` (carrying out what sessions and the hub ask for), `interest` (subscribing channels at the
//! backplane, many at a time), `pass` (fan-out), [`batch`] (what a pass gathers per connection), `proxies` (asking the
//! application), `resume` and `verdicts` (what outlives a connection), [`inbox`] (what other threads hand in), [`command`] and `commands` (what the API asks),
//! [`wheel`], `users`, `losses`.

pub mod batch;
pub mod command;
mod commands;
pub mod connection;
mod drive;
pub mod inbox;
mod interest;
mod losses;
mod moving;
mod pass;
mod perform;
mod proxies;
mod resume;
mod users;
mod verdicts;
pub mod wheel;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use protocol::Encoding;
use session::Session;
use session::io::{Input, Output};
use session::time::{Now, Tick};
use slab::Slab;

use self::batch::Batches;
use self::connection::{Arrival, Connection, ConnectionTask, Phase};
use self::inbox::Inbox;
use self::interest::Gathered;
use self::losses::Losses;
use self::resume::{Departed, Resumables};
use self::users::Users;
use self::wheel::Wheel;
use crate::admission::Gate;
use crate::hub::shard_hub::HubCounters;
use crate::hub::{ConnKey, Effect, Hub, HubSettings};
use crate::metrics::{ShardGauges, ShardMeters};
use crate::node::Node;
use crate::transport::socket::{Socket, Stream};

/// Bytes read from a socket in one go, shared by all connections of a shard.
const SCRATCH_BYTES: usize = 64 << 10;

/// How long a closing connection may wait for the peer's close frame (protocol section 5.3).
const CLOSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Entries for which a list that is used again keeps its memory.
const SPARE_KEPT: usize = 1024;
/// Codes of a client's own close frame that say that it will not come back: a call of `disconnect()` in the SDKs closes
/// with 1000 or without a code, a browser that leaves a page with 1001.
const GOODBYES: [u16; 3] = [1000, 1001, 1005];

/// Sizes that the socket side of a connection needs on every event.
#[derive(Clone, Copy, Debug)]
pub struct IoLimits {
    /// Largest client message; above it the connection is closed with 1009.
    pub message_bytes: usize,
    /// Bytes that may wait for a peer; above it the connection is closed with 3008.
    pub queue_bytes: usize,
}

/// Something to do before the current event is over.
enum Work {
    Input(Rc<Connection>, Input),
    Output(Rc<Connection>, Output),
    Effect(Effect),
    /// Tell whoever waits that what was queued before is done.
    Acknowledge(Box<resume::Waiting>),
}

/// One core's worth of gateway. Lives on its own thread.
pub struct Shard {
    /// Its number, from 0.
    pub index: usize,
    /// What all shards share.
    pub node: Arc<Node>,
    inbox: Arc<Inbox>,
    hub: RefCell<Hub>,
    connections: RefCell<Slab<Rc<Connection>>>,
    next_generation: Cell<u32>,
    users: RefCell<Users>,
    resumables: RefCell<Resumables>,
    departed: RefCell<Departed>,
    losses: RefCell<Losses>,
    reads_under_way: Cell<usize>,
    reads_waiting: RefCell<VecDeque<Effect>>,
    interest: RefCell<Gathered>,
    wheel: RefCell<Wheel>,
    batches: RefCell<Batches>,
    /// Connections with a batch.
    dirty: RefCell<Vec<Rc<Connection>>>,
    /// Connections with replies.
    touched: RefCell<Vec<Rc<Connection>>>,
    work: RefCell<VecDeque<Work>>,
    running: Cell<bool>,
    /// The fan-out task is at work: it will see what becomes dirty.
    passing: Cell<bool>,
    scratch: RefCell<Option<Box<[u8]>>>,
    /// Emptied reply buffers and output lists, kept to be used again.
    spare_replies: RefCell<Vec<Vec<u8>>>,
    outputs: RefCell<Vec<Output>>,
    meters: ShardMeters,
    reported: RefCell<Reported>,
    draining: Cell<bool>,
    /// The connections that a drain has still to close, in random order.
    to_close: RefCell<Vec<ConnKey>>,
}

/// What was last added to the node's gauges and counters by this shard.
#[derive(Default)]
struct Reported {
    hub: HubCounters,
    gauges: ShardGauges,
    ticks: u32,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Shard>>> = const { RefCell::new(None) };
}

impl Shard {
    /// A shard without connections.
    pub fn new(index: usize, node: Arc<Node>, inbox: Arc<Inbox>, hub: HubSettings) -> Rc<Self> {
        let now = node.now().tick;
        Rc::new(Self {
            index,
            inbox,
            hub: RefCell::new(Hub::new(hub)),
            connections: RefCell::new(Slab::new()),
            next_generation: Cell::new(0),
            users: RefCell::default(),
            resumables: RefCell::default(),
            departed: RefCell::default(),
            losses: RefCell::new(Losses::new(hub.losses_per_tick)),
            reads_under_way: Cell::new(0),
            reads_waiting: RefCell::default(),
            interest: RefCell::default(),
            wheel: RefCell::new(Wheel::new(now)),
            batches: RefCell::default(),
            dirty: RefCell::default(),
            touched: RefCell::default(),
            work: RefCell::default(),
            running: Cell::new(false),
            passing: Cell::new(false),
            scratch: RefCell::new(Some(vec![0; SCRATCH_BYTES].into())),
            spare_replies: RefCell::default(),
            outputs: RefCell::default(),
            meters: ShardMeters::new(),
            reported: RefCell::default(),
            draining: Cell::new(false),
            to_close: RefCell::default(),
            node,
        })
    }

    /// Makes this the shard of the calling thread.
    pub fn enter(self: &Rc<Self>) {
        CURRENT.with(|current| *current.borrow_mut() = Some(self.clone()));
    }

    /// The shard of the calling thread. `None` on other threads.
    pub fn current() -> Option<Rc<Self>> {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// Both clocks, now.
    pub fn now(&self) -> Now {
        self.node.now()
    }

    /// True once no new connection is wanted.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Takes over an upgraded stream: from here on it is a connection of this shard.
    pub fn adopt(self: &Rc<Self>, stream: Stream, encoding: Encoding, first_bytes: &[u8], arrival: Arrival) {
        let now = self.now();
        let runtime = self.node.runtime();
        let resumable = arrival.session.as_deref().filter(|_| runtime.sessions.enabled);
        let new = if resumable.is_some() { Session::resumable } else { Session::new };
        let session = new(&runtime.context(), now, backplane::ClientId::random());
        let generation = self.next_generation.get();
        self.next_generation.set(generation.wrapping_add(1));
        let connection = {
            let mut connections = self.connections.borrow_mut();
            let entry = connections.vacant_entry();
            let index = u32::try_from(entry.key()).expect("fewer than 2^32 connections fit in memory");
            let key = ConnKey { index, generation };
            let socket = Socket::new(stream);
            let mut connection = Connection::new(key, encoding, session, socket, first_bytes);
            connection.accepted_s = u32::try_from(now.tick.0 / 1000).unwrap_or(u32::MAX);
            connection.address = arrival.address.map_or(0, |address| self.node.placing.returns.address(address));
            let connection = Rc::new(connection);
            connection.slot.set(arrival.slot.map(Box::new));
            connection.forwarded.set(arrival.forwarded);
            entry.insert(connection.clone());
            connection
        };
        if let Some(id) = resumable {
            self.resumables.borrow_mut().insert(connection.key.index, id);
        }
        self.hub.borrow_mut().attach(connection.key);
        self.node.connection_opened();
        self.arm(&connection, now.tick);
        tokio::task::spawn_local(ConnectionTask { shard: self.clone(), connection: connection.clone() });
        if self.draining.get() {
            self.tell_to_go(&connection, session::close::CloseCode::GoingAway);
        }
    }

    /// The socket of a connection is over: its session cleans up, its place is freed.
    pub(crate) fn finish(self: &Rc<Self>, connection: &Rc<Connection>) {
        if connection.phase.get() == Phase::Gone {
            return;
        }
        let was_open = connection.phase.replace(Phase::Gone) == Phase::Open;
        let peer_close = {
            let mut io = connection.io.borrow_mut();
            io.socket = None;
            io.leftover = None;
            io.reader.peer_close()
        };
        connection.corked.take();
        connection.slot.take();
        self.unindex(connection);
        let said_goodbye = was_open && peer_close.is_some_and(|code| GOODBYES.contains(&code));
        self.input(connection, if said_goodbye { Input::Left } else { Input::Gone });
        self.end_resumable(connection, peer_close.filter(|_| !was_open));
        self.detach_from_hub(connection);
        self.node.connection_closed();
        if connection.going.take() {
            self.node.placing.count_gone();
        }
        self.release_if_over(connection);
    }

    /// Frees the place of a connection that is gone and whose joins are all answered.
    fn release_if_over(&self, connection: &Rc<Connection>) {
        if connection.phase.get() == Phase::Gone && connection.joins_in_flight.get() == 0 {
            let mut connections = self.connections.borrow_mut();
            let index = connection.key.index as usize;
            if connections.get(index).is_some_and(|entry| Rc::ptr_eq(entry, connection)) {
                connections.remove(index);
                if connections.is_empty() {
                    connections.shrink_to_fit();
                }
            }
        }
    }

    fn connection(&self, key: ConnKey) -> Option<Rc<Connection>> {
        self.connections.borrow().get(key.index as usize).filter(|connection| connection.key == key).cloned()
    }

    fn unindex(&self, connection: &Connection) {
        if connection.indexed.replace(false) {
            let session = connection.session.borrow();
            if let Some(info) = session.info() {
                self.node.user_limits.leave(&info.user);
                self.users.borrow_mut().remove(&info.user, connection.key.index);
            }
        }
    }

    fn detach_from_hub(self: &Rc<Self>, connection: &Connection) {
        let now = self.now().tick;
        self.with_hub(|hub, port| hub.detach(connection.key, now, port));
        self.run();
    }

    /// Sizes for the socket side, as configured now.
    pub(crate) fn io_limits(&self) -> IoLimits {
        self.node.runtime().io
    }

    /// The buffer to read into; give it back.
    fn scratch(&self) -> Box<[u8]> {
        self.scratch.borrow_mut().take().unwrap_or_else(|| vec![0; SCRATCH_BYTES].into())
    }

    fn give_back_scratch(&self, scratch: Box<[u8]>) {
        *self.scratch.borrow_mut() = Some(scratch);
    }

    /// Puts the session's next deadline (or the closing deadline) on the wheel, if it is earlier than what is there.
    fn arm(&self, connection: &Connection, now: Tick) {
        let deadline = match connection.phase.get() {
            Phase::Open => connection.session.borrow().next_deadline(),
            Phase::Closing | Phase::Discarding => Some(connection.drop_at.get()),
            Phase::Gone => None,
        };
        let Some(deadline) = deadline else { return };
        let mut wheel = self.wheel.borrow_mut();
        let slot = wheel.slot_for(deadline.max(now));
        if slot < connection.armed.get() {
            connection.armed.set(slot);
            wheel.insert(slot, connection.key);
        }
    }

    /// Looks at every connection whose slot has come.
    fn turn_wheel(self: &Rc<Self>) {
        let now = self.now();
        loop {
            let Some((slot, due)) = self.wheel.borrow_mut().next_due(now.tick) else { return };
            for key in due {
                let Some(connection) = self.connection(key) else { continue };
                if connection.armed.get() != slot {
                    continue;
                }
                connection.armed.set(u64::MAX);
                match connection.phase.get() {
                    Phase::Open => {
                        let deadline = connection.session.borrow().next_deadline();
                        if deadline.is_some_and(|deadline| deadline <= now.tick) {
                            self.input(&connection, Input::Deadline);
                        }
                    }
                    Phase::Closing | Phase::Discarding if connection.drop_at.get() <= now.tick => {
                        self.finish(&connection);
                        connection.wake();
                    }
                    Phase::Closing | Phase::Discarding | Phase::Gone => {}
                }
                self.arm(&connection, now.tick);
            }
        }
    }

    /// One input for a session, and everything that follows from it.
    pub(crate) fn input(self: &Rc<Self>, connection: &Rc<Connection>, input: Input) {
        self.enqueue(Work::Input(connection.clone(), input));
        self.run();
    }

    fn enqueue(&self, work: Work) {
        self.work.borrow_mut().push_back(work);
    }

    /// Gives back what a storm has left in the lists that are used again by every event.
    fn shrink_spare(&self) {
        self.outputs.borrow_mut().shrink_to(SPARE_KEPT);
        self.touched.borrow_mut().shrink_to(SPARE_KEPT);
        self.dirty.borrow_mut().shrink_to(SPARE_KEPT);
        self.work.borrow_mut().shrink_to(SPARE_KEPT);
        self.reads_waiting.borrow_mut().shrink_to(SPARE_KEPT);
    }

    /// Hands on what was counted; the gauges, which look at every connection, once a second.
    fn report(&self) {
        let mut reported = self.reported.borrow_mut();
        let counters = self.hub.borrow().counters();
        self.meters.report(&reported.hub, &counters);
        reported.hub = counters;
        reported.ticks += 1;
        if reported.ticks.is_multiple_of(10) {
            self.shrink_spare();
            let hub = self.hub.borrow();
            let queue_bytes = self.connections.borrow().iter().map(|(_, connection)| connection.queued_bytes()).sum();
            let gauges = ShardGauges {
                handshakes_waiting: Gate::current().map_or(0, |gate| gate.waiting()),
                queue_bytes,
                channels: hub.channel_count(),
                subscriptions: hub.subscription_count(),
            };
            self.meters.report_gauges(&reported.gauges, &gauges);
            reported.gauges = gauges;
        }
    }
}
