//! A hub whose every output is written down as one line of text.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane::{
    ChannelName, ClientId, ClientInfo, Delivery, Epoch, HistoryOptions, HistoryPage, Offset, PresenceEvent, Previous,
    Publication, StoredPublication, StreamPosition, UserId,
};
use bytes::Bytes;
use session::io::{Join, Joined, RecoverFrom, RecoverMode};
use session::time::Tick;

use crate::hub::shard_hub::Port;
use crate::hub::{Check, ConnKey, Effect, Hub, HubSettings, Outgoing, ReadKind};

/// The channel with history that most tests use.
pub const CHANNEL: &str = "news";

pub const HISTORY: HistoryOptions =
    HistoryOptions { size: 100, ttl: Duration::from_secs(60), meta_ttl: Duration::from_secs(60) };

pub struct Bench {
    pub hub: Hub,
    pub now: Tick,
    port: Recorder,
}

/// What a connection wants of a channel.
#[derive(Clone)]
pub struct Wanted {
    join: Join,
    history: bool,
}

#[derive(Default)]
struct Recorder {
    lines: Vec<String>,
    reads: VecDeque<ReadKind>,
    checks: VecDeque<Check>,
    /// Connections whose sessions end every subscription in the answer that makes it.
    leaving: Vec<u32>,
}

impl Port for Recorder {
    fn keeps(&self, conn: ConnKey, _: &str) -> bool {
        !self.leaving.contains(&conn.index)
    }

    fn send(&mut self, conn_index: u32, outgoing: &Arc<Outgoing>) {
        self.lines.push(format!("{conn_index} <- {}", describe(&outgoing.delivery)));
    }

    fn effect(&mut self, effect: Effect) {
        let line = match effect {
            Effect::Interest(channel) => format!("interest {channel}"),
            Effect::Release(channel) => format!("release {channel}"),
            Effect::Read { ticket, channel, query, .. } => {
                self.reads.push_back(ticket);
                let what = match (&query.since, query.limit) {
                    (_, Some(0)) => "top".to_owned(),
                    (Some(since), Some(limit)) => format!("{limit} after {}", place(since)),
                    (None, Some(limit)) if query.reverse => format!("newest {limit}"),
                    (_, limit) => format!("oldest {limit:?}"),
                };
                format!("read {channel}: {what}")
            }
            Effect::CheckPositions(checks) => {
                let names: Vec<_> =
                    checks.iter().map(|check| format!("{}@{}", check.channel, check.asked_at)).collect();
                self.checks.extend(checks);
                format!("check {}", names.join(" "))
            }
            Effect::Observed(channel, position) => format!("observed {channel} {}", place(&position)),
            Effect::Joined { conn, channel, result } => match result {
                Ok(joined) => format!("{} joined {channel}{}", conn.index, describe_joined(&joined)),
                Err(error) => format!("{} refused {channel}: {error}", conn.index),
            },
            Effect::PositionLost { conn, channel } => format!("{} lost {channel}", conn.index),
        };
        self.lines.push(line);
    }
}

fn place(position: &StreamPosition) -> String {
    format!("{}/{}", position.epoch.as_str(), position.offset)
}

fn describe(delivery: &Delivery) -> String {
    match delivery {
        Delivery::Unpositioned(publication) => String::from_utf8_lossy(&publication.data).into_owned(),
        Delivery::Positioned { publication, .. } => publication.offset.expect("positioned").to_string(),
        Delivery::Presence(PresenceEvent::Join(_)) => "join".to_owned(),
        Delivery::Presence(PresenceEvent::Leave(_)) => "leave".to_owned(),
    }
}

fn describe_joined(joined: &Joined) -> String {
    let position = joined.position.as_ref().map(|at| format!(" at {}", place(at))).unwrap_or_default();
    let offsets: Vec<_> = joined.publications.iter().map(|p| p.offset.expect("recovered").to_string()).collect();
    let recovered = if joined.recovered { format!(" recovered [{}]", offsets.join(" ")) } else { String::new() };
    assert!(joined.recovered || offsets.is_empty(), "publications come only with a recovery");
    format!("{position}{recovered}")
}

impl Bench {
    pub fn new() -> Self {
        Self::with(HubSettings::default())
    }

