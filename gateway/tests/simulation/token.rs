//! Tokens of the simulation: a user and server-side channels, as plain text.

use std::collections::BTreeMap;

use backplane::UserId;
use bytes::Bytes;
use session::io::{ConnectionGrant, SubscriptionOptions};

/// The token of a user with these server-side channels.
pub fn issue(user: &str, channels: &[&str]) -> String {
    format!("{user}|{}", channels.join(","))
}

/// What a token says.
pub fn grant(token: &str) -> ConnectionGrant {
    let (user, channels) = token.split_once('|').expect("tokens are made by `issue`");
    let channels = channels.split(',').filter(|channel| !channel.is_empty());
    let subs: BTreeMap<_, _> = channels.map(|channel| (channel.to_owned(), recovering())).collect();
    ConnectionGrant { user: UserId::from(user), expire_at: None, info: Bytes::new(), subs, meta: Bytes::new() }
}

/// Server-side subscriptions keep their position where the channel has one.
fn recovering() -> SubscriptionOptions {
    let mut options = SubscriptionOptions::default();
    options.overrides.force_recovery = Some(true);
    options
}
