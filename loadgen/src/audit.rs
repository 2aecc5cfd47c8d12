//! The auditor: what every subscriber must have seen, message by message.
//!
//! Each lane (one publisher's stream to one channel, see [`schedule`](crate::schedule)) of each subscription expects
//! sequence 0, 1, 2 and so on. What arrives early leaves a gap, which a late message may fill and the end of the run
//! judges against what the publishers know: an acknowledged message that never came is lost, unless the subscriber was
//! told that it would miss some; one whose publish failed may be missing, but like any other it must not come twice.
//!
//! A subscription is the same one however often its client reconnects, so all of this holds across connections, nodes and
//! epochs. What a resubscribe was answered decides how a gap is judged: after `recovered: true` it is a false promise, after
//! anything else the client knows of it.

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
    /// Nobody promised anything: a subscription without positions, in a run that breaks things on purpose.
    unpromised: Vec<bool>,
    /// Of each lane, the next sequence when the present connection subscribed; empty before the first resubscribe.
    resumed_from: Vec<u32>,
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
    /// Those of the repeated ones which an earlier connection, or an earlier subscription of the same one, had delivered.
    pub repeated_across_resumes: u64,
    /// Deliveries after a later message of the same lane, or with an offset below an earlier one.
    pub reordered: u64,
    /// Messages with a wrong checksum, without a stamp, or not decodable.
    pub corrupt: u64,
    /// Messages on a connection that is not subscribed to their channel, or under another channel's name.
    pub misrouted: u64,
    /// Messages that carry a valid stamp and were never published.
    pub forged: u64,
    /// Answers to a subscribe that contradict themselves or the question, such as `recovered: true` in another epoch.
    pub contradictory: u64,
    /// Acknowledged messages a subscriber missed and was told about: its connection was closed, it was unsubscribed, or
    /// the resubscribe said `recovered: false`.
    pub told: u64,
    /// Acknowledged messages missed where the server keeps no position and so promises nothing, in a run that breaks things
    /// on purpose.
    pub unpromised: u64,
    /// Deliveries to a live subscription later than the run's limit, counted from the intended send time.
    pub late: u64,
}

impl Findings {
    /// Everything that breaks a promise.
    pub fn violations(&self) -> u64 {
        let Self { lost, repeated, reordered, corrupt, misrouted, forged, contradictory, .. } = self;
        lost + repeated + reordered + corrupt + misrouted + forged + contradictory
    }

    /// Adds another worker's findings.
    pub fn add(&mut self, other: &Findings) {
        self.expected += other.expected;
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.falsely_recovered += other.falsely_recovered;
        self.repeated += other.repeated;
        self.repeated_across_resumes += other.repeated_across_resumes;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
        self.misrouted += other.misrouted;
        self.forged += other.forged;
        self.contradictory += other.contradictory;
        self.told += other.told;
        self.unpromised += other.unpromised;
        self.late += other.late;
    }
}

impl Audit {
    /// An auditor of subscriptions, given by the channel of each. They are all there before the first message.
    pub fn new(schedule: Schedule, channels: Vec<u32>) -> Self {
        let lanes_per_channel = schedule.lanes_per_channel() as usize;
        Self {
            lanes: vec![Lane { next: 0, claimed: false }; channels.len() * lanes_per_channel],
            ended: vec![false; channels.len()],
            unpromised: vec![false; channels.len()],
            resumed_from: Vec::new(),
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
            let seen_earlier = self.resumed_from.get(slot).is_some_and(|from| sequence < *from);
            self.findings.repeated += 1;
            self.findings.repeated_across_resumes += u64::from(seen_earlier);
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
            let messages = u64::from(forgotten.to - forgotten.from);
            match forgotten.excuse {
                Excuse::Told => self.findings.told += messages,
                Excuse::None | Excuse::ClaimedRecovered => self.findings.lost += messages,
            }
        }
        gaps.push(gap);
    }

    /// A resubscribe was answered: what was seen before was seen on another connection, or in another subscription of it.
    pub fn resumed(&mut self, subscription: usize) {
        if self.resumed_from.is_empty() {
            self.resumed_from = vec![0; self.lanes.len()];
        }
        let first = subscription * self.lanes_per_channel;
        for slot in first..first + self.lanes_per_channel {
            self.resumed_from[slot] = self.lanes[slot].next;
        }
    }

