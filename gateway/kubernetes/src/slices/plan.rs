//! What to write and what to delete, so that the slices become what is wanted.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::{self, Layout};
use super::{Endpoint, Endpoints, Family, Frame};
use crate::pods::Pods;

/// A slice as the API server has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Existing {
    /// Its name.
    pub name: String,
    /// Its uid: a slice that was made again under the same name is another one.
    pub uid: String,
    /// Its version: a write that was decided from another one is refused.
    pub version: String,
    /// The family of its addresses; `None` for one that the gateway does not write.
    pub family: Option<Family>,
    /// What it has in common with the others; `None` if it is not as the gateway writes it.
    pub frame: Option<Frame>,
    /// The term of its last writer; 0 if it does not say.
    pub term: u32,
    /// Its endpoints; what cannot be read is left out, and then `is_whole` is false.
    pub endpoints: Endpoints,
    /// Every endpoint was read and is open.
    pub is_whole: bool,
}

/// One call to the API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Make a slice that is not there.
    Create(Target),
    /// Change one, if it is still the one that was seen.
    Apply {
        /// The version that was seen.
        version: String,
        /// What it becomes.
        target: Target,
    },
    /// Remove one, if it is still the one that was seen.
    Delete {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
        /// The version that was seen.
        version: String,
    },
}

/// A slice to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// The family of its addresses.
    pub family: Family,
    /// Its endpoints.
    pub endpoints: Endpoints,
}

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What all slices have in common.
    pub frame: &'a Frame,
    /// The families that the Service has.
    pub families: &'a [Family],
    /// All pods.
    pub pods: &'a Pods,
    /// The uids of those that are published.
    pub open: &'a BTreeSet<String>,
    /// The largest slice.
    pub len_max: usize,
}

/// The steps from `existing` to `wanted`; none if nothing differs. At no point between them is an endpoint missing that is
/// there before and after.
pub fn plan(existing: &[Existing], wanted: Wanted<'_>) -> Vec<Step> {
    let mut targets: BTreeMap<String, Target> = BTreeMap::new();
    for &family in wanted.families {
        let open = wanted.open.iter().filter_map(|uid| wanted.pods.get(uid));
        let endpoints: Endpoints = open.filter_map(|pod| Some((pod.uid.clone(), Endpoint::of(pod, family)?))).collect();
        let now: Layout = existing.iter().filter(|slice| slice.family == Some(family)).map(members).collect();
        // A name is also taken by a slice that is of no use and will be deleted: the family of a slice never changes.
        let is_free = |name: &String| existing.iter().all(|slice| slice.name != *name);
        let names = (0..).map(|number| slice_name(&wanted.frame.service, family, number)).filter(is_free);
        let keys = endpoints.keys().cloned().collect();
        for (name, members) in layout::lay_out(&now, &keys, wanted.len_max, names) {
            let endpoints = members.into_iter().filter_map(|uid| Some((uid.clone(), endpoints.get(&uid)?.clone())));
            targets.insert(name.clone(), Target { name, family, endpoints: endpoints.collect() });
        }
    }
    in_order(existing, targets, wanted.frame)
}

fn members(slice: &Existing) -> (String, BTreeSet<String>) {
    (slice.name.clone(), slice.endpoints.keys().cloned().collect())
}

/// The name of a slice.
fn slice_name(service: &str, family: Family, number: usize) -> String {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("{service}-open-{family}-{number}")
}

/// Slices that take endpoints over from others come first, those that give endpoints away after them, and last those that
/// go.
fn in_order(existing: &[Existing], mut targets: BTreeMap<String, Target>, frame: &Frame) -> Vec<Step> {
    let homes: BTreeMap<(Family, String), String> = targets.values().flat_map(homes).collect();
    // Given away is what stays, and is not yet where it will be.
    let is_given = |from: &Existing, family: Family, uid: &String| {
        let home = homes.get(&(family, uid.clone())).filter(|home| **home != from.name);
        home.is_some_and(|home| !existing.iter().any(|slice| slice.name == *home && slice.endpoints.contains_key(uid)))
    };
    let (mut taking, mut giving, mut going) = (Vec::new(), Vec::new(), Vec::new());
    for slice in existing {
        let Some(target) = targets.remove(&slice.name) else {
            let (name, uid, version) = (slice.name.clone(), slice.uid.clone(), slice.version.clone());
            going.push(Step::Delete { name, uid, version });
            continue;
        };
        if slice.is_whole && slice.frame.as_ref() == Some(frame) && slice.endpoints == target.endpoints {
            continue;
        }
        let gives = slice.endpoints.keys().any(|uid| is_given(slice, target.family, uid));
        let step = Step::Apply { version: slice.version.clone(), target };
        if gives { giving.push(step) } else { taking.push(step) }
    }
    let created = targets.into_values().map(Step::Create);
    created.chain(taking).chain(giving).chain(going).collect()
}

fn homes(target: &Target) -> impl Iterator<Item = ((Family, String), String)> {
    target.endpoints.keys().map(|uid| ((target.family, uid.clone()), target.name.clone()))
}

#[cfg(test)]
mod tests;
