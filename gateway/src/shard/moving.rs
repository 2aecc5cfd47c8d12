//! Connections that are told to go, so that their clients connect elsewhere.

use std::rc::Rc;
use std::time::Duration;

use backplane::UserId;
use rand::seq::{SliceRandom, index};
use session::close::CloseCode;
use session::io::Input;

use super::Shard;
use super::connection::{Connection, Phase};
use crate::placing::MoveRule;
use crate::placing::returns::Who;
use crate::placing::rule::Facts;

/// Closes of a drain before other tasks get their turn: each cleans up after a session.
const CLOSES_PER_TURN: usize = 100;

impl Shard {
    /// Closes whoever still comes, at once, and puts those who are here into random order; returns how many they are.
    pub(super) fn stop_accepting(&self) -> usize {
        if !self.draining.replace(true) {
            let mut keys: Vec<_> = self.connections.borrow().iter().map(|(_, connection)| connection.key).collect();
            keys.shuffle(&mut rand::rng());
            *self.to_close.borrow_mut() = keys;
        }
        self.to_close.borrow().len()
    }

    /// Closes so many of those who were here then.
    pub(super) fn close_some(self: &Rc<Self>, count: usize) {
        let shard = self.clone();
        tokio::task::spawn_local(async move {
            let mut closed = 0;
            while closed < count {
                let Some(key) = shard.to_close.borrow_mut().pop() else { return };
                let Some(connection) = shard.connection(key) else { continue };
                if connection.phase.get() != Phase::Open || connection.going.get() {
                    continue;
                }
                shard.tell_to_go(&connection, CloseCode::GoingAway);
                closed += 1;
                if closed % CLOSES_PER_TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
        });
    }

    /// Closes a connection once what it has asked is answered. From here on it does not count as one of the node's.
    pub(super) fn tell_to_go(self: &Rc<Self>, connection: &Rc<Connection>, code: CloseCode) {
        if !connection.going.replace(true) {
            self.node.placing.count_going();
        }
        self.input(connection, Input::CloseWhenAnswered(code));
    }

    /// How many connections may be moved.
    pub(super) fn count_movable(&self, rule: MoveRule) -> usize {
        self.movable(rule).count_in(&self.connections.borrow())
    }

    /// Moves some of them, chosen at random; returns how many.
    pub(super) fn move_some(self: &Rc<Self>, rule: MoveRule, count: usize) -> usize {
        if count == 0 {
            return 0;
        }
        let movable = self.movable(rule).of(&self.connections.borrow());
        let chosen = index::sample(&mut rand::rng(), movable.len(), count.min(movable.len()));
        for connection in chosen.iter().map(|at| &movable[at]) {
            // Who goes because of age may come back.
            if rule.max_age.is_none() {
                self.expect_elsewhere(connection);
            }
            self.tell_to_go(connection, CloseCode::ForceReconnect);
        }
        chosen.len()
    }

    /// Notes that a client is told to go in order to be on another node afterwards.
    fn expect_elsewhere(&self, connection: &Connection) {
        let session = connection.session.borrow();
        if let Some(info) = session.info() {
            self.with_identity(connection, &info.user, |who| {
                self.node.placing.returns.told_to_go(self.node.uptime(), who, connection.came_back.get());
            });
        }
    }

    /// Notes that a client is here, in case it was told to go.
    pub(super) fn note_return(&self, connection: &Connection, user: &UserId) {
        let returns = &self.node.placing.returns;
        if returns.is_waiting() {
            self.with_identity(connection, user, |who| {
                connection.came_back.set(returns.arrived(self.node.uptime(), who));
            });
        }
    }

    fn with_identity(&self, connection: &Connection, user: &UserId, look: impl FnOnce(Who<'_>)) {
        let resumables = self.resumables.borrow();
        let session = resumables.get(connection).map(|resumable| &*resumable.id);
        look(Who { user, session, address: connection.address });
    }

    fn movable(&self, rule: MoveRule) -> Movable {
        Movable { rule, now_s: self.now().tick.0 / 1000 }
    }
}

/// Tells which connections may be moved now.
struct Movable {
    rule: MoveRule,
    now_s: u64,
}

impl Movable {
    fn count_in(&self, connections: &slab::Slab<Rc<Connection>>) -> usize {
        connections.iter().filter(|(_, connection)| self.is(connection)).count()
    }

    fn of(&self, connections: &slab::Slab<Rc<Connection>>) -> Vec<Rc<Connection>> {
        connections.iter().filter(|(_, connection)| self.is(connection)).map(|(_, one)| one.clone()).collect()
    }

    fn is(&self, connection: &Connection) -> bool {
        if connection.phase.get() != Phase::Open || connection.going.get() || !connection.established.get() {
            return false;
        }
        let age = Duration::from_secs(self.now_s.saturating_sub(u64::from(connection.accepted_s)));
        if age < self.rule.min_age {
            return false;
        }
        let session = connection.session.borrow();
        self.rule.allows(&Facts {
            client: session.client(),
            age,
            recoverable: !self.rule.recoverable_only
                || session.subscriptions().all(|subscription| subscription.is_recoverable()),
        })
    }
}
