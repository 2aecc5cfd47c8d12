//! Many messages at once on NATS.

mod nats_server;

use std::time::Duration;

use backplane::nats::{Address, NatsBackplane, NatsConfig};
use backplane::{Backplane, ChannelName, Delivery, Disturbance, NewPublication, PresenceEvent, PublishOptions, Sink};
use bytes::Bytes;
use futures_util::future::join_all;
use nats_server::servers::node::{Event, Events, KEEP, Node, channel, client, texts};
use nats_server::servers::run;
use nats_server::{Server, Version};
use tokio::sync::mpsc;

fn config(server: &Server) -> NatsConfig {
    let servers = vec![Address::new("127.0.0.1", server.port)];
    // What is asked for at the same time takes a slow machine as long as that.
    let limit = Duration::from_secs(20);
    NatsConfig { servers, command_timeout: limit, connect_timeout: limit, ..NatsConfig::default() }
}

/// A node that takes deliveries too slowly loses some, is told so, and goes on.
#[test]
fn lag_is_told() {
    const MESSAGES: usize = 3_000;

    /// Stands still at the first delivery until it is let go.
    struct Slow {
        go_on: std::sync::Mutex<Option<std::sync::mpsc::Receiver<()>>>,
        events: Events,
    }

    impl Sink for Slow {
        fn deliver(&self, channel: &ChannelName, delivery: Delivery) {
            if let Some(go_on) = self.go_on.lock().expect("no holder panics").take() {
                // Told to the runtime: otherwise the thread may take the polling of sockets and timers down with it.
                tokio::task::block_in_place(|| go_on.recv()).expect("the test lets it go");
            }
            self.events.deliver(channel, delivery);
        }

        fn disturbed(&self, disturbance: Disturbance) {
            self.events.disturbed(disturbance);
        }
    }

    for version in Version::ALL {
        let server = Server::start(version);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let config = NatsConfig { deliveries_waiting_max: 1024, ..config(&server) };
            let backplane = NatsBackplane::connect(&config).await.expect("the server is there");
            let (sender, events) = mpsc::unbounded_channel();
            let (let_go, go_on) = std::sync::mpsc::channel();
            let go_on = std::sync::Mutex::new(Some(go_on));
            backplane.attach(std::sync::Arc::new(Slow { go_on, events: Events(sender) }));
            let mut node = Node { backplane, events };
            let names = channel("lag");
            node.backplane.subscribe(&names).await.expect("subscribe");
            let start = node.publish(&names[0], "first").await;
            let texts: Vec<String> = (0..MESSAGES).map(|n| n.to_string()).collect();
            join_all(texts.iter().map(|text| node.publish(&names[0], text))).await;
            // A later answer on the same connection: all messages have been read from it.
            node.backplane.subscribe(&channel("another")).await.expect("subscribe");
            let_go.send(()).expect("the sink waits");
            node.disturbance().await;
            assert!(node.backplane.status().deliveries_lost > 0, "{version:?}");
            let page = node.after(&names[0], &start).await;
            assert!(page.covered && page.publications.len() == MESSAGES, "history repairs the loss");
            node.publish(&names[0], "last").await;
            while node.publication().await != "last" {}
        });
    }
}

/// Publications with and without history, joins and leaves of one node in one channel take effect in the order in which
/// they were asked for, also when nobody waits for one before the next: promise 6.
#[test]
fn one_node_keeps_its_order() {
    const ROUNDS: usize = 300;
    for version in Version::ALL {
        let server = Server::start(version);
        run(async {
            let mut node = Node::on(NatsBackplane::connect(&config(&server)).await.expect("the server is there"));
            let names = channel("order");
            node.backplane.subscribe(&names).await.expect("subscribe");
            let info = client("ann");
            let backplane = &node.backplane;
            let steps = (0..ROUNDS).map(|n| {
                let (info, channel) = (info.clone(), &names[0]);
                async move {
                    let data = Bytes::from(n.to_string());
                    let publication = NewPublication { data, ..Default::default() };
                    let done = match n % 4 {
                        0 | 1 => {
                            let options = PublishOptions { history: Some(KEEP), ..PublishOptions::default() };
                            backplane.publish(channel, publication, options).await.map(drop)
                        }
                        2 => backplane.publish(channel, publication, PublishOptions::default()).await.map(drop),
                        _ => backplane.announce(channel, PresenceEvent::Join(info)).await,
                    };
                    done.unwrap_or_else(|error| panic!("step {n}: {error}"));
                }
            });
            join_all(steps).await;
            for n in 0..ROUNDS {
                let Event::Delivered(_, delivery) = node.next().await else { panic!("disturbed at {n}, {version:?}") };
                let text =
                    |publication: &backplane::Publication| String::from_utf8_lossy(&publication.data).into_owned();
                let found = match &delivery {
                    Delivery::Positioned { publication, .. } => (n % 4 < 2, text(publication)),
                    Delivery::Unpositioned(publication) => (n % 4 == 2, text(publication)),
                    Delivery::Presence(_) => (n % 4 == 3, n.to_string()),
                };
                assert_eq!(found, (true, n.to_string()), "delivery {n}, {version:?}");
            }
        });
    }
}

/// Several nodes publish to one channel at full speed: the deliveries of each node are in the order of the offsets, also
/// where the server mixes them up: there a few have to be repaired on a slow machine, elsewhere none.
#[test]
fn many_publishers_are_delivered_in_order() {
    const EACH: usize = 1_000;
    for version in Version::ALL {
        let server = Server::start(version);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut node = Node::on(NatsBackplane::connect(&config(&server)).await.expect("the server is there"));
            let others = [
                NatsBackplane::connect(&config(&server)).await.expect("the server is there"),
                NatsBackplane::connect(&config(&server)).await.expect("the server is there"),
                NatsBackplane::connect(&config(&server)).await.expect("the server is there"),
            ];
            let names = channel("hot");
            node.backplane.subscribe(&names).await.expect("subscribe");
            let start = node.publish(&names[0], "first").await;
            let publish = |backplane| {
                let channel = names[0].clone();
                async move {
                    let options = PublishOptions { history: Some(KEEP), ..PublishOptions::default() };
                    let backplane: &NatsBackplane = backplane;
                    let all =
                        (0..EACH).map(|_| backplane.publish(&channel, NewPublication::default(), options.clone()));
                    for published in join_all(all).await {
                        published.expect("publish");
                    }
                }
            };
            join_all(others.iter().map(publish)).await;
            let (mut last, mut breaks, mut count) = (start.offset, 0, 0);
            while last.0 < start.offset.0 + 3 * EACH as u64 {
                match tokio::time::timeout(Duration::from_secs(20), node.next()).await.expect("deliveries come") {
                    Event::Delivered(_, Delivery::Positioned { previous, publication, .. }) => {
                        let offset = publication.offset.expect("a positioned delivery");
                        if offset <= start.offset {
                            continue;
                        }
                        assert!(offset > last, "{offset} after {last}, {version:?}");
                        breaks += usize::from(previous != backplane::Previous::Known(last));
                        last = offset;
                        count += 1;
                    }
                    _ => panic!("disturbed, {version:?}"),
                }
            }
            match version {
                Version::Current => assert_eq!((count, breaks), (3 * EACH, 0)),
                // What comes later than it is waited for is dropped, and read from history.
                Version::Debian => assert!(breaks < EACH / 10 && count > 2 * EACH, "{count} came, {breaks} breaks"),
            }
            assert_eq!(texts(&node.after(&names[0], &start).await).len(), 3 * EACH);
        });
    }
}
