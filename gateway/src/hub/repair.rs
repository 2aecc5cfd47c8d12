//! Positions: accepting deliveries in order, closing gaps from history, answering those who come back.

use std::sync::Arc;
use std::time::Instant;

use backplane::{Delivery, HistoryPage, HistoryQuery, Offset, Previous, StoredPublication, StreamPosition};
use session::io::RecoverMode;
use session::time::Tick;

use super::Outgoing;
use super::channel::{Channel, ReadPurpose, Reading, Recent, Stage, Stream};
use super::recovery;
use super::shard_hub::{Effect, Hub, Port, ReadKind};

/// What to do with a positioned delivery, given the position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Accept,
    Duplicate,
    Gap,
    OtherEpoch,
}

fn judge(stream: &Stream, delivery: &Delivery) -> Verdict {
    let Delivery::Positioned { epoch, previous, publication } = delivery else { return Verdict::Accept };
    let offset = publication.offset.unwrap_or(Offset(0));
    if *epoch != stream.epoch {
        Verdict::OtherEpoch
    } else if offset <= stream.position {
        Verdict::Duplicate
    } else if *previous == Previous::Known(stream.position) {
        Verdict::Accept
    } else {
        Verdict::Gap
    }
}

/// Recovery reads that live publications may outrun before the joiners are answered without one.
const OUTRUN_MAX: u32 = 2;

impl Hub {
    /// A delivery of a channel with history: in order, held back, dropped, or the first sign of a loss.
    pub(super) fn deliver_positioned(&mut self, index: u32, outgoing: &Arc<Outgoing>, now: Tick, port: &mut impl Port) {
        let channel = &mut self.channels[index as usize];
        let stream = channel.stream.as_mut().expect("the caller saw the stream");
        if channel.stage != Stage::Live || stream.holds_back() {
            self.hold_back(index, outgoing);
            return;
        }
        match judge(stream, &outgoing.delivery) {
            Verdict::Accept => self.accept(index, outgoing, now, port),
            Verdict::Duplicate => self.counters.duplicates += 1,
            Verdict::Gap | Verdict::OtherEpoch => {
                self.hold_back(index, outgoing);
                self.start_repair(index, port);
            }
        }
    }

    /// The next publication: to every subscriber that has not had it with its join.
    fn accept(&mut self, index: u32, outgoing: &Arc<Outgoing>, now: Tick, port: &mut impl Port) {
        let recent_len = self.settings.hold_back_len;
        let recent_bytes = self.settings.hold_back_bytes;
        let share_bounds = self.share_bounds();
        let Delivery::Positioned { previous, publication, .. } = &outgoing.delivery else { return };
        let offset = publication.offset.unwrap_or(Offset(0));
        self.lose_overtaken(index, offset, now, port);
        let Channel { stream, subs, .. } = &mut self.channels[index as usize];
        let stream = stream.as_mut().expect("the caller saw the stream");
        stream.position = offset;
        stream.confirmed_at = now;
        if let Some(shared) = &mut stream.shared
            && !shared.push(StoredPublication { publication: publication.clone(), previous: *previous }, share_bounds)
        {
            stream.shared = None;
        }
        if let Some(recent) = stream.work.as_mut().and_then(|work| work.recent.as_mut()) {
            recent.bytes += outgoing.weight();
            if recent.publications.len() >= recent_len || recent.bytes > recent_bytes {
                *recent = Recent { overflowed: true, since: recent.since, ..Recent::default() };
            }
            if !recent.overflowed {
                recent.publications.push(StoredPublication { publication: publication.clone(), previous: *previous });
            }
        }
        if stream.late.is_empty() {
            subs.iter().for_each(|sub| port.send(sub.conn, outgoing));
            return;
        }
        for sub in subs.iter() {
            if stream.late.get(&sub.conn).is_none_or(|joined_at| *joined_at < offset) {
                port.send(sub.conn, outgoing);
            }
        }
        stream.late.retain(|_, joined_at| *joined_at > offset);
    }

