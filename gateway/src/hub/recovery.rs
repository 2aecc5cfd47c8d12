//! What a client that comes back is given (protocol sections 4.4 and 4.5, with the coverage rule in place of the
//! reference's "first offset is the next one": offsets need not be contiguous).

use std::sync::Arc;

use backplane::coverage::{self, Evidence};
use backplane::{HistoryPage, Publication, StoredPublication, StreamPosition};
use session::io::{Joined, RecoverFrom, RecoverMode};

/// What a page proves about the stream: its publications in ascending order, whichever way they were read. Nothing when
/// it does not reach the top (a forward read that its limit cut short): what follows the last one is then missing.
pub(super) fn retained(page: &mut HistoryPage) -> Vec<StoredPublication> {
    let mut entries = std::mem::take(&mut page.publications);
    if entries.len() > 1 && entries[0].offset() > entries[1].offset() {
        entries.reverse();
    }
    if entries.last().is_some_and(|last| last.offset() != page.top.offset) {
        entries.clear();
        page.covered = false;
    }
    entries
}

/// Answers one joiner from what was read.
///
/// `entries` are retained publications in ascending order, nothing missing between the first of them and `top`.
/// `covered` is the backplane's own verdict that they are everything after the position this joiner asked from.
pub(super) fn answer(
    recover: Option<&RecoverFrom>,
    entries: &[StoredPublication],
    top: &StreamPosition,
    covered: bool,
) -> Joined {
    let Some(from) = recover else {
        return Joined { position: Some(top.clone()), ..Joined::default() };
    };
    let (recovered, publications) = match from.mode {
        RecoverMode::Stream => stream(from, entries, top, covered),
        RecoverMode::Cache => cache(from, entries, top),
    };
    Joined { position: Some(top.clone()), recovered, publications }
}

fn stream(
    from: &RecoverFrom,
    entries: &[StoredPublication],
    top: &StreamPosition,
    covered: bool,
) -> (bool, Vec<Arc<Publication>>) {
    let since = StreamPosition { epoch: from.epoch.clone(), offset: from.offset };
    let evidence = Evidence::from_retained(from.offset, entries, entries.len());
    if !covered && !coverage::covered(&since, top, evidence) {
        return (false, Vec::new());
    }
    let missed = entries.iter().filter(|entry| entry.offset() > from.offset);
    (true, missed.map(|entry| entry.publication.clone()).collect())
}

fn cache(from: &RecoverFrom, entries: &[StoredPublication], top: &StreamPosition) -> (bool, Vec<Arc<Publication>>) {
    let same = from.offset.0 > 0 && from.offset == top.offset && from.epoch == top.epoch;
    match entries.last() {
        None => (same, Vec::new()),
        Some(latest) if latest.offset() != top.offset => (false, Vec::new()),
        Some(_) if same => (true, Vec::new()),
        Some(latest) => (true, vec![latest.publication.clone()]),
    }
}
