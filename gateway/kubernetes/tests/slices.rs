//! What the slice writer leaves on the API server.

mod cluster;

use std::collections::BTreeSet;
use std::time::Duration;

use apiserver::Options;
use cluster::{Cluster, DEADLINE, HERE, addresses, names, open, pod, sees};
use kubernetes::{Outlook, Role, SliceVersion};
use serde_json::{Value, json};

#[tokio::test]
async fn without_a_decision_every_ready_pod_is_published_in_as_few_slices_as_hold_them() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..250);
    cluster.set_ready(7, false);
    cluster.server.change("pods", HERE, "ws-8", |pod| pod["metadata"]["labels"]["app"] = json!("other"));
    let agent = cluster.candidate("a");
    cluster.until_published(&names((0..250).filter(|number| !matches!(number, 7 | 8)))).await;
    let lens: BTreeSet<usize> = cluster.slices().iter().map(|slice| addresses(slice).len()).collect();
    assert_eq!(lens, BTreeSet::from([100, 48]), "100 + 100 + 48");
    assert_eq!(cluster.slices().len(), 3);

    let uid = cluster.server.object("services", HERE, "ws").expect("the Service")["metadata"]["uid"].clone();
    for slice in cluster.slices() {
        assert_eq!(slice["addressType"], "IPv4");
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "ws");
        assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], uid);
        assert_eq!(slice["ports"], json!([{ "name": "ws", "port": 8000, "protocol": "TCP" }]));
        let endpoint = &slice["endpoints"][0];
        assert_eq!(endpoint["conditions"], json!({ "ready": true, "serving": true, "terminating": false }));
        assert_eq!((&endpoint["nodeName"], &endpoint["zone"]), (&json!("machine-1"), &json!("b")));
        assert_eq!(
            (&endpoint["targetRef"]["kind"], &endpoint["targetRef"]["namespace"]),
            (&json!("Pod"), &json!(HERE))
        );
    }
    let seen = sees(&agent, "what it has published", |seen| seen.open.len() == 248).await;
    assert!(seen.last_write.is_some());
    assert_eq!(seen.pods.expect("pods").len(), 249, "those of the selector");
}

#[tokio::test]
async fn decisions_are_followed_and_old_ones_are_not() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..10);
    let agent = cluster.candidate("a");
    agent.decide(open(5, [1, 2, 3]));
    cluster.until_published(&names([1, 2, 3])).await;
    agent.decide(open(6, [2, 3, 4]));
    cluster.until_published(&names([2, 3, 4])).await;
    sees(&agent, "the decision in force", |seen| seen.decision == Some((1, 6))).await;
    agent.decide(open(6, [9]));
    agent.decide(open(4, [8]));
    agent.decide(open(7, [2, 3, 4, 5]));
    cluster.until_published(&names([2, 3, 4, 5])).await;
    assert_eq!(agent.status().decisions_stale, 2);
    let ever: Vec<Value> = cluster.server.calls().into_iter().map(|call| call.body).collect();
    assert!(!format!("{ever:?}").contains("ws-9\""), "a decision that came too late was never written");
}

#[tokio::test]
async fn a_pod_that_fails_ends_or_goes_is_taken_out_at_once_and_never_the_last() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..6);
    let agent = cluster.candidate("a");
    agent.decide(open(1, [1, 2, 3, 4]));
    cluster.until_published(&names([1, 2, 3, 4])).await;
    cluster.set_ready(1, false);
    cluster.until_published(&names([2, 3, 4])).await;
    let ending = json!("2026-01-01T00:00:00Z");
    cluster.server.change("pods", HERE, "ws-2", |pod| pod["metadata"]["deletionTimestamp"] = ending);
    cluster.until_published(&names([3, 4])).await;
    cluster.server.remove("pods", HERE, "ws-3");
    cluster.until_published(&names([4])).await;
    cluster.set_ready(4, false);
    cluster.until_published(&names([0, 5])).await;
    let before = agent.status().passes;
    cluster.set_ready(0, false);
    cluster.set_ready(5, false);
    cluster.server.until("some passes later", DEADLINE, |_| agent.status().passes > before + 3).await;
    assert!(!cluster.published().is_empty(), "an empty set would refuse every connection");
    let seen = sees(&agent, "that no pod is ready", |seen| {
        seen.pods.as_ref().is_some_and(|pods| pods.values().all(|pod| !pod.is_eligible()))
    });
    assert!(seen.await.is_writer());
}

