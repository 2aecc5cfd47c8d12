//! The members of one channel.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use crate::{ClientId, ClientInfo, PresenceStats, UserId};

/// Who is in a channel, and how many connections each user has there, so that stats cost no walk.
///
/// Invariant: the values of `users` are above zero and sum up to the number of clients.
#[derive(Debug, Default)]
pub(super) struct Members {
    clients: HashMap<ClientId, Arc<ClientInfo>>,
    users: HashMap<UserId, u32>,
}

impl Members {
    pub(super) fn contains(&self, client: ClientId) -> bool {
        self.clients.contains_key(&client)
    }

    /// Adds or replaces the entry of this client.
    pub(super) fn insert(&mut self, info: Arc<ClientInfo>) {
        *self.users.entry(info.user.clone()).or_insert(0) += 1;
        if let Some(replaced) = self.clients.insert(info.client, info) {
            self.release_user(&replaced.user);
        }
    }

    /// Says whether there was an entry.
    pub(super) fn remove(&mut self, client: ClientId) -> bool {
        let Some(info) = self.clients.remove(&client) else { return false };
        self.release_user(&info.user);
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
        self.clients.values().cloned().collect()
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
