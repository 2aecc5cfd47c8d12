//! Carrying out what sessions and the hub ask for.
//!
//! One event (a client frame, an answer, a timer, a command) puts work on a queue; [`Shard::run`] empties it and then
//! writes each touched connection's replies in one go. Nothing here waits.

use std::rc::Rc;
use std::sync::Arc;

use backplane::{ChannelName, HistoryQuery, NewPublication, PresenceEvent};
use bytes::Bytes;
use futures_util::future::join_all;
use protocol::{Reply, ReplyBody};
use session::ClientError;
use session::close::CloseCode;
use session::io::{Input, Join, OperationError, Output};
use session::proxy::PublishOptions;

use super::connection::{Connection, Phase};
use super::{CLOSE_TIMEOUT, Shard, Work};
use crate::hub::shard_hub::Port;
use crate::hub::{Check, ConnKey, Effect, Hub, Outgoing};
use crate::node::Publish;
use crate::transport::frame;
use crate::transport::socket::Sent;

/// Reply bytes after which they are written without waiting for the end of the event.
const REPLIES_FLUSH_BYTES: usize = 32 << 10;

/// History reads of a shard under way; more wait. Enough to keep Redis busy over a round trip of some milliseconds, few
/// enough that the answers fit into memory and clients' own calls do not wait behind them.
const READS_AT_ONCE: usize = 128;

/// Reply buffers kept for reuse; more than a handful are in use only when commands arrive in a burst.
const SPARE_REPLIES: usize = 16;

impl Shard {
    /// Works until nothing is left to do, then writes what was gathered. Calls from within are no-ops: the outermost
    /// one does their work.
    pub(super) fn run(self: &Rc<Self>) {
        if self.running.replace(true) {
            return;
        }
        let _guard = AbortOnPanic("a shard's event");
        loop {
            self.work_off();
            let touched = std::mem::take(&mut *self.touched.borrow_mut());
            if touched.is_empty() {
                break;
            }
            for connection in &touched {
                connection.touched.set(false);
                self.flush(connection);
            }
            self.recycle_touched(touched);
        }
        self.running.set(false);
        if !self.passing.get() && !self.dirty.borrow().is_empty() {
            self.inbox.nudge();
        }
    }

    /// Does what is queued, without writing yet.
    fn work_off(self: &Rc<Self>) {
        loop {
            let work = self.work.borrow_mut().pop_front();
            match work {
                Some(Work::Input(connection, input)) => self.feed(&connection, input),
                Some(Work::Output(connection, output)) => self.carry_out(&connection, output),
                Some(Work::Effect(effect)) => self.effect(effect),
                Some(Work::Acknowledge(waiting)) => waiting.answer(),
                None if self.send_interest() => {}
                None => return,
            }
        }
    }

    /// One client message: each command is carried out as far as it goes before the next one is looked at, and the
    /// replies to all of them are written together.
    pub(super) fn message(self: &Rc<Self>, connection: &Rc<Connection>, payload: &Bytes) {
        let _guard = AbortOnPanic("a client message");
        let limits = self.node.runtime().limits;
        self.running.set(true);
        for command in protocol::decode_commands(connection.encoding, payload, &limits) {
            self.meters.received();
            let input = match command {
                Ok(command) => Input::Command(command),
                Err(error) => {
                    tracing::debug!(%error, "a client frame cannot be decoded");
                    Input::Undecodable
                }
            };
            self.enqueue(Work::Input(connection.clone(), input));
            self.work_off();
            if connection.phase.get() != Phase::Open {
                break;
            }
        }
        self.running.set(false);
        self.run();
    }

    fn recycle_touched(&self, mut touched: Vec<Rc<Connection>>) {
        touched.clear();
        let mut place = self.touched.borrow_mut();
        if place.is_empty() {
            *place = touched;
        }
    }

