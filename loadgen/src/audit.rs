//! The auditor: what every subscriber must have seen, message by message.
//!
//! Each lane (one publisher's stream to one channel, see [`schedule`](crate::schedule)) of each subscription expects
//! sequence 0, 1, 2 and so on. What arrives early leaves a gap, which a late message may fill and the end of the run
//! judges against what the publishers know: an acknowledged message that never came is lost, unless the subscriber was
//! told that it would miss some; one whose publish failed may be missing, but like any other it must not come twice.

use std::collections::HashMap;

use serde::Serialize;

use crate::schedule::{Place, Schedule};
use crate::stamp::Stamp;

/// Most gaps remembered per lane of a subscription. A receiver that skips more often than this has failed anyway; the
/// oldest gap is then counted as lost at once.
const GAPS_MAX: usize = 1024;

/// What a publisher knows about a message it was to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Outcome {
    /// Never handed to the network.
    #[default]
    Unsent,
    /// Sent, and refused or without an answer: it may have been published.
    Failed,
    /// The server said that it was published.
    Acknowledged,
}

/// How a message fits into what its subscriber saw before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Next in its lane, or later than that, with a gap before it.
    Fresh,
    /// Not seen before, but something later was.
    Reordered,
    /// Seen before.
    Repeated,
    /// There is no such message in the schedule.
    Forged,
}

/// Why a gap may be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Excuse {
    /// None: the subscription was live, or the loss came after it had recovered.
    None,
    /// None, and the server had said `recovered: true` just before.
    ClaimedRecovered,
    /// The server said that messages were missed.
    Told,
}

#[derive(Clone, Copy)]
struct Lane {
    next: u32,
    /// The next message is the first one after a resubscribe that claimed to have recovered.
    claimed: bool,
}

struct Gap {
    from: u32,
    to: u32,
    excuse: Excuse,
}

/// The auditor of one worker's subscriptions.
pub struct Audit {
    schedule: Schedule,
    lanes_per_channel: usize,
    channels: Vec<u32>,
    /// The connection was cut or the server unsubscribed, and nothing was resumed.
    ended: Vec<bool>,
    lanes: Vec<Lane>,
    gaps: HashMap<usize, Vec<Gap>>,
    findings: Findings,
}

/// What the audit of a run found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Findings {
    /// Deliveries there should have been: each acknowledged message at each of its subscribers.
    pub expected: u64,
    /// Deliveries of a message its subscriber had not seen before.
    pub delivered: u64,
    /// Acknowledged messages a subscriber never saw although nothing told it.
    pub lost: u64,
    /// Those of the lost ones which a resubscribe with `recovered: true` had claimed to have delivered.
    pub falsely_recovered: u64,
    /// Deliveries of a message its subscriber had seen before, over all its connections.
    pub repeated: u64,
    /// Deliveries after a later message of the same lane, or with an offset below an earlier one.
    pub reordered: u64,
    /// Messages with a wrong checksum, without a stamp, or not decodable.
    pub corrupt: u64,
    /// Messages on a connection that is not subscribed to their channel, or under another channel's name.
    pub misrouted: u64,
    /// Messages that carry a valid stamp and were never published.
    pub forged: u64,
    /// Acknowledged messages a subscriber missed and was told about: its connection was closed, it was unsubscribed, or
    /// the resubscribe said `recovered: false`.
    pub told: u64,
}

impl Findings {
    /// Everything that breaks a promise.
    pub fn violations(&self) -> u64 {
        let Self { lost, repeated, reordered, corrupt, misrouted, forged, .. } = self;
        lost + repeated + reordered + corrupt + misrouted + forged
    }

    /// Adds another worker's findings.
    pub fn add(&mut self, other: &Findings) {
        self.expected += other.expected;
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.falsely_recovered += other.falsely_recovered;
        self.repeated += other.repeated;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
        self.misrouted += other.misrouted;
        self.forged += other.forged;
        self.told += other.told;
    }
}

impl Audit {
    /// An auditor of subscriptions, given by the channel of each. They are all there before the first message.
    pub fn new(schedule: Schedule, channels: Vec<u32>) -> Self {
        let lanes_per_channel = schedule.lanes_per_channel() as usize;
        Self {
            lanes: vec![Lane { next: 0, claimed: false }; channels.len() * lanes_per_channel],
            ended: vec![false; channels.len()],
            schedule,
            lanes_per_channel,
            channels,
            gaps: HashMap::new(),
            findings: Findings::default(),
        }
    }

