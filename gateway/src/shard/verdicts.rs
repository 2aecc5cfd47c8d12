//! What the application has said about the client of a session, said again to its next connection (`sessions/verdict.rs`
//! has the rules).
//!
//! A connect is recalled before its user is known, claimed like every session, and confirmed once the connection can be
//! found by its user: what the server API revoked before that is seen then, what it revokes later finds the connection.

use std::collections::HashSet;
use std::rc::Rc;

use session::close::CloseCode;
use session::io::Input;
use session::proxy::{ProxyAnswer, ProxyCall, ProxyEvent, ProxyRefusal, SubscribeVerdict};

use super::connection::{Connection, Phase};
use super::{Shard, Work};
use crate::metrics::verdict_reused;
use crate::sessions::record::Proof;
use crate::sessions::store::Key;
use crate::sessions::verdict::{Horizon, Likeness, Verdicts};

/// What the application has said about the client of one connection.
#[derive(Default)]
pub(super) struct Told {
    /// As it is to be in the record.
    pub verdicts: Option<Verdicts>,
    /// The record does not have it yet.
    pub is_changed: bool,
    /// The question that let the client in, if its answer may be kept.
    let_in_by: Option<Likeness>,
    /// The application was asked about the connect.
    is_asked: bool,
    /// What it had said to a former connection has let the client in.
    pub is_recalled: bool,
    /// Channels about which it had said something to a former connection. Each is said again once: whoever unsubscribes
    /// and subscribes on one connection is asked about.
    reminders: HashSet<String>,
    /// It was reminded of something, and it is yet to be seen that nothing was revoked in between.
    pub is_unconfirmed: bool,
    /// How often the server API has changed what the client may: an older answer is not kept.
    revocations: u32,
}

/// A question whose answer may be kept.
pub(super) struct Question {
    likeness: Likeness,
    /// Unix seconds.
    asked_at: i64,
    revocations: u32,
}

impl Told {
    /// How it is known who the client is.
    pub fn proof(&mut self) -> Proof {
        match self {
            Self { is_recalled: true, .. } => Proof::Recalled,
            Self { is_asked: true, verdicts, .. } => Proof::Asked(verdicts.take()),
            Self { .. } => Proof::Own,
        }
    }

    /// The record is this connection's.
    pub fn claimed(&mut self, verdicts: Option<Verdicts>, is_reminded: bool) {
        if is_reminded {
            self.reminders = verdicts.iter().flat_map(Verdicts::channels).map(str::to_owned).collect();
            self.is_unconfirmed = true;
        }
        self.verdicts = verdicts;
    }

    /// The server API has changed what the client may: the application would perhaps not say so again.
    pub fn revoke(&mut self) {
        self.revocations = self.revocations.wrapping_add(1);
        self.is_changed |= self.verdicts.take().is_some();
        self.reminders.clear();
    }

    fn remember_connect(&mut self, question: Option<&Question>, answer: &ProxyAnswer) {
        self.is_asked = true;
        if let (Some(question), ProxyAnswer::Connect(Ok(Some(verdict)))) = (question, answer) {
            self.let_in_by = Some(question.likeness);
            self.verdicts = Verdicts::of_connect(question.likeness, question.asked_at, verdict);
        }
    }

    fn remember_subscribe(&mut self, question: &Question, answer: &ProxyAnswer, horizon: Horizon) {
        let ProxyAnswer::Subscribe { channel, result, .. } = answer else { return };
        match result {
            Ok(Some(verdict)) if question.revocations == self.revocations => {
                let verdicts = self.verdicts.get_or_insert_default();
                verdicts.keep(channel, question.likeness, question.asked_at, verdict, horizon);
                self.is_changed = true;
            }
            // It could not say: what it said before still is what it said last.
            Err(ProxyRefusal::Unavailable(_)) => {}
            Ok(_) | Err(ProxyRefusal::Error(_) | ProxyRefusal::Disconnect(_)) => {
                self.is_changed |= self.verdicts.as_mut().is_some_and(|verdicts| verdicts.forget(channel));
            }
        }
    }
}

