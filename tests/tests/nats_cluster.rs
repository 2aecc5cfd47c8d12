//! Three NATS servers with every stream on all of them: the one that leads ends, and nothing is lost, repeated or
//! reordered in silence.

use tests::fleet::Fleet;
use tests::nats::{Cluster, Version};
use tests::trial::Trial;

/// Publishes that succeed before and after.
const CALM: u64 = 100;

/// What the streams of publications begin with.
const STREAMS: &str = "test-ek_H";

#[tokio::test]
async fn the_leader_of_a_stream_ends() {
    leader_ends(Version::Current).await;
}

#[tokio::test]
async fn the_leader_of_a_stream_ends_on_debians() {
    leader_ends(Version::Debian).await;
}

async fn leader_ends(version: Version) {
    let mut cluster = Cluster::start(version);
    let fleet = Fleet::start(&cluster.config(""), 2).await;
    let trial = Trial::start(&fleet).await;
    trial.load.succeed(CALM).await;
    for _ in 0..2 {
        let leader = cluster.leader_of(STREAMS);
        cluster.servers[leader].kill();
        trial.load.succeed(CALM).await;
        cluster.servers[leader].start_again();
        trial.load.succeed(CALM).await;
    }
    trial.finish(&fleet[0]).await.expect_nothing_lost();
}