    /// Gives a session one input. Its replies are encoded at once, its other outputs follow in order.
    fn feed(self: &Rc<Self>, connection: &Rc<Connection>, input: Input) {
        let is_joined = matches!(input, Input::Joined { .. });
        if is_joined {
            connection.joins_in_flight.set(connection.joins_in_flight.get() - 1);
        }
        let mut outputs = std::mem::take(&mut *self.outputs.borrow_mut());
        let now = self.now();
        let established = {
            let runtime = self.node.runtime();
            let mut session = connection.session.borrow_mut();
            let was_answering = session.is_answering() && matches!(input, Input::Deadline);
            session.handle(&runtime.context(), now, input, &mut outputs);
            if was_answering && session.is_closed() {
                self.meters.unanswered();
            }
            session.is_established()
        };
        for output in outputs.drain(..) {
            match output {
                Output::Send(reply) => {
                    if is_refusal(&reply) {
                        self.meters.refused();
                    }
                    self.reply(connection, &reply);
                    // The first reply of an established session is that to its connect: what waited for it follows.
                    if established && !connection.established.replace(true) {
                        self.uncork(connection);
                    }
                }
                other => self.enqueue(Work::Output(connection.clone(), other)),
            }
        }
        *self.outputs.borrow_mut() = outputs;
        if is_joined && connection.joins_in_flight.get() == 0 && connection.phase.get() != Phase::Open {
            self.joins_are_over(connection);
        }
        if connection.phase.get() == Phase::Gone {
            self.release_if_over(connection);
            return;
        }
        self.arm(connection, now.tick);
        // The task may have stopped reading until the session wanted more.
        if connection.io.try_borrow().is_ok_and(|io| io.leftover.is_some() && !io.reading)
            && connection.session.borrow().wants_commands()
        {
            connection.wake();
        }
    }

    fn carry_out(self: &Rc<Self>, connection: &Rc<Connection>, output: Output) {
        let conn = connection.clone();
        match output {
            Output::Send(reply) => self.reply(connection, &reply),
            Output::VerifyConnection { token } => {
                let verification = self.node.runtime().verifier.verify_connection(&token, self.now().unix);
                self.verify(verification, move |result| (conn, Input::ConnectionVerified(result)));
            }
            Output::VerifyRefresh { id, token } => {
                let verification = self.node.runtime().verifier.verify_connection(&token, self.now().unix);
                self.verify(verification, move |result| (conn, Input::RefreshVerified { id, result }));
            }
            Output::VerifySubscription { id, purpose, channel, token } => {
                let verification = self.node.runtime().verifier.verify_subscription(&token, self.now().unix);
                self.verify(verification, move |result| {
                    (conn, Input::SubscriptionVerified { id, purpose, channel, result })
                });
            }
            Output::Established { info } => {
                if connection.phase.get() != Phase::Open || connection.indexed.get() {
                    return;
                }
                if !self.node.user_limits.enter(&info.user) {
                    self.meters.user_refused();
                    return self.feed(connection, Input::Close(CloseCode::ConnectionLimit));
                }
                connection.indexed.set(true);
                self.users.borrow_mut().insert(&info.user, connection.key.index);
                self.meters.established();
                self.note_return(connection, &info.user);
                self.confirm(connection);
            }
            Output::Resume { user, info } => self.resume(connection, user, info),
            Output::Detach(kept) => self.detach(connection, &kept),
            Output::Linger { channel } => self.linger(channel, connection),
            Output::Join(join) => self.join(conn, join),
            Output::Leave { channel, hub, presence } => {
                self.losses.borrow_mut().ended(connection.key, &channel);
                if hub {
                    let now = self.now().tick;
                    self.hub.borrow_mut().leave(connection.key, &channel, now);
                }
                if presence {
                    self.remove_presence(channel, connection);
                }
            }
            Output::Announce { channel, info, joined } => {
                let event = if joined { PresenceEvent::Join(info) } else { PresenceEvent::Leave(info) };
                let (node, tidying) = (self.node.clone(), self.node.tidying());
                let announced = async move {
                    let _tidying = tidying;
                    node.announce(&channel, event).await;
                };
                self.perform(announced, |_, ()| {});
            }
            Output::Publish { id, channel, data, info, options } => {
                let node = self.node.clone();
                let PublishOptions { tags, skip_history, idempotency_key, version, version_epoch } =
                    options.map(|options| *options).unwrap_or_default();
                let options = Publish { skip_history, idempotency_key, version, version_epoch };
                // A copy: the payload is a slice of the whole client frame, which history would keep alive.
                let data = Bytes::copy_from_slice(&data);
                let publication = NewPublication { data, info: Some(info), tags };
                self.perform(
                    async move { node.publish(&channel, publication, options).await },
                    move |shard, result| {
                        let result = result.map(|_| ()).map_err(unavailable);
                        shard.enqueue(Work::Input(conn, Input::Published { id, result }));
                    },
                );
            }
            Output::ReadPresence { id, channel } => {
                let backplane = self.node.backplane.clone();
                self.perform(async move { backplane.presence(&channel).await }, move |shard, result| {
                    let result = result.map_err(unavailable);
                    shard.enqueue(Work::Input(conn, Input::Presence { id, result }));
                });
            }
            Output::ReadPresenceStats { id, channel } => {
                let backplane = self.node.backplane.clone();
                self.perform(async move { backplane.presence_stats(&channel).await }, move |shard, result| {
                    let result = result.map_err(unavailable);
                    shard.enqueue(Work::Input(conn, Input::PresenceStats { id, result }));
                });
            }
            Output::ReadHistory { id, channel, query } => {
                let node = self.node.clone();
                let asked = query.clone();
                self.perform(async move { node.history(&channel, asked).await }, move |shard, result| {
                    let result = result.map_err(unavailable);
                    shard.enqueue(Work::Input(conn, Input::History { id, query, result }));
                });
            }
            Output::Proxy(call) => self.ask_proxy(conn, *call),
            Output::EmulatedHeaders(headers) => self.keep_emulated(connection, &headers),
            Output::Close(code) => self.start_close(connection, &code),
        }
    }

