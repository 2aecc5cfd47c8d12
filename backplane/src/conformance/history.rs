//! Reading the stream.

use super::bench::{Bench, KEEP, check_chain, ensure, ensure_eq, everything, healthy, keep, numbered, page_texts};
use super::{CaseResult, Factory};
use crate::{Backplane, HistoryQuery, StreamPosition};

fn part(since: Option<&StreamPosition>, limit: Option<usize>, reverse: bool) -> HistoryQuery {
    HistoryQuery { since: since.cloned(), limit, reverse }
}

/// Oldest first, with the limit counted from the oldest; the entries are a chain and the top is the last one.
pub async fn history_reads_forward<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("forward");
    let start = bench.top(&channel).await?;
    let positions = bench.publish_many(&channel, 1, 7, KEEP).await?;
    let page = bench.read(&channel, everything()).await?;
    ensure_eq!(page_texts(&page), numbered(1, 7), "everything");
    ensure_eq!(page.top, positions[6], "top");
    check_chain(Some(start.offset), &page.publications)?;
    for (entry, position) in page.publications.iter().zip(&positions) {
        ensure_eq!(entry.offset(), position.offset, "offset");
    }
    ensure_eq!(page_texts(&bench.read(&channel, part(None, Some(3), false)).await?), numbered(1, 3), "limit 3");
    ensure_eq!(page_texts(&bench.read(&channel, part(None, Some(100), false)).await?), numbered(1, 7), "limit 100");
    Ok(())
}

/// Newest first, with the limit counted from the newest.
pub async fn history_reads_backward<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("backward");
    let positions = bench.publish_many(&channel, 1, 7, KEEP).await?;
    let reversed = |first, last| numbered(first, last).into_iter().rev().collect::<Vec<_>>();
    let page = bench.read(&channel, part(None, None, true)).await?;
    ensure_eq!(page_texts(&page), reversed(1, 7), "everything");
    ensure_eq!(page.top, positions[6], "top");
    ensure_eq!(page_texts(&bench.read(&channel, part(None, Some(2), true)).await?), reversed(6, 7), "limit 2");
    Ok(())
}

/// Forward returns what is above the position, backward what is below it; the position itself is never returned.
pub async fn history_reads_from_a_position<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("since");
    let positions = bench.publish_many(&channel, 1, 7, KEEP).await?;
    for (index, since) in positions.iter().enumerate() {
        let seen = index + 1;
        let page = bench.read(&channel, part(Some(since), None, false)).await?;
        ensure_eq!(page_texts(&page), numbered(seen + 1, 7), "after m{seen}");
        let page = bench.read(&channel, part(Some(since), Some(2), false)).await?;
        ensure_eq!(page_texts(&page), numbered(seen + 1, 7.min(seen + 2)), "two after m{seen}");
        let mut below = numbered(1, index);
        below.reverse();
        let page = bench.read(&channel, part(Some(since), None, true)).await?;
        ensure_eq!(page_texts(&page), below, "before m{seen}");
        below.truncate(2);
        let page = bench.read(&channel, part(Some(since), Some(2), true)).await?;
        ensure_eq!(page_texts(&page), below, "two before m{seen}");
    }
    Ok(())
}

/// Limit 0 reads the top and no publication.
pub async fn history_reads_the_position_only<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("position");
    let positions = bench.publish_many(&channel, 1, 3, KEEP).await?;
    for query in [HistoryQuery::position(), part(Some(&positions[0]), Some(0), false), part(None, Some(0), true)] {
        let page = bench.read(&channel, query).await?;
        ensure_eq!(page.top, positions[2], "top");
        ensure!(page.publications.is_empty(), "limit 0 returned {:?}", page_texts(&page));
    }
    Ok(())
}

/// Reading a channel that was never used gives it an epoch; the first publication comes after the position read.
pub async fn history_of_an_unused_channel_is_a_position<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("unused");
    let first = bench.read(&channel, everything()).await?;
    ensure!(first.publications.is_empty(), "an unused channel holds {:?}", page_texts(&first));
    ensure_eq!(bench.top(&channel).await?, first.top, "second look at an unused channel");
    let position = bench.publish_in(&channel, "m1", KEEP).await?;
    ensure_eq!(position.epoch, first.top.epoch, "epoch of the first publication");
    ensure!(position.offset > first.top.offset, "offset {} is not above {}", position.offset, first.top.offset);
    let page = bench.read(&channel, part(Some(&first.top), None, false)).await?;
    ensure_eq!(page_texts(&page), ["m1"], "after the position of the unused channel");
    ensure!(page.covered, "the position of an unused channel is not covered after one publication");
    Ok(())
}

/// The newest publications are kept, as many as the size says.
pub async fn history_is_trimmed_to_its_size<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("size");
    for n in 1..=9 {
        let position = bench.publish_in(&channel, &format!("m{n}"), keep(4)).await?;
        let page = bench.read_in(&channel, everything(), keep(4)).await?;
        ensure_eq!(page_texts(&page), numbered(n.max(4) - 3, n), "history of size 4 after m{n}");
        ensure_eq!(page.top, position, "top after m{n}");
        check_chain(None, &page.publications)?;
    }
    Ok(())
}

/// Tops of several channels, used and unused, in the order asked for and equal to what a single read says.
pub async fn positions_come_in_the_order_asked_for<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let mut asked = Vec::new();
    for n in 0..12 {
        let channel = bench.channel(&format!("batch{n}"));
        bench.publish_many(&channel, 1, n % 4, KEEP).await?;
        asked.push((channel, KEEP));
    }
    asked.reverse();
    let positions = healthy("positions", bench.backplane.positions(&asked).await)?;
    ensure_eq!(positions.len(), asked.len(), "answers");
    for ((channel, _), position) in asked.iter().zip(positions) {
        ensure_eq!(bench.top(channel).await?, position, "top of {channel}");
    }
    ensure_eq!(healthy("positions", bench.backplane.positions(&[]).await)?, [], "positions of no channel");
    Ok(())
}

/// Removal drops the publications; the epoch stays, the top never goes back, and subscribers see no break in the chain
/// but one that a read repairs.
pub async fn removing_history_keeps_epoch_and_top<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("removed")];
    let channel = &channels[0];
    healthy("remove_history of an unused channel", bench.backplane.remove_history(channel).await)?;
    bench.subscribe(&channels).await?;
    let old = bench.publish_many(channel, 1, 3, KEEP).await?.remove(2);
    healthy("remove_history", bench.backplane.remove_history(channel).await)?;
    let page = bench.read(channel, everything()).await?;
    ensure!(page.publications.is_empty(), "after removal there is {:?}", page_texts(&page));
    ensure_eq!(page.top.epoch, old.epoch, "epoch after removal");
    ensure!(page.top.offset >= old.offset, "the top went back from {} to {}", old.offset, page.top.offset);
    let next = bench.publish_in(channel, "m4", KEEP).await?;
    ensure_eq!(next.epoch, old.epoch, "epoch of the next publication");
    ensure!(next.offset > page.top.offset, "offset {} is not above {}", next.offset, page.top.offset);
    let (epoch, delivered) = bench.stream_of(channel, 4).await?;
    ensure_eq!(epoch, old.epoch, "epoch of the deliveries");
    check_chain(None, &delivered[..3])?;
    // A marker in place of the removed publications may have taken an offset, so the next one follows the top.
    check_chain(Some(page.top.offset), &delivered[3..])?;
    ensure_eq!(page_texts(&bench.read(channel, everything()).await?), ["m4"], "history after removal");
    Ok(())
}
