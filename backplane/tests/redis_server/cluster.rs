//! A cluster: three masters and replicas of them.

use backplane::redis::{RedisConfig, Topology};

use super::{Server, VOLATILE, eventually, free_port};

const MASTERS: usize = 3;
const SLOTS: usize = 16384;

pub struct Cluster {
    /// Three masters, then the replicas: the first one of the first master, and so on.
    pub servers: Vec<Server>,
}

impl Cluster {
    /// Starts them all and waits until every one of them takes the cluster for complete.
    pub fn start(replicas: usize) -> Self {
        let arguments = |_| {
            let bus = free_port().to_string();
            ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--cluster-port", &bus]
                .map(str::to_owned)
                .to_vec()
        };
        let start = |_| Server::with_arguments(VOLATILE, "", arguments);
        let cluster = Self { servers: (0..MASTERS + replicas).map(start).collect() };
        for (index, master) in cluster.servers[..MASTERS].iter().enumerate() {
            let (first, after) = (index * SLOTS / MASTERS, (index + 1) * SLOTS / MASTERS);
            let range = [first.to_string(), (after - 1).to_string()];
            assert_eq!(master.ask(&["CLUSTER", "ADDSLOTSRANGE", &range[0], &range[1]]), "OK");
            assert_eq!(master.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]), "OK");
        }
        for server in &cluster.servers[1..] {
            let bus = server.ask(&["CONFIG", "GET", "cluster-port"]);
            let bus = bus.lines().last().expect("it has a bus port");
            let met = cluster.servers[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &server.port.to_string(), bus]);
            assert_eq!(met, "OK");
        }
        let knows_all = |server: &Server| {
            let nodes = server.ask(&["CLUSTER", "NODES"]);
            nodes.lines().count() == cluster.servers.len() && !nodes.contains("handshake")
        };
        eventually("all nodes know each other", || cluster.servers.iter().all(knows_all));
        for (index, replica) in cluster.servers[MASTERS..].iter().enumerate() {
            let master = cluster.servers[index % MASTERS].id();
            eventually("a replica follows", || replica.ask(&["CLUSTER", "REPLICATE", &master]) == "OK");
        }
        cluster.settled();
        cluster
    }

    /// Waits until all servers agree and all replicas have everything.
    pub fn settled(&self) {
        eventually("the cluster is complete", || {
            self.servers.iter().all(|server| server.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
                && self.servers.iter().all(|server| {
                    let replication = server.ask(&["INFO", "replication"]);
                    let mut replicas =
                        replication.lines().filter(|line| line.starts_with("slave") && line.contains(":ip="));
                    let is_fed = |line: &str| line.contains("state=online");
                    (replication.contains("role:master") && replicas.all(is_fed))
                        || replication.contains("master_link_status:up")
                })
                && self.servers[MASTERS..].iter().all(|server| server.ask(&["ROLE"]).starts_with("slave"))
        });
    }

    pub fn config(&self) -> RedisConfig {
        let topology = Topology::Cluster(self.servers[..MASTERS].iter().map(Server::address).collect());
        RedisConfig { topology, ..self.servers[0].config() }
    }

    /// The slot of a channel whose name needs no encoding.
    pub fn slot(&self, channel: &str) -> u16 {
        self.servers[0].ask(&["CLUSTER", "KEYSLOT", channel]).parse().expect("a slot")
    }

    /// The server that owns a slot, by what it says itself.
    pub fn owner(&self, slot: u16) -> usize {
        let owns = |server: &Server| {
            let nodes = server.ask(&["CLUSTER", "NODES"]);
            let myself = nodes.lines().find(|line| line.contains("myself,master"));
            myself.is_some_and(|line| {
                line.split(' ').skip(8).any(|range| {
                    let (first, last) = range.split_once('-').unwrap_or((range, range));
                    matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
                })
            })
        };
        self.servers[..MASTERS].iter().position(owns).expect("a master owns the slot")
    }

    /// Moves a slot as `redis-cli --cluster reshard` does: keys first, one at a time, while clients use them.
    pub fn migrate(&self, slot: u16, to: usize) {
        let from = self.begin_migration(slot, to);
        self.end_migration(slot, from, to);
    }

    /// From now on missing keys of the slot are looked for at the new owner.
    pub fn begin_migration(&self, slot: u16, to: usize) -> usize {
        let from = self.owner(slot);
        assert_ne!(from, to, "it is there already");
        let (source, target, slot) = (&self.servers[from], &self.servers[to], slot.to_string());
        assert_eq!(target.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source.id()]), "OK");
        assert_eq!(source.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target.id()]), "OK");
        from
    }

    pub fn end_migration(&self, slot: u16, from: usize, to: usize) {
        let (source, target, slot) = (&self.servers[from], &self.servers[to], slot.to_string());
        loop {
            let keys = source.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]);
            if keys.is_empty() {
                break;
            }
            let moved = source.ask(&["MIGRATE", "127.0.0.1", &target.port.to_string(), &keys, "0", "20000"]);
            assert!(moved == "OK" || moved == "NOKEY", "{moved}");
        }
        let id = target.id();
        assert_eq!(target.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]), "OK");
        assert_eq!(source.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]), "OK");
    }
}

impl Server {
    /// What the cluster calls it.
    pub fn id(&self) -> String {
        self.ask(&["CLUSTER", "MYID"])
    }
}
