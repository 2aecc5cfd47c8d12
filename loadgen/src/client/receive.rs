//! The receive path: from the bytes of a read to the audit.
//!
//! A publication is recognised by comparing what comes before its stamp with what came before the last one of its
//! channel; no parser runs. Whatever does not look familiar is decoded in full, and if it turns out to be a publication
//! of the right channel, its look becomes the familiar one.

use std::sync::atomic::Ordering;

use protocol::{ClientInfo, Publication, PushBody, Reply, ReplyBody, SubscribeResult, Unsubscribe};

use super::presence::{Change, identity};
use super::socket::Cut;
use super::worker::{Connection, State, Worker};
use crate::audit::Seen;
use crate::frame::{self, Incoming, write_frame};
use crate::http::read_upgrade;
use crate::stamp::{Stamp, read_payload};
use crate::timeline::Event;
use crate::wire::{self, FIRST_SUBSCRIBE_ID, Message, Position, Subscription, next_message};

impl Worker {
    /// Takes what is complete from `input`, and says how much that was.
    pub(super) fn consume(&mut self, connection: usize, input: &[u8], now: u64) -> Result<usize, Cut> {
        let mut used = 0;
        if self.connections[connection].state == State::Upgrading {
            match read_upgrade(input, self.plan.subprotocol())? {
                None => return Ok(0),
                Some(len) => used = len,
            }
            self.tally.timeline.count(now, Event::Accepted);
            self.greet(connection, now)?;
        }
        // Taken out for the duration, because a message may be borrowed from it.
        let mut assembler = std::mem::take(&mut self.connections[connection].assembler);
        let result = loop {
            match assembler.next(&input[used..]) {
                Err(error) => break Err(Cut::Frame(error)),
                Ok((step, incoming)) => {
                    used += step;
                    let done = match incoming {
                        None => break Ok(used),
                        Some(Incoming::Data(payload)) => self.on_frame(connection, payload, now),
                        Some(Incoming::Ping(payload)) => self.send_frame(connection, frame::PONG, payload),
                        Some(Incoming::Pong) => Ok(()),
                        Some(Incoming::Close(code, reason)) => {
                            let reason = String::from_utf8_lossy(reason).into_owned();
                            break Err(Cut::Closed { code, reason });
                        }
                    };
                    if let Err(cut) = done {
                        break Err(cut);
                    }
                }
            }
        };
        self.connections[connection].assembler = assembler;
        result
    }

    /// Sends connect and all subscribes.
    fn greet(&mut self, connection: usize, now: u64) -> Result<(), Cut> {
        let plan = self.plan.clone();
        let (from, _) = self.subscriptions_of(connection);
        let token = plan.tokens.of(self.first + connection).map_err(|error| Cut::Token(error.to_string()))?;
        let channels = plan.layout.channels_of(self.first + connection);
        let subscriptions = channels.iter().zip(from..).map(|(channel, subscription)| Subscription {
            channel: &plan.channels[*channel as usize],
            position: self.positions.get(subscription).and_then(Option::as_ref),
            join_leave: *channel < plan.presence_channels,
        });
        let payload = wire::first_frame(plan.encoding, token, subscriptions);
        let greeted = &mut self.connections[connection];
        greeted.state = State::Greeting;
        greeted.step_ns = now;
        greeted.awaited = 1 + channels.len() as u32;
        self.send_frame(connection, wire::opcode(plan.encoding), &payload)
    }

    pub(super) fn send_frame(&mut self, connection: usize, opcode: u8, payload: &[u8]) -> Result<(), Cut> {
        let mut out = Vec::with_capacity(payload.len() + 14);
        write_frame(opcode, payload, Some(self.mask), &mut out);
        self.send(connection, &out)
    }

    fn send(&mut self, connection: usize, bytes: &[u8]) -> Result<(), Cut> {
        let Connection { socket, outbox, .. } = &mut self.connections[connection];
        match socket {
            Some(socket) => outbox.write(socket, bytes),
            None => Ok(()),
        }
    }

