//! Session records on Redis: compare-and-set in a script, on a clock of their user that never goes back.

use std::time::Duration;

use bytes::Bytes;
use fred::types::Value;

use super::connection::{Commands, Script, blob, list, number, script, unexpected};
use super::keys::{Keys, UserKeys};
use super::{RedisBackplane, array, count, millis};
use crate::sessions::check_session;
use crate::{BackplaneError, BackplaneFuture, SESSIONS_PER_USER, SessionRecord, SessionStore, SessionWrite, UserId};

static LOAD: Script = script!("load_session.lua");
static WRITE: Script = script!("write_session.lua");
static TOUCH: Script = script!("touch_session.lua");
static DELETE: Script = script!("delete_session.lua");
static REVOKE: Script = script!("revoke.lua");

type Answer<T> = Result<T, BackplaneError>;

async fn load(commands: &Commands, keys: &UserKeys, session: &str) -> Answer<Option<SessionRecord>> {
    let names = vec![keys.session(session), keys.revoked()];
    record(list(commands.script(&LOAD, names, Vec::new()).await?)?)
}

async fn write(
    commands: &Commands,
    keys: &UserKeys,
    session: &str,
    expected: Option<u64>,
    data: Bytes,
    is_authorised: bool,
    ttl: Duration,
) -> Answer<SessionWrite> {
    check_session(session, &data)?;
    let arguments = vec![
        expected.map_or(String::new(), |revision| revision.to_string()).into(),
        data.into(),
        if is_authorised { "1" } else { "0" }.into(),
        millis(ttl),
        UserKeys::encoded(session).into(),
        count(SESSIONS_PER_USER),
    ];
    let mut answer = list(commands.script(&WRITE, names(keys, session), arguments).await?)?;
    if answer.is_empty() {
        return Err(unexpected(&Value::Array(answer)));
    }
    match number(&answer.remove(0))? {
        0 => Ok(SessionWrite::Conflict(record(answer)?)),
        _ => {
            let [revision] = array(Value::Array(answer))?;
            Ok(SessionWrite::Stored(number(&revision)?))
        }
    }
}

async fn touch(commands: &Commands, keys: &UserKeys, session: &str, ttl: Duration) -> Answer<bool> {
    Ok(number(&commands.script(&TOUCH, names(keys, session), vec![millis(ttl)]).await?)? == 1)
}

async fn delete(commands: &Commands, keys: &UserKeys, session: &str) -> Answer<()> {
    let names = vec![keys.session(session), keys.written()];
    commands.script(&DELETE, names, vec![UserKeys::encoded(session).into()]).await?;
    Ok(())
}

async fn revoke(commands: &Commands, keys: &UserKeys, ttl: Duration) -> Answer<()> {
    commands.script(&REVOKE, vec![keys.revoked(), keys.written()], vec![millis(ttl)]).await?;
    Ok(())
}

/// Does once what will be done all the time, for a user that nobody can be.
pub(super) async fn probe(commands: &Commands, keys: &Keys) -> Answer<()> {
    const BRIEFLY: Duration = Duration::from_secs(1);
    let (keys, session) = (keys.nobody(), uuid::Uuid::new_v4().simple().to_string());
    write(commands, &keys, &session, None, Bytes::new(), true, BRIEFLY).await?;
    load(commands, &keys, &session).await?;
    touch(commands, &keys, &session, BRIEFLY).await?;
    revoke(commands, &keys, BRIEFLY).await?;
    delete(commands, &keys, &session).await
}

/// The keys of a change.
fn names(keys: &UserKeys, session: &str) -> Vec<String> {
    vec![keys.session(session), keys.written(), keys.revoked()]
}

/// A record as the scripts return it.
fn record(answer: Vec<Value>) -> Answer<Option<SessionRecord>> {
    if answer.is_empty() {
        return Ok(None);
    }
    let [revision, data, is_revoked] = array(Value::Array(answer))?;
    let (revision, is_revoked) = (number(&revision)?, number(&is_revoked)? == 1);
    Ok(Some(SessionRecord { revision, data: blob(data)?, is_revoked }))
}

impl SessionStore for RedisBackplane {
    fn load<'a>(&'a self, user: &'a UserId, session: &'a str) -> BackplaneFuture<'a, Option<SessionRecord>> {
        Box::pin(async move { load(&self.commands, &self.keys.user(user.as_str()), session).await })
    }

    fn compare_and_set<'a>(
        &'a self,
        user: &'a UserId,
        session: &'a str,
        expected: Option<u64>,
        data: Bytes,
        is_authorised: bool,
        ttl: Duration,
    ) -> BackplaneFuture<'a, SessionWrite> {
        Box::pin(async move {
            let keys = self.keys.user(user.as_str());
            write(&self.commands, &keys, session, expected, data, is_authorised, ttl).await
        })
    }

    fn touch<'a>(&'a self, user: &'a UserId, session: &'a str, ttl: Duration) -> BackplaneFuture<'a, bool> {
        Box::pin(async move { touch(&self.commands, &self.keys.user(user.as_str()), session, ttl).await })
    }

    fn delete<'a>(&'a self, user: &'a UserId, session: &'a str) -> BackplaneFuture<'a, ()> {
        Box::pin(async move { delete(&self.commands, &self.keys.user(user.as_str()), session).await })
    }

    fn revoke<'a>(&'a self, user: &'a UserId, ttl: Duration) -> BackplaneFuture<'a, ()> {
        Box::pin(async move { revoke(&self.commands, &self.keys.user(user.as_str()), ttl).await })
    }
}
