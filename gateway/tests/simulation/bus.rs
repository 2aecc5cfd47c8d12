//! Everything that lies between the parts: calls to the backplane, deliveries from it, frames between clients and
//! nodes. All of it takes time, and what can go wrong with it does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use backplane::{
    ChannelName, ClientId, ClientInfo, Delivery, Disturbance, HistoryOptions, HistoryPage, HistoryQuery,
    NewPublication, PresenceEvent, PublishOptions, StreamPosition,
};
use gateway::hub::{ConnKey, Outgoing};
use protocol::{Command, Reply};
use session::close::CloseCode;

use super::clock::{Agenda, Millis, Random};
use super::faults::Fault;
use super::node::Then;
use super::scenario::{Plant, Rates, Scenario};
use super::store::Store;

/// A shard of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub node: usize,
    pub shard: usize,
}

/// Tells one socket from every other one in a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SocketId(pub u64);

#[derive(Debug)]
pub enum Event {
    /// A call reaches the backplane.
    Execute {
        from: Place,
        call: Call,
        then: Then,
        fate: Fate,
    },
    /// Changes of presence may go on.
    Presence {
        node: usize,
    },
    /// Its answer reaches the caller.
    Answer {
        from: Place,
        outcome: Outcome,
        then: Then,
    },
    /// A subscribe that was acknowledged too early takes effect.
    Subscribed {
        node: usize,
        channel: ChannelName,
    },
    /// A delivery reaches a node, unless its link was cut meanwhile.
    Delivery {
        node: usize,
        link: u64,
        channel: ChannelName,
        delivery: Delivery,
    },
    Disturbed {
        node: usize,
        disturbance: Disturbance,
    },
    Pass(Place),
    Tick(Place),
    ToServer {
        socket: SocketId,
        message: Upstream,
    },
    ToClient {
        socket: SocketId,
        number: u64,
        message: Downstream,
    },
    /// A timer of a client.
    Client {
        client: usize,
        timer: Timer,
    },
    /// The application publishes something new.
    Publish,
    /// It tries once more what may not have been published.
    Republish(usize),
    Fault(Fault),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timer {
    Connect,
    Subscribe(&'static str),
    Act,
}

#[derive(Clone, Debug)]
pub enum Call {
    Subscribe(ChannelName),
    Unsubscribe(ChannelName),
    History { channel: ChannelName, query: HistoryQuery, options: HistoryOptions },
    Positions(Vec<(ChannelName, HistoryOptions)>),
    Publish { channel: ChannelName, publication: NewPublication, options: PublishOptions },
    Announce { channel: ChannelName, event: PresenceEvent },
    AddPresence { channel: ChannelName, info: Arc<ClientInfo> },
    RemovePresence { channel: ChannelName, client: ClientId, user: String },
}

#[derive(Debug)]
pub enum Answer {
    Done,
    Page(HistoryPage),
    Tops(Vec<StreamPosition>),
}

pub type Outcome = Result<Answer, String>;

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Answered,
    RequestLost,
    AnswerLost,
}

#[derive(Debug)]
pub enum Upstream {
    Commands(Vec<Command>),
    /// The socket is over.
    Gone,
}

#[derive(Debug)]
pub enum Downstream {
    Reply(Box<Reply>),
    Delivery(Arc<Outgoing>),
    Close(CloseCode),
}

/// The two directions of one connection.
#[derive(Debug)]
pub struct Socket {
    pub client: usize,
    pub place: Place,
    pub key: ConnKey,
    up_due: Millis,
    down_due: Millis,
    in_flight: usize,
    sent: u64,
    /// Frames below this number were discarded on their way.
    kept_from: u64,
    /// The client has let go of it: nothing more arrives there, and perhaps nothing of what it sent.
    pub abandoned: bool,
    loses_upstream: bool,
}

pub struct Bus {
    pub agenda: Agenda<Event>,
    pub random: Random,
    pub scenario: Rc<Scenario>,
    pub store: Store,
    pub rates: Rates,
    paused_until: Millis,
    cut_until: Vec<Millis>,
    link: Vec<u64>,
    link_due: Vec<Millis>,
    presence_due: Vec<Millis>,
    /// Changes of presence that have arrived and wait, in order.
    presence: Vec<VecDeque<(Place, Call, Then, Fate)>>,
    pub subscribed: Vec<BTreeSet<ChannelName>>,
    pub sockets: BTreeMap<SocketId, Socket>,
    next_socket: u64,
    waking: BTreeSet<(usize, usize)>,
}

impl Bus {
    pub fn new(scenario: Rc<Scenario>, mut random: Random) -> Self {
        let nodes = scenario.nodes;
        let store = Store::new(&scenario, Random::new(random.next()));
        Self {
            agenda: Agenda::new(),
            random,
            store,
            rates: scenario.rates,
            paused_until: 0,
            cut_until: vec![0; nodes],
            link: vec![0; nodes],
            link_due: vec![0; nodes],
            presence_due: vec![0; nodes],
            presence: (0..nodes).map(|_| VecDeque::new()).collect(),
            subscribed: vec![BTreeSet::new(); nodes],
            sockets: BTreeMap::new(),
            next_socket: 0,
            waking: BTreeSet::new(),
            scenario,
        }
    }

