//! What one seed stands for: how many of everything, which faults how often, which bounds how tight.

use std::time::Duration;

use backplane::HistoryOptions;
use gateway::hub::HubSettings;
use gateway::shard::inbox::InboxLimits;
use session::channels::{ChannelOptions, ChannelSyntax, Channels, RecoveryMode};
use session::settings::Settings;

use super::clock::{Millis, Random, millis};

/// A bug put into the simulation around the real hub and sessions. The audit has to find each of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// The backplane acknowledges a subscribe before it has taken effect.
    BarrierSkipped,
    /// The backplane lost its data and goes on under the old epoch from offset 1.
    EpochReused,
    /// The backplane lost its newest publications and gives their offsets to others.
    OffsetsGivenTwice,
    /// Removing the presence of a connection removes that of the same user's next one.
    LeaveWithoutCompare,
    /// Every delivery claims to follow the one before it.
    GapCheckSkipped,
    /// What comes in during a recovery read is not part of the answer.
    RecoveryNotBuffered,
    /// Subscribers that joined ahead of the shard get what they have already.
    LateNotSkipping,
}

/// Which store is behind the backplane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreKind {
    /// The real in-memory backplane: contiguous offsets, streams age as a whole.
    Memory,
    /// A model of a store with lineages: it can lose its newest publications, its offsets jump and may have holes.
    Lineage {
        /// Offsets have holes, and predecessors that have expired are unknown.
        sparse: bool,
    },
}

/// How often things go wrong, in per mille.
#[derive(Clone, Copy, Default, Debug)]
pub struct Rates {
    pub drop: u64,
    pub duplicate: u64,
    pub reorder: u64,
    pub fail_call: u64,
}

/// Everything that a seed decides before the run begins.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub plant: Option<Plant>,
    pub nodes: usize,
    pub shards: usize,
    pub clients: usize,
    pub store: StoreKind,
    /// Calls of the backplane are answered before they return, as with the real in-memory one.
    pub prompt: bool,
    /// The backplane says when deliveries may be missing; otherwise only position checks find a lost tail.
    pub announced: bool,
    pub rates: Rates,
    /// Nodes cut off from the backplane, pauses, losses of all data and of the newest data during the chaos.
    pub partitions: u64,
    pub pauses: u64,
    pub restarts: u64,
    pub rollbacks: u64,
    pub call_delay: (Millis, Millis),
    pub link_delay: (Millis, Millis),
    pub client_delay: (Millis, Millis),
    /// Publications arrive in bursts of up to so many.
    pub burst: u64,
    pub publish_every: (Millis, Millis),
    pub act_every: (Millis, Millis),
    /// Frames that may be on their way to one client before it counts as slow.
    pub queue_frames: usize,
    /// Deliveries and their bytes taken from an inbox in one pass.
    pub pass_len: usize,
    pub pass_bytes: usize,
    pub inbox: InboxLimits,
    pub hub: HubSettings,
    pub session: Settings,
    /// History and limits are ample.
    pub ample: bool,
    pub history: HistoryOptions,
}

/// Channels by what their namespace is about. All of a user's clients meet here.
pub const STREAMS: [&str; 3] = ["log:a", "log:b", "log:c"];
pub const SHORT: &str = "short:a";
pub const CACHE: &str = "cache:a";
pub const PLAIN: &str = "plain:a";

/// Every channel there is.
pub const CHANNELS: [&str; 6] = [STREAMS[0], STREAMS[1], STREAMS[2], SHORT, CACHE, PLAIN];

