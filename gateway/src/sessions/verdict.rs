//! What the application has said about a client through the proxies of connect and subscribe, kept for its return: these
//! are the pure rules of what is said again without asking.
//!
//! A verdict is bound to the question it answered. Two questions are alike when everything that the application could
//! decide by is the same: its address and headers, the data of the command, and who the client is where that is known. Of
//! a question only a keyed hash is stored, under a key that is random for each session, so that a record cannot be
//! searched for cookies.

use std::time::Duration;

use aws_lc_rs::digest;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use backplane::UserId;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use session::io::{ConnectionGrant, Overrides, SubscriptionOptions};
use session::proxy::{ConnectVerdict, SubscribeVerdict};

use super::record::base64_bytes;

/// Bytes of the verdicts of one session: 128 subscriptions, all that a connection has by default, with 100 bytes of name
/// and payload each. Far below what a record may have. What does not fit is asked again.
const BYTES_MAX: usize = 32 * 1024;

/// What an entry takes beside names and payloads: the hash, times, and the names of fields.
const ENTRY_BYTES: usize = 128;

/// How much the clock of another node may be ahead, seconds. A verdict from further in the future is none.
const CLOCK_SKEW: i64 = 5;

/// A digest of what the application was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Likeness([u8; 32]);

impl Likeness {
    /// Of a question with these parts, in this order.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in parts {
            // The length in front keeps the parts apart.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        Self(bytes)
    }

    /// Of a question about a client that was let in by another question; `None` when it was not the application that let
    /// it in.
    pub fn after(self, connect: Option<Self>) -> Self {
        Self::of([&self.0[..], connect.as_ref().map_or(&[][..], |connect| &connect.0)])
    }
}

/// When a verdict is looked at, and how long it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Horizon {
    /// Unix seconds.
    pub now: i64,
    /// How long a verdict holds after it was asked for.
    pub ttl: Duration,
}

/// Everything the application has said about the client of one session.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Verdicts {
    /// The key of the hashes.
    #[serde(with = "base64_bytes")]
    salt: Bytes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connect: Option<Welcome>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    subs: Vec<Permission>,
}

/// What every verdict has.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct Judgement {
    /// The keyed hash of the question.
    #[serde(with = "base64_bytes")]
    mark: Bytes,
    /// When it was asked, Unix seconds.
    at: i64,
    /// When what was granted ends, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expire_at: Option<i64>,
}

/// To a connect.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct Welcome {
    #[serde(flatten)]
    judgement: Judgement,
    #[serde(default, with = "base64_bytes", skip_serializing_if = "Bytes::is_empty")]
    info: Bytes,
    #[serde(default, with = "base64_bytes", skip_serializing_if = "Bytes::is_empty")]
    data: Bytes,
    #[serde(default, with = "base64_bytes", skip_serializing_if = "Bytes::is_empty")]
    meta: Bytes,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    channels: Vec<Granted>,
}

/// To a subscribe.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct Permission {
    #[serde(flatten)]
    judgement: Judgement,
    #[serde(flatten)]
    granted: Granted,
}

/// A channel with its options.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct Granted {
    channel: String,
    #[serde(default, with = "base64_bytes", skip_serializing_if = "Bytes::is_empty")]
    info: Bytes,
    #[serde(default, with = "base64_bytes", skip_serializing_if = "Bytes::is_empty")]
    data: Bytes,
    /// The overrides that are given, one bit each, and those of them that are on.
    #[serde(default, skip_serializing_if = "is_zero")]
    given: u8,
    #[serde(default, skip_serializing_if = "is_zero")]
    on: u8,
}

impl Default for Verdicts {
    /// None yet, and a new key.
    fn default() -> Self {
        let salt = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
        Self { salt, connect: None, subs: Vec::new() }
    }
}

