//! Age: what must still be there, what must be gone, and that positions are never given twice.

use std::time::{Duration, Instant};

use super::bench::{Bench, KEEP, after, ensure, ensure_eq, everything, numbered, page_texts, texts};
use super::{CaseResult, Factory};
use crate::{HistoryOptions, StreamPosition};

fn aging(ttl: Duration, meta_ttl: Duration) -> HistoryOptions {
    HistoryOptions { size: 100, ttl, meta_ttl }
}

/// A publication is readable until its TTL has passed, whether others follow it or none.
pub async fn publications_live_as_long_as_promised<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let (busy, quiet) = (bench.channel("busy"), bench.channel("quiet"));
    let ttl = factory.short_ttl();
    let history = aging(ttl, 10 * ttl);
    let mut published = vec![(Instant::now(), &quiet, "alone".to_owned())];
    bench.publish_in(&quiet, "alone", history).await?;
    for n in 1..=4 {
        published.push((Instant::now(), &busy, format!("m{n}")));
        bench.publish_in(&busy, &format!("m{n}"), history).await?;
        factory.wait(ttl / 5).await;
        for (at, channel, data) in &published {
            let found = page_texts(&bench.read_in(channel, everything(), history).await?);
            // A slow machine may have let the TTL pass in earnest; then there is no promise to check.
            ensure!(found.contains(data) || at.elapsed() >= ttl, "{data} is gone before its time: {found:?}");
        }
    }
    Ok(())
}

/// Nothing is readable when the TTL after the last publication has passed; reads do not prolong it.
pub async fn publications_expire_after_the_last<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("old");
    let ttl = factory.short_ttl();
    let history = aging(ttl, 10 * ttl);
    bench.publish_in(&channel, "m1", history).await?;
    factory.wait(ttl / 2).await;
    bench.publish_in(&channel, "m2", history).await?;
    factory.wait(ttl / 2).await;
    bench.read_in(&channel, everything(), history).await?;
    factory.wait(ttl / 2 + factory.expiry_slack()).await;
    let page = bench.read_in(&channel, everything(), history).await?;
    ensure!(page.publications.is_empty(), "readable after the TTL: {:?}", page_texts(&page));
    let page = bench.read_in(&channel, crate::HistoryQuery { reverse: true, ..everything() }, history).await?;
    ensure!(page.publications.is_empty(), "readable backwards after the TTL: {:?}", page_texts(&page));
    Ok(())
}

/// After the publications have expired, epoch and top are the same: clients at the top recover, others are told.
pub async fn epoch_and_top_outlive_publications<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("meta");
    let ttl = factory.short_ttl();
    let history = aging(ttl, 20 * ttl);
    let positions = bench.publish_many(&channel, 1, 3, history).await?;
    factory.wait(ttl + factory.expiry_slack()).await;
    let page = bench.read_in(&channel, after(&positions[2]), history).await?;
    ensure_eq!(page.top, positions[2], "top after expiry");
    ensure!(page.covered && page.publications.is_empty(), "the top is not covered after expiry");
    ensure!(!bench.read_in(&channel, after(&positions[1]), history).await?.covered, "an expired offset is covered");
    let published = Instant::now();
    let next = bench.publish_in(&channel, "m4", history).await?;
    ensure_eq!(next.epoch, positions[2].epoch, "epoch after expiry");
    ensure!(next.offset > positions[2].offset, "offset {} after {}", next.offset, positions[2].offset);
    let found = page_texts(&bench.read_in(&channel, everything(), history).await?);
    // A slow machine may have let its TTL pass in earnest too.
    ensure!(found == ["m4"] || found.is_empty() && published.elapsed() >= ttl, "history after expiry: {found:?}");
    ensure!(
        !bench.read_in(&channel, after(&positions[1]), history).await?.covered,
        "an expired offset is covered later"
    );
    let page = bench.read_in(&channel, after(&positions[2]), history).await?;
    ensure!(!page.covered || page_texts(&page) == ["m4"], "covered, but m4 is missing: {:?}", page_texts(&page));
    Ok(())
}

/// When epoch and top have been forgotten, the next stream of the channel shares no position with the old one, and old
/// positions are answered truthfully.
pub async fn forgotten_streams_reuse_no_position<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("forgotten");
    let ttl = factory.short_ttl();
    let history = aging(ttl, ttl);
    let old = bench.publish_many(&channel, 1, 5, history).await?;
    factory.wait(ttl + factory.expiry_slack()).await;
    let published = Instant::now();
    let new = bench.publish_many(&channel, 6, 8, history).await?;
    check_truth(&bench, &channel, &old, (&new[..], published), history).await
}

/// The same after the backplane has lost everything.
pub async fn lost_streams_reuse_no_position<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("lost");
    let old = bench.publish_many(&channel, 1, 5, KEEP).await?;
    factory.lose_data(&bench.backplane).await;
    let before = bench.top(&channel).await?;
    ensure!(!old[..4].contains(&before), "after the loss the top went back to {before:?}");
    let published = Instant::now();
    let new = bench.publish_many(&channel, 6, 8, KEEP).await?;
    check_truth(&bench, &channel, &old, (&new[..], published), KEEP).await
}

/// `old` are the positions of m1 to m5, `new` of m6 to m8, published since then, with a loss of publications in between.
async fn check_truth<F: Factory>(
    bench: &Bench<'_, F>,
    channel: &crate::ChannelName,
    old: &[StreamPosition],
    (new, published): (&[StreamPosition], Instant),
    history: HistoryOptions,
) -> CaseResult {
    for position in new {
        ensure!(!old.contains(position), "{position:?} was given to two publications");
    }
    for (index, since) in old.iter().chain(new).enumerate() {
        let page = bench.read_in(channel, after(since), history).await?;
        let found = texts(page.publications.iter().map(|entry| &*entry.publication));
        ensure!(
            !page.covered || found == numbered(index + 2, 8),
            "after m{} the answer {found:?} is called complete",
            index + 1
        );
    }
    for (index, since) in new.iter().enumerate() {
        let is_covered = bench.read_in(channel, after(since), history).await?.covered;
        // A slow machine may have let the TTL pass in earnest.
        ensure!(is_covered || published.elapsed() >= history.ttl, "m{} is not covered", index + 6);
    }
    Ok(())
}
