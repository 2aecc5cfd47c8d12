//! The API server goes away and comes back.

mod cluster;

use cluster::{Cluster, DEADLINE, names, open, sees};
use kubernetes::{Agent, Outlook};

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

async fn writer(cluster: &Cluster) -> Agent {
    cluster.add_pods(0..6);
    let agent = cluster.candidate("a");
    agent.decide(open(1, [1, 2]));
    cluster.until_published(&names([1, 2])).await;
    agent
}

#[tokio::test]
async fn an_api_server_that_is_killed_leaves_everything_as_it_is_and_is_caught_up_with() {
    let cluster = Cluster::start().await;
    let agent = writer(&cluster).await;
    let before = agent.status();
    cluster.server.kill();
    agent.decide(open(2, [3, 4]));
    sees(&agent, "that the lease has ended", |seen| !seen.is_writer()).await;
    until("the outage", || !agent.status().is_up).await;
    until("several failures", || agent.status().calls_failed > before.calls_failed + 2).await;
    assert_eq!(agent.status().outages, before.outages + 1, "one outage, however many calls failed");
    assert_eq!(cluster.published(), names([1, 2]));
    let seen = agent.outlook().borrow().clone();
    assert!(seen.last_write.is_some(), "how old the last write is must still be known");
    // Pods go while nobody sees it.
    cluster.server.remove("pods", cluster::HERE, "ws-3");
    cluster.server.revive().await;
    cluster.until_published(&names([4])).await;
    until("the end of the outage", || agent.status().is_up).await;
}

#[tokio::test]
async fn an_api_server_that_is_silent_ends_the_tenure_before_anybody_may_take_over() {
    let cluster = Cluster::start().await;
    let agent = writer(&cluster).await;
    cluster.server.fall_silent();
    agent.decide(open(2, [3]));
    sees(&agent, "that the lease has ended", |seen| !seen.is_writer()).await;
    assert!(agent.status().calls_timed_out > 0);
    assert_eq!(cluster.published(), names([1, 2]));
    cluster.server.recover();
    cluster.until_published(&names([3])).await;
}

#[tokio::test]
async fn an_api_server_that_comes_later_than_the_node_is_waited_for() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..2);
    cluster.server.kill();
    let agent = cluster.candidate("a");
    until("the outage", || !agent.status().is_up).await;
    cluster.server.revive().await;
    sees(&agent, "that it writes", Outlook::is_writer).await;
    cluster.until_published(&names(0..2)).await;
}

#[tokio::test]
async fn an_end_does_not_wait_for_an_api_server_that_is_away() {
    let cluster = Cluster::start().await;
    let agent = writer(&cluster).await;
    cluster.server.fall_silent();
    let ended = tokio::time::timeout(DEADLINE, agent.shutdown()).await;
    assert!(ended.is_ok(), "an end must not hang");
}