    /// The server keeps no position for this subscription, and a fault may cost it messages without a word.
    pub fn promises_nothing(&mut self, subscription: usize) {
        self.unpromised[subscription] = true;
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

    /// Counts an answer to a subscribe that contradicts itself or the question: recovered in another epoch, recovered
    /// without having been asked to, or publications although nothing was recovered (protocol section 4.4).
    pub fn contradictory(&mut self) {
        self.findings.contradictory += 1;
    }

    /// Counts a message that came later than the run allows.
    pub fn late(&mut self) {
        self.findings.late += 1;
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
                let gaps = self.gaps.get(&slot).unwrap_or(&none);
                findings.forged += u64::from(seen_up_to(next, gaps).saturating_sub(ledger.sent(first)));
                let tail_excuse = match (self.ended[subscription], claimed) {
                    (true, _) => Excuse::Told,
                    (false, true) => Excuse::ClaimedRecovered,
                    (false, false) => Excuse::None,
                };
                let tail = Gap { from: next, to: len, excuse: tail_excuse };
                for gap in gaps.iter().chain([&tail]) {
                    let missing = ledger.acknowledged(first, gap.from, gap.to);
                    match gap.excuse {
                        Excuse::Told => findings.told += missing,
                        _ if self.unpromised[subscription] => findings.unpromised += missing,
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

/// The sequence after the last one seen in a lane: `next` may also be behind what was due when a subscriber was told that it
/// missed messages, some of which were never sent.
fn seen_up_to(next: u32, gaps: &[Gap]) -> u32 {
    let mut end = next;
    while let Some(gap) = gaps.iter().find(|gap| gap.to == end && gap.excuse == Excuse::Told) {
        end = gap.from;
    }
    end
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
    fn what_an_earlier_connection_had_delivered_is_repeated_across_the_resume() {
        let mut audit = audit();
        see(&mut audit, &[0, 1, 2]);
        audit.claimed_recovered(0);
        audit.resumed(0);
        assert_eq!(see(&mut audit, &[2, 3, 3]), [Seen::Repeated, Seen::Fresh, Seen::Repeated]);
        audit.claimed_recovered(0);
        audit.resumed(0);
        see(&mut audit, &[3, 4, 5, 6, 7, 8, 9]);
        let findings = finish(audit);
        assert_eq!((findings.repeated, findings.repeated_across_resumes, findings.lost), (3, 2, 0));
    }

    #[test]
    fn a_new_epoch_that_is_told_excuses_what_was_lost_with_the_old_one_and_nothing_after_it() {
        let mut audit = audit();
        see(&mut audit, &[0, 1, 2]);
        // The stream was lost with messages 3 and 4; the client is told at four seconds, before message 5.
        audit.told_missed(0, 4 * SECOND);
        audit.resumed(0);
        see(&mut audit, &[5, 6, 8, 9]);
        let findings = finish(audit);
        assert_eq!((findings.told, findings.lost, findings.violations()), (2, 1, 1));
    }

    #[test]
    fn being_told_of_messages_that_were_never_sent_forges_none() {
        let mut audit = audit();
        see(&mut audit, &[0, 1]);
        audit.told_missed(0, 5 * SECOND);
        audit.told_missed(0, 8 * SECOND);
        // Publishing stopped after the third message.
        let findings = audit.finish(&Ledger::new(schedule(), &[Outcome::Acknowledged; 3]));
        assert_eq!((findings.forged, findings.told, findings.violations()), (0, 1, 0));
    }

    #[test]
    fn where_nothing_is_promised_a_hole_is_no_violation_but_a_repetition_is() {
        let mut audit = audit();
        audit.promises_nothing(0);
        see(&mut audit, &[0, 3, 3, 4]);
        let findings = finish(audit);
        assert_eq!((findings.unpromised, findings.lost, findings.repeated), (7, 0, 1));
    }

    #[test]
    fn a_contradiction_is_a_violation_and_lateness_is_none() {
        let mut audit = audit();
        see(&mut audit, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        audit.late();
        assert_eq!((audit.findings.violations(), audit.findings.late), (0, 1));
        audit.contradictory();
        assert_eq!(finish(audit).violations(), 1);
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
