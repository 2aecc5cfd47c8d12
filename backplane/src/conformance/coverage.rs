//! The coverage rule over real streams: an answer is called complete when it is, and never when it is not.

use super::bench::{Bench, KEEP, after, ensure, ensure_eq, everything, healthy, keep, numbered, page_texts};
use super::{CaseResult, Factory};
use crate::{Backplane, Epoch, HistoryQuery, Offset, StreamPosition};

/// Nothing came after the top, whether or not anything is stored.
pub async fn covered_at_the_top<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("top");
    let unused = bench.top(&channel).await?;
    check(&bench, &channel, &unused, Some(&[])).await?;
    let top = bench.publish_many(&channel, 1, 3, KEEP).await?.remove(2);
    check(&bench, &channel, &top, Some(&[])).await?;
    let page = bench.read(&channel, HistoryQuery::since(top.clone(), 0)).await?;
    ensure!(page.covered, "the top is not covered by a read of the position");
    healthy("remove_history", bench.backplane.remove_history(&channel).await)?;
    let top = bench.top(&channel).await?;
    check(&bench, &channel, &top, Some(&[])).await
}

/// From every retained entry, and from the position before the first publication, the rest is complete.
pub async fn covered_at_a_retained_entry<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("retained");
    let start = bench.top(&channel).await?;
    let positions = bench.publish_many(&channel, 1, 6, KEEP).await?;
    for (seen, position) in std::iter::once(&start).chain(&positions).enumerate() {
        check(&bench, &channel, position, Some(&numbered(seen + 1, 6))).await?;
    }
    Ok(())
}

/// The publication just before the oldest retained one was trimmed, but nothing after it was.
pub async fn covered_before_the_oldest_entry<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("oldest");
    let mut positions = Vec::new();
    for n in 1..=9 {
        positions.push(bench.publish_in(&channel, &format!("m{n}"), keep(4)).await?);
    }
    check(&bench, &channel, &positions[4], Some(&numbered(6, 9))).await
}

/// Something between the position and the oldest retained publication was trimmed.
pub async fn not_covered_when_trimmed<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("trimmed");
    let start = bench.top(&channel).await?;
    let mut positions = vec![start];
    for n in 1..=9 {
        positions.push(bench.publish_in(&channel, &format!("m{n}"), keep(4)).await?);
    }
    for position in &positions[..5] {
        check(&bench, &channel, position, None).await?;
    }
    Ok(())
}

/// A position above the top was handed out by something else than this stream.
pub async fn not_covered_beyond_the_top<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("beyond");
    let unused = bench.top(&channel).await?;
    let top = bench.publish_many(&channel, 1, 3, KEEP).await?.remove(2);
    for distance in [1, 2, 1_000_000] {
        let beyond = StreamPosition { epoch: top.epoch.clone(), offset: Offset(top.offset.0 + distance) };
        check(&bench, &channel, &beyond, None).await?;
        let channel = bench.channel("unused");
        let unused = bench.top(&channel).await?;
        let beyond = StreamPosition { offset: Offset(unused.offset.0 + distance), ..unused };
        check(&bench, &channel, &beyond, None).await?;
    }
    check(&bench, &channel, &unused, Some(&numbered(1, 3))).await
}

/// Offsets of another epoch say nothing, not even at the top.
pub async fn not_covered_in_another_epoch<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("epoch");
    let start = bench.top(&channel).await?;
    let positions = bench.publish_many(&channel, 1, 3, KEEP).await?;
    let foreign = Epoch::from(format!("{}x", start.epoch.as_str()));
    for position in std::iter::once(&start).chain(&positions) {
        let elsewhere = StreamPosition { epoch: foreign.clone(), offset: position.offset };
        check(&bench, &channel, &elsewhere, None).await?;
    }
    Ok(())
}

/// A client that knows no epoch is answered by its offset alone.
pub async fn unknown_epoch_compares_offsets<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("unknown");
    let mut positions = Vec::new();
    for n in 1..=9 {
        positions.push(bench.publish_in(&channel, &format!("m{n}"), keep(4)).await?);
    }
    let unknown = |index: usize| StreamPosition { epoch: Epoch::from(""), offset: positions[index].offset };
    check(&bench, &channel, &unknown(8), Some(&[])).await?;
    check(&bench, &channel, &unknown(6), Some(&numbered(8, 9))).await?;
    check(&bench, &channel, &unknown(4), Some(&numbered(6, 9))).await?;
    check(&bench, &channel, &unknown(3), None).await?;
    let beyond = StreamPosition { epoch: Epoch::from(""), offset: Offset(positions[8].offset.0 + 1) };
    check(&bench, &channel, &beyond, None).await
}

/// An answer that the limit cut short is not complete; one that just fits is.
pub async fn not_covered_when_cut_by_the_limit<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("limit");
    let positions = bench.publish_many(&channel, 1, 6, KEEP).await?;
    for (limit, complete) in [(0, false), (1, false), (3, false), (4, true), (5, true)] {
        let page = bench.read(&channel, HistoryQuery::since(positions[1].clone(), limit)).await?;
        ensure_eq!(page_texts(&page), numbered(3, 6.min(2 + limit)), "limit {limit}");
        ensure_eq!(page.covered, complete, "covered with limit {limit} of 4 missing");
    }
    Ok(())
}

/// Without a position there is nothing to cover, and what came before one is not what was missed.
pub async fn not_covered_without_a_position<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("nowhere");
    let positions = bench.publish_many(&channel, 1, 3, KEEP).await?;
    let queries = [
        everything(),
        HistoryQuery::position(),
        HistoryQuery { reverse: true, ..everything() },
        HistoryQuery { reverse: true, ..after(&positions[1]) },
    ];
    for query in queries {
        let page = bench.read(&channel, query.clone()).await?;
        ensure!(!page.covered, "{query:?} is called covered");
    }
    Ok(())
}

/// Removal takes away what a position in the middle would need, also after the next publication.
pub async fn not_covered_after_removal<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("removed");
    let start = bench.top(&channel).await?;
    let positions = bench.publish_many(&channel, 1, 3, KEEP).await?;
    healthy("remove_history", bench.backplane.remove_history(&channel).await)?;
    let top = bench.top(&channel).await?;
    for round in ["after removal", "after the next publication"] {
        for position in [&start, &positions[0], &positions[1]] {
            let page = bench.read(&channel, after(position)).await?;
            ensure!(!page.covered, "offset {} is called covered {round}", position.offset);
        }
        let missed = if round == "after removal" { vec![] } else { numbered(4, 4) };
        check(&bench, &channel, &top, Some(&missed)).await?;
        check(&bench, &channel, &positions[2], Some(&missed)).await?;
        if round == "after removal" {
            bench.publish_in(&channel, "m4", KEEP).await?;
        }
    }
    Ok(())
}

/// Reads everything after a position: `Some(missed)` must be covered and be just that, `None` must not be covered.
async fn check<F: Factory>(
    bench: &Bench<'_, F>,
    channel: &crate::ChannelName,
    since: &StreamPosition,
    missed: Option<&[String]>,
) -> CaseResult {
    let page = bench.read(channel, after(since)).await?;
    ensure_eq!(page.covered, missed.is_some(), "covered after {since:?} with top {:?}", page.top);
    if let Some(missed) = missed {
        ensure_eq!(page_texts(&page), missed, "publications after {since:?}");
    }
    Ok(())
}