impl Scenario {
    pub fn new(seed: u64, plant: Option<Plant>) -> Self {
        let mut random = Random::new(seed);
        let prompt = plant.is_none() && random.per_mille(200);
        let store = match (prompt, plant) {
            (true, _) => StoreKind::Memory,
            (false, Some(Plant::EpochReused | Plant::OffsetsGivenTwice)) => StoreKind::Lineage { sparse: false },
            (false, _) if random.per_mille(400) => StoreKind::Memory,
            (false, _) => StoreKind::Lineage { sparse: random.coin() },
        };
        let lineage = matches!(store, StoreKind::Lineage { .. });
        let ample = random.coin();
        let announced = plant.is_some() || prompt || random.per_mille(600);
        let gentle = random.per_mille(150);
        let rate = |random: &mut Random, choices: &[u64]| if prompt || gentle { 0 } else { random.pick(choices) };
        let lossless = prompt || plant == Some(Plant::LeaveWithoutCompare);
        let rates = Rates {
            drop: rate(&mut random, &[0, 10, 50, 200]),
            duplicate: rate(&mut random, &[0, 20, 100]),
            reorder: rate(&mut random, &[0, 20, 100]),
            fail_call: rate(&mut random, &[0, 10, 100, 300]),
        };
        // A real loss of data is no loss of messages that the promise covers, but nothing is ample after it.
        let losses = !ample && !lossless;
        let must_restart = plant == Some(Plant::EpochReused);
        let must_roll_back = plant == Some(Plant::OffsetsGivenTwice);
        let restarts = if must_restart { 3 } else { u64::from(!ample) * random.below(3) };
        let rollbacks = if must_roll_back { 4 } else { u64::from(losses && lineage) * random.below(3) };
        let tight = !ample;
        Self {
            seed,
            plant,
            nodes: if prompt { 1 } else { random.index(3) + 1 },
            shards: random.index(2) + 1,
            clients: random.index(9) + 3,
            store,
            prompt,
            announced,
            rates,
            partitions: if prompt { 0 } else { random.below(3) },
            pauses: if prompt { 0 } else { random.below(3) },
            restarts,
            rollbacks,
            call_delay: if prompt { (0, 0) } else { random.pick(&[(0, 2), (1, 20), (5, 150), (20, 400)]) },
            link_delay: if prompt { (0, 0) } else { random.pick(&[(0, 1), (1, 10), (1, 100), (10, 300)]) },
            client_delay: random.pick(&[(0, 2), (1, 30), (5, 200)]),
            burst: random.pick(&[1, 1, 5, 40]),
            publish_every: random.pick(&[(10, 100), (50, 500), (200, 3000)]),
            act_every: random.pick(&[(50, 500), (200, 2000), (500, 5000)]),
            queue_frames: random.pick(&[20, 200, 2000]),
            pass_len: random.pick(&[1, 8, 1024]),
            pass_bytes: random.pick(&[1, 2048, 1 << 20]),
            inbox: InboxLimits {
                deliveries: if random.per_mille(200) { 8 } else { 4096 },
                bytes: if random.per_mille(100) { 4096 } else { 1 << 20 },
            },
            hub: hub_settings(&mut random, announced, tight),
            session: Settings {
                ping_interval: Duration::ZERO,
                insecure: true,
                recovery_limit: 300,
                ..Settings::default()
            },
            ample,
            history: if ample {
                options(100_000, 600_000)
            } else {
                let (size, ttl) = random.pick(&[(5, 60_000), (20, 60_000), (100, 2_000), (1000, 60_000)]);
                options(size, ttl)
            },
        }
        .with_equal_limits(ample)
    }

    /// The session refuses more than the hub is to read.
    fn with_equal_limits(mut self, ample: bool) -> Self {
        if ample {
            self.hub.recovery_limit = 100_000;
        }
        self.session.recovery_limit = self.hub.recovery_limit;
        self
    }

    /// Nothing that happens here excuses telling a client that something is lost.
    pub fn excuses_nothing(&self) -> bool {
        self.ample && self.restarts == 0 && self.rollbacks == 0 && self.plant.is_none()
    }

    pub fn channels(&self) -> Channels {
        let log = ChannelOptions {
            history: Some(self.history),
            presence: true,
            join_leave: true,
            force_push_join_leave: true,
            allow_recovery: true,
            ..ChannelOptions::default()
        };
        let short =
            ChannelOptions { history: Some(options(8, 1500)), force_recovery: true, ..ChannelOptions::default() };
        let cache = ChannelOptions {
            history: Some(options(1, 60_000)),
            force_recovery: true,
            force_recovery_mode: RecoveryMode::Cache,
            ..ChannelOptions::default()
        };
        let plain = ChannelOptions { presence: true, ..ChannelOptions::default() };
        let namespaces = [("log", log), ("short", short), ("cache", cache), ("plain", plain)];
        let namespaces = namespaces.map(|(name, options)| (name.to_owned(), options));
        Channels::new(None, namespaces, ChannelSyntax::default()).expect("these options agree with each other")
    }
}

fn options(size: usize, ttl: Millis) -> HistoryOptions {
    HistoryOptions { size, ttl: millis(ttl), meta_ttl: millis(ttl.max(600_000)) }
}

/// With announcements the regular check comes too late to hide anything; without them it is what finds a lost tail.
fn hub_settings(random: &mut Random, announced: bool, tight: bool) -> HubSettings {
    // Too many publications for the hold-back are a reason to tell a client of a loss.
    let few = tight && random.per_mille(700);
    HubSettings {
        linger: millis(random.pick(&[100, 1000, 5000])),
        position_check: millis(if announced { 600_000 } else { 4_000 }),
        checks_per_tick: random.pick(&[1, 100]),
        losses_per_tick: 500,
        hold_back_len: if few { random.pick(&[1, 4, 16]) } else { 1024 },
        hold_back_bytes: if tight && random.per_mille(200) { 2048 } else { 1 << 20 },
        recovery_limit: if tight { random.pick(&[1, 5, 300]) } else { 300 },
        repair_limit: if tight { random.pick(&[1, 10, 1000]) } else { 1000 },
        repair_rounds: 16,
        retry_delay: millis(random.pick(&[100, 1000])),
        recovery_share: millis(random.pick(&[0, 1000, 5000])),
    }
}