    pub fn now(&self) -> Millis {
        self.agenda.now()
    }

    // --- calls ---

    /// Sends a call on its way, or gives its outcome at once where the backplane is in this very process.
    pub fn call(&mut self, from: Place, call: Call, then: Then) -> Option<(Outcome, Then)> {
        if self.scenario.prompt {
            return Some((Ok(self.execute(from.node, call)), then));
        }
        let mut at = self.now() + self.random.between(self.scenario.call_delay);
        let fails = call.may_fail() && self.random.per_mille(self.rates.fail_call);
        let fate = match fails.then(|| self.random.coin()) {
            None => Fate::Answered,
            Some(true) => Fate::RequestLost,
            Some(false) => Fate::AnswerLost,
        };
        if call.keeps_order() {
            at = at.max(self.presence_due[from.node]);
            self.presence_due[from.node] = at;
        }
        self.agenda.at(at, Event::Execute { from, call, then, fate });
        None
    }

    /// A call has reached the backplane.
    pub fn arrived(&mut self, from: Place, call: Call, then: Then, fate: Fate) {
        if call.keeps_order() {
            self.presence[from.node].push_back((from, call, then, fate));
            self.change_presence(from.node);
        } else if self.paused_until > self.now() {
            self.agenda.at(self.paused_until, Event::Execute { from, call, then, fate });
        } else if self.cut_until[from.node] > self.now() {
            self.carry_out(from, call, then, Fate::RequestLost);
        } else {
            self.carry_out(from, call, then, fate);
        }
    }

    /// Makes the changes of presence that wait, unless they have to wait on.
    pub fn change_presence(&mut self, node: usize) {
        let waits_until = self.paused_until.max(self.cut_until[node]);
        if waits_until > self.now() {
            self.agenda.at(waits_until, Event::Presence { node });
            return;
        }
        while let Some((from, call, then, fate)) = self.presence[node].pop_front() {
            self.carry_out(from, call, then, fate);
        }
    }

    fn carry_out(&mut self, from: Place, call: Call, then: Then, fate: Fate) {
        let outcome = match fate {
            Fate::RequestLost => Err("the request was lost".to_owned()),
            Fate::Answered => Ok(self.execute(from.node, call)),
            Fate::AnswerLost => {
                self.execute(from.node, call);
                Err("the answer was lost".to_owned())
            }
        };
        let delay = self.random.between(self.scenario.call_delay);
        self.agenda.after(delay, Event::Answer { from, outcome, then });
    }

