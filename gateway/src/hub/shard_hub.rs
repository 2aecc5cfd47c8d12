//! All channels of one shard: joining, leaving, delivering. The repair half is in `repair`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use backplane::{ChannelName, Delivery, HistoryOptions, HistoryPage, HistoryQuery, StoredPublication, StreamPosition};
use session::io::{Join, Joined, OperationError, RecoverMode};
use session::time::Tick;
use slab::Slab;
use smallvec::SmallVec;

use super::Outgoing;
use super::channel::{Channel, Joiner, ReadPurpose, Stage, Stream, SubRef};
use super::checks::Check;
use super::recovery;
use super::settings::HubSettings;
use super::shared::{Bounds, Shared};

/// A connection of this shard. The generation tells a reused index apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnKey {
    /// Index in the shard's table.
    pub index: u32,
    /// Counts the uses of the index.
    pub generation: u32,
}

/// What a read is for, as the shard sees it: an opaque ticket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadKind {
    pub(super) channel: u32,
    pub(super) serial: u64,
}

/// What the shard has to carry out for the hub.
#[derive(Debug)]
pub enum Effect {
    /// Declare interest in the registry; answer with [`Hub::acknowledged`].
    Interest(ChannelName),
    /// End the interest.
    Release(ChannelName),
    /// Read history; answer with [`Hub::read_done`].
    Read {
        /// The ticket to answer with.
        ticket: ReadKind,
        /// The channel.
        channel: ChannelName,
        /// Its history options.
        options: HistoryOptions,
        /// What to read.
        query: HistoryQuery,
    },
    /// Read several tops; answer each with [`Hub::checked`].
    CheckPositions(Vec<Check>),
    /// Tell the registry what was read, so that other shards can start from it.
    Observed(ChannelName, StreamPosition),
    /// A join is complete: tell the session before anything else is delivered to it.
    Joined {
        /// Whose join.
        conn: ConnKey,
        /// The interned name.
        channel: ChannelName,
        /// Position and recovered publications.
        result: Result<Joined, OperationError>,
    },
    /// A subscription lost its position and was removed: tell the session.
    PositionLost {
        /// Whose subscription.
        conn: ConnKey,
        /// The channel.
        channel: ChannelName,
    },
}

/// Where the hub's results go.
pub trait Port {
    /// Appends a delivery to a connection's pending list. The hot path: called once per delivery and subscriber.
    fn send(&mut self, conn_index: u32, outgoing: &Arc<Outgoing>);
    /// An effect to carry out, in order with the sends.
    fn effect(&mut self, effect: Effect);
    /// Whether the session has kept the subscription that [`Effect::Joined`] has just told it of. It may have been ended
    /// while it was being made: the session then leaves in the very answer, and nothing more may be sent to it. A port
    /// that carries out a leave later than the effect has to say so here.
    fn keeps(&self, conn: ConnKey, channel: &str) -> bool;
}

/// Counted since the hub was made; the shard exports the differences.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct HubCounters {
    /// Gaps closed from history without a client noticing.
    pub gaps_repaired: u64,
    /// Gaps that history could not close: clients were told.
    pub gaps_lost: u64,
    /// Deliveries at or below the position: dropped.
    pub duplicates: u64,
    /// Hold-back buffers that were let go.
    pub hold_back_overflows: u64,
    /// History reads for recovery that were answered, by clients and by reads: their ratio is the coalescing.
    pub recoveries: u64,
    /// See `recoveries`.
    pub recovery_reads: u64,
}

/// One entry of a connection's own list: 8 bytes.
#[derive(Clone, Copy, Debug)]
struct Membership {
    channel: u32,
    /// Index in the channel's subscribers, or [`PENDING`] while the join is under way.
    index: u32,
}

const PENDING: u32 = u32::MAX;

/// Entries for which a queue always keeps its memory.
const QUEUE_KEPT: usize = 1024;

#[derive(Debug, Default)]
struct Member {
    generation: u32,
    attached: bool,
    channels: SmallVec<[Membership; 2]>,
}

/// Gives back what a storm has left in a queue, with room to grow again.
fn shrink<T>(queue: &mut VecDeque<T>) {
    if queue.capacity() > QUEUE_KEPT && queue.len() < queue.capacity() / 4 {
        queue.shrink_to(QUEUE_KEPT.max(queue.len() * 2));
    }
}

