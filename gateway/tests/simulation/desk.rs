//! The connections of a shard, and the hub's way to them. Separate from the hub, because the hub calls in while it
//! works.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use backplane::{ClientId, Delivery, HistoryPage, Offset};
use gateway::hub::shard_hub::Port;
use gateway::hub::{ConnKey, Effect, Hub, Outgoing, ReadKind};
use protocol::Reply;
use session::Session;
use session::close::CloseCode;
use session::io::{Input, Output};
use session::time::{Now, Tick};
use slab::Slab;

use super::bus::{Bus, Downstream, SocketId};
use super::node::{Config, clocks};
use super::scenario::Plant;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Open,
    /// The close frame is on its way.
    Closing,
    /// Kept only while joins are under way.
    Gone,
}

pub struct Connection {
    pub key: ConnKey,
    pub socket: SocketId,
    pub session: Session,
    pub phase: Phase,
    pub joins_in_flight: u32,
    established: bool,
    /// Deliveries held back until the connect reply.
    pub corked: Option<Vec<Arc<Outgoing>>>,
}

impl Connection {
    pub fn user(&self) -> String {
        self.session.info().map(|info| info.user.as_str().to_owned()).unwrap_or_default()
    }
}

/// Something to do before the current event is over.
pub enum Work {
    Input(ConnKey, Input),
    Output(ConnKey, Output),
    Effect(Effect),
}

pub struct Desk {
    pub bus: Rc<RefCell<Bus>>,
    pub config: Rc<Config>,
    pub connections: Slab<Connection>,
    pub work: VecDeque<Work>,
    plant: Option<Plant>,
    /// For planted bugs: whom the delivery under way went to, and up to where the read under way has seen its channel.
    reached: BTreeSet<u32>,
    read_up_to: Option<(String, Offset)>,
}

impl Desk {
    pub fn new(bus: Rc<RefCell<Bus>>, config: Rc<Config>) -> Self {
        let plant = bus.borrow().scenario.plant;
        Self {
            bus,
            config,
            connections: Slab::new(),
            work: VecDeque::new(),
            plant,
            reached: BTreeSet::new(),
            read_up_to: None,
        }
    }

    pub fn now(&self) -> Now {
        clocks(self.bus.borrow().now())
    }

    pub fn admit(&mut self, socket: SocketId, generation: u32, now: Now, client: ClientId) -> ConnKey {
        let session = Session::new(&self.config.context(), now, client);
        let entry = self.connections.vacant_entry();
        let key = ConnKey { index: u32::try_from(entry.key()).expect("few connections"), generation };
        entry.insert(Connection {
            key,
            socket,
            session,
            phase: Phase::Open,
            joins_in_flight: 0,
            established: false,
            corked: None,
        });
        key
    }

    pub fn connection(&self, key: ConnKey) -> Option<&Connection> {
        self.connections.get(key.index as usize).filter(|connection| connection.key == key)
    }

    pub fn connection_mut(&mut self, key: ConnKey) -> Option<&mut Connection> {
        self.connections.get_mut(key.index as usize).filter(|connection| connection.key == key)
    }

    /// Connections whose deadline has come.
    pub fn overdue(&self, now: Tick) -> Vec<ConnKey> {
        let due = |connection: &&Connection| {
            connection.phase == Phase::Open && connection.session.next_deadline().is_some_and(|at| at <= now)
        };
        self.connections.iter().map(|(_, connection)| connection).filter(due).map(|connection| connection.key).collect()
    }

    /// Gives a session one input. Its replies are sent at once, its other outputs follow in order.
    pub fn feed(&mut self, key: ConnKey, input: Input) {
        let now = self.now();
        let config = self.config.clone();
        let Some(connection) = self.connection_mut(key) else { return };
        if matches!(input, Input::Joined { .. }) {
            connection.joins_in_flight -= 1;
        }
        let mut outputs = Vec::new();
        connection.session.handle(&config.context(), now, input, &mut outputs);
        let established = connection.session.is_established();
        for output in outputs {
            match output {
                Output::Send(reply) => {
                    self.reply(key, reply);
                    if established {
                        self.uncork(key);
                    }
                }
                other => self.work.push_back(Work::Output(key, other)),
            }
        }
        self.release_if_over(key);
    }

    /// The first reply of an established session is that to its connect: what waited for it follows.
    fn uncork(&mut self, key: ConnKey) {
        let Some(connection) = self.connection_mut(key) else { return };
        connection.established = true;
        for outgoing in connection.corked.take().unwrap_or_default() {
            self.append(key, &outgoing);
        }
    }

