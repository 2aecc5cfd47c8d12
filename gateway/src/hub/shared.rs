//! What one recovery has read, kept for a moment for those who come back next.
//!
//! After a storm clients come back to a channel one by one, each from a position of its own. Without this each of them
//! that comes after the answer to the one before would cost a read of history. What was read, and what was delivered
//! since, answers most of them without one.

use std::collections::VecDeque;

use backplane::{StoredPublication, StreamPosition};
use session::io::{Joined, RecoverFrom, RecoverMode};
use session::time::Tick;

use super::recovery;

/// The newest publications of a channel up to the shard's position, nothing missing between the first of them and there.
#[derive(Debug)]
pub(super) struct Shared {
    entries: VecDeque<StoredPublication>,
    bytes: usize,
    /// It began with all there was, or with as many as any recovery may have: whoever is not covered by it is by nothing.
    is_newest: bool,
    /// Not used after this: history may have been removed meanwhile.
    pub until: Tick,
}

/// Bounds of a [`Shared`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Publications: more than one recovery may have are of no use.
    pub len: usize,
    /// Bytes of them.
    pub bytes: usize,
}

impl Shared {
    /// Keeps these publications of a stream that a shard has delivered up to `position`; `None` when they are too large.
    pub fn new(
        entries: &[StoredPublication],
        position: &StreamPosition,
        is_newest: bool,
        until: Tick,
        bounds: Bounds,
    ) -> Option<Self> {
        let mut shared = Self { entries: VecDeque::new(), bytes: 0, is_newest, until };
        for entry in entries.iter().filter(|entry| entry.offset() <= position.offset) {
            if !shared.push(entry.clone(), bounds) {
                return None;
            }
        }
        Some(shared)
    }

    /// Takes the next publication that was delivered. False when it grew too large and must be let go.
    #[must_use]
    pub fn push(&mut self, entry: StoredPublication, bounds: Bounds) -> bool {
        self.bytes += entry.publication.data.len();
        self.entries.push_back(entry);
        while self.entries.len() > bounds.len {
            if let Some(first) = self.entries.pop_front() {
                self.bytes -= first.publication.data.len();
            }
        }
        self.bytes <= bounds.bytes
    }

    /// The answer to somebody who comes back to a stream that was delivered up to `top`; `None` when only history knows.
    pub fn answer(&mut self, from: &RecoverFrom, top: &StreamPosition) -> Option<Joined> {
        let is_same_epoch = from.epoch.is_unknown() || from.epoch == top.epoch;
        // Beyond the top: another node has delivered more.
        if !is_same_epoch || from.offset > top.offset {
            return None;
        }
        let entries = self.entries.make_contiguous();
        if from.mode == RecoverMode::Cache && entries.last().is_none_or(|latest| latest.offset() != top.offset) {
            return None;
        }
        let joined = recovery::answer(Some(from), entries, top, false);
        (joined.recovered || self.is_newest).then_some(joined)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use backplane::{Epoch, Offset, Previous, Publication};
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    /// A stream with these distances between its offsets.
    fn stream(gaps: &[u64]) -> Vec<StoredPublication> {
        let mut offset = 0;
        gaps.iter()
            .map(|gap| {
                let previous = Previous::Known(Offset(offset));
                offset += gap;
                let data = Bytes::from_static(b"1234");
                let publication =
                    Publication { offset: Some(Offset(offset)), data, info: None, tags: Default::default() };
                StoredPublication { publication: Arc::new(publication), previous }
            })
            .collect()
    }

    fn at(offset: Offset) -> StreamPosition {
        StreamPosition { epoch: Epoch::from("e"), offset }
    }

    const ROOMY: Bounds = Bounds { len: 1_000, bytes: 1 << 20 };

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever was read and delivered: who is told that he recovered is given everything he missed, and who is told
        /// that he did not could not have been helped by all that was kept.
        #[test]
        fn no_answer_is_a_lie(
            gaps in prop::collection::vec(1..4_u64, 1..40),
            cut in any::<prop::sample::Index>(),
            read in any::<prop::sample::Index>(),
            len in 1..20_usize,
            from in 0..130_u64,
            is_newest: bool,
        ) {
            let all = stream(&gaps);
            let bounds = Bounds { len, ..ROOMY };
            let read_up_to = read.index(all.len()) + 1;
            let first = cut.index(read_up_to + 1);
            let position = |count: usize| count.checked_sub(1).map_or(Offset(0), |last| all[last].offset());
            let kept = &all[first..read_up_to];
            // A newest read has all there is, or as many as a recovery may have.
            let is_newest = is_newest && (first == 0 || kept.len() >= len);
            let mut shared =
                Shared::new(kept, &at(position(read_up_to)), is_newest, Tick(1), bounds).expect("it is small");
            for entry in &all[read_up_to..] {
                prop_assert!(shared.push(entry.clone(), bounds));
            }
            prop_assert!(shared.entries.len() <= len);
            let from = RecoverFrom { epoch: Epoch::from("e"), offset: Offset(from), mode: RecoverMode::Stream };
            let top = position(all.len());
            let missed: Vec<_> = all.iter().filter(|entry| entry.offset() > from.offset).collect();
            let is_place = from.offset.0 == 0 || all.iter().any(|entry| entry.offset() == from.offset);
            match shared.answer(&from, &at(top)) {
                None => prop_assert!(!is_newest || from.offset > top),
                Some(joined) if joined.recovered => {
                    prop_assert!(is_place);
                    let given: Vec<_> = joined.publications.iter().map(|publication| publication.offset).collect();
                    let expected: Vec<_> = missed.iter().map(|entry| Some(entry.offset())).collect();
                    prop_assert_eq!(given, expected);
                }
                Some(_) => prop_assert!(is_newest && (!is_place || missed.len() > len)),
            }
        }
    }

    #[test]
    fn what_is_too_large_is_let_go_and_another_epoch_not_answered() {
        let all = stream(&[1; 10]);
        let small = Bounds { len: 100, bytes: 39 };
        assert!(Shared::new(&all, &at(Offset(10)), true, Tick(1), small).is_none());
        let mut shared = Shared::new(&all, &at(Offset(10)), true, Tick(1), ROOMY).unwrap();
        for (epoch, offset, mode) in
            [("f", 5, RecoverMode::Stream), ("f", 5, RecoverMode::Cache), ("e", 11, RecoverMode::Stream)]
        {
            let from = RecoverFrom { epoch: Epoch::from(epoch), offset: Offset(offset), mode };
            assert_eq!(shared.answer(&from, &at(Offset(10))), None, "{from:?}");
        }
        let latest = RecoverFrom { epoch: Epoch::from(""), offset: Offset(0), mode: RecoverMode::Cache };
        let joined = shared.answer(&latest, &at(Offset(10))).unwrap();
        assert_eq!((joined.recovered, joined.publications.len()), (true, 1));
    }
}