    fn verify<T: 'static>(
        self: &Rc<Self>,
        verification: auth::Verification<T>,
        input: impl FnOnce(Result<T, session::io::TokenError>) -> (Rc<Connection>, Input) + 'static,
    ) {
        match verification {
            auth::Verification::Ready(result) => {
                let (connection, input) = input(result);
                self.enqueue(Work::Input(connection, input));
            }
            auth::Verification::Pending(future) => self.perform(future, move |shard, result| {
                let (connection, input) = input(result);
                shard.enqueue(Work::Input(connection, input));
            }),
        }
    }

    /// Presence first, then the hub; the session hears `Joined` exactly once, and after an error nothing is left.
    fn join(self: &Rc<Self>, connection: Rc<Connection>, join: Join) {
        connection.joins_in_flight.set(connection.joins_in_flight.get() + 1);
        if connection.session.borrow().is_closed() {
            // It closed in the same breath: nothing has to be made only to be undone.
            let result = Err(OperationError::Unavailable("the connection is gone".to_owned()));
            self.enqueue(Work::Input(connection, Input::Joined { channel: join.channel, result }));
            return;
        }
        let Some(info) = join.presence.clone() else {
            self.join_hub(&connection, &join);
            return;
        };
        let backplane = self.node.backplane.clone();
        let channel = join.channel.clone();
        let may_adopt = self.may_adopt(&connection);
        let added = async move {
            if may_adopt {
                backplane.adopt_presence(&channel, info).await
            } else {
                backplane.add_presence(&channel, info).await.map(|()| false)
            }
        };
        self.perform(added, move |shard, result| match result {
            Ok(is_adopted) => {
                if is_adopted {
                    shard.feed(&connection, Input::Adopted { channel: join.channel.clone() });
                }
                shard.join_hub(&connection, &join);
            }
            Err(error) => {
                let result = Err(unavailable(error));
                shard.enqueue(Work::Input(connection, Input::Joined { channel: join.channel, result }));
            }
        });
    }

    fn join_hub(self: &Rc<Self>, connection: &Rc<Connection>, join: &Join) {
        let now = self.now().tick;
        let options = self.node.history_options(&join.channel).filter(|_| join.has_history);
        self.with_hub(|hub, port| hub.join(connection.key, join, options, now, port));
    }

    fn remove_presence(self: &Rc<Self>, channel: ChannelName, connection: &Connection) {
        let (backplane, tidying) = (self.node.backplane.clone(), self.node.tidying());
        let client = connection.session.borrow().client();
        let removed = async move {
            let _tidying = tidying;
            backplane.remove_presence(&channel, client).await
        };
        self.perform(removed, |_, result| {
            if let Err(error) = result {
                tracing::debug!(%error, "a presence entry stays until its lease ends");
            }
        });
    }

    /// Keeps the presence entry of a client that may come back, also beyond the end of this process.
    fn linger(self: &Rc<Self>, channel: ChannelName, connection: &Connection) {
        let (backplane, tidying) = (self.node.backplane.clone(), self.node.tidying());
        let (client, grace) = (connection.session.borrow().client(), self.node.runtime().sessions.presence_grace);
        let lingers = async move {
            let _tidying = tidying;
            backplane.linger_presence(&channel, client, grace).await
        };
        self.perform(lingers, |_, result| {
            if let Err(error) = result {
                tracing::debug!(%error, "a presence entry lingers later than it should");
            }
        });
    }

    // --- the hub ---

    /// Calls the hub with the port to this shard's connections.
    pub(super) fn with_hub(self: &Rc<Self>, call: impl FnOnce(&mut Hub, &mut ShardPort<'_>)) {
        let mut hub = self.hub.borrow_mut();
        call(&mut hub, &mut ShardPort { shard: self });
    }

    fn effect(self: &Rc<Self>, effect: Effect) {
        match effect {
            Effect::Interest(channel) => self.declare_interest(channel),
            Effect::Release(channel) => self.release_interest(channel),
            Effect::Read { .. } => self.read(effect),
            Effect::CheckPositions(checks) => {
                let backplane = self.node.backplane.clone();
                // One by one, because a part of a backplane may be away: the others are to be compared all the same.
                let tops = async move {
                    let top = async |check: &Check| {
                        let query = HistoryQuery::position();
                        backplane.history(&check.channel, query, check.options).await.map(|page| page.top)
                    };
                    let tops = join_all(checks.iter().map(top)).await;
                    (checks, tops)
                };
                self.perform(tops, move |shard, (checks, tops)| {
                    shard.with_hub(|hub, port| {
                        for (check, top) in checks.iter().zip(tops) {
                            hub.checked(check, top.map_err(|error| error.to_string()), port);
                        }
                    });
                });
            }
            Effect::Observed(channel, position) => self.node.registry.observed(&channel, &position),
            // The port handles these at once.
            Effect::Joined { conn, channel, result } => {
                if let Some(connection) = self.connection(conn) {
                    self.feed(&connection, Input::Joined { channel, result });
                }
            }
            Effect::PositionLost { conn, channel } => {
                if let Some(connection) = self.connection(conn) {
                    self.feed(&connection, Input::PositionLost { channel });
                }
            }
        }
    }

    /// Reads history, a bounded number of pages at a time: after an outage every channel may want one, and each may be
    /// long.
    fn read(self: &Rc<Self>, effect: Effect) {
        if self.reads_under_way.get() >= READS_AT_ONCE {
            self.reads_waiting.borrow_mut().push_back(effect);
            return;
        }
        let Effect::Read { ticket, channel, options, query } = effect else { return };
        self.reads_under_way.set(self.reads_under_way.get() + 1);
        let backplane = self.node.backplane.clone();
        self.perform(async move { backplane.history(&channel, query, options).await }, move |shard, result| {
            shard.reads_under_way.set(shard.reads_under_way.get() - 1);
            let now = shard.now().tick;
            let result = result.map_err(|error| error.to_string());
            shard.with_hub(|hub, port| hub.read_done(ticket, result, now, port));
            let next = shard.reads_waiting.borrow_mut().pop_front();
            if let Some(next) = next {
                shard.enqueue(Work::Effect(next));
            }
        });
    }

    // --- sending ---

    /// Encodes a reply behind everything the connection was sent before.
    fn reply(self: &Rc<Self>, connection: &Rc<Connection>, reply: &Reply) {
        if connection.phase.get() != Phase::Open || connection.doomed.get() {
            return;
        }
        if !connection.batch.get().is_empty() {
            self.flush(connection);
        }
        let mut replies = connection.replies.borrow_mut();
        if replies.is_empty() {
            *replies = self.spare_replies.borrow_mut().pop().unwrap_or_default();
            replies.resize(frame::HEADER_MAX, 0);
        }
        if protocol::encode_reply(connection.encoding, reply, &mut replies).is_err() {
            self.doom(connection, CloseCode::InappropriateProtocol);
        }
        let full = replies.len() >= REPLIES_FLUSH_BYTES;
        drop(replies);
        if full {
            self.flush(connection);
        } else if !connection.touched.replace(true) {
            self.touched.borrow_mut().push(connection.clone());
        }
    }

    /// Writes what a connection was sent: replies, then the batch of the current pass.
    pub(super) fn flush(self: &Rc<Self>, connection: &Rc<Connection>) {
        let queue_bytes = self.io_limits().queue_bytes;
        let mut replies = std::mem::take(&mut *connection.replies.borrow_mut());
        if !replies.is_empty() {
            let payload_bytes = protocol::frame_payload(connection.encoding, &replies[frame::HEADER_MAX..]).len();
            if payload_bytes > 0 {
                let (header, used) = frame::header(connection.encoding, payload_bytes);
                let start = frame::HEADER_MAX - used;
                replies[start..frame::HEADER_MAX].copy_from_slice(&header[..used]);
                let frames = &replies[start..frame::HEADER_MAX + payload_bytes];
                let sent = connection.send_slice(frames, queue_bytes);
                self.sent(connection, sent);
            }
            replies.clear();
            let mut spare = self.spare_replies.borrow_mut();
            if spare.len() < SPARE_REPLIES && replies.capacity() <= 2 * REPLIES_FLUSH_BYTES {
                spare.push(replies);
            }
        }
        let batch = connection.batch.replace(super::batch::BatchId::EMPTY);
        if !batch.is_empty() {
            let (messages, frames) = {
                let mut batches = self.batches.borrow_mut();
                (batches.messages(batch), batches.take_frames(batch, connection.encoding))
            };
            self.meters.delivered(messages);
            let sent = connection.send(&frames, queue_bytes);
            self.sent(connection, sent);
        }
    }

    fn sent(self: &Rc<Self>, connection: &Rc<Connection>, sent: Sent) {
        match sent {
            Sent::Written => {}
            Sent::Queued => self.meters.queued(),
            Sent::Overflow => self.doom(connection, CloseCode::Slow),
            Sent::Broken => {
                connection.broken.set(true);
                connection.wake();
            }
        }
    }

    /// Closes a connection that missed something: from here on it is sent nothing more, so that no client sees what
    /// comes after a hole.
    fn doom(&self, connection: &Rc<Connection>, code: CloseCode) {
        if connection.phase.get() == Phase::Open && !connection.doomed.replace(true) {
            self.enqueue(Work::Input(connection.clone(), Input::Close(code)));
        }
    }

    /// Appends the deliveries that waited for the connect reply.
    fn uncork(self: &Rc<Self>, connection: &Rc<Connection>) {
        let Some(corked) = connection.corked.take() else { return };
        for outgoing in &corked.held {
            self.append(connection, outgoing);
        }
        if !connection.touched.replace(true) {
            self.touched.borrow_mut().push(connection.clone());
        }
    }

    /// One delivery for one connection: the hot path.
    #[inline]
    fn append(&self, connection: &Rc<Connection>, outgoing: &Arc<Outgoing>) {
        if connection.phase.get() != Phase::Open || connection.doomed.get() {
            return;
        }
        if !connection.established.get() {
            self.cork(connection, outgoing);
            return;
        }
        if outgoing.encoded(connection.encoding).is_none() {
            self.doom(connection, CloseCode::InappropriateProtocol);
            return;
        }
        let before = connection.batch.get();
        connection.batch.set(self.batches.borrow_mut().append(before, outgoing));
        if before.is_empty() {
            self.dirty.borrow_mut().push(connection.clone());
        }
    }

    /// Holds a delivery back until the connect reply is out, within the bound of the connection's queue.
    fn cork(&self, connection: &Rc<Connection>, outgoing: &Arc<Outgoing>) {
        let mut corked = connection.corked.take().unwrap_or_default();
        corked.bytes += outgoing.weight();
        if corked.bytes > self.io_limits().queue_bytes {
            self.doom(connection, CloseCode::Slow);
        } else {
            corked.held.push(outgoing.clone());
        }
        connection.corked.set(Some(corked));
    }

    /// Begins the closing handshake: everything sent before is flushed, unless the peer does not read.
    fn start_close(self: &Rc<Self>, connection: &Rc<Connection>, code: &CloseCode) {
        if connection.phase.get() != Phase::Open {
            return;
        }
        let limits = self.io_limits();
        if code.flushes() {
            self.flush(connection);
        } else {
            connection.replies.borrow_mut().clear();
            self.batches.borrow_mut().abandon(connection.batch.replace(super::batch::BatchId::EMPTY));
        }
        connection.corked.take();
        self.unindex(connection);
        self.meters.disconnect(code.code());
        connection.phase.set(Phase::Closing);
        {
            let mut io = connection.io.borrow_mut();
            let super::connection::Io { socket, reader, reading, pending_close, .. } = &mut *io;
            if let Some(socket) = socket {
                if !code.flushes() {
                    socket.discard_queue();
                }
                if *code == CloseCode::ConnectionClosed {
                    connection.phase.set(Phase::Discarding);
                } else if *reading {
                    *pending_close = Some(code.clone());
                } else {
                    reader.close(code, socket, limits.message_bytes);
                }
            }
        }
        let now = self.now().tick;
        connection.drop_at.set(now.after(CLOSE_TIMEOUT));
        connection.armed.set(u64::MAX);
        self.arm(connection, now);
        connection.wake();
        self.with_hub(|hub, port| hub.detach(connection.key, now, port));
    }
}

