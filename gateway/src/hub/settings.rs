//! What an operator may one day tune about the hub, and why the defaults are what they are.

use std::time::Duration;

/// Times and bounds of the hub.
#[derive(Clone, Copy, Debug)]
pub struct HubSettings {
    /// How long an empty channel keeps its interest, so that flapping costs nothing. 5 s.
    pub linger: Duration,
    /// A positioned channel that was quiet this long is compared with the backplane's top. 40 s.
    pub position_check: Duration,
    /// Channels compared per [`Hub::tick`](super::Hub::tick): with ten ticks a second 1,000 channels/s and shard.
    pub checks_per_tick: usize,
    /// Subscribers told per tick that their position is lost: with ten ticks a second 5,000 per second and shard, each of
    /// whom subscribes again.
    pub losses_per_tick: usize,
    /// Deliveries held back per channel while it is repaired. 1,024 is a second of a busy channel.
    pub hold_back_len: usize,
    /// Bytes held back per channel. 1 MiB.
    pub hold_back_bytes: usize,
    /// Publications a returning client is given at most. 300, as clients expect.
    pub recovery_limit: usize,
    /// How long what one recovery has read answers those who come back after it. 1 s: a storm then costs one read a second
    /// and channel, and what was removed from history is not given out for longer. Zero shares nothing.
    pub recovery_share: Duration,
    /// Publications read per repair round. 1,000.
    pub repair_limit: usize,
    /// Repair reads in a row that do not reach the top before the position counts as lost. 16: a channel that outruns 16 reads cannot be caught.
    pub repair_rounds: u32,
    /// Pause before a failed repair read is tried again. 1 s.
    pub retry_delay: Duration,
}

impl Default for HubSettings {
    fn default() -> Self {
        Self {
            linger: Duration::from_secs(5),
            position_check: Duration::from_secs(40),
            checks_per_tick: 100,
            losses_per_tick: 500,
            hold_back_len: 1024,
            hold_back_bytes: 1 << 20,
            recovery_limit: 300,
            recovery_share: Duration::from_secs(1),
            repair_limit: 1000,
            repair_rounds: 16,
            retry_delay: Duration::from_secs(1),
        }
    }
}
