//! Publishing: options that decide whether and where a message is stored.

use super::bench::{Bench, KEEP, ensure, ensure_eq, everything, message, page_texts, stored_in, texts};
use super::{CaseResult, Factory, Violation};
use crate::{Delivery, HistoryOptions, PublishOptions, PublishOutcome};

fn keyed(key: &str, history: Option<HistoryOptions>) -> PublishOptions {
    PublishOptions { history, idempotency_key: Some(key.to_owned()), ..PublishOptions::default() }
}

fn versioned(version: u64, epoch: &str) -> PublishOptions {
    PublishOptions { version, version_epoch: epoch.to_owned(), ..stored_in(KEEP) }
}

/// A channel without history fans out only: no position in the answer, none in the delivery.
pub async fn publishing_without_history_has_no_position<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("plain")];
    bench.subscribe(&channels).await?;
    let published = bench.publish_with(&channels[0], message("a"), PublishOptions::default()).await?;
    ensure_eq!(published.position, None, "position of a publish without history");
    ensure_eq!(published.outcome, PublishOutcome::Published, "outcome of a publish without history");
    check_unpositioned(&bench.delivered(&channels[0], 1).await?[0], "a")
}

/// A publish that skips history in a channel with history is delivered, and neither stored nor counted.
pub async fn skipping_history_leaves_the_stream_alone<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("skip")];
    bench.subscribe(&channels).await?;
    let before = bench.publish_in(&channels[0], "stored", KEEP).await?;
    let skipped = bench.publish_with(&channels[0], message("skipped"), PublishOptions::default()).await?;
    ensure_eq!(skipped.position, None, "position of a publish that skips history");
    let page = bench.read(&channels[0], everything()).await?;
    ensure_eq!(page.top, before, "top after a publish that skips history");
    ensure_eq!(page_texts(&page), ["stored"], "history after a publish that skips it");
    check_unpositioned(&bench.delivered(&channels[0], 2).await?[1], "skipped")
}

fn check_unpositioned(delivery: &Delivery, data: &str) -> CaseResult {
    let Delivery::Unpositioned(publication) = delivery else {
        return Err(Violation::new(format!("expected {data} without a position, found {delivery:?}")));
    };
    ensure_eq!(publication.offset, None, "offset of {data}");
    ensure_eq!(texts([&**publication]), [data], "payload");
    Ok(())
}

/// A repeat with the same key returns the first position and neither stores nor delivers; another key publishes.
pub async fn repeats_publish_nothing<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("idempotent")];
    bench.subscribe(&channels).await?;
    let first = bench.publish_with(&channels[0], message("a"), keyed("k1", Some(KEEP))).await?;
    ensure_eq!(first.outcome, PublishOutcome::Published, "outcome of the first publish");
    bench.publish_in(&channels[0], "b", KEEP).await?;
    for _ in 0..2 {
        let repeat = bench.publish_with(&channels[0], message("a again"), keyed("k1", Some(KEEP))).await?;
        ensure_eq!(repeat.outcome, PublishOutcome::Repeated, "outcome of a repeat");
        ensure_eq!(repeat.position, first.position, "position of a repeat");
    }
    let other = bench.publish_with(&channels[0], message("c"), keyed("k2", Some(KEEP))).await?;
    ensure_eq!(other.outcome, PublishOutcome::Published, "outcome with another key");
    ensure_eq!(page_texts(&bench.read(&channels[0], everything()).await?), ["a", "b", "c"], "history with a repeat");
    let (_, delivered) = bench.stream_of(&channels[0], 3).await?;
    ensure_eq!(texts(delivered.iter().map(|entry| &*entry.publication)), ["a", "b", "c"], "deliveries with a repeat");
    Ok(())
}

/// The same key in another channel is another publish.
pub async fn idempotency_is_per_channel<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    for channel in [bench.channel("one"), bench.channel("two")] {
        let published = bench.publish_with(&channel, message("a"), keyed("same", Some(KEEP))).await?;
        ensure_eq!(published.outcome, PublishOutcome::Published, "outcome in {channel}");
        ensure_eq!(page_texts(&bench.read(&channel, everything()).await?), ["a"], "history of {channel}");
    }
    Ok(())
}

/// Idempotency does not need history.
pub async fn repeats_without_history_publish_nothing<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("plain")];
    bench.subscribe(&channels).await?;
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        let published = bench.publish_with(&channels[0], message("a"), keyed("k", None)).await?;
        ensure_eq!(published.position, None, "position without history");
        outcomes.push(published.outcome);
    }
    ensure_eq!(outcomes, [PublishOutcome::Published, PublishOutcome::Repeated], "outcomes");
    bench.delivered(&channels[0], 1).await?;
    Ok(())
}

/// A version that is not above the stored one is skipped and answered with the top; no version is no check.
pub async fn old_versions_are_skipped<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("versioned")];
    let channel = &channels[0];
    bench.subscribe(&channels).await?;
    let mut expected = Vec::new();
    // Data, version, and whether it is published. Unversioned publications leave the stored version as it is.
    let steps =
        [("v5", 5, true), ("v5b", 5, false), ("v4", 4, false), ("free", 0, true), ("v3", 3, false), ("v6", 6, true)];
    for (data, version, accepted) in steps {
        let top = bench.top(channel).await?;
        let published = bench.publish_with(channel, message(data), versioned(version, "")).await?;
        if accepted {
            ensure_eq!(published.outcome, PublishOutcome::Published, "outcome of {data}");
            expected.push(data);
        } else {
            ensure_eq!(published.outcome, PublishOutcome::Outdated, "outcome of {data}");
            ensure_eq!(published.position, Some(top), "position of the skipped {data}");
        }
    }
    ensure_eq!(page_texts(&bench.read(channel, everything()).await?), expected, "history");
    let (_, delivered) = bench.stream_of(channel, expected.len()).await?;
    ensure_eq!(texts(delivered.iter().map(|entry| &*entry.publication)), expected, "deliveries");
    Ok(())
}

/// Versions are compared only within one version epoch; an empty one compares with any.
pub async fn version_epochs_are_compared<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("versioned");
    let steps = [
        ("a", 5, "x", PublishOutcome::Published),
        ("b", 5, "x", PublishOutcome::Outdated),
        ("c", 5, "", PublishOutcome::Outdated),
        ("d", 1, "y", PublishOutcome::Published),
        ("e", 1, "y", PublishOutcome::Outdated),
        ("f", 2, "y", PublishOutcome::Published),
        ("g", 2, "x", PublishOutcome::Published),
        ("h", 3, "", PublishOutcome::Published),
    ];
    for (data, version, epoch, expected) in steps {
        let published = bench.publish_with(&channel, message(data), versioned(version, epoch)).await?;
        ensure_eq!(published.outcome, expected, "outcome of {data}, version {version} of {epoch:?}");
    }
    let history = page_texts(&bench.read(&channel, everything()).await?);
    ensure!(history == ["a", "d", "f", "g", "h"], "history holds {history:?}");
    Ok(())
}