    /// Frees the place of a connection that is gone and whose joins are all answered.
    pub fn release_if_over(&mut self, key: ConnKey) {
        let over = |connection: &Connection| connection.phase == Phase::Gone && connection.joins_in_flight == 0;
        if self.connection(key).is_some_and(over) && !self.work.iter().any(|work| work.concerns(key)) {
            self.connections.remove(key.index as usize);
        }
    }

    pub fn reply(&mut self, key: ConnKey, reply: Reply) {
        self.send_frame(key, Downstream::Reply(Box::new(reply)));
    }

    fn append(&mut self, key: ConnKey, outgoing: &Arc<Outgoing>) {
        self.reached.insert(key.index);
        let Some(connection) = self.connection_mut(key) else { return };
        if connection.phase == Phase::Open && !connection.established {
            connection.corked.get_or_insert_default().push(outgoing.clone());
        } else {
            self.send_frame(key, Downstream::Delivery(outgoing.clone()));
        }
    }

    fn send_frame(&mut self, key: ConnKey, frame: Downstream) {
        let Some(connection) = self.connection(key).filter(|connection| connection.phase == Phase::Open) else {
            return;
        };
        if !self.bus.borrow_mut().send_down(connection.socket, frame) {
            self.work.push_back(Work::Input(key, Input::Close(CloseCode::Slow)));
        }
    }

    /// Sends the close frame, behind everything sent before where that is still worth while.
    pub fn close(&mut self, socket: SocketId, code: CloseCode) {
        let mut bus = self.bus.borrow_mut();
        if !code.flushes() {
            bus.discard(socket);
        }
        bus.send_down(socket, Downstream::Close(code));
    }

    // --- the hub, and what a planted bug makes of it ---

    pub fn deliver(&mut self, hub: &mut Hub, outgoing: &Arc<Outgoing>, now: Tick) {
        self.reached.clear();
        hub.deliver(outgoing, now, self);
        let positioned = matches!(outgoing.delivery, Delivery::Positioned { .. });
        if self.plant == Some(Plant::LateNotSkipping) && positioned && !self.reached.is_empty() {
            let subscribed = |connection: &&Connection| connection.session.subscription(&outgoing.channel).is_some();
            let connections = self.connections.iter().map(|(_, connection)| connection);
            let keys: Vec<_> = connections.filter(subscribed).map(|connection| connection.key).collect();
            for key in keys {
                if !self.reached.contains(&key.index) {
                    self.append(key, outgoing);
                }
            }
        }
    }

    pub fn read_done(&mut self, hub: &mut Hub, ticket: ReadKind, channel: &str, result: Result<HistoryPage, String>) {
        self.read_up_to = result.as_ref().ok().map(|page| (channel.to_owned(), page.top.offset));
        let now = self.now().tick;
        hub.read_done(ticket, result, now, self);
        self.read_up_to = None;
    }
}

impl Work {
    fn concerns(&self, key: ConnKey) -> bool {
        match self {
            Self::Input(of, _) | Self::Output(of, _) => *of == key,
            Self::Effect(_) => false,
        }
    }
}

impl Port for Desk {
    fn send(&mut self, conn_index: u32, outgoing: &Arc<Outgoing>) {
        if let Some(connection) = self.connections.get(conn_index as usize) {
            self.append(connection.key, outgoing);
        }
    }

    fn keeps(&self, conn: ConnKey, channel: &str) -> bool {
        self.connection(conn).is_some_and(|connection| connection.session.subscription(channel).is_some())
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            // At once: a publication sent to this connection next must come after the reply.
            Effect::Joined { conn, channel, mut result } => {
                if self.plant == Some(Plant::RecoveryNotBuffered)
                    && let (Ok(joined), Some((read, up_to))) = (&mut result, &self.read_up_to)
                    && **read == *channel
                {
                    joined.publications.retain(|publication| publication.offset <= Some(*up_to));
                }
                self.feed(conn, Input::Joined { channel, result });
            }
            Effect::PositionLost { conn, channel } => self.feed(conn, Input::PositionLost { channel }),
            Effect::Interest(_)
            | Effect::Release(_)
            | Effect::Read { .. }
            | Effect::CheckPositions(_)
            | Effect::Observed(..) => self.work.push_back(Work::Effect(effect)),
        }
    }
}
