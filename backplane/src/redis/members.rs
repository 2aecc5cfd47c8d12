//! The fleet on Redis: a table of reports, and leases with tokens that never go back.
//!
//! Time is the server's. A lease is compared with the server's replication id like a publish: where it changed, writes may
//! have been lost, and with them that the lease went on to others. Then also its holder gets a new token, taken from the
//! clock, above all that were given.

use std::time::Duration;

use bytes::Bytes;
use fred::types::Value;
use uuid::Uuid;

use super::connection::{Commands, Script, blob, list, number, script, text};
use super::keys::Keys;
use super::{RedisBackplane, array, millis};
use crate::members::{check_lease_name, check_report};
use crate::{BackplaneError, BackplaneFuture, Lease, Member, Members, NodeId, REPORT_TTL};

static REPORT: Script = script!("report.lua");
static WITHDRAW: Script = script!("withdraw.lua");
static MEMBERS: Script = script!("members.lua");
static HOLD: Script = script!("hold.lua");
static RELEASE: Script = script!("release.lua");

/// How long the table outlives the last report.
const TABLE_TTL: Duration = Duration::from_secs(60);

/// Reports that one report drops, more than the one that it adds.
const DROPPED_PER_REPORT: i64 = 8;

/// How long the last token of a role is remembered. Only a server whose clock was set back needs it.
const TOKEN_TTL: Duration = Duration::from_secs(30 * 86_400);

type Answer<T> = Result<T, BackplaneError>;

async fn report(commands: &Commands, keys: &Keys, node: NodeId, report: Bytes) -> Answer<()> {
    let arguments = vec![id(node), report.into(), micros(REPORT_TTL), millis(TABLE_TTL), DROPPED_PER_REPORT.into()];
    commands.script(&REPORT, vec![keys.reports(), keys.report_times()], arguments).await?;
    Ok(())
}

async fn withdraw(commands: &Commands, keys: &Keys, node: NodeId) -> Answer<()> {
    commands.script(&WITHDRAW, vec![keys.reports(), keys.report_times()], vec![id(node)]).await?;
    Ok(())
}

async fn members(commands: &Commands, keys: &Keys) -> Answer<Vec<Member>> {
    let names = vec![keys.report_times(), keys.reports()];
    let rows = list(commands.script(&MEMBERS, names, vec![micros(REPORT_TTL)]).await?)?;
    in_rows(rows, |[node, age, report]| {
        Ok(Member { node: node_id(&blob(node)?)?, age: Duration::from_micros(number(&age)?), report: blob(report)? })
    })
}

async fn member_ages(commands: &Commands, keys: &Keys) -> Answer<Vec<(NodeId, Duration)>> {
    let rows = list(commands.script(&MEMBERS, vec![keys.report_times()], vec![micros(REPORT_TTL)]).await?)?;
    in_rows(rows, |[node, age]| Ok((node_id(&blob(node)?)?, Duration::from_micros(number(&age)?))))
}

async fn hold(commands: &Commands, keys: &Keys, name: &str, holder: NodeId, ttl: Duration) -> Answer<Lease> {
    check_lease_name(name)?;
    let arguments = vec![holder.to_string().into(), millis(ttl), millis(TOKEN_TTL)];
    let answer = commands.script(&HOLD, vec![keys.role(name), keys.role_token(name)], arguments).await?;
    let [held_by, token] = array(answer)?;
    let held_by = text(held_by)?;
    let held_by = Uuid::try_parse(&held_by)
        .map_err(|_| BackplaneError::Protocol(format!("redis holds the lease holder {held_by:?}")))?;
    Ok(if held_by == holder.0 { Lease::Held { token: number(&token)? } } else { Lease::HeldBy(NodeId(held_by)) })
}

async fn release(commands: &Commands, keys: &Keys, name: &str, holder: NodeId) -> Answer<()> {
    check_lease_name(name)?;
    commands.script(&RELEASE, vec![keys.role(name)], vec![holder.to_string().into()]).await?;
    Ok(())
}

/// Does once what will be done all the time, as a node that leaves at once.
pub(super) async fn probe(commands: &Commands, keys: &Keys) -> Answer<()> {
    const NAME: &str = "probe";
    let node = NodeId(Uuid::new_v4());
    report(commands, keys, node, Bytes::new()).await?;
    member_ages(commands, keys).await?;
    withdraw(commands, keys, node).await?;
    hold(commands, keys, NAME, node, Duration::from_secs(1)).await?;
    release(commands, keys, NAME, node).await
}

fn id(node: NodeId) -> Value {
    Bytes::copy_from_slice(node.0.as_bytes()).into()
}

fn node_id(bytes: &[u8]) -> Answer<NodeId> {
    Uuid::from_slice(bytes)
        .map(NodeId)
        .map_err(|_| BackplaneError::Protocol("redis holds the report of something that is no node".to_owned()))
}

fn micros(time: Duration) -> Value {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX).into()
}

/// Takes a flat answer apart into rows of `N`.
fn in_rows<T, const N: usize>(items: Vec<Value>, row: impl Fn([Value; N]) -> Answer<T>) -> Answer<Vec<T>> {
    let mut rows = Vec::with_capacity(items.len() / N);
    let mut items = items.into_iter();
    while items.len() > 0 {
        rows.push(row(array(Value::Array(items.by_ref().take(N).collect()))?)?);
    }
    Ok(rows)
}

impl Members for RedisBackplane {
    fn report<'a>(&'a self, node: NodeId, report_of_node: Bytes) -> BackplaneFuture<'a, ()> {
        Box::pin(async move {
            check_report(&report_of_node)?;
            report(&self.commands, &self.keys, node, report_of_node).await
        })
    }

    fn withdraw<'a>(&'a self, node: NodeId) -> BackplaneFuture<'a, ()> {
        Box::pin(withdraw(&self.commands, &self.keys, node))
    }

    fn members<'a>(&'a self) -> BackplaneFuture<'a, Vec<Member>> {
        Box::pin(members(&self.commands, &self.keys))
    }

    fn member_ages<'a>(&'a self) -> BackplaneFuture<'a, Vec<(NodeId, Duration)>> {
        Box::pin(member_ages(&self.commands, &self.keys))
    }

    fn hold_lease<'a>(&'a self, name: &'a str, holder: NodeId, ttl: Duration) -> BackplaneFuture<'a, Lease> {
        Box::pin(hold(&self.commands, &self.keys, name, holder, ttl))
    }

    fn release_lease<'a>(&'a self, name: &'a str, holder: NodeId) -> BackplaneFuture<'a, ()> {
        Box::pin(release(&self.commands, &self.keys, name, holder))
    }
}
