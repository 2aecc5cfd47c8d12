//! The publishers: a few connections that send the schedule's messages when they are due.
//!
//! Publisher `p` has one connection and sends messages `p`, `p + publishers`, ... in order. When the server is slower than
//! the schedule, messages wait here with their intended time unchanged, so that the wait counts as latency. Nothing is
//! retried: a message without an answer may have been published.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::Arc;

use hdrhistogram::Histogram;
use protocol::ReplyBody;

use super::plan::{Plan, Publishing};
use super::shared::{Reasons, microseconds};
use super::socket::{Cut, Outbox, open};
use super::worker::{FIRST_PUBLISHER_TOKEN, Published};
use crate::audit::Outcome;
use crate::frame::{self, Assembler, Incoming, write_frame};
use crate::http::{append_post, read_answer, read_upgrade, upgrade_request};
use crate::schedule::Schedule;
use crate::stamp::{Stamp, write_payload};
use crate::sys;
use crate::timeline::{Event, Timeline};
use crate::wire::{self, CONNECT_ID, next_message};

/// Bytes read at once; answers are short.
const READ_BYTES: usize = 64 * 1024;
/// Time between attempts to connect again.
const RETRY_NS: u64 = 100_000_000;
/// How long publishers may go on after the end of the schedule, in nanoseconds, when the server did not keep up. What is
/// unsent by then stays unsent.
const OVERTIME_NS: u64 = 10_000_000_000;
/// Failed attempts in a row after which the run is given up.
const RETRIES_MAX: u32 = 50;
/// The same in a run that survives the loss of a server: two minutes.
const PATIENT_RETRIES_MAX: u32 = 1200;

/// All publishers of a run.
pub(super) struct Publishers {
    plan: Arc<Plan>,
    links: Vec<Link>,
    outcomes: Vec<Outcome>,
    settled: u64,
    ack_us: Histogram<u64>,
    failures: Reasons,
    /// Start of the schedule, once it is known.
    start: Option<u64>,
    /// Publishing ended before the schedule did.
    is_stopped: bool,
    timeline: Timeline,
    last_trouble_ns: u64,
    mask: [u8; 4],
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Idle,
    Connecting,
    Upgrading,
    Greeting,
    Ready,
}

/// One publisher.
#[derive(Default)]
struct Link {
    /// Node it is connected to.
    node: usize,
    socket: Option<TcpStream>,
    state: State,
    /// It was ready at least once.
    seen_ready: bool,
    /// The next message to send.
    next: u64,
    /// Sent and unanswered, in order.
    in_flight: VecDeque<u64>,
    outbox: Outbox,
    stash: Vec<u8>,
    assembler: Assembler,
    retry_ns: u64,
    retries: u32,
}

impl Publishers {
    /// The publishers a plan asks for; None when somebody else publishes.
    pub fn new(plan: &Arc<Plan>, origin_ns: u64) -> Option<Self> {
        if matches!(plan.publishing, Publishing::Nobody | Publishing::Peer) {
            return None;
        }
        let links = (0..plan.schedule.publishers).map(|link| Link { next: u64::from(link), ..Link::default() });
        Some(Self {
            links: links.collect(),
            outcomes: vec![Outcome::Unsent; plan.schedule.total as usize],
            settled: 0,
            ack_us: microseconds(),
            failures: Reasons::default(),
            start: None,
            is_stopped: false,
            timeline: Timeline::new(origin_ns),
            last_trouble_ns: 0,
            mask: [0x3c, 0xa5, 0x17, 0x68],
            buffer: vec![0; READ_BYTES],
            plan: plan.clone(),
        })
    }

    /// Connects and sends what is due, until `stopped`. Fails when a publisher cannot connect at all.
    pub fn pump(&mut self, epoll: &sys::Epoll, now: u64, start: Option<u64>, stopped: Option<u64>) -> io::Result<()> {
        self.start = start;
        self.is_stopped = stopped.is_some();
        let retries_max = if self.plan.resumes() { PATIENT_RETRIES_MAX } else { RETRIES_MAX };
        for index in 0..self.links.len() {
            let link = &self.links[index];
            if link.state == State::Idle && link.retry_ns <= now && !self.is_finished(index, now) {
                if link.retries > retries_max {
                    let reason = self.failures.first().unwrap_or("unknown reason").to_owned();
                    return Err(io::Error::other(format!("publisher {index} cannot connect: {reason}")));
                }
                if let Err(error) = self.connect(epoll, index) {
                    self.fail(index, Cut::Io(error));
                }
            }
            if self.should_move(index) {
                self.links[index] = Link { next: self.links[index].next, seen_ready: true, ..Link::default() };
                continue;
            }
            if let Some(start) = start
                && self.links[index].state == State::Ready
                && let Err(cut) = self.send_due(index, now, start)
            {
                self.fail(index, cut);
            }
        }
        Ok(())
    }