    /// Subscribers that joined ahead of the shard, at an offset which the stream now jumps over: the publications that
    /// they saw there were lost, and others have taken their place.
    fn lose_overtaken(&mut self, index: u32, offset: Offset, now: Tick, port: &mut impl Port) {
        let stream = self.channels[index as usize].stream.as_ref().expect("the caller saw the stream");
        let position = stream.position;
        let overtaken = move |joined_at: Offset| position < joined_at && joined_at < offset;
        if !stream.late.values().any(|joined_at| overtaken(*joined_at)) {
            return;
        }
        self.counters.gaps_lost += 1;
        if let Some(stream) = &mut self.channels[index as usize].stream {
            stream.shared = None;
        }
        self.lose_positions(index, now, port, |channel, sub| {
            let joined_at = channel.stream.as_ref().and_then(|stream| stream.late.get(&sub.conn));
            joined_at.is_some_and(|joined_at| overtaken(*joined_at))
        });
    }

    /// Keeps a delivery for after the repair. When the buffer is full it is let go: history has what it held.
    fn hold_back(&mut self, index: u32, outgoing: &Arc<Outgoing>) {
        let settings = self.settings;
        let stream = self.channels[index as usize].stream.as_mut().expect("the caller saw the stream");
        let work = stream.work();
        work.hold_back_bytes += outgoing.weight();
        if work.hold_back.len() >= settings.hold_back_len || work.hold_back_bytes > settings.hold_back_bytes {
            work.hold_back.clear();
            work.hold_back_bytes = outgoing.weight();
            work.overflowed = true;
            self.counters.hold_back_overflows += 1;
        }
        work.hold_back.push_back(outgoing.clone());
    }

    // --- issuing reads ---

    /// One read for every joiner that waits. Joiners from one position ask for what came after it; joiners from
    /// several share the newest publications, which answers them all.
    pub(super) fn read_for_joiners(&mut self, index: u32, purpose: ReadPurpose, port: &mut impl Port) {
        let limit = self.settings.recovery_limit;
        let channel = &mut self.channels[index as usize];
        let stream = channel.stream.as_mut().expect("only positioned channels read");
        let recovering = purpose == ReadPurpose::Recover;
        let position = stream.position;
        // Somebody read a moment ago, and it was not enough: as much as may be of use answers all who are still to come.
        let was_shared = stream.shared.is_some();
        let work = stream.work();
        if work.retry_at.take().is_some() {
            // Whoever comes need not wait for the turn of a repair that has failed before.
            work.rounds = 0;
            self.read_for_repair(index, port);
            return;
        }
        if work.reading.is_some() || work.repairing || work.repair_due {
            return;
        }
        work.served = std::mem::take(&mut channel.joiners);
        work.recent = recovering.then(|| Recent { since: position, ..Recent::default() });
        let mut wanted = work.served.iter().filter_map(|joiner| joiner.recover.as_ref());
        let query = match wanted.next() {
            None => HistoryQuery::position(),
            Some(first) => {
                if first.mode == RecoverMode::Stream && !was_shared && wanted.all(|other| other == first) {
                    let since = StreamPosition { epoch: first.epoch.clone(), offset: first.offset };
                    HistoryQuery::since(since, limit)
                } else {
                    HistoryQuery { since: None, limit: Some(limit), reverse: true }
                }
            }
        };
        work.newest = query.reverse;
        self.counters.recovery_reads += u64::from(query.limit != Some(0));
        self.issue(index, purpose, query, port);
    }

    /// Begins to close a gap; does nothing while one is being closed.
    pub(super) fn start_repair(&mut self, index: u32, port: &mut impl Port) {
        let stream = self.channels[index as usize].stream.as_mut().expect("only positioned channels are repaired");
        let work = stream.work();
        if work.repairing {
            return;
        }
        if work.reading.is_some() {
            work.repair_due = true;
            // Whatever comes now comes after a gap: it waits as well.
            work.repairing = true;
            return;
        }
        work.repairing = true;
        self.read_for_repair(index, port);
    }

    pub(super) fn read_for_repair(&mut self, index: u32, port: &mut impl Port) {
        let limit = self.settings.repair_limit;
        let stream = self.channels[index as usize].stream.as_mut().expect("only positioned channels are repaired");
        let since = stream.at();
        let work = stream.work();
        work.repair_due = false;
        work.repairing = true;
        work.rounds += 1;
        // Whatever has arrived by now was in the stream before this read: it is in the answer, or is no more. Only what
        // comes later has to be held, and may ask for another read.
        work.hold_back.clear();
        work.hold_back_bytes = 0;
        work.overflowed = false;
        self.issue(index, ReadPurpose::Repair(since.clone()), HistoryQuery::since(since, limit), port);
    }

