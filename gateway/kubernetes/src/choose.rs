//! Which pods are published: what was decided, made safe against everything that may have changed since.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::agent::OpenSet;
use crate::pods::Pods;

/// What the choice is made from.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The newest decision that counts in this term of the lease.
    pub decision: Option<&'a OpenSet>,
    /// Since when nothing newer was decided: the age of the decision, or of this node's being the slice writer.
    pub silence: Duration,
    /// Beyond this the silence means that nobody decides.
    pub stale_after: Duration,
    /// All pods that are there.
    pub pods: &'a Pods,
    /// The uids that are published now.
    pub published: &'a BTreeSet<String>,
}

/// The answer, with uids of eligible pods only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// What was decided, less what is not eligible any more.
    Decided(BTreeSet<String>),
    /// Every eligible pod: nobody decides, or nothing of what was decided is left.
    Everyone(BTreeSet<String>),
    /// What is published now, less what is not eligible any more: a new slice writer has just begun, and a decision will
    /// come.
    Inherited(BTreeSet<String>),
    /// No pod is eligible: the slices stay as they are, because an empty set would refuse every connection, and a pod that
    /// is thought dead may still answer.
    Nothing,
}

impl Choice {
    /// The uids to publish; `None`: leave everything as it is.
    pub fn uids(&self) -> Option<&BTreeSet<String>> {
        match self {
            Self::Decided(uids) | Self::Everyone(uids) | Self::Inherited(uids) => Some(uids),
            Self::Nothing => None,
        }
    }
}

/// A function that chooses.
pub type Choose = fn(Question<'_>) -> Choice;

/// The choice of the gateway. Never an empty set, never a pod that is not eligible.
pub fn choose(question: Question<'_>) -> Choice {
    let eligible = |names: &dyn Fn(&str, &str) -> bool| -> BTreeSet<String> {
        let wanted = question.pods.values().filter(|pod| pod.is_eligible() && names(&pod.name, &pod.uid));
        wanted.map(|pod| pod.uid.clone()).collect()
    };
    let everyone = || match eligible(&|_, _| true) {
        uids if uids.is_empty() => Choice::Nothing,
        uids => Choice::Everyone(uids),
    };
    if question.silence > question.stale_after {
        return everyone();
    }
    let narrowed = match question.decision {
        Some(decision) => Choice::Decided(eligible(&|name, _| decision.pods.contains(name))),
        None => Choice::Inherited(eligible(&|_, uid| question.published.contains(uid))),
    };
    if narrowed.uids().is_some_and(BTreeSet::is_empty) { everyone() } else { narrowed }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, btree_set};
    use proptest::prelude::*;

    use super::*;
    use crate::pods::Pod;

    fn pod(name: String, is_ready: bool, is_deleting: bool) -> Pod {
        let v4 = Some([10, 0, 0, 1].into());
        Pod { uid: format!("uid-{name}"), name, v4, is_ready, is_deleting, ..Pod::default() }
    }

    fn pods() -> impl Strategy<Value = Pods> {
        btree_map("[a-f]", any::<(bool, bool)>(), 0..6).prop_map(|flags| {
            let all = flags.into_iter().map(|(name, (is_ready, is_deleting))| pod(name, is_ready, is_deleting));
            all.map(|pod| (pod.uid.clone(), pod)).collect()
        })
    }

    proptest! {
        #[test]
        fn never_empty_never_a_pod_that_is_not_eligible(
            pods in pods(),
            open in proptest::option::of(btree_set("[a-h]", 0..6)),
            published in btree_set("uid-[a-h]", 0..6),
            silence in 0_u64..30,
        ) {
            let decision = open.map(|pods| OpenSet { term: 1, sequence: 1, lease: None, pods });
            let choice = choose(Question {
                decision: decision.as_ref(),
                silence: Duration::from_secs(silence),
                stale_after: Duration::from_secs(15),
                pods: &pods,
                published: &published,
            });
            let eligible: BTreeSet<_> = pods.values().filter(|pod| pod.is_eligible()).map(|pod| pod.uid.clone()).collect();
            match choice.uids() {
                None => prop_assert!(eligible.is_empty()),
                Some(uids) => {
                    prop_assert!(!uids.is_empty());
                    prop_assert!(uids.is_subset(&eligible));
                    if silence > 15 {
                        prop_assert_eq!(uids, &eligible);
                    } else if let Choice::Decided(uids) = &choice {
                        let open = &decision.as_ref().expect("decided").pods;
                        let wanted = pods.values().filter(|pod| pod.is_eligible() && open.contains(&pod.name)).count();
                        prop_assert_eq!(uids.len(), wanted);
                    }
                }
            }
        }
    }

    #[test]
    fn a_new_writer_keeps_what_is_published_until_a_decision_comes_or_does_not() {
        let pods: Pods = ["a", "b"].map(|name| pod(name.into(), true, false)).map(|pod| (pod.uid.clone(), pod)).into();
        let published = BTreeSet::from(["uid-a".to_owned(), "uid-gone".to_owned()]);
        let ask = |silence, decision: Option<&OpenSet>, published: &BTreeSet<String>| {
            let stale_after = Duration::from_secs(15);
            choose(Question { decision, silence: Duration::from_secs(silence), stale_after, pods: &pods, published })
        };
        let all = BTreeSet::from(["uid-a".to_owned(), "uid-b".to_owned()]);
        assert_eq!(ask(0, None, &published), Choice::Inherited(BTreeSet::from(["uid-a".to_owned()])));
        assert_eq!(ask(0, None, &BTreeSet::new()), Choice::Everyone(all.clone()), "the first writer ever");
        assert_eq!(ask(16, None, &published), Choice::Everyone(all.clone()));
        let open = OpenSet { term: 1, sequence: 1, lease: None, pods: BTreeSet::from(["b".to_owned()]) };
        assert_eq!(ask(15, Some(&open), &published), Choice::Decided(BTreeSet::from(["uid-b".to_owned()])));
        assert_eq!(ask(16, Some(&open), &published), Choice::Everyone(all));
    }
}
