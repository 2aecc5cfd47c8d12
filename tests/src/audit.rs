//! Judges what one client was given from one channel by what the store has kept.
//!
//! A client's **cursor** is the last publication it was given, or the position it was told when it subscribed. It may
//! move on only to the publication that follows in the store, unless the client was told (`recovered: false`): then it
//! starts anew from the position in that answer. This one rule stands for order, for "at most once", for "no silent
//! loss" and for the truth of `recovered: true`.
//!
//! A server that fails may forget publications it has acknowledged. Whoever was given one of those must be told before
//! it is given anything that came later; whoever was not has missed nothing that is left.

use std::collections::{BTreeMap, BTreeSet};

/// Offsets of one lineage of a channel lie closer together than this, those of two do not: after a failover they jump by
/// two million for each second since the last one.
const LINEAGE_SPAN: u64 = 1 << 20;

/// What a publication says: who published it, and its number there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Message {
    /// The publisher.
    pub publisher: u64,
    /// From 1, increasing.
    pub number: u64,
}

/// Where a publication stands, or a client.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Position {
    /// Of the stream.
    pub epoch: String,
    /// In the stream.
    pub offset: u64,
}

/// What a client saw, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// A subscription began.
    Subscribed {
        /// The position in the answer.
        at: Position,
        /// Whether it was recovered; `None` when the client did not ask.
        recovered: Option<bool>,
    },
    /// A publication came.
    Publication {
        /// Its offset.
        offset: u64,
        /// What it says.
        message: Message,
    },
    /// The subscription ended for good.
    Ended(String),
}

/// What is true of a channel, when everything is over.
#[derive(Clone, Default, Debug)]
pub struct Truth {
    /// The epoch at the end.
    pub epoch: String,
    /// What the store has kept, by offset: everything since the epoch began but what a failing server forgot.
    pub kept: BTreeMap<u64, Message>,
    /// What publishers were told is stored, as far as they were told where.
    pub acknowledged: BTreeMap<Position, Message>,
}

/// The outcome for one client.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Verdict {
    /// What must not be, in words.
    pub violations: Vec<String>,
    /// How often the client was told that something may be lost.
    pub told: usize,
    /// Publications it was given.
    pub given: usize,
}

impl Truth {
    /// Acknowledged publications that the store does not have any more, or has at another place.
    pub fn forgotten(&self) -> Vec<Message> {
        let is_kept = |at: &Position, message: &Message| {
            at.epoch == self.epoch && self.kept.get(&at.offset).is_some_and(|kept| kept == message)
        };
        self.acknowledged.iter().filter(|(at, message)| !is_kept(at, message)).map(|(_, message)| *message).collect()
    }

    /// What is there more than once.
    pub fn repeated(&self) -> Vec<Message> {
        let mut once = BTreeSet::new();
        self.kept.values().filter(|message| !once.insert(**message)).copied().collect()
    }

    /// Judges what a client saw.
    pub fn judge(&self, seen: &[Seen]) -> Verdict {
        let mut walk = Walk { truth: self, cursor: None, given: BTreeSet::new(), verdict: Verdict::default() };
        for one in seen {
            match one {
                Seen::Subscribed { at, recovered } => walk.subscribed(at, *recovered),
                Seen::Publication { offset, message } => walk.publication(*offset, *message),
                Seen::Ended(why) => walk.violation(format!("the subscription ended: {why}")),
            }
        }
        walk.end();
        walk.verdict
    }

    fn is_kept(&self, at: &Position) -> bool {
        at.epoch == self.epoch && self.kept.contains_key(&at.offset)
    }

    /// Whether the store has forgotten what a client at this position has seen. A position before everything that was ever
    /// published in its epoch stands for nothing seen.
    fn is_forgotten(&self, at: &Position) -> bool {
        self.first(&at.epoch).is_some_and(|first| first <= at.offset) && !self.is_kept(at)
    }

