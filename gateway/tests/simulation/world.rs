//! One run: nodes, clients, publishers and faults, from the first connect until nothing is left.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use backplane::{
    ChannelName, ClientId, Delivery, HistoryQuery, NewPublication, Offset, Previous, PublishOptions, Sink,
};
use bytes::Bytes;
use gateway::hub::shard_hub::HubCounters;
use session::close::CloseCode;
use session::io::{Input, Overrides, ServerSubscribe};
use uuid::Uuid;

use super::audit::{Audit, Stats};
use super::bus::{Bus, Call, Event, Outcome, Place, SocketId, Timer, Upstream};
use super::client::{Client, Wish};
use super::clock::{Millis, Random};
use super::faults;
use super::node::{Config, Node, Shard, Then};
use super::scenario::{CACHE, CHANNELS, PLAIN, Plant, SHORT, STREAMS, Scenario};

/// Faults strike until here.
const CHAOS_END: Millis = 12_000;
/// Publications and changes of mind come until here; nothing goes wrong any more but what clients do.
const CALM_END: Millis = 20_000;
const TICK: Millis = 100;

/// What a run has shown.
#[derive(Debug)]
pub struct Report {
    pub violations: Vec<String>,
    pub stats: Stats,
    pub counters: HubCounters,
    /// A number that another run of the same seed must come to.
    pub fingerprint: u64,
}

struct World {
    bus: Rc<RefCell<Bus>>,
    config: Rc<Config>,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    audit: Audit,
    random: Random,
    scenario: Rc<Scenario>,
    /// What the application has published or tries to, by number.
    publications: Vec<(ChannelName, Bytes)>,
    /// Nobody publishes or changes his mind any more.
    quiet: bool,
    /// Nobody connects any more.
    closing: bool,
    /// For a planted bug: what was last handed to each node.
    handed_over: BTreeMap<(usize, ChannelName), Offset>,
    fingerprint: u64,
    /// Every event whose text contains this is printed.
    trace: Option<String>,
}

