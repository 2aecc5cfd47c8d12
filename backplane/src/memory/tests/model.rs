//! Random operations against a model that is too simple to be wrong: it keeps everything in plain maps and lists, ages
//! eagerly, and knows coverage by comparing with what was published rather than by the rule.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{Epoch, Previous};

const CHANNELS: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
enum Step {
    Publish { channel: usize, history: Option<u8>, key: Option<u8>, version: u64, version_epoch: &'static str },
    Read { channel: usize, since: Option<Since>, limit: Option<usize>, reverse: bool },
    Positions,
    RemoveHistory { channel: usize },
    Subscribe { channel: usize },
    Unsubscribe { channel: usize },
    Announce { channel: usize },
    AddPresence { channel: usize, client: u8, user: u8 },
    RemovePresence { channel: usize, client: u8 },
    Wait { seconds: u64 },
    Sweep { budget: usize },
    Forget,
}

/// A position to ask about: one that was handed out before (the how-manieth, from the newest), or an offset alone.
#[derive(Debug, Clone)]
enum Since {
    Seen(usize),
    UnknownEpoch(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let channel = 0..CHANNELS.len();
    let since = prop_oneof![(0usize..12).prop_map(Since::Seen), (0u64..15).prop_map(Since::UnknownEpoch)];
    let version = prop_oneof![3 => Just(0u64), 2 => 1u64..6];
    let version_epoch = prop_oneof![Just(""), Just("x"), Just("y")];
    prop_oneof![
        12 => (channel.clone(), prop::option::weighted(0.85, 0u8..3), prop::option::weighted(0.3, 0u8..3), version, version_epoch)
            .prop_map(|(channel, history, key, version, version_epoch)| Step::Publish { channel, history, key, version, version_epoch }),
        8 => (channel.clone(), prop::option::weighted(0.8, since), prop::option::weighted(0.5, 0usize..6), prop::bool::weighted(0.25))
            .prop_map(|(channel, since, limit, reverse)| Step::Read { channel, since, limit, reverse }),
        1 => Just(Step::Positions),
        1 => channel.clone().prop_map(|channel| Step::RemoveHistory { channel }),
        2 => channel.clone().prop_map(|channel| Step::Subscribe { channel }),
        1 => channel.clone().prop_map(|channel| Step::Unsubscribe { channel }),
        1 => channel.clone().prop_map(|channel| Step::Announce { channel }),
        2 => (channel.clone(), 0u8..4, 0u8..3).prop_map(|(channel, client, user)| Step::AddPresence { channel, client, user }),
        1 => (channel, 0u8..4).prop_map(|(channel, client)| Step::RemovePresence { channel, client }),
        4 => prop_oneof![1u64..20, 100u64..400].prop_map(|seconds| Step::Wait { seconds }),
        3 => prop_oneof![0usize..4, Just(1_000usize)].prop_map(|budget| Step::Sweep { budget }),
        1 => Just(Step::Forget),
    ]
}

/// Three configurations, so that a channel's options change under way.
fn options(which: u8) -> HistoryOptions {
    let (size, ttl, meta_ttl) = [(3, 30, 60), (10, 10, 200), (5, 60, 60)][usize::from(which)];
    HistoryOptions { size, ttl: Duration::from_secs(ttl), meta_ttl: Duration::from_secs(meta_ttl) }
}

/// Position in the model: epochs are numbered in the order in which they arise.
type At = (usize, u64);

#[derive(Debug, Default)]
struct Model {
    now: Duration,
    channels: BTreeMap<usize, State>,
    /// The backplane's name of each epoch of the model, once it is known.
    epochs: Vec<Option<Epoch>>,
    /// Every position handed out.
    handed_out: Vec<(usize, At)>,
    deliveries: usize,
}

#[derive(Debug, Default)]
struct State {
    stream: Option<ModelStream>,
    results: BTreeMap<u8, (Option<At>, Duration)>,
    subscribed: bool,
    members: BTreeMap<u8, u8>,
}

#[derive(Debug, Default)]
struct ModelStream {
    epoch: usize,
    version: (u64, &'static str),
    /// Payload of every publication ever, the one with offset n at n - 1.
    published: Vec<String>,
    retained: BTreeSet<u64>,
    expires: Duration,
    forgotten: Duration,
    meta_ttl: Duration,
}

impl Model {
    /// Removes what has expired everywhere.
    fn age(&mut self) {
        let now = self.now;
        for state in self.channels.values_mut() {
            state.results.retain(|_, (_, expires)| *expires > now);
            if let Some(stream) = state.stream.as_mut().filter(|stream| stream.expires <= now) {
                stream.retained.clear();
            }
            let subscribed = state.subscribed;
            state.stream.take_if(|stream| !subscribed && stream.forgotten <= now);
        }
        self.channels.retain(|_, state| {
            state.stream.is_some() || !state.results.is_empty() || state.subscribed || !state.members.is_empty()
        });
    }

