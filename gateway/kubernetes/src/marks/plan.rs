//! Which marks to set and which to remove.

use std::collections::BTreeSet;

use super::COST;
use crate::pods::Pods;

/// Pods changed in one go: a scale-down takes a few of them at a time, and each is a write that many watch.
pub const STEPS_MAX: usize = 50;

/// One pod to be changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its name.
    pub pod: String,
    /// Its uid: a successor of the same name is not meant.
    pub uid: String,
    /// What to do with it.
    pub change: Change,
}

/// A change of the marks of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It is to go first.
    Set,
    /// It is not to go first any more.
    Remove,
    /// The same, but somebody has changed the cost, which stays as it is.
    Forget,
}

/// The steps that leave the marks on just the pods `wanted`, by name; at most [`STEPS_MAX`], the rest later.
pub fn plan(pods: &Pods, wanted: &BTreeSet<String>) -> Vec<Step> {
    let lasting = pods.values().filter(|pod| !pod.is_deleting);
    let steps = lasting.filter_map(|pod| {
        let is_ours = pod.deletion_cost.as_deref() == Some(COST);
        let change = match (wanted.contains(&pod.name), pod.is_marked, &pod.deletion_cost) {
            (true, true, _) if !is_ours => Change::Set,
            (true, false, None) => Change::Set,
            (false, true, _) => {
                if is_ours {
                    Change::Remove
                } else {
                    Change::Forget
                }
            }
            (true, true, _) | (true, false, Some(_)) | (false, false, _) => return None,
        };
        Some(Step { pod: pod.name.clone(), uid: pod.uid.clone(), change })
    });
    steps.take(STEPS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pods::Pod;

    fn carry_out(pods: &mut Pods, steps: &[Step]) {
        for step in steps {
            let pod = pods.get_mut(&step.uid).expect("a pod that is there");
            match step.change {
                Change::Set => (pod.is_marked, pod.deletion_cost) = (true, Some(COST.to_owned())),
                Change::Remove => (pod.is_marked, pod.deletion_cost) = (false, None),
                Change::Forget => pod.is_marked = false,
            }
        }
    }

    fn pods() -> impl Strategy<Value = Pods> {
        let cost = proptest::option::of(prop_oneof![Just(COST), Just("7")]);
        proptest::collection::btree_map("[a-f]", (any::<bool>(), any::<bool>(), cost), 0..6).prop_map(|all| {
            let pods = all.into_iter().map(|(name, (is_marked, is_deleting, cost))| {
                let (uid, deletion_cost) = (format!("u-{name}"), cost.map(str::to_owned));
                (uid.clone(), Pod { name, uid, is_marked, is_deleting, deletion_cost, ..Pod::default() })
            });
            pods.collect()
        })
    }

    proptest! {
        #[test]
        fn afterwards_just_the_wanted_bear_the_mark_and_costs_of_others_stay(
            before in pods(),
            wanted in proptest::collection::btree_set("[a-f]", 0..6),
        ) {
            let mut after = before.clone();
            carry_out(&mut after, &plan(&before, &wanted));
            prop_assert_eq!(plan(&after, &wanted), [], "done is done");
            for (uid, pod) in &after {
                let was = &before[uid];
                let is_foreign = !was.is_marked && was.deletion_cost.is_some();
                if was.is_deleting || is_foreign {
                    prop_assert_eq!(pod, was);
                } else {
                    prop_assert_eq!(pod.is_marked, wanted.contains(&pod.name));
                    prop_assert_eq!(pod.is_marked, pod.is_marked && pod.deletion_cost.as_deref() == Some(COST));
                }
            }
        }
    }

    #[test]
    fn many_marks_are_set_a_few_at_a_time() {
        let pods: Pods = (0..80)
            .map(|number| {
                let uid = format!("u{number}");
                (uid.clone(), Pod { name: format!("p{number}"), uid, ..Pod::default() })
            })
            .collect();
        let wanted = pods.values().map(|pod| pod.name.clone()).collect();
        assert_eq!(plan(&pods, &wanted).len(), STEPS_MAX);
    }
}