    fn on_frame(&mut self, connection: usize, payload: &[u8], now: u64) -> Result<(), Cut> {
        let encoding = self.plan.encoding;
        let mut rest = payload;
        while let Some(message) = next_message(encoding, &mut rest) {
            let Ok(message) = message else {
                self.audit.corrupt();
                return Err(Cut::Undecodable("the payload does not divide into messages".to_owned()));
            };
            match self.scanner.find(message.body) {
                Some(at) => self.on_stamped(connection, message, at, now)?,
                None if message.is_ping(encoding) => {
                    self.tally.pings += 1;
                    self.send(connection, &wire::pong_frame(encoding, self.mask))?;
                }
                None => self.on_unfamiliar(connection, message, None, now)?,
            }
        }
        Ok(())
    }

    /// A message with a stamp at `at`: the path nearly every message takes.
    fn on_stamped(&mut self, connection: usize, message: Message<'_>, at: usize, now: u64) -> Result<(), Cut> {
        let Ok((stamp, len)) = read_payload(&message.body[at..]) else {
            return self.on_unfamiliar(connection, message, Some(at), now);
        };
        let looks_familiar =
            self.familiar.get(stamp.channel as usize).is_some_and(|start| start == &message.body[..at]);
        if stamp.run != self.plan.run || !looks_familiar {
            return self.on_unfamiliar(connection, message, Some(at), now);
        }
        let Some(subscription) = self.subscription(connection, stamp.channel) else {
            self.audit.misrouted();
            return Ok(());
        };
        let seen = self.deliver(subscription, &stamp, message.framed.len(), now);
        self.note_late(&stamp, now);
        if let Some(Some(_)) = self.positions.get(subscription) {
            match wire::offset_after_data(self.plan.encoding, &message.body[at + len..]) {
                Some(offset) => self.advance(subscription, offset, seen),
                None => {
                    for reply in read_reply(self, message)? {
                        if let Some(publication) = publication_of(&reply) {
                            self.advance(subscription, publication.offset, seen);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn deliver(&mut self, subscription: usize, stamp: &Stamp, bytes: usize, now: u64) -> Seen {
        let seen = self.audit.observe(subscription, stamp);
        if matches!(seen, Seen::Fresh | Seen::Reordered) {
            self.tally.latency_us.saturating_record(now.saturating_sub(stamp.intended_ns) / 1000);
            self.tally.message_bytes += bytes as u64;
            self.tally.last_delivery_ns = now;
            if self.shared.start_ns().is_none() {
                // The server publishes, so its first message tells when it began.
                self.shared.set_start_ns(stamp.intended_ns.max(1));
            }
        }
        seen
    }

    /// Counts a live delivery that comes later than the run allows. Recovered messages are not late: their subscriber was away.
    #[inline]
    fn note_late(&mut self, stamp: &Stamp, now: u64) {
        if now.saturating_sub(stamp.intended_ns) > self.late_after_ns {
            self.audit.late();
            self.tally.last_trouble_ns = self.tally.last_trouble_ns.max(now);
        }
    }

    /// The subscription of a connection to a channel, counted within this worker.
    fn subscription(&self, connection: usize, channel: u32) -> Option<usize> {
        let channels = self.plan.layout.channels_of(self.first + connection);
        let (from, _) = self.subscriptions_of(connection);
        match channels {
            [only] => (*only == channel).then_some(from),
            several => several.binary_search(&channel).ok().map(|at| from + at),
        }
    }

    /// Moves the position on. An offset that goes back is a fault of its own only if the message was not one already.
    fn advance(&mut self, subscription: usize, offset: u64, seen: Seen) {
        if let Some(Some(position)) = self.positions.get_mut(subscription)
            && offset > 0
        {
            if offset <= position.offset && seen == Seen::Fresh {
                self.audit.offset_went_back();
            }
            position.offset = position.offset.max(offset);
        }
    }

    /// Decodes a message in full. `stamped` is where its first stamp seems to be.
    fn on_unfamiliar(
        &mut self,
        connection: usize,
        message: Message<'_>,
        stamped: Option<usize>,
        now: u64,
    ) -> Result<(), Cut> {
        for reply in read_reply(self, message)? {
            if let Some(ReplyBody::Push(push)) = &reply.body
                && let PushBody::Publication(publication) = &push.body
            {
                let Some((subscription, stamp)) = self.check(connection, Some(&push.channel), publication) else {
                    continue;
                };
                let seen = self.deliver(subscription, &stamp, message.framed.len(), now);
                self.note_late(&stamp, now);
                self.advance(subscription, publication.offset, seen);
                if let Some(at) = stamped.filter(|at| message.body[*at..].starts_with(&publication.data)) {
                    self.familiar[stamp.channel as usize] = message.body[..at].to_vec();
                }
                continue;
            }
            self.on_reply(connection, reply, now)?;
        }
        Ok(())
    }

    /// Checks a publication that was decoded in full; counts what is wrong with it.
    fn check(&mut self, connection: usize, name: Option<&str>, publication: &Publication) -> Option<(usize, Stamp)> {
        let Ok((stamp, _)) = read_payload(&publication.data) else {
            self.audit.corrupt();
            return None;
        };
        if stamp.run != self.plan.run {
            self.tally.foreign += 1;
            return None;
        }
        let subscription = self.subscription(connection, stamp.channel);
        let named = self.plan.channels.get(stamp.channel as usize);
        if subscription.is_none() || name.is_some_and(|name| named.is_none_or(|named| named != name)) {
            self.audit.misrouted();
            return None;
        }
        subscription.map(|subscription| (subscription, stamp))
    }

    fn on_reply(&mut self, connection: usize, reply: Reply, now: u64) -> Result<(), Cut> {
        let Reply { id, body } = reply;
        let (from, count) = self.subscriptions_of(connection);
        let subscription = (id as usize).checked_sub(FIRST_SUBSCRIBE_ID as usize).filter(|index| *index < count);
        match body {
            Some(ReplyBody::Connect(result)) => {
                self.up(connection, identity(&result.client), now);
                self.answered(connection, now);
            }
            Some(ReplyBody::Subscribe(result)) => {
                let Some(index) = subscription else { return Err(unexpected("a subscribe reply nobody asked for")) };
                self.resubscribing.remove(&(from + index));
                self.on_subscribed(connection, from + index, result, now);
                self.answered(connection, now);
            }
            Some(ReplyBody::Error(error)) => {
                if let Some(index) = subscription.filter(|_| error.temporary)
                    && self.plan.sdk_of(self.first + connection).is_some()
                {
                    self.tally.failed_attempts.count(&format!("subscribe error {}", error.code));
                    self.resubscribe_later(connection, index, false);
                    return Ok(());
                }
                let command = if subscription.is_some() { "subscribe" } else { "connect" };
                let protocol::Error { code, message, temporary } = error;
                return Err(Cut::Refused { command, code, message, temporary });
            }
            Some(ReplyBody::Push(push)) => match push.body {
                PushBody::Unsubscribe(unsubscribe) => self.on_unsubscribed(connection, &push.channel, &unsubscribe),
                PushBody::Disconnect(disconnect) => {
                    return Err(Cut::Closed { code: u16::try_from(disconnect.code).ok(), reason: disconnect.reason });
                }
                PushBody::Join(join) => self.on_change(connection, &push.channel, join.info, Change::Join),
                PushBody::Leave(leave) => self.on_change(connection, &push.channel, leave.info, Change::Leave),
                // Lifetime events are not audited; publications were taken out by the caller.
                PushBody::Publication(_)
                | PushBody::Message(_)
                | PushBody::Subscribe(_)
                | PushBody::Connect(_)
                | PushBody::Refresh(_) => {}
            },
            _ => {}
        }
        Ok(())
    }

    /// The subscription to a named channel: its number within this worker, its index on the connection, and the channel's.
    fn named(&self, connection: usize, name: &str) -> Option<(usize, usize, u32)> {
        let channels = self.plan.layout.channels_of(self.first + connection);
        let index = channels.iter().position(|channel| self.plan.channels[*channel as usize] == name)?;
        let (from, _) = self.subscriptions_of(connection);
        Some((from + index, index, channels[index]))
    }

    fn on_unsubscribed(&mut self, connection: usize, name: &str, unsubscribe: &Unsubscribe) {
        let Some((subscription, index, _)) = self.named(connection, name) else { return };
        let reason = format!("unsubscribed: {} {}", unsubscribe.code, unsubscribe.reason);
        if self.plan.resumes() && unsubscribe.code >= 2500 {
            self.tally.cuts.count(&reason);
            self.resubscribe_later(connection, index, true);
            return;
        }
        self.tally.lost.count(&reason);
        self.audit.ended(subscription);
    }

    fn on_change(&mut self, connection: usize, name: &str, info: Option<ClientInfo>, change: Change) {
        if !self.shared.watching_presence.load(Ordering::Acquire) {
            return;
        }
        if let Some((subscription, _, channel)) = self.named(connection, name)
            && let Some(info) = info
        {
            let life = self.lives[connection].ended;
            self.events.observe(subscription, life, channel, identity(&info.client), change);
        }
    }

    /// One more reply to the first frame.
    fn answered(&mut self, connection: usize, now: u64) {
        let answered = &mut self.connections[connection];
        if answered.state == State::Greeting {
            answered.awaited = answered.awaited.saturating_sub(1);
            if answered.awaited == 0 {
                self.live(connection, now);
            }
        }
    }

    fn on_subscribed(&mut self, connection: usize, subscription: usize, result: SubscribeResult, now: u64) {
        let again = std::mem::replace(&mut self.subscribed[subscription], true);
        let asked = self.positions.get(subscription).and_then(Option::as_ref);
        let asked_to_recover = asked.is_some();
        let in_another_epoch = asked.is_some_and(|asked| !asked.epoch.is_empty() && asked.epoch != result.epoch);
        if result.recovered && (!asked_to_recover || in_another_epoch) {
            self.audit.contradictory();
        }
        if !result.recovered && !result.publications.is_empty() {
            self.audit.contradictory();
        }
        if self.plan.breaks_things && !result.recoverable {
            self.audit.promises_nothing(subscription);
        }
        if again && result.recovered {
            self.tally.recovered += 1;
            self.audit.claimed_recovered(subscription);
        } else if again && let Some(start) = self.shared.start_ns().filter(|start| *start <= now) {
            self.tally.not_recovered += u64::from(asked_to_recover);
            self.audit.told_missed(subscription, now - start);
        }
        if again {
            self.audit.resumed(subscription);
        }
        if let Some(position) = self.positions.get_mut(subscription) {
            // With `recovered` the offset in the reply is the client's own, and its publications move it on.
            let offset = match position {
                Some(position) if result.recovered => position.offset,
                _ => result.offset,
            };
            *position = result.recoverable.then_some(Position { offset, epoch: result.epoch });
        }
        for publication in &result.publications {
            // A publication under its own channel's reply; only the stamp can contradict that.
            if let Some((stamped, stamp)) = self.check(connection, None, publication) {
                if stamped != subscription {
                    self.audit.misrouted();
                    continue;
                }
                let seen = self.deliver(subscription, &stamp, publication.data.len(), now);
                self.advance(subscription, publication.offset, seen);
            }
        }
        if again && result.recovered {
            self.audit.claimed_recovered(subscription);
        }
    }
}

fn read_reply(worker: &mut Worker, message: Message<'_>) -> Result<Vec<Reply>, Cut> {
    wire::read_reply(worker.plan.encoding, message.framed).map_err(|error| {
        worker.audit.corrupt();
        let mut text = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            text = format!("{text}: {source}");
        }
        Cut::Undecodable(text)
    })
}

fn publication_of(reply: &Reply) -> Option<&Publication> {
    match &reply.body {
        Some(ReplyBody::Push(push)) => match &push.body {
            PushBody::Publication(publication) => Some(publication),
            _ => None,
        },
        _ => None,
    }
}

fn unexpected(what: &str) -> Cut {
    Cut::Undecodable(what.to_owned())
}