#[tokio::test]
async fn when_nobody_decides_any_more_every_ready_pod_is_published() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..5);
    let agent = cluster.agent("a", |settings| settings.stale_after = Duration::from_secs(8));
    agent.set_role(Role::Candidate);
    agent.decide(open(1, [1]));
    cluster.until_published(&names([1])).await;
    agent.decide(open(1, [1]));
    cluster.until_published(&names(0..5)).await;
    sees(&agent, "that no decision is in force", |seen| seen.decision.is_none()).await;
    agent.decide(open(2, [3]));
    cluster.until_published(&names([3])).await;
}

#[tokio::test]
async fn both_families_have_slices_and_a_service_of_one_family_has_only_that() {
    let cluster = Cluster::start().await;
    for number in 0..3 {
        let (v4, v6) = (cluster::v4(number), format!("fd00::{number:x}"));
        cluster.server.put("pods", HERE, &format!("ws-{number}"), pod(&[&v4, &v6]));
    }
    cluster.server.put("pods", HERE, "ws-3", pod(&["fd00:0:0::3"]));
    let agent = cluster.candidate("a");
    cluster.until_published(&names(0..4)).await;
    let lens = |cluster: &Cluster| {
        let slices = cluster.slices();
        let lens =
            slices.iter().map(|slice| (slice["addressType"].as_str().expect("one").to_owned(), addresses(slice).len()));
        lens.collect::<BTreeSet<_>>()
    };
    let both = BTreeSet::from([("IPv4".to_owned(), 3), ("IPv6".to_owned(), 4)]);
    cluster.server.until("both families", DEADLINE, |_| lens(&cluster) == both).await;
    cluster.server.change("services", HERE, "ws", |service| service["spec"]["ipFamilies"] = json!(["IPv6"]));
    let v6 = BTreeSet::from([("IPv6".to_owned(), 4)]);
    cluster.server.until("one family", DEADLINE, |_| lens(&cluster) == v6).await;
    cluster.server.until("it is counted", DEADLINE, |_| agent.status().slices_deleted > 0).await;
}

#[tokio::test]
async fn a_write_decided_from_an_older_slice_is_refused_and_done_again() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..10);
    let agent = cluster.candidate("a");
    agent.decide(open(1, [1, 2]));
    cluster.until_published(&names([1, 2])).await;
    cluster.server.before_next("patch", "endpointslices", |server| {
        server.change("endpointslices", HERE, "ws-open-ipv4-0", |slice| {
            slice["metadata"]["annotations"]["someone"] = json!("was here");
        });
    });
    agent.decide(open(2, [3, 4]));
    cluster.until_published(&names([3, 4])).await;
    let codes: Vec<u16> = cluster
        .server
        .calls()
        .into_iter()
        .filter(|call| call.verb == "patch" && call.resource == "endpointslices")
        .map(|call| call.code)
        .collect();
    assert!(codes.contains(&409), "{codes:?}");
    assert!(agent.status().conflicts >= 1);
    assert_eq!(cluster.slices()[0]["metadata"]["annotations"]["someone"], "was here", "what is not ours stays");
}

#[tokio::test]
async fn what_somebody_else_does_to_the_slices_is_mended_and_theirs_are_left_alone() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..3);
    let agent = cluster.candidate("a");
    cluster.until_published(&names(0..3)).await;
    cluster.server.change("endpointslices", HERE, "ws-open-ipv4-0", |slice| slice["endpoints"] = json!([]));
    cluster.until_published(&names(0..3)).await;
    cluster.server.remove("endpointslices", HERE, "ws-open-ipv4-0");
    cluster.until_published(&names(0..3)).await;
    let leftover = json!({
        "metadata": { "labels": {
            "kubernetes.io/service-name": "ws", "endpointslice.kubernetes.io/managed-by": "evenkeel",
        }, "annotations": { "evenkeel/placement-term": "1" } },
        "addressType": "IPv4", "endpoints": [], "ports": [],
    });
    cluster.server.put("endpointslices", HERE, "ws-old", leftover);
    cluster.server.until("the leftover gone", DEADLINE, |_| cluster.slices().len() == 1).await;
    let foreign = json!({
        "metadata": { "labels": {
            "kubernetes.io/service-name": "ws", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        } },
        "addressType": "IPv4", "endpoints": [], "ports": [],
    });
    cluster.server.put("endpointslices", HERE, "ws-x7f", foreign);
    cluster.server.until("it is seen", DEADLINE, |_| agent.status().slices_foreign == 1).await;
    assert!(cluster.server.object("endpointslices", HERE, "ws-x7f").is_some());
}

