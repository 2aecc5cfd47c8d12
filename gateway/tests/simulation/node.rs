//! A gateway node: the real registry, inboxes, hubs and sessions, driven in the order of the real shard, without sockets
//! and without a runtime.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use backplane::{ChannelName, ClientId, HistoryOptions, NewPublication, PresenceEvent, PublishOptions, StreamPosition};
use gateway::hub::registry::Interest;
use gateway::hub::{Check, ConnKey, Effect, Hub, ReadKind, Registry};
use gateway::shard::inbox::{Inbox, Item};
use session::channels::Channels;
use session::close::CloseCode;
use session::io::{Input, Join, OperationError, Output};
use session::settings::{Context, Settings};
use session::time::{Now, Tick};

use super::bus::{Answer, Bus, Call, Outcome, Place, SocketId, Upstream};
use super::desk::{Connection, Desk, Phase, Work};
use super::token;

/// More steps in one event than any event can need: somebody goes round in circles.
const STEPS_MAX: u32 = 100_000;

/// What an answer of the backplane is for.
#[derive(Debug)]
pub enum Then {
    Subscribed(ChannelName),
    Unsubscribed(ChannelName),
    Read {
        ticket: ReadKind,
        channel: ChannelName,
    },
    Checked(Vec<Check>),
    PresenceAdded(ConnKey, Box<Join>),
    Published {
        conn: ConnKey,
        id: u32,
    },
    /// A publish of the server API, by its number.
    Api(usize),
    Nothing,
}

/// What every shard of a run reads.
pub struct Config {
    pub settings: Settings,
    pub channels: Channels,
}

impl Config {
    pub fn context(&self) -> Context<'_> {
        Context { settings: &self.settings, channels: &self.channels }
    }

    pub fn history(&self, channel: &str) -> Option<HistoryOptions> {
        self.channels.resolve(channel).ok().and_then(|options| options.history)
    }
}

pub struct Node {
    pub registry: Arc<Registry>,
    pub shards: Vec<Shard>,
}

impl Node {
    pub fn new(node: usize, bus: &Rc<RefCell<Bus>>, config: &Rc<Config>) -> Self {
        let scenario = bus.borrow().scenario.clone();
        let inboxes: Vec<_> = (0..scenario.shards).map(|_| Arc::new(Inbox::new(scenario.inbox))).collect();
        let registry = Arc::new(Registry::new(inboxes.clone()));
        let shards = inboxes.into_iter().enumerate().map(|(shard, inbox)| Shard {
            place: Place { node, shard },
            hub: Hub::new(scenario.hub),
            inbox,
            registry: registry.clone(),
            next_generation: 0,
            shards: scenario.shards,
            desk: Desk::new(bus.clone(), config.clone()),
        });
        Self { shards: shards.collect(), registry }
    }
}

pub struct Shard {
    pub place: Place,
    pub hub: Hub,
    pub inbox: Arc<Inbox>,
    pub desk: Desk,
    registry: Arc<Registry>,
    next_generation: u32,
    shards: usize,
}

impl Shard {
    fn tick_now(&self) -> Tick {
        self.desk.now().tick
    }

    // --- connections ---

    pub fn adopt(&mut self, socket: SocketId, client: ClientId) -> ConnKey {
        let now = self.desk.now();
        let generation = self.next_generation;
        self.next_generation += 1;
        let key = self.desk.admit(socket, generation, now, client);
        self.hub.attach(key);
        key
    }

    /// What a client sent has arrived.
    pub fn receive(&mut self, key: ConnKey, message: Upstream) {
        match message {
            Upstream::Commands(commands) => {
                for command in commands {
                    if self.desk.connection(key).is_none_or(|connection| connection.phase != Phase::Open) {
                        return;
                    }
                    self.desk.work.push_back(Work::Input(key, Input::Command(command)));
                    self.run();
                }
            }
            Upstream::Gone => self.finish(key),
        }
    }

    /// An input of the server API or an operator.
    pub fn command(&mut self, key: ConnKey, input: Input) {
        self.desk.work.push_back(Work::Input(key, input));
        self.run();
    }

    fn finish(&mut self, key: ConnKey) {
        let Some(connection) = self.desk.connection_mut(key) else { return };
        if connection.phase == Phase::Gone {
            return;
        }
        connection.phase = Phase::Gone;
        connection.corked = None;
        self.desk.work.push_back(Work::Input(key, Input::Gone));
        self.run();
        let now = self.tick_now();
        self.hub.detach(key, now, &mut self.desk);
        self.run();
        self.desk.release_if_over(key);
    }

    // --- the shard's own pace ---

