//! What the writer of the slices decides, second by second: a pure function of what it sees and of the time.

use std::collections::BTreeSet;
use std::time::Instant;

use kubernetes::{Outlook, State};
use placement::open_set::{Decision, Input};
use placement::{Digest, OpenSet, OpenSetSettings};

use super::candidates::Table;

/// What is remembered from one second to the next.
#[derive(Debug)]
pub struct Writing {
    settings: OpenSetSettings,
    tenure: Option<Tenure>,
}

/// The same within one term of the lease.
#[derive(Debug)]
struct Tenure {
    term: u32,
    set: OpenSet<String>,
    wanted: Option<Wanted>,
}

/// What was decided, and from which digest: term and sequence.
#[derive(Debug)]
struct Wanted {
    members: BTreeSet<String>,
    since: (u64, u64),
}

impl Writing {
    /// Nothing was decided yet.
    pub fn new(settings: OpenSetSettings) -> Self {
        Self { settings, tenure: None }
    }

    /// The set that is to be written, or kept; `None` when this node is not the writer, or no pod is ready. A decision is
    /// handed over with each digest, since one that is not repeated counts no more after a while.
    pub fn decide(
        &mut self,
        now: Instant,
        outlook: &Outlook,
        table: &Table,
        digest: &Digest,
    ) -> Option<kubernetes::OpenSet> {
        let (State::Writer { term }, Some(pods)) = (&outlook.state, &outlook.pods) else {
            self.tenure = None;
            return None;
        };
        let table_age = table.age(now)?;
        let tenure = match &mut self.tenure {
            Some(tenure) if tenure.term == *term => tenure,
            other => other.insert(Tenure::begin(*term, &self.settings, outlook)),
        };
        tenure.note_written(outlook);
        let candidates = table.candidates(now, pods, digest, self.settings.report_age);
        let (connections, arrivals) = (table.connections(), digest.arrivals);
        let input = Input { candidates: &candidates, connections, arrivals, table_age };
        let from = (digest.term, digest.sequence);
        if let Decision::Write { members, cause, shape } = tenure.set.decide(now, &input) {
            tracing::debug!(open = members.len(), of = candidates.len(), ?cause, ?shape, "the open set is decided");
            tenure.wanted = Some(Wanted { members, since: from });
        }
        let pods = tenure.wanted.as_ref()?.members.clone();
        Some(kubernetes::OpenSet { term: from.0, sequence: from.1, lease: Some(*term), pods })
    }
}

impl Tenure {
    /// Goes on from what is published.
    fn begin(term: u32, settings: &OpenSetSettings, outlook: &Outlook) -> Self {
        let mut set = OpenSet::new(settings.clone());
        let pods = outlook.pods.iter().flat_map(|pods| pods.iter());
        set.adopt(pods.filter(|(uid, _)| outlook.open.contains(*uid)).map(|(_, pod)| pod.name.clone()).collect());
        Self { term, set, wanted: None }
    }

