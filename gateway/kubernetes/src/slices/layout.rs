//! Spreads endpoints over slices.
//!
//! Every change of a slice is sent to every machine of the cluster, so endpoints stay where they are; newcomers fill
//! slices that change anyway, then those with room; and there are never more slices than needed, so that the many small
//! slices of a shrinking set do not add up.

use std::collections::{BTreeMap, BTreeSet};

/// Slices by their name, each with the keys of its endpoints.
pub type Layout = BTreeMap<String, BTreeSet<String>>;

/// The slices for the endpoints `wanted`, at most `len_max` in each, starting from how they are now. Names of new slices
/// come from `names`, of which there must be enough.
///
/// # Panics
///
/// When `len_max` is 0, or the names come to an end.
pub fn lay_out(
    now: &Layout,
    wanted: &BTreeSet<String>,
    len_max: usize,
    mut names: impl Iterator<Item = String>,
) -> Layout {
    assert!(len_max > 0, "a slice holds something");
    let mut slices = keep(now, wanted, len_max);
    merge(&mut slices, wanted.len().div_ceil(len_max));
    let placed: BTreeSet<&String> = slices.values().flatten().collect();
    let mut homeless: Vec<String> = wanted.iter().filter(|key| !placed.contains(key)).cloned().collect();
    for slice in by_preference(&slices, now) {
        let members = slices.get_mut(&slice).expect("one of them");
        let room = len_max - members.len();
        members.extend(homeless.drain(homeless.len().saturating_sub(room)..));
    }
    while !homeless.is_empty() {
        let free = names.find(|name| !slices.contains_key(name)).expect("enough names");
        slices.insert(free, homeless.drain(homeless.len().saturating_sub(len_max)..).collect());
    }
    slices
}

/// What of each slice stays: every wanted endpoint once, and no more than fit.
fn keep(now: &Layout, wanted: &BTreeSet<String>, len_max: usize) -> Layout {
    let mut placed = BTreeSet::new();
    let mut slices = Layout::new();
    for (slice, members) in now {
        let mut kept = BTreeSet::new();
        for key in members.iter().filter(|key| wanted.contains(*key)) {
            if kept.len() < len_max && placed.insert(key) {
                kept.insert(key.clone());
            }
        }
        slices.insert(slice.clone(), kept);
    }
    slices
}

/// Gives up the smallest slices until there are no more than `needed`; their endpoints go where there is room, as
/// newcomers do.
fn merge(slices: &mut Layout, needed: usize) {
    while slices.len() > needed {
        let smallest = slices.iter().min_by_key(|(_, members)| members.len()).map(|(slice, _)| slice.clone());
        slices.remove(&smallest.expect("more than none"));
    }
}

/// The slices in the order in which they are filled: those that change anyway first, then the fullest.
fn by_preference(slices: &Layout, now: &Layout) -> Vec<String> {
    let mut order: Vec<_> = slices.iter().collect();
    order.sort_by_key(|(slice, members)| (now.get(*slice) == Some(members), usize::MAX - members.len()));
    order.into_iter().map(|(slice, _)| slice.clone()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, btree_set};
    use proptest::prelude::*;

    use super::*;

    fn keys(range: std::ops::Range<usize>) -> BTreeSet<String> {
        range.map(|key| format!("{key:04}")).collect()
    }

    fn names() -> impl Iterator<Item = String> {
        (0..).map(|number| format!("s{number}"))
    }

    fn fresh(wanted: &BTreeSet<String>, len_max: usize) -> Layout {
        lay_out(&Layout::new(), wanted, len_max, names())
    }

    #[test]
    fn two_hundred_and_fifty_are_three_slices() {
        let slices = fresh(&keys(0..250), 100);
        let lens: Vec<_> = slices.values().map(BTreeSet::len).collect();
        assert_eq!(lens, [100, 100, 50]);
        assert_eq!(slices.keys().collect::<Vec<_>>(), ["s0", "s1", "s2"]);
    }

    #[test]
    fn one_pod_more_or_less_changes_one_slice() {
        let before = fresh(&keys(0..250), 100);
        let more = lay_out(&before, &keys(0..251), 100, names());
        let less = lay_out(&before, &keys(1..250), 100, names());
        for after in [more, less] {
            let changed = after.iter().filter(|(slice, members)| before.get(*slice) != Some(members)).count();
            assert_eq!(changed, 1);
        }
    }

    #[test]
    fn a_replaced_pod_goes_where_its_predecessor_left() {
        let before = fresh(&keys(0..250), 100);
        let mut wanted = keys(0..250);
        wanted.remove("0100");
        wanted.insert("new".into());
        let after = lay_out(&before, &wanted, 100, names());
        let changed = after.iter().filter(|(slice, members)| before.get(*slice) != Some(members)).count();
        assert_eq!(changed, 1);
    }

    proptest! {
        #[test]
        fn every_wanted_endpoint_once_in_few_slices_and_none_moves_without_need(
            now in btree_map("[a-e]", btree_set("[a-z]", 0..12), 0..5),
            wanted in btree_set("[a-z]", 0..26),
            len_max in 1_usize..9,
        ) {
            let after = lay_out(&now, &wanted, len_max, names());
            let all: Vec<_> = after.values().flatten().cloned().collect();
            prop_assert_eq!(all.len(), wanted.len(), "each once");
            prop_assert_eq!(&all.into_iter().collect::<BTreeSet<_>>(), &wanted);
            prop_assert_eq!(after.len(), wanted.len().div_ceil(len_max));
            prop_assert!(after.values().all(|members| (1..=len_max).contains(&members.len())));
            let again = lay_out(&after, &wanted, len_max, names());
            prop_assert_eq!(&again, &after, "what is right stays");
            // Whoever stays wanted moves only if its slice goes, is too full, or holds what another has too.
            for (slice, members) in &now {
                let is_single = |key: &&String| now.values().filter(|each| each.contains(*key)).count() == 1;
                let stay: Vec<_> = members.iter().filter(|key| wanted.contains(*key)).filter(is_single).collect();
                if let Some(kept) = after.get(slice).filter(|_| members.len() <= len_max) {
                    prop_assert!(stay.iter().all(|key| kept.contains(*key)));
                }
            }
        }
    }
}
