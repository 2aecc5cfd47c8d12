//! Three servers in a cluster, with every stream on all of them.

use super::server::{Server, Storage};
use super::{Version, section};
use crate::ports::free_port;

/// The servers.
pub struct Cluster {
    /// Each may be ended and started again.
    pub servers: Vec<Server>,
}

impl Cluster {
    /// Starts three servers that know each other.
    ///
    /// # Panics
    ///
    /// When they do not start.
    pub fn start(version: Version) -> Self {
        for _ in 0..20 {
            if let Some(servers) = Self::launch(version) {
                return Self { servers };
            }
        }
        panic!("a cluster of nats-servers does not start");
    }

    fn launch(version: Version) -> Option<Vec<Server>> {
        let mut ports: Vec<u16> = Vec::new();
        while ports.len() < 6 {
            let port = free_port();
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        let (clients, routes) = ports.split_at(3);
        let all: Vec<String> = routes.iter().map(|port| format!("nats-route://127.0.0.1:{port}")).collect();
        let one = |number: usize| {
            let more = format!(
                "server_name: n{number}\n\
                 cluster {{ name: rooms, listen: 127.0.0.1:{}, routes: [{}] }}\n",
                routes[number],
                all.join(", ")
            );
            Server::launch_on(version, Storage::File, clients[number], &more)
        };
        (0..3).map(one).collect()
    }

    /// The configuration that leads a gateway here; further lines belong to its section `nats`.
    pub fn config(&self, more: &str) -> String {
        let addresses: Vec<String> = self.servers.iter().map(Server::address).collect();
        section(&addresses, Storage::File, 3, more)
    }

    /// The server that leads the streams whose names begin like this, by what the servers log.
    ///
    /// # Panics
    ///
    /// When no server says that it does.
    pub fn leader_of(&self, stream: &str) -> usize {
        let says = |server: &Server| {
            let log = server.log();
            let lines = log.lines().filter(|line| line.contains(stream) && line.contains("new stream leader"));
            // From the time on, which follows the process id.
            lines.filter_map(|line| Some(line.split_once("] ")?.1.to_owned())).max()
        };
        let leading = self.servers.iter().enumerate().filter_map(|(index, server)| Some((says(server)?, index)));
        leading.max().expect("a leader says so in its log").1
    }
}