    /// Judges a message that a subscription received. The caller has checked that it is the subscription's channel.
    #[inline]
    pub fn observe(&mut self, subscription: usize, stamp: &Stamp) -> Seen {
        let place = Place { channel: stamp.channel, publisher: u32::from(stamp.publisher), sequence: stamp.sequence };
        let (Some(lane), Some(_)) =
            (self.schedule.lane_of(place.channel, place.publisher), self.schedule.message(place))
        else {
            self.findings.forged += 1;
            return Seen::Forged;
        };
        let slot = subscription * self.lanes_per_channel + lane.index as usize;
        let state = &mut self.lanes[slot];
        let claimed = std::mem::take(&mut state.claimed);
        if stamp.sequence >= state.next {
            let from = std::mem::replace(&mut state.next, stamp.sequence + 1);
            if stamp.sequence > from {
                let excuse = if claimed { Excuse::ClaimedRecovered } else { Excuse::None };
                self.remember(slot, Gap { from, to: stamp.sequence, excuse });
            }
            self.findings.delivered += 1;
            return Seen::Fresh;
        }
        self.observe_early_sequence(slot, stamp.sequence)
    }

    #[cold]
    fn observe_early_sequence(&mut self, slot: usize, sequence: u32) -> Seen {
        let gaps = self.gaps.entry(slot).or_default();
        let Some(at) = gaps.iter().position(|gap| (gap.from..gap.to).contains(&sequence)) else {
            self.findings.repeated += 1;
            return Seen::Repeated;
        };
        let Gap { from, to, excuse } = gaps.swap_remove(at);
        let rest = [Gap { from, to: sequence, excuse }, Gap { from: sequence + 1, to, excuse }];
        gaps.extend(rest.into_iter().filter(|gap| gap.from < gap.to));
        self.findings.delivered += 1;
        if excuse == Excuse::Told {
            // It was in flight while the server told that messages were missed; no later one had come before it.
            return Seen::Fresh;
        }
        self.findings.reordered += 1;
        Seen::Reordered
    }

    fn remember(&mut self, slot: usize, gap: Gap) {
        let gaps = self.gaps.entry(slot).or_default();
        if gaps.len() == GAPS_MAX {
            let forgotten = gaps.remove(0);
            self.findings.lost += u64::from(forgotten.to - forgotten.from);
        }
        gaps.push(gap);
    }

    /// The server answered a resubscribe with `recovered: true`. To be called before the recovered messages are observed
    /// and after them, so that a hole on either side is laid to this answer.
    pub fn claimed_recovered(&mut self, subscription: usize) {
        let first = subscription * self.lanes_per_channel;
        for lane in &mut self.lanes[first..first + self.lanes_per_channel] {
            lane.claimed = true;
        }
    }

    /// The server answered a resubscribe without having recovered: what was due by then may be missing.
    pub fn told_missed(&mut self, subscription: usize, elapsed_ns: u64) {
        for index in 0..self.lanes_per_channel {
            let slot = subscription * self.lanes_per_channel + index;
            let first = self.schedule.first_of(self.channels[subscription], index as u32);
            let due = self.schedule.lane_due(first, elapsed_ns);
            let lane = &mut self.lanes[slot];
            lane.claimed = false;
            if lane.next < due {
                let from = std::mem::replace(&mut lane.next, due);
                self.remember(slot, Gap { from, to: due, excuse: Excuse::Told });
            }
        }
    }

    /// The subscription is over and the subscriber knows.
    pub fn ended(&mut self, subscription: usize) {
        self.ended[subscription] = true;
    }

    /// Counts a damaged message.
    pub fn corrupt(&mut self) {
        self.findings.corrupt += 1;
    }

    /// Counts a message that does not belong where it arrived.
    pub fn misrouted(&mut self) {
        self.findings.misrouted += 1;
    }

    /// Counts a message whose offset is not above the one before it.
    pub fn offset_went_back(&mut self) {
        self.findings.reordered += 1;
    }

    /// Deliveries so far, each message once per subscription.
    pub fn delivered(&self) -> u64 {
        self.findings.delivered
    }