    fn state(&mut self, channel: usize) -> &mut State {
        self.channels.entry(channel).or_default()
    }

    fn stream(&mut self, channel: usize, options: HistoryOptions) -> &mut ModelStream {
        let state = self.channels.entry(channel).or_default();
        let stream = state.stream.get_or_insert_with(|| {
            self.epochs.push(None);
            ModelStream { epoch: self.epochs.len() - 1, ..ModelStream::default() }
        });
        stream.meta_ttl = options.meta_ttl;
        stream.forgotten = stream.forgotten.max(self.now + options.meta_ttl);
        stream
    }

    /// Checks a position of the backplane against one of the model; an epoch seen first must be new.
    fn same(&mut self, channel: usize, found: &StreamPosition, expected: At) {
        match &self.epochs[expected.0] {
            Some(name) => assert_eq!(name, &found.epoch),
            None => {
                assert!(!self.epochs.contains(&Some(found.epoch.clone())), "an epoch came twice");
                self.epochs[expected.0] = Some(found.epoch.clone());
            }
        }
        assert_eq!(found.offset.0, expected.1);
        self.handed_out.push((channel, expected));
    }
}

struct Run {
    bench: Bench,
    log: Arc<Log>,
    model: Model,
    serial: usize,
}

impl Run {
    fn new() -> Self {
        let bench = Bench::new(MemoryLimits::default());
        let log = Arc::new(Log::default());
        bench.backplane.attach(Arc::clone(&log) as Arc<dyn Sink>);
        Self { bench, log, model: Model::default(), serial: 0 }
    }

    fn step(&mut self, step: Step) {
        self.model.age();
        let backplane = &self.bench.backplane;
        let name = |channel: usize| [ChannelName::from(CHANNELS[channel])];
        match step {
            Step::Publish { channel, history, key, version, version_epoch } => {
                self.publish(channel, history.map(options), key, version, version_epoch);
            }
            Step::Read { channel, since, limit, reverse } => self.read(channel, since, limit, reverse),
            Step::Positions => {
                let asked: Vec<_> = (0..CHANNELS.len()).map(|n| (CHANNELS[n].into(), options(n as u8))).collect();
                let found = done(backplane.positions(&asked)).expect("positions");
                for (channel, position) in found.iter().enumerate() {
                    let stream = self.model.stream(channel, options(channel as u8));
                    let top = stream.top();
                    self.model.same(channel, position, top);
                }
            }
            Step::RemoveHistory { channel } => {
                done(backplane.remove_history(&name(channel)[0])).expect("remove");
                if let Some(stream) = self.model.channels.get_mut(&channel).and_then(|state| state.stream.as_mut()) {
                    stream.retained.clear();
                }
            }
            Step::Subscribe { channel } => {
                done(backplane.subscribe(&name(channel))).expect("subscribe");
                self.model.state(channel).subscribed = true;
            }
            Step::Unsubscribe { channel } => {
                done(backplane.unsubscribe(&name(channel))).expect("unsubscribe");
                let now = self.model.now;
                let state = self.model.state(channel);
                if std::mem::replace(&mut state.subscribed, false)
                    && let Some(stream) = &mut state.stream
                {
                    stream.forgotten = stream.forgotten.max(now + stream.meta_ttl);
                }
            }
            Step::Announce { channel } => {
                let event = PresenceEvent::Join(member(1, "ann"));
                done(backplane.announce(&name(channel)[0], event.clone())).expect("announce");
                if self.model.state(channel).subscribed {
                    self.check_delivery(channel, |delivery| assert_eq!(delivery, &Delivery::Presence(event)));
                }
            }
            Step::AddPresence { channel, client, user } => {
                let info = member(client.into(), ["", "ann", "bob"][usize::from(user)]);
                done(backplane.add_presence(&name(channel)[0], info)).expect("add");
                self.model.state(channel).members.insert(client, user);
            }
            Step::RemovePresence { channel, client } => {
                done(backplane.remove_presence(&name(channel)[0], member(client.into(), "").client)).expect("remove");
                self.model.state(channel).members.remove(&client);
            }
            Step::Wait { seconds } => {
                self.bench.clock.advance(Duration::from_secs(seconds));
                self.model.now += Duration::from_secs(seconds);
            }
            Step::Sweep { budget } => while backplane.sweep(budget) && budget > 0 {},
            Step::Forget => {
                backplane.forget();
                for state in self.model.channels.values_mut() {
                    state.stream = None;
                    state.results.clear();
                }
            }
        }
        assert_eq!(self.log.0.lock().len(), self.model.deliveries, "nothing else was delivered");
        self.check_presence();
    }

