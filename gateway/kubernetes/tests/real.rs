//! The same against a real API server, when `KUBECONFIG` names one: `tests/run kubernetes`.
//!
//! The agents act as a user with just the permissions that the gateway asks for: see [`apiserver::real`].

mod cluster;

use std::time::Duration;

use apiserver::real::Real;
use cluster::{DEADLINE, names, open, sees};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kubernetes::{Access, Agent, Outlook, Role, Settings, SliceVersion, State};
use serde_json::{Value, json};

fn candidate(real: &Real, name: &str) -> Agent {
    let mut settings = Settings::new(name);
    settings.namespace = Some(real.namespace().to_owned());
    settings.slice_version = if real.slice_version() == "v1beta1" { SliceVersion::V1Beta1 } else { SliceVersion::V1 };
    settings.stale_after = Duration::from_secs(3_600);
    settings.timing.duration = Duration::from_secs(6);
    settings.timing.deadline = Duration::from_secs(4);
    settings.timing.call_timeout = Duration::from_millis(1_800);
    settings.timing.retry = Duration::from_millis(600);
    let agent = Agent::start(settings, Access::Kubeconfig(real.kubeconfig().to_owned()));
    agent.set_role(Role::Candidate);
    agent
}

#[tokio::test]
async fn a_real_api_server_is_written_as_the_one_of_the_tests_is() {
    let Some(real) = Real::start().await else { return };
    for number in 0..5 {
        real.add_pod(number).await;
    }

    let stranger = candidate(&real, "stranger");
    let seen = sees(&stranger, "that permissions are missing", |seen| matches!(seen.state, State::Off(_))).await;
    assert!(format!("{:?}", seen.state).contains("permission to patch endpointslices"), "{:?}", seen.state);
    drop(stranger);

    real.grant().await;
    let first = candidate(&real, "first");
    sees(&first, "that it writes", Outlook::is_writer).await;
    real.until_published(&names(0..5), DEADLINE).await;
    first.decide(open(1, [1, 2, 3]));
    real.until_published(&names([1, 2, 3]), DEADLINE).await;
    real.set_ready(2, false).await;
    real.until_published(&names([1, 3]), DEADLINE).await;

    // Nothing is written while nothing changes.
    let (before, term) = (real.listed().await, first.status().term);
    let passes = first.status().passes;
    sees(&first, "two confirmations", |_| first.status().passes >= passes + 2).await;
    let version = |slices: &[Value]| slices[0]["metadata"]["resourceVersion"].clone();
    // On a machine that does too much else the lease may be lost in between, and then all is written anew.
    assert!(version(&real.listed().await) == version(&before) || first.status().term != term);

    // A slice that somebody else has changed is mended.
    let emptied = json!({ "endpoints": [] });
    let name = before[0]["metadata"]["name"].as_str().expect("a name");
    real.slices().patch(name, &PatchParams::default(), &Patch::Merge(emptied)).await.expect("emptied");
    real.until_published(&names([1, 3]), DEADLINE).await;

    first.mark(names([0]));
    let is_marked = async || {
        let pod = real.api::<Pod>().get("ws-0").await.expect("a pod");
        pod.metadata.annotations.is_some_and(|all| all.contains_key("controller.kubernetes.io/pod-deletion-cost"))
    };
    let marking = async {
        while !is_marked().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, marking).await.expect("a mark");

    // Another node takes over from one that died, under a higher term.
    let term = first.status().term;
    let second = candidate(&real, "second");
    second.decide(open(1, [3, 4]));
    sees(&second, "that another one writes", |seen| seen.state == State::Standby).await;
    drop(first);
    sees(&second, "that it writes", Outlook::is_writer).await;
    real.until_published(&names([3, 4]), DEADLINE).await;
    assert!(second.status().term > term);
    let status = second.status();
    second.shutdown().await;
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> = real.api();
    let lease = leases.get("ws-placement").await.expect("the Lease");
    assert_eq!(lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default(), "", "released");
    eprintln!("{status:?}");

    real.end().await;
}
