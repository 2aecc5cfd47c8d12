//! The fleet as one node sees it: commands that must reach every node, and what the nodes know of each other.
//!
//! Reading order: this page, [`inbox`] (deliveries of the fleet's own channels), `wire` (what nodes say to each other),
//! [`commands`] (asking every node), [`follow`] (doing what others ask), [`roster`] (reports, the coordinator and its digest),
//! [`view`] (the fleet for people and autoscalers).
//!
//! No node talks to another directly: everything goes over channels of the backplane that no client can use, under
//! [`INTERNAL_PREFIX`]. Commands that change something are stored in a positioned channel, so that a node which lost one
//! reads it from history like any other publication: an API `disconnect` is not lost. Questions are not stored.

pub mod commands;
pub mod follow;
pub mod inbox;
pub mod roster;
#[cfg(test)]
mod tests;
pub mod view;
mod wire;

use std::time::Duration;

use backplane::{ChannelName, HistoryOptions, INTERNAL_PREFIX, NodeId};

/// How many commands are kept, and how long: a node that was cut off longer, or for more of them, goes on without. An hour
/// is longer than a network is broken without somebody looking; the number bounds what is stored.
const COMMANDS_KEPT: HistoryOptions =
    HistoryOptions { size: 4096, ttl: Duration::from_secs(3600), meta_ttl: Duration::from_secs(24 * 3600) };

const COMMANDS_NAME: &str = "commands";

/// Where commands and questions to every node are published.
fn commands_channel() -> ChannelName {
    ChannelName::from(format!("{INTERNAL_PREFIX}{COMMANDS_NAME}"))
}

fn is_commands_channel(channel: &str) -> bool {
    channel.strip_prefix(INTERNAL_PREFIX) == Some(COMMANDS_NAME)
}

/// Where the answers for one node are published.
fn answers_channel(node: NodeId) -> ChannelName {
    ChannelName::from(format!("{INTERNAL_PREFIX}answers:{node}"))
}

/// Where the coordinator publishes its digest.
fn digest_channel() -> ChannelName {
    ChannelName::from(format!("{INTERNAL_PREFIX}digest"))
}
