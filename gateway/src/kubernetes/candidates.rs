//! From what the API server says of pods, and what nodes say of themselves, to candidates for the open set.
//!
//! A node is matched to its pod by name: its report says the name of its pod. An address would not tell more, as a node
//! does not know by which of its addresses the cluster reaches it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kubernetes::Pod;
use kubernetes::pods::Pods;
use placement::{Candidate, Digest, NodeKey, Pause, Peer, Report};

/// The table of reports, and when it was read.
#[derive(Debug, Default)]
pub struct Table {
    read: Option<(Instant, Vec<Peer>)>,
}

impl Table {
    /// Notes the table as it was read now.
    pub fn read(&mut self, now: Instant, peers: Vec<Peer>) {
        self.read = Some((now, peers));
    }

    /// How old it is; `None` before it was read.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.read.as_ref().map(|(at, _)| now.saturating_duration_since(*at))
    }

    /// Connections of all nodes.
    pub fn connections(&self) -> u64 {
        self.peers().iter().map(|peer| peer.report.connections).sum()
    }

    /// The pods that new connections could go to. Counts older than `report_age` are not believed.
    pub fn candidates(
        &self,
        now: Instant,
        pods: &Pods,
        digest: &Digest,
        report_age: Duration,
    ) -> Vec<Candidate<String>> {
        let by_name = self.by_name();
        let table_age = self.age(now).unwrap_or_default();
        // Only while nothing is moved for its sake: if a rollout stands still, as a canary does, the preferred pods would be
        // filled and emptied for ever.
        let is_rollout = digest.pauses.contains(&Pause::Rollout)
            && pods.values().map(|pod| &pod.revision).collect::<BTreeSet<_>>().len() > 1;
        let eligible = pods.values().filter(|pod| pod.is_eligible());
        let candidates = eligible.filter_map(|pod| {
            let peer = by_name.get(pod.name.as_str()).copied();
            let report = peer.map(|peer| &peer.report);
            let is_fresh = peer.is_some_and(|peer| peer.age.saturating_add(table_age) <= report_age);
            if report.is_some_and(|report| !wants(report, is_fresh)) {
                return None;
            }
            let is_newest = is_rollout && !digest.revision.is_empty() && revision(pod, report) == digest.revision;
            Some(Candidate {
                key: pod.name.clone(),
                connections: report.filter(|_| is_fresh).map(|report| report.connections),
                weight: report.map_or(1.0, |report| report.weight),
                has_room: report.is_none_or(|report| report.room != Some(0)),
                is_newest,
                is_retiring: peer.is_some_and(|peer| is_retiring(peer, digest)),
                host: pod.node.clone(),
            })
        });
        candidates.collect()
    }

    /// The names of the pods that go first when the fleet shrinks.
    pub fn retiring(&self, pods: &Pods, digest: &Digest) -> BTreeSet<String> {
        let names: BTreeSet<&str> = pods.values().map(|pod| pod.name.as_str()).collect();
        let ordered = self.peers().iter().filter(|peer| digest.retire.contains(&NodeKey::of(peer.id)));
        ordered.map(|peer| peer.report.name.clone()).filter(|name| names.contains(name.as_str())).collect()
    }

    /// The newest revision while there are several: the one of the pod that was created last. A Deployment that undoes a
    /// rollout creates pods of the older revision, and the ages of nodes would say the other one until its last pod is gone.
    /// `None` where the pods do not tell.
    pub fn newest_revision(&self, pods: &Pods) -> Option<String> {
        let by_name = self.by_name();
        let report_of = |pod: &Pod| by_name.get(pod.name.as_str()).map(|peer| &peer.report);
        let staying = pods.values().filter(|pod| !pod.is_deleting);
        let created: Vec<(i64, &str)> =
            staying.map(|pod| Some((pod.created?, revision(pod, report_of(pod))))).collect::<Option<_>>()?;
        let (last, newest) = created.iter().max()?;
        let has_others = created.iter().any(|(_, revision)| revision != newest);
        // Of two that were created in one second none is the last.
        let is_sole = created.iter().all(|(at, revision)| at != last || revision == newest);
        (has_others && is_sole && !newest.is_empty()).then(|| (*newest).to_owned())
    }

    fn peers(&self) -> &[Peer] {
        self.read.as_ref().map_or(&[], |(_, peers)| peers)
    }

    /// The row of each name. A container that was started again has the name of the one before it, whose last report is
    /// there for a while yet: the younger one counts.
    fn by_name(&self) -> BTreeMap<&str, &Peer> {
        let mut rows: Vec<&Peer> = self.peers().iter().collect();
        rows.sort_by_key(|peer| std::cmp::Reverse(peer.age));
        rows.into_iter().map(|peer| (peer.report.name.as_str(), peer)).collect()
    }
}

