//! The coverage rule: when is an answer everything that a reader missed?
//!
//! A client (or a node) that has seen everything up to an offset asks what came after. The answer may be called complete
//! only if nothing between that offset and the oldest returned publication can have been trimmed, expired, removed or
//! lost with an older data set. Offsets need not be contiguous, so "the first returned offset is mine plus one" proves
//! nothing, and its absence disproves nothing. What proves it is the chain of `previous` offsets:
//!
//! An offset n is **covered** by the retained list of its channel when the epochs agree and
//! - the entry n itself is retained (trimming and expiry take the oldest first, so all later ones are there), or
//! - n is the offset before the oldest retained entry, or
//! - n is the top: nothing came after it.
//!
//! and the read returned every entry above n. Everything else is not covered: n trimmed, removed, from a lost data set,
//! or beyond the top.

use crate::{Offset, Previous, StoredPublication, StreamPosition};

/// What one atomic read of a channel found out about the offset asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Evidence {
    /// An entry with exactly that offset is retained in this channel.
    pub entry_retained: bool,
    /// What the oldest retained entry says of its predecessor; `None` when nothing is retained.
    pub oldest_previous: Option<Previous>,
    /// The read returned every retained entry above the offset: it was not cut short by a limit.
    pub reached_top: bool,
}

impl Evidence {
    /// Collects the evidence from the whole retained list, oldest first, and the number of entries above `offset` that
    /// the read returned. An implementation which does not have the list at hand fills the fields itself.
    pub fn from_retained<'a>(
        offset: Offset,
        retained: impl IntoIterator<Item = &'a StoredPublication>,
        returned: usize,
    ) -> Self {
        let mut evidence = Self { entry_retained: false, oldest_previous: None, reached_top: false };
        let mut above = 0;
        for entry in retained {
            evidence.oldest_previous.get_or_insert(entry.previous);
            evidence.entry_retained |= entry.offset() == offset;
            above += usize::from(entry.offset() > offset);
        }
        evidence.reached_top = returned >= above;
        evidence
    }
}

/// Whether a read is everything after `since`, up to `top`. See the module page for the rule.
///
/// A `since` with an unknown (empty) epoch is compared by its offset alone, as the protocol asks for (section 4.4).
/// Offset 0 needs no rule of its own: no entry has it, so it is covered by an oldest entry whose `previous` is
/// `Known(0)`, or by a top of 0.
pub fn covered(since: &StreamPosition, top: &StreamPosition, evidence: Evidence) -> bool {
    if !since.epoch.is_unknown() && since.epoch != top.epoch {
        return false;
    }
    if since.offset == top.offset {
        return true;
    }
    if since.offset > top.offset || !evidence.reached_top {
        return false;
    }
    evidence.entry_retained || evidence.oldest_previous == Some(Previous::Known(since.offset))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::Publication;

    fn entry(previous: Previous, offset: u64) -> StoredPublication {
        let publication =
            Publication { offset: Some(Offset(offset)), data: Bytes::new(), info: None, tags: Default::default() };
        StoredPublication { publication: Arc::new(publication), previous }
    }

    fn at(epoch: &str, offset: u64) -> StreamPosition {
        StreamPosition { epoch: epoch.into(), offset: Offset(offset) }
    }

    /// Asks about `since` in the stream "e" that retains the given (previous, offset) pairs.
    fn check(since: StreamPosition, retained: &[(u64, u64)], top: u64, limit: usize) -> bool {
        let list: Vec<_> = retained.iter().map(|&(p, o)| entry(Previous::Known(Offset(p)), o)).collect();
        let returned = list.iter().filter(|e| e.offset() > since.offset).count().min(limit);
        covered(&since, &at("e", top), Evidence::from_retained(since.offset, &list, returned))
    }

    const ALL: usize = usize::MAX;
    /// Offsets with holes: 10 was trimmed away, 13, 20 and 21 are there.
    const SPARSE: &[(u64, u64)] = &[(10, 13), (13, 20), (20, 21)];

    #[test]
    fn the_cases_of_the_rule() {
        let cases = [
            ("top", at("e", 21), SPARSE, 21, ALL, true),
            ("retained entry", at("e", 13), SPARSE, 21, ALL, true),
            ("before the oldest", at("e", 10), SPARSE, 21, ALL, true),
            ("trimmed", at("e", 9), SPARSE, 21, ALL, false),
            ("in a hole, never an offset of this channel", at("e", 12), SPARSE, 21, ALL, false),
            ("in a hole between retained entries", at("e", 19), SPARSE, 21, ALL, false),
            ("beyond the top", at("e", 22), SPARSE, 21, ALL, false),
            ("nothing, of a trimmed channel", at("e", 0), SPARSE, 21, ALL, false),
            ("nothing, of a whole channel", at("e", 0), &[(0, 4), (4, 6)], 6, ALL, true),
            ("nothing, of an unused channel", at("e", 0), &[], 0, ALL, true),
            ("nothing, of an expired channel", at("e", 0), &[], 6, ALL, false),
            ("top of an expired channel", at("e", 6), &[], 6, ALL, true),
            ("below the top of an expired channel", at("e", 5), &[], 6, ALL, false),
            ("another epoch", at("f", 13), SPARSE, 21, ALL, false),
            ("another epoch at the top", at("f", 21), SPARSE, 21, ALL, false),
            ("unknown epoch", at("", 13), SPARSE, 21, ALL, true),
            ("unknown epoch, trimmed", at("", 9), SPARSE, 21, ALL, false),
            ("cut by the limit", at("e", 10), SPARSE, 21, 2, false),
            ("exactly the limit", at("e", 10), SPARSE, 21, 3, true),
            ("position only, at the top", at("e", 21), SPARSE, 21, 0, true),
            ("position only, below the top", at("e", 20), SPARSE, 21, 0, false),
        ];
        for (name, since, retained, top, limit, expected) in cases {
            assert_eq!(check(since, retained, top, limit), expected, "{name}");
        }
    }

    #[test]
    fn an_unknown_predecessor_covers_nothing_below_the_oldest() {
        let list = [entry(Previous::Unknown, 5), entry(Previous::Known(Offset(5)), 6)];
        let ask = |n: u64| covered(&at("e", n), &at("e", 6), Evidence::from_retained(Offset(n), &list, 2));
        assert!(!ask(0));
        assert!(!ask(4));
        assert!(ask(5));
        assert!(ask(6));
    }

    proptest! {
        /// The truth is known here: `all` is everything ever published. Whenever the rule says covered, the returned
        /// entries are exactly the published ones above the position; and a position that was handed out and whose
        /// successors are all retained is never refused.
        #[test]
        fn never_a_lie_and_never_needlessly_modest(
            steps in prop::collection::vec(1u64..4, 1..30),
            trimmed in 0usize..30,
            asked in 0u64..100,
            limit in 0usize..40,
        ) {
            let mut all = Vec::new();
            let mut last = 0;
            for step in steps {
                all.push(entry(Previous::Known(Offset(last)), last + step));
                last += step;
            }
            let retained = &all[trimmed.min(all.len())..];
            let returned: Vec<_> = retained.iter().filter(|e| e.offset().0 > asked).take(limit).collect();
            let says = covered(&at("e", asked), &at("e", last), Evidence::from_retained(Offset(asked), retained, returned.len()));
            let missed: Vec<_> = all.iter().filter(|e| e.offset().0 > asked).collect();
            if says {
                prop_assert_eq!(&returned, &missed);
            }
            let handed_out = asked == 0 || all.iter().any(|e| e.offset().0 == asked);
            if handed_out && returned == missed {
                prop_assert!(says);
            }
        }
    }
}
