//! The auditor: it sees only what clients see and what the store has accepted, and knows the promises.
//!
//! A client's **cursor** is the last publication it was given, or the position it was told when it subscribed. The rule
//! that stands for order, for "at most once", for "no silent loss" and for the truth of `recovered`: the next
//! publication a client is given is the one whose predecessor, in its own lineage, is the cursor. A client that is told
//! (a subscribe without recovery, `recovered: false`) starts anew from the position in the reply.

use std::collections::{BTreeMap, BTreeSet};

use backplane::{ChannelName, ClientId};
use bytes::Bytes;
use protocol::{Publication, SubscribeResult};

use super::bus::SocketId;
use super::scenario::{CACHE, PLAIN, STREAMS};
use super::store::{Accepted, NUMBER_TAG, Store};

/// What happened in a run, so that a run in which nothing happened is noticed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Stats {
    pub publications: u64,
    pub received: u64,
    pub recovered: u64,
    pub recovered_publications: u64,
    pub not_recovered: u64,
    pub positions_lost: u64,
    pub connections: u64,
    pub slow: u64,
}

#[derive(Clone, Debug)]
struct Cursor {
    epoch: String,
    offset: u64,
    /// Known once a publication was received.
    number: Option<usize>,
}

/// A subscription as its client sees it.
#[derive(Debug)]
struct View {
    socket: SocketId,
    client: ClientId,
    /// `None` where no position is kept.
    cursor: Option<Cursor>,
    seen: BTreeSet<usize>,
}

type Key = (usize, String);

pub struct Audit {
    violations: Vec<String>,
    views: BTreeMap<Key, View>,
    /// Where a client stood when its last subscription ended.
    remembered: BTreeMap<Key, Cursor>,
    acknowledged: Vec<(ChannelName, Bytes)>,
    /// Telling a client that something is lost is itself a violation.
    excuses_nothing: bool,
    pub stats: Stats,
}

/// A violation is enough to fail a run; more only help to understand it.
const VIOLATIONS_KEPT: usize = 20;

impl Audit {
    pub fn new(excuses_nothing: bool) -> Self {
        Self {
            violations: Vec::new(),
            views: BTreeMap::new(),
            remembered: BTreeMap::new(),
            acknowledged: Vec::new(),
            excuses_nothing,
            stats: Stats::default(),
        }
    }

    pub fn violation(&mut self, text: String) {
        if self.violations.len() < VIOLATIONS_KEPT {
            self.violations.push(text);
        }
    }

    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    // --- what clients report ---

    /// A subscription begins with this result. `asked` when the client wanted to recover.
    pub fn subscribed(
        &mut self,
        store: &Store,
        (client, id): (usize, ClientId),
        socket: SocketId,
        channel: &str,
        asked: bool,
        result: &SubscribeResult,
    ) {
        let key = (client, channel.to_owned());
        let who = format!("client {client} in {channel}");
        if self.views.get(&key).is_some_and(|view| view.socket == socket) {
            self.violation(format!("{who}: subscribed twice over one connection"));
        }
        if !result.recovered && !result.publications.is_empty() {
            self.violation(format!("{who}: publications without a recovery"));
        }
        let told =
            result.positioned.then(|| Cursor { epoch: result.epoch.clone(), offset: result.offset, number: None });
        let mut view = View { socket, client: id, cursor: told, seen: BTreeSet::new() };
        if result.recovered {
            self.stats.recovered += 1;
            self.stats.recovered_publications += result.publications.len() as u64;
            match self.remembered.get(&key).filter(|_| asked).cloned() {
                None => self.violation(format!("{who}: recovered without having asked")),
                Some(cursor) => {
                    if channel != CACHE && (&cursor.epoch, cursor.offset) != (&result.epoch, result.offset) {
                        self.violation(format!(
                            "{who}: recovered from {}/{} and not from {cursor:?}",
                            result.epoch, result.offset
                        ));
                    }
                    view.cursor = Some(cursor);
                }
            }
        } else if asked {
            self.stats.not_recovered += 1;
            // Without the right to recover there is nothing to be told.
            if self.excuses_nothing && result.recoverable && STREAMS.contains(&channel) {
                self.violation(format!("{who}: told that something is lost while nothing is"));
            }
        }
        self.views.insert(key, view);
        if channel == CACHE && result.recovered {
            self.latest(store, client, channel, &result.publications);
        } else {
            for publication in &result.publications {
                self.received(store, client, socket, channel, publication);
            }
        }
    }

    /// A recovery in cache mode: at most the latest publication, which is where the client then stands.
    fn latest(&mut self, store: &Store, client: usize, channel: &str, publications: &[Publication]) {
        let who = format!("client {client} in {channel}");
        if publications.len() > 1 {
            self.violation(format!("{who}: {} publications in cache mode", publications.len()));
        }
        let Some(publication) = publications.last() else { return };
        let Some((number, accepted)) = self.find(store, &who, channel, publication) else { return };
        let cursor =
            Cursor { epoch: accepted.epoch.as_str().to_owned(), offset: accepted.offset, number: Some(number) };
        if let Some(view) = self.views.get_mut(&(client, channel.to_owned())) {
            view.seen.insert(number);
            view.cursor = Some(cursor);
        }
    }

