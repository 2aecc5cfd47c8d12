//! What a shard does for sessions that outlive a connection: it looks up what a client left behind, writes down what it
//! has, and hands it over when another connection takes the session over.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use backplane::{ClientId, UserId};
use bytes::Bytes;
use session::close::CloseCode;
use session::io::{Back, Input, Kept, Resumption};
use session::{Session, Tick};
use tokio::sync::oneshot;

use super::command::TakenOver;
use super::connection::{Connection, Phase};
use super::verdicts::Told;
use super::{Shard, Work};
use crate::metrics::session_result;
use crate::sessions::is_secret;
use crate::sessions::record::{Claim, HandedOver, Proof, Sub};
use crate::sessions::store::{Change, Held, Key, StoreError};

/// Records written per second and shard because subscriptions have changed. More wait a second longer, so that a mass
/// reconnect does not multiply the backplane's load.
const WRITES_PER_TURN: usize = 1_000;

/// A session is kept alive this many times in its time to live, so that one failure does not end it.
const TOUCHES_PER_TTL: u32 = 3;

/// How long what a connection had is kept for a connection that was faster than its last write. That one asks for it as
/// soon as the record is its own, which is before the write fails; this is for slow answers.
const DEPARTED_KEPT: Duration = Duration::from_secs(2);

/// The sessions of a shard's connections, by the index of the connection. Beside the connections, because few may have
/// one.
#[derive(Default)]
pub(super) struct Resumables(HashMap<u32, Resumable>);

/// The session of one connection.
pub(super) struct Resumable {
    /// As the client calls it.
    pub id: Rc<str>,
    /// The generation of the record; 0 while there is none.
    generation: u64,
    /// Fingerprint of the subscriptions in the record; `None` when it has to be looked at.
    written: Option<u64>,
    /// What the client comes back to, until its connect is answered and it has it.
    came_for: Vec<Sub>,
    /// When the record was last written or touched.
    touched: Tick,
    /// Until then the client may find presence entries that a former connection has left behind, as for ones that the
    /// record does not know of yet.
    adopts_until: Tick,
    /// The record is to be written even if nothing has changed, as authorised anew.
    authorise: bool,
    /// The application has closed the connection: nothing is kept.
    forget: bool,
    /// Another connection has the session: the record is not this one's to write.
    is_taken_over: bool,
    /// Who waits until nothing of this connection can touch presence any more.
    waiting: Vec<Waiting>,
    /// What the application has said about the client.
    pub told: Told,
}

impl Resumables {
    /// The connection asks for a session of this name.
    pub fn insert(&mut self, index: u32, id: &str) {
        let resumable = Resumable {
            id: Rc::from(id),
            generation: 0,
            written: None,
            came_for: Vec::new(),
            touched: Tick(0),
            adopts_until: Tick(0),
            authorise: false,
            forget: false,
            is_taken_over: false,
            waiting: Vec::new(),
            told: Told::default(),
        };
        self.0.insert(index, resumable);
    }

    pub fn get(&self, connection: &Connection) -> Option<&Resumable> {
        self.0.get(&connection.key.index)
    }

    pub fn get_mut(&mut self, connection: &Connection) -> Option<&mut Resumable> {
        self.0.get_mut(&connection.key.index)
    }

    pub fn remove(&mut self, index: u32) -> Option<Resumable> {
        let removed = self.0.remove(&index);
        if self.0.capacity() > 1024 && self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to(self.0.len() * 2);
        }
        removed
    }
}

impl Resumable {
    /// The client has a session, and this is its connection.
    pub fn has_record(&self) -> bool {
        self.generation > 0
    }

    /// Whether the record is to be written.
    fn is_changed(&self, fingerprint: u64) -> bool {
        self.written != Some(fingerprint) || self.authorise || self.told.is_changed
    }
}

/// Somebody who has taken a session over, and what there is to answer.
pub(super) struct Waiting {
    done: oneshot::Sender<Option<TakenOver>>,
    answer: TakenOver,
}

impl Waiting {
    pub fn answer(self) {
        // Nobody may be waiting any more.
        let _ = self.done.send(Some(self.answer));
    }
}