    fn issue(&mut self, index: u32, purpose: ReadPurpose, query: HistoryQuery, port: &mut impl Port) {
        let serial = self.next_serial;
        self.next_serial += 1;
        let channel = &mut self.channels[index as usize];
        let stream = channel.stream.as_mut().expect("only positioned channels read");
        let options = stream.options;
        stream.work().reading = Some(Reading { serial, purpose });
        let ticket = ReadKind { channel: index, serial };
        port.effect(Effect::Read { ticket, channel: channel.name.clone(), options, query });
    }

    pub(super) fn retry(&mut self, index: u32, at: Tick, port: &mut impl Port) {
        let Some(stream) = &mut self.channels[index as usize].stream else { return };
        let Some(work) = &mut stream.work else { return };
        if work.retry_at == Some(at) {
            work.retry_at = None;
            work.rounds = 0;
            self.read_for_repair(index, port);
        }
    }

    // --- reads answered ---

    /// The first position of a channel.
    pub(super) fn positioned(&mut self, index: u32, mut page: HistoryPage, now: Tick, port: &mut impl Port) {
        let channel = &mut self.channels[index as usize];
        let stream = channel.stream.as_mut().expect("only positioned channels read");
        stream.epoch = page.top.epoch.clone();
        stream.position = page.top.offset;
        let work = stream.work();
        let (served, newest) = (std::mem::take(&mut work.served), work.newest);
        port.effect(Effect::Observed(channel.name.clone(), page.top.clone()));
        let entries = recovery::retained(&mut page);
        if served.iter().any(|joiner| joiner.recover.is_some()) {
            self.share(index, &entries, newest, now);
        }
        for joiner in served {
            self.counters.recoveries += u64::from(joiner.recover.is_some());
            let joined = recovery::answer(joiner.recover.as_ref(), &entries, &page.top, page.covered);
            self.admit(index, &joiner, joined, now, port);
        }
        self.drain_hold_back(index, now, port);
        self.go_live(index, now, port);
        self.after_read(index, now, port);
    }

    /// What later joiners missed.
    pub(super) fn recovered(&mut self, index: u32, mut page: HistoryPage, now: Tick, port: &mut impl Port) {
        let stream = self.channels[index as usize].stream.as_mut().expect("only positioned channels read");
        let work = stream.work.as_mut().expect("a read was in flight");
        let (served, newest) = (std::mem::take(&mut work.served), work.newest);
        let mut recent = work.recent.take().unwrap_or_default();
        let mut is_whole = true;
        let other_epoch = page.top.epoch != stream.epoch;
        if other_epoch {
            // The stream was lost under us: everybody learns it, then the joiners are answered by the new one, to which
            // what was delivered meanwhile does not belong.
            recent.publications.clear();
            self.reposition(index, page.top.clone(), now, port);
        } else if page.top.offset < recent.since || (recent.overflowed && work.outrun < OUTRUN_MAX) {
            // What was read does not meet what was delivered. Read again: too much came in meanwhile, or the stream has
            // gone back behind this shard's position, which then is lost.
            work.outrun += 1;
            self.channels[index as usize].joiners.extend(served);
            if page.top.offset < recent.since {
                self.start_repair(index, port);
            }
            self.after_read(index, now, port);
            return;
        } else if recent.overflowed {
            // The channel outruns every read. More than a client would be given anyway has passed, most likely; in any
            // case it is told the truth and lives on from here.
            page.publications.clear();
            page.covered = false;
            is_whole = false;
        }
        let stream = self.channels[index as usize].stream.as_mut().expect("only positioned channels read");
        stream.work().outrun = 0;
        let mut entries = recovery::retained(&mut page);
        let mut top = page.top;
        for stored in recent.publications {
            if stored.offset() > top.offset {
                top.offset = stored.offset();
                entries.push(stored);
            }
        }
        top.offset = top.offset.max(stream.position);
        if is_whole {
            self.share(index, &entries, newest, now);
        }
        for joiner in served {
            self.counters.recoveries += 1;
            let joined = recovery::answer(joiner.recover.as_ref(), &entries, &top, page.covered);
            self.admit(index, &joiner, joined, now, port);
        }
        if other_epoch {
            self.drain_hold_back(index, now, port);
        }
        self.after_read(index, now, port);
    }

