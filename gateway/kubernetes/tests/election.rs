//! One node writes at a time.

mod cluster;

use std::time::Duration;

use apiserver::Call;
use cluster::{Cluster, DEADLINE, HERE, names, open, sees};
use kubernetes::{OpenSet, Outlook, Role, State};
use serde_json::json;

#[tokio::test]
async fn another_candidate_takes_over_when_the_writer_dies() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..4);
    let first = cluster.candidate("first");
    first.decide(open(1, [1]));
    cluster.until_published(&names([1])).await;
    let second = cluster.candidate("second");
    second.decide(open(1, [2]));
    sees(&second, "that another one writes", |seen| seen.state == State::Standby).await;
    let term = cluster.term().expect("one term");
    drop(first);
    sees(&second, "that it writes", Outlook::is_writer).await;
    let calls = cluster.server.calls();
    let is_renewal = |call: &&Call| call.resource == "leases" && call.user == "first" && call.verb != "get";
    let renewed = calls.iter().rfind(|call| is_renewal(call) && call.code < 300).expect("the first one held the lease");
    assert!(renewed.at.elapsed() >= Duration::from_secs(3), "the lease of the dead had to run out");
    cluster.until_published(&names([2])).await;
    cluster.server.until("a higher term", DEADLINE, |_| cluster.term().is_some_and(|now| now > term)).await;
}

#[tokio::test]
async fn a_writer_that_leaves_hands_over_without_a_wait() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..2);
    let slow = |settings: &mut kubernetes::Settings| {
        settings.timing.duration = Duration::from_secs(60);
        settings.timing.deadline = Duration::from_secs(40);
        settings.timing.call_timeout = Duration::from_secs(15);
    };
    let first = cluster.agent("first", slow);
    first.set_role(Role::Candidate);
    sees(&first, "that it writes", Outlook::is_writer).await;
    first.shutdown().await;
    assert_eq!(cluster.holder(), None, "released");
    let second = cluster.agent("second", slow);
    second.set_role(Role::Candidate);
    // Long before the lease would have run out.
    sees(&second, "that it writes", Outlook::is_writer).await;
    second.set_role(Role::Bystander);
    sees(&second, "its rest", |seen| seen.state == State::Bystander).await;
    assert_eq!(cluster.holder(), None, "released");
}

#[tokio::test]
async fn a_bystander_makes_no_call() {
    let cluster = Cluster::start().await;
    let agent = cluster.agent("a", |_| ());
    let other = cluster.candidate("b");
    sees(&other, "that it writes", Outlook::is_writer).await;
    assert!(cluster.server.calls().iter().all(|call| call.user == "b"));
    assert_eq!(agent.outlook().borrow().state, State::Bystander);
}

#[tokio::test]
async fn of_five_candidates_under_trouble_one_writes_in_each_term() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..20);
    let mut agents: Vec<_> = (0..5).map(|number| cluster.candidate(&format!("c{number}"))).collect();
    let mut sequence = 0;
    for round in 0..6_u16 {
        let before = cluster.writes().len();
        for agent in &agents {
            sequence += 1;
            agent.decide(open(sequence, [round, round + 1, round + 2]));
        }
        cluster.server.until("somebody writes", DEADLINE, |_| cluster.writes().len() > before).await;
        match round {
            // Calls are carried out, but nobody learns of it: terms change hands while old calls are under way.
            1 | 3 => {
                cluster.server.lose_answers();
                let all_rest = |_: &_| agents.iter().all(|agent| !agent.outlook().borrow().is_writer());
                cluster.server.until("nobody holds the lease", DEADLINE, all_rest).await;
                cluster.server.recover();
            }
            // Somebody else changes the Lease.
            2 => cluster.server.change("leases", HERE, "ws-placement", |lease| {
                lease["spec"]["holderIdentity"] = json!("nobody_1");
                let term = lease["spec"]["leaseTransitions"].as_u64().expect("a term");
                lease["spec"]["leaseTransitions"] = json!(term + 1);
            }),
            _ => {
                let holder = cluster.holder();
                let index = (0..5).find(|number| holder.as_deref() == Some(&format!("c{number}")));
                if let Some(index) = index {
                    agents[index] = cluster.candidate(&format!("c{index}"));
                }
            }
        }
    }
    let writes = cluster.writes();
    let mut writers = std::collections::BTreeMap::new();
    for (term, writer) in &writes {
        let first = writers.entry(term).or_insert(writer);
        assert_eq!(*first, writer, "two writers in term {term}: {writes:?}");
    }
    assert!(writers.len() > 2, "the lease has changed hands: {writes:?}");
    let is_sorted = writes.is_sorted_by_key(|(term, _)| *term);
    assert!(is_sorted, "no write of an old term after one of a newer: {writes:?}");
}

