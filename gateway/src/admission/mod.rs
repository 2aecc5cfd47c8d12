//! Who is let in: how many upgrade requests a second, how many handshakes at once, how much from one address or user.
//!
//! A refusal must be cheaper than what it prevents, so all but the users are asked about before any token is looked at.
//! [`bucket`] is a pure token bucket, [`gate`] belongs to one shard, [`limits`] to the node.

pub mod bucket;
pub mod gate;
pub mod limits;

use std::time::Duration;

use http::HeaderValue;
use rand::Rng;

pub use gate::{Crowded, Gate, Slot};
pub use limits::{AddressLimits, AddressRefusal, AddressSlot, UserLimits};

/// Bounds on who is let in. Zero is no bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AdmissionSettings {
    /// Upgrade requests per second and shard.
    pub rate: u32,
    /// How long a shard takes after its start until it takes the whole rate.
    pub ramp: Duration,
    /// Connections of one address.
    pub connections_per_address: u32,
    /// Upgrade requests per second of one address.
    pub rate_per_address: u32,
}

impl Default for AdmissionSettings {
    fn default() -> Self {
        Self { rate: 2_000, ramp: Duration::from_secs(5), connections_per_address: 0, rate_per_address: 0 }
    }
}

/// How long somebody who was refused should wait, in whole seconds: at random, so that those who were refused together do
/// not come back together.
pub fn retry_after() -> HeaderValue {
    HeaderValue::from(rand::rng().random_range(1..=4_u16))
}