    /// What this shard missed.
    pub(super) fn repaired(
        &mut self,
        index: u32,
        since: &StreamPosition,
        page: HistoryPage,
        now: Tick,
        port: &mut impl Port,
    ) {
        let rounds_max = self.settings.repair_rounds;
        let stream = self.channels[index as usize].stream.as_mut().expect("only positioned channels are repaired");
        let rounds = stream.work().rounds;
        let chained = page.covered
            || page
                .publications
                .first()
                .is_some_and(|first| page.top.epoch == since.epoch && first.previous == Previous::Known(since.offset));
        if !chained || rounds > rounds_max {
            self.counters.gaps_lost += 1;
            self.reposition(index, page.top, now, port);
            self.drain_hold_back(index, now, port);
            self.after_read(index, now, port);
            return;
        }
        let name = self.channels[index as usize].name.clone();
        let received = Instant::now();
        for stored in page.publications {
            let position = self.position(index);
            if stored.offset() <= position {
                continue;
            }
            let delivery = Delivery::Positioned {
                epoch: page.top.epoch.clone(),
                previous: Previous::Known(position),
                publication: stored.publication,
            };
            let outgoing = Arc::new(Outgoing::new(name.clone(), delivery, received));
            self.accept(index, &outgoing, now, port);
        }
        let stream = self.channels[index as usize].stream.as_mut().expect("only positioned channels are repaired");
        if page.covered {
            // Caught up: only reads that do not reach the top in a row are counted.
            stream.work().rounds = 0;
            stream.position = stream.position.max(page.top.offset);
            stream.confirmed_at = now;
            port.effect(Effect::Observed(name, stream.at()));
            self.drain_hold_back(index, now, port);
        }
        let stream = self.channels[index as usize].stream.as_mut().expect("only positioned channels are repaired");
        let work = stream.work();
        // Not at the end yet: the page was cut by its limit, or the hold-back buffer was let go meanwhile.
        let more = !page.covered || work.repair_due;
        if !more {
            work.repairing = false;
            work.rounds = 0;
            self.counters.gaps_repaired += 1;
            let channel = &mut self.channels[index as usize];
            let check_queued = channel.check_queued;
            if let Some(stream) = &mut channel.stream {
                stream.doubted &= check_queued;
            }
        }
        self.after_read(index, now, port);
    }

    /// The position is gone: positioned subscribers are told, the channel continues from `top`.
    fn reposition(&mut self, index: u32, top: StreamPosition, now: Tick, port: &mut impl Port) {
        self.lose_positions(index, now, port, |_, _| true);
        let channel = &mut self.channels[index as usize];
        let stream = channel.stream.as_mut().expect("only positioned channels have a position");
        if stream.epoch != top.epoch {
            stream.former_epoch = Some(std::mem::replace(&mut stream.epoch, top.epoch.clone()));
        }
        stream.position = top.offset;
        stream.confirmed_at = now;
        stream.doubted &= channel.check_queued;
        stream.late.clear();
        stream.shared = None;
        let work = stream.work();
        work.repairing = false;
        work.repair_due = false;
        work.rounds = 0;
        work.recent = None;
        port.effect(Effect::Observed(channel.name.clone(), top));
    }

    /// Delivers what was held back since the read was issued whose answer has set the position, as far as it follows
    /// from there. Where it does not, another read is due.
    fn drain_hold_back(&mut self, index: u32, now: Tick, port: &mut impl Port) {
        loop {
            let stream = self.channels[index as usize].stream.as_mut().expect("only positioned channels hold back");
            let Some(work) = &mut stream.work else { return };
            if work.overflowed {
                // What was let go was after the read.
                work.repair_due = true;
                return;
            }
            let Some(outgoing) = work.hold_back.pop_front() else {
                work.hold_back_bytes = 0;
                return;
            };
            work.hold_back_bytes = work.hold_back_bytes.saturating_sub(outgoing.weight());
            match judge(stream, &outgoing.delivery) {
                Verdict::Accept => self.accept(index, &outgoing, now, port),
                Verdict::Duplicate => self.counters.duplicates += 1,
                Verdict::Gap | Verdict::OtherEpoch => {
                    stream.work().repair_due = true;
                    return;
                }
            }
        }
    }

    fn position(&self, index: u32) -> Offset {
        self.channels[index as usize].stream.as_ref().map_or(Offset(0), |stream| stream.position)
    }
}