    /// Closes the books, given what became of each message of the schedule.
    pub fn finish(self, ledger: &Ledger) -> Findings {
        let mut findings = self.findings;
        let none = Vec::new();
        for (subscription, channel) in self.channels.iter().enumerate() {
            for index in 0..self.lanes_per_channel {
                let slot = subscription * self.lanes_per_channel + index;
                let first = self.schedule.first_of(*channel, index as u32);
                let len = self.schedule.lane_len(first);
                findings.expected += ledger.acknowledged(first, 0, len);
                let Lane { next, claimed } = self.lanes[slot];
                findings.forged += u64::from(next.saturating_sub(ledger.sent(first)));
                let tail_excuse = match (self.ended[subscription], claimed) {
                    (true, _) => Excuse::Told,
                    (false, true) => Excuse::ClaimedRecovered,
                    (false, false) => Excuse::None,
                };
                let tail = Gap { from: next, to: len, excuse: tail_excuse };
                for gap in self.gaps.get(&slot).unwrap_or(&none).iter().chain([&tail]) {
                    let missing = ledger.acknowledged(first, gap.from, gap.to);
                    match gap.excuse {
                        Excuse::Told => findings.told += missing,
                        Excuse::None => findings.lost += missing,
                        Excuse::ClaimedRecovered => {
                            findings.lost += missing;
                            findings.falsely_recovered += missing;
                        }
                    }
                }
            }
        }
        findings
    }
}

/// What became of every message, arranged so that a stretch of a lane is counted in one step.
pub struct Ledger {
    schedule: Schedule,
    /// Acknowledged messages of the same lane up to and including this one.
    acknowledged: Vec<u32>,
    sent: Vec<u32>,
}

impl Ledger {
    /// Arranges the outcomes of a schedule's messages; a shorter list means that the rest was never sent.
    pub fn new(schedule: Schedule, outcomes: &[Outcome]) -> Self {
        let lanes = schedule.lanes() as usize;
        let total = schedule.total as usize;
        let mut acknowledged = vec![0; total];
        let mut sent = vec![0; lanes.min(total)];
        for message in 0..total {
            let outcome = outcomes.get(message).copied().unwrap_or_default();
            let before = if message < lanes { 0 } else { acknowledged[message - lanes] };
            acknowledged[message] = before + u32::from(outcome == Outcome::Acknowledged);
            if outcome != Outcome::Unsent {
                sent[message % lanes] = (message / lanes) as u32 + 1;
            }
        }
        Self { schedule, acknowledged, sent }
    }

    /// How many of the messages `from..to` of a lane were acknowledged.
    fn acknowledged(&self, first: u64, from: u32, to: u32) -> u64 {
        if from >= to {
            return 0;
        }
        let up_to = |sequence: u32| self.acknowledged[(first + u64::from(sequence) * self.schedule.lanes()) as usize];
        u64::from(up_to(to - 1) - if from == 0 { 0 } else { up_to(from - 1) })
    }