    /// Its node takes no new connections any more, nothing is unanswered, and there is another node: a load balancer would
    /// send the next request there.
    fn should_move(&self, index: usize) -> bool {
        let (link, nodes) = (&self.links[index], &self.plan.nodes);
        let is_idle = link.state == State::Ready && link.in_flight.is_empty();
        is_idle && !nodes.is_ready(link.node) && nodes.any_ready()
    }

    /// Nothing is sent to a node that is about to go, so that what is unanswered comes to an end; unless no node is better.
    fn may_send(&self, index: usize) -> bool {
        let (link, nodes) = (&self.links[index], &self.plan.nodes);
        let is_over = self.is_stopped || link.in_flight.len() >= self.depth();
        !is_over && (nodes.is_ready(link.node) || !nodes.any_ready())
    }

    /// When there is something to do next without being called by an event. Never in the past for a publisher that has
    /// nothing left to do: the loop would not sleep any more, and with real-time priority nothing else would run.
    pub fn next_due_ns(&self, now: u64, start: Option<u64>) -> Option<u64> {
        let due = |index: usize| match (self.links[index].state, start) {
            (State::Idle, _) if !self.is_finished(index, now) => Some(self.links[index].retry_ns),
            (State::Ready, Some(start)) if self.may_send(index) && !self.is_over(index, now) => {
                Some(start + self.plan.schedule.due_ns(self.links[index].next))
            }
            _ => None,
        };
        (0..self.links.len()).filter_map(due).min()
    }

    /// Handles an event of publisher `index`.
    pub fn ready(&mut self, index: usize, event: sys::Event) {
        let result = match event.is_writable() {
            true => self.writable(index),
            false => Ok(()),
        };
        let result = result.and_then(|()| if event.is_readable() { self.readable(index) } else { Ok(()) });
        if let Err(cut) = result {
            self.fail(index, cut);
        }
    }

    /// Every publisher was connected once, so the schedule can start.
    pub fn are_ready(&self) -> bool {
        self.links.iter().all(|link| link.seen_ready)
    }

    /// Nothing is left to send or to wait for.
    pub fn are_done(&self, now: u64) -> bool {
        (0..self.links.len()).all(|index| self.is_finished(index, now))
    }

    fn is_finished(&self, index: usize, now: u64) -> bool {
        let link = &self.links[index];
        link.seen_ready && self.is_over(index, now) && link.in_flight.is_empty()
    }

    /// Nothing is sent any more; answers may be due.
    fn is_over(&self, index: usize, now: u64) -> bool {
        let out_of_time = self.start.is_some_and(|start| now > start + self.plan.schedule.duration_ns() + OVERTIME_NS);
        self.is_stopped || out_of_time || self.links[index].next >= self.plan.schedule.total
    }

    /// Messages that were answered or given up.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// Hands in the results.
    pub fn finish(self) -> Published {
        let Self { outcomes, ack_us, failures, timeline, last_trouble_ns, .. } = self;
        Published { outcomes, ack_us, failures, timeline, last_trouble_ns }
    }

    fn depth(&self) -> usize {
        match self.plan.publishing {
            Publishing::Api { depth, .. } | Publishing::WebSocket { depth } => depth,
            Publishing::Nobody | Publishing::Peer => 0,
        }
    }

    fn connect(&mut self, epoll: &sys::Epoll, index: usize) -> io::Result<()> {
        let node = self.plan.nodes.next();
        let address = match &self.plan.publishing {
            Publishing::Api { targets, .. } => targets[node % targets.len()].address,
            Publishing::WebSocket { .. } | Publishing::Nobody | Publishing::Peer => {
                self.plan.nodes.target(node).address
            }
        };
        let link = &mut self.links[index];
        link.node = node;
        link.state = State::Connecting;
        let socket = open(address, None)?;
        epoll.add_edge(&socket, FIRST_PUBLISHER_TOKEN + index as u64)?;
        link.socket = Some(socket);
        Ok(())
    }