    /// The offset of the first publication in this epoch, as far as anybody knows.
    fn first(&self, epoch: &str) -> Option<u64> {
        let beginning = Position { epoch: epoch.to_owned(), offset: 0 };
        let acknowledged = self.acknowledged.range(beginning..).next().map(|(at, _)| at);
        let acknowledged = acknowledged.filter(|at| at.epoch == epoch).map(|at| at.offset);
        let kept = self.kept.first_key_value().map(|(offset, _)| *offset).filter(|_| epoch == self.epoch);
        acknowledged.into_iter().chain(kept).min()
    }

    /// What a client that goes from one position to an offset passes by and should have been given.
    fn between(&self, from: &Position, to: u64) -> Vec<Message> {
        if from.offset + 1 >= to {
            return Vec::new();
        }
        let epoch = &from.epoch;
        let position = |offset| Position { epoch: epoch.clone(), offset };
        let mut missed = BTreeMap::new();
        if *epoch == self.epoch {
            missed.extend(self.kept.range(from.offset + 1..to).map(|(offset, message)| (*offset, *message)));
        }
        // What was forgotten is missed only by those who are given something of the same lineage that was forgotten, too.
        if self.is_forgotten(&position(to)) {
            let first = (from.offset + 1).max(to.saturating_sub(LINEAGE_SPAN));
            let acknowledged = self.acknowledged.range(position(first)..position(to));
            missed.extend(acknowledged.map(|(at, message)| (at.offset, *message)));
        }
        missed.into_values().collect()
    }
}

struct Walk<'a> {
    truth: &'a Truth,
    cursor: Option<Position>,
    given: BTreeSet<Message>,
    verdict: Verdict,
}

