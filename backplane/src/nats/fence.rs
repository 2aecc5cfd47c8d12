//! Fences: what makes a position mean one publication for ever, although a server may forget.
//!
//! A stream numbers its messages. A server whose data directory is put back to an earlier copy gives numbers a second
//! time. So positions are not these numbers alone: a stream has a list of **fences**, and a message's **offset** is its
//! number plus the base of the latest fence at or below it. Whenever numbers may be given a second time, that is when a
//! server was started, a fence is appended before anything is written: it begins after the last number that is there,
//! and its base comes from the clock, above all offsets that were given before. Offsets of messages that were lost lie
//! beyond the beginning of a later fence, which is how they are recognised.
//!
//! The **epoch** stands for the stream itself: when it was created, and the random id of its list of fences.

use serde::{Deserialize, Serialize};

use crate::{Epoch, Offset};

/// Fences that are kept. Each restart of the server appends one; messages from before the oldest are not read any more,
/// so this many restarts within the life of a message must be survived. At some 90 bytes each the record stays small.
const FENCES_MAX: usize = 128;

/// A base is this many times a time in milliseconds: room for two million messages per second between two fences, and
/// offsets below 2^53 until the year 2109.
const PER_MILLISECOND: u64 = 2048;

/// The offset of every message from `first` on is its number plus `base`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Fence {
    /// The run of the server that wrote after it; of several servers, whatever tells the writers apart.
    pub(super) server: String,
    /// The number of the first message.
    pub(super) first: u64,
    /// What is added to numbers.
    pub(super) base: u64,
}

/// All fences of a stream, as they are stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Fences {
    /// Version of this record: 1.
    v: u8,
    /// Random: new whenever the record had to be made anew.
    id: String,
    /// When the stream was created, in the server's words.
    created: String,
    /// How many fences were dropped from the beginning of the list.
    dropped: u32,
    fences: Vec<Fence>,
}

/// A record of fences that this version cannot read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the fences of a stream cannot be read: {0}")]
pub(super) struct FenceError(String);

impl Fences {
    /// The first fence of a stream, which changes no number.
    pub(super) fn new(created: &str, server: &str, id: u64) -> Self {
        let first = Fence { server: server.to_owned(), first: 0, base: 0 };
        Self { v: 1, id: format!("{id:016x}"), created: created.to_owned(), dropped: 0, fences: vec![first] }
    }

    /// The same with numbers that begin at the time, in milliseconds since 1970: for what must stay above everything that
    /// was given even when all of it was lost, and no epoch tells one stream from the next.
    pub(super) fn beginning_at(mut self, now: u64) -> Self {
        self.fences[0].base = now.saturating_mul(PER_MILLISECOND);
        self
    }

    /// Reads a stored record.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, FenceError> {
        let fences: Self = serde_json::from_slice(bytes).map_err(|error| FenceError(error.to_string()))?;
        if fences.v != 1 {
            return Err(FenceError(format!("version {}, this node reads version 1", fences.v)));
        }
        if fences.fences.is_empty() {
            return Err(FenceError("there are none".to_owned()));
        }
        Ok(fences)
    }

    /// The record to be stored.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text and numbers can be written")
    }

    /// Whether they are those of the stream that was created then.
    pub(super) fn is_of(&self, created: &str) -> bool {
        self.created == created
    }

    /// Identity of the stream.
    pub(super) fn epoch(&self) -> Epoch {
        // FNV-1a over both; 64 bits, because a system has few streams and few losses.
        let text = self.created.bytes().chain([0]).chain(self.id.bytes());
        let hash =
            text.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        Epoch::from(letters(hash))
    }

    /// How many fences there have been: what a publisher says that it knew.
    pub(super) fn count(&self) -> u32 {
        self.dropped + u32::try_from(self.fences.len()).unwrap_or(u32::MAX)
    }

    /// The run of the server that last wrote.
    pub(super) fn server(&self) -> &str {
        self.fences.last().map_or("", |fence| &fence.server)
    }

    /// Appends a fence for messages after `last`, the last number in the stream; `now` is the time in milliseconds since
    /// 1970.
    pub(super) fn append(&mut self, server: &str, last: u64, now: u64) {
        // Above what this list can have given, should the clock have been put back.
        let above = self.fences.last().map_or(0, |fence| fence.base) + last.max(self.highest_first()) + 1;
        let base = now.saturating_mul(PER_MILLISECOND).max(above);
        self.fences.push(Fence { server: server.to_owned(), first: last + 1, base });
        if self.fences.len() > FENCES_MAX {
            self.fences.remove(0);
            self.dropped += 1;
        }
    }

    fn highest_first(&self) -> u64 {
        self.fences.iter().map(|fence| fence.first).max().unwrap_or(0)
    }

    /// The offset of a message that is in the stream; `None` if it is from before all fences that are known.
    pub(super) fn offset(&self, number: u64) -> Option<Offset> {
        // The latest one that applies: after a loss of much, a later fence may begin before an earlier one.
        let fence = self.fences.iter().rev().find(|fence| fence.first <= number)?;
        Some(Offset(number + fence.base))
    }

    /// The number of the message that has this offset; `None` if there is none, or if it was lost.
    pub(super) fn number(&self, offset: Offset) -> Option<u64> {
        let index = self.fences.iter().rposition(|fence| fence.base <= offset.0)?;
        let number = offset.0 - self.fences[index].base;
        let is_lost = self.fences[index + 1..].iter().any(|later| later.first <= number);
        (number >= self.fences[index].first && !is_lost).then_some(number)
    }
}

