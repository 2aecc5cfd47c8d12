//! A primary with replicas, watched by three Sentinels.

use backplane::redis::{RedisConfig, Topology};

use super::{Server, VOLATILE, eventually};

pub const PRIMARY: &str = "main";
pub const SENTINEL_USER: &str = "evenkeel-sentinel";
const SENTINEL_PASSWORD: &str = "also-not-a-secret";

pub struct Watched {
    /// The first is the primary at the start.
    pub servers: Vec<Server>,
    pub sentinels: Vec<Server>,
}

impl Watched {
    /// Starts them all and waits until the Sentinels know everybody.
    pub fn start(replicas: usize) -> Self {
        // A replica is not kept waiting for others that may come.
        let at_once = ["--repl-diskless-sync-delay", "0"].map(str::to_owned);
        let primary = Server::with_arguments(VOLATILE, "", |_| at_once.to_vec());
        let replicaof = ["--replicaof".to_owned(), format!("127.0.0.1 {}", primary.port)];
        let arguments = |_| [&at_once[..], &replicaof].concat();
        let mut servers: Vec<_> = (0..replicas).map(|_| Server::with_arguments(VOLATILE, "", arguments)).collect();
        servers.insert(0, primary);
        let file = format!(
            "sentinel monitor {PRIMARY} 127.0.0.1 {} 2\n\
             sentinel down-after-milliseconds {PRIMARY} 1000\n\
             sentinel failover-timeout {PRIMARY} 5000\n\
             user {SENTINEL_USER} on >{SENTINEL_PASSWORD} {}\n",
            servers[0].port,
            backplane::redis::SENTINEL_ACL_COMMANDS
        );
        let arguments = |port: u16| vec!["--port".to_owned(), port.to_string(), "--sentinel".to_owned()];
        let sentinels: Vec<_> = (0..3).map(|_| Server::with_file(&file, arguments)).collect();
        let watched = Self { servers, sentinels };
        eventually("the Sentinels know everybody", || {
            watched.sentinels.iter().all(|sentinel| {
                let about = sentinel.ask(&["SENTINEL", "MASTER", PRIMARY]);
                let field = |name: &str| about.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned);
                field("num-slaves") == Some(replicas.to_string())
                    && field("num-other-sentinels").as_deref() == Some("2")
            })
        });
        watched.replicated();
        watched
    }

    pub fn config(&self) -> RedisConfig {
        let topology = Topology::Sentinel {
            sentinels: self.sentinels.iter().map(Server::address).collect(),
            primary: PRIMARY.to_owned(),
            username: Some(SENTINEL_USER.to_owned()),
            password: Some(SENTINEL_PASSWORD.to_owned()),
        };
        RedisConfig { topology, ..self.servers[0].config() }
    }

    /// Waits until every other server has everything that the primary has by then. That its link is up does not say so: the
    /// primary sends nothing yet for up to 100 ms, and longer where processors are busy.
    pub fn replicated(&self) {
        eventually("everything is replicated", || {
            let primary = self.primary_port();
            let (primary, replicas): (Vec<_>, Vec<_>) = self.servers.iter().partition(|server| server.port == primary);
            let field = |text: &str, name: &str| {
                text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
            };
            let offset = field(&primary[0].ask(&["INFO", "replication"]), "master_repl_offset:");
            replicas.iter().all(|replica| {
                let replica = replica.ask(&["INFO", "replication"]);
                field(&replica, "master_link_status:").as_deref() == Some("up")
                    && field(&replica, "slave_repl_offset:") == offset
            })
        });
    }

    /// Has the Sentinels promote another server, and waits until most of them say so. What was not replicated is lost.
    pub fn fail_over(&self) {
        let before = self.primary_port();
        eventually("another server is promoted", || {
            // It refuses or gives up while it does not know of a suitable one. Once it has promoted one, one more order
            // would be to promote the former primary again, while the others have yet to hear of the first.
            if primary_port(&self.sentinels[0]) == Some(before) {
                self.sentinels[0].ask(&["SENTINEL", "FAILOVER", PRIMARY]);
            }
            self.primary_port() != before
        });
    }

    /// Ends replication to a replica: what is written from now on is lost when it is promoted. To be followed by the end
    /// of the primary within some seconds, before the Sentinels set it right.
    pub fn cut(&self, replica: usize) {
        // Nobody listens there.
        assert_eq!(self.servers[replica].admin("REPLICAOF 127.0.0.1 1"), "+OK");
    }

    /// The port of the primary as most Sentinels see it.
    pub fn primary_port(&self) -> u16 {
        let mut ports: Vec<u16> = self.sentinels.iter().filter_map(primary_port).collect();
        ports.sort_unstable();
        ports[ports.len() / 2]
    }
}

/// The port of the primary as this Sentinel sees it.
fn primary_port(sentinel: &Server) -> Option<u16> {
    sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY]).lines().nth(1)?.parse().ok()
}
