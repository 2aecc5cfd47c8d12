//! This node's channels: who is subscribed here, up to which position, and how lost deliveries are repaired.
//!
//! Reading order: [`outgoing`] (a delivery, encoded once per wire format), [`registry`] (node-wide: which shards want
//! which channel; the backplane's [`backplane::Sink`]), [`channel`] (one channel on one shard: subscribers, position,
//! hold-back), [`shard_hub`] (all channels of one shard: joins, leaves; in its neighbours recovery, what recoveries share,
//! repair and checks).
//!
//! The rules, in the words of the design:
//! - a positioned delivery is accepted iff its `previous` is the shard's position; at or below it is dropped; anything
//!   else starts a repair from history while later deliveries wait in a bounded hold-back buffer;
//! - position is kept per (shard, channel); a subscription that joined ahead of it holds its own offset until passed;
//! - only when history no longer has what was lost are positioned subscriptions told.
//!
//! Nothing here performs IO or reads a clock: effects are returned as data and carried out by the shard.

pub mod channel;
mod checks;
pub mod outgoing;
mod recovery;
pub mod registry;
mod repair;
pub mod settings;
pub mod shard_hub;
mod shared;

pub use checks::Check;
pub use outgoing::Outgoing;
pub use registry::Registry;
pub use settings::HubSettings;
pub use shard_hub::{ConnKey, Effect, Hub, ReadKind};

#[cfg(test)]
mod tests;