/// Letters that no JSON or URL has to escape; eleven of them for any number.
fn letters(mut number: u64) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::with_capacity(11);
    for _ in 0..11 {
        text.push(char::from(LETTERS[usize::try_from(number % 62).unwrap_or(0)]));
        number /= 62;
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_790_000_000_000;

    fn at(number: u64) -> Offset {
        Offset(number)
    }

    #[test]
    fn the_first_fence_changes_no_number() {
        let fences = Fences::new("then", "A", 7);
        assert_eq!(fences.offset(5), Some(at(5)));
        assert_eq!(fences.number(at(5)), Some(5));
        assert_eq!((fences.count(), fences.server()), (1, "A"));
        assert!(fences.is_of("then") && !fences.is_of("later"));
    }

    #[test]
    fn what_begins_at_the_time_is_above_what_was_lost() {
        let mut lost = Fences::new("then", "A", 7).beginning_at(NOW);
        lost.append("B", 100, NOW + 1000);
        let last = lost.offset(500_000).expect("it is known");
        let new = Fences::new("later", "C", 8).beginning_at(NOW + 2000);
        assert!(new.offset(1).expect("it is known") > last);
        assert_eq!(new.number(new.offset(1).expect("it is known")), Some(1));
    }

    #[test]
    fn a_rolled_back_server_gives_no_offset_twice() {
        let mut fences = Fences::new("then", "A", 7);
        // 105 messages were given; the server comes back with 100 of them.
        fences.append("B", 100, NOW);
        assert_eq!(fences.number(at(100)), Some(100), "what survived is covered");
        assert_eq!(fences.number(at(101)), None, "the lost tail is not");
        assert_eq!(fences.number(at(105)), None);
        let new = fences.offset(101).expect("it is known");
        assert_eq!(new, at(101 + NOW * 2048));
        assert_eq!(fences.number(new), Some(101));
        // Once more, to before the first loss.
        fences.append("C", 50, NOW + 1000);
        assert_eq!(fences.offset(50), Some(at(50)));
        assert_eq!(fences.number(at(51)), None);
        assert_eq!(fences.number(new), None);
        let newer = fences.offset(101).expect("it is known");
        assert!(newer > new);
        assert_eq!(fences.number(newer), Some(101));
    }

    #[test]
    fn a_clock_put_back_gives_no_offset_twice() {
        let mut fences = Fences::new("then", "A", 7);
        fences.append("B", 1_000, NOW);
        let old = fences.offset(2_000).expect("it is known");
        fences.append("C", 2_000, NOW - 86_400_000);
        assert!(fences.offset(2_001).expect("it is known") > old);
        assert_eq!(fences.number(old), Some(2_000));
    }

    #[test]
    fn old_fences_are_dropped_and_counted() {
        let mut fences = Fences::new("then", "0", 7);
        for run in 1..=200u64 {
            fences.append(&run.to_string(), run * 10, NOW + run);
        }
        assert_eq!(fences.count(), 201);
        assert_eq!(fences.offset(5), None, "from before all fences that are known");
        assert_eq!(fences.number(at(5)), None);
        assert!(fences.to_bytes().len() < 16_384, "the record is small: {}", fences.to_bytes().len());
    }

    #[test]
    fn records_come_back_and_others_are_refused() {
        let mut fences = Fences::new("then", "A", 7);
        fences.append("B", 100, NOW);
        assert_eq!(Fences::parse(&fences.to_bytes()), Ok(fences.clone()));
        let newer = String::from_utf8(fences.to_bytes()).expect("JSON is text").replace("\"v\":1", "\"v\":2");
        assert!(Fences::parse(newer.as_bytes()).is_err());
        assert!(Fences::parse(b"{").is_err());
    }

    #[test]
    fn epochs_are_of_one_stream_and_one_record() {
        let epoch = Fences::new("then", "A", 7).epoch();
        assert_eq!(epoch, Fences::new("then", "B", 7).epoch());
        assert_ne!(epoch, Fences::new("later", "A", 7).epoch());
        assert_ne!(epoch, Fences::new("then", "A", 8).epoch());
        assert_eq!(epoch.as_str().len(), 11);
    }

    proptest! {
        /// However often a server is started, and whatever it lost: no offset is given twice, every offset of a message
        /// that is there leads to its number, and none of a lost one leads anywhere.
        #[test]
        fn offsets_are_never_reused(runs in prop::collection::vec((1u64..20, 0u64..30), 1..12)) {
            let mut fences = Fences::new("then", "0", 7);
            let mut given = std::collections::HashSet::new();
            let mut present: Vec<(u64, Offset)> = Vec::new();
            let mut lost: Vec<Offset> = Vec::new();
            for (run, (published, dropped)) in runs.into_iter().enumerate() {
                let last = present.last().map_or(0, |(number, _)| *number);
                for number in last + 1..=last + published {
                    let offset = fences.offset(number).expect("it is known");
                    prop_assert!(given.insert(offset), "{offset} was given twice");
                    prop_assert!(present.last().is_none_or(|(_, before)| *before < offset));
                    present.push((number, offset));
                }
                let kept = present.len().saturating_sub(usize::try_from(dropped).unwrap_or(0));
                lost.extend(present.drain(kept..).map(|(_, offset)| offset));
                let last = present.last().map_or(0, |(number, _)| *number);
                fences.append(&run.to_string(), last, NOW + run as u64);
                for (number, offset) in &present {
                    prop_assert_eq!(fences.offset(*number), Some(*offset));
                    prop_assert_eq!(fences.number(*offset), Some(*number));
                }
                for offset in &lost {
                    prop_assert_eq!(fences.number(*offset), None);
                }
            }
        }
    }
}
