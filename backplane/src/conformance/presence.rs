//! Who is in a channel.

use std::sync::Arc;

use super::bench::{Bench, client, ensure, ensure_eq, healthy};
use super::{CaseResult, Factory};
use crate::{ClientInfo, PresenceStore};

/// Entries come and go as they were given; removing one that is not there succeeds.
pub async fn presence_adds_and_removes<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("room");
    let clients = [client("ann"), client("bob \u{e4}\"{}"), client("")];
    ensure_eq!(bench.members(&channel).await?, [], "members of an unused channel");
    ensure_eq!(bench.stats(&channel).await?, (0, 0), "stats of an unused channel");
    for info in &clients {
        healthy("add_presence", bench.backplane.add_presence(&channel, Arc::clone(info)).await)?;
    }
    ensure_eq!(bench.members(&channel).await?, sorted(&clients), "members");
    healthy("remove_presence", bench.backplane.remove_presence(&channel, clients[1].client).await)?;
    healthy("remove_presence again", bench.backplane.remove_presence(&channel, clients[1].client).await)?;
    let left = [Arc::clone(&clients[0]), Arc::clone(&clients[2])];
    ensure_eq!(bench.members(&channel).await?, sorted(&left), "members after a removal");
    for info in &left {
        healthy("remove_presence", bench.backplane.remove_presence(&channel, info.client).await)?;
    }
    ensure_eq!(bench.members(&channel).await?, [], "members after all removals");
    ensure_eq!(bench.stats(&channel).await?, (0, 0), "stats after all removals");
    Ok(())
}

fn sorted(clients: &[Arc<ClientInfo>]) -> Vec<Arc<ClientInfo>> {
    let mut clients = clients.to_vec();
    clients.sort_by_key(|info| info.client);
    clients
}

/// Adding a client again replaces its entry, and a changed user is counted anew.
pub async fn presence_replaces_an_entry<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("room");
    let first = client("ann");
    let mut second = (*first).clone();
    second.chan_info = bytes::Bytes::from_static(b"{\"typing\":true}");
    let mut third = second.clone();
    third.user = "bob".into();
    for info in [first, Arc::new(second), Arc::new(third)] {
        healthy("add_presence", bench.backplane.add_presence(&channel, Arc::clone(&info)).await)?;
        ensure_eq!(bench.members(&channel).await?, [info], "members");
        ensure_eq!(bench.stats(&channel).await?, (1, 1), "stats");
    }
    Ok(())
}

/// Users are counted once however many connections they have; all anonymous connections are one user.
pub async fn presence_counts_users<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("room");
    let clients = [client("ann"), client("ann"), client(""), client(""), client("bob")];
    let expected_in = [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)];
    for (info, expected) in clients.iter().zip(expected_in) {
        healthy("add_presence", bench.backplane.add_presence(&channel, Arc::clone(info)).await)?;
        ensure_eq!(bench.stats(&channel).await?, expected, "stats after a join of {:?}", info.user);
    }
    let expected_out = [(4, 3), (3, 2), (2, 2), (1, 1), (0, 0)];
    for (info, expected) in clients.iter().zip(expected_out) {
        healthy("remove_presence", bench.backplane.remove_presence(&channel, info.client).await)?;
        ensure_eq!(bench.stats(&channel).await?, expected, "stats after a leave of {:?}", info.user);
    }
    Ok(())
}

/// The same client in two channels is two entries.
pub async fn presence_is_per_channel<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let (one, two) = (bench.channel("one"), bench.channel("two"));
    let info = client("ann");
    healthy("add_presence", bench.backplane.add_presence(&one, Arc::clone(&info)).await)?;
    ensure_eq!(bench.members(&two).await?, [], "members of the other channel");
    healthy("add_presence", bench.backplane.add_presence(&two, Arc::clone(&info)).await)?;
    healthy("remove_presence", bench.backplane.remove_presence(&one, info.client).await)?;
    ensure_eq!(bench.members(&two).await?, [info], "members of the other channel");
    Ok(())
}

/// A full room is listed completely.
pub async fn presence_holds_many_members<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let channel = bench.channel("hall");
    let clients: Vec<_> = (0..500).map(|n| client(&format!("user{}", n % 100))).collect();
    for info in &clients {
        healthy("add_presence", bench.backplane.add_presence(&channel, Arc::clone(info)).await)?;
    }
    ensure_eq!(bench.stats(&channel).await?, (500, 100), "stats");
    let members = bench.members(&channel).await?;
    ensure!(members == sorted(&clients), "{} members listed, or others than the 500 that joined", members.len());
    Ok(())
}
