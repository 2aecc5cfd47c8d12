//! Entries of presence about which a call has failed: what has to become of them, until it has.

use super::presence::Presence;
use crate::{ChannelName, ClientId};
use std::time::Duration;

/// What has to become of an entry of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It goes at once, without a leave.
    Erased,
    /// It goes after this time, with a leave.
    Lingers(Duration),
    /// It goes as if its client had not come back: with the leave of what it may have taken the place of.
    GivenBack,
}

/// Takes an entry for gone, but perhaps still at NATS, unless the call that concerns it succeeds: it may fail or be
/// dropped at any point.
pub(super) struct Doubt<'a> {
    presence: &'a Presence,
    channel: &'a ChannelName,
    client: ClientId,
    fate: Fate,
    settled: bool,
}

impl<'a> Doubt<'a> {
    pub(super) fn new(presence: &'a Presence, channel: &'a ChannelName, client: ClientId, fate: Fate) -> Self {
        Self { presence, channel, client, fate, settled: false }
    }

    pub(super) fn settle(mut self) {
        self.settled = true;
        self.presence.local.lock().doubtful.remove(&(self.channel.clone(), self.client));
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut local = self.presence.local.lock();
        local.hide(self.channel, self.client);
        local.doubtful.insert((self.channel.clone(), self.client), self.fate);
    }
}
