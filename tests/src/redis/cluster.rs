//! A Redis Cluster of three primaries with a replica each.

use backplane::redis::keys::Keys;

use super::sentinel::{cut, is_in_step, until_replicated};
use super::server::Server;
use super::{PREFIX, VOLATILE, section};
use crate::ports::free_port;
use crate::{until, until_some_time};

const SLOTS: usize = 16_384;

const PRIMARIES: usize = 3;

/// The servers: server `i` has a third of the slots, and server `i + 3` is its replica.
pub struct Cluster {
    servers: Vec<Server>,
}

impl Cluster {
    /// Starts everything and waits until all slots are served and every replica is in step.
    pub async fn start() -> Self {
        let servers: Vec<Server> = (0..2 * PRIMARIES).map(|_| start_server()).collect();
        let ids: Vec<String> = servers.iter().map(id).collect();
        let (primaries, replicas) = servers.split_at(PRIMARIES);
        for (index, primary) in primaries.iter().enumerate() {
            let (first, next) = (index * SLOTS / PRIMARIES, (index + 1) * SLOTS / PRIMARIES);
            primary.admin(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &(next - 1).to_string()]);
            // Without different epochs the servers would first have to settle who is older.
            primary.admin(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        let bus = |server: &Server| server.admin(&["CONFIG", "GET", "cluster-port"])[1].as_str().map(str::to_owned);
        for server in &servers[1..] {
            let bus = bus(server).expect("the port of the bus was set");
            servers[0].admin(&["CLUSTER", "MEET", "127.0.0.1", &server.port().to_string(), &bus]);
        }
        until("the servers to know each other", async || servers.iter().all(|server| known(server) == servers.len()))
            .await;
        for (replica, primary) in replicas.iter().zip(&ids) {
            // It must have heard from the primary itself before it may follow it.
            until("a replica to follow", async || replica.try_admin(&["CLUSTER", "REPLICATE", primary]).is_some())
                .await;
        }
        let in_order = async || servers.iter().all(is_healthy) && primaries.iter().all(is_in_step);
        until("the Cluster to be in order", in_order).await;
        Self { servers }
    }

    /// The configuration that leads a gateway here; further lines belong to its section `redis`.
    pub fn config(&self, more: &str) -> String {
        let addresses: Vec<String> =
            self.servers[..PRIMARIES].iter().map(|server| format!("{:?}", server.address())).collect();
        section(&format!("mode = \"cluster\"\naddresses = [{}]\n{more}", addresses.join(", ")))
    }

    /// Number of the primary that has the keys of a channel.
    pub fn primary_of(&self, channel: &str) -> usize {
        let key = Keys::new(PREFIX).expect("a legal prefix").channel(channel).stream();
        let slot = self.servers[0].admin(&["CLUSTER", "KEYSLOT", &key]);
        let slot = usize::try_from(slot.as_u64().expect("a number")).expect("a slot");
        (0..PRIMARIES).find(|index| slot < (index + 1) * SLOTS / PRIMARIES).expect("every slot is served")
    }

    /// Cuts the link between this primary and its replica. What the primary is given from now on is lost when it ends.
    pub async fn cut_replication(&self, index: usize) {
        let (primary, replica) = (&self.servers[index], &self.servers[index + PRIMARIES]);
        until_replicated(primary).await;
        cut(primary, replica);
    }

    /// Ends this primary for ever and waits until its replica, which may have been cut off, has taken over.
    pub async fn fail_over(&mut self, index: usize) {
        self.servers[index].kill();
        let replica = &self.servers[index + PRIMARIES];
        replica.resume();
        let witness = &self.servers[(index + 1) % PRIMARIES];
        let taken_over = async || replica.info("replication", "role") == "master" && is_healthy(witness);
        until_some_time("the replica to take over", taken_over).await;
    }
}

/// The bus has a port of its own here: by default it is 10,000 above the other, which need not be free, nor a port.
fn start_server() -> Server {
    let bus = free_port().to_string();
    let cluster = [
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--cluster-node-timeout",
        "1500",
        // A replica that was cut off takes over all the same; its data is then the newest there is.
        "--cluster-replica-validity-factor",
        "0",
        "--repl-backlog-ttl",
        "3600",
        "--repl-diskless-sync-delay",
        "0",
    ];
    Server::start(&[VOLATILE, &cluster].concat())
}

fn id(server: &Server) -> String {
    server.admin(&["CLUSTER", "MYID"]).as_str().expect("an id").to_owned()
}

/// How many servers this one knows and has heard from.
fn known(server: &Server) -> usize {
    let nodes = server.admin(&["CLUSTER", "NODES"]);
    let lines = nodes.as_str().unwrap_or_default().lines();
    lines.filter(|line| !line.contains("handshake") && !line.contains("noaddr") && !line.contains("fail")).count()
}

fn is_healthy(server: &Server) -> bool {
    let info = server.admin(&["CLUSTER", "INFO"]);
    let info = info.as_str().unwrap_or_default();
    info.contains("cluster_state:ok") && info.contains(&format!("cluster_slots_ok:{SLOTS}"))
}