    /// Every recovery reads for itself.
    pub fn with(settings: HubSettings) -> Self {
        Self::of(HubSettings { recovery_share: Duration::ZERO, ..settings })
    }

    /// Recoveries share what they read.
    pub fn sharing() -> Self {
        Self::of(HubSettings::default())
    }

    fn of(settings: HubSettings) -> Self {
        let mut bench = Self { hub: Hub::new(settings), now: Tick(0), port: Recorder::default() };
        for index in 1..=9 {
            bench.hub.attach(conn(index));
        }
        bench
    }

    /// A hub whose connection 1 is live in the channel at this offset of epoch "e".
    pub fn live_at(settings: HubSettings, offset: u64) -> Self {
        let mut bench = Self::with(settings);
        bench.join(1, positioned());
        bench.acknowledge(CHANNEL, Some(("e", offset)));
        bench.lines();
        bench
    }

    pub fn join(&mut self, index: u32, wanted: Wanted) {
        let options = wanted.history.then_some(HISTORY);
        self.hub.join(conn(index), &wanted.join, options, self.now, &mut self.port);
    }

    /// From now on this connection's session ends every subscription in the answer that makes it.
    pub fn leaves_at_once(&mut self, index: u32) {
        self.port.leaving.push(index);
    }

    pub fn leave(&mut self, index: u32, channel: &str) {
        self.hub.leave(conn(index), channel, self.now);
    }

    pub fn detach(&mut self, index: u32) {
        self.hub.detach(conn(index), self.now, &mut self.port);
    }

    pub fn acknowledge(&mut self, channel: &str, known: Option<(&str, u64)>) {
        let known = known.map(|(epoch, offset)| at(epoch, offset));
        self.hub.acknowledged(channel, Ok(known), self.now, &mut self.port);
    }

    pub fn refuse(&mut self, channel: &str) {
        self.hub.acknowledged(channel, Err("no".to_owned()), self.now, &mut self.port);
    }

    /// Publications of epoch "e" that follow each other, the first of them after `previous`.
    pub fn deliver(&mut self, previous: u64, offsets: &[u64]) {
        self.deliver_in("e", previous, offsets);
    }

    pub fn deliver_in(&mut self, epoch: &str, previous: u64, offsets: &[u64]) {
        for (previous, offset) in chain(previous, offsets) {
            self.deliver_one(epoch, Previous::Known(Offset(previous)), offset);
        }
    }

    pub fn deliver_one(&mut self, epoch: &str, previous: Previous, offset: u64) {
        let epoch = Epoch::from(epoch);
        let delivery = Delivery::Positioned { epoch, previous, publication: publication(Some(offset), "x") };
        self.deliver_any(CHANNEL, delivery);
    }

    pub fn deliver_any(&mut self, channel: &str, delivery: Delivery) {
        let outgoing = Arc::new(Outgoing::new(ChannelName::from(channel), delivery, Instant::now()));
        self.hub.deliver(&outgoing, self.now, &mut self.port);
    }

    /// Answers the oldest read.
    pub fn answer(&mut self, page: HistoryPage) {
        let ticket = self.port.reads.pop_front().expect("a read is in flight");
        self.hub.read_done(ticket, Ok(page), self.now, &mut self.port);
    }

    pub fn fail_read(&mut self) {
        let ticket = self.port.reads.pop_front().expect("a read is in flight");
        self.hub.read_done(ticket, Err("down".to_owned()), self.now, &mut self.port);
    }

    /// Answers the oldest position check.
    pub fn checked(&mut self, epoch: &str, offset: u64) {
        let check = self.port.checks.pop_front().expect("a check is in flight");
        self.hub.checked(&check, Ok(at(epoch, offset)), &mut self.port);
    }

    pub fn check_failed(&mut self) {
        let check = self.port.checks.pop_front().expect("a check is in flight");
        self.hub.checked(&check, Err("down".to_owned()), &mut self.port);
    }

    /// Lets time pass, in the steps of the shard's own tick.
    pub fn wait(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.now < end {
            self.now = self.now.after(Duration::from_millis(100)).min(end);
            self.hub.tick(self.now, &mut self.port);
        }
    }