    fn send_due(&mut self, index: usize, now: u64, start: u64) -> Result<(), Cut> {
        let plan = self.plan.clone();
        let schedule = &plan.schedule;
        let mut out = Vec::new();
        let out_of_time = now > start + schedule.duration_ns() + OVERTIME_NS;
        while !out_of_time && self.may_send(index) && self.links[index].next < schedule.total {
            let link = &mut self.links[index];
            let message = link.next;
            let intended_ns = start + schedule.due_ns(message);
            if intended_ns > now {
                break;
            }
            link.next += u64::from(schedule.publishers);
            link.in_flight.push_back(message);
            // Until the answer says otherwise: it may have been published.
            self.outcomes[message as usize] = Outcome::Failed;
            append_message(&plan, link.node, message, intended_ns, self.mask, &mut out);
        }
        let link = &mut self.links[index];
        match &mut link.socket {
            Some(socket) if !out.is_empty() => link.outbox.write(socket, &out),
            _ => Ok(()),
        }
    }

    fn writable(&mut self, index: usize) -> Result<(), Cut> {
        let link = &mut self.links[index];
        let Some(socket) = &mut link.socket else { return Ok(()) };
        if link.state != State::Connecting {
            return link.outbox.flush(socket);
        }
        if let Some(error) = socket.take_error()? {
            return Err(Cut::Io(error));
        }
        if let Publishing::WebSocket { .. } = self.plan.publishing {
            link.state = State::Upgrading;
            let target = self.plan.nodes.target(link.node);
            let request = upgrade_request(&target.host, &target.path, self.plan.subprotocol());
            return link.outbox.write(socket, &request);
        }
        link.state = State::Ready;
        link.seen_ready = true;
        Ok(())
    }

