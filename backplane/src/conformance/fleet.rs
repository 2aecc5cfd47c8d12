//! What nodes report of themselves. The table may have other nodes in it, so each case looks for its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::bench::{Bench, ensure, ensure_eq, healthy};
use super::{CaseResult, Factory, Violation};
use crate::{BackplaneError, Member, Members, NodeId, REPORT_BYTES, REPORT_TTL};

pub(super) fn node() -> NodeId {
    NodeId(Uuid::new_v4())
}

async fn report<M: Members>(backplane: &Arc<M>, node: NodeId, text: &[u8]) -> Result<(), Violation> {
    healthy("report", backplane.report(node, Bytes::copy_from_slice(text)).await)
}

/// What the table says of a node, after checking that both ways to ask agree.
async fn member<M: Members>(backplane: &Arc<M>, node: NodeId) -> Result<Option<Member>, Violation> {
    let mut members = healthy("members", backplane.members().await)?;
    members.retain(|member| member.node == node);
    ensure!(members.len() <= 1, "{node} is listed {} times", members.len());
    let asked = Instant::now();
    let mut ages = healthy("member_ages", backplane.member_ages().await)?;
    ages.retain(|&(id, _)| id == node);
    ensure!(ages.len() <= 1, "{node} has {} ages", ages.len());
    let member = members.pop();
    if let Some(member) = &member {
        ensure!(member.age < REPORT_TTL, "a report of {:?} still counts", member.age);
        let Some(&(_, age)) = ages.first() else {
            // It may have ended in between.
            ensure!(member.age + asked.elapsed() + SLOW >= REPORT_TTL, "{node} is a member without an age");
            return Ok(None);
        };
        ensure!(age + SLOW >= member.age, "{node} grew younger: {:?}, then {age:?}", member.age);
    } else {
        ensure!(ages.is_empty(), "{node} has an age but is no member");
    }
    Ok(member)
}

/// More than two answers are apart, and than clocks that are set differ, also on a machine that stands still meanwhile.
const SLOW: Duration = Duration::from_secs(3);

/// A report comes back as it was given, whatever bytes it is made of, and the next one takes its place.
pub async fn reports_are_listed_and_replaced<F: Factory<Backplane: Members>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let (one, other) = (node(), node());
    ensure_eq!(member(&bench.backplane, one).await?, None, "a node that never reported");
    report(&bench.backplane, other, b"the other").await?;
    let every_byte: Vec<u8> = (0..=255).collect();
    for text in [&b"{\"connections\":1}"[..], &every_byte, b"", &[b'x'; REPORT_BYTES]] {
        report(&bench.backplane, one, text).await?;
        let found = member(&bench.backplane, one).await?.map(|member| member.report);
        ensure_eq!(found.as_deref(), Some(text), "what was reported");
    }
    let found = member(&bench.backplane, other).await?.map(|member| member.report);
    ensure_eq!(found.as_deref(), Some(&b"the other"[..]), "what the other node reported");
    Ok(())
}

/// Nodes on one store see each other, and each its own.
pub async fn reports_are_seen_by_all_nodes<F: Factory<Backplane: Members>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let beside = factory.create_beside(&bench.backplane).await;
    let nodes: Vec<NodeId> = (0..50).map(|_| node()).collect();
    for (index, &node) in nodes.iter().enumerate() {
        let through = if index % 2 == 0 { &bench.backplane } else { &beside };
        report(through, node, format!("report {index}").as_bytes()).await?;
    }
    for backplane in [&bench.backplane, &beside] {
        let members = healthy("members", backplane.members().await)?;
        let ages = healthy("member_ages", backplane.member_ages().await)?;
        for (index, &node) in nodes.iter().enumerate() {
            let found = members.iter().find(|member| member.node == node).map(|member| &member.report[..]);
            ensure_eq!(found, Some(format!("report {index}").as_bytes()), "report of node {index}");
            ensure_eq!(ages.iter().filter(|(id, _)| *id == node).count(), 1, "ages of node {index}");
        }
    }
    Ok(())
}

/// A report counts for its time and no longer; a newer one starts anew.
pub async fn reports_end_unless_renewed<F: Factory<Backplane: Members>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let (silent, renewed) = (node(), node());
    let began = Instant::now();
    report(&bench.backplane, silent, b"once").await?;
    report(&bench.backplane, renewed, b"first").await?;
    let half = REPORT_TTL / 2;
    factory.wait(half).await;
    let age = member(&bench.backplane, silent).await?.map(|member| member.age);
    let is_sound = age.is_some_and(|age| age + SLOW >= half && age <= half + began.elapsed());
    // A slow machine may have let it end in earnest.
    ensure!(is_sound || began.elapsed() >= REPORT_TTL, "age {age:?} of a report made {half:?} ago");
    let renewal = Instant::now();
    report(&bench.backplane, renewed, b"second").await?;
    let age = member(&bench.backplane, renewed).await?.map(|member| member.age);
    let is_sound = age.is_some_and(|age| age <= SLOW + renewal.elapsed());
    ensure!(is_sound, "age {age:?} of a report made just now");
    factory.wait(REPORT_TTL - half + factory.expiry_slack()).await;
    ensure_eq!(member(&bench.backplane, silent).await?, None, "a report whose time is over");
    let found = member(&bench.backplane, renewed).await?.map(|member| member.report);
    let is_there = found.as_deref() == Some(b"second");
    ensure!(is_there || renewal.elapsed() >= REPORT_TTL, "a renewed report reads {found:?}");
    Ok(())
}

/// A node that leaves is gone at once, and may come back.
pub async fn withdrawn_reports_are_gone<F: Factory<Backplane: Members>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let (leaving, staying) = (node(), node());
    report(&bench.backplane, leaving, b"here").await?;
    report(&bench.backplane, staying, b"here").await?;
    for _ in 0..2 {
        healthy("withdraw", bench.backplane.withdraw(leaving).await)?;
        ensure_eq!(member(&bench.backplane, leaving).await?, None, "a node that left");
    }
    ensure!(member(&bench.backplane, staying).await?.is_some(), "a node left with another");
    report(&bench.backplane, leaving, b"back").await?;
    ensure!(member(&bench.backplane, leaving).await?.is_some(), "a node does not come back");
    Ok(())
}

/// A report that is too long is refused for good, and the one before it stays.
pub async fn long_reports_are_refused<F: Factory<Backplane: Members>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let node = node();
    report(&bench.backplane, node, b"short").await?;
    let refused = bench.backplane.report(node, Bytes::from(vec![b'x'; REPORT_BYTES + 1])).await;
    ensure!(matches!(refused, Err(BackplaneError::Protocol(_))), "a report that is too long: {refused:?}");
    let found = member(&bench.backplane, node).await?.map(|member| member.report);
    ensure_eq!(found.as_deref(), Some(&b"short"[..]), "the report before one that was refused");
    Ok(())
}
