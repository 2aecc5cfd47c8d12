//! Delivery: order, the chain of offsets, and who gets what.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;

use super::bench::{
    Bench, KEEP, check_chain, client, ensure, ensure_eq, everything, healthy, message, numbered, positioned, stored_in,
    texts,
};
use super::{CaseResult, Factory};
use crate::{Backplane, ChannelName, Delivery, NewPublication, PresenceEvent, PublishOptions, StoredPublication};

/// Deliveries are what was published, in that order, at the positions the publisher was told, each naming the one
/// before it.
pub async fn deliveries_come_in_order<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("order")];
    bench.subscribe(&channels).await?;
    let start = bench.top(&channels[0]).await?;
    let positions = bench.publish_many(&channels[0], 1, 30, KEEP).await?;
    let (epoch, delivered) = bench.stream_of(&channels[0], 30).await?;
    ensure_eq!(texts(delivered.iter().map(|entry| &*entry.publication)), numbered(1, 30), "deliveries");
    check_chain(Some(start.offset), &delivered)?;
    for (entry, position) in delivered.iter().zip(&positions) {
        ensure_eq!(entry.offset(), position.offset, "delivered offset");
        ensure_eq!(epoch, position.epoch, "delivered epoch");
    }
    Ok(())
}

/// Offsets increase, the epoch stays, and reading says the same as publishing.
pub async fn offsets_increase_in_one_epoch<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("offsets");
    let mut last = bench.top(&channel).await?;
    for data in numbered(1, 10) {
        let position = bench.publish_in(&channel, &data, KEEP).await?;
        ensure_eq!(position.epoch, last.epoch, "epoch of {data}");
        ensure!(position.offset > last.offset, "{data} got offset {} after {}", position.offset, last.offset);
        ensure_eq!(bench.top(&channel).await?, position, "top after {data}");
        last = position;
    }
    Ok(())
}

/// Payload (any bytes, also none), tags and publisher arrive and are stored as they were given.
pub async fn content_travels_unchanged<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("content")];
    bench.subscribe(&channels).await?;
    let tags = [("plain", "value"), ("", ""), ("quote\"\\\n", "\u{e4}\u{1f600}")];
    let tags = tags.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut info = (*client("ann \u{e4}")).clone();
    info.chan_info = Bytes::from_static(b"\0\xff not text");
    let contents = [
        NewPublication { data: Bytes::from((0..=255).collect::<Vec<u8>>()), info: Some(Arc::new(info)), tags },
        NewPublication { data: Bytes::from(vec![b'x'; 60_000]), info: Some(client("")), ..NewPublication::default() },
        NewPublication::default(),
    ];
    for content in &contents {
        bench.publish_with(&channels[0], content.clone(), stored_in(KEEP)).await?;
        bench.publish_with(&channels[0], content.clone(), PublishOptions::default()).await?;
    }
    let seen = bench.delivered(&channels[0], 2 * contents.len()).await?;
    let stored = bench.read(&channels[0], everything()).await?.publications;
    ensure_eq!(stored.len(), contents.len(), "stored publications");
    for (index, content) in contents.iter().enumerate() {
        let with_position = positioned(&seen[2 * index])?.1.publication;
        let Delivery::Unpositioned(without) = &seen[2 * index + 1] else {
            return Err(super::Violation::new(format!("expected no position: {:?}", seen[2 * index + 1])));
        };
        for (how, found) in [
            ("delivered", &with_position),
            ("delivered without position", without),
            ("stored", &stored[index].publication),
        ] {
            ensure_eq!(found.data, content.data, "payload {index} {how}");
            ensure_eq!(found.info, content.info, "publisher {index} {how}");
            ensure_eq!(found.tags, content.tags, "tags {index} {how}");
        }
    }
    Ok(())
}

/// Nothing is delivered before the first subscribe and after an unsubscribe has settled.
pub async fn unsubscribed_channels_get_nothing<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("quiet")];
    bench.publish_in(&channels[0], "before", KEEP).await?;
    bench.publish_with(&channels[0], message("before"), PublishOptions::default()).await?;
    bench.delivered(&channels[0], 0).await?;
    bench.subscribe(&channels).await?;
    bench.publish_in(&channels[0], "during", KEEP).await?;
    bench.delivered(&channels[0], 1).await?;
    bench.unsubscribe(&channels).await?;
    bench.settle().await?;
    bench.publish_in(&channels[0], "after", KEEP).await?;
    bench.publish_with(&channels[0], message("after"), PublishOptions::default()).await?;
    bench.delivered(&channels[0], 1).await?;
    Ok(())
}

