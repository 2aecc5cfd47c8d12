//! Three servers that are one JetStream cluster.

use std::time::Duration;

use super::access::Access;
use super::{Server, Version, eventually, free_port};

const SERVERS: usize = 3;

pub struct Cluster {
    pub servers: Vec<Server>,
}

impl Cluster {
    /// Starts them all and waits until JetStream can be used on every one.
    pub fn start(version: Version) -> Self {
        let ports: Vec<u16> = (0..SERVERS).map(|_| free_port()).collect();
        let routes: Vec<String> = ports.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let routes = routes.join(", ");
        let start = |index: usize| {
            let listen = ports[index];
            Server::with_settings(version, Access::Open, |_| {
                format!(
                    "server_name: \"n{index}\"\n\
                     cluster {{ name: \"three\", listen: \"127.0.0.1:{listen}\", routes: [{routes}] }}\n"
                )
            })
        };
        let cluster = Self { servers: (0..SERVERS).map(start).collect() };
        cluster.settled();
        cluster
    }

    /// Waits until every server takes the cluster for complete and knows its leader.
    pub fn settled(&self) {
        eventually("the cluster is complete", || {
            self.servers.iter().all(|server| {
                let about = server.monitor("/jsz");
                let has = |name: &str| about.contains(&format!("\"{name}\""));
                has("meta_cluster") && has("leader") && server.monitor("/healthz").contains("\"ok\"")
            })
        });
    }

    /// The server that leads this stream, as the server `through` says.
    pub fn leader(&self, stream: &str, through: usize) -> usize {
        let mut leader = None;
        eventually("the stream has a leader", || {
            // Nobody answers while there is no leader of the whole.
            let info = format!("$JS.API.STREAM.INFO.{stream}");
            let about = self.servers[through].wire().try_ask(&info, "", Duration::from_secs(1)).unwrap_or_default();
            leader = (0..SERVERS).find(|index| about.contains(&format!("\"leader\":\"n{index}\"")));
            leader.is_some()
        });
        leader.expect("it was found")
    }
}
