//! What the backplane says of itself while a real Redis server fails and returns.

mod redis_server;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backplane::redis::RedisConfig;
use backplane::{Backplane, BackplaneError, Disturbance, HistoryQuery, Status};
use nix::sys::signal::Signal;
use redis_server::node::{DEADLINE, Event, KEEP, Node, channel};
use redis_server::{Server, VOLATILE, run};
use tracing_subscriber::fmt::MakeWriter;

/// No upkeep of the lease while a test lasts: it makes calls of its own, and says in the log when the lease is gone.
fn without_upkeep(config: RedisConfig) -> RedisConfig {
    let (lease_ttl, lease_interval) = (Duration::from_secs(1800), Duration::from_secs(600));
    RedisConfig { lease_ttl, lease_interval, ..config }
}

impl Node {
    fn status(&self) -> Status {
        self.backplane.status()
    }

    /// Waits until the status says so, and tells how long it took.
    async fn until(&self, what: &str, holds: impl Fn(Status) -> bool) -> Duration {
        let begun = Instant::now();
        while !holds(self.status()) {
            assert!(begun.elapsed() < DEADLINE, "{what}: {:?}", self.status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        begun.elapsed()
    }

    /// The status when no more calls are made.
    async fn at_rest(&self) -> Status {
        let mut last = self.status();
        let deadline = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < deadline, "calls go on and on: {last:?}");
            // Far longer than a call takes, far shorter than the interval of the lease.
            tokio::time::sleep(Duration::from_millis(200)).await;
            let status = self.status();
            if status == last && status.calls_in_flight == 0 {
                return status;
            }
            last = status;
        }
    }

    /// True if a disturbance is among what has happened so far.
    fn was_disturbed(&mut self) -> bool {
        let mut was_disturbed = false;
        while let Ok(event) = self.events.try_recv() {
            was_disturbed |= matches!(event, Event::Disturbed(Disturbance::All));
        }
        was_disturbed
    }
}