impl Shard {
    /// The question as one whose answer may be kept; `None` where it is for this once.
    pub(super) fn question(&self, connection: &Connection, call: &ProxyCall) -> Option<Question> {
        let runtime = self.node.runtime();
        if runtime.sessions.verdict_ttl.is_zero() || self.node.sessions().is_none() {
            return None;
        }
        let resumables = self.resumables.borrow();
        let resumable = resumables.get(connection)?;
        let forwarded = connection.forwarded.take();
        let likeness = runtime.proxies.likeness(call, connection.encoding, forwarded.as_deref());
        connection.forwarded.set(forwarded);
        let likeness = match call.event {
            ProxyEvent::Subscribe { .. } if resumable.has_record() => likeness?.after(resumable.told.let_in_by),
            ProxyEvent::Subscribe { .. } => return None,
            _ => likeness?,
        };
        Some(Question { likeness, asked_at: self.now().unix, revocations: resumable.told.revocations })
    }

    /// Lets a client in by what the application had said to a former connection of its session, or asks it.
    pub(super) fn recall_connect(self: &Rc<Self>, connection: Rc<Connection>, call: ProxyCall, question: Question) {
        let id = self.resumables.borrow().get(&connection).map(|resumable| resumable.id.clone());
        let (Some(id), Some(sessions)) = (id, self.node.sessions()) else {
            return self.ask_application(connection, call, Some(question));
        };
        let (horizon, anonymous) = (self.horizon(), self.node.runtime().sessions.anonymous);
        let likeness = question.likeness;
        let recalled = async move { sessions.recall(&id, likeness, horizon, anonymous).await };
        self.perform(recalled, move |shard, recalled| {
            let recalled = recalled.unwrap_or_else(|error| {
                tracing::debug!(%error, "the application is asked, as it is unknown what it has said before");
                None
            });
            match recalled {
                Some(verdict) if connection.phase.get() == Phase::Open => {
                    if let Some(resumable) = shard.resumables.borrow_mut().get_mut(&connection) {
                        resumable.told.is_recalled = true;
                        resumable.told.let_in_by = Some(likeness);
                    }
                    verdict_reused("connect");
                    let answer = Box::new(ProxyAnswer::Connect(Ok(Some(verdict))));
                    shard.enqueue(Work::Input(connection, Input::Proxied(answer)));
                }
                Some(_) | None => shard.ask_application(connection, call, Some(question)),
            }
        });
    }

    /// What the application had said to a former connection about this subscribe.
    pub(super) fn recall_subscribe(
        &self,
        connection: &Connection,
        channel: &str,
        question: &Question,
    ) -> Option<SubscribeVerdict> {
        let horizon = self.horizon();
        let mut resumables = self.resumables.borrow_mut();
        let told = &mut resumables.get_mut(connection)?.told;
        if !told.reminders.remove(channel) {
            return None;
        }
        let verdict = told.verdicts.as_ref()?.subscribe(channel, question.likeness, horizon)?;
        verdict_reused("subscribe");
        Some(verdict)
    }

    /// Keeps what the application has just said, for the return of the client.
    pub(super) fn remember(&self, connection: &Connection, question: Option<&Question>, answer: &ProxyAnswer) {
        if connection.phase.get() != Phase::Open {
            // By now its place may be another's.
            return;
        }
        let horizon = self.horizon();
        let mut resumables = self.resumables.borrow_mut();
        let Some(resumable) = resumables.get_mut(connection) else { return };
        match (answer, question) {
            (ProxyAnswer::Connect(_), question) => resumable.told.remember_connect(question, answer),
            (ProxyAnswer::Subscribe { .. }, Some(question)) => {
                resumable.told.remember_subscribe(question, answer, horizon);
            }
            _ => {}
        }
    }

    /// Looks whether anything was revoked while a connection that was reminded could not be found by its user.
    pub(super) fn confirm(self: &Rc<Self>, connection: &Rc<Connection>) {
        let is_due = self.resumables.borrow().get(connection).is_some_and(|resumable| resumable.told.is_unconfirmed);
        let (true, Some(place), Some(sessions)) = (is_due, self.place(connection), self.node.sessions()) else {
            return;
        };
        let (conn, ttl) = (connection.clone(), self.node.runtime().sessions.ttl);
        let stands = async move { sessions.stands(Key { user: &place.user, id: &place.id, ttl }).await };
        self.perform(stands, move |shard, stands| match stands {
            Ok(false) => shard.disprove(&conn),
            Ok(true) if conn.phase.get() == Phase::Open => {
                if let Some(resumable) = shard.resumables.borrow_mut().get_mut(&conn) {
                    resumable.told.is_unconfirmed = false;
                }
            }
            Ok(true) => {}
            Err(error) => tracing::debug!(%error, "it is looked again whether a session was revoked"),
        });
    }

