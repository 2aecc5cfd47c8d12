//! Connections by user, for the server API.

use std::collections::{HashMap, HashSet};

use backplane::UserId;
use smallvec::SmallVec;

/// Above this many connections a user's list becomes a set: the anonymous bucket can hold them all.
const LIST_MAX: usize = 16;

/// Which connections of this shard belong to which user.
#[derive(Debug, Default)]
pub(super) struct Users {
    users: HashMap<UserId, Connections>,
}

#[derive(Debug)]
enum Connections {
    List(SmallVec<[u32; 4]>),
    Set(HashSet<u32>),
}

impl Users {
    pub fn insert(&mut self, user: &UserId, connection: u32) {
        match self.users.get_mut(user) {
            None => {
                self.users.insert(user.clone(), Connections::List(SmallVec::from_slice(&[connection])));
            }
            Some(Connections::Set(set)) => {
                set.insert(connection);
            }
            Some(entry) => {
                let Connections::List(list) = entry else { return };
                list.push(connection);
                if list.len() > LIST_MAX {
                    *entry = Connections::Set(list.iter().copied().collect());
                }
            }
        }
    }

    pub fn remove(&mut self, user: &UserId, connection: u32) {
        let Some(entry) = self.users.get_mut(user) else { return };
        let empty = match entry {
            Connections::List(list) => {
                list.retain(|other| *other != connection);
                list.is_empty()
            }
            Connections::Set(set) => {
                set.remove(&connection);
                if set.capacity() > 1024 && set.len() < set.capacity() / 4 {
                    set.shrink_to(set.len() * 2);
                }
                set.is_empty()
            }
        };
        if empty {
            self.users.remove(user);
            if self.users.capacity() > 1024 && self.users.len() < self.users.capacity() / 4 {
                self.users.shrink_to(self.users.len() * 2);
            }
        }
    }

    /// The connections of a user, as a copy: acting on one may change the index.
    pub fn connections(&self, user: &UserId) -> Vec<u32> {
        match self.users.get(user) {
            None => Vec::new(),
            Some(Connections::List(list)) => list.to_vec(),
            Some(Connections::Set(set)) => set.iter().copied().collect(),
        }
    }

    /// Every user with a connection here.
    pub fn ids(&self) -> impl Iterator<Item = &UserId> {
        self.users.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_under_one_user_is_removed_one_by_one() {
        let mut users = Users::default();
        let anonymous = UserId::from("");
        for connection in 0..5_000 {
            users.insert(&anonymous, connection);
        }
        users.insert(&UserId::from("u"), 9_999);
        assert_eq!(users.connections(&anonymous).len(), 5_000);
        for connection in 0..5_000 {
            users.remove(&anonymous, connection);
        }
        assert!(users.connections(&anonymous).is_empty());
        assert_eq!(users.connections(&UserId::from("u")), [9_999]);
        assert_eq!(users.ids().count(), 1);
    }
}