#[tokio::test]
async fn a_writer_that_was_overtaken_without_knowing_is_refused_and_steps_down() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..4);
    let agent = cluster.candidate("a");
    agent.decide(open(1, [1]));
    cluster.until_published(&names([1])).await;
    // Another holder has written under a higher term, and holds the lease, while this one still thinks it does.
    cluster.server.before_next("patch", "endpointslices", |server| {
        server.change("leases", HERE, "ws-placement", |lease| {
            lease["spec"]["holderIdentity"] = json!("other_1");
            lease["spec"]["leaseTransitions"] = json!(40);
        });
        server.change("endpointslices", HERE, "ws-open-ipv4-0", |slice| {
            slice["metadata"]["annotations"]["evenkeel/placement-term"] = json!("40");
        });
    });
    agent.decide(open(2, [2]));
    sees(&agent, "that it does not write any more", |seen| !seen.is_writer()).await;
    assert_eq!(cluster.published(), names([1]), "what the other has written stands");
    sees(&agent, "that the other is gone", Outlook::is_writer).await;
    cluster.until_published(&names([2])).await;
    assert!(cluster.term() > Some(40));
}

#[tokio::test]
async fn what_was_decided_in_a_former_term_is_not_written_in_a_later_one() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..4);
    let term_of = |seen: &Outlook| match seen.state {
        State::Writer { term } => Some(term),
        _ => None,
    };
    let agent = cluster.patient_candidate("a");
    let lease = term_of(&sees(&agent, "that it writes", Outlook::is_writer).await);
    agent.decide(OpenSet { lease, ..open(1, [1]) });
    cluster.until_published(&names([1])).await;
    // Another one writes for a while.
    agent.set_role(Role::Bystander);
    let other = cluster.candidate("b");
    other.decide(open(2, [2]));
    cluster.until_published(&names([2])).await;
    agent.set_role(Role::Candidate);
    sees(&agent, "that another one writes", |seen| seen.state == State::Standby).await;
    other.shutdown().await;
    let is_back = |seen: &Outlook| term_of(seen) > lease && !seen.open.is_empty() && seen.decision.is_none();
    let seen = sees(&agent, "what is published", is_back).await;
    assert_eq!(*seen.open, std::collections::BTreeSet::from([cluster.uid(2)]));
    assert_eq!(cluster.published(), names([2]), "what it decided before the other one counts no more");
    agent.decide(OpenSet { lease: term_of(&seen), ..open(3, [3]) });
    cluster.until_published(&names([3])).await;
}

#[tokio::test]
async fn a_lease_that_was_deleted_does_not_stop_the_writer_for_good() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..4);
    let agent = cluster.candidate("a");
    agent.decide(open(1, [1]));
    cluster.until_published(&names([1])).await;
    agent.shutdown().await;
    // Slices of many terms ago, and a Lease that begins with the first one again.
    cluster.server.change("endpointslices", HERE, "ws-open-ipv4-0", |slice| {
        slice["metadata"]["annotations"]["evenkeel/placement-term"] = json!("70");
    });
    cluster.server.remove("leases", HERE, "ws-placement");
    let next = cluster.candidate("b");
    next.decide(open(1, [2]));
    cluster.until_published(&names([2])).await;
    assert!(cluster.term() > Some(70));
}