    /// What was accepted and came here, unchanged.
    fn find<'a>(
        &mut self,
        store: &'a Store,
        who: &str,
        channel: &str,
        publication: &Publication,
    ) -> Option<(usize, &'a Accepted)> {
        let number = publication.tags.get(NUMBER_TAG).and_then(|number| number.parse::<usize>().ok());
        let found = number.and_then(|number| Some((number, store.accepted().get(number)?)));
        let same = |(_, accepted): &(usize, &Accepted)| {
            &*accepted.channel == channel && accepted.data == publication.data && accepted.offset == publication.offset
        };
        match found.filter(same) {
            Some(found) => Some(found),
            None => {
                self.violation(format!("{who}: {publication:?} was never accepted"));
                None
            }
        }
    }

    /// A publication reaches a client that is subscribed.
    pub fn received(
        &mut self,
        store: &Store,
        client: usize,
        socket: SocketId,
        channel: &str,
        publication: &Publication,
    ) {
        self.stats.received += 1;
        let who = format!("client {client} in {channel}");
        let Some((number, accepted)) = self.find(store, &who, channel, publication) else { return };
        let Some(view) = self.views.get_mut(&(client, channel.to_owned())).filter(|view| view.socket == socket) else {
            self.violation(format!("{who}: a publication outside of the subscription"));
            return;
        };
        let mut problem = None;
        // What a lost lineage still delivers may look like the next publication to whoever has no position of his own.
        let excused = accepted.lost && view.cursor.is_none();
        if !view.seen.insert(number) && !excused {
            problem = Some(format!("{who}: {number} received twice over one connection"));
        }
        if accepted.offset > 0
            && let Some(cursor) = &mut view.cursor
        {
            let follows = match cursor.number {
                Some(last) => accepted.previous == Some(last),
                None => *accepted.epoch.as_str() == cursor.epoch && accepted.previous_offset == cursor.offset,
            };
            let next =
                Cursor { epoch: accepted.epoch.as_str().to_owned(), offset: accepted.offset, number: Some(number) };
            let last = std::mem::replace(cursor, next);
            if !follows {
                problem.get_or_insert_with(|| format!("{who}: after {last:?} comes {number}: {accepted:?}"));
            }
        }
        if let Some(problem) = problem {
            self.violation(problem);
        }
    }

    /// A subscription ends, by whatever.
    pub fn ended(&mut self, client: usize, channel: &str) {
        let key = (client, channel.to_owned());
        if let Some(cursor) = self.views.remove(&key).and_then(|view| view.cursor) {
            self.remembered.insert(key, cursor);
        }
    }

    /// A client was told that the position of one of these subscriptions is lost.
    pub fn position_lost(&mut self, client: usize, channels: &[&str]) {
        self.stats.positions_lost += 1;
        let ample = |channel: &&str| **channel == *PLAIN || STREAMS.contains(channel);
        if self.excuses_nothing && channels.iter().all(ample) {
            self.violation(format!("client {client} in {channels:?}: told of a lost position while nothing is lost"));
        }
    }

    /// Somebody was told that it is published.
    pub fn acknowledged(&mut self, channel: &ChannelName, data: Bytes) {
        self.stats.publications += 1;
        self.acknowledged.push((channel.clone(), data));
    }

    // --- at the end ---

    /// Everything was quiet for long enough: all have what there is, and nothing is left over.
    pub fn conclude(&mut self, store: &Store, positions: &BTreeMap<&str, (String, u64)>) {
        let mut wrong = Vec::new();
        for ((client, channel), view) in &self.views {
            let (Some(cursor), Some((epoch, offset))) = (&view.cursor, positions.get(channel.as_str())) else {
                continue;
            };
            let top = store.top(channel);
            let at_top = *epoch == cursor.epoch && *offset == cursor.offset;
            if !at_top || cursor.number.is_some_and(|number| Some(number) != top) {
                wrong.push(format!(
                    "client {client} in {channel}: stands at {cursor:?}, the top is {epoch}/{offset} with {top:?}"
                ));
            }
        }
        let mut times: BTreeMap<_, usize> = BTreeMap::new();
        for accepted in store.accepted() {
            *times.entry((&accepted.channel, &accepted.data, accepted.data_set)).or_default() += 1;
        }
        wrong.extend(
            times.iter().filter(|(_, times)| **times > 1).map(|(what, _)| format!("published twice: {what:?}")),
        );
        let accepted: BTreeSet<_> = times.keys().map(|(channel, data, _)| (*channel, *data)).collect();
        let missing = self.acknowledged.iter().filter(|(channel, data)| !accepted.contains(&(channel, data)));
        wrong.extend(missing.map(|what| format!("acknowledged and never accepted: {what:?}")));
        wrong.into_iter().for_each(|wrong| self.violation(wrong));
    }

    /// Presence is exactly who is subscribed.
    pub fn compare_presence(&mut self, store: &Store, channel: &str) {
        let views = self.views.iter().filter(|((_, of), _)| of == channel);
        let subscribed: BTreeSet<_> = views.map(|(_, view)| view.client).collect();
        let present = store.present(channel);
        for client in present.symmetric_difference(&subscribed) {
            let wrong =
                if present.contains(client) { "present and not subscribed" } else { "subscribed and not present" };
            self.violation(format!("connection {client} in {channel}: {wrong}"));
        }
    }
}