    /// What came out since the last look.
    pub fn lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.port.lines)
    }

    #[track_caller]
    pub fn expect(&mut self, expected: &[&str]) {
        assert_eq!(self.lines(), expected);
    }

    /// What came out, position reports aside.
    #[track_caller]
    pub fn expect_clients(&mut self, expected: &[&str]) {
        let lines: Vec<_> = self.lines().into_iter().filter(|line| !line.starts_with("observed")).collect();
        assert_eq!(lines, expected);
    }
}

pub fn conn(index: u32) -> ConnKey {
    ConnKey { index, generation: 7 }
}

pub fn at(epoch: &str, offset: u64) -> StreamPosition {
    StreamPosition { epoch: Epoch::from(epoch), offset: Offset(offset) }
}

impl Wanted {
    /// The same of another channel.
    pub fn of(self, channel: &str) -> Self {
        Self { join: Join { channel: ChannelName::from(channel), ..self.join }, ..self }
    }
}

/// A subscription that keeps its position.
pub fn positioned() -> Wanted {
    let join = Join {
        channel: ChannelName::from(CHANNEL),
        presence: None,
        push_join_leave: false,
        positioned: true,
        recover: None,
        has_history: true,
    };
    Wanted { join, history: true }
}

/// A subscription that does not.
pub fn unpositioned() -> Wanted {
    let Wanted { join, history } = positioned();
    Wanted { join: Join { positioned: false, ..join }, history }
}

pub fn recover(epoch: &str, offset: u64) -> Wanted {
    from(epoch, offset, RecoverMode::Stream)
}

pub fn cache(epoch: &str, offset: u64) -> Wanted {
    from(epoch, offset, RecoverMode::Cache)
}

fn from(epoch: &str, offset: u64, mode: RecoverMode) -> Wanted {
    let Wanted { join, history } = positioned();
    let recover = Some(RecoverFrom { epoch: Epoch::from(epoch), offset: Offset(offset), mode });
    Wanted { join: Join { recover, ..join }, history }
}

/// A subscription to another channel; without history.
pub fn plain(channel: &str) -> Wanted {
    let Wanted { join, .. } = unpositioned().of(channel);
    Wanted { join: Join { has_history: false, ..join }, history: false }
}

/// The same, and the join and leave events of others with it.
pub fn curious(channel: &str) -> Wanted {
    let Wanted { join, history } = plain(channel);
    Wanted { join: Join { push_join_leave: true, ..join }, history }
}

fn chain(mut previous: u64, offsets: &[u64]) -> Vec<(u64, u64)> {
    offsets.iter().map(|offset| (std::mem::replace(&mut previous, *offset), *offset)).collect()
}

pub fn publication(offset: Option<u64>, data: &str) -> Arc<Publication> {
    let data = Bytes::copy_from_slice(data.as_bytes());
    Arc::new(Publication { offset: offset.map(Offset), data, info: None, tags: Default::default() })
}

fn stored(previous: u64, offsets: &[u64]) -> Vec<StoredPublication> {
    chain(previous, offsets)
        .into_iter()
        .map(|(previous, offset)| StoredPublication {
            publication: publication(Some(offset), "x"),
            previous: Previous::Known(Offset(previous)),
        })
        .collect()
}

/// A read that found everything after `previous`.
pub fn whole(epoch: &str, previous: u64, offsets: &[u64]) -> HistoryPage {
    let top = offsets.last().copied().unwrap_or(previous);
    HistoryPage { top: at(epoch, top), publications: stored(previous, offsets), covered: true }
}

/// A read that found these in a stream with this top, but not everything that was asked for.
pub fn part(epoch: &str, top: u64, previous: u64, offsets: &[u64]) -> HistoryPage {
    HistoryPage { top: at(epoch, top), publications: stored(previous, offsets), covered: false }
}

/// The newest publications, newest first.
pub fn newest(epoch: &str, previous: u64, offsets: &[u64]) -> HistoryPage {
    let mut page = part(epoch, offsets.last().copied().unwrap_or(previous), previous, offsets);
    page.publications.reverse();
    page
}

pub fn someone() -> Arc<ClientInfo> {
    Arc::new(ClientInfo {
        client: ClientId::random(),
        user: UserId::from("u"),
        conn_info: Bytes::new(),
        chan_info: Bytes::new(),
    })
}
