//! The Redis backplane passes the conformance suite, each case on a server of its own.

mod redis_server;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backplane::conformance::Factory;
use backplane::redis::{RedisBackplane, RedisConfig};
use backplane::{Backplane, ChannelName, HistoryOptions};
use redis_server::{Server, VOLATILE, run};

struct Redis {
    server: Mutex<Server>,
    config: RedisConfig,
}

fn redis() -> Redis {
    let server = Server::start(VOLATILE);
    let config = server.config();
    Redis { server: Mutex::new(server), config }
}

fn spread() -> Redis {
    let redis = redis();
    let config = RedisConfig { connections: 3, subscriber_connections: 3, ..redis.config };
    Redis { config, ..redis }
}

impl Factory for Redis {
    type Backplane = RedisBackplane;

    async fn create(&self) -> Arc<RedisBackplane> {
        Arc::new(RedisBackplane::connect(&self.config).await.expect("the server is there"))
    }

    /// Nodes of their own, which meet on the server only.
    async fn create_beside(&self, _: &Arc<RedisBackplane>) -> Arc<RedisBackplane> {
        self.create().await
    }

    fn wait(&self, time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }

    fn patience(&self) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(Duration::from_secs(15))
    }

    fn lose_data(&self, backplane: &RedisBackplane) -> impl Future<Output = ()> + Send {
        self.server.lock().expect("no test panics while it holds this").restart();
        async {
            // Enough channels to use every connection.
            let ttl = Duration::from_secs(1);
            let history = HistoryOptions { size: 1, ttl, meta_ttl: ttl };
            let channels: Vec<_> =
                (0..32).map(|n| (ChannelName::from(format!("after the loss {n}")), history)).collect();
            let deadline = Instant::now() + Duration::from_secs(40);
            while let Err(error) = backplane.positions(&channels).await {
                assert!(Instant::now() < deadline, "redis is back but cannot be used: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

backplane::conformance_tests!(redis(), run);
backplane::lingering_conformance_tests!(redis(), run);
backplane::store_conformance_tests!(redis(), run);

#[test]
fn several_connections_pass() {
    let outcome = run(backplane::conformance::run_all(&spread()));
    outcome.expect("every case passes");
    let outcome = run(backplane::conformance::run_all_lingering(&spread()));
    outcome.expect("every case passes");
    let outcome = run(backplane::conformance::run_all_stores(&spread()));
    outcome.expect("every case passes");
}

/// A server that refuses whatever a Redis Cluster refuses: scripts whose keys are not all in one slot.
#[test]
fn every_script_keeps_to_one_slot() {
    use backplane::conformance as suite;
    let server = Server::start(&["--save", "", "--appendonly", "no", "--cluster-enabled", "yes"]);
    assert_eq!(server.admin("CLUSTER ADDSLOTSRANGE 0 16383"), "+OK");
    let deadline = Instant::now() + Duration::from_secs(20);
    run(async {
        while server.admin("GET nothing") != "$-1" {
            assert!(Instant::now() < deadline, "the slots are not served: {}", server.admin("GET nothing"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(server.admin("MGET a b").starts_with("-CROSSSLOT"), "the server minds slots");
    let config = server.config();
    let redis = Redis { server: Mutex::new(server), config };
    let outcome = run(async {
        suite::reports_are_seen_by_all_nodes(&redis).await?;
        suite::withdrawn_reports_are_gone(&redis).await?;
        suite::leases_have_one_holder(&redis).await?;
        suite::released_leases_are_free(&redis).await?;
        suite::stale_writers_are_told_the_record(&redis).await?;
        suite::deleted_sessions_are_gone(&redis).await?;
        suite::the_oldest_of_too_many_sessions_leaves(&redis).await?;
        suite::odd_session_ids_are_kept_apart(&redis).await?;
        suite::revoked_sessions_need_authorisation(&redis).await
    });
    outcome.expect("every case passes");
}