impl Verdicts {
    /// Beginning with this one, which was asked for at `at`; `None` when it is too large to be kept.
    pub fn of_connect(likeness: Likeness, at: i64, verdict: &ConnectVerdict) -> Option<Self> {
        let mut verdicts = Self::default();
        let ConnectVerdict { grant, data } = verdict;
        verdicts.connect = Some(Welcome {
            judgement: Judgement { mark: verdicts.mark(likeness), at, expire_at: grant.expire_at },
            info: grant.info.clone(),
            data: data.clone(),
            meta: grant.meta.clone(),
            channels: grant.subs.iter().map(|(channel, options)| Granted::of(channel, options)).collect(),
        });
        (verdicts.bytes() <= BYTES_MAX).then_some(verdicts)
    }

    /// What was said about this very connect, of this user, if it still holds.
    pub fn connect(&self, user: &UserId, likeness: Likeness, horizon: Horizon) -> Option<ConnectVerdict> {
        let welcome = self.connect.as_ref()?;
        if !self.is_answer(&welcome.judgement, likeness, horizon) {
            return None;
        }
        let channels = welcome.channels.iter();
        let grant = ConnectionGrant {
            user: user.clone(),
            expire_at: welcome.judgement.expire_at,
            info: welcome.info.clone(),
            subs: channels.map(|granted| (granted.channel.clone(), granted.options())).collect(),
            meta: welcome.meta.clone(),
        };
        Some(ConnectVerdict { grant, data: welcome.data.clone() })
    }

    /// Keeps what was said about a subscribe, in place of what was said before. It is left out when it is too large.
    pub fn keep(&mut self, channel: &str, likeness: Likeness, at: i64, verdict: &SubscribeVerdict, horizon: Horizon) {
        self.forget(channel);
        self.subs.retain(|permission| permission.judgement.holds(horizon));
        let judgement = Judgement { mark: self.mark(likeness), at, expire_at: verdict.expire_at };
        self.subs.push(Permission { judgement, granted: Granted::of(channel, &verdict.options) });
        if self.bytes() > BYTES_MAX {
            self.subs.pop();
        }
    }

    /// What was said about this very subscribe, if it still holds.
    pub fn subscribe(&self, channel: &str, likeness: Likeness, horizon: Horizon) -> Option<SubscribeVerdict> {
        let permission = self.subs.iter().find(|permission| permission.granted.channel == channel)?;
        let expire_at = permission.judgement.expire_at;
        self.is_answer(&permission.judgement, likeness, horizon)
            .then(|| SubscribeVerdict { expire_at, options: permission.granted.options() })
    }

    /// Nothing is known about a subscribe to this channel any more. True if something was.
    pub fn forget(&mut self, channel: &str) -> bool {
        let before = self.subs.len();
        self.subs.retain(|permission| permission.granted.channel != channel);
        self.subs.len() < before
    }

    /// The channels about which something is known.
    pub fn channels(&self) -> impl Iterator<Item = &str> {
        self.subs.iter().map(|permission| permission.granted.channel.as_str())
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(HMAC_SHA256, &self.salt)
    }

    fn mark(&self, likeness: Likeness) -> Bytes {
        Bytes::copy_from_slice(hmac::sign(&self.key(), &likeness.0).as_ref())
    }

    fn is_answer(&self, judgement: &Judgement, likeness: Likeness, horizon: Horizon) -> bool {
        judgement.holds(horizon) && hmac::verify(&self.key(), &likeness.0, &judgement.mark).is_ok()
    }

    fn bytes(&self) -> usize {
        let welcome = self.connect.as_ref().map_or(0, |welcome| {
            let payloads = welcome.info.len() + welcome.data.len() + welcome.meta.len();
            ENTRY_BYTES + payloads + welcome.channels.iter().map(Granted::bytes).sum::<usize>()
        });
        welcome + self.subs.iter().map(|permission| permission.granted.bytes()).sum::<usize>()
    }
}

