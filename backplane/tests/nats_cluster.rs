//! Three NATS servers that are one, with streams on all of them: the leader of a stream may be lost.

mod nats_server;

use backplane::nats::{Address, NatsBackplane, NatsConfig};
use backplane::{Backplane, Delivery, HistoryQuery, Previous, StreamPosition};
use nats_server::Version;
use nats_server::cluster::Cluster;
use nats_server::servers::node::{Event, KEEP, Node, again, channel, texts};
use nats_server::servers::run;

const STREAM: &str = "ek_H10000_600";

/// Connects to the server `first`, and to the others when that one is lost.
async fn node(cluster: &Cluster, first: usize) -> Node<NatsBackplane> {
    let servers = (0..3).map(|n| Address::new("127.0.0.1", cluster.servers[(first + n) % 3].port)).collect();
    // A test machine may be slow to agree on three streams.
    let limit = std::time::Duration::from_secs(10);
    let config =
        NatsConfig { servers, replicas: 3, command_timeout: limit, connect_timeout: limit, ..NatsConfig::default() };
    Node::on(again(|| NatsBackplane::connect(&config)).await)
}

/// The leader of the stream crashes while two nodes publish. Each message is seen once and in order by a reader that
/// repairs from history, and the epoch stays.
#[test]
fn a_lost_leader_loses_nothing() {
    for version in Version::ALL {
        let mut cluster = Cluster::start(version);
        run(async {
            let mut reader = node(&cluster, 0).await;
            let writer = node(&cluster, 1).await;
            let names = channel("led");
            reader.backplane.subscribe(&names).await.expect("subscribe");
            let top = HistoryQuery::position();
            let start = reader.backplane.history(&names[0], top, KEEP).await.expect("history").top;
            let leader = cluster.leader(STREAM, 0);
            for n in 0..60 {
                if n == 20 {
                    cluster.servers[leader].end();
                }
                let publisher = if n % 2 == 0 { &writer } else { &reader };
                let position = publisher.publish(&names[0], &n.to_string()).await;
                assert_eq!(position.epoch, start.epoch, "epoch of {n}, {version:?}");
            }
            cluster.servers[leader].start_again();
            let mut position = start.clone();
            let mut seen: Vec<String> = Vec::new();
            while seen.len() < 60 {
                let is_next = match reader.next().await {
                    Event::Delivered(_, Delivery::Positioned { previous, publication, epoch }) => {
                        let offset = publication.offset.expect("a positioned delivery");
                        if offset <= position.offset {
                            continue;
                        }
                        let is_next = previous == Previous::Known(position.offset);
                        if is_next {
                            position = StreamPosition { epoch, offset };
                            seen.push(String::from_utf8_lossy(&publication.data).into_owned());
                        }
                        is_next
                    }
                    Event::Delivered(..) => continue,
                    Event::Disturbed(_) => false,
                };
                if !is_next {
                    let page = reader.after(&names[0], &position).await;
                    assert!(page.covered, "nothing that was acknowledged is lost, {version:?}");
                    seen.extend(texts(&page));
                    position = page.top;
                }
            }
            let expected: Vec<_> = (0..60).map(|n| n.to_string()).collect();
            assert_eq!(seen, expected, "what the reader saw, {version:?}");
            let page = writer.after(&names[0], &start).await;
            assert!(page.covered);
            assert_eq!(texts(&page), expected, "what is stored, {version:?}");
        });
    }
}

/// Nodes on different servers: what is published right after a subscribe is delivered, although the servers have to tell
/// each other who is interested.
#[test]
fn subscribe_waits_for_the_cluster() {
    const ROUNDS: usize = 40;
    for version in Version::ALL {
        let cluster = Cluster::start(version);
        run(async {
            let mut reader = node(&cluster, 0).await;
            let writer = node(&cluster, 1).await;
            writer.publish(&channel("first")[0], "so that there is a stream").await;
            let top = HistoryQuery::position();
            reader.backplane.history(&channel("first")[0], top, KEEP).await.expect("history");
            for round in 0..ROUNDS {
                let names = channel(&format!("round {round}"));
                reader.backplane.subscribe(&names).await.expect("subscribe");
                writer.publish(&names[0], &round.to_string()).await;
                assert_eq!(reader.publication().await, round.to_string(), "the first publication, {version:?}");
            }
        });
    }
}