/// A command that was not carried out because its connection sends too much.
fn is_refusal(reply: &Reply) -> bool {
    matches!(&reply.body, Some(ReplyBody::Error(error)) if error.code == ClientError::TooManyRequests.code())
}

fn unavailable(error: backplane::BackplaneError) -> OperationError {
    OperationError::Unavailable(error.to_string())
}

/// A panic on a shard's thread leaves its state half changed: better that the process ends and its clients go to another
/// node than that it lives on without answering.
pub(super) struct AbortOnPanic(pub &'static str);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(during = self.0, "panic: the process ends");
            std::process::abort();
        }
    }
}

/// The hub's way to the connections of its shard.
pub(super) struct ShardPort<'a> {
    shard: &'a Rc<Shard>,
}

impl Port for ShardPort<'_> {
    #[inline]
    fn send(&mut self, conn_index: u32, outgoing: &Arc<Outgoing>) {
        if let Some(connection) = self.shard.connections.borrow().get(conn_index as usize) {
            self.shard.append(connection, outgoing);
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            // At once: a publication sent to this connection next must come after the reply.
            Effect::Joined { conn, channel, result } => self.feed(conn, Input::Joined { channel, result }),
            Effect::PositionLost { conn, channel } => {
                if self.shard.losses.borrow_mut().admit(conn, &channel) {
                    self.feed(conn, Input::PositionLost { channel });
                }
            }
            Effect::Interest(_)
            | Effect::Release(_)
            | Effect::Read { .. }
            | Effect::CheckPositions(_)
            | Effect::Observed(..) => self.shard.enqueue(Work::Effect(effect)),
        }
    }

    fn keeps(&self, conn: ConnKey, channel: &str) -> bool {
        self.shard
            .connection(conn)
            .is_some_and(|connection| connection.session.borrow().subscription(channel).is_some())
    }
}

impl ShardPort<'_> {
    fn feed(&self, conn: ConnKey, input: Input) {
        if let Some(connection) = self.shard.connection(conn) {
            self.shard.feed(&connection, input);
        }
    }
}