impl Walk<'_> {
    fn violation(&mut self, text: String) {
        self.verdict.violations.push(text);
    }

    fn subscribed(&mut self, at: &Position, recovered: Option<bool>) {
        match (self.cursor.take(), recovered) {
            (None, None) => self.cursor = Some(at.clone()),
            (Some(_), Some(false)) => {
                self.verdict.told += 1;
                self.cursor = Some(at.clone());
            }
            (Some(cursor), Some(true)) => {
                if cursor.epoch != at.epoch {
                    self.violation(format!("recovered in epoch {} from {cursor:?}", at.epoch));
                }
                self.cursor = Some(cursor);
            }
            (cursor, _) => {
                self.violation(format!("subscribed at {at:?}, recovered {recovered:?}, after {cursor:?}"));
                self.cursor = Some(at.clone());
            }
        }
    }

    fn publication(&mut self, offset: u64, message: Message) {
        self.verdict.given += 1;
        if !self.given.insert(message) {
            self.violation(format!("repeated: {message:?} at {offset}"));
        }
        let Some(cursor) = self.cursor.clone() else {
            self.violation(format!("given {message:?} before subscribing"));
            return;
        };
        if offset <= cursor.offset {
            self.violation(format!("out of order: {message:?} at {offset} after {cursor:?}"));
            return;
        }
        let here = Position { epoch: cursor.epoch.clone(), offset };
        let kept = self.truth.kept.get(&offset).filter(|_| here.epoch == self.truth.epoch);
        if let Some(other) = self.truth.acknowledged.get(&here).or(kept)
            && *other != message
        {
            self.violation(format!("{message:?} at {here:?}, which is {other:?}"));
        }
        let missed = self.truth.between(&cursor, offset);
        if !missed.is_empty() {
            self.violation(format!("lost between {cursor:?} and {offset}: {missed:?}"));
        }
        if self.truth.is_forgotten(&cursor) && self.truth.is_kept(&here) {
            self.violation(format!("went on from {cursor:?}, which is forgotten, to {offset} without being told"));
        }
        self.cursor = Some(here);
    }

    /// Nothing may be missing at the end either.
    fn end(&mut self) {
        let Some(cursor) = self.cursor.take() else {
            self.violation("never subscribed".to_owned());
            return;
        };
        let top = self.truth.kept.last_key_value().map_or(0, |(offset, _)| *offset);
        if cursor.epoch != self.truth.epoch || cursor.offset != top {
            let epoch = &self.truth.epoch;
            self.violation(format!("stands at {cursor:?} in the end, and the channel at {top} of {epoch}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets need not begin at 1: a client may have been told a position at which nothing was published.
    #[test]
    fn a_position_before_everything_is_nothing_seen() {
        let kept: BTreeMap<u64, Message> = (11..=13).map(|n| (n, message(n))).collect();
        let acknowledged = kept.iter().map(|(offset, message)| (at(*offset), *message)).collect();
        let truth = Truth { epoch: "now".to_owned(), kept, acknowledged };
        let mut seen = vec![subscribed(7, None)];
        seen.extend(given(11..=13));
        assert_eq!(truth.judge(&seen).violations, Vec::<String>::new());
        let mut seen = vec![subscribed(7, None)];
        seen.extend(given(12..=13));
        assert_eq!(truth.judge(&seen).violations.len(), 1, "11 is missing");
    }

    /// The messages of one publisher, and an offset far above all of them: that of the next lineage.
    const JUMP: u64 = 1 << 50;

    fn message(number: u64) -> Message {
        Message { publisher: 1, number }
    }

    fn at(offset: u64) -> Position {
        Position { epoch: "now".to_owned(), offset }
    }

    fn subscribed(offset: u64, recovered: Option<bool>) -> Seen {
        Seen::Subscribed { at: at(offset), recovered }
    }

    /// The message of number `n` at offset `n`.
    fn given(range: std::ops::RangeInclusive<u64>) -> Vec<Seen> {
        range.map(|n| Seen::Publication { offset: n, message: message(n) }).collect()
    }

    /// Messages 1 to 10 at their numbers.
    fn plain() -> Truth {
        let kept: BTreeMap<u64, Message> = (1..=10).map(|n| (n, message(n))).collect();
        let acknowledged = kept.iter().map(|(offset, message)| (at(*offset), *message)).collect();
        Truth { epoch: "now".to_owned(), kept, acknowledged }
    }

    /// 1 to 10, of which 9 and 10 are forgotten; 11 and 12 follow after the jump.
    fn failed_over() -> Truth {
        let mut truth = plain();
        truth.kept.retain(|offset, _| *offset <= 8);
        for n in 11..=12 {
            truth.kept.insert(JUMP + n, message(n));
            truth.acknowledged.insert(at(JUMP + n), message(n));
        }
        truth
    }

    fn after_jump(numbers: std::ops::RangeInclusive<u64>) -> Vec<Seen> {
        numbers.map(|n| Seen::Publication { offset: JUMP + n, message: message(n) }).collect()
    }

    #[track_caller]
    fn clean(truth: &Truth, seen: &[&[Seen]], told: usize) {
        let verdict = truth.judge(&seen.concat());
        assert_eq!((verdict.violations, verdict.told), (Vec::<String>::new(), told));
    }

    #[track_caller]
    fn caught(truth: &Truth, seen: &[&[Seen]], what: &str) {
        let violations = truth.judge(&seen.concat()).violations;
        assert!(violations.iter().any(|text| text.contains(what)), "{what}: {violations:?}");
    }

    #[test]
    fn a_run_without_fault_is_clean() {
        clean(&plain(), &[&[subscribed(0, None)], &given(1..=10)], 0);
        clean(&plain(), &[&[subscribed(4, None)], &given(5..=10)], 0);
        clean(&plain(), &[&[subscribed(0, None)], &given(1..=5), &[subscribed(5, Some(true))], &given(6..=10)], 0);
        clean(&plain(), &[&[subscribed(0, None)], &given(1..=5), &[subscribed(8, Some(false))], &given(9..=10)], 1);
        clean(&plain(), &[&[subscribed(10, None)]], 0);
    }

    #[test]
    fn loss_is_caught() {
        caught(&plain(), &[&[subscribed(0, None)], &given(1..=4), &given(6..=10)], "lost");
        caught(&plain(), &[&[subscribed(0, None)], &given(2..=10)], "lost");
        caught(&plain(), &[&[subscribed(0, None)], &given(1..=9)], "stands at");
        let recovered = [subscribed(5, Some(true))];
        caught(&plain(), &[&[subscribed(0, None)], &given(1..=5), &recovered, &given(7..=10)], "lost");
    }

    #[test]
    fn repetition_and_disorder_are_caught() {
        caught(&plain(), &[&[subscribed(0, None)], &given(1..=5), &given(5..=10)], "repeated");
        caught(&plain(), &[&[subscribed(0, None)], &given(1..=4), &given(6..=6), &given(5..=10)], "out of order");
        // A publication that was stored twice is given twice at two offsets.
        let mut twice = plain();
        twice.kept.insert(11, message(10));
        assert_eq!(twice.repeated(), [message(10)]);
        let again = [Seen::Publication { offset: 11, message: message(10) }];
        caught(&twice, &[&[subscribed(0, None)], &given(1..=10), &again], "repeated");
        // Told to start anew, and then given the past.
        caught(
            &plain(),
            &[&[subscribed(0, None)], &given(1..=5), &[subscribed(4, Some(false))], &given(5..=10)],
            "repeated",
        );
    }

    #[test]
    fn one_position_has_one_message() {
        let other = [Seen::Publication { offset: 10, message: Message { publisher: 2, number: 1 } }];
        caught(&plain(), &[&[subscribed(0, None)], &given(1..=9), &other], "which is");
    }

    #[test]
    fn after_a_failover_those_who_saw_what_is_forgotten_must_be_told() {
        let truth = failed_over();
        assert_eq!(truth.forgotten(), [message(9), message(10)]);
        clean(&truth, &[&[subscribed(0, None)], &given(1..=8), &after_jump(11..=12)], 0);
        let told = [subscribed(8, Some(false))];
        clean(&truth, &[&[subscribed(0, None)], &given(1..=10), &told, &after_jump(11..=12)], 1);
        caught(&truth, &[&[subscribed(0, None)], &given(1..=10), &after_jump(11..=12)], "without being told");
        let lie = [subscribed(10, Some(true))];
        caught(&truth, &[&[subscribed(0, None)], &given(1..=10), &lie, &after_jump(11..=12)], "without being told");
        // A loss before the failover is one all the same, on either branch.
        caught(&truth, &[&[subscribed(0, None)], &given(1..=7), &after_jump(11..=12)], "lost");
        caught(&truth, &[&[subscribed(0, None)], &given(1..=8), &given(10..=10), &told], "lost");
        caught(&truth, &[&[subscribed(0, None)], &given(1..=8), &after_jump(12..=12)], "lost");
    }

    #[test]
    fn a_new_epoch_must_be_told() {
        let mut truth = plain();
        for n in 1..=5 {
            truth.acknowledged.insert(Position { epoch: "then".to_owned(), offset: n }, message(n + 100));
        }
        let then = [Seen::Subscribed { at: Position { epoch: "then".to_owned(), offset: 0 }, recovered: None }];
        let old = |numbers: &[u64]| -> Vec<Seen> {
            numbers.iter().map(|n| Seen::Publication { offset: *n, message: message(n + 100) }).collect()
        };
        let told = [subscribed(0, Some(false))];
        clean(&truth, &[&then, &old(&[1, 2, 3]), &told, &given(1..=10)], 1);
        caught(&truth, &[&then, &old(&[1, 3]), &told, &given(1..=10)], "lost");
        caught(&truth, &[&then, &old(&[1, 2, 3]), &[subscribed(3, Some(true))], &given(4..=10)], "recovered in epoch");
        caught(&truth, &[&then, &old(&[1, 2, 3])], "stands at");
    }

    #[test]
    fn a_subscription_that_ended_or_began_anew_unasked_is_caught() {
        caught(&plain(), &[&[subscribed(10, None), Seen::Ended("code 103".to_owned())]], "ended");
        caught(&plain(), &[&[subscribed(0, None)], &given(1..=5), &[subscribed(10, None)]], "after");
        caught(&plain(), &[&[]], "never subscribed");
    }
}