    fn publish(
        &mut self,
        channel: usize,
        history: Option<HistoryOptions>,
        key: Option<u8>,
        version: u64,
        version_epoch: &'static str,
    ) {
        self.serial += 1;
        let data = self.serial.to_string();
        let publication = NewPublication { data: Bytes::from(data.clone()), ..NewPublication::default() };
        let call = PublishOptions {
            history,
            idempotency_key: key.map(|key| key.to_string()),
            version,
            version_epoch: version_epoch.to_owned(),
        };
        let found = done(self.bench.backplane.publish(&CHANNELS[channel].into(), publication, call)).expect("publish");
        let (position, outcome) = self.expect(channel, &data, history, key, version, version_epoch);
        assert_eq!(found.outcome, outcome);
        match (&found.position, position) {
            (Some(found), Some(expected)) => self.model.same(channel, found, expected),
            (found, expected) => assert_eq!((found, expected), (&None, None)),
        }
        if outcome == PublishOutcome::Published && self.model.state(channel).subscribed {
            self.check_delivery(channel, |delivery| match delivery {
                Delivery::Positioned { epoch, previous, publication } => {
                    let at = found.position.expect("it is positioned");
                    assert_eq!((epoch, publication.offset), (&at.epoch, Some(at.offset)));
                    assert_eq!(*previous, Previous::Known(Offset(at.offset.0 - 1)));
                    assert_eq!(publication.data, data.as_bytes());
                }
                Delivery::Unpositioned(publication) => {
                    assert_eq!((found.position, publication.offset), (None, None));
                    assert_eq!(publication.data, data.as_bytes());
                }
                Delivery::Presence(_) => panic!("a publish announces nobody"),
            });
        }
    }

    /// What the model makes of a publish.
    fn expect(
        &mut self,
        channel: usize,
        data: &str,
        history: Option<HistoryOptions>,
        key: Option<u8>,
        version: u64,
        version_epoch: &'static str,
    ) -> (Option<At>, PublishOutcome) {
        let now = self.model.now;
        if let Some((position, _)) = key.and_then(|key| self.model.state(channel).results.get(&key)) {
            return (*position, PublishOutcome::Repeated);
        }
        let mut outcome = PublishOutcome::Published;
        let position = history.map(|history| {
            let stream = self.model.stream(channel, history);
            let comparable = version_epoch.is_empty() || version_epoch == stream.version.1;
            if version > 0 && version <= stream.version.0 && comparable {
                outcome = PublishOutcome::Outdated;
            } else {
                if version > 0 {
                    stream.version = (version, version_epoch);
                }
                stream.published.push(data.to_owned());
                stream.retained.insert(stream.published.len() as u64);
                while stream.retained.len() > history.size {
                    stream.retained.pop_first();
                }
                stream.expires = now + history.ttl;
                stream.forgotten = stream.forgotten.max(stream.expires);
            }
            stream.top()
        });
        if let Some(key) = key {
            self.model.state(channel).results.insert(key, (position, now + IDEMPOTENCY_TTL));
        }
        (position, outcome)
    }