/// The channels of one shard.
#[derive(Debug)]
pub struct Hub {
    pub(super) settings: HubSettings,
    pub(super) channels: Slab<Channel>,
    pub(super) names: HashMap<ChannelName, u32>,
    members: Vec<Member>,
    /// Members that are attached.
    attached: usize,
    /// Channels without subscribers, oldest first: the linger time is the same for all, so the order is the deadline's.
    lingering: VecDeque<(Tick, ChannelName)>,
    pub(super) retries: VecDeque<(Tick, ChannelName)>,
    /// Channels that share what a recovery has read, oldest first.
    pub(super) sharing: VecDeque<(Tick, ChannelName)>,
    pub(super) checks: VecDeque<ChannelName>,
    /// Checks that were asked for and are not answered yet.
    pub(super) checks_under_way: usize,
    /// None of them was answered but with an error.
    pub(super) checks_failed: bool,
    /// Not before this.
    pub(super) checks_from: Tick,
    pub(super) sweep_cursor: usize,
    subscriptions: usize,
    pub(super) next_serial: u64,
    pub(super) counters: HubCounters,
}

impl Hub {
    /// An empty hub.
    pub fn new(settings: HubSettings) -> Self {
        Self {
            settings,
            channels: Slab::new(),
            names: HashMap::new(),
            members: Vec::new(),
            attached: 0,
            lingering: VecDeque::new(),
            retries: VecDeque::new(),
            sharing: VecDeque::new(),
            checks: VecDeque::new(),
            checks_under_way: 0,
            checks_failed: false,
            checks_from: Tick(0),
            sweep_cursor: 0,
            subscriptions: 0,
            next_serial: 0,
            counters: HubCounters::default(),
        }
    }

    /// A connection may join channels from now on.
    pub fn attach(&mut self, conn: ConnKey) {
        let index = conn.index as usize;
        if index >= self.members.len() {
            self.members.resize_with(index + 1, Member::default);
        }
        self.attached += usize::from(!self.members[index].attached);
        self.members[index] = Member { generation: conn.generation, attached: true, channels: SmallVec::new() };
    }

    /// A connection is gone: its subscriptions end, its joins under way are answered with an error.
    pub fn detach(&mut self, conn: ConnKey, now: Tick, port: &mut impl Port) {
        if !self.is_attached(conn) {
            return;
        }
        self.members[conn.index as usize].attached = false;
        for membership in std::mem::take(&mut self.members[conn.index as usize].channels) {
            if membership.index == PENDING {
                self.abandon_join(conn, membership.channel, port);
            } else {
                self.remove_sub(membership, now);
            }
        }
        self.attached -= 1;
        if self.attached == 0 {
            // Nobody is left who could ask by index.
            self.members = Vec::new();
        }
    }

    /// A connection joins a channel. Answered by [`Effect::Joined`], at once or later. The session guarantees that it
    /// neither joined nor is joining it already.
    pub fn join(
        &mut self,
        conn: ConnKey,
        join: &Join,
        options: Option<HistoryOptions>,
        now: Tick,
        port: &mut impl Port,
    ) {
        if !self.is_attached(conn) {
            let gone = Err(OperationError::Unavailable("the connection is gone".to_owned()));
            port.effect(Effect::Joined { conn, channel: join.channel.clone(), result: gone });
            return;
        }
        let joiner = Joiner {
            conn,
            positioned: join.positioned && options.is_some(),
            join_leave: join.push_join_leave,
            recover: join.recover.clone().filter(|_| options.is_some()),
        };
        let index = match self.names.get(&join.channel) {
            Some(&index) => index,
            None => self.create(join.channel.clone(), options, now, port),
        };
        self.members[conn.index as usize].channels.push(Membership { channel: index, index: PENDING });
        let channel = &mut self.channels[index as usize];
        channel.release_at = None;
        match channel.stage {
            Stage::Subscribing | Stage::Positioning => channel.joiners.push(joiner),
            Stage::Live => self.join_live(index, joiner, now, port),
        }
    }

    /// A connection leaves a channel it has joined; nothing happens if it has not.
    pub fn leave(&mut self, conn: ConnKey, channel: &str, now: Tick) {
        let Some(&index) = self.names.get(channel) else { return };
        if !self.is_attached(conn) {
            return;
        }
        let member = &mut self.members[conn.index as usize];
        let Some(slot) = member.channels.iter().position(|m| m.channel == index && m.index != PENDING) else { return };
        let membership = self.take_membership(conn.index, slot);
        self.remove_sub(membership, now);
    }

