//! One channel on one shard: its subscribers, its position, and what is under way for it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use backplane::{ChannelName, Epoch, HistoryOptions, Offset, StoredPublication, StreamPosition};
use session::io::RecoverFrom;
use session::time::Tick;

use super::Outgoing;
use super::shard_hub::ConnKey;
use super::shared::Shared;

/// One subscriber: 8 bytes. `slot` points back into the connection's own list, so that removal is O(1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SubRef {
    pub conn: u32,
    slot_and_flags: u32,
}

impl SubRef {
    const POSITIONED: u32 = 1 << 31;
    const JOIN_LEAVE: u32 = 1 << 30;
    const SLOT: u32 = Self::JOIN_LEAVE - 1;

    pub fn new(conn: u32, slot: usize, positioned: bool, join_leave: bool) -> Self {
        let slot = u32::try_from(slot).expect("subscriptions per connection are bounded far below 2^30");
        debug_assert!(slot <= Self::SLOT);
        let flags = if positioned { Self::POSITIONED } else { 0 } | if join_leave { Self::JOIN_LEAVE } else { 0 };
        Self { conn, slot_and_flags: slot | flags }
    }

    pub fn slot(self) -> usize {
        (self.slot_and_flags & Self::SLOT) as usize
    }

    pub fn set_slot(&mut self, slot: usize) {
        self.slot_and_flags = (self.slot_and_flags & !Self::SLOT) | slot as u32;
    }

    pub fn positioned(self) -> bool {
        self.slot_and_flags & Self::POSITIONED != 0
    }

    pub fn join_leave(self) -> bool {
        self.slot_and_flags & Self::JOIN_LEAVE != 0
    }
}

/// A connection that waits to become a subscriber.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Joiner {
    pub conn: ConnKey,
    pub positioned: bool,
    pub join_leave: bool,
    pub recover: Option<RecoverFrom>,
}

/// ```text
///   Subscribing --acknowledged, position needed--> Positioning --read--> Live
///        |                                                                ^
///        +--acknowledged, no history or position known--------------------+
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The backplane has not acknowledged this node's interest yet.
    Subscribing,
    /// The first position is being read; live deliveries wait in the hold-back buffer.
    Positioning,
    /// Deliveries flow.
    Live,
}

#[derive(Debug)]
pub(super) struct Channel {
    pub name: ChannelName,
    pub stage: Stage,
    pub subs: Vec<SubRef>,
    /// Waiting for the stage `Live`, or for a history read.
    pub joiners: Vec<Joiner>,
    /// Present iff the namespace keeps history.
    pub stream: Option<Box<Stream>>,
    /// Set while nobody is subscribed: when the channel will be released.
    pub release_at: Option<Tick>,
    /// Its name waits to be compared with the backplane's top; it does so at most once.
    pub check_queued: bool,
}

/// The positioned side of a channel.
#[derive(Debug)]
pub(super) struct Stream {
    pub options: HistoryOptions,
    pub epoch: Epoch,
    /// The epoch before it, which whoever lost it comes back with: nothing of it can be recovered.
    pub former_epoch: Option<Epoch>,
    /// Everything up to here was delivered to this shard's subscribers. Meaningless before the stage `Live`.
    pub position: Offset,
    /// When a delivery or a check last confirmed the position.
    pub confirmed_at: Tick,
    /// The backplane was disturbed since: what is at the position may be lost there, so that nobody who comes back may be
    /// told from it that he has missed nothing.
    pub doubted: bool,
    /// Subscribers whose own position is ahead of the shard's: they skip publications up to theirs.
    pub late: HashMap<u32, Offset>,
    /// What a recovery has read a moment ago, and what was delivered since.
    pub shared: Option<Box<Shared>>,
    /// Present only while a read, a repair or a hold-back is under way, so that an idle channel stays small.
    pub work: Option<Box<Work>>,
}

/// What is under way for a positioned channel.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub reading: Option<Reading>,
    /// Deliveries are held back until the gap is closed.
    pub repairing: bool,
    /// A repair is due as soon as the read in flight ends.
    pub repair_due: bool,
    /// What has arrived since the last read was issued, while deliveries are held back.
    pub hold_back: VecDeque<Arc<Outgoing>>,
    pub hold_back_bytes: usize,
    /// More has arrived since then than could be held back.
    pub overflowed: bool,
    /// Repair reads in a row that did not reach the top.
    pub rounds: u32,
    /// When to try a failed repair read again.
    pub retry_at: Option<Tick>,
    /// Publications delivered live since the joiners' read was issued.
    pub recent: Option<Recent>,
    /// The read in flight for joiners asks for the newest publications, and not for those after a position.
    pub newest: bool,
    /// Recovery reads in a row that too many live publications outran.
    pub outrun: u32,
    /// The joiners that the read in flight will answer.
    pub served: Vec<Joiner>,
}

impl Work {
    /// Nothing is under way: the box can be dropped.
    pub fn is_idle(&self) -> bool {
        self.reading.is_none()
            && !self.repairing
            && !self.repair_due
            && self.hold_back.is_empty()
            && self.retry_at.is_none()
            && self.recent.is_none()
            && self.served.is_empty()
    }
}

/// Live publications kept for joiners whose read is in flight.
#[derive(Debug, Default)]
pub(super) struct Recent {
    pub publications: Vec<StoredPublication>,
    pub bytes: usize,
    /// The position when the read was issued, which what was read must reach.
    pub since: Offset,
    /// The bound was hit: the joiners need another read.
    pub overflowed: bool,
}

/// A history read in flight; at most one per channel and shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reading {
    pub serial: u64,
    pub purpose: ReadPurpose,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ReadPurpose {
    /// The first position of the channel, together with what its first joiners missed.
    Position,
    /// What later joiners missed.
    Recover,
    /// What this shard missed after this position.
    Repair(StreamPosition),
}

impl Channel {
    /// See [`Stream::doubted`].
    pub fn doubt(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.doubted = true;
        }
    }
}

impl Stream {
    pub fn new(options: HistoryOptions, now: Tick) -> Self {
        Self {
            options,
            epoch: Epoch::from(""),
            former_epoch: None,
            position: Offset(0),
            confirmed_at: now,
            doubted: false,
            late: HashMap::new(),
            shared: None,
            work: None,
        }
    }

    pub fn at(&self) -> StreamPosition {
        StreamPosition { epoch: self.epoch.clone(), offset: self.position }
    }

    pub fn work(&mut self) -> &mut Work {
        self.work.get_or_insert_default()
    }

    /// Drops the work box when nothing is left in it.
    pub fn settle(&mut self) {
        if self.work.as_ref().is_some_and(|work| work.is_idle()) {
            self.work = None;
        }
    }

    /// True while live deliveries must wait.
    pub fn holds_back(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.repairing)
    }
}