    fn readable(&mut self, index: usize) -> Result<(), Cut> {
        loop {
            let link = &mut self.links[index];
            let Some(socket) = &mut link.socket else { return Ok(()) };
            let count = match socket.read(&mut self.buffer) {
                Ok(0) => return Err(Cut::Ended),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Cut::Io(error)),
            };
            link.stash.extend_from_slice(&self.buffer[..count]);
            let stash = std::mem::take(&mut link.stash);
            let used = match self.plan.publishing {
                Publishing::WebSocket { .. } => self.read_frames(index, &stash)?,
                Publishing::Api { .. } | Publishing::Nobody | Publishing::Peer => self.read_answers(index, &stash)?,
            };
            self.links[index].stash = stash[used..].to_vec();
        }
    }

    fn read_answers(&mut self, index: usize, input: &[u8]) -> Result<usize, Cut> {
        let mut used = 0;
        while let Some(answer) = read_answer(&input[used..])? {
            used += answer.len;
            let Some(message) = self.links[index].in_flight.pop_front() else {
                return Err(Cut::Undecodable("an HTTP answer nobody asked for".to_owned()));
            };
            // An API error comes with status 200 and `error` in place of `result` (protocol section 7.1).
            let refusal = match answer.code {
                200 if answer.body.starts_with(b"{\"result\"") => None,
                200 => Some(String::from_utf8_lossy(&answer.body[..answer.body.len().min(120)]).into_owned()),
                _ => Some(format!("HTTP {}", answer.status)),
            };
            self.settle(index, message, refusal);
        }
        Ok(used)
    }

    fn read_frames(&mut self, index: usize, input: &[u8]) -> Result<usize, Cut> {
        let mut used = 0;
        if self.links[index].state == State::Upgrading {
            match read_upgrade(input, self.plan.subprotocol())? {
                None => return Ok(0),
                Some(len) => used = len,
            }
            let user = self.plan.layout.connections() + index;
            let token = self.plan.tokens.of(user).map_err(|error| Cut::Token(error.to_string()))?;
            let payload = wire::first_frame(self.plan.encoding, token, std::iter::empty());
            self.links[index].state = State::Greeting;
            self.send_frame(index, wire::opcode(self.plan.encoding), &payload)?;
        }
        let mut assembler = std::mem::take(&mut self.links[index].assembler);
        loop {
            let (step, incoming) = assembler.next(&input[used..])?;
            used += step;
            match incoming {
                None => break,
                Some(Incoming::Data(payload)) => self.on_frame(index, payload)?,
                Some(Incoming::Ping(payload)) => self.send_frame(index, frame::PONG, payload)?,
                Some(Incoming::Pong) => {}
                Some(Incoming::Close(code, reason)) => {
                    return Err(Cut::Closed { code, reason: String::from_utf8_lossy(reason).into_owned() });
                }
            }
        }
        self.links[index].assembler = assembler;
        Ok(used)
    }

    fn on_frame(&mut self, index: usize, payload: &[u8]) -> Result<(), Cut> {
        let encoding = self.plan.encoding;
        let mut rest = payload;
        while let Some(message) = next_message(encoding, &mut rest) {
            let message = message.map_err(|_| Cut::Undecodable("the payload has no messages".to_owned()))?;
            if message.is_ping(encoding) {
                let pong = wire::pong_frame(encoding, self.mask);
                self.send(index, &pong)?;
                continue;
            }
            let replies = wire::read_reply(encoding, message.framed);
            for reply in replies.map_err(|error| Cut::Undecodable(error.to_string()))? {
                self.on_reply(index, reply.id, reply.body)?;
            }
        }
        Ok(())
    }

    fn on_reply(&mut self, index: usize, id: u32, body: Option<ReplyBody>) -> Result<(), Cut> {
        let refusal = match body {
            Some(ReplyBody::Connect(_)) => {
                self.links[index].state = State::Ready;
                self.links[index].seen_ready = true;
                return Ok(());
            }
            Some(ReplyBody::Publish(_)) => None,
            Some(ReplyBody::Error(error)) if id == CONNECT_ID => {
                let protocol::Error { code, message, temporary } = error;
                return Err(Cut::Refused { command: "connect", code, message, temporary });
            }
            Some(ReplyBody::Error(error)) => Some(format!("publish error {}: {}", error.code, error.message)),
            _ => return Ok(()),
        };
        let message = message_of(&self.plan.schedule, index, id);
        let in_flight = &mut self.links[index].in_flight;
        // Answers may overtake each other; the search is bounded by the depth.
        let Some(at) = in_flight.iter().position(|waiting| *waiting == message) else {
            return Err(Cut::Undecodable(format!("a reply with the id {id}, which nobody waits for")));
        };
        in_flight.remove(at);
        self.settle(index, message, refusal);
        Ok(())
    }

    fn send_frame(&mut self, index: usize, opcode: u8, payload: &[u8]) -> Result<(), Cut> {
        let mut out = Vec::new();
        write_frame(opcode, payload, Some(self.mask), &mut out);
        self.send(index, &out)
    }

    fn send(&mut self, index: usize, bytes: &[u8]) -> Result<(), Cut> {
        let link = &mut self.links[index];
        match &mut link.socket {
            Some(socket) => link.outbox.write(socket, bytes),
            None => Ok(()),
        }
    }

    fn settle(&mut self, index: usize, message: u64, refusal: Option<String>) {
        self.settled += 1;
        self.links[index].retries = 0;
        let now = sys::monotonic_ns();
        let waited_ns = self.start.map_or(0, |start| now.saturating_sub(start + self.plan.schedule.due_ns(message)));
        self.ack_us.saturating_record(waited_ns / 1000);
        let is_late = self.plan.late_after.is_some_and(|late| waited_ns > late.as_nanos() as u64);
        if refusal.is_some() || is_late {
            self.last_trouble_ns = now;
        }
        match refusal {
            Some(reason) => {
                self.failures.count(&reason);
                self.timeline.count(now, Event::PublishFailed);
            }
            None => {
                self.outcomes[message as usize] = Outcome::Acknowledged;
                self.timeline.count(now, Event::Acknowledged);
            }
        }
    }

    fn fail(&mut self, index: usize, cut: Cut) {
        let (link, now) = (&mut self.links[index], sys::monotonic_ns());
        self.settled += link.in_flight.len() as u64;
        self.last_trouble_ns = now;
        link.in_flight.iter().for_each(|_| self.timeline.count(now, Event::PublishFailed));
        let reason = match link.in_flight.len() {
            0 => cut.to_string(),
            unanswered => format!("{cut}, with {unanswered} unanswered"),
        };
        self.failures.count(&reason);
        // Answers on a new WebSocket connection start with the ids of that connection's messages, which are derived from
        // the message and so stay unique.
        *link = Link {
            next: link.next,
            seen_ready: link.seen_ready,
            retries: link.retries + 1,
            retry_ns: now + RETRY_NS,
            ..Link::default()
        };
    }
}