    /// One pass over the inbox.
    pub fn pass(&mut self) {
        let (pass_len, pass_bytes) = {
            let bus = self.desk.bus.borrow();
            (bus.scenario.pass_len, bus.scenario.pass_bytes)
        };
        let taken = self.inbox.take(pass_len, pass_bytes);
        let now = self.tick_now();
        let some = !taken.items.is_empty();
        for item in taken.items {
            match item {
                Item::Delivery(outgoing) => {
                    self.desk.deliver(&mut self.hub, &outgoing, now);
                }
                Item::Acknowledged(channel, result) => self.acknowledged(&channel, result.map(|()| None)),
                Item::Disturbed(backplane::Disturbance::Channel(channel)) => self.hub.disturbed(Some(&channel)),
                Item::Disturbed(backplane::Disturbance::All) => self.hub.disturbed(None),
                Item::Command(_) => {}
            }
        }
        let mut lagged: Vec<_> = taken.lagged.into_iter().collect();
        // In an order that does not depend on the hasher's seed.
        lagged.sort();
        for channel in lagged {
            self.hub.disturbed(Some(&channel));
        }
        self.run();
        if some {
            // There may be more: the pass that finds nothing is the last.
            self.desk.bus.borrow_mut().wake(self.place);
        }
    }

    /// The regular tick: deadlines of sessions, then the hub's own work.
    pub fn tick(&mut self) {
        let now = self.tick_now();
        for key in self.desk.overdue(now) {
            self.desk.work.push_back(Work::Input(key, Input::Deadline));
            self.run();
        }
        self.hub.tick(now, &mut self.desk);
        self.run();
    }

    /// Works until nothing is left to do.
    pub fn run(&mut self) {
        let mut steps = 0;
        while let Some(work) = self.desk.work.pop_front() {
            steps += 1;
            assert!(steps < STEPS_MAX, "a shard does not come to rest");
            match work {
                Work::Input(key, input) => self.desk.feed(key, input),
                Work::Output(key, output) => {
                    self.carry_out(key, output);
                    self.desk.release_if_over(key);
                }
                Work::Effect(effect) => self.effect(effect),
            }
        }
    }

    fn carry_out(&mut self, key: ConnKey, output: Output) {
        match output {
            Output::Send(reply) => self.desk.reply(key, reply),
            Output::VerifyConnection { token } => {
                let input = Input::ConnectionVerified(Ok(token::grant(&token)));
                self.desk.work.push_back(Work::Input(key, input));
            }
            Output::Established { .. } => {}
            Output::Join(join) => self.join(key, join),
            Output::Leave { channel, hub, presence } => {
                if hub {
                    let now = self.tick_now();
                    self.hub.leave(key, &channel, now);
                }
                if presence && let Some(connection) = self.desk.connection(key) {
                    let client = connection.session.client();
                    let user = connection.user();
                    self.perform(Call::RemovePresence { channel, client, user }, Then::Nothing);
                }
            }
            Output::Announce { channel, info, joined } => {
                let event = if joined { PresenceEvent::Join(info) } else { PresenceEvent::Leave(info) };
                self.perform(Call::Announce { channel, event }, Then::Nothing);
            }
            Output::Publish { id, channel, data, info, options: _ } => {
                let history = self.desk.config.history(&channel);
                let options = PublishOptions { history, ..PublishOptions::default() };
                let publication = NewPublication { data, info: Some(info), ..NewPublication::default() };
                self.perform(Call::Publish { channel, publication, options }, Then::Published { conn: key, id });
            }
            Output::Close(code) => self.start_close(key, code),
            Output::VerifyRefresh { .. }
            | Output::Resume { .. }
            | Output::Detach(_)
            | Output::Linger { .. }
            | Output::VerifySubscription { .. }
            | Output::ReadPresence { .. }
            | Output::ReadPresenceStats { .. }
            | Output::ReadHistory { .. }
            | Output::Proxy(_)
            | Output::EmulatedHeaders(_) => panic!("no simulated client asks for this: {output:?}"),
        }
    }

    fn join(&mut self, key: ConnKey, join: Join) {
        if let Some(connection) = self.desk.connection_mut(key) {
            connection.joins_in_flight += 1;
        }
        match join.presence.clone() {
            None => self.join_hub(key, &join),
            Some(info) => {
                let channel = join.channel.clone();
                self.perform(Call::AddPresence { channel, info }, Then::PresenceAdded(key, Box::new(join)));
            }
        }
    }

    fn join_hub(&mut self, key: ConnKey, join: &Join) {
        let now = self.tick_now();
        let options = self.desk.config.history(&join.channel).filter(|_| join.has_history);
        self.hub.join(key, join, options, now, &mut self.desk);
    }

