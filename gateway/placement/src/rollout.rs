//! Whether nodes are being replaced by nodes of another revision, and which revision is the newest.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::report::Peer;

/// Watches the revisions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rollout {
    /// How many nodes there are of each revision; nodes that name none are all of the same, unknown one.
    counts: BTreeMap<String, usize>,
    changed_at: Option<Instant>,
}

impl Rollout {
    /// Whether a rollout is under way: there is more than one revision, and something about that has changed within
    /// `quiet`. One that stands still for longer, like a canary that is left for a day, keeps nobody from moving.
    pub(crate) fn tick(&mut self, now: Instant, peers: &[Peer], quiet: Duration) -> bool {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for peer in peers {
            *counts.entry(&peer.report.revision).or_default() += 1;
        }
        let known = self.counts.iter().map(|(revision, count)| (revision.as_str(), *count));
        if !known.eq(counts.iter().map(|(revision, count)| (*revision, *count))) {
            self.counts = counts.into_iter().map(|(revision, count)| (revision.to_owned(), count)).collect();
            self.changed_at = Some(now);
        }
        let is_quiet = self.changed_at.is_none_or(|at| now.saturating_duration_since(at) >= quiet);
        self.counts.len() > 1 && !is_quiet
    }
}

/// The newest revision: the one that a node names which knows, if there is a node of it, or else the one whose oldest
/// node is the youngest. Empty if no node has one.
pub(crate) fn newest(peers: &[Peer]) -> &str {
    let told = peers.iter().filter(|peer| peer.report.newest_revision.is_some()).min_by_key(|peer| (peer.age, peer.id));
    let told = told.and_then(|peer| peer.report.newest_revision.as_deref());
    if let Some(revision) = told.filter(|told| peers.iter().any(|peer| peer.report.revision == *told)) {
        return revision;
    }
    let mut oldest: BTreeMap<&str, u64> = BTreeMap::new();
    for peer in peers.iter().filter(|peer| !peer.report.revision.is_empty()) {
        let age = oldest.entry(peer.report.revision.as_str()).or_default();
        *age = peer.report.uptime_s.max(*age);
    }
    oldest.into_iter().min_by_key(|(_, age)| *age).map_or("", |(revision, _)| revision)
}

#[cfg(test)]
mod tests {
    use backplane::NodeId;
    use uuid::Uuid;

    use super::*;
    use crate::report::Report;

    fn peers(all: &[(&str, u64)]) -> Vec<Peer> {
        let nodes = all.iter().enumerate();
        nodes
            .map(|(index, &(revision, uptime_s))| Peer {
                id: NodeId(Uuid::from_u128(index as u128)),
                age: Duration::ZERO,
                report: Report { revision: revision.to_owned(), uptime_s, ready: true, ..Report::new("n", "1") },
            })
            .collect()
    }

    #[test]
    fn the_newest_revision_is_the_one_that_began_last() {
        assert_eq!(newest(&peers(&[])), "");
        assert_eq!(newest(&peers(&[("", 5)])), "");
        // The youngest node of all is one of the old revision that was restarted.
        assert_eq!(newest(&peers(&[("a", 900), ("a", 5), ("b", 60), ("b", 30)])), "b");
        let mut told = peers(&[("a", 900), ("b", 60)]);
        told[0].report.newest_revision = Some("a".to_owned());
        assert_eq!(newest(&told), "a");
        told[0].report.newest_revision = Some("gone".to_owned());
        assert_eq!(newest(&told), "b");
    }

    #[test]
    fn a_rollout_ends_with_one_revision_or_when_it_stands_still() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let quiet = Duration::from_secs(600);
        let mut rollout = Rollout::default();
        assert!(!rollout.tick(at(0), &peers(&[("a", 1), ("a", 1)]), quiet));
        assert!(rollout.tick(at(1), &peers(&[("a", 1), ("a", 1), ("b", 1)]), quiet));
        assert!(rollout.tick(at(600), &peers(&[("a", 1), ("a", 1), ("b", 1)]), quiet));
        assert!(!rollout.tick(at(601), &peers(&[("a", 1), ("a", 1), ("b", 1)]), quiet));
        assert!(rollout.tick(at(602), &peers(&[("a", 1), ("b", 1)]), quiet));
        assert!(!rollout.tick(at(603), &peers(&[("b", 1)]), quiet));
    }
}
