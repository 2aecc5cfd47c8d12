//! Leases on roles: one holder at a time, and tokens that only grow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use uuid::Uuid;

use super::bench::{Bench, ensure, ensure_eq, healthy};
use super::fleet::node;
use super::{CaseResult, Factory, Violation};
use crate::{BackplaneError, LEASE_NAME_BYTES, Lease, Members, NodeId};

/// Longer than a case takes.
const LONG: Duration = Duration::from_secs(120);

fn name() -> String {
    format!("Role_{}", Uuid::new_v4())
}

async fn hold<M: Members>(backplane: &Arc<M>, name: &str, holder: NodeId, ttl: Duration) -> Result<Lease, Violation> {
    healthy("hold_lease", backplane.hold_lease(name, holder, ttl).await)
}

/// The token of a lease that must be the caller's.
async fn held<M: Members>(backplane: &Arc<M>, name: &str, holder: NodeId, ttl: Duration) -> Result<u64, Violation> {
    match hold(backplane, name, holder, ttl).await? {
        Lease::Held { token } => Ok(token),
        Lease::HeldBy(other) => Err(Violation::new(format!("{holder} is refused, the lease is held by {other}"))),
    }
}

async fn release<M: Members>(backplane: &Arc<M>, name: &str, holder: NodeId) -> Result<(), Violation> {
    healthy("release_lease", backplane.release_lease(name, holder).await)
}

/// Who comes first has it, and keeps it with the same token by renewing; others are told who it is. Names are apart.
pub async fn leases_have_one_holder<F: Factory<Backplane: Members>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let beside = factory.create_beside(&bench.backplane).await;
    let (name, another) = (name(), name());
    let (first, second) = (node(), node());
    let token = held(&bench.backplane, &name, first, LONG).await?;
    for backplane in [&bench.backplane, &beside, &bench.backplane] {
        ensure_eq!(hold(backplane, &name, second, LONG).await?, Lease::HeldBy(first), "a lease that is held");
        ensure_eq!(held(backplane, &name, first, LONG).await?, token, "token of a renewal");
    }
    held(&beside, &another, second, LONG).await?;
    ensure_eq!(hold(&bench.backplane, &another, first, LONG).await?, Lease::HeldBy(second), "another lease");
    ensure_eq!(held(&bench.backplane, &name, first, LONG).await?, token, "token beside another lease");
    Ok(())
}

/// Only the holder can give it up; whoever takes it next has a larger token, the same node too.
pub async fn released_leases_are_free<F: Factory<Backplane: Members>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let (name, first, second) = (name(), node(), node());
    release(&bench.backplane, &name, first).await?;
    let one = held(&bench.backplane, &name, first, LONG).await?;
    release(&bench.backplane, &name, second).await?;
    ensure_eq!(hold(&bench.backplane, &name, second, LONG).await?, Lease::HeldBy(first), "released by another");
    release(&bench.backplane, &name, first).await?;
    let two = held(&bench.backplane, &name, second, LONG).await?;
    ensure!(two > one, "token {two} after {one}");
    ensure_eq!(hold(&bench.backplane, &name, first, LONG).await?, Lease::HeldBy(second), "a lease that went on");
    release(&bench.backplane, &name, second).await?;
    let three = held(&bench.backplane, &name, second, LONG).await?;
    ensure!(three > two, "token {three} after {two} of the same node");
    Ok(())
}

/// It lives for its time after each renewal and no longer; the next holder has a larger token.
pub async fn leases_end_unless_renewed<F: Factory<Backplane: Members>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let (name, first, second) = (name(), node(), node());
    let ttl = factory.short_ttl();
    let mut asked = Instant::now();
    let mut one = held(&bench.backplane, &name, first, ttl).await?;
    for _ in 0..3 {
        factory.wait(ttl / 2).await;
        let answer = hold(&bench.backplane, &name, second, Duration::from_millis(1)).await?;
        // A slow machine may have let it end in earnest; then the second has it.
        ensure!(answer == Lease::HeldBy(first) || asked.elapsed() >= ttl, "before the end of the lease: {answer:?}");
        release(&bench.backplane, &name, second).await?;
        let before = std::mem::replace(&mut asked, Instant::now());
        let token = held(&bench.backplane, &name, first, ttl).await?;
        ensure!(token == one || before.elapsed() >= ttl, "token {token} of a renewal, {one} before");
        one = token;
    }
    factory.wait(ttl + factory.expiry_slack()).await;
    let two = held(&bench.backplane, &name, second, LONG).await?;
    ensure!(two > one, "token {two} after {one}");
    ensure_eq!(hold(&bench.backplane, &name, first, ttl).await?, Lease::HeldBy(second), "a lease that went on");
    Ok(())
}

