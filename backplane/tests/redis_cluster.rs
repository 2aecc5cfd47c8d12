//! A real cluster: the conformance suite, the loss of a master under load, the migration of a slot under load, presence.
//! Nothing is lost, repeated or reordered without the node being told.

mod redis_server;

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use backplane::conformance::Factory;
use backplane::redis::{RedisBackplane, RedisConfig};
use backplane::{
    Backplane, BackplaneError, ChannelName, Delivery, HistoryOptions, NewPublication, PresenceEvent, PresenceStore,
    Previous, PublishOptions, StreamPosition,
};
use redis_server::cluster::Cluster;
use redis_server::node::{DEADLINE, Event, JUMPED, KEEP, Node, again, client, texts};
use redis_server::run;

fn short(config: RedisConfig) -> RedisConfig {
    let limit = Duration::from_millis(1000);
    RedisConfig { command_timeout: limit, connect_timeout: limit, ..config }
}

struct OnCluster {
    cluster: Mutex<Cluster>,
    config: RedisConfig,
}

impl Factory for OnCluster {
    type Backplane = RedisBackplane;

    async fn create(&self) -> Arc<RedisBackplane> {
        Arc::new(RedisBackplane::connect(&self.config).await.expect("the cluster is there"))
    }

    fn wait(&self, time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }

    fn patience(&self) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(Duration::from_secs(15))
    }

    fn lose_data(&self, backplane: &RedisBackplane) -> impl Future<Output = ()> + Send {
        let mut cluster = self.cluster.lock().expect("no test panics while it holds this");
        for master in &mut cluster.servers {
            master.restart();
        }
        cluster.settled();
        async {
            let ttl = Duration::from_secs(1);
            let history = HistoryOptions { size: 1, ttl, meta_ttl: ttl };
            // Enough channels to use every connection.
            let channels: Vec<_> =
                (0..64).map(|n| (ChannelName::from(format!("after the loss {n}")), history)).collect();
            again(|| backplane.positions(&channels)).await;
        }
    }
}

#[test]
fn the_conformance_suite_passes() {
    let cluster = Cluster::start(0);
    let config = RedisConfig { subscriber_connections: 2, ..cluster.config() };
    let on_cluster = OnCluster { cluster: Mutex::new(cluster), config };
    run(backplane::conformance::run_all(&on_cluster)).expect("every case passes");
}

/// What a reader of one channel saw, repairing from history as a hub does.
struct Reader {
    position: StreamPosition,
    seen: Vec<u32>,
    /// How many it had seen each time it was told that it may have missed something.
    told: Vec<usize>,
}

impl Reader {
    async fn new(node: &Node, channel: &ChannelName) -> Self {
        let top = again(|| async {
            let asked = [(channel.clone(), KEEP)];
            node.backplane.positions(&asked).await
        });
        let position = top.await.remove(0);
        Self { position, seen: Vec::new(), told: Vec::new() }
    }

    async fn repair(&mut self, node: &Node, channel: &ChannelName) {
        let page = node.after(channel, &self.position).await;
        if page.covered {
            self.seen.extend(texts(&page).iter().map(|text| text.parse::<u32>().expect("a number")));
        } else {
            self.told.push(self.seen.len());
        }
        self.position = page.top;
    }

    async fn take(&mut self, node: &Node, channel: &ChannelName, delivery: Delivery) {
        let Delivery::Positioned { epoch, previous, publication } = delivery else { return };
        let offset = publication.offset.expect("a positioned delivery");
        if epoch == self.position.epoch && offset <= self.position.offset {
            return;
        }
        if epoch == self.position.epoch && previous == Previous::Known(self.position.offset) {
            self.seen.push(String::from_utf8_lossy(&publication.data).parse().expect("a number"));
            self.position = StreamPosition { epoch, offset };
        } else {
            self.repair(node, channel).await;
        }
    }

    /// Between two times of being told, numbers follow each other.
    fn audit(&self, channel: &ChannelName) {
        for (index, pair) in self.seen.windows(2).enumerate() {
            let is_told = self.told.contains(&(index + 1));
            assert!(pair[1] == pair[0] + 1 || is_told, "{channel}: {} after {}, untold", pair[1], pair[0]);
        }
    }
}