impl Judgement {
    fn holds(&self, horizon: Horizon) -> bool {
        let Horizon { now, ttl } = horizon;
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let age = now.saturating_sub(self.at);
        (-CLOCK_SKEW..ttl).contains(&age) && ttl > 0 && self.expire_at.is_none_or(|end| now < end)
    }
}

impl Granted {
    fn of(channel: &str, options: &SubscriptionOptions) -> Self {
        let (given, on) = bits(options.overrides);
        Self { channel: channel.to_owned(), info: options.info.clone(), data: options.data.clone(), given, on }
    }

    fn options(&self) -> SubscriptionOptions {
        SubscriptionOptions {
            info: self.info.clone(),
            data: self.data.clone(),
            overrides: overrides(self.given, self.on),
        }
    }

    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.channel.len() + self.info.len() + self.data.len()
    }
}

fn bits(overrides: Overrides) -> (u8, u8) {
    let Overrides { presence, join_leave, force_recovery, force_positioning, force_push_join_leave } = overrides;
    let all = [presence, join_leave, force_recovery, force_positioning, force_push_join_leave];
    let sum = |is: fn(Option<bool>) -> bool| {
        all.iter().enumerate().filter(|(_, option)| is(**option)).map(|(bit, _)| 1 << bit).sum()
    };
    (sum(|option| option.is_some()), sum(|option| option == Some(true)))
}

