//! The orders by which the channels of a stripe expire and are evicted.

use std::collections::BTreeSet;

use super::channel::Channel;
use super::clock::Moment;
use super::stream::Stream;
use crate::ChannelName;

/// Which streams an eviction looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Streams with publications.
    Stored,
    /// Streams of which only epoch and top are left.
    Bare,
}

/// Under what a stream is filed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    kind: Kind,
    at: Moment,
}

/// A channel is filed at most once among the timers, and a stream exactly once in the order of its kind. Uses and
/// publishes only move times into the future, so they leave the files alone: a filed time is a lower bound of the true
/// one, corrected when it comes up. That keeps a busy channel free of tree operations.
#[derive(Debug, Default)]
pub(super) struct Order {
    timers: BTreeSet<(Moment, ChannelName)>,
    stored: BTreeSet<(Moment, ChannelName)>,
    bare: BTreeSet<(Moment, ChannelName)>,
}

impl Order {
    /// Brings the files up to date after the channel has changed.
    pub(super) fn file(&mut self, name: &ChannelName, channel: &mut Channel) {
        let due = channel.next_expiry();
        if due < channel.timer || due == Moment::NEVER {
            self.set_timer(name, channel, due);
        }
        if let Some(stream) = &mut channel.stream
            && stream.place.is_none_or(|place| place.kind != kind_of(stream))
        {
            self.refile(name, stream);
        }
    }

    /// Files the channel under the time of its next expiry.
    pub(super) fn set_timer(&mut self, name: &ChannelName, channel: &mut Channel, due: Moment) {
        if channel.timer != Moment::NEVER {
            self.timers.remove(&(channel.timer, name.clone()));
        }
        channel.timer = due;
        if due != Moment::NEVER {
            self.timers.insert((due, name.clone()));
        }
    }

    /// The channel whose filed time comes first, if that has come.
    pub(super) fn due(&self, now: Moment) -> Option<ChannelName> {
        self.timers.first().filter(|(due, _)| *due <= now).map(|(_, name)| name.clone())
    }

    /// The stream of this kind that is filed first.
    pub(super) fn first(&self, kind: Kind) -> Option<&(Moment, ChannelName)> {
        match kind {
            Kind::Stored => self.stored.first(),
            Kind::Bare => self.bare.first(),
        }
    }

    /// The streams with publications, as filed.
    pub(super) fn stored(&self) -> impl Iterator<Item = &ChannelName> {
        self.stored.iter().map(|(_, name)| name)
    }

    /// Files a stream under its kind and its last use.
    pub(super) fn refile(&mut self, name: &ChannelName, stream: &mut Stream) {
        self.unfile(name, stream);
        let place = Place { kind: kind_of(stream), at: stream.last_used };
        self.files(place.kind).insert((place.at, name.clone()));
        stream.place = Some(place);
    }

    /// Takes a stream out of its file, because it is about to be dropped.
    pub(super) fn unfile(&mut self, name: &ChannelName, stream: &mut Stream) {
        if let Some(place) = stream.place.take() {
            self.files(place.kind).remove(&(place.at, name.clone()));
        }
    }

    fn files(&mut self, kind: Kind) -> &mut BTreeSet<(Moment, ChannelName)> {
        match kind {
            Kind::Stored => &mut self.stored,
            Kind::Bare => &mut self.bare,
        }
    }

    /// How many channels and streams are filed: timers, stored, bare.
    #[cfg(test)]
    pub(super) fn lens(&self) -> (usize, usize, usize) {
        (self.timers.len(), self.stored.len(), self.bare.len())
    }
}

fn kind_of(stream: &Stream) -> Kind {
    if stream.is_bare() { Kind::Bare } else { Kind::Stored }
}