/// Runs a scenario to its end.
pub fn run(scenario: Scenario) -> Report {
    let mut world = World::new(scenario);
    world.begin();
    world.run_until(CALM_END);
    world.quieten();
    world.run_until(CALM_END + world.settling_time());
    world.conclude();
    world.close();
    world.run_until(world.now() + 2 * world.settling_time());
    world.expect_nothing_left();
    let counters = world.counters();
    Report {
        violations: world.audit.violations().to_vec(),
        stats: world.audit.stats,
        counters,
        fingerprint: world.fingerprint,
    }
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let mut random = Random::new(scenario.seed ^ 0xC0FF_EE00);
        let scenario = Rc::new(scenario);
        let config = Rc::new(Config { settings: scenario.session.clone(), channels: scenario.channels() });
        let bus = Rc::new(RefCell::new(Bus::new(scenario.clone(), Random::new(random.next()))));
        let nodes = (0..scenario.nodes).map(|node| Node::new(node, &bus, &config)).collect();
        let clients = (0..scenario.clients).map(|index| make_client(index, &mut random)).collect();
        Self {
            nodes,
            clients,
            audit: Audit::new(scenario.excuses_nothing()),
            config,
            random,
            publications: Vec::new(),
            quiet: false,
            closing: false,
            handed_over: BTreeMap::new(),
            fingerprint: 0,
            trace: std::env::var("EVENKEEL_SIM_TRACE").ok(),
            scenario,
            bus,
        }
    }

    fn now(&self) -> Millis {
        self.bus.borrow().now()
    }

    /// How long it takes at most until all is as it should be, once nothing disturbs any more.
    fn settling_time(&self) -> Millis {
        let scenario = &self.scenario;
        let (_, call) = scenario.call_delay;
        let (_, link) = scenario.link_delay;
        let check = if scenario.announced { 0 } else { 6_000 };
        8_000 + 40 * call + 4 * link + check
    }

    fn begin(&mut self) {
        let mut bus = self.bus.borrow_mut();
        for (node, of) in self.nodes.iter().enumerate() {
            for shard in 0..of.shards.len() {
                bus.agenda.at((node * 7 + shard * 3) as Millis, Event::Tick(Place { node, shard }));
            }
        }
        for client in 0..self.clients.len() {
            let at = self.random.below(2_000);
            bus.agenda.at(at, Event::Client { client, timer: Timer::Connect });
            let at = at + self.random.between(self.scenario.act_every);
            bus.agenda.at(at, Event::Client { client, timer: Timer::Act });
        }
        bus.agenda.at(100, Event::Publish);
        faults::plan(&mut bus, CHAOS_END);
    }

    fn run_until(&mut self, end: Millis) {
        loop {
            let event = self.bus.borrow_mut().agenda.next_until(end);
            let Some(event) = event else { return };
            self.note(&event);
            self.happen(event);
        }
    }

    fn note(&mut self, event: &Event) {
        if let Some(wanted) = &self.trace {
            let text = format!("{event:?}");
            if text.contains(wanted) {
                println!("{:6} {text}", self.now());
            }
        }
        let kind = match event {
            Event::Execute { .. } | Event::Presence { .. } => 1,
            Event::Answer { .. } => 2,
            Event::Delivery { .. } => 3,
            Event::ToClient { .. } => 4,
            Event::ToServer { .. } => 5,
            Event::Subscribed { .. } | Event::Disturbed { .. } | Event::Fault(_) => 6,
            Event::Pass(_) | Event::Tick(_) | Event::Client { .. } | Event::Publish | Event::Republish(_) => 7,
        };
        self.fingerprint = (self.fingerprint.rotate_left(5) ^ (self.now() * 8 + kind)).wrapping_mul(0x0100_0000_01B3);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Execute { from, call, then, fate } => self.bus.borrow_mut().arrived(from, call, then, fate),
            Event::Presence { node } => self.bus.borrow_mut().change_presence(node),
            Event::Answer { outcome, then: Then::Api(number), .. } => self.published(number, &outcome),
            Event::Answer { from, outcome, then } => {
                let shard = self.shard(from);
                shard.answered(outcome, then);
                shard.run();
            }
            Event::Subscribed { node, channel } => {
                self.bus.borrow_mut().subscribed[node].insert(channel);
            }
            Event::Delivery { node, link, channel, delivery } => {
                if self.bus.borrow().is_linked(node, link) {
                    let delivery = self.perhaps_forged(node, &channel, delivery);
                    self.nodes[node].registry.deliver(&channel, delivery);
                    self.wake(node);
                }
            }
            Event::Disturbed { node, disturbance } => {
                self.nodes[node].registry.disturbed(disturbance);
                self.wake(node);
            }
            Event::Pass(place) => {
                self.bus.borrow_mut().woken(place);
                self.shard(place).pass();
            }
            Event::Tick(place) => {
                self.shard(place).tick();
                self.check_bounds(place);
                self.bus.borrow_mut().agenda.after(TICK, Event::Tick(place));
            }
            Event::ToServer { socket, message } => self.deliver_upstream(socket, message),
            Event::ToClient { socket, number, message } => {
                let mut bus = self.bus.borrow_mut();
                if let Some(client) = bus.reaches_client(socket, number) {
                    self.clients[client].receive(&mut bus, &mut self.audit, socket, message);
                }
            }
            Event::Client { client, timer } => self.timer(client, timer),
            Event::Publish => self.publish(),
            Event::Republish(number) => self.try_to_publish(number),
            Event::Fault(fault) => fault.strike(&mut self.bus.borrow_mut()),
        }
    }

    fn shard(&mut self, place: Place) -> &mut Shard {
        &mut self.nodes[place.node].shards[place.shard]
    }

    fn wake(&self, node: usize) {
        for shard in 0..self.scenario.shards {
            self.bus.borrow_mut().wake(Place { node, shard });
        }
    }

    fn perhaps_forged(&mut self, node: usize, channel: &ChannelName, mut delivery: Delivery) -> Delivery {
        if self.scenario.plant == Some(Plant::GapCheckSkipped)
            && let Delivery::Positioned { previous, publication, .. } = &mut delivery
        {
            let offset = publication.offset.unwrap_or_default();
            if let Some(last) = self.handed_over.insert((node, channel.clone()), offset) {
                *previous = Previous::Known(last);
            }
        }
        delivery
    }

    // --- clients ---

    fn deliver_upstream(&mut self, id: SocketId, message: Upstream) {
        let found = {
            let bus = self.bus.borrow();
            let arrives = bus.reaches_server(id, &message);
            bus.sockets.get(&id).filter(|_| arrives).map(|socket| (socket.place, socket.key))
        };
        let Some((place, key)) = found else { return };
        let gone = matches!(message, Upstream::Gone);
        self.shard(place).receive(key, message);
        if gone {
            self.bus.borrow_mut().sockets.remove(&id);
        }
    }

    fn timer(&mut self, client: usize, timer: Timer) {
        match timer {
            Timer::Connect => {
                if self.closing || self.clients[client].socket().is_some() {
                    return;
                }
                let node = self.random.index(self.scenario.nodes);
                let place = Place { node, shard: self.random.index(self.scenario.shards) };
                let id = ClientId(Uuid::from_u64_pair(self.random.next(), self.random.next()));
                let socket = self.bus.borrow_mut().next_socket();
                let key = self.shard(place).adopt(socket, id);
                let mut bus = self.bus.borrow_mut();
                bus.open(client, place, key, socket);
                self.clients[client].opened(&mut bus, socket);
            }
            Timer::Subscribe(channel) => self.clients[client].ask(&mut self.bus.borrow_mut(), channel),
            Timer::Act => {
                if !self.quiet {
                    self.act(client);
                    let at = self.random.between(self.scenario.act_every);
                    self.bus.borrow_mut().agenda.after(at, Event::Client { client, timer });
                }
            }
        }
    }

    /// A client, its user or an operator does something.
    fn act(&mut self, client: usize) {
        let random = &mut self.random;
        let channel = random.pick(&self.clients[client].channels());
        let shared = self.bus.clone();
        let mut bus = shared.borrow_mut();
        let client = &mut self.clients[client];
        match random.below(100) {
            0..30 => client.publish(&mut bus, channel),
            30..45 => client.unsubscribe(&mut bus, &mut self.audit, channel),
            45..65 => {
                let fresh = random.per_mille(200);
                client.channels().into_iter().for_each(|channel| client.subscribe(&mut bus, channel, fresh));
            }
            65..72 => {
                // A change of mind before anything was answered.
                client.unsubscribe(&mut bus, &mut self.audit, channel);
                client.subscribe(&mut bus, channel, false);
            }
            72..86 => {
                let noticed_after = random.pick(&[0, 100, 3000]);
                client.drop_connection(&mut bus, &mut self.audit, noticed_after);
            }
            86..91 => {
                if let Some(socket) = client.socket() {
                    bus.stall(socket, random.between((100, 3000)));
                }
            }
            choice => {
                let input = match choice {
                    91..93 => Input::Close(CloseCode::ForceReconnect),
                    93..94 => Input::CloseWhenAnswered(CloseCode::GoingAway),
                    94..96 => {
                        let (channel, reason) = (ChannelName::from(channel), "subscription expired");
                        Input::ServerUnsubscribe { channel, code: 2501, reason }
                    }
                    96..98 => match client.free_channels().as_slice() {
                        [] => return,
                        free => Input::ServerSubscribe(Box::new(server_subscribe(random.pick(free)))),
                    },
                    _ => match client.server_channels().as_slice() {
                        [] => return,
                        channels => {
                            let channel = ChannelName::from(random.pick(channels));
                            Input::ServerUnsubscribe { channel, code: 2000, reason: "server unsubscribe" }
                        }
                    },
                };
                let socket = client.socket().and_then(|socket| bus.sockets.get(&socket));
                let Some((place, key)) = socket.map(|socket| (socket.place, socket.key)) else { return };
                drop(bus);
                self.shard(place).command(key, input);
            }
        }
    }

    // --- publishing ---

    fn publish(&mut self) {
        if self.quiet {
            return;
        }
        let burst = self.random.between((1, self.scenario.burst));
        let channel = ChannelName::from(self.random.pick(&CHANNELS));
        for _ in 0..burst {
            let number = self.publications.len();
            self.publications.push((channel.clone(), Bytes::from(format!("application publication {number}"))));
            self.try_to_publish(number);
        }
        let next = self.random.between(self.scenario.publish_every);
        self.bus.borrow_mut().agenda.after(next, Event::Publish);
    }

    fn try_to_publish(&mut self, number: usize) {
        let (channel, data) = self.publications[number].clone();
        let node = self.random.index(self.scenario.nodes);
        let options = PublishOptions {
            history: self.config.history(&channel),
            idempotency_key: Some(number.to_string()),
            ..PublishOptions::default()
        };
        let publication = NewPublication { data, ..NewPublication::default() };
        let call = Call::Publish { channel, publication, options };
        let answered = self.bus.borrow_mut().call(Place { node, shard: 0 }, call, Then::Api(number));
        if let Some((outcome, _)) = answered {
            self.published(number, &outcome);
        }
    }

    fn published(&mut self, number: usize, outcome: &Outcome) {
        match outcome {
            Ok(_) => {
                let (channel, data) = self.publications[number].clone();
                self.audit.acknowledged(&channel, data);
            }
            Err(_) => {
                let after = self.random.between((50, 500));
                self.bus.borrow_mut().agenda.after(after, Event::Republish(number));
            }
        }
    }

    // --- the end ---

    /// From here on nobody publishes and everybody wants everything.
    fn quieten(&mut self) {
        self.quiet = true;
        let mut bus = self.bus.borrow_mut();
        for client in &mut self.clients {
            for channel in client.channels() {
                client.subscribe(&mut bus, channel, false);
            }
        }
    }

    fn conclude(&mut self) {
        for client in &self.clients {
            client.unfinished().into_iter().for_each(|wrong| self.audit.violation(wrong));
        }
        let mut bus = self.bus.borrow_mut();
        let mut positions = BTreeMap::new();
        for channel in CHANNELS {
            if let Some(options) = self.config.history(channel) {
                let top = bus.store.history(&ChannelName::from(channel), HistoryQuery::position(), options).top;
                positions.insert(channel, (top.epoch.as_str().to_owned(), top.offset.0));
            }
        }
        self.audit.conclude(&bus.store, &positions);
        for channel in STREAMS.iter().chain([&PLAIN]) {
            self.audit.compare_presence(&bus.store, channel);
        }
        drop(bus);
        for shard in self.nodes.iter().flat_map(|node| &node.shards) {
            let subscriptions: usize = shard.connections().map(|at| at.session.subscriptions().len()).sum();
            if subscriptions != shard.hub.subscription_count() {
                let counted = shard.hub.subscription_count();
                self.audit.violation(format!("{subscriptions} subscriptions in sessions, {counted} in the hub"));
            }
        }
    }

    fn close(&mut self) {
        self.closing = true;
        let mut bus = self.bus.borrow_mut();
        let sockets: Vec<_> = bus.sockets.iter().filter(|(_, at)| !at.abandoned).map(|(id, _)| *id).collect();
        for socket in sockets {
            bus.abandon(socket, 0);
        }
    }

    fn check_bounds(&mut self, place: Place) {
        let shard = &self.nodes[place.node].shards[place.shard];
        if shard.inbox.len() > self.scenario.inbox.deliveries || shard.hub.channel_count() > CHANNELS.len() {
            self.audit.violation(format!("out of bounds: {place:?}"));
        }
    }

    fn expect_nothing_left(&mut self) {
        for node in &self.nodes {
            let mut left = vec![("channels of the registry", node.registry.channels())];
            for shard in &node.shards {
                left.push(("channels", shard.hub.channel_count()));
                left.push(("subscriptions", shard.hub.subscription_count()));
                left.push(("connections", shard.connections().count()));
                left.push(("deliveries", shard.inbox.len()));
            }
            for (what, count) in left {
                if count > 0 {
                    self.audit.violation(format!("{count} {what} are left over"));
                }
            }
        }
        let bus = self.bus.borrow();
        for channel in STREAMS.iter().chain([&PLAIN]) {
            let present = bus.store.present(channel);
            if !present.is_empty() {
                self.audit.violation(format!("{present:?} are left over in {channel}"));
            }
        }
        // An unsubscribe that fails is not repeated: deliveries nobody wants are dropped by the registry.
        let calls_fail = self.scenario.rates.fail_call > 0 || self.scenario.partitions > 0;
        let interest = bus.subscribed.iter().any(|subscribed| !subscribed.is_empty());
        if !bus.sockets.is_empty() || (interest && !calls_fail) {
            self.audit.violation("sockets or interest are left over".to_owned());
        }
    }

    fn counters(&self) -> HubCounters {
        let mut sum = HubCounters::default();
        for shard in self.nodes.iter().flat_map(|node| &node.shards) {
            let counters = shard.hub.counters();
            sum.gaps_repaired += counters.gaps_repaired;
            sum.gaps_lost += counters.gaps_lost;
            sum.duplicates += counters.duplicates;
            sum.hold_back_overflows += counters.hold_back_overflows;
            sum.recoveries += counters.recoveries;
            sum.recovery_reads += counters.recovery_reads;
        }
        sum
    }
}

fn server_subscribe(channel: &str) -> ServerSubscribe {
    ServerSubscribe {
        channel: ChannelName::from(channel),
        info: Bytes::new(),
        data: Bytes::new(),
        recover_since: None,
        expire_at: None,
        overrides: Overrides { force_recovery: Some(true), ..Overrides::default() },
    }
}

fn make_client(index: usize, random: &mut Random) -> Client {
    // A few users with several clients each.
    let user = format!("user{}", index % 3);
    let mut wishes = Vec::new();
    let mut server_side = Vec::new();
    for channel in CHANNELS {
        match random.below(100) {
            0..20 => {}
            20..35 => server_side.push(channel),
            35..50 if channel != SHORT && channel != CACHE => wishes.push((channel, Wish::Position)),
            50..55 => wishes.push((channel, Wish::Nothing)),
            _ => wishes.push((channel, Wish::Recovery)),
        }
    }
    if wishes.is_empty() {
        wishes.push((STREAMS[index % 3], Wish::Recovery));
        server_side.retain(|channel| *channel != STREAMS[index % 3]);
    }
    Client::new(index, user, random.coin(), &wishes, server_side)
}