/// A lease that has ended is not renewed but taken: others may have had it.
pub async fn ended_leases_are_taken_anew<F: Factory<Backplane: Members>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let (name, node) = (name(), node());
    let ttl = factory.short_ttl();
    let one = held(&bench.backplane, &name, node, ttl).await?;
    factory.wait(ttl + factory.expiry_slack()).await;
    let two = held(&bench.backplane, &name, node, ttl).await?;
    ensure!(two > one, "token {two} after {one}");
    Ok(())
}

/// Of many that ask at the same time one has it.
pub async fn racing_holders_get_one_lease<F: Factory<Backplane: Members>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let beside = factory.create_beside(&bench.backplane).await;
    let mut last = 0;
    for _ in 0..8 {
        let name = name();
        let nodes: Vec<NodeId> = (0..16).map(|_| node()).collect();
        let through = |index: usize| if index.is_multiple_of(2) { &bench.backplane } else { &beside };
        let calls = nodes.iter().enumerate().map(|(index, &node)| hold(through(index), &name, node, LONG));
        let answers: Vec<Lease> = join_all(calls).await.into_iter().collect::<Result<_, _>>()?;
        let tokens = nodes.iter().zip(&answers).filter_map(|(&node, answer)| match answer {
            Lease::Held { token } => Some((node, *token)),
            Lease::HeldBy(_) => None,
        });
        let [(holder, token)] = tokens.collect::<Vec<_>>()[..] else {
            return Err(Violation::new(format!("not one of 16 holds the lease: {answers:?}")));
        };
        let others = answers.iter().filter(|answer| **answer == Lease::HeldBy(holder)).count();
        ensure_eq!(others, 15, "nodes that are told who holds the lease");
        ensure!(token > 0, "a token of nothing");
        release(&bench.backplane, &name, holder).await?;
        last = held(&beside, &name, nodes[0], LONG).await?.max(last);
        ensure!(last > token, "token {last} after {token}");
    }
    Ok(())
}

/// What a key, a subject or a metric could not carry is refused for good.
pub async fn illegal_lease_names_are_refused<F: Factory<Backplane: Members>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let long = "a".repeat(LEASE_NAME_BYTES + 1);
    for name in ["", "a b", "a.b", "a:b", "{a}", "a*", "\u{e4}", "a\0", &long] {
        let refused = bench.backplane.hold_lease(name, node(), LONG).await;
        ensure!(matches!(refused, Err(BackplaneError::Protocol(_))), "a lease called {name:?}: {refused:?}");
    }
    let longest = name() + &"a".repeat(LEASE_NAME_BYTES - name().len());
    held(&bench.backplane, &longest, node(), LONG).await?;
    Ok(())
}

/// After the backplane has lost everything, no earlier token is given again.
pub async fn lost_leases_reuse_no_token<F: Factory<Backplane: Members>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let (name, first, second) = (name(), node(), node());
    held(&bench.backplane, &name, second, LONG).await?;
    release(&bench.backplane, &name, second).await?;
    let one = held(&bench.backplane, &name, first, LONG).await?;
    factory.lose_data(&bench.backplane).await;
    let two = held(&bench.backplane, &name, second, LONG).await?;
    ensure!(two > one, "token {two} after {one}");
    ensure_eq!(hold(&bench.backplane, &name, first, LONG).await?, Lease::HeldBy(second), "a lease that was lost");
    Ok(())
}