/// What is published right after `subscribe` returned is delivered, for one channel and for many at once.
pub async fn subscribe_is_acknowledged<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    for round in 0..20 {
        let channels = [bench.channel(&format!("single{round}"))];
        bench.subscribe(&channels).await?;
        bench.publish_in(&channels[0], "first", KEEP).await?;
        bench.delivered(&channels[0], 1).await?;
    }
    let many: Vec<ChannelName> = (0..200).map(|n| bench.channel(&format!("batch{n}"))).collect();
    bench.subscribe(&many).await?;
    for channel in &many {
        bench.publish_with(channel, message("first"), PublishOptions::default()).await?;
    }
    for channel in &many {
        bench.delivered(channel, 1).await?;
    }
    Ok(())
}

/// A second subscribe changes nothing, and one unsubscribe ends both.
pub async fn subscribing_twice_delivers_once<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("twice")];
    bench.subscribe(&channels).await?;
    bench.subscribe(&channels).await?;
    bench.publish_in(&channels[0], "once", KEEP).await?;
    bench.delivered(&channels[0], 1).await?;
    bench.unsubscribe(&channels).await?;
    bench.settle().await?;
    bench.publish_in(&channels[0], "never", KEEP).await?;
    bench.delivered(&channels[0], 1).await?;
    bench.unsubscribe(&channels).await
}

/// Two channels share neither deliveries nor offsets nor history.
pub async fn channels_are_independent<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("one"), bench.channel("two")];
    bench.subscribe(&channels).await?;
    let starts = [bench.top(&channels[0]).await?, bench.top(&channels[1]).await?];
    for n in 1..=5 {
        for (channel, name) in channels.iter().zip(["one", "two"]) {
            bench.publish_in(channel, &format!("{name}{n}"), KEEP).await?;
        }
    }
    bench.backplane.remove_history(&channels[1]).await.map_err(|error| super::Violation::new(error.to_string()))?;
    for ((channel, name), start) in channels.iter().zip(["one", "two"]).zip(starts) {
        let expected: Vec<String> = (1..=5).map(|n| format!("{name}{n}")).collect();
        let (_, delivered) = bench.stream_of(channel, 5).await?;
        ensure_eq!(texts(delivered.iter().map(|entry| &*entry.publication)), expected, "deliveries of {channel}");
        check_chain(Some(start.offset), &delivered)?;
    }
    ensure_eq!(bench.read(&channels[0], everything()).await?.publications.len(), 5, "history of the other channel");
    Ok(())
}

/// Many publishers at once: every publication gets its own offset, the deliveries are one chain, and history says the
/// same as they do.
pub async fn concurrent_publishers_keep_the_chain<F: Factory>(factory: &F) -> CaseResult {
    const PUBLISHERS: usize = 8;
    const EACH: usize = 25;
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("contended")];
    bench.subscribe(&channels).await?;
    let start = bench.top(&channels[0]).await?;
    let publishers = (0..PUBLISHERS).map(|publisher| {
        let (bench, channel) = (&bench, &channels[0]);
        async move {
            let mut positions = Vec::new();
            for n in 0..EACH {
                positions.push(bench.publish_in(channel, &format!("{publisher}-{n}"), KEEP).await?);
            }
            Ok::<_, super::Violation>(positions)
        }
    });
    let mut offsets = Vec::new();
    for positions in join_all(publishers).await {
        let positions = positions?;
        ensure!(positions.windows(2).all(|pair| pair[0].offset < pair[1].offset), "a publisher's own order is lost");
        offsets.extend(positions.into_iter().map(|position| position.offset));
    }
    offsets.sort();
    let (_, delivered) = bench.stream_of(&channels[0], PUBLISHERS * EACH).await?;
    check_chain(Some(start.offset), &delivered)?;
    ensure_eq!(delivered.iter().map(StoredPublication::offset).collect::<Vec<_>>(), offsets, "delivered offsets");
    let stored = bench.read(&channels[0], everything()).await?.publications;
    check_chain(Some(start.offset), &stored)?;
    ensure!(
        stored.iter().map(|entry| &entry.publication).eq(delivered.iter().map(|entry| &entry.publication)),
        "history holds other publications than were delivered"
    );
    Ok(())
}

/// Join and leave reach the subscribers of their channel and nobody else, and touch no stream.
pub async fn presence_events_reach_subscribers<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channels = [bench.channel("events")];
    let deaf = bench.channel("deaf");
    bench.subscribe(&channels).await?;
    let position = bench.publish_in(&channels[0], "stored", KEEP).await?;
    let events = [PresenceEvent::Join(client("ann")), PresenceEvent::Leave(client(""))];
    for event in &events {
        healthy("announce", bench.backplane.announce(&channels[0], event.clone()).await)?;
        healthy("announce", bench.backplane.announce(&deaf, event.clone()).await)?;
    }
    let seen = bench.delivered(&channels[0], 3).await?;
    // Events carry no position, so their order against publications is free.
    let found: Vec<_> = seen.into_iter().filter(|delivery| matches!(delivery, Delivery::Presence(_))).collect();
    ensure_eq!(found, events.map(Delivery::Presence), "events");
    bench.delivered(&deaf, 0).await?;
    ensure_eq!(bench.top(&channels[0]).await?, position, "top after events");
    Ok(())
}