/// What clients had whose connections ended a moment ago, until it is written: a client that comes back may be faster.
/// Not more than these connections had, and for [`DEPARTED_KEPT`] after the write at most.
#[derive(Default)]
pub(super) struct Departed(HashMap<ClientId, Departure>);

struct Departure {
    user: UserId,
    generation: u64,
    handed_over: HandedOver,
    /// When it turned out that it could not be written.
    failed: Option<Tick>,
}

impl Departed {
    fn insert(&mut self, client: ClientId, place: &Place, handed_over: HandedOver) {
        let (user, generation) = (place.user.clone(), place.generation);
        if self.0.get(&client).is_none_or(|known| known.generation <= generation) {
            self.0.insert(client, Departure { user, generation, handed_over, failed: None });
        }
    }

    /// The record has what the connection of this generation had.
    fn written(&mut self, client: ClientId, generation: u64) {
        if self.0.get(&client).is_some_and(|departure| departure.generation == generation) {
            self.0.remove(&client);
        }
    }

    /// It could not be written, most likely because the record is another connection's by now.
    fn not_written(&mut self, client: ClientId, generation: u64, now: Tick) {
        if let Some(departure) = self.0.get_mut(&client).filter(|departure| departure.generation == generation) {
            departure.failed = Some(now);
        }
    }

    /// For a connection of this generation. Only the one right before it has anything newer than the record.
    fn take(&mut self, user: &UserId, client: ClientId, generation: u64) -> Option<HandedOver> {
        let departure = self.0.get(&client)?;
        let is_it = departure.user == *user && departure.generation + 1 == generation;
        is_it.then(|| self.0.remove(&client)).flatten().map(|departure| departure.handed_over)
    }

    /// Gives up what nobody has asked for. Once a second.
    fn sweep(&mut self, now: Tick) {
        self.0.retain(|_, departure| departure.failed.is_none_or(|failed| now < failed.after(DEPARTED_KEPT)));
        if self.0.capacity() > 1024 && self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to(self.0.len() * 2);
        }
    }
}

/// What tells one set of subscriptions from another: channel, presence, whether the server API has made it.
fn fingerprint<'a>(subs: impl Iterator<Item = (&'a str, bool, bool)>) -> u64 {
    let mut hasher = DefaultHasher::new();
    subs.for_each(|sub| sub.hash(&mut hasher));
    hasher.finish()
}

/// Of what a session has now, as far as its return depends on it.
fn fingerprint_of(session: &Session) -> u64 {
    let subs = session.subscriptions().filter(|sub| sub.has_presence() || sub.is_dynamic());
    fingerprint(subs.map(|sub| (sub.channel().as_str(), sub.has_presence(), sub.is_dynamic())))
}

/// What a shard needs to change a record.
pub(super) struct Place {
    pub user: UserId,
    pub id: Rc<str>,
    generation: u64,
}

impl Shard {
    // --- the beginning ---

    /// Looks up what the client left behind, and makes it this connection's.
    pub(super) fn resume(self: &Rc<Self>, connection: &Rc<Connection>, user: UserId, info: Bytes) {
        let settings = self.node.runtime().sessions.clone();
        let asked = self.resumables.borrow_mut().get_mut(connection).map(|resumable| {
            let proof = resumable.told.proof();
            (resumable.id.clone(), proof)
        });
        let (Some((id, proof)), Some(sessions)) = (asked, self.node.sessions()) else {
            return self.resumed(connection, Resumption::Without);
        };
        if user.is_anonymous() && !(settings.anonymous && is_secret(&id)) {
            session_result("anonymous");
            return self.resumed(connection, Resumption::Without);
        }
        let is_pointed_to = matches!(proof, Proof::Asked(Some(_)));
        let (node, conn, client) = (self.node.clone(), connection.clone(), connection.session.borrow().client());
        let claimed = async move {
            let key = Key { user: &user, id: &id, ttl: settings.ttl };
            let mut claimed = sessions.claim(key, client, info, proof).await;
            if let Ok(Claim::Granted { .. }) = &claimed
                && is_pointed_to
                && let Err(error) = sessions.point_to(key, settings.verdict_ttl).await
            {
                tracing::debug!(%error, "the application is asked when a client comes back");
            }
            if let Ok(Claim::Granted { record, is_back, taken_from: Some((from, former)), is_reminded }) = &mut claimed
            {
                // The old connection is over before the new one touches anything that both could have.
                let taken_over = node.take_over(*from, &user, *former, record.generation).await;
                if taken_over.as_ref().is_some_and(|taken_over| taken_over.was_open) {
                    session_result("taken_over");
                }
                if *is_back && let Some(handed_over) = taken_over.and_then(|taken_over| taken_over.handed_over) {
                    record.hand_over(handed_over, *is_reminded);
                }
            }
            (user, id, claimed)
        };
        self.perform(claimed, move |shard, (user, id, claimed)| shard.claimed(&conn, user, id, claimed));
    }