    fn read(&mut self, channel: usize, since: Option<Since>, limit: Option<usize>, reverse: bool) {
        let since = since.and_then(|since| match since {
            Since::UnknownEpoch(offset) => Some((None, offset)),
            Since::Seen(back) => {
                let of_channel = self.model.handed_out.iter().rev().filter(|(of, _)| *of == channel);
                of_channel.map(|&(_, (epoch, offset))| (Some(epoch), offset)).nth(back)
            }
        });
        let position = since.map(|(epoch, offset)| StreamPosition {
            epoch: epoch.map_or(Epoch::from(""), |epoch| self.model.epochs[epoch].clone().expect("it was handed out")),
            offset: Offset(offset),
        });
        let query = HistoryQuery { since: position, limit, reverse };
        let page = done(self.bench.backplane.history(&CHANNELS[channel].into(), query, options(0))).expect("history");

        let stream = self.model.stream(channel, options(0));
        let top = stream.top();
        let wrong_epoch = since.is_some_and(|(epoch, _)| epoch.is_some_and(|epoch| epoch != top.0));
        let wanted = |offset: &&u64| match since {
            Some((_, since)) if reverse => **offset < since,
            Some((_, since)) => **offset > since,
            None => true,
        };
        let mut expected: Vec<u64> = stream.retained.iter().filter(wanted).copied().collect();
        if reverse {
            expected.reverse();
        }
        expected.truncate(limit.unwrap_or(usize::MAX));
        if wrong_epoch {
            expected.clear();
        }
        let found: Vec<u64> = page.publications.iter().map(|entry| entry.offset().0).collect();
        assert_eq!(found, expected);
        for entry in &page.publications {
            assert_eq!(entry.publication.data, stream.published[entry.offset().0 as usize - 1].as_bytes());
            assert_eq!(entry.previous, Previous::Known(Offset(entry.offset().0 - 1)));
        }
        // The truth: are the returned publications all that were ever published after the position?
        let complete = since.is_some_and(|(_, since)| since <= top.1 && (since + 1..=top.1).eq(found.iter().copied()));
        assert_eq!(page.covered, complete && !wrong_epoch && !reverse, "{since:?} of {top:?}: {:?}", page.publications);
        self.model.same(channel, &page.top, top);
    }

    fn check_delivery(&mut self, channel: usize, check: impl FnOnce(&Delivery)) {
        self.model.deliveries += 1;
        let seen = self.log.0.lock();
        let (of, delivery) = seen.last().expect("something was delivered");
        assert_eq!(of.as_str(), CHANNELS[channel]);
        check(delivery);
    }

    fn check_presence(&mut self) {
        for (channel, name) in CHANNELS.iter().enumerate() {
            let members = &self.model.state(channel).members;
            let found = done(self.bench.backplane.presence(&(*name).into())).expect("presence");
            let mut found: Vec<_> = found.iter().map(|info| (info.client, info.user.clone())).collect();
            found.sort();
            let user = |user: &u8| ["", "ann", "bob"][usize::from(*user)].into();
            let expected: Vec<_> = members.iter().map(|(c, u)| (member((*c).into(), "").client, user(u))).collect();
            assert_eq!(found, expected);
            let stats = done(self.bench.backplane.presence_stats(&(*name).into())).expect("stats");
            let users: BTreeSet<_> = members.values().collect();
            assert_eq!((stats.num_clients as usize, stats.num_users as usize), (members.len(), users.len()));
        }
    }

    /// After a full sweep nothing is held that the model does not know.
    fn check_held(&mut self) {
        self.model.age();
        assert!(!self.bench.backplane.sweep(usize::MAX));
        let found = self.bench.stats();
        let states = || self.model.channels.values();
        let streams = || states().filter_map(|state| state.stream.as_ref());
        let expected = MemoryStats {
            channels: self.model.channels.len(),
            subscriptions: states().filter(|state| state.subscribed).count(),
            streams: streams().count(),
            publications: streams().map(|stream| stream.retained.len()).sum(),
            presence_entries: states().map(|state| state.members.len()).sum(),
            idempotency_keys: states().map(|state| state.results.len()).sum(),
            history_bytes: found.history_bytes,
            ..MemoryStats::default()
        };
        assert_eq!(found, expected);
        assert_eq!(found.history_bytes == 0, found.publications == 0);
    }
}

impl ModelStream {
    fn top(&self) -> At {
        (self.epoch, self.published.len() as u64)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_backplane_agrees_with_the_model(steps in prop::collection::vec(step(), 1..150)) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
        }
        run.check_held();
        // Everything can be given back: what is not held on purpose expires.
        for channel in 0..CHANNELS.len() {
            run.step(Step::Unsubscribe { channel });
            for client in 0..4 {
                run.step(Step::RemovePresence { channel, client });
            }
        }
        run.step(Step::Wait { seconds: 1_000 });
        run.check_held();
        prop_assert_eq!(run.bench.stats(), MemoryStats::default());
    }
}