/// The lines that were logged by this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The warnings, and all lines.
    fn lines(&self) -> (Vec<String>, Vec<String>) {
        let text = String::from_utf8(self.0.lock().expect("no writer panics").clone()).expect("the log is text");
        let lines: Vec<_> = text.lines().filter(|line| line.contains("backplane")).map(str::to_owned).collect();
        (lines.iter().filter(|line| line.contains("WARN")).cloned().collect(), lines)
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no writer panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[test]
fn calls_deliveries_and_channels_are_counted() {
    let server = Server::start(VOLATILE);
    run(async {
        let mut node = Node::connect(&without_upkeep(server.config())).await;
        // The calls of the connecting.
        let before = node.at_rest().await;
        assert!(before.is_up && before.calls > 0 && before.calls_failed == 0, "{before:?}");
        let (names, others) = (channel("counted"), channel("uncounted"));
        node.backplane.subscribe(&names).await.expect("subscribe");
        node.backplane.subscribe(&others).await.expect("subscribe");
        node.backplane.unsubscribe(&others).await.expect("unsubscribe");
        for n in 0..10 {
            node.publish(&names[0], &n.to_string()).await;
            node.publication().await;
        }
        let after = node.status();
        assert_eq!((after.calls - before.calls, after.calls_in_flight), (13, 0), "{after:?}");
        assert_eq!((after.channels, after.deliveries, after.deliveries_lost), (1, 10, 0), "{after:?}");
        assert_eq!((after.calls_failed, after.calls_timed_out, after.restorations), (0, 0, 0), "{after:?}");
    });
}

/// A call that is given up is under way no longer, and no failure of Redis.
#[test]
fn calls_given_up_are_not_under_way() {
    let server = Server::start(VOLATILE);
    run(async {
        let command_timeout = Duration::from_secs(2);
        let node = Node::connect(&RedisConfig { command_timeout, ..without_upkeep(server.config()) }).await;
        let names = channel("silent");
        let before = node.at_rest().await;
        server.stop();
        let mut given_up = node.backplane.history(&names[0], HistoryQuery::position(), KEEP);
        let early = tokio::time::timeout(Duration::from_millis(50), &mut given_up).await;
        assert!(early.is_err(), "a stopped server has answered");
        assert_eq!(node.status().calls_in_flight, 1);
        drop(given_up);
        let dropped = node.status();
        assert_eq!((dropped.calls_in_flight, dropped.calls - before.calls), (0, 1), "{dropped:?}");
        assert_eq!((dropped.calls_failed, dropped.calls_timed_out), (0, 0), "{dropped:?}");
        let late = node.backplane.history(&names[0], HistoryQuery::position(), KEEP).await;
        assert!(matches!(late, Err(BackplaneError::Unavailable(_))), "{late:?}");
        let failed = node.status();
        assert_eq!((failed.calls_failed, failed.calls_timed_out), (1, 1), "{failed:?}");
        server.signal(Signal::SIGCONT);
    });
}

/// A crash shows at once, for as long as it lasts, and the return only when the deliveries are back; the log has one
/// line for each.
#[test]
fn a_crash_shows_at_once_and_the_return_with_the_deliveries() {
    let mut server = Server::start(VOLATILE);
    let (log, _guard) = Log::start();
    run(async {
        let config = RedisConfig { subscriber_connections: 2, ..without_upkeep(server.config()) };
        let mut node = Node::connect(&config).await;
        let names: Vec<_> = (0..20).flat_map(|n| channel(&format!("crash {n}"))).collect();
        node.backplane.subscribe(&names).await.expect("subscribe");
        for round in 1..=3 {
            assert!(node.status().is_up, "round {round}");
            server.end();
            let noticed = node.until("the crash shows", |status| !status.is_up).await;
            assert!(noticed < config.command_timeout / 2, "the crash showed after {noticed:?}");
            for n in 0..20 {
                let failed = node.try_publish(&names[0], &n.to_string()).await;
                assert!(matches!(failed, Err(BackplaneError::Unavailable(_))), "{failed:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert!(!node.status().is_up, "it is said to be up while it is away");
            }
            assert!(node.was_disturbed(), "the loss was not told");
            server.start_again();
            node.until("the return shows", |status| status.is_up).await;
            // Both connections have told it by the time that it shows.
            assert!(node.was_disturbed(), "it shows before deliveries were restored");
            assert_eq!(server.admin("PUBSUB NUMPAT"), ":0");
            for name in &names {
                node.try_publish(name, &format!("{round}")).await.expect("publish after the return");
                assert_eq!(node.publication().await, round.to_string());
            }
            let status = node.status();
            assert_eq!((status.restorations, status.channels), (2 * round, 20), "{status:?}");
            assert!(status.calls_failed >= 20 * round, "{status:?}");
            let (warnings, lines) = log.lines();
            assert_eq!((warnings.len() as u64, lines.len() as u64), (round, 2 * round), "{lines:#?}");
        }
        let (_, lines) = log.lines();
        assert!(lines[0].contains("away") && lines[1].contains("outage_ms"), "{lines:#?}");
    });
}

/// A server that is silent shows within the documented time, under load and without, and returns.
#[test]
fn silence_shows_in_time() {
    for is_busy in [false, true] {
        let server = Server::start(VOLATILE);
        let (log, _guard) = Log::start();
        run(async {
            let command_timeout = Duration::from_secs(2);
            let limits = without_upkeep(server.config());
            let config = RedisConfig { command_timeout, connect_timeout: command_timeout, ..limits };
            let mut node = Node::connect(&config).await;
            let names = channel("silent");
            node.backplane.subscribe(&names).await.expect("subscribe");
            let load = async {
                loop {
                    if is_busy {
                        // It fails while the server is silent.
                        let _ = node.try_publish(&names[0], "load").await;
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            let watched = async {
                // Several looks at a living server.
                tokio::time::sleep(4 * config.liveness_interval).await;
                assert!(node.status().is_up, "{:?}", node.status());
                server.stop();
                let noticed = node.until("the silence shows", |status| !status.is_up).await;
                // And what a slow machine takes.
                let bound = config.liveness_interval + command_timeout + Duration::from_secs(10);
                assert!(noticed < bound, "the silence showed after {noticed:?}");
                for _ in 0..50 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    assert!(!node.status().is_up, "it is said to be up while it is silent");
                }
                server.signal(Signal::SIGCONT);
                node.until("the return shows", |status| status.is_up).await;
            };
            tokio::select! {
                () = load => {}
                () = watched => {}
            }
            assert!(node.was_disturbed(), "it shows before deliveries were restored");
            assert_eq!(node.status().restorations, 1);
            let (_, lines) = log.lines();
            assert_eq!(lines.len(), 2, "{lines:#?}");
        });
    }
}

/// Deliveries alone can be away: their connection is killed and cannot be made again, calls go on.
#[test]
fn lost_deliveries_alone_show() {
    let server = Server::start(VOLATILE);
    run(async {
        let mut node = Node::connect(&server.config()).await;
        let names = channel("deliveries");
        node.backplane.subscribe(&names).await.expect("subscribe");
        // The connections that are there stay, new ones are refused.
        assert_eq!(server.admin("ACL SETUSER evenkeel -hello"), "+OK");
        assert!(server.admin("CLIENT KILL TYPE pubsub").starts_with(':'), "the kill is accepted");
        node.until("the loss shows", |status| !status.is_up).await;
        node.try_publish(&names[0], "unheard").await.expect("calls go on");
        assert!(node.was_disturbed(), "the loss was not told");
        assert!(!node.status().is_up && node.status().restorations == 0, "deliveries were restored from nowhere");
        assert_eq!(server.admin("ACL SETUSER evenkeel +hello"), "+OK");
        node.until("the return shows", |status| status.is_up).await;
        assert!(node.was_disturbed(), "it shows before deliveries were restored");
        node.try_publish(&names[0], "heard").await.expect("publish");
        assert_eq!(node.publication().await, "heard");
    });
}
