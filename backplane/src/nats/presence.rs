//! Presence is not here yet: the smallest thing that compiles.

use std::sync::Arc;

use super::NatsBackplane;
use crate::{BackplaneError, BackplaneFuture, ChannelName, ClientId, ClientInfo, PresenceStats, PresenceStore};

fn absent<T>() -> Result<T, BackplaneError> {
    Err(BackplaneError::Protocol("presence on nats is not there yet".to_owned()))
}

impl PresenceStore for NatsBackplane {
    fn add_presence<'a>(&'a self, _: &'a ChannelName, _: Arc<ClientInfo>) -> BackplaneFuture<'a, ()> {
        Box::pin(std::future::ready(absent()))
    }

    fn remove_presence<'a>(&'a self, _: &'a ChannelName, _: ClientId) -> BackplaneFuture<'a, ()> {
        Box::pin(std::future::ready(absent()))
    }

    fn presence<'a>(&'a self, _: &'a ChannelName) -> BackplaneFuture<'a, Vec<Arc<ClientInfo>>> {
        Box::pin(std::future::ready(absent()))
    }

    fn presence_stats<'a>(&'a self, _: &'a ChannelName) -> BackplaneFuture<'a, PresenceStats> {
        Box::pin(std::future::ready(absent()))
    }
}
