//! Buckets of presence entries that linger: those of clients that may come back.
//!
//! A bucket takes the place of a lease. Entries that begin to linger within the same second on one node share one; its id
//! holds the time at which they leave, so that readers need not ask whether it lives. The sorted set of all buckets says
//! which are over. Each of those is claimed by one node at a time, which removes what still is in it, entry by entry by
//! comparison, with the leaves; a node that dies over it loses its claim. No entry comes into a bucket that is over, by the
//! clock of the server that holds the entry.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fred::types::Value;
use tokio::time::Instant;
use uuid::{Builder, Uuid};

use super::commands::Commands;
use super::connection::{Script, list, number, script, text};
use super::keys::Keys;
use super::millis;
use crate::BackplaneError;

static CLAIM: Script = script!("claim_bucket.lua");

/// For how long a bucket takes entries: they leave up to this much later than asked for, and a node makes one bucket in
/// this time at most.
const OPEN: Duration = Duration::from_secs(1);

/// How much later than its entries leave a bucket is emptied: more than clocks of the servers of a cluster differ, and
/// a call that moves an entry is on its way.
const MARGIN: Duration = Duration::from_millis(500);

/// How long a node may take to empty a bucket before another one does.
const CLAIM_TIME: Duration = Duration::from_secs(10);

/// An entry that nobody has removed so long after its time, for whatever reason, is not shown any more. Far more than
/// clocks of nodes differ.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// The version of the ids of buckets; leases have another one.
const VERSION: usize = 7;

type Answer<T> = Result<T, BackplaneError>;

/// Where entries that begin to linger now are put.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    open: tokio::sync::Mutex<Option<Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    id: Uuid,
    grace: Duration,
    opened: Instant,
}

impl Buckets {
    /// A bucket whose entries stay for at least `grace` from now.
    pub(super) async fn open(&self, commands: &Commands, keys: &Keys, grace: Duration) -> Answer<Uuid> {
        let mut open = self.open.lock().await;
        if let Some(bucket) = &*open
            && bucket.grace == grace
            && bucket.opened.elapsed() < OPEN
        {
            return Ok(bucket.id);
        }
        let opened = Instant::now();
        let id = make(server_time(commands, keys).await? + grace + OPEN);
        let due = i64::try_from((end(id) + MARGIN).as_millis()).unwrap_or(i64::MAX);
        let table = keys.buckets();
        let row = vec![table.as_str().into(), due.into(), id.simple().to_string().into()];
        commands.call(&table, "ZADD", row).await?;
        *open = Some(Bucket { id, grace, opened });
        Ok(id)
    }
}

/// The server's time since 1970.
async fn server_time(commands: &Commands, keys: &Keys) -> Answer<Duration> {
    let parts = list(commands.call(&keys.buckets(), "TIME", Vec::new()).await?)?;
    let [seconds, micros] = <[Value; 2]>::try_from(parts)
        .map_err(|parts| BackplaneError::Protocol(format!("redis says the time is {parts:?}")))?;
    Ok(Duration::from_secs(number(&seconds)?) + Duration::from_micros(number(&micros)?))
}

fn make(end: Duration) -> Uuid {
    let millis = u64::try_from(end.as_millis()).unwrap_or(u64::MAX);
    Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid()
}

/// When the entries of a bucket leave, since 1970.
pub(super) fn end(bucket: Uuid) -> Duration {
    // The first 48 bits are milliseconds.
    Duration::from_millis(u64::try_from(bucket.as_u128() >> 80).unwrap_or(u64::MAX))
}

/// Whether an entry belongs to a bucket rather than to a lease.
pub(super) fn is_bucket(lease: Uuid) -> bool {
    lease.get_version_num() == VERSION
}

/// Whether the entries of a bucket are still shown.
pub(super) fn is_shown(bucket: Uuid) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now < end(bucket) + FORGOTTEN
}

/// A bucket that is over, for the caller to empty.
pub(super) async fn claim(commands: &Commands, keys: &Keys) -> Answer<Option<Uuid>> {
    claim_for(commands, keys, CLAIM_TIME).await
}

async fn claim_for(commands: &Commands, keys: &Keys, time: Duration) -> Answer<Option<Uuid>> {
    match commands.script(&CLAIM, vec![keys.buckets()], vec![millis(time)]).await? {
        Value::Null => Ok(None),
        id => {
            let id = text(id)?;
            Uuid::try_parse(&id)
                .map(Some)
                .map_err(|_| BackplaneError::Protocol(format!("redis holds the bucket {id:?}")))
        }
    }
}

/// Forgets a bucket that is empty.
pub(super) async fn forget(commands: &Commands, keys: &Keys, bucket: Uuid) -> Answer<()> {
    let table = keys.buckets();
    let row = vec![table.as_str().into(), bucket.simple().to_string().into()];
    commands.call(&table, "ZREM", row).await?;
    Ok(())
}

/// Does once what will be done all the time; a bucket that is claimed thereby is free again at once.
pub(super) async fn probe(commands: &Commands, keys: &Keys) -> Answer<()> {
    let id = make(server_time(commands, keys).await?);
    let table = keys.buckets();
    let row = vec![table.as_str().into(), 0.into(), id.simple().to_string().into()];
    commands.call(&table, "ZADD", row).await?;
    claim_for(commands, keys, Duration::from_millis(1)).await?;
    forget(commands, keys, id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_bucket_tells_when_it_ends() {
        let at = Duration::from_millis(1_790_000_000_123);
        let (one, other) = (make(at), make(at));
        assert_ne!(one, other);
        assert_eq!((end(one), is_bucket(one), is_bucket(Uuid::new_v4())), (at, true, false));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
        assert!(is_shown(make(now)) && !is_shown(make(now - 2 * FORGOTTEN)));
    }
}