/// Whether a node takes new connections by its own word, which is some seconds ahead of what its pod shows. Who drains
/// does not come back; who is not ready may be by now.
fn wants(report: &Report, is_fresh: bool) -> bool {
    !report.draining && (report.ready || !is_fresh)
}

fn is_retiring(peer: &Peer, digest: &Digest) -> bool {
    peer.report.retiring || digest.retire.contains(&NodeKey::of(peer.id))
}

/// What the node says, since the newest revision is known in these words; else the label of the pod.
fn revision<'a>(pod: &'a Pod, report: Option<&'a Report>) -> &'a str {
    let said = report.map(|report| report.revision.as_str()).filter(|revision| !revision.is_empty());
    said.or(pod.revision.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use backplane::NodeId;
    use uuid::Uuid;

    use super::*;

    const REPORT_AGE: Duration = Duration::from_secs(3);

    fn pod(name: &str) -> Pod {
        Pod {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            v4: Some([10, 0, 0, 1].into()),
            is_ready: true,
            node: Some("machine-1".to_owned()),
            ..Pod::default()
        }
    }

    fn pods(all: impl IntoIterator<Item = Pod>) -> Pods {
        all.into_iter().map(|pod| (pod.uid.clone(), pod)).collect()
    }

    fn peer(number: u128, name: &str, age: u64, change: impl FnOnce(&mut Report)) -> Peer {
        let mut report = Report { ready: true, ..Report::new(name, "1") };
        change(&mut report);
        Peer { id: NodeId(Uuid::from_u128(number << 80)), age: Duration::from_secs(age), report }
    }

    fn table(at: Instant, peers: Vec<Peer>) -> Table {
        let mut table = Table::default();
        table.read(at, peers);
        table
    }

    #[test]
    fn pods_get_the_counts_that_their_nodes_report_and_old_ones_are_not_believed() {
        let now = Instant::now();
        let counted = |report: &mut Report| report.connections = 7;
        let rows = vec![peer(1, "a", 1, counted), peer(2, "b", 4, counted), peer(4, "no-pod", 0, counted)];
        let table = table(now, rows);
        let pods = pods([pod("a"), pod("b"), pod("c")]);
        let digest = Digest::empty(1, 1);
        let seen = |now| {
            let candidates = table.candidates(now, &pods, &digest, REPORT_AGE);
            candidates.into_iter().map(|each| (each.key, each.connections)).collect::<Vec<_>>()
        };
        assert_eq!(seen(now), [("a".into(), Some(7)), ("b".into(), None), ("c".into(), None)]);
        assert_eq!(seen(now + Duration::from_secs(3))[0], ("a".into(), None), "the table grows old too");
        assert_eq!(table.connections(), 21, "of all nodes, whoever they are");
    }

    #[test]
    fn who_is_not_ready_drains_or_cannot_be_reached_is_no_candidate() {
        let now = Instant::now();
        let rows = vec![
            peer(1, "draining", 9, |report| report.draining = true),
            peer(2, "starting", 1, |report| report.ready = false),
            peer(3, "was-starting", 9, |report| report.ready = false),
        ];
        let table = table(now, rows);
        let unready = Pod { is_ready: false, ..pod("unready") };
        let pods = pods([pod("draining"), pod("starting"), pod("was-starting"), unready]);
        let candidates = table.candidates(now, &pods, &Digest::empty(1, 1), REPORT_AGE);
        let names: Vec<_> = candidates.iter().map(|each| each.key.as_str()).collect();
        assert_eq!(names, ["was-starting"]);
    }

    #[test]
    fn room_weight_machine_and_orders_are_taken_over() {
        let now = Instant::now();
        let rows = vec![
            peer(1, "a", 0, |report| (report.room, report.weight) = (Some(0), 2.0)),
            peer(2, "b", 0, |report| report.retiring = true),
            peer(3, "c", 0, |_| ()),
        ];
        let digest = Digest { retire: vec![NodeKey::of(rows[2].id)], ..Digest::empty(1, 1) };
        let table = table(now, rows);
        let pods = pods([pod("a"), pod("b"), pod("c")]);
        let candidates = table.candidates(now, &pods, &digest, REPORT_AGE);
        let seen: Vec<_> = candidates.iter().map(|each| (each.has_room, each.weight, each.is_retiring)).collect();
        assert_eq!(seen, [(false, 2.0, false), (true, 1.0, true), (true, 1.0, true)]);
        assert_eq!(candidates[0].host.as_deref(), Some("machine-1"));
        assert_eq!(table.retiring(&pods, &digest), BTreeSet::from(["c".to_owned()]), "an order that is in force");
    }

    #[test]
    fn in_a_rollout_pods_of_the_newest_revision_are_told() {
        let now = Instant::now();
        let of = |name: &str, revision: &str| Pod { revision: Some(revision.to_owned()), ..pod(name) };
        let table = table(now, vec![peer(2, "new-by-itself", 0, |report| report.revision = "r2".into())]);
        let digest = Digest { revision: "r2".into(), pauses: vec![Pause::Rollout], ..Digest::empty(1, 1) };
        let newest_by = |all: Vec<Pod>, digest: &Digest| {
            let candidates = table.candidates(now, &pods(all), digest, REPORT_AGE);
            candidates.into_iter().filter(|each| each.is_newest).map(|each| each.key).collect::<Vec<_>>()
        };
        let newest = |all: Vec<Pod>| newest_by(all, &digest);
        let all = || vec![of("a", "r1"), of("b", "r2"), of("new-by-itself", "r2")];
        assert_eq!(newest(all()), ["b", "new-by-itself"]);
        let still = Digest { pauses: Vec::new(), ..digest.clone() };
        assert!(newest_by(all(), &still).is_empty(), "a rollout that stands still is none");
        assert!(newest(vec![of("b", "r2")]).is_empty(), "there is only one revision");
    }

    #[test]
    fn the_newest_revision_is_that_of_the_pod_created_last_also_when_a_rollout_is_undone() {
        let of = |name: &str, revision: &str, created| Pod {
            revision: Some(revision.to_owned()),
            created: Some(created),
            ..pod(name)
        };
        let newest = |all: Vec<Pod>| Table::default().newest_revision(&pods(all));
        let rollout = || vec![of("a", "r1", 10), of("b", "r1", 11), of("c", "r2", 90)];
        assert_eq!(newest(rollout()).as_deref(), Some("r2"));
        let mut undone = rollout();
        undone.push(of("d", "r1", 95));
        assert_eq!(newest(undone).as_deref(), Some("r1"));
        let leaving = Pod { is_deleting: true, ..of("c", "r2", 90) };
        assert_eq!(newest(vec![of("a", "r1", 10), leaving]), None, "there is only one revision");
        assert_eq!(newest(vec![of("a", "r1", 90), of("b", "r2", 90)]), None);
        assert_eq!(newest(vec![of("a", "r1", 10), Pod { created: None, ..of("b", "r2", 90) }]), None);
        assert_eq!(newest(Vec::new()), None);
        let named = table(Instant::now(), vec![peer(1, "c", 0, |report| report.revision = "v7".into())]);
        assert_eq!(named.newest_revision(&pods(rollout())).as_deref(), Some("v7"), "as the nodes call it");
    }

    #[test]
    fn a_container_that_was_started_again_counts_by_its_younger_report() {
        let now = Instant::now();
        let rows = vec![
            peer(1, "a", 0, |report| report.connections = 1),
            peer(2, "a", 9, |report| (report.connections, report.draining) = (500, true)),
        ];
        let candidates = table(now, rows).candidates(now, &pods([pod("a")]), &Digest::empty(1, 1), REPORT_AGE);
        assert_eq!(candidates[0].connections, Some(1));
    }
}