    fn execute(&mut self, node: usize, call: Call) -> Answer {
        self.store.set_now(self.now());
        match call {
            Call::Subscribe(channel) => {
                if self.scenario.plant == Some(Plant::BarrierSkipped) {
                    let delay = self.random.between((100, 1500));
                    self.agenda.after(delay, Event::Subscribed { node, channel });
                } else {
                    self.subscribed[node].insert(channel);
                }
                Answer::Done
            }
            Call::Unsubscribe(channel) => {
                self.subscribed[node].remove(&channel);
                Answer::Done
            }
            Call::History { channel, query, options } => Answer::Page(self.store.history(&channel, query, options)),
            Call::Positions(channels) => {
                let top = |(channel, options): (ChannelName, HistoryOptions)| {
                    self.store.history(&channel, HistoryQuery::position(), options).top
                };
                Answer::Tops(channels.into_iter().map(top).collect())
            }
            Call::Publish { channel, publication, options } => {
                let (_, delivery) = self.store.publish(&channel, publication, options);
                if let Some(delivery) = delivery {
                    self.fan_out(&channel, delivery);
                }
                Answer::Done
            }
            Call::Announce { channel, event } => {
                self.fan_out(&channel, Delivery::Presence(event));
                Answer::Done
            }
            Call::AddPresence { channel, info } => {
                self.store.add_presence(&channel, info);
                Answer::Done
            }
            Call::RemovePresence { channel, client, user } => {
                self.store.remove_presence(&channel, client, &user);
                Answer::Done
            }
        }
    }

    // --- deliveries ---

    fn fan_out(&mut self, channel: &ChannelName, delivery: Delivery) {
        for node in 0..self.subscribed.len() {
            if self.subscribed[node].contains(channel) {
                self.hand_over(node, channel, delivery.clone());
            }
        }
    }

    fn hand_over(&mut self, node: usize, channel: &ChannelName, delivery: Delivery) {
        if self.cut_until[node] > self.now() {
            return;
        }
        let due = self.link_due(node);
        if self.random.per_mille(self.rates.drop) {
            if self.scenario.announced {
                let disturbance = Disturbance::Channel(channel.clone());
                self.agenda.at(due, Event::Disturbed { node, disturbance });
            }
            return;
        }
        let link = self.link[node];
        let event = |delivery| Event::Delivery { node, link, channel: channel.clone(), delivery };
        // Only what has a position can be told apart from a duplicate.
        let positioned = matches!(delivery, Delivery::Positioned { .. });
        if positioned && self.random.per_mille(self.rates.duplicate) {
            let later = due + self.random.between((0, 500));
            self.agenda.at(later, event(delivery.clone()));
        }
        let overtaken = positioned && self.random.per_mille(self.rates.reorder);
        let at = if overtaken { due + self.random.between((1, 300)) } else { due };
        self.agenda.at(at, event(delivery));
    }

    /// When what is sent to a node now arrives: after everything sent before.
    fn link_due(&mut self, node: usize) -> Millis {
        let due = self.now() + self.random.between(self.scenario.link_delay);
        self.link_due[node] = self.link_due[node].max(due);
        self.link_due[node]
    }

    /// Whether a delivery that has arrived was sent over the link as it is now.
    pub fn is_linked(&self, node: usize, link: u64) -> bool {
        self.link[node] == link && self.cut_until[node] <= self.now()
    }

    /// Tells nodes that deliveries may be missing, behind what is on its way to them.
    pub fn disturb(&mut self, nodes: std::ops::Range<usize>) {
        if self.scenario.announced {
            for node in nodes {
                let due = self.link_due(node);
                self.agenda.at(due, Event::Disturbed { node, disturbance: Disturbance::All });
            }
        }
    }

    // --- faults ---

    pub fn cut(&mut self, node: usize, until: Millis) {
        self.cut_until[node] = self.cut_until[node].max(until);
        self.link[node] += 1;
    }