    fn claimed(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        user: UserId,
        id: Rc<str>,
        claimed: Result<Claim, StoreError>,
    ) {
        let resumption = match claimed {
            Ok(Claim::Granted { record, is_back, is_reminded, .. }) => {
                session_result(if is_back { "resumed" } else { "fresh" });
                let mut resumables = self.resumables.borrow_mut();
                let resumable = resumables.0.get_mut(&connection.key.index);
                let Some(resumable) = resumable.filter(|_| connection.phase.get() == Phase::Open) else {
                    // It has ended meanwhile, and the record does not know.
                    drop(resumables);
                    let place = Place { user, id, generation: record.generation };
                    let left = HandedOver { subs: record.subs, verdicts: record.verdicts };
                    return self.write_end(place, ClientId(record.client), left);
                };
                resumable.told.claimed(record.verdicts.clone(), is_reminded);
                resumable.generation = record.generation;
                resumable.touched = self.now().tick;
                if is_back {
                    // Twice, because whoever lingers may leave a little late.
                    resumable.adopts_until = resumable.touched.after(2 * self.node.runtime().sessions.presence_grace);
                    let (client, subscriptions) = (ClientId(record.client), record.dynamic());
                    resumable.came_for = record.subs;
                    Resumption::Back(Box::new(Back { client, subscriptions }))
                } else {
                    Resumption::Fresh
                }
            }
            Ok(Claim::Forked) => {
                session_result("forked");
                Resumption::Without
            }
            Ok(Claim::Unproven) => {
                session_result("unproven");
                Resumption::Without
            }
            Err(error) => {
                session_result(match error {
                    StoreError::Backplane(_) => "unavailable",
                    StoreError::Record(_) => "unreadable",
                    StoreError::Busy => "busy",
                });
                tracing::debug!(%error, "a connection goes on without a session");
                Resumption::Without
            }
        };
        self.resumed(connection, resumption);
    }

    /// Tells the session what became of its wish. Who is known only by a session does not go on without one.
    fn resumed(self: &Rc<Self>, connection: &Rc<Connection>, resumption: Resumption) {
        // The place of one that is gone may be another's by now.
        if resumption == Resumption::Without && connection.phase.get() != Phase::Gone {
            let removed = self.resumables.borrow_mut().remove(connection.key.index);
            if removed.is_some_and(|resumable| resumable.told.is_recalled) {
                return self.disprove(connection);
            }
        }
        self.enqueue(Work::Input(connection.clone(), Input::Resumed(resumption)));
    }

    /// Whether the client may have left presence entries behind in channels that it joins now.
    pub(super) fn may_adopt(&self, connection: &Connection) -> bool {
        let now = self.now().tick;
        self.resumables.borrow().0.get(&connection.key.index).is_some_and(|resumable| now < resumable.adopts_until)
    }

    // --- meanwhile ---