    /// What is wanted is confirmed once the slices follow a decision that is not older.
    fn note_written(&mut self, outlook: &Outlook) {
        let (Some(wanted), Some(at)) = (&self.wanted, outlook.last_write) else { return };
        if outlook.decision.is_some_and(|followed| followed >= wanted.since) {
            self.set.confirmed(at, wanted.members.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use backplane::NodeId;
    use kubernetes::Pod;
    use kubernetes::pods::Pods;
    use placement::{Peer, Report};
    use uuid::Uuid;

    use super::*;

    fn pods(names: &[&str]) -> Arc<Pods> {
        let pod = |name: &&str| Pod {
            name: (*name).to_owned(),
            uid: format!("uid-{name}"),
            v4: Some([10, 0, 0, 1].into()),
            is_ready: true,
            ..Pod::default()
        };
        Arc::new(names.iter().map(pod).map(|pod| (pod.uid.clone(), pod)).collect())
    }

    fn table(now: Instant, counts: &[(&str, u64)]) -> Table {
        let peers = counts.iter().enumerate().map(|(number, (name, connections))| Peer {
            id: NodeId(Uuid::from_u128((number as u128) << 80)),
            age: Duration::ZERO,
            report: Report { ready: true, connections: *connections, ..Report::new(name, "1") },
        });
        let mut table = Table::default();
        table.read(now, peers.collect());
        table
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn writer(term: u32, names: &[&str]) -> Outlook {
        Outlook { state: State::Writer { term }, pods: Some(pods(names)), ..Outlook::default() }
    }

    const ALL: [&str; 5] = ["a", "b", "c", "d", "e"];

    #[test]
    fn only_the_writer_decides_and_repeats_what_it_decided_with_each_digest() {
        let now = Instant::now();
        let counts = [("a", 100), ("b", 100), ("c", 100), ("d", 3), ("e", 1)];
        let mut writing = Writing::new(OpenSetSettings::default());
        let standby = Outlook { state: State::Standby, ..writer(1, &ALL) };
        assert_eq!(writing.decide(now, &standby, &table(now, &counts), &Digest::empty(4, 1)), None);
        let outlook = writer(1, &ALL);
        let first = writing.decide(now, &outlook, &table(now, &counts), &Digest::empty(4, 2)).expect("a decision");
        assert_eq!((first.term, first.sequence, &first.pods), (4, 2, &names(&["d", "e"])));
        assert_eq!(first.lease, Some(1), "it counts in this term of the lease only");
        // It is written. Another set would be better now, but that must wait.
        let outlook = Outlook { last_write: Some(now), decision: Some((4, 2)), ..outlook };
        let second = now + Duration::from_secs(1);
        let turned = [("a", 1), ("b", 2), ("c", 100), ("d", 103), ("e", 101)];
        let kept = writing.decide(second, &outlook, &table(second, &turned), &Digest::empty(4, 3)).expect("a decision");
        assert_eq!((kept.sequence, &kept.pods), (3, &first.pods));
        let later = now + Duration::from_secs(5);
        let next = writing.decide(later, &outlook, &table(later, &turned), &Digest::empty(4, 7)).expect("a decision");
        assert_eq!(next.pods, names(&["a", "b"]));
    }

    #[test]
    fn a_set_counts_as_written_once_the_slices_follow_it() {
        let now = Instant::now();
        let counts = [("a", 100), ("b", 100), ("c", 100), ("d", 3), ("e", 1)];
        let mut writing = Writing::new(OpenSetSettings::default());
        writing.decide(now, &writer(1, &ALL), &table(now, &counts), &Digest::empty(4, 2));
        let written = |writing: &Writing| writing.tenure.as_ref().and_then(|tenure| tenure.set.written_at());
        let mut outlook = Outlook { last_write: Some(now), decision: Some((4, 1)), ..writer(1, &ALL) };
        writing.decide(now, &outlook, &table(now, &counts), &Digest::empty(4, 3));
        assert_eq!(written(&writing), None, "they follow an older decision");
        outlook.decision = Some((4, 3));
        writing.decide(now, &outlook, &table(now, &counts), &Digest::empty(4, 4));
        assert_eq!(written(&writing), Some(now));
    }

    #[test]
    fn a_new_term_goes_on_from_what_is_published() {
        let now = Instant::now();
        // All but level: members within the hysteresis stay open.
        let counts = [("a", 100), ("b", 101), ("c", 102), ("d", 300), ("e", 300)];
        let mut writing = Writing::new(OpenSetSettings::default());
        let outlook = Outlook { open: Arc::new(["uid-c".to_owned()].into()), ..writer(7, &ALL) };
        let set = writing.decide(now, &outlook, &table(now, &counts), &Digest::empty(1, 1)).expect("a decision");
        assert_eq!(set.pods, names(&["a", "b", "c"]));
    }

    #[test]
    fn without_a_table_or_a_ready_pod_nothing_is_decided() {
        let now = Instant::now();
        let mut writing = Writing::new(OpenSetSettings::default());
        assert_eq!(writing.decide(now, &writer(1, &ALL), &Table::default(), &Digest::empty(1, 1)), None);
        assert_eq!(writing.decide(now, &writer(1, &[]), &table(now, &[]), &Digest::empty(1, 1)), None);
    }
}