fn overrides(given: u8, on: u8) -> Overrides {
    let option = |bit: u8| (given & (1 << bit) != 0).then_some(on & (1 << bit) != 0);
    Overrides {
        presence: option(0),
        join_leave: option(1),
        force_recovery: option(2),
        force_positioning: option(3),
        force_push_join_leave: option(4),
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // Serde calls it with a reference.
fn is_zero(value: &u8) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn at(now: i64) -> Horizon {
        Horizon { now, ttl: TTL }
    }

    fn question(cookie: &str) -> Likeness {
        Likeness::of([b"connect", cookie.as_bytes()])
    }

    fn options(info: &'static str) -> SubscriptionOptions {
        let overrides = Overrides { presence: Some(true), join_leave: Some(false), ..Overrides::default() };
        SubscriptionOptions { info: Bytes::from_static(info.as_bytes()), data: Bytes::from_static(b"{}"), overrides }
    }

    fn welcome(expire_at: Option<i64>) -> ConnectVerdict {
        let grant = ConnectionGrant {
            user: UserId::from("ann"),
            expire_at,
            info: Bytes::from_static(&[0, 0xff]),
            subs: [("news:a".to_owned(), options("[1]")), ("news:b".to_owned(), SubscriptionOptions::default())].into(),
            meta: Bytes::from_static(b"{\"m\":1}"),
        };
        ConnectVerdict { grant, data: Bytes::from_static(b"[2]") }
    }

    fn permission(expire_at: Option<i64>) -> SubscribeVerdict {
        SubscribeVerdict { expire_at, options: options("[3]") }
    }

    fn stored(verdicts: &Verdicts) -> Verdicts {
        let text = serde_json::to_string(verdicts).expect("it has a JSON form");
        serde_json::from_str(&text).expect("what was written")
    }

    #[test]
    fn a_verdict_is_given_again_whole_to_the_same_question_only() {
        let ann = UserId::from("ann");
        let mut verdicts = Verdicts::of_connect(question("a"), 100, &welcome(Some(500))).expect("it is small");
        verdicts.keep("chat:a", question("x"), 100, &permission(None), at(100));
        let verdicts = stored(&verdicts);
        assert_eq!(verdicts.connect(&ann, question("a"), at(101)), Some(welcome(Some(500))));
        assert_eq!(verdicts.connect(&ann, question("b"), at(101)), None);
        assert_eq!(verdicts.subscribe("chat:a", question("x"), at(101)), Some(permission(None)));
        assert_eq!(verdicts.subscribe("chat:a", question("y"), at(101)), None);
        assert_eq!(verdicts.subscribe("chat:b", question("x"), at(101)), None);
    }

    #[test]
    fn a_verdict_holds_for_its_time_and_never_longer_than_what_it_grants() {
        let ann = UserId::from("ann");
        for (expire_at, now, ttl, holds) in [
            (None, 100, TTL, true),
            (None, 159, TTL, true),
            (None, 160, TTL, false),
            (None, i64::MAX, TTL, false),
            // Another node's clock.
            (None, 95, TTL, true),
            (None, 94, TTL, false),
            (Some(120), 119, TTL, true),
            (Some(120), 120, TTL, false),
            (None, 100, Duration::ZERO, false),
            (None, 96, Duration::ZERO, false),
        ] {
            let mut verdicts = Verdicts::of_connect(question("a"), 100, &welcome(expire_at)).expect("it is small");
            verdicts.keep("chat:a", question("x"), 100, &permission(expire_at), at(100));
            let horizon = Horizon { now, ttl };
            assert_eq!(verdicts.connect(&ann, question("a"), horizon).is_some(), holds, "{expire_at:?} at {now}");
            assert_eq!(verdicts.subscribe("chat:a", question("x"), horizon).is_some(), holds, "{expire_at:?} at {now}");
        }
    }

    #[test]
    fn parts_of_a_question_do_not_run_into_each_other() {
        assert_ne!(Likeness::of([&b"ab"[..], b"c"]), Likeness::of([&b"a"[..], b"bc"]));
        assert_ne!(Likeness::of([&b"a"[..]]), Likeness::of([&b"a"[..], b""]));
        let (first, second) = (question("a"), question("b"));
        let sub = Likeness::of([&b"subscribe"[..]]);
        assert_ne!(sub.after(Some(first)), sub.after(Some(second)));
        assert_ne!(sub.after(Some(first)), sub.after(None));
    }

    #[test]
    fn no_two_sessions_store_the_same_hash() {
        let [first, second] = [(); 2].map(|()| Verdicts::of_connect(question("a"), 100, &welcome(None)));
        let mark = |verdicts: Option<Verdicts>| verdicts.and_then(|verdicts| Some(verdicts.connect?.judgement.mark));
        let (first, second) = (mark(first), mark(second));
        assert!(first.is_some() && first != second);
    }

    #[test]
    fn only_the_last_verdict_about_a_channel_is_kept() {
        let mut verdicts = Verdicts::default();
        verdicts.keep("chat:a", question("x"), 100, &permission(None), at(100));
        verdicts.keep("chat:a", question("y"), 101, &permission(None), at(101));
        assert_eq!(verdicts.channels().collect::<Vec<_>>(), ["chat:a"]);
        assert_eq!(verdicts.subscribe("chat:a", question("x"), at(102)), None);
        // One that is over makes room.
        verdicts.keep("chat:b", question("x"), 161, &permission(None), at(161));
        assert_eq!(verdicts.channels().collect::<Vec<_>>(), ["chat:b"]);
        assert!(verdicts.forget("chat:b") && !verdicts.forget("chat:b"));
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let large = Bytes::from(vec![b'x'; BYTES_MAX]);
        let connect = ConnectVerdict { data: large.clone(), ..welcome(None) };
        assert_eq!(Verdicts::of_connect(question("a"), 100, &connect), None);
        let mut verdicts = Verdicts::of_connect(question("a"), 100, &welcome(None)).expect("it is small");
        let options = SubscriptionOptions { info: large, ..SubscriptionOptions::default() };
        let subscribe = SubscribeVerdict { expire_at: None, options };
        verdicts.keep("chat:a", question("x"), 100, &subscribe, at(100));
        assert_eq!(verdicts.channels().count(), 0);
        for channel in 0..1000 {
            verdicts.keep(&channel.to_string(), question("x"), 100, &permission(None), at(100));
        }
        assert!(verdicts.bytes() <= BYTES_MAX && verdicts.channels().count() > 128, "{}", verdicts.channels().count());
    }
}