    /// The backplane delivers this channel from now on, or refused. `known` is the position before the first delivery.
    pub fn acknowledged(
        &mut self,
        channel: &str,
        result: Result<Option<StreamPosition>, String>,
        now: Tick,
        port: &mut impl Port,
    ) {
        let Some(&index) = self.names.get(channel) else { return };
        if self.channels[index as usize].stage != Stage::Subscribing {
            return;
        }
        let known = match result {
            Ok(known) => known,
            Err(reason) => {
                self.fail_joiners(index, &reason, port);
                self.forget(index);
                return;
            }
        };
        let entry = &mut self.channels[index as usize];
        let Some(stream) = &mut entry.stream else { return self.go_live(index, now, port) };
        // Whatever was held back so far was in the stream before the read that follows.
        let held = stream.work.take();
        match known.filter(|_| held.is_none()) {
            Some(position) => {
                stream.epoch = position.epoch;
                stream.position = position.offset;
                self.go_live(index, now, port);
            }
            None => {
                entry.stage = Stage::Positioning;
                self.read_for_joiners(index, ReadPurpose::Position, port);
            }
        }
    }

    /// A delivery of the backplane.
    pub fn deliver(&mut self, outgoing: &Arc<Outgoing>, now: Tick, port: &mut impl Port) {
        let Some(&index) = self.names.get(&outgoing.channel) else { return };
        let channel = &mut self.channels[index as usize];
        match (&outgoing.delivery, &mut channel.stream) {
            (Delivery::Presence(_), _) => {
                channel.subs.iter().filter(|sub| sub.join_leave()).for_each(|sub| port.send(sub.conn, outgoing));
            }
            (Delivery::Positioned { .. }, Some(_)) => self.deliver_positioned(index, outgoing, now, port),
            (Delivery::Unpositioned(_), _) | (Delivery::Positioned { .. }, None) => {
                channel.subs.iter().for_each(|sub| port.send(sub.conn, outgoing));
            }
        }
    }

    /// Regular work: ends lingering, retries failed repairs, compares quiet positions. Call about ten times a second.
    pub fn tick(&mut self, now: Tick, port: &mut impl Port) {
        while self.lingering.front().is_some_and(|(at, _)| *at <= now) {
            let (at, name) = self.lingering.pop_front().expect("a front was just seen");
            if let Some(&index) = self.names.get(&name)
                && self.channels[index as usize].release_at.take_if(|due| *due == at).is_some()
                // Somebody may have come in the very answer that emptied it.
                && self.is_empty(index)
            {
                self.forget(index);
                port.effect(Effect::Release(name));
            }
        }
        // As many as checks: after an outage the channels come back at a pace.
        for _ in 0..self.settings.checks_per_tick {
            if self.retries.front().is_none_or(|(at, _)| *at > now) {
                break;
            }
            let (at, name) = self.retries.pop_front().expect("a front was just seen");
            if let Some(&index) = self.names.get(&name) {
                self.retry(index, at, port);
            }
        }
        while self.sharing.front().is_some_and(|(until, _)| *until <= now) {
            let (until, name) = self.sharing.pop_front().expect("a front was just seen");
            if let Some(&index) = self.names.get(&name)
                && let Some(stream) = &mut self.channels[index as usize].stream
            {
                stream.shared.take_if(|shared| shared.until <= until);
            }
        }
        self.sweep(now);
        self.issue_checks(now, port);
        for queue in [&mut self.lingering, &mut self.retries, &mut self.sharing] {
            shrink(queue);
        }
        shrink(&mut self.checks);
    }