    /// How many messages of a lane were handed to the network, up to the last such one.
    fn sent(&self, first: u64) -> u32 {
        self.sent.get(first as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// One channel, one publisher, ten messages at one per second; one subscription.
    fn audit() -> Audit {
        Audit::new(schedule(), vec![0])
    }

    fn schedule() -> Schedule {
        Schedule::with_total(1.0, 10, 1, 1)
    }

    fn see(audit: &mut Audit, sequences: &[u32]) -> Vec<Seen> {
        let stamp = |sequence| Stamp { run: 1, channel: 0, publisher: 0, sequence, intended_ns: 0 };
        sequences.iter().map(|sequence| audit.observe(0, &stamp(*sequence))).collect()
    }

    fn finish(audit: Audit) -> Findings {
        audit.finish(&Ledger::new(schedule(), &[Outcome::Acknowledged; 10]))
    }

    #[test]
    fn a_full_ordered_run_is_clean() {
        let mut audit = audit();
        see(&mut audit, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(finish(audit), Findings { expected: 10, delivered: 10, ..Findings::default() });
    }

    #[test]
    fn losses_at_the_start_in_the_middle_and_at_the_end_are_counted() {
        let mut audit = audit();
        see(&mut audit, &[1, 2, 5, 6]);
        let findings = finish(audit);
        assert_eq!((findings.lost, findings.delivered, findings.violations()), (6, 4, 6));
    }

    #[test]
    fn late_is_reordered_and_not_lost_and_a_second_time_is_repeated() {
        let mut audit = audit();
        let seen = see(&mut audit, &[0, 3, 2, 2, 1, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(seen[1..6], [Seen::Fresh, Seen::Reordered, Seen::Repeated, Seen::Reordered, Seen::Repeated]);
        let findings = finish(audit);
        assert_eq!((findings.lost, findings.reordered, findings.repeated, findings.delivered), (0, 2, 2, 10));
    }

    #[test]
    fn a_failed_publish_may_be_missing_or_seen_once_but_not_twice() {
        let mut outcomes = [Outcome::Acknowledged; 10];
        (outcomes[3], outcomes[4]) = (Outcome::Failed, Outcome::Failed);
        let ledger = Ledger::new(schedule(), &outcomes);
        let mut missing = audit();
        see(&mut missing, &[0, 1, 2, 4, 5, 6, 7, 8, 9]);
        assert_eq!(missing.finish(&ledger).violations(), 0);
        let mut twice = audit();
        see(&mut twice, &[0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(twice.finish(&ledger), Findings { expected: 8, delivered: 10, repeated: 1, ..Findings::default() });
    }

    #[test]
    fn messages_nobody_sent_are_forged() {
        let mut audit = audit();
        assert_eq!(see(&mut audit, &[0, 10]), [Seen::Fresh, Seen::Forged]);
        see(&mut audit, &[1, 2]);
        let findings = audit.finish(&Ledger::new(schedule(), &[Outcome::Acknowledged; 2]));
        assert_eq!((findings.forged, findings.lost), (2, 0));
    }

    #[test]
    fn a_false_recovered_is_laid_to_the_answer_on_both_sides_of_what_it_brought() {
        let mut audit = audit();
        see(&mut audit, &[0, 1]);
        audit.claimed_recovered(0);
        see(&mut audit, &[3, 4]);
        audit.claimed_recovered(0);
        see(&mut audit, &[6, 7, 9]);
        let findings = finish(audit);
        assert_eq!((findings.lost, findings.falsely_recovered), (3, 2));
    }

    #[test]
    fn a_recovery_without_holes_is_clean_also_when_nothing_follows() {
        let mut audit = audit();
        see(&mut audit, &[0, 1]);
        audit.claimed_recovered(0);
        see(&mut audit, &[2, 3, 4, 5, 6, 7, 8, 9]);
        audit.claimed_recovered(0);
        assert_eq!(finish(audit).violations(), 0);
    }

    #[test]
    fn what_the_server_told_is_not_lost_but_what_comes_later_is() {
        let mut audit = audit();
        see(&mut audit, &[0, 1]);
        // Five seconds in, messages 0 to 5 were due. Message 5 was still on its way, 8 is lost without a word.
        audit.told_missed(0, 5 * SECOND);
        assert_eq!(see(&mut audit, &[5, 6, 7, 9]), [Seen::Fresh; 4]);
        let findings = finish(audit);
        assert_eq!((findings.told, findings.lost, findings.reordered), (3, 1, 0));
    }

    #[test]
    fn the_end_of_a_subscription_excuses_its_tail_only() {
        let mut audit = audit();
        see(&mut audit, &[0, 2, 3]);
        audit.ended(0);
        let findings = finish(audit);
        assert_eq!((findings.lost, findings.told), (1, 6));
    }

    #[test]
    fn lanes_of_several_publishers_and_channels_are_independent() {
        let schedule = Schedule::with_total(1.0, 12, 2, 3);
        let mut audit = Audit::new(schedule, vec![1, 0]);
        // Each publisher is in step with itself; between publishers the order is free.
        for message in [3, 1, 5, 9, 7, 11] {
            let Place { channel, publisher, sequence } = schedule.place(message);
            let stamp = Stamp { run: 0, channel, publisher: publisher as u16, sequence, intended_ns: 0 };
            assert_eq!(audit.observe(0, &stamp), Seen::Fresh);
        }
        let findings = audit.finish(&Ledger::new(schedule, &[Outcome::Acknowledged; 12]));
        assert_eq!((findings.lost, findings.delivered, findings.reordered), (6, 6, 0));
    }

    #[test]
    fn forgotten_gaps_count_as_lost() {
        let total = 4 * GAPS_MAX as u64;
        let schedule = Schedule::with_total(1.0, total, 1, 1);
        let mut audit = Audit::new(schedule, vec![0]);
        see(&mut audit, &(0..total as u32).filter(|sequence| sequence % 2 == 1).collect::<Vec<_>>());
        let findings = audit.finish(&Ledger::new(schedule, &vec![Outcome::Acknowledged; total as usize]));
        assert_eq!((findings.lost, findings.delivered), (total / 2, total / 2));
    }
}
