//! The queue between the backplane's threads and a shard.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane::{ChannelName, Delivery, Disturbance};

use super::bench::publication;
use crate::hub::Outgoing;
use crate::shard::inbox::{Inbox, InboxLimits, Item};

fn delivery(channel: &str, data: &str) -> Arc<Outgoing> {
    let delivery = Delivery::Unpositioned(publication(None, data));
    Arc::new(Outgoing::new(ChannelName::from(channel), delivery, Instant::now()))
}

fn inbox(deliveries: usize, bytes: usize) -> Inbox {
    Inbox::new(InboxLimits { deliveries, bytes })
}

#[test]
fn a_full_inbox_drops_deliveries_and_names_their_channels() {
    let inbox = inbox(2, usize::MAX);
    for channel in ["aa", "bb", "cc", "cc"] {
        inbox.push_delivery(delivery(channel, "x"));
    }
    inbox.push_control(Item::Disturbed(Disturbance::All));
    assert_eq!(inbox.len(), 2);
    let taken = inbox.take(10, usize::MAX);
    assert_eq!((taken.items.len(), taken.dropped), (3, 2));
    assert_eq!(taken.lagged.into_iter().collect::<Vec<_>>(), [ChannelName::from("cc")]);
    assert!(inbox.is_empty());
    let taken = inbox.take(10, usize::MAX);
    assert_eq!((taken.items.len(), taken.dropped, taken.lagged.len()), (0, 0, 0));
}

#[test]
fn bytes_are_bounded_and_freed() {
    let weight = delivery("aa", "0123456789").weight();
    let inbox = inbox(usize::MAX, 2 * weight);
    for round in 0..3 {
        for _ in 0..3 {
            inbox.push_delivery(delivery("aa", "0123456789"));
        }
        // Taken in two steps, so that both ways of freeing bytes are used.
        let first = inbox.take(1, usize::MAX);
        let second = inbox.take(10, usize::MAX);
        assert_eq!(first.items.len() + second.items.len(), 2, "round {round}");
        assert_eq!(first.dropped + second.dropped, 1, "round {round}");
    }
}

/// The channels of dropped deliveries are handed out with the last of the deliveries that were kept: repairing from
/// history before those were fanned out would be for nothing.
#[test]
fn lagged_channels_come_with_the_rest() {
    let inbox = inbox(3, usize::MAX);
    for channel in ["aa", "aa", "aa", "bb"] {
        inbox.push_delivery(delivery(channel, "x"));
    }
    let first = inbox.take(2, usize::MAX);
    assert_eq!((first.items.len(), first.lagged.len()), (2, 0));
    let second = inbox.take(2, usize::MAX);
    assert_eq!((second.items.len(), second.lagged.len()), (1, 1));
    assert_eq!(first.dropped + second.dropped, 1);
}

#[test]
fn a_partial_take_keeps_the_order_with_control_items() {
    let inbox = inbox(10, usize::MAX);
    inbox.push_delivery(delivery("aa", "x"));
    inbox.push_control(Item::Disturbed(Disturbance::All));
    inbox.push_delivery(delivery("bb", "x"));
    inbox.push_control(Item::Acknowledged(ChannelName::from("cc"), Ok(())));
    let kinds = |taken: crate::shard::inbox::Taken| {
        let kind = |item: &Item| match item {
            Item::Delivery(outgoing) => outgoing.channel.to_string(),
            Item::Acknowledged(..) => "acknowledged".to_owned(),
            Item::Disturbed(_) => "disturbed".to_owned(),
            Item::Command(_) => "command".to_owned(),
        };
        taken.items.iter().map(kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds(inbox.take(1, usize::MAX)), ["aa"]);
    assert_eq!(kinds(inbox.take(1, usize::MAX)), ["disturbed", "bb", "acknowledged"]);
}

#[test]
fn something_waiting_wakes_the_shard_once_it_asks() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let deadline = Duration::from_secs(10);
    let all = async {
        let inbox = inbox(1, usize::MAX);
        inbox.push_delivery(delivery("aa", "x"));
        inbox.ready().await;
        inbox.take(1, usize::MAX);
        // A drop wakes too: the channel has to be repaired.
        inbox.push_delivery(delivery("aa", "x"));
        inbox.push_delivery(delivery("aa", "x"));
        inbox.ready().await;
        // What a partial take left behind wakes again.
        inbox.push_control(Item::Disturbed(Disturbance::All));
        inbox.take(0, usize::MAX);
        inbox.ready().await;
        inbox.nudge();
        inbox.ready().await;
    };
    let woken = runtime.block_on(async { tokio::time::timeout(deadline, all).await });
    assert_eq!(woken, Ok(()), "every time");
}