    /// Channels held, those lingering included.
    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }

    /// Subscriptions of this shard.
    pub fn subscription_count(&self) -> usize {
        self.subscriptions
    }

    /// Every channel with its subscribers here.
    pub fn channels(&self) -> impl Iterator<Item = (&ChannelName, usize)> {
        self.channels.iter().map(|(_, channel)| (&channel.name, channel.subs.len()))
    }

    /// What happened so far.
    pub fn counters(&self) -> HubCounters {
        self.counters
    }

    // --- joining ---

    fn create(&mut self, name: ChannelName, options: Option<HistoryOptions>, now: Tick, port: &mut impl Port) -> u32 {
        let index = self.channels.insert(Channel {
            name: name.clone(),
            stage: Stage::Subscribing,
            subs: Vec::new(),
            joiners: Vec::new(),
            stream: options.map(|options| Box::new(Stream::new(options, now))),
            release_at: None,
            check_queued: false,
        });
        let index = u32::try_from(index).expect("fewer than 2^32 channels fit in memory");
        self.names.insert(name.clone(), index);
        port.effect(Effect::Interest(name));
        index
    }

    pub(super) fn go_live(&mut self, index: u32, now: Tick, port: &mut impl Port) {
        let channel = &mut self.channels[index as usize];
        channel.stage = Stage::Live;
        if let Some(stream) = &mut channel.stream {
            stream.confirmed_at = now;
        }
        for joiner in std::mem::take(&mut channel.joiners) {
            self.join_live(index, joiner, now, port);
        }
        self.linger_if_empty(index, now);
    }

    /// Joins a live channel: at once where the shard's own position answers, else after a history read.
    fn join_live(&mut self, index: u32, joiner: Joiner, now: Tick, port: &mut impl Port) {
        match self.answer_now(index, &joiner, now) {
            Some(joined) => {
                self.counters.recoveries += u64::from(joiner.recover.is_some());
                self.admit(index, &joiner, joined, now, port);
            }
            None => {
                self.channels[index as usize].joiners.push(joiner);
                self.read_for_joiners(index, ReadPurpose::Recover, port);
            }
        }
    }

    /// What a joiner of a live channel can be told without a read.
    fn answer_now(&mut self, index: u32, joiner: &Joiner, now: Tick) -> Option<Joined> {
        let channel = &mut self.channels[index as usize];
        match (&mut channel.stream, &joiner.recover) {
            (None, _) => Some(Joined::default()),
            (Some(stream), None) => Some(recovery::answer(None, &[], &stream.at(), false)),
            (Some(stream), Some(from)) => {
                let other_epoch = !from.epoch.is_unknown() && from.epoch != stream.epoch;
                match from.mode {
                    // Everything delivered here is everything there was up to the shard's position.
                    RecoverMode::Stream if from.offset == stream.position && !other_epoch && !stream.doubted => {
                        Some(Joined { position: Some(stream.at()), recovered: true, publications: Vec::new() })
                    }
                    RecoverMode::Stream if stream.former_epoch.as_ref() == Some(&from.epoch) => {
                        Some(Joined { position: Some(stream.at()), recovered: false, publications: Vec::new() })
                    }
                    // An epoch never heard of may be a newer one: only the backplane knows.
                    RecoverMode::Stream | RecoverMode::Cache => {
                        if stream.doubted || stream.holds_back() {
                            return None;
                        }
                        let at = stream.at();
                        stream.shared.as_mut().filter(|shared| now < shared.until)?.answer(from, &at)
                    }
                }
            }
        }
    }

    /// Keeps what a recovery has read for those who come back next.
    pub(super) fn share(&mut self, index: u32, entries: &[StoredPublication], is_newest: bool, now: Tick) {
        let bounds = self.share_bounds();
        let channel = &mut self.channels[index as usize];
        let Some(stream) = channel.stream.as_mut().filter(|_| !self.settings.recovery_share.is_zero()) else { return };
        let until = now.after(self.settings.recovery_share);
        let shared = Shared::new(entries, &stream.at(), is_newest, until, bounds);
        if shared.is_some() {
            self.sharing.push_back((until, channel.name.clone()));
        }
        stream.shared = shared.map(Box::new);
    }

    pub(super) fn share_bounds(&self) -> Bounds {
        Bounds { len: self.settings.recovery_limit, bytes: self.settings.hold_back_bytes }
    }

    /// Answers those who have waited for a read that has answered others, as far as it answers them too.
    fn answer_waiting(&mut self, index: u32, now: Tick, port: &mut impl Port) {
        for joiner in std::mem::take(&mut self.channels[index as usize].joiners) {
            match self.answer_now(index, &joiner, now) {
                Some(joined) => {
                    self.counters.recoveries += u64::from(joiner.recover.is_some());
                    self.admit(index, &joiner, joined, now, port);
                }
                None => self.channels[index as usize].joiners.push(joiner),
            }
        }
    }

    /// Makes a joiner a subscriber and tells it, unless its connection has gone.
    pub(super) fn admit(&mut self, index: u32, joiner: &Joiner, joined: Joined, now: Tick, port: &mut impl Port) {
        if !self.is_attached(joiner.conn) {
            return;
        }
        let channel = &mut self.channels[index as usize];
        let member = &mut self.members[joiner.conn.index as usize];
        let Some(slot) = member.channels.iter().position(|m| m.channel == index && m.index == PENDING) else { return };
        member.channels[slot].index = u32::try_from(channel.subs.len()).expect("fewer than 2^32 subscribers");
        // Losing every other subscriber in this very answer may have set it.
        channel.release_at = None;
        self.subscriptions += 1;
        channel.subs.push(SubRef::new(joiner.conn.index, slot, joiner.positioned, joiner.join_leave));
        if let (Some(stream), Some(position)) = (&mut channel.stream, &joined.position)
            && position.offset > stream.position
        {
            stream.late.insert(joiner.conn.index, position.offset);
        }
        let name = channel.name.clone();
        port.effect(Effect::Joined { conn: joiner.conn, channel: name.clone(), result: Ok(joined) });
        if !port.keeps(joiner.conn, &name) {
            let membership = self.take_membership(joiner.conn.index, slot);
            self.remove_sub(membership, now);
        }
    }

    pub(super) fn fail_joiners(&mut self, index: u32, reason: &str, port: &mut impl Port) {
        let channel = &mut self.channels[index as usize];
        let mut failed = std::mem::take(&mut channel.joiners);
        if let Some(work) = channel.stream.as_mut().and_then(|stream| stream.work.as_mut()) {
            failed.append(&mut work.served);
        }
        for joiner in failed {
            if self.is_attached(joiner.conn) {
                let member = &mut self.members[joiner.conn.index as usize];
                if let Some(slot) = member.channels.iter().position(|m| m.channel == index && m.index == PENDING) {
                    self.take_membership(joiner.conn.index, slot);
                    let channel = self.channels[index as usize].name.clone();
                    let result = Err(OperationError::Unavailable(reason.to_owned()));
                    port.effect(Effect::Joined { conn: joiner.conn, channel, result });
                }
            }
        }
    }

    /// A connection went away while joining: its join is answered, its place among the joiners given up.
    fn abandon_join(&mut self, conn: ConnKey, index: u32, port: &mut impl Port) {
        let channel = &mut self.channels[index as usize];
        channel.joiners.retain(|joiner| joiner.conn != conn);
        if let Some(work) = channel.stream.as_mut().and_then(|stream| stream.work.as_mut()) {
            work.served.retain(|joiner| joiner.conn != conn);
        }
        let gone = Err(OperationError::Unavailable("the connection is gone".to_owned()));
        port.effect(Effect::Joined { conn, channel: channel.name.clone(), result: gone });
    }

    // --- leaving ---

    pub(super) fn is_attached(&self, conn: ConnKey) -> bool {
        self.members
            .get(conn.index as usize)
            .is_some_and(|member| member.attached && member.generation == conn.generation)
    }

    /// Removes one entry of a connection's list and keeps the back references of the entry that took its place.
    fn take_membership(&mut self, conn: u32, slot: usize) -> Membership {
        let member = &mut self.members[conn as usize];
        let taken = member.channels.swap_remove(slot);
        if let Some(moved) = member.channels.get(slot)
            && moved.index != PENDING
        {
            self.channels[moved.channel as usize].subs[moved.index as usize].set_slot(slot);
        }
        taken
    }

    /// Removes a subscriber whose membership was taken already.
    fn remove_sub(&mut self, membership: Membership, now: Tick) {
        let channel = &mut self.channels[membership.channel as usize];
        let removed = channel.subs.swap_remove(membership.index as usize);
        self.subscriptions -= 1;
        if let Some(moved) = channel.subs.get(membership.index as usize) {
            self.members[moved.conn as usize].channels[moved.slot()].index = membership.index;
        }
        if let Some(stream) = &mut channel.stream {
            stream.late.remove(&removed.conn);
        }
        // Give back what a crowd left behind, with room to grow again.
        if channel.subs.capacity() > 64 && channel.subs.len() < channel.subs.capacity() / 4 {
            channel.subs.shrink_to(channel.subs.len() * 2);
        }
        self.linger_if_empty(membership.channel, now);
    }

    /// Takes every positioned subscriber for which this holds out of the channel and tells it that its position is lost.
    pub(super) fn lose_positions(
        &mut self,
        index: u32,
        now: Tick,
        port: &mut impl Port,
        is_lost: impl Fn(&Channel, SubRef) -> bool,
    ) {
        let channel = &self.channels[index as usize];
        let subs = channel.subs.iter().copied();
        let lost: Vec<SubRef> = subs.filter(|sub| sub.positioned() && is_lost(channel, *sub)).collect();
        let name = channel.name.clone();
        for sub in lost {
            let generation = self.members[sub.conn as usize].generation;
            let slot = self.members[sub.conn as usize].channels.iter().position(|m| m.channel == index);
            let Some(slot) = slot else { continue };
            let membership = self.take_membership(sub.conn, slot);
            self.remove_sub(membership, now);
            let conn = ConnKey { index: sub.conn, generation };
            port.effect(Effect::PositionLost { conn, channel: name.clone() });
        }
    }

    fn linger_if_empty(&mut self, index: u32, now: Tick) {
        if self.is_empty(index) && self.channels[index as usize].release_at.is_none() {
            let at = now.after(self.settings.linger);
            let channel = &mut self.channels[index as usize];
            channel.release_at = Some(at);
            self.lingering.push_back((at, channel.name.clone()));
        }
    }

    /// Live, and neither subscribed nor about to be.
    fn is_empty(&self, index: u32) -> bool {
        let channel = &self.channels[index as usize];
        let work = channel.stream.as_ref().and_then(|stream| stream.work.as_ref());
        channel.stage == Stage::Live
            && channel.subs.is_empty()
            && channel.joiners.is_empty()
            && work.is_none_or(|work| work.served.is_empty())
    }

    /// Drops a channel without subscribers.
    pub(super) fn forget(&mut self, index: u32) {
        let channel = self.channels.remove(index as usize);
        debug_assert!(channel.subs.is_empty() && channel.joiners.is_empty());
        self.names.remove(&channel.name);
        if self.names.capacity() > 1024 && self.names.len() < self.names.capacity() / 4 {
            self.names.shrink_to(self.names.len() * 2);
            if self.channels.is_empty() {
                self.channels.shrink_to_fit();
            }
        }
    }

    // --- reads ---

    /// Channel index for a ticket that is still the read in flight.
    pub(super) fn reading(&self, ticket: ReadKind) -> Option<u32> {
        let channel = self.channels.get(ticket.channel as usize)?;
        let reading = channel.stream.as_ref()?.work.as_ref()?.reading.as_ref()?;
        (reading.serial == ticket.serial).then_some(ticket.channel)
    }

    /// The answer to [`Effect::Read`].
    pub fn read_done(
        &mut self,
        ticket: ReadKind,
        result: Result<HistoryPage, String>,
        now: Tick,
        port: &mut impl Port,
    ) {
        let Some(index) = self.reading(ticket) else { return };
        let stream = self.channels[index as usize].stream.as_mut().expect("only positioned channels read");
        let reading = stream.work().reading.take().expect("the ticket was just compared");
        match (reading.purpose, result) {
            (ReadPurpose::Position, Ok(page)) => self.positioned(index, page, now, port),
            (ReadPurpose::Position, Err(reason)) => {
                self.fail_joiners(index, &reason, port);
                let name = self.channels[index as usize].name.clone();
                self.forget(index);
                port.effect(Effect::Release(name));
            }
            (ReadPurpose::Recover, Ok(page)) => self.recovered(index, page, now, port),
            (ReadPurpose::Recover, Err(reason)) => {
                stream.work().recent = None;
                self.fail_joiners(index, &reason, port);
                self.after_read(index, now, port);
            }
            (ReadPurpose::Repair(since), Ok(page)) => self.repaired(index, &since, page, now, port),
            (ReadPurpose::Repair(_), Err(reason)) => {
                let at = now.after(self.settings.retry_delay);
                stream.work().retry_at = Some(at);
                self.retries.push_back((at, self.channels[index as usize].name.clone()));
                // They would wait for the retry: a temporary error lets the client come back in its own time.
                self.fail_joiners(index, &reason, port);
                self.linger_if_empty(index, now);
            }
        }
    }

    /// What follows every read: the next thing that waited for it.
    pub(super) fn after_read(&mut self, index: u32, now: Tick, port: &mut impl Port) {
        let channel = &mut self.channels[index as usize];
        let Some(stream) = &mut channel.stream else { return };
        let work = stream.work();
        if work.reading.is_none() && work.retry_at.is_none() {
            if work.repairing || work.repair_due {
                self.read_for_repair(index, port);
            } else if !channel.joiners.is_empty() {
                if stream.shared.is_some() {
                    self.answer_waiting(index, now, port);
                }
                if !self.channels[index as usize].joiners.is_empty() {
                    self.read_for_joiners(index, ReadPurpose::Recover, port);
                }
            }
        }
        if let Some(stream) = &mut self.channels[index as usize].stream {
            stream.settle();
        }
        self.linger_if_empty(index, now);
    }
}
