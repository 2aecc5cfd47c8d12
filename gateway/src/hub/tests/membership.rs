//! Who is subscribed where: the lists of channels and connections point at each other, through every removal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backplane::Delivery;
use proptest::prelude::*;

use crate::hub::HubSettings;

use super::bench::{Bench, conn, plain, publication};

#[derive(Clone, Debug)]
enum Step {
    Join(u32, usize),
    Leave(u32, usize),
    Detach(u32),
    Acknowledge(usize),
    Refuse(usize),
    Wait(u64),
}

const CHANNELS: [&str; 4] = ["aa", "bb", "cc", "dd"];

fn step() -> impl Strategy<Value = Step> {
    let (conns, channels) = (1u32..=9, 0..CHANNELS.len());
    prop_oneof![
        6 => (conns.clone(), channels.clone()).prop_map(|(conn, channel)| Step::Join(conn, channel)),
        4 => (conns.clone(), channels.clone()).prop_map(|(conn, channel)| Step::Leave(conn, channel)),
        1 => conns.prop_map(Step::Detach),
        3 => channels.clone().prop_map(Step::Acknowledge),
        1 => channels.prop_map(Step::Refuse),
        1 => (1u64..8).prop_map(Step::Wait),
    ]
}

/// What the hub has to know, in the plainest form.
#[derive(Default)]
struct Model {
    subscribed: BTreeMap<usize, BTreeSet<u32>>,
    /// Channels whose interest is not acknowledged, and who waits.
    joining: BTreeMap<usize, BTreeSet<u32>>,
}

impl Model {
    fn has(&self, conn: u32, channel: usize) -> bool {
        [&self.subscribed, &self.joining].iter().any(|map| map.get(&channel).is_some_and(|set| set.contains(&conn)))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]
    #[test]
    fn the_hub_knows_what_a_naive_model_knows(steps in prop::collection::vec(step(), 1..120)) {
        let mut bench = Bench::with(HubSettings { linger: Duration::from_secs(2), ..HubSettings::default() });
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Join(conn, channel) => {
                    if model.has(conn, channel) {
                        continue;
                    }
                    bench.join(conn, plain(CHANNELS[channel]));
                    if bench.lines().contains(&format!("{conn} joined {}", CHANNELS[channel])) {
                        model.subscribed.entry(channel).or_default().insert(conn);
                    } else {
                        model.joining.entry(channel).or_default().insert(conn);
                    }
                }
                Step::Leave(conn, channel) => {
                    bench.leave(conn, CHANNELS[channel]);
                    model.subscribed.entry(channel).or_default().remove(&conn);
                }
                Step::Detach(index) => {
                    bench.detach(index);
                    let refused = bench.lines();
                    let waits = model.joining.values_mut().filter_map(|set| set.take(&index)).count();
                    prop_assert_eq!(refused.len(), waits);
                    model.subscribed.values_mut().for_each(|set| { set.remove(&index); });
                    bench.hub.attach(conn(index));
                }
                Step::Acknowledge(channel) => {
                    bench.acknowledge(CHANNELS[channel], None);
                    let joined = bench.lines().len();
                    if let Some(waiting) = model.joining.remove(&channel) {
                        prop_assert_eq!(joined, waiting.len());
                        model.subscribed.entry(channel).or_default().extend(waiting);
                    }
                }
                Step::Refuse(channel) => {
                    bench.refuse(CHANNELS[channel]);
                    let refused = bench.lines().len();
                    if let Some(waiting) = model.joining.remove(&channel) {
                        prop_assert_eq!(refused, waiting.len());
                    }
                }
                Step::Wait(seconds) => {
                    bench.wait(Duration::from_secs(seconds));
                    bench.lines();
                }
            }
            let subscriptions: usize = model.subscribed.values().map(BTreeSet::len).sum();
            prop_assert_eq!(bench.hub.subscription_count(), subscriptions);
            for (channel, name) in CHANNELS.iter().enumerate() {
                bench.deliver_any(name, Delivery::Unpositioned(publication(None, "x")));
                let reached: BTreeSet<_> = bench.lines().into_iter().collect();
                let wanted = model.subscribed.get(&channel).into_iter().flatten();
                let expected: BTreeSet<_> = wanted.map(|conn| format!("{conn} <- x")).collect();
                prop_assert_eq!(reached, expected);
            }
        }
        // Everybody goes: nothing is left but what is still being acknowledged.
        for index in 1..=9 {
            bench.detach(index);
        }
        for name in CHANNELS {
            bench.acknowledge(name, None);
        }
        bench.wait(Duration::from_secs(10));
        prop_assert_eq!((bench.hub.channel_count(), bench.hub.subscription_count()), (0, 0));
    }
}

#[test]
fn leaving_what_was_not_joined_does_nothing() {
    let mut bench = Bench::new();
    bench.leave(1, "aa");
    bench.join(1, plain("aa"));
    // The join is under way: it is the session's to undo once it is answered.
    bench.leave(1, "aa");
    bench.acknowledge("aa", None);
    bench.expect(&["interest aa", "1 joined aa"]);
    bench.leave(2, "aa");
    assert_eq!(bench.hub.subscription_count(), 1);
    assert_eq!(
        bench.hub.channels().map(|(name, subs)| (name.to_string(), subs)).collect::<Vec<_>>(),
        [("aa".to_owned(), 1)]
    );
}
