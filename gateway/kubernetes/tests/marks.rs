//! Deletion costs on pods.

mod cluster;

use cluster::{Cluster, DEADLINE, HERE, names, sees};
use kubernetes::Outlook;
use serde_json::{Value, json};

const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

fn cost(cluster: &Cluster, number: u16) -> Value {
    let pod = cluster.server.object("pods", HERE, &format!("ws-{number}")).expect("a pod");
    pod["metadata"]["annotations"][COST].clone()
}

#[tokio::test]
async fn just_the_pods_that_are_to_go_bear_a_low_cost() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..4);
    cluster.server.change("pods", HERE, "ws-3", |pod| pod["metadata"]["annotations"] = json!({ COST: "7" }));
    let agent = cluster.candidate("a");
    agent.mark(names([0, 1, 3]));
    let has = |number, value: &Value| cost(&cluster, number) == *value;
    let (low, none) = (json!("-1000"), Value::Null);
    cluster.server.until("two marked", DEADLINE, |_| has(0, &low) && has(1, &low)).await;
    assert!(has(2, &none) && has(3, &json!("7")), "a cost that somebody else has set stays");
    agent.mark(names([1, 2]));
    cluster.server.until("another one", DEADLINE, |_| has(0, &none) && has(1, &low) && has(2, &low)).await;
    // The next writer goes on where this one left off.
    agent.shutdown().await;
    let next = cluster.candidate("b");
    cluster.server.until("it writes", DEADLINE, |_| next.outlook().borrow().is_writer()).await;
    assert!(has(1, &low), "nothing was said about marks yet");
    next.mark(names([]));
    cluster.server.until("no mark", DEADLINE, |_| (0..3).all(|number| has(number, &none))).await;
    assert!(has(3, &json!("7")));
}

#[tokio::test]
async fn without_the_permission_slices_are_written_all_the_same() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..4);
    cluster.server.refuse("patch", "pods");
    let agent = cluster.candidate("a");
    agent.mark(names([0, 1, 2]));
    cluster.until_published(&names(0..4)).await;
    let refused = |calls: Vec<apiserver::Call>| calls.iter().filter(|call| call.code == 403).count();
    cluster.server.until("a refusal", DEADLINE, |server| refused(server.calls()) > 0).await;
    let passes = agent.status().passes;
    cluster.server.until("more passes", DEADLINE, |_| agent.status().passes > passes + 2).await;
    assert_eq!(refused(cluster.server.calls()), 1, "it is not tried again at once");
    sees(&agent, "that it goes on to write", Outlook::is_writer).await;
}

#[tokio::test]
async fn a_successor_of_the_same_name_is_not_marked() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..2);
    let agent = cluster.candidate("a");
    cluster.until_published(&names(0..2)).await;
    cluster.server.before_next("patch", "pods", |server| {
        server.remove("pods", HERE, "ws-0");
        server.put("pods", HERE, "ws-0", cluster::pod(&["10.9.0.1"]));
        server.refuse("patch", "pods");
    });
    agent.mark(names([0]));
    let is_tried = |calls: Vec<apiserver::Call>| calls.iter().any(|call| call.verb == "patch" && call.code == 422);
    cluster.server.until("it was refused", DEADLINE, |server| is_tried(server.calls())).await;
    let passes = agent.status().passes;
    cluster.server.until("passes go on", DEADLINE, |_| agent.status().passes > passes).await;
    assert_eq!(cost(&cluster, 0), Value::Null);
    assert_eq!(cost(&cluster, 1), Value::Null);
}