/// Appends the request, or the masked frame, that publishes a message.
fn append_message(plan: &Plan, node: usize, message: u64, intended_ns: u64, mask: [u8; 4], out: &mut Vec<u8>) {
    let place = plan.schedule.place(message);
    let stamp = Stamp {
        run: plan.run,
        channel: place.channel,
        publisher: place.publisher as u16,
        sequence: place.sequence,
        intended_ns,
    };
    let channel = &plan.channels[place.channel as usize];
    let mut data = Vec::with_capacity(plan.payload_bytes);
    write_payload(&stamp, plan.payload_bytes, &mut data);
    match &plan.publishing {
        Publishing::Api { targets, key, .. } => {
            let target = &targets[node % targets.len()];
            let mut body = b"{\"channel\":".to_vec();
            body.extend_from_slice(serde_json::Value::from(channel.as_str()).to_string().as_bytes());
            body.extend_from_slice(b",\"data\":");
            body.extend_from_slice(&data);
            body.push(b'}');
            append_post(&target.host, &target.path, key.as_deref(), &body, out);
        }
        Publishing::WebSocket { .. } | Publishing::Nobody | Publishing::Peer => {
            let mut command = Vec::with_capacity(data.len() + 64);
            let id = id_of(&plan.schedule, message);
            wire::append_publish(plan.encoding, id, channel, data, &mut command);
            let payload = protocol::frame_payload(plan.encoding, &command);
            write_frame(wire::opcode(plan.encoding), payload, Some(mask), out);
        }
    }
}

/// The id of the command that publishes a message: increasing on each connection, and behind that of connect.
fn id_of(schedule: &Schedule, message: u64) -> u32 {
    CONNECT_ID + 1 + (message / u64::from(schedule.publishers)) as u32
}

fn message_of(schedule: &Schedule, publisher: usize, id: u32) -> u64 {
    u64::from(id.saturating_sub(CONNECT_ID + 1)) * u64::from(schedule.publishers) + publisher as u64
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::scenario::fanout::PublishingOptions;
    use crate::scenario::options::ClientOptions;
    use crate::scenario::population::PopulationOptions;
    use crate::target::Target;

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        client: ClientOptions,
        #[command(flatten)]
        population: PopulationOptions,
        #[command(flatten)]
        publishing: PublishingOptions,
    }

    /// Two publishers of a run that began at 0, seen at 5 s; one is connected, and the other one just left its node.
    fn publishers() -> Publishers {
        let options = Options::parse_from("loadgen -n 1 --publisher ws --publishers 2 --rate 2".split(' '));
        let target = Target::parse("ws://127.0.0.1:1/", "ws", false).expect("valid");
        let plan = options.population.plan(&options.client, &options.publishing, vec![target]).expect("a plan");
        let mut publishers = Publishers::new(&Arc::new(plan), 0).expect("there are publishers");
        publishers.start = Some(0);
        let states = [State::Ready, State::Idle];
        publishers.links.iter_mut().zip(states).for_each(|(link, state)| {
            (link.state, link.seen_ready) = (state, true);
        });
        publishers
    }

    const SEEN_AT: u64 = 5_000_000_000;

    #[test]
    fn publishers_with_something_to_do_have_something_due() {
        let mut publishers = publishers();
        publishers.links[1].retry_ns = 7;
        assert_eq!(publishers.next_due_ns(SEEN_AT, Some(0)), Some(0), "the first message");
        publishers.links[0].next = 20;
        assert_eq!(publishers.next_due_ns(SEEN_AT, Some(0)), Some(7), "the next attempt");
    }

    #[test]
    fn nothing_is_due_when_all_is_over() {
        let mut stopped = publishers();
        stopped.is_stopped = true;
        assert_eq!(stopped.next_due_ns(SEEN_AT, Some(0)), None);
        let late = publishers();
        assert_eq!(late.next_due_ns(late.plan.schedule.duration_ns() + OVERTIME_NS + 1, Some(0)), None);
    }

    #[test]
    fn a_command_id_leads_back_to_its_message() {
        let schedule = Schedule::with_total(1.0, 1000, 3, 7);
        for message in 0..1000 {
            let publisher = schedule.place(message).publisher as usize;
            assert_eq!(message_of(&schedule, publisher, id_of(&schedule, message)), message);
        }
    }
}
