//! A primary with a replica, and three Sentinels that promote the replica when the primary is gone.

use serde_json::Value;

use super::server::Server;
use super::{VOLATILE, section};
use crate::front::Front;
use crate::{until, until_some_time};

/// The name under which the Sentinels know the primary.
const NAME: &str = "rooms";

/// After how many milliseconds of silence a server counts as down.
const DOWN_AFTER: u32 = 1_000;

/// The servers. The roles are those of the beginning.
pub struct Watched {
    /// Started as primary.
    pub primary: Server,
    /// Started as its replica.
    pub replica: Server,
    sentinels: Vec<Server>,
}

impl Watched {
    /// Starts everything and waits until a failover would succeed.
    pub async fn start() -> Self {
        // An hour without the replica must not change the replication id, nor a scenario depend on when a backlog ends.
        let settings = [VOLATILE, &["--repl-backlog-ttl", "3600", "--repl-diskless-sync-delay", "0"]].concat();
        let primary = Server::start(&settings);
        let port = primary.port().to_string();
        let replica = Server::start(&[&settings[..], &["--replicaof", "127.0.0.1", &port]].concat());
        until("the replica to be in step", async || is_in_step(&primary)).await;
        let file = format!(
            "sentinel monitor {NAME} 127.0.0.1 {port} 2\n\
             sentinel down-after-milliseconds {NAME} {DOWN_AFTER}\n\
             sentinel failover-timeout {NAME} 5000\n"
        );
        let sentinels: Vec<Server> = (0..3).map(|_| Server::with_file(&file, &["--sentinel"])).collect();
        let know_all = async || sentinels.iter().all(|sentinel| knows_all(sentinel, &replica));
        until("the Sentinels to know each other", know_all).await;
        Self { primary, replica, sentinels }
    }

    /// The configuration that leads a gateway here; further lines belong to its section `redis`.
    pub fn config(&self, more: &str) -> String {
        let addresses: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("{:?}", sentinel.address())).collect();
        section(&format!(
            "mode = \"sentinel\"\naddresses = [{}]\nsentinel.primary = \"{NAME}\"\n{more}",
            addresses.join(", ")
        ))
    }

    /// The configuration for a gateway that knows nothing of Sentinels, but an address that leads to the primary.
    pub fn config_through(&self, front: &Front, more: &str) -> String {
        section(&format!("addresses = [{:?}]\n{more}", front.address()))
    }

    /// Cuts the link between the two. What the primary is given from now on is lost when it ends.
    pub async fn cut_replication(&self) {
        until_replicated(&self.primary).await;
        cut(&self.primary, &self.replica);
    }

    /// Ends the primary and waits until the replica, which may have been cut off, is primary.
    pub async fn fail_over(&mut self) {
        self.primary.kill();
        self.replica.resume();
        // Sentinels that find that their machine stood still do nothing for half a minute.
        until_some_time("the promotion", async || self.replica.info("replication", "role") == "master").await;
    }

    /// The server that was primary comes back as the replica of the one that is.
    pub async fn rejoin(&mut self) {
        self.primary.start_again();
        self.primary.admin(&["REPLICAOF", "127.0.0.1", &self.replica.port().to_string()]);
        until_replicated(&self.replica).await;
    }
}

/// Waits until the replica of a primary has everything that the primary has now, whatever is written meanwhile. It says
/// once a second how far it is.
pub(super) async fn until_replicated(primary: &Server) {
    let offset: u64 = primary.info("replication", "master_repl_offset").parse().expect("a number");
    until("the replica to be in step", async || replicated(primary) >= Some(offset)).await;
}

/// How far the replica of a primary is, if there is one that follows.
fn replicated(primary: &Server) -> Option<u64> {
    let text = primary.admin(&["INFO", "replication"]);
    let mut lines = text.as_str().unwrap_or_default().lines();
    let replica = lines.find(|line| line.starts_with("slave0:") && line.contains("state=online"))?;
    replica.split(',').find_map(|field| field.strip_prefix("offset="))?.parse().ok()
}

/// Whether a primary has one replica that has everything, while nothing is written.
pub(super) fn is_in_step(primary: &Server) -> bool {
    let offset = primary.info("replication", "master_repl_offset");
    let text = primary.admin(&["INFO", "replication"]);
    text.as_str().unwrap_or_default().lines().any(|line| {
        line.starts_with("slave0:") && line.contains("state=online") && line.contains(&format!("offset={offset},"))
    })
}

/// A replica that is stopped does not connect again, so what its primary writes from now on reaches nobody.
pub(super) fn cut(primary: &Server, replica: &Server) {
    replica.freeze();
    primary.admin(&["CLIENT", "KILL", "TYPE", "replica"]);
}

/// Whether this Sentinel knows both others, and the replica as one that it could promote.
fn knows_all(sentinel: &Server, replica: &Server) -> bool {
    let others = sentinel.admin(&["SENTINEL", "SENTINELS", NAME]);
    let replicas = sentinel.admin(&["SENTINEL", "REPLICAS", NAME]);
    let field = |entry: &Value, name: &str| {
        let words = entry.as_array()?;
        let at = words.iter().position(|word| word == name)?;
        words.get(at + 1)?.as_str().map(str::to_owned)
    };
    let is_known = |entry: &Value| {
        field(entry, "port") == Some(replica.port().to_string())
            && field(entry, "flags").as_deref() == Some("slave")
            && field(entry, "master-link-status").as_deref() == Some("ok")
    };
    others.as_array().is_some_and(|others| others.len() == 2)
        && replicas.as_array().is_some_and(|replicas| replicas.iter().any(is_known))
}
