//! The objects and their history.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

use crate::apply::Fields;

/// How many changes a watch can go back. A real server keeps minutes; few are enough to go through the same motions.
const HISTORY_LEN: usize = 2_000;

/// Which object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    /// The plural of its kind.
    pub resource: String,
    /// Where it is.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A change of an object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) key: Key,
    /// What it was; nothing if it was made.
    pub(crate) before: Option<Value>,
    /// What it is, or was at last, if it is gone.
    pub(crate) after: Value,
    pub(crate) is_deletion: bool,
}

/// An object, and who has set which of its fields.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) object: Value,
    pub(crate) fields: Fields,
}

/// All objects.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<Key, Entry>,
    version: u64,
    uids: u64,
    history: VecDeque<Change>,
    forgotten: u64,
}

impl Store {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn entry(&self, key: &Key) -> Option<&Entry> {
        self.objects.get(key)
    }

    /// All objects of a kind in a namespace.
    pub(crate) fn all<'a>(&'a self, resource: &'a str, namespace: &'a str) -> impl Iterator<Item = &'a Value> + 'a {
        let is_meant = move |key: &Key| key.resource == resource && key.namespace == namespace;
        self.objects.iter().filter(move |(key, _)| is_meant(key)).map(|(_, entry)| &entry.object)
    }

    /// Stores the object under the next version, unless nothing has changed. Gives back what is stored.
    pub(crate) fn put(&mut self, key: &Key, mut entry: Entry) -> Value {
        let before = self.objects.get(key).map(|entry| entry.object.clone());
        let meta = &mut entry.object["metadata"];
        match &before {
            Some(before) => {
                meta["uid"] = before["metadata"]["uid"].clone();
                meta["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            }
            None => {
                self.uids += 1;
                meta["uid"] = json!(format!("00000000-0000-4000-8000-{:012}", self.uids));
            }
        }
        meta["name"] = json!(key.name);
        meta["namespace"] = json!(key.namespace);
        if before.as_ref() != Some(&entry.object) {
            self.version += 1;
            entry.object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.remember(key, before, entry.object.clone(), false);
        }
        let stored = entry.object.clone();
        self.objects.insert(key.clone(), entry);
        stored
    }

    /// Removes the object, and what belongs to it.
    pub(crate) fn remove(&mut self, key: &Key) {
        let Some(entry) = self.objects.remove(key) else { return };
        self.version += 1;
        let uid = entry.object["metadata"]["uid"].clone();
        let mut last = entry.object.clone();
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.remember(key, Some(entry.object), last, true);
        let belongs = |object: &Value| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == uid))
        };
        let orphans = self.objects.iter().filter(|(_, entry)| belongs(&entry.object)).map(|(key, _)| key.clone());
        for orphan in orphans.collect::<Vec<_>>() {
            self.remove(&orphan);
        }
    }

    fn remember(&mut self, key: &Key, before: Option<Value>, after: Value, is_deletion: bool) {
        let change = Change { version: self.version, key: key.clone(), before, after, is_deletion };
        self.history.push_back(change);
        if self.history.len() > HISTORY_LEN {
            self.forgotten = self.history.pop_front().map_or(self.forgotten, |change| change.version);
        }
    }

    /// What has changed since a version; nothing if that is too long ago to know.
    pub(crate) fn since(&self, version: u64) -> Option<impl Iterator<Item = &Change>> {
        (version >= self.forgotten).then(|| self.history.iter().filter(move |change| change.version > version))
    }

    /// From now on, no watch can go back.
    pub(crate) fn forget(&mut self) {
        self.history.clear();
        self.version += 1;
        self.forgotten = self.version;
    }
}
