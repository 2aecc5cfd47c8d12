//! Presence of clients that may come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bench::{Bench, client, ensure, ensure_eq, healthy};
use super::{CaseResult, Factory, Violation};
use crate::{ChannelName, ClientInfo, Delivery, PresenceEvent, PresenceStore};

/// Longer than a case takes.
const LONG: Duration = Duration::from_secs(120);

/// A room with one subscriber, who sees what is announced.
struct Room<'f, F: Factory> {
    bench: Bench<'f, F>,
    /// Another node on the same store.
    beside: Arc<F::Backplane>,
    channel: ChannelName,
    grace: Duration,
}

impl<'f, F: Factory> Room<'f, F> {
    async fn new(factory: &'f F) -> Result<Self, Violation> {
        let bench = Bench::new(factory).await;
        let beside = factory.create_beside(&bench.backplane).await;
        let channel = bench.channel("room");
        bench.subscribe(std::slice::from_ref(&channel)).await?;
        Ok(Self { bench, beside, channel, grace: factory.short_ttl() })
    }

    async fn add(&self, info: &Arc<ClientInfo>) -> Result<(), Violation> {
        healthy("add_presence", self.bench.backplane.add_presence(&self.channel, Arc::clone(info)).await)
    }

    async fn linger(&self, info: &ClientInfo, grace: Duration) -> Result<(), Violation> {
        healthy("linger_presence", self.bench.backplane.linger_presence(&self.channel, info.client, grace).await)
    }

    async fn adopt(&self, on: &F::Backplane, info: &Arc<ClientInfo>) -> Result<bool, Violation> {
        healthy("adopt_presence", on.adopt_presence(&self.channel, Arc::clone(info)).await)
    }

    /// Until the end of everybody's time.
    async fn wait(&self) {
        self.bench.factory.wait(self.grace + self.bench.factory.linger_slack()).await;
    }

    async fn expect_members(&self, expected: &[&Arc<ClientInfo>], when: &str) -> Result<(), Violation> {
        let mut expected: Vec<_> = expected.iter().map(|info| Arc::clone(info)).collect();
        expected.sort_by_key(|info| info.client);
        ensure_eq!(self.bench.members(&self.channel).await?, expected, "members {when}");
        let mut seen_beside = healthy("presence", self.beside.presence(&self.channel).await)?;
        seen_beside.sort_by_key(|info| info.client);
        ensure_eq!(seen_beside, expected, "members as another node sees them {when}");
        Ok(())
    }

    /// Exactly these leaves were announced so far, and nothing else.
    async fn expect_leaves(&self, expected: &[&Arc<ClientInfo>]) -> Result<(), Violation> {
        let mut left: Vec<_> = expected.iter().map(|info| Arc::clone(info)).collect();
        left.sort_by_key(|info| info.client);
        let mut announced = Vec::new();
        for delivery in self.bench.delivered(&self.channel, left.len()).await? {
            let Delivery::Presence(PresenceEvent::Leave(info)) = delivery else {
                return Err(Violation::new(format!("expected a leave, found {delivery:?}")));
            };
            announced.push(info);
        }
        announced.sort_by_key(|info| info.client);
        ensure_eq!(announced, left, "announced leaves");
        Ok(())
    }
}

/// A client that lingers is a member until its time is over, for every node; then its leave is announced once.
pub async fn lingering_members_stay_and_leave_once<F: Factory>(factory: &F) -> CaseResult {
    let room = Room::new(factory).await?;
    let (lingers, stays) = (client("ann"), client("bob"));
    room.add(&lingers).await?;
    room.add(&stays).await?;
    let since = Instant::now();
    room.linger(&lingers, room.grace).await?;
    room.bench.factory.wait(room.grace / 2).await;
    let early = room.expect_members(&[&lingers, &stays], "while one lingers").await;
    let unheard = room.expect_leaves(&[]).await;
    // A slow machine may have let the time pass in earnest.
    if since.elapsed() < room.grace {
        early?;
        unheard?;
    }
    room.wait().await;
    room.expect_members(&[&stays], "after the time of one is over").await?;
    room.expect_leaves(&[&lingers]).await?;
    room.wait().await;
    room.expect_leaves(&[&lingers]).await
}

/// Whoever comes back in time, on whichever node, was never away.
pub async fn members_that_come_back_do_not_leave<F: Factory>(factory: &F) -> CaseResult {
    let room = Room::new(factory).await?;
    let clients = [client("ann"), client("bob"), client("eve")];
    let [here, beside, added] = &clients;
    for info in &clients {
        room.add(info).await?;
        room.linger(info, LONG).await?;
    }
    ensure!(room.adopt(&room.bench.backplane, here).await?, "a lingering entry is adopted without notice");
    ensure!(room.adopt(&room.beside, beside).await?, "a lingering entry is adopted elsewhere without notice");
    room.add(added).await?;
    // Adopted, they are entries like others: they linger again, and are adopted again.
    let lingers = room.beside.linger_presence(&room.channel, beside.client, room.grace);
    healthy("linger_presence", lingers.await)?;
    room.linger(here, room.grace).await?;
    let mut changed = (**here).clone();
    changed.chan_info = bytes::Bytes::from_static(b"{\"back\":true}");
    let changed = Arc::new(changed);
    if room.adopt(&room.beside, &changed).await? && room.adopt(&room.bench.backplane, beside).await? {
        room.wait().await;
        room.expect_leaves(&[]).await?;
        room.expect_members(&[&changed, beside, added], "after all have come back").await?;
    }
    Ok(())
}

/// The answer of an adoption is the truth about the leave.
pub async fn adoption_tells_whether_anybody_was_there<F: Factory>(factory: &F) -> CaseResult {
    let room = Room::new(factory).await?;
    let (new, late) = (client("ann"), client("bob"));
    ensure!(!room.adopt(&room.beside, &new).await?, "a client that was never there is adopted");
    room.expect_members(&[&new], "after an adoption of nobody").await?;
    room.add(&late).await?;
    room.linger(&late, room.grace).await?;
    room.wait().await;
    room.expect_members(&[&new], "after the time of one is over").await?;
    room.expect_leaves(&[&late]).await?;
    ensure!(!room.adopt(&room.beside, &late).await?, "a client whose leave was announced is adopted");
    room.expect_members(&[&new, &late], "after a late return").await?;
    room.wait().await;
    room.expect_leaves(&[&late]).await?;
    room.expect_members(&[&new, &late], "some time after a late return").await
}

/// Many linger with different times; each leaves once, the others stay. One that is not there cannot linger.
pub async fn lingering_is_per_client<F: Factory>(factory: &F) -> CaseResult {
    let room = Room::new(factory).await?;
    let clients: Vec<_> = (0..40).map(|n| client(&format!("user{}", n % 7))).collect();
    for info in &clients {
        room.add(info).await?;
    }
    room.linger(&client("nobody"), room.grace).await?;
    for info in &clients[10..30] {
        room.linger(info, room.grace).await?;
    }
    for info in &clients[30..] {
        room.linger(info, LONG + room.grace).await?;
    }
    room.wait().await;
    let stay: Vec<_> = clients[..10].iter().chain(&clients[30..]).collect();
    room.expect_members(&stay, "after the time of some is over").await?;
    let left: Vec<_> = clients[10..30].iter().collect();
    room.expect_leaves(&left).await
}
