//! The fleet and sessions on NATS pass the conformance suite on both servers.

mod nats_server;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backplane::conformance::Factory;
use backplane::nats::NatsBackplane;
use backplane::{Members, NodeId};
use nats_server::servers::run;
use nats_server::{Server, Version};
use uuid::Uuid;

struct Nats {
    server: Mutex<Server>,
}

fn nats(version: Version) -> Nats {
    Nats { server: Mutex::new(Server::start(version)) }
}

impl Factory for Nats {
    type Backplane = NatsBackplane;

    async fn create(&self) -> Arc<NatsBackplane> {
        let config = self.server.lock().expect("no test panics while it holds this").config();
        Arc::new(NatsBackplane::connect(&config).await.expect("the server is there"))
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
        let mut server = self.server.lock().expect("no test panics while it holds this");
        server.end_without_data();
        server.start_again();
        drop(server);
        async {
            let deadline = Instant::now() + Duration::from_secs(15);
            while let Err(error) = backplane.withdraw(NodeId(Uuid::nil())).await {
                assert!(Instant::now() < deadline, "nats is back but cannot be used: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

mod debian {
    use super::*;
    backplane::store_conformance_tests!(nats(Version::Debian), run);
}

mod current {
    use super::*;
    backplane::store_conformance_tests!(nats(Version::Current), run);
}
