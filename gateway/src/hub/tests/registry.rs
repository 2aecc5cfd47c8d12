//! Interest of several shards in a channel, and the hand-over of deliveries.

use std::sync::Arc;

use backplane::{ChannelName, Delivery, Disturbance, Epoch, Offset, Previous, Sink};

use super::bench::{at, publication};
use crate::hub::Registry;
use crate::hub::registry::Interest;
use crate::shard::inbox::{Inbox, Item};

struct Node {
    registry: Registry,
    inboxes: Vec<Arc<Inbox>>,
    channel: ChannelName,
}

impl Node {
    fn new(shards: usize) -> Self {
        let inboxes: Vec<_> = (0..shards).map(|_| Arc::new(Inbox::new(Default::default()))).collect();
        Self { registry: Registry::new(inboxes.clone()), inboxes, channel: ChannelName::from("news") }
    }

    /// One that shard 0 has subscribed.
    fn active(shards: usize) -> Self {
        let node = Self::new(shards);
        assert_eq!(node.interest(0), Interest::Subscribe);
        assert!(node.registry.subscribed(&node.channel, &Ok(()), 0));
        node
    }

    fn interest(&self, shard: usize) -> Interest {
        self.registry.interest(&self.channel, shard)
    }

    fn deliver(&self, epoch: &str, offset: u64) {
        let previous = Previous::Known(Offset(offset - 1));
        let publication = publication(Some(offset), "x");
        self.registry.deliver(&self.channel, Delivery::Positioned { epoch: Epoch::from(epoch), previous, publication });
    }

    /// What waits for a shard, as text.
    fn items(&self, shard: usize) -> Vec<String> {
        let taken = self.inboxes[shard].take(usize::MAX, usize::MAX);
        let describe = |item: &Item| match item {
            Item::Delivery(outgoing) => match &outgoing.delivery {
                Delivery::Positioned { publication, .. } => publication.offset.expect("positioned").to_string(),
                Delivery::Unpositioned(_) | Delivery::Presence(_) => "other".to_owned(),
            },
            Item::Acknowledged(channel, result) => format!("{channel} {result:?}"),
            Item::Disturbed(disturbance) => format!("{disturbance:?}"),
            Item::Command(_) => "command".to_owned(),
        };
        taken.items.iter().map(describe).collect()
    }
}

#[test]
fn the_first_shard_subscribes_and_the_others_wait() {
    let node = Node::new(3);
    assert_eq!(node.interest(0), Interest::Subscribe);
    assert_eq!(node.interest(1), Interest::Wait);
    node.deliver("e", 1);
    assert!(node.registry.subscribed(&node.channel, &Ok(()), 0));
    node.deliver("e", 2);
    assert_eq!(node.items(0), ["1", "2"]);
    assert_eq!(node.items(1), ["1", "news Ok(())", "2"]);
    assert_eq!(node.items(2), [""; 0]);
}

#[test]
fn a_refused_subscribe_is_told_to_all_who_wait_and_forgotten() {
    let node = Node::new(2);
    assert_eq!(node.interest(0), Interest::Subscribe);
    assert_eq!(node.interest(1), Interest::Wait);
    assert!(node.registry.subscribed(&node.channel, &Err("no".to_owned()), 0));
    assert_eq!(node.items(1), ["news Err(\"no\")"]);
    assert_eq!(node.registry.channels(), 0);
    assert_eq!(node.interest(1), Interest::Subscribe);
}

#[test]
fn the_last_shard_to_release_unsubscribes() {
    let node = Node::active(2);
    assert_eq!(node.interest(1), Interest::Active(None));
    assert!(!node.registry.release(&node.channel, 0));
    node.deliver("e", 1);
    assert_eq!((node.items(0), node.items(1)), (vec![], vec!["1".to_owned()]));
    assert!(node.registry.release(&node.channel, 1));
    assert!(!node.registry.release(&node.channel, 1), "the unsubscribe is under way");
    assert!(!node.registry.unsubscribed(&node.channel));
    assert_eq!(node.registry.channels(), 0);
    assert!(!node.registry.release(&node.channel, 1));
}

#[test]
fn a_channel_wanted_again_while_unsubscribing_is_subscribed_anew() {
    let node = Node::active(2);
    assert!(node.registry.release(&node.channel, 0));
    assert_eq!(node.interest(1), Interest::Wait);
    assert!(node.registry.unsubscribed(&node.channel));
    assert!(!node.registry.subscribed(&node.channel, &Ok(()), 0), "shard 0 does not wait");
    assert_eq!(node.items(1), ["news Ok(())"]);
}