    /// What a connection was reminded of does not count any more: it comes again, and the application is asked.
    pub(super) fn disprove(self: &Rc<Self>, connection: &Rc<Connection>) {
        if connection.phase.get() == Phase::Open {
            self.input(connection, Input::Close(CloseCode::InsufficientState));
        }
    }

    fn horizon(&self) -> Horizon {
        Horizon { now: self.now().unix, ttl: self.node.runtime().sessions.verdict_ttl }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use backplane::ChannelName;
    use bytes::Bytes;
    use session::io::ConnectionGrant;
    use session::proxy::{ConnectVerdict, ProxyResult};

    use super::*;

    const HORIZON: Horizon = Horizon { now: 100, ttl: Duration::from_secs(60) };

    fn question(told: &Told) -> Question {
        Question { likeness: Likeness::of([]), asked_at: HORIZON.now, revocations: told.revocations }
    }

    fn connect() -> ProxyAnswer {
        let (user, subs) = (backplane::UserId::from("ann"), std::collections::BTreeMap::new());
        let grant = ConnectionGrant { user, expire_at: None, info: Bytes::new(), subs, meta: Bytes::new() };
        ProxyAnswer::Connect(Ok(Some(ConnectVerdict { grant, data: Bytes::new() })))
    }

    fn subscribe(result: ProxyResult<SubscribeVerdict>) -> ProxyAnswer {
        ProxyAnswer::Subscribe { id: 2, channel: ChannelName::from("chat:a"), result }
    }

    fn channels(told: &Told) -> usize {
        told.verdicts.as_ref().map_or(0, |verdicts| verdicts.channels().count())
    }

    #[test]
    fn the_application_is_taken_at_its_last_word() {
        let mut told = Told::default();
        let yes = subscribe(Ok(Some(SubscribeVerdict::default())));
        let refused = protocol::Error { code: 1000, message: String::new(), temporary: false };
        for no in [
            subscribe(Ok(None)),
            subscribe(Err(ProxyRefusal::Error(refused))),
            subscribe(Err(ProxyRefusal::Disconnect(CloseCode::ForceDisconnect))),
        ] {
            let question = question(&told);
            told.remember_subscribe(&question, &yes, HORIZON);
            assert_eq!((channels(&told), told.is_changed), (1, true));
            told.remember_subscribe(&question, &subscribe(Err(ProxyRefusal::Unavailable(String::new()))), HORIZON);
            assert_eq!(channels(&told), 1, "it was not reached");
            told.is_changed = false;
            told.remember_subscribe(&question, &no, HORIZON);
            assert_eq!((channels(&told), told.is_changed), (0, true), "{no:?}");
        }
    }

    #[test]
    fn an_answer_from_before_a_revocation_is_not_kept() {
        let mut told = Told::default();
        let question = question(&told);
        told.claimed(Some(Verdicts::default()), true);
        told.revoke();
        assert!(told.verdicts.is_none() && told.is_changed && told.reminders.is_empty());
        told.remember_subscribe(&question, &subscribe(Ok(Some(SubscribeVerdict::default()))), HORIZON);
        assert_eq!(channels(&told), 0);
    }

    #[test]
    fn the_proof_is_where_the_client_was_known_from() {
        assert_eq!(Told::default().proof(), Proof::Own);
        let mut told = Told::default();
        told.remember_connect(None, &connect());
        assert_eq!(told.proof(), Proof::Asked(None), "its answer is for this once");
        let question = question(&told);
        told.remember_connect(Some(&question), &connect());
        assert!(matches!(told.proof(), Proof::Asked(Some(_))));
        assert_eq!(Told { is_recalled: true, ..Told::default() }.proof(), Proof::Recalled);
    }
}