#[tokio::test]
async fn what_is_right_is_not_written_again() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..3);
    let agent = cluster.candidate("a");
    cluster.until_published(&names(0..3)).await;
    let seen = sees(&agent, "a first write", |seen| seen.last_write.is_some()).await;
    let (term, writes) = (agent.status().term, cluster.writes().len());
    sees(&agent, "a confirmation", |now| now.last_write > seen.last_write).await;
    let passes = agent.status().passes;
    cluster.server.until("more passes", DEADLINE, |_| agent.status().passes > passes + 2).await;
    // On a machine that does too much else the lease may be lost in between, and then all is written anew.
    assert!(cluster.writes().len() == writes || agent.status().term != term);
}

#[tokio::test]
async fn slices_can_be_written_in_the_older_version_of_the_api() {
    let options = Options { slice_versions: vec!["v1beta1"], ..Options::default() };
    let cluster = Cluster::with(options).await;
    cluster.add_pods(0..3);
    let agent = cluster.agent("a", |settings| settings.slice_version = SliceVersion::V1Beta1);
    agent.set_role(Role::Candidate);
    cluster.until_published(&names(0..3)).await;
    let topology = &cluster.slices()[0]["endpoints"][0]["topology"];
    assert_eq!(*topology, json!({ "kubernetes.io/hostname": "machine-1", "topology.kubernetes.io/zone": "b" }));
}

#[tokio::test]
async fn a_watch_that_cannot_go_on_makes_a_new_list() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..3);
    let agent = cluster.candidate("a");
    agent.decide(open(1, 0..4));
    cluster.until_published(&names(0..3)).await;
    let begun = agent.status().watches_begun;
    cluster.server.forget_history();
    cluster.server.until("a new list", DEADLINE, |_| agent.status().watches_begun > begun).await;
    cluster.add_pods(3..4);
    cluster.until_published(&names(0..4)).await;
}

#[tokio::test]
async fn other_labels_of_the_pods_are_followed() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..2);
    let agent = cluster.candidate("a");
    cluster.until_published(&names(0..2)).await;
    cluster.server.put("pods", HERE, "ws-2", pod(&["10.2.0.1"]));
    cluster.server.change("pods", HERE, "ws-2", |pod| pod["metadata"]["labels"] = json!({ "app": "new" }));
    cluster.server.change("services", HERE, "ws-all", |all| all["spec"]["selector"] = json!({ "app": "new" }));
    cluster.until_published(&names([2])).await;
    sees(&agent, "that it goes on to write", Outlook::is_writer).await;
}

#[tokio::test]
async fn a_name_that_somebody_else_has_taken_is_tried_again_at_a_growing_pace() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..3);
    let taken = json!({ "metadata": {}, "addressType": "IPv4", "endpoints": [], "ports": [] });
    cluster.server.put("endpointslices", HERE, "ws-open-ipv4-0", taken);
    let agent = cluster.patient_candidate("a");
    let refused = |server: &apiserver::ApiServer| {
        let calls = server.calls().into_iter();
        let refused = calls.filter(|call| call.resource == "endpointslices" && call.code == 409);
        refused.map(|call| call.at).collect::<Vec<_>>()
    };
    cluster.server.until("seven tries", DEADLINE, |server| refused(server).len() >= 7).await;
    let at = refused(&cluster.server);
    assert!(at[6] - at[5] >= Duration::from_millis(400), "{:?}", at[6] - at[5]);
    assert!(agent.outlook().borrow().is_writer());
    cluster.server.remove("endpointslices", HERE, "ws-open-ipv4-0");
    cluster.until_published(&names(0..3)).await;
}