    /// Writes down what has changed, and keeps the rest alive. Once a second.
    pub(super) fn tend_sessions(self: &Rc<Self>) {
        let runtime = self.node.runtime();
        let settings = &runtime.sessions;
        let now = self.now();
        let close_delay = runtime.session.expired_subscription_close_delay;
        self.departed.borrow_mut().sweep(now.tick);
        let mut writes = Vec::new();
        let mut touches = Vec::new();
        let mut unconfirmed = Vec::new();
        for (index, resumable) in &mut self.resumables.borrow_mut().0 {
            if !resumable.has_record() || resumable.forget {
                continue;
            }
            let connections = self.connections.borrow();
            let connection = connections.get(*index as usize);
            let Some(connection) = connection.filter(|connection| connection.established.get()) else { continue };
            if connection.phase.get() != Phase::Open {
                continue;
            }
            let session = connection.session.borrow();
            if resumable.told.is_unconfirmed {
                unconfirmed.push(connection.clone());
            }
            let fingerprint = fingerprint_of(&session);
            let is_due = resumable.touched.after(settings.ttl / TOUCHES_PER_TTL) <= now.tick;
            if resumable.is_changed(fingerprint) && writes.len() < WRITES_PER_TURN {
                let is_authorised = std::mem::take(&mut resumable.authorise);
                (resumable.written, resumable.touched) = (Some(fingerprint), now.tick);
                resumable.told.is_changed = false;
                resumable.came_for = Vec::new();
                let subs = kept_subs(session.kept(), now, close_delay);
                let verdicts = resumable.told.verdicts.clone();
                writes.push((connection.clone(), Held { subs, verdicts, is_connected: true, is_authorised }));
            } else if is_due && touches.len() < WRITES_PER_TURN {
                resumable.touched = now.tick;
                touches.push(connection.clone());
            }
        }
        for connection in unconfirmed {
            self.confirm(&connection);
        }
        for (connection, held) in writes {
            self.write_held(&connection, held);
        }
        for connection in touches {
            self.touch(&connection);
        }
    }

    fn write_held(self: &Rc<Self>, connection: &Rc<Connection>, held: Held) {
        let (Some(place), Some(sessions)) = (self.place(connection), self.node.sessions()) else { return };
        let (conn, ttl) = (connection.clone(), self.node.runtime().sessions.ttl);
        let is_authorised = held.is_authorised;
        let written = async move {
            let key = Key { user: &place.user, id: &place.id, ttl };
            sessions.update(key, place.generation, held).await
        };
        self.perform(written, move |shard, written| match written {
            Ok(Change::Made) => {}
            // The command that should have told us was lost.
            Ok(Change::Lost) => shard.lost(&conn),
            Err(error) => {
                tracing::debug!(%error, "a session is written again later");
                if let Some(resumable) = shard.resumables.borrow_mut().0.get_mut(&conn.key.index) {
                    resumable.written = None;
                    resumable.authorise |= is_authorised;
                }
            }
        });
    }

    fn touch(self: &Rc<Self>, connection: &Rc<Connection>) {
        let (Some(place), Some(sessions)) = (self.place(connection), self.node.sessions()) else { return };
        let ttl = self.node.runtime().sessions.ttl;
        let touched = async move { sessions.touch(Key { user: &place.user, id: &place.id, ttl }).await };
        self.perform(touched, |_, touched| {
            if let Err(error) = touched {
                tracing::debug!(%error, "a session could not be kept alive; it is tried again");
            }
        });
    }

    /// The record is not this connection's any more.
    fn lost(self: &Rc<Self>, connection: &Rc<Connection>) {
        let known = self.resumables.borrow().0.contains_key(&connection.key.index);
        if known && connection.phase.get() == Phase::Open {
            self.input(connection, Input::Close(CloseCode::TakenOver));
        }
    }

    /// The application has said anew what this connection may: its record is not revoked.
    pub(super) fn reauthorise_session(&self, connection: &Connection) {
        if let Some(resumable) = self.resumables.borrow_mut().0.get_mut(&connection.key.index) {
            resumable.authorise = true;
            resumable.told.revoke();
        }
    }

    /// The application ends this session with its connection.
    pub(super) fn forget_session(&self, connection: &Connection) {
        if let Some(resumable) = self.resumables.borrow_mut().0.get_mut(&connection.key.index) {
            resumable.forget = true;
        }
    }

    // --- the end ---