    pub fn pause(&mut self, until: Millis) {
        self.paused_until = self.paused_until.max(until);
    }

    // --- shards ---

    /// Has a shard look into its inbox soon.
    pub fn wake(&mut self, place: Place) {
        if self.waking.insert((place.node, place.shard)) {
            let delay = self.random.below(3);
            self.agenda.after(delay, Event::Pass(place));
        }
    }

    pub fn woken(&mut self, place: Place) {
        self.waking.remove(&(place.node, place.shard));
    }

    // --- sockets ---

    pub fn open(&mut self, client: usize, place: Place, key: ConnKey, id: SocketId) {
        let now = self.now();
        let socket = Socket {
            client,
            place,
            key,
            up_due: now,
            down_due: now,
            in_flight: 0,
            sent: 0,
            kept_from: 0,
            abandoned: false,
            loses_upstream: false,
        };
        self.sockets.insert(id, socket);
    }

    pub fn next_socket(&mut self) -> SocketId {
        self.next_socket += 1;
        SocketId(self.next_socket)
    }

    pub fn send_up(&mut self, id: SocketId, message: Upstream) {
        let delay = self.random.between(self.scenario.client_delay);
        let now = self.agenda.now();
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        socket.up_due = socket.up_due.max(now + delay);
        self.agenda.at(socket.up_due, Event::ToServer { socket: id, message });
    }

    /// Whether what a client has sent arrives.
    pub fn reaches_server(&self, id: SocketId, message: &Upstream) -> bool {
        let socket = self.sockets.get(&id);
        socket.is_some_and(|socket| !socket.loses_upstream || matches!(message, Upstream::Gone))
    }

    /// False when too much waits for the client already.
    pub fn send_down(&mut self, id: SocketId, message: Downstream) -> bool {
        let delay = self.random.between(self.scenario.client_delay);
        let now = self.agenda.now();
        let Some(socket) = self.sockets.get_mut(&id) else { return true };
        socket.down_due = socket.down_due.max(now + delay);
        socket.in_flight += 1;
        socket.sent += 1;
        let (number, at) = (socket.sent, socket.down_due);
        let fits = socket.in_flight <= self.scenario.queue_frames;
        self.agenda.at(at, Event::ToClient { socket: id, number, message });
        fits
    }

    /// Lets go of everything that is still on its way to the client.
    pub fn discard(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.kept_from = socket.sent + 1;
        }
    }

    /// Whose frame it is that has arrived, if it is still wanted there.
    pub fn reaches_client(&mut self, id: SocketId, number: u64) -> Option<usize> {
        let socket = self.sockets.get_mut(&id)?;
        socket.in_flight -= 1;
        (!socket.abandoned && number >= socket.kept_from).then_some(socket.client)
    }

    /// The client reads nothing for a while.
    pub fn stall(&mut self, id: SocketId, time: Millis) {
        let until = self.now() + time;
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.down_due = socket.down_due.max(until);
        }
    }

    /// The client lets go of a socket. The node learns of it at some time.
    pub fn abandon(&mut self, id: SocketId, noticed_after: Millis) {
        let loses_upstream = self.random.coin();
        let now = self.agenda.now();
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        socket.abandoned = true;
        socket.loses_upstream = loses_upstream;
        let at = socket.up_due.max(now + noticed_after);
        self.agenda.at(at, Event::ToServer { socket: id, message: Upstream::Gone });
    }
}

impl Call {
    /// The removal of an entry is repeated by a backplane until it succeeds: entries would outlive their client.
    fn may_fail(&self) -> bool {
        !matches!(self, Self::RemovePresence { .. })
    }

    /// Changes of presence go over one connection of the node, so they keep their order.
    fn keeps_order(&self) -> bool {
        matches!(self, Self::AddPresence { .. } | Self::RemovePresence { .. })
    }
}
