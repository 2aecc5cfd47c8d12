//! The members of one channel.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use super::clock::Moment;
use crate::{ClientId, ClientInfo, PresenceStats, UserId};

/// Who is in a channel, and how many connections each user has there, so that stats cost no walk.
///
/// Invariants: the values of `users` are above zero and sum up to the number of clients; `next_leave` is not after the
/// time at which any of them leaves.
#[derive(Debug)]
pub(super) struct Members {
    clients: HashMap<ClientId, Member>,
    users: HashMap<UserId, u32>,
    /// When to look for members whose time to linger is over; `NEVER` when nobody lingers.
    next_leave: Moment,
}

#[derive(Debug)]
struct Member {
    info: Arc<ClientInfo>,
    /// `NEVER` unless it lingers.
    leaves: Moment,
}

impl Default for Members {
    fn default() -> Self {
        Self { clients: HashMap::new(), users: HashMap::new(), next_leave: Moment::NEVER }
    }
}

impl Members {
    pub(super) fn contains(&self, client: ClientId) -> bool {
        self.clients.contains_key(&client)
    }

    /// Adds or replaces the entry of this client, which lingers no more; says whether there was one.
    pub(super) fn insert(&mut self, info: Arc<ClientInfo>) -> bool {
        *self.users.entry(info.user.clone()).or_insert(0) += 1;
        let replaced = self.clients.insert(info.client, Member { info, leaves: Moment::NEVER });
        if let Some(replaced) = &replaced {
            self.release_user(&replaced.info.user);
        }
        replaced.is_some()
    }

    /// Has a member leave later.
    pub(super) fn linger(&mut self, client: ClientId, leaves: Moment) {
        if let Some(member) = self.clients.get_mut(&client) {
            member.leaves = leaves;
            self.next_leave = self.next_leave.min(leaves);
        }
    }

    /// When somebody may have to leave.
    pub(super) fn next_leave(&self) -> Moment {
        self.next_leave
    }

    /// Removes those whose time to linger is over, and returns them.
    pub(super) fn take_left(&mut self, now: Moment) -> Vec<Arc<ClientInfo>> {
        if self.next_leave > now {
            return Vec::new();
        }
        let left: Vec<_> = self
            .clients
            .values()
            .filter(|member| member.leaves <= now)
            .map(|member| Arc::clone(&member.info))
            .collect();
        left.iter().for_each(|info| _ = self.remove(info.client));
        self.next_leave = self.clients.values().map(|member| member.leaves).min().unwrap_or(Moment::NEVER);
        left
    }

    /// Says whether there was an entry.
    pub(super) fn remove(&mut self, client: ClientId) -> bool {
        let Some(member) = self.clients.remove(&client) else { return false };
        self.release_user(&member.info.user);
        shrink(&mut self.clients);
        shrink(&mut self.users);
        true
    }

    fn release_user(&mut self, user: &UserId) {
        if let Entry::Occupied(mut count) = self.users.entry(user.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    pub(super) fn list(&self) -> Vec<Arc<ClientInfo>> {
        self.clients.values().map(|member| Arc::clone(&member.info)).collect()
    }

    pub(super) fn stats(&self) -> PresenceStats {
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        PresenceStats { num_clients: count(self.clients.len()), num_users: count(self.users.len()) }
    }
}

/// Gives memory back when a map is mostly empty. A quarter full leaves room to grow to twice the size, so flapping
/// members do not resize it at each turn; small maps are not worth it.
pub(super) fn shrink<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > 32 && map.len() * 4 < map.capacity() {
        map.shrink_to(map.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn info(client: u128, user: &str) -> Arc<ClientInfo> {
        let client = ClientId(uuid::Uuid::from_u128(client));
        Arc::new(ClientInfo { client, user: user.into(), conn_info: Bytes::new(), chan_info: Bytes::new() })
    }

    #[test]
    fn users_are_counted_once_and_leave_with_their_last_connection() {
        let mut members = Members::default();
        members.insert(info(1, "ann"));
        members.insert(info(2, "ann"));
        members.insert(info(3, ""));
        members.insert(info(4, ""));
        assert_eq!(members.stats(), PresenceStats { num_clients: 4, num_users: 2 });
        assert!(members.remove(info(1, "").client));
        assert_eq!(members.stats(), PresenceStats { num_clients: 3, num_users: 2 });
        assert!(members.remove(info(2, "").client));
        assert!(!members.remove(info(2, "").client));
        assert_eq!(members.stats(), PresenceStats { num_clients: 2, num_users: 1 });
    }

    #[test]
    fn replacing_an_entry_moves_its_user() {
        let mut members = Members::default();
        members.insert(info(1, "ann"));
        members.insert(info(1, "ann"));
        assert_eq!(members.stats(), PresenceStats { num_clients: 1, num_users: 1 });
        members.insert(info(1, "bob"));
        assert_eq!(members.stats(), PresenceStats { num_clients: 1, num_users: 1 });
        assert_eq!(members.list(), vec![info(1, "bob")]);
    }

    #[test]
    fn those_who_linger_leave_when_their_time_is_over_unless_they_came_back() {
        let at = |seconds| Moment::from(std::time::Duration::from_secs(seconds));
        let mut members = Members::default();
        for n in 1..=4 {
            members.insert(info(n, "ann"));
        }
        members.linger(info(1, "").client, at(10));
        members.linger(info(2, "").client, at(20));
        members.linger(info(3, "").client, at(10));
        assert!(members.insert(info(3, "ann")), "it has come back");
        assert_eq!((members.next_leave(), members.take_left(at(9))), (at(10), Vec::new()));
        assert_eq!(members.take_left(at(10)), [info(1, "ann")]);
        assert_eq!((members.next_leave(), members.stats().num_clients), (at(20), 3));
        assert_eq!(members.take_left(at(99)), [info(2, "ann")]);
        assert_eq!((members.next_leave(), members.stats().num_clients), (Moment::NEVER, 2));
    }

    #[test]
    fn maps_shrink_when_members_leave() {
        let mut members = Members::default();
        for n in 0..10_000 {
            members.insert(info(n, &n.to_string()));
        }
        for n in 10..10_000 {
            members.remove(info(n, "").client);
        }
        assert!(members.clients.capacity() < 100, "{}", members.clients.capacity());
        assert!(members.users.capacity() < 100, "{}", members.users.capacity());
        assert_eq!(members.stats(), PresenceStats { num_clients: 10, num_users: 10 });
    }
}