    /// Writes down what a connection had when it ended.
    pub(super) fn detach(self: &Rc<Self>, connection: &Rc<Connection>, kept: &[Kept]) {
        let (Some(place), Some(sessions)) = (self.place(connection), self.node.sessions()) else { return };
        let resumables = self.resumables.borrow();
        let Some(resumable) = resumables.get(connection).filter(|resumable| !resumable.is_taken_over) else { return };
        if !resumable.forget {
            let left = self.left(connection, resumable, kept);
            drop(resumables);
            let client = connection.session.borrow().client();
            return self.write_end(place, client, left);
        }
        drop(resumables);
        let (ttl, tidying) = (self.node.runtime().sessions.ttl, self.node.tidying());
        let deleted = async move {
            let _tidying = tidying;
            sessions.delete(Key { user: &place.user, id: &place.id, ttl }, place.generation).await
        };
        self.perform(deleted, |_, deleted| {
            if let Err(error) = deleted {
                tracing::debug!(%error, "a session that the application ended stays until it expires; it is revoked");
            }
        });
    }

    /// What a connection leaves to the next one.
    fn left(&self, connection: &Connection, resumable: &Resumable, kept: &[Kept]) -> HandedOver {
        let subs = if connection.established.get() {
            let close_delay = self.node.runtime().session.expired_subscription_close_delay;
            kept_subs(kept.iter().cloned(), self.now(), close_delay)
        } else {
            resumable.came_for.clone()
        };
        HandedOver { subs, verdicts: resumable.told.verdicts.clone() }
    }

    fn write_end(self: &Rc<Self>, place: Place, client: ClientId, left: HandedOver) {
        let Some(sessions) = self.node.sessions() else { return };
        self.departed.borrow_mut().insert(client, &place, left.clone());
        let HandedOver { subs, verdicts } = left;
        let (ttl, tidying) = (self.node.runtime().sessions.ttl, self.node.tidying());
        let generation = place.generation;
        let written = async move {
            let _tidying = tidying;
            let key = Key { user: &place.user, id: &place.id, ttl };
            let held = Held { subs, verdicts, is_connected: false, is_authorised: false };
            sessions.update(key, generation, held).await
        };
        self.perform(written, move |shard, written| {
            match &written {
                Ok(Change::Made) => return shard.departed.borrow_mut().written(client, generation),
                Ok(Change::Lost) => {}
                Err(error) => tracing::debug!(%error, "the end of a connection is missing in its session"),
            }
            shard.departed.borrow_mut().not_written(client, generation, shard.now().tick);
        });
    }

    /// Gives a session to another connection, with what its record may not have yet; answered once nothing of the old one
    /// can touch presence any more.
    pub(super) fn take_over(
        self: &Rc<Self>,
        user: &UserId,
        client: ClientId,
        generation: u64,
        done: oneshot::Sender<Option<TakenOver>>,
    ) {
        let old = {
            let resumables = self.resumables.borrow();
            let connections = self.connections.borrow();
            // One whose user is not known yet is not found. It notices when it first looks at its record.
            self.users.borrow().connections(user).into_iter().find_map(|index| {
                let resumable = resumables.0.get(&index)?;
                let connection = connections.get(index as usize)?;
                let is_it = connection.session.borrow().client() == client && resumable.generation < generation;
                is_it.then(|| connection.clone())
            })
        };
        let departed = || self.departed.borrow_mut().take(user, client, generation);
        let Some(connection) = old else {
            let answer = departed().map(|left| TakenOver { was_open: false, handed_over: Some(left) });
            // Nobody may be waiting any more.
            let _ = done.send(answer);
            return;
        };
        let was_open = connection.phase.get() == Phase::Open;
        let handed_over = if was_open { self.give_up(&connection, generation) } else { None };
        let handed_over = handed_over.or_else(departed);
        let waiting = Waiting { done, answer: TakenOver { was_open, handed_over } };
        self.input(&connection, Input::Close(CloseCode::TakenOver));
        if connection.joins_in_flight.get() == 0 {
            waiting.answer();
        } else if let Some(resumable) = self.resumables.borrow_mut().0.get_mut(&connection.key.index) {
            resumable.waiting.push(waiting);
        }
    }