    fn start_close(&mut self, key: ConnKey, code: CloseCode) {
        let Some(connection) = self.desk.connection_mut(key) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        connection.phase = Phase::Closing;
        connection.corked = None;
        let socket = connection.socket;
        self.desk.close(socket, code);
        let now = self.tick_now();
        self.hub.detach(key, now, &mut self.desk);
    }

    // --- the hub's effects ---

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Interest(channel) => match self.registry.interest(&channel, self.place.shard) {
                Interest::Active(known) => self.acknowledged(&channel, Ok(known)),
                Interest::Subscribe => self.subscribe(channel),
                Interest::Wait => {}
            },
            Effect::Release(channel) => {
                if self.registry.release(&channel, self.place.shard) {
                    self.perform(Call::Unsubscribe(channel.clone()), Then::Unsubscribed(channel));
                }
            }
            Effect::Read { ticket, channel, options, query } => {
                let call = Call::History { channel: channel.clone(), query, options };
                self.perform(call, Then::Read { ticket, channel });
            }
            Effect::CheckPositions(checks) => {
                let channels = checks.iter().map(|check| (check.channel.clone(), check.options)).collect();
                self.perform(Call::Positions(channels), Then::Checked(checks));
            }
            Effect::Observed(channel, position) => self.registry.observed(&channel, &position),
            Effect::Joined { conn, channel, result } => self.desk.feed(conn, Input::Joined { channel, result }),
            Effect::PositionLost { conn, channel } => self.desk.feed(conn, Input::PositionLost { channel }),
        }
    }

    fn subscribe(&mut self, channel: ChannelName) {
        self.perform(Call::Subscribe(channel.clone()), Then::Subscribed(channel));
    }

    fn acknowledged(&mut self, channel: &str, result: Result<Option<StreamPosition>, String>) {
        let now = self.tick_now();
        self.hub.acknowledged(channel, result, now, &mut self.desk);
    }

    fn perform(&mut self, call: Call, then: Then) {
        let answered = self.desk.bus.borrow_mut().call(self.place, call, then);
        if let Some((outcome, then)) = answered {
            self.answered(outcome, then);
        }
    }

    /// The backplane has answered.
    pub fn answered(&mut self, outcome: Outcome, then: Then) {
        match (then, outcome) {
            (Then::Subscribed(channel), outcome) => {
                let result = outcome.map(|_| ());
                let own = self.registry.subscribed(&channel, &result, self.place.shard);
                self.wake_others();
                if own {
                    self.acknowledged(&channel, result.map(|()| None));
                }
            }
            (Then::Unsubscribed(channel), _) => {
                if self.registry.unsubscribed(&channel) {
                    self.subscribe(channel);
                }
            }
            (Then::Read { ticket, channel }, outcome) => {
                let result = match outcome {
                    Ok(Answer::Page(page)) => Ok(page),
                    Ok(other) => panic!("{other:?} is no answer to a read"),
                    Err(error) => Err(error),
                };
                self.desk.read_done(&mut self.hub, ticket, &channel, result);
            }
            (Then::Checked(checks), Ok(Answer::Tops(tops))) => {
                for (check, top) in checks.iter().zip(tops) {
                    self.hub.checked(check, Ok(top), &mut self.desk);
                }
            }
            (Then::Checked(checks), outcome) => {
                for check in &checks {
                    self.hub.checked(check, Err(format!("{outcome:?}")), &mut self.desk);
                }
            }
            (Then::PresenceAdded(key, join), Ok(_)) => self.join_hub(key, &join),
            (Then::PresenceAdded(key, join), Err(error)) => {
                let result = Err(OperationError::Unavailable(error));
                self.desk.work.push_back(Work::Input(key, Input::Joined { channel: join.channel, result }));
            }
            (Then::Published { conn, id }, outcome) => {
                let result = outcome.map(|_| ()).map_err(OperationError::Unavailable);
                self.desk.work.push_back(Work::Input(conn, Input::Published { id, result }));
            }
            (Then::Api(_) | Then::Nothing, _) => {}
        }
    }

    /// The registry may have put something into the inboxes of this node.
    fn wake_others(&self) {
        let node = self.place.node;
        for shard in 0..self.shards {
            self.desk.bus.borrow_mut().wake(Place { node, shard });
        }
    }

    pub fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.desk.connections.iter().map(|(_, connection)| connection)
    }
}

/// The two clocks of a node: the Unix time of a run begins at some past day.
pub fn clocks(now: super::clock::Millis) -> Now {
    let seconds = i64::try_from(now / 1000).expect("a short run");
    Now { tick: Tick(now), unix: 1_700_000_000 + seconds }
}