#[test]
fn a_top_that_was_read_is_known_and_moves_on_with_deliveries() {
    let node = Node::active(2);
    assert_eq!(node.interest(1), Interest::Active(None));
    node.registry.observed(&node.channel, &at("e", 4));
    assert_eq!(node.interest(1), Interest::Active(Some(at("e", 4))));
    node.deliver("e", 3);
    node.deliver("e", 5);
    assert_eq!(node.interest(1), Interest::Active(Some(at("e", 5))));
    node.registry.observed(&node.channel, &at("e", 7));
    assert_eq!(node.interest(1), Interest::Active(Some(at("e", 7))));
}

/// It may be a repetition of an old one, and what came after it was handed out before.
#[test]
fn a_delivery_alone_makes_no_top_known() {
    let node = Node::active(2);
    node.deliver("e", 5);
    assert_eq!(node.interest(1), Interest::Active(None));
    node.registry.observed(&node.channel, &at("e", 5));
    assert_eq!(node.interest(1), Interest::Active(Some(at("e", 5))));
}

/// A shard that started from the higher of the two would take a stream that went back for the one it knows; one that
/// started from the lower would miss what was handed out already.
#[test]
fn a_read_below_what_was_handed_out_makes_the_top_unknown() {
    let node = Node::active(2);
    node.deliver("e", 9);
    for late in [7, 8] {
        node.registry.observed(&node.channel, &at("e", late));
        assert_eq!(node.interest(1), Interest::Active(None));
    }
    node.deliver("e", 3);
    assert_eq!(node.interest(1), Interest::Active(None));
    node.registry.observed(&node.channel, &at("e", 9));
    assert_eq!(node.interest(1), Interest::Active(Some(at("e", 9))));
}

#[test]
fn another_epoch_makes_the_top_unknown_until_it_is_read_again() {
    let node = Node::active(2);
    node.registry.observed(&node.channel, &at("e", 5));
    node.deliver("f", 1);
    assert_eq!(node.interest(1), Interest::Active(None));
    node.registry.observed(&node.channel, &at("f", 1));
    assert_eq!(node.interest(1), Interest::Active(Some(at("f", 1))));
    node.registry.observed(&node.channel, &at("e", 6));
    assert_eq!(node.interest(1), Interest::Active(None));
}

#[test]
fn a_disturbance_makes_the_top_unknown_and_is_told_to_every_shard() {
    for disturbance in [Disturbance::All, Disturbance::Channel(ChannelName::from("news"))] {
        let node = Node::active(2);
        node.registry.observed(&node.channel, &at("e", 5));
        node.registry.disturbed(Disturbance::Channel(ChannelName::from("other")));
        assert_eq!(node.interest(0), Interest::Active(Some(at("e", 5))));
        node.items(0);
        node.registry.disturbed(disturbance.clone());
        assert_eq!(node.interest(0), Interest::Active(None));
        assert_eq!(node.items(0), [format!("{disturbance:?}")]);
    }
}

/// Publications were missed between the end of the old interest and the new one, so what came under the old one is no
/// place to start from.
#[test]
fn a_straggler_of_an_ended_interest_is_not_the_top() {
    let node = Node::active(3);
    node.registry.observed(&node.channel, &at("e", 5));
    assert!(node.registry.release(&node.channel, 0));
    node.deliver("e", 6);
    assert_eq!(node.interest(1), Interest::Wait);
    assert!(node.registry.unsubscribed(&node.channel));
    node.deliver("e", 7);
    assert!(!node.registry.subscribed(&node.channel, &Ok(()), 0));
    assert_eq!(node.interest(2), Interest::Active(None));
    // The shard that waits has it all the same, before its acknowledgement.
    assert_eq!(node.items(1), ["7", "news Ok(())"]);
}

#[test]
fn every_shard_is_handed_a_channel_in_one_order_from_many_threads() {
    let node = Arc::new(Node::active(2));
    assert_eq!(node.interest(1), Interest::Active(None));
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let node = node.clone();
            std::thread::spawn(move || {
                for offset in 1..500 {
                    node.deliver("e", thread * 1_000 + offset);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("delivering does not panic");
    }
    let first = node.items(0);
    assert_eq!(first.len(), 4 * 499);
    assert_eq!(first, node.items(1));
}