    /// What a connection of this generation is to have of this one, which has nothing to write any more. `None` when there
    /// is nothing, or when a third one had the session in between and the record is newer.
    fn give_up(&self, connection: &Connection, generation: u64) -> Option<HandedOver> {
        let mut resumables = self.resumables.borrow_mut();
        let resumable = resumables.get_mut(connection).filter(|resumable| resumable.has_record())?;
        resumable.is_taken_over = true;
        let kept = connection.session.borrow().kept();
        let is_next = resumable.generation + 1 == generation;
        (is_next && !resumable.forget).then(|| self.left(connection, resumable, &kept))
    }

    /// The last join of a closed connection was answered and undone.
    pub(super) fn joins_are_over(&self, connection: &Connection) {
        let mut resumables = self.resumables.borrow_mut();
        let Some(resumable) = resumables.0.get_mut(&connection.key.index) else { return };
        for waiting in std::mem::take(&mut resumable.waiting) {
            self.enqueue(Work::Acknowledge(Box::new(waiting)));
        }
    }

    /// The socket is over. A peer that has answered a takeover was alive: two clients use one session.
    pub(super) fn end_resumable(self: &Rc<Self>, connection: &Rc<Connection>, answer: Option<u16>) {
        let place = self.place(connection);
        self.resumables.borrow_mut().remove(connection.key.index);
        let (Some(place), Some(sessions)) = (place, self.node.sessions()) else { return };
        if answer != Some(CloseCode::TakenOver.code()) {
            return;
        }
        let (ttl, tidying) = (self.node.runtime().sessions.ttl, self.node.tidying());
        let forked = async move {
            let _tidying = tidying;
            sessions.fork(Key { user: &place.user, id: &place.id, ttl }).await
        };
        self.perform(forked, |_, forked| {
            if let Err(error) = forked {
                tracing::debug!(%error, "a session of two clients could not be marked");
            }
        });
    }

    /// Where the record of a connection is, if it has one.
    pub(super) fn place(&self, connection: &Connection) -> Option<Place> {
        let resumables = self.resumables.borrow();
        let resumable = resumables.0.get(&connection.key.index).filter(|resumable| resumable.has_record())?;
        let user = connection.session.borrow().info()?.user.clone();
        Some(Place { user, id: resumable.id.clone(), generation: resumable.generation })
    }
}

fn kept_subs(kept: impl IntoIterator<Item = Kept>, now: session::Now, close_delay: Duration) -> Vec<Sub> {
    kept.into_iter().filter_map(|kept| Sub::of(&kept, now, close_delay)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_written_yet_is_there_for_a_faster_connection() {
        let (user, client) = (UserId::from("ann"), ClientId::random());
        let left = HandedOver { subs: Vec::new(), verdicts: None };
        let at = |seconds: u64| Tick(seconds * 1000);
        let mut departed = Departed::default();
        let leave_as = |departed: &mut Departed, generation| {
            let place = Place { user: user.clone(), id: Rc::from("session1"), generation };
            departed.insert(client, &place, left.clone());
        };
        let leave = |departed: &mut Departed| leave_as(departed, 3);
        leave(&mut departed);
        leave_as(&mut departed, 2);
        assert_eq!(departed.take(&UserId::from("eve"), client, 4), None);
        assert_eq!(departed.take(&user, client, 3), None, "it is of this generation itself");
        assert_eq!(departed.take(&user, client, 5), None, "another one had the session in between");
        assert_eq!(departed.take(&user, client, 4), Some(left.clone()));
        assert_eq!(departed.take(&user, client, 4), None, "once");

        leave(&mut departed);
        departed.written(client, 3);
        assert_eq!(departed.take(&user, client, 4), None, "the record has it");

        leave(&mut departed);
        departed.sweep(at(100));
        departed.written(client, 2);
        departed.not_written(client, 3, at(100));
        departed.sweep(at(101));
        assert!(departed.0.contains_key(&client), "the answer may come late");
        departed.sweep(at(102));
        assert!(departed.0.is_empty());
    }
}