/// Publishes numbers to every channel, does something in the middle, and returns what a reader of each has seen.
async fn under_load(
    cluster: &mut Cluster,
    names: &[ChannelName],
    count: u32,
    event: impl FnOnce(&mut Cluster) + Send + 'static,
) -> HashMap<ChannelName, Reader> {
    let mut node = Node::connect(&short(cluster.config())).await;
    let publisher = Arc::new(Node::connect(&short(cluster.config())).await);
    again(|| node.backplane.subscribe(names)).await;
    let mut readers = HashMap::new();
    for name in names {
        readers.insert(name.clone(), Reader::new(&node, name).await);
    }
    let publish = |name: ChannelName| {
        let publisher = Arc::clone(&publisher);
        async move {
            for number in 0..count {
                publisher.publish(&name, &number.to_string()).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let publishers: Vec<_> = names.iter().map(|name| tokio::spawn(publish(name.clone()))).collect();
    let mut event = Some(event);
    while readers.values().any(|reader| reader.seen.last() != Some(&(count - 1))) {
        if event.is_some() && readers.values().all(|reader| reader.seen.len() > 20) {
            let event = event.take().expect("it has not happened");
            tokio::task::block_in_place(|| event(cluster));
        }
        match node.next().await {
            Event::Delivered(name, delivery) => {
                readers.get_mut(&name).expect("a subscribed channel").take(&node, &name, delivery).await;
            }
            Event::Disturbed(_) => {
                for (name, reader) in &mut readers {
                    reader.repair(&node, name).await;
                }
            }
        }
    }
    assert!(event.is_none(), "nothing happened in the middle");
    for publisher in publishers {
        publisher.await.expect("a publisher");
    }
    for (name, reader) in &readers {
        reader.audit(name);
    }
    readers
}

fn run_on_threads<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

fn names(count: usize) -> Vec<ChannelName> {
    (0..count).map(|n| ChannelName::from(format!("load{n}"))).collect()
}

fn a_lost_master(event: fn(&mut Cluster)) {
    let mut cluster = Cluster::start(3);
    let names = names(9);
    let readers = run_on_threads(under_load(&mut cluster, &names, 200, event));
    let jumped = readers.values().filter(|reader| reader.position.offset.0 > JUMPED).count();
    assert!(jumped > 0 && jumped < names.len(), "{jumped} channels were on the lost master");
}

#[test]
fn a_killed_master_is_replaced() {
    a_lost_master(|cluster| cluster.servers[0].end());
}

/// Its connections stay open, and it says nothing.
#[test]
fn a_silent_master_is_replaced() {
    a_lost_master(|cluster| cluster.servers[0].stop());
}

/// A slot moves there and back while its channel is in use: publishes wait or are tried again, nothing is lost.
#[test]
fn a_slot_moves_under_load() {
    let mut cluster = Cluster::start(0);
    let names = names(3);
    let slot = cluster.slot(&names[0]);
    let readers = run_on_threads(under_load(&mut cluster, &names, 200, move |cluster| {
        let from = cluster.owner(slot);
        cluster.migrate(slot, (from + 1) % 3);
        cluster.migrate(slot, from);
        cluster.migrate(slot, (from + 2) % 3);
    }));
    for (name, reader) in readers {
        assert_eq!(reader.told, [0; 0], "{name} was called incomplete");
        assert_eq!(reader.seen, (0..200).collect::<Vec<_>>(), "{name}");
    }
}

/// Publishes that are under way at the same time take effect in the order in which they were begun, also while their
/// slot moves and some of them are sent again.
#[test]
fn concurrent_publishes_keep_their_order_while_a_slot_moves() {
    const TOGETHER: u32 = 20;
    let cluster = Cluster::start(0);
    run_on_threads(async {
        let node = Node::connect(&short(cluster.config())).await;
        let name = names(1).remove(0);
        let start = node.publish(&name, "start").await;
        let slot = cluster.slot(&name);
        let mover = tokio::task::spawn_blocking(move || {
            let from = cluster.owner(slot);
            for to in [(from + 1) % 3, from, (from + 2) % 3] {
                cluster.migrate(slot, to);
            }
            cluster
        });
        let (mut acknowledged, mut begun) = (Vec::new(), 0);
        while !mover.is_finished() {
            let mut calls = Vec::new();
            for number in begun..begun + TOGETHER {
                let publication = NewPublication { data: number.to_string().into(), ..Default::default() };
                let options = PublishOptions { history: Some(KEEP), ..PublishOptions::default() };
                let mut call = node.backplane.publish(&name, publication, options);
                calls.push((number, futures_util::poll!(&mut call), call));
            }
            begun += TOGETHER;
            for (number, first, call) in calls {
                let result = match first {
                    Poll::Ready(result) => result,
                    Poll::Pending => call.await,
                };
                if result.is_ok() {
                    acknowledged.push(number);
                }
            }
            // Fewer than history keeps, whatever the time that the moves take.
            let pause = if begun < 5_000 { 2 } else { 50 };
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        let _cluster = mover.await.expect("the slot has moved");
        let page = node.after(&name, &start).await;
        assert!(page.covered, "more was published than is kept");
        let stored: Vec<u32> = texts(&page).iter().map(|text| text.parse().expect("a number")).collect();
        assert!(stored.is_sorted_by(|a, b| a < b), "out of order or twice: {stored:?}");
        assert!(acknowledged.iter().all(|number| stored.binary_search(number).is_ok()), "an acknowledged one is lost");
        assert!(acknowledged.len() * 2 > begun as usize, "{} of {begun} were acknowledged", acknowledged.len());
    });
}

/// A slot is under way for long: what needs one key is done where the slot goes, what needs several fails in time.
#[test]
fn calls_follow_a_slot_that_is_under_way() {
    let cluster = Cluster::start(0);
    run(async {
        let mut node = Node::connect(&short(cluster.config())).await;
        let names = names(1);
        again(|| node.backplane.subscribe(&names)).await;
        let before = node.publish(&names[0], "before").await;
        let slot = cluster.slot(&names[0]);
        let to = (cluster.owner(slot) + 1) % 3;
        let from = cluster.begin_migration(slot, to);
        let member = client("ann");
        again(|| node.backplane.add_presence(&names[0], Arc::clone(&member))).await;
        assert_eq!(again(|| node.backplane.presence(&names[0])).await, [Arc::clone(&member)]);
        let failed = node.try_publish(&names[0], "during").await;
        assert!(matches!(failed, Err(BackplaneError::Unavailable(_))), "{failed:?}");
        cluster.end_migration(slot, from, to);
        node.publish(&names[0], "after").await;
        node.disturbance().await;
        let page = node.after(&names[0], &before).await;
        assert!(page.covered, "nothing was lost");
        assert_eq!(texts(&page), ["after"]);
        assert_eq!(again(|| node.backplane.presence(&names[0])).await, [member]);
        again(|| node.backplane.remove_history(&names[0])).await;
        node.publish(&names[0], "last").await;
        while node.publication().await != "last" {}
    });
}

/// A node that dies leaves members behind in channels of every master: a survivor announces each leave once.
#[test]
fn members_of_a_dead_node_leave_once() {
    let cluster = Cluster::start(0);
    run(async {
        let (lease_ttl, lease_interval) = (Duration::from_secs(4), Duration::from_millis(300));
        let config = RedisConfig { lease_ttl, lease_interval, ..cluster.config() };
        let dying = Node::connect(&config).await;
        let mut survivor = Node::connect(&config).await;
        let names = names(12);
        survivor.backplane.subscribe(&names).await.expect("subscribe");
        let stays = client("stays");
        let mut missing = HashMap::new();
        for name in &names {
            let leaves = client("leaves");
            dying.backplane.add_presence(name, Arc::clone(&leaves)).await.expect("add_presence");
            survivor.backplane.add_presence(name, Arc::clone(&stays)).await.expect("add_presence");
            missing.insert(leaves.client, leaves);
        }
        drop(dying);
        while !missing.is_empty() {
            if let Event::Delivered(_, Delivery::Presence(event)) = survivor.next().await {
                let PresenceEvent::Leave(info) = event else { panic!("nobody joins: {event:?}") };
                assert_eq!(missing.remove(&info.client), Some(info), "left twice or never was there");
            }
        }
        for name in &names {
            let members = survivor.backplane.presence(name).await.expect("presence");
            assert_eq!(members, [Arc::clone(&stays)], "members of {name}");
        }
    });
}

/// An entry of a master that has lost its data comes back, although the lease itself is elsewhere and alive.
#[test]
fn presence_is_written_anew_wherever_data_is_lost() {
    let mut cluster = Cluster::start(0);
    run(async {
        let (lease_ttl, lease_interval) = (Duration::from_millis(3000), Duration::from_millis(300));
        let node = Node::connect(&RedisConfig { lease_ttl, lease_interval, ..cluster.config() }).await;
        let member = client("ann");
        let names = names(12);
        for name in &names {
            node.backplane.add_presence(name, Arc::clone(&member)).await.expect("add_presence");
        }
        for master in 0..3 {
            cluster.servers[master].restart();
            for name in &names {
                let deadline = std::time::Instant::now() + DEADLINE;
                while again(|| node.backplane.presence(name)).await != [Arc::clone(&member)] {
                    assert!(std::time::Instant::now() < deadline, "the member is not back in {name}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
}

/// A cluster that has lost a master for good says so; so does a call, in time.
#[test]
fn calls_end_while_a_master_is_away() {
    let mut cluster = Cluster::start(0);
    run(async {
        let node = Node::connect(&short(cluster.config())).await;
        let names = names(12);
        cluster.servers[1].end();
        let mut failures = 0;
        for name in &names {
            for result in [
                tokio::time::timeout(DEADLINE, node.backplane.subscribe(std::slice::from_ref(name))).await,
                tokio::time::timeout(DEADLINE, node.backplane.remove_history(name)).await,
            ] {
                match result.expect("a call has ended in time") {
                    Ok(()) => {}
                    Err(BackplaneError::Unavailable(_)) => failures += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert!(failures > 0, "no call noticed the loss");
        cluster.servers[1].restart();
        for name in &names {
            again(|| node.backplane.subscribe(std::slice::from_ref(name))).await;
            again(|| node.backplane.remove_history(name)).await;
        }
    });
}

#[test]
fn a_server_that_is_no_cluster_is_named() {
    let server = redis_server::Server::start(redis_server::VOLATILE);
    let topology = backplane::redis::Topology::Cluster(vec![server.address()]);
    let refused = run(RedisBackplane::connect(&RedisConfig { topology, ..server.config() })).expect_err("no cluster");
    assert!(matches!(&refused, BackplaneError::Protocol(why) if why.contains("cluster")), "{refused}");
}
