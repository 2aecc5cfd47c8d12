//! The NATS backplane passes the conformance suite on both versions, each case on a server of its own.

mod nats_server;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backplane::conformance::Factory;
use backplane::nats::{Address, NatsBackplane, NatsConfig, Storage};
use backplane::{Backplane, ChannelName, HistoryOptions};
use nats_server::servers::run;
use nats_server::{Server, Version};

struct Nats {
    server: Mutex<Server>,
    config: NatsConfig,
}

fn nats(version: Version) -> Nats {
    let server = Server::start(version);
    let servers = vec![Address::new("127.0.0.1", server.port)];
    // A machine that stands still for some seconds is no silent server.
    let limit = Duration::from_secs(10);
    let config = NatsConfig { servers, command_timeout: limit, connect_timeout: limit, ..NatsConfig::default() };
    Nats { server: Mutex::new(server), config }
}

/// Streams in memory, few partitions, and reads in pages.
fn in_memory(version: Version) -> Nats {
    let nats = nats(version);
    let config = NatsConfig { storage: Storage::Memory, partitions: 3, ..nats.config };
    Nats { config, ..nats }
}

impl Factory for Nats {
    type Backplane = NatsBackplane;

    async fn create(&self) -> Arc<NatsBackplane> {
        Arc::new(NatsBackplane::connect(&self.config).await.expect("the server is there"))
    }

    /// Nodes of their own, which meet on the server only.
    async fn create_beside(&self, _: &Arc<NatsBackplane>) -> Arc<NatsBackplane> {
        self.create().await
    }

    fn wait(&self, time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }

    fn patience(&self) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(Duration::from_secs(15))
    }

    fn lose_data(&self, backplane: &NatsBackplane) -> impl Future<Output = ()> + Send {
        {
            let mut server = self.server.lock().expect("no test panics while it holds this");
            server.end_without_data();
            server.start_again();
        }
        async {
            let ttl = Duration::from_secs(1);
            let channels = [(ChannelName::from("after the loss"), HistoryOptions { size: 1, ttl, meta_ttl: ttl })];
            let deadline = Instant::now() + Duration::from_secs(40);
            while let Err(error) = backplane.positions(&channels).await {
                assert!(Instant::now() < deadline, "nats is back but cannot be used: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// A node is behind the server's time by as long as the answer took by which it learnt it.
    fn expiry_slack(&self) -> Duration {
        Duration::from_secs(2)
    }
}

mod debian {
    use super::*;

    backplane::conformance_tests!(nats(Version::Debian), run);
    backplane::lingering_conformance_tests!(nats(Version::Debian), run);
}

mod current {
    use super::*;

    backplane::conformance_tests!(nats(Version::Current), run);
    backplane::lingering_conformance_tests!(nats(Version::Current), run);
}

#[test]
fn streams_in_memory_pass() {
    let outcome = run(backplane::conformance::run_all(&in_memory(Version::Current)));
    outcome.expect("every case passes");
}
