//! The connections for commands to every primary, as primaries come and go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::clients::Client;
use futures_util::future::join_all;
use parking_lot::RwLock;
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;

use super::config::Address;
use super::connection::{Access, Connection, FailFast};
use super::discovery::Discovery;
use super::layout::Layout;
use super::status::Watch;
use crate::BackplaneError;
use crate::health::Link;

/// Shortest pause between two looks at who is primary, however many calls ask for one.
const PAUSE: Duration = Duration::from_millis(20);

/// What the connections are for, in the log.
const PURPOSE: &str = "commands";

/// A primary and the connections to it.
pub(super) struct Server {
    pub(super) address: Address,
    lanes: Vec<Lane>,
}

/// A connection that is looked after.
pub(super) struct Lane {
    connection: Connection,
    /// Whether it works.
    pub(super) link: Arc<Link>,
    _watch: Watch,
}

impl Lane {
    pub(super) fn new(connection: Connection, access: &Access, purpose: &'static str) -> Self {
        let link = Arc::new(Link::new(Arc::clone(&access.health), purpose));
        let watch = Watch::start(&connection.client, &link, access.config.liveness_interval);
        Self { connection, link, _watch: watch }
    }

    /// For commands.
    pub(super) fn commands(&self) -> &FailFast {
        &self.connection.commands
    }

    /// The same, without its options.
    pub(super) fn client(&self) -> &Client {
        &self.connection.client
    }
}

impl Server {
    /// The connection that all calls of a slot use.
    pub(super) fn lane(&self, slot: u16) -> &Lane {
        &self.lanes[usize::from(slot) % self.lanes.len()]
    }
}

/// Who serves what at some moment.
pub(super) struct Serving {
    pub(super) layout: Arc<Layout>,
    /// In the order of the layout's primaries.
    pub(super) servers: Vec<Arc<Server>>,
}

impl Serving {
    /// The owner of a slot.
    pub(super) fn owner(&self, slot: u16) -> Result<&Arc<Server>, BackplaneError> {
        let owner = self.layout.owner(slot).map(|owner| &self.servers[owner]);
        owner.ok_or_else(|| BackplaneError::Unavailable("no server of the redis cluster has the slot".to_owned()))
    }
}

/// All primaries.
pub(super) struct Servers {
    access: Access,
    serving: RwLock<Arc<Serving>>,
    /// The same for those who wait for changes.
    layouts: watch::Sender<Arc<Layout>>,
    /// Counts the looks.
    looks: watch::Sender<u64>,
    is_asked: Notify,
}

impl Servers {
    /// Finds the primaries and connects to them.
    pub(super) async fn connect(access: Access) -> Result<(Arc<Self>, Discovery), BackplaneError> {
        let mut discovery = Discovery::start(&access).await?;
        let layout = Arc::new(discovery.look().await?);
        let mut servers = Vec::new();
        for primary in &layout.primaries {
            let mut lanes = Vec::new();
            for _ in 0..access.config.connections {
                lanes.push(Lane::new(access.connect(&primary.address).await?, &access, PURPOSE));
            }
            servers.push(Arc::new(Server { address: primary.address.clone(), lanes }));
        }
        let all = Self {
            access,
            layouts: watch::Sender::new(Arc::clone(&layout)),
            serving: RwLock::new(Arc::new(Serving { layout, servers })),
            looks: watch::Sender::new(0),
            is_asked: Notify::new(),
        };
        Ok((Arc::new(all), discovery))
    }

    pub(super) fn now(&self) -> Arc<Serving> {
        Arc::clone(&self.serving.read())
    }

    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    pub(super) fn layouts(&self) -> watch::Receiver<Arc<Layout>> {
        self.layouts.subscribe()
    }

    /// Has somebody look soon: something was not as it should be.
    pub(super) fn look_soon(&self) {
        self.is_asked.notify_one();
    }

    /// Returns when somebody has looked, with or without success.
    pub(super) async fn look(&self) {
        let mut looks = self.looks.subscribe();
        self.look_soon();
        // The sender lives as long as `self`.
        let _ = looks.changed().await;
    }

    /// Looks who is primary now and then, and when asked.
    pub(super) async fn watch(self: Arc<Self>, mut discovery: Discovery) {
        let is_fixed = matches!(discovery, Discovery::Fixed(_));
        let mut ticks = tokio::time::interval(self.access.config.liveness_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut pause, longest) = (PAUSE, PAUSE.max(self.access.config.liveness_interval / 4));
        loop {
            let quiet_since = Instant::now();
            tokio::select! {
                _ = ticks.tick(), if !is_fixed => {}
                () = self.is_asked.notified() => {}
            }
            if quiet_since.elapsed() >= longest {
                pause = PAUSE;
            }
            let before = self.now();
            match discovery.look().await {
                Ok(layout) => self.adopt(layout),
                Err(error) => tracing::debug!(%error, "it cannot be told who is the redis primary"),
            }
            self.looks.send_modify(|looks| *looks += 1);
            // For as long as calls fail and nothing changes, a whole fleet would ask all the time.
            pause = if Arc::ptr_eq(&before.layout, &self.now().layout) { (2 * pause).min(longest) } else { PAUSE };
            tokio::time::sleep(pause).await;
        }
    }

    fn adopt(&self, layout: Layout) {
        let old = self.now();
        let layout = layout.or_as_before(&old.layout);
        if *old.layout == layout {
            return;
        }
        let mut servers = Vec::new();
        for primary in &layout.primaries {
            if let Some(known) = old.servers.iter().find(|server| server.address == primary.address) {
                servers.push(Arc::clone(known));
                continue;
            }
            let lane = |_| Lane::new(self.access.connect_later(&primary.address), &self.access, PURPOSE);
            let lanes = (0..self.access.config.connections).map(lane).collect();
            servers.push(Arc::new(Server { address: primary.address.clone(), lanes }));
        }
        let addresses = layout.primaries.iter().map(|primary| primary.address.to_string()).collect::<Vec<_>>();
        tracing::info!(primaries = addresses.join(" "), "redis primaries have changed");
        let layout = Arc::new(layout);
        *self.serving.write() = Arc::new(Serving { layout: Arc::clone(&layout), servers });
        self.layouts.send_replace(layout);
    }

    /// Ends the connections.
    pub(super) async fn close(&self) {
        let serving = self.now();
        let lanes = serving.servers.iter().flat_map(|server| &server.lanes);
        join_all(lanes.map(|lane| lane.connection.close(self.access.config.command_timeout))).await;
    }
}
