//! What is kept of a session, how it is written, and what a connection that asks for it gets.
//!
//! The record is JSON with a version, so that fields can be added: a node keeps fields that it does not know. A record of
//! another version is left alone, and the connection goes on without a session.

use std::collections::BTreeMap;
use std::time::Duration;

use backplane::{ChannelName, ClientId, NodeId};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use session::Now;
use session::io::{Kept, Overrides, ServerSubscribe};
use uuid::Uuid;

use super::verdict::Verdicts;

/// Changes only when an older node must not read what a newer one writes.
const VERSION: u32 = 1;

/// The application's state, at most so long: a page of settings or a draft. What is larger belongs into a database.
pub const STATE_BYTES: usize = 16 * 1024;

/// A session as it is stored.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Record {
    pub(super) v: u32,
    /// The id of the client, which stays the same over all its connections.
    pub client: Uuid,
    /// One more for every connection that had it.
    pub generation: u64,
    /// Where the connection of this generation is; absent after it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Uuid>,
    /// Two living clients use the id: nobody gets it until it expires.
    #[serde(default, skip_serializing_if = "is_false")]
    pub forked: bool,
    /// Connection info.
    #[serde(default, with = "base64_bytes", skip_serializing_if = "Bytes::is_empty")]
    pub info: Bytes,
    /// The subscriptions that a return depends on: with presence, or made by the server API.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subs: Vec<Sub>,
    /// What the application has said when it was asked about the client. Gone when it may think differently by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdicts: Option<Verdicts>,
    /// What the application has stored: JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// One more for every change of the state.
    #[serde(default)]
    pub state_revision: u64,
    /// What a newer version has written.
    #[serde(flatten)]
    pub(super) rest: BTreeMap<String, serde_json::Value>,
}

/// One subscription.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Sub {
    channel: String,
    #[serde(default, skip_serializing_if = "is_false")]
    presence: bool,
    /// Made by the server API.
    #[serde(default, skip_serializing_if = "is_false")]
    dynamic: bool,
    #[serde(default, with = "base64_bytes", skip_serializing_if = "Bytes::is_empty")]
    info: Bytes,
    /// Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expire_at: Option<i64>,
    /// The properties it has, one bit each.
    #[serde(default)]
    has: u8,
}

/// What a connection had when another one took its session over: all of what its record may not have yet.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct HandedOver {
    /// As in [`Record::subs`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subs: Vec<Sub>,
    /// As in [`Record::verdicts`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdicts: Option<Verdicts>,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is not what this gateway writes.
    #[error("a session record cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version has written it.
    #[error("a session record of version {0}, this node reads version {VERSION}")]
    Version(u32),
}

/// How it is known who asks for a session.
#[derive(Clone, PartialEq, Debug)]
#[expect(clippy::large_enum_variant, reason = "made once for a connect, and taken apart at once")]
pub enum Proof {
    /// By a token, or because everybody may connect.
    Own,
    /// The application was asked, just now. What it said, if that may be said again.
    Asked(Option<Verdicts>),
    /// By what the application had said to a former connection of the session. Worth nothing once the session is gone or
    /// revoked.
    Recalled,
}

/// What a connection gets that asks for a session.
#[derive(Clone, PartialEq, Debug)]
#[expect(clippy::large_enum_variant, reason = "made once for a connect, and taken apart at once")]
pub enum Claim {
    /// The record to write.
    Granted {
        /// As it is from now on.
        record: Record,
        /// It was there before, and the client has it again.
        is_back: bool,
        /// The connection that had it until now, if there may be one.
        taken_from: Option<(NodeId, ClientId)>,
        /// What the application had said before still counts: nothing was asked anew, so an earlier revocation does too.
        is_reminded: bool,
    },
    /// Two living clients use the id.
    Forked,
    /// What proved who it is does not any more.
    Unproven,
}

impl Record {
    /// The first of its session.
    pub fn new(client: ClientId, node: NodeId, info: Bytes) -> Self {
        Self {
            v: VERSION,
            client: client.0,
            generation: 1,
            node: Some(node.0),
            forked: false,
            info,
            subs: Vec::new(),
            verdicts: None,
            state: None,
            state_revision: 0,
            rest: BTreeMap::new(),
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When another version has written it, or nobody.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        match serde_json::from_slice(bytes)? {
            Version { v: VERSION } => Ok(serde_json::from_slice(bytes)?),
            Version { v } => Err(RecordError::Version(v)),
        }
    }

    /// As it is stored.
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self).expect("a record has text for keys and finite numbers").into()
    }

    /// Takes what the former connection has handed over, for a client that has its session again. What the application
    /// has said is taken only where it is yet to be seen that it still counts (`is_reminded` of [`Claim::Granted`]).
    pub fn hand_over(&mut self, handed_over: HandedOver, is_reminded: bool) {
        self.subs = handed_over.subs;
        if is_reminded {
            self.verdicts = handed_over.verdicts;
        }
    }

    /// The subscriptions that the server API had made, for a client that comes back.
    pub fn dynamic(&self) -> Vec<ServerSubscribe> {
        self.subs.iter().filter(|sub| sub.dynamic).map(Sub::subscribe).collect()
    }
}

/// Decides what a connection gets, given what is stored. `client` is its id if it is new here.
pub fn claim(found: Option<(Record, bool)>, client: ClientId, node: NodeId, info: Bytes, proof: Proof) -> Claim {
    let fresh = |generation, verdicts| Record { generation, verdicts, ..Record::new(client, node, info.clone()) };
    let granted =
        |record, is_back, taken_from, is_reminded| Claim::Granted { record, is_back, taken_from, is_reminded };
    let Some((former, is_revoked)) = found else {
        return match proof {
            Proof::Own => granted(fresh(1, None), false, None, false),
            Proof::Asked(verdicts) => granted(fresh(1, verdicts), false, None, false),
            Proof::Recalled => Claim::Unproven,
        };
    };
    if former.forked {
        return if proof == Proof::Recalled { Claim::Unproven } else { Claim::Forked };
    }
    let taken_from = former.node.map(|node| (NodeId(node), ClientId(former.client)));
    let generation = former.generation + 1;
    if is_revoked {
        // A verdict that was just given may be older than the revocation: it lets in this once.
        return match proof {
            Proof::Own | Proof::Asked(_) => granted(fresh(generation, None), false, taken_from, false),
            Proof::Recalled => Claim::Unproven,
        };
    }
    let (verdicts, is_reminded) = match proof {
        Proof::Asked(verdicts) => (verdicts, false),
        Proof::Own | Proof::Recalled => {
            let is_reminded = former.verdicts.is_some();
            (former.verdicts, is_reminded)
        }
    };
    let record = Record { generation, node: Some(node.0), info, verdicts, ..former };
    granted(record, true, taken_from, is_reminded)
}

impl Sub {
    /// What is stored of a subscription; `None` when nothing depends on it. `close_delay` is the grace in its end.
    pub fn of(kept: &Kept, now: Now, close_delay: Duration) -> Option<Self> {
        if !kept.presence && !kept.dynamic {
            return None;
        }
        let expire_at = kept.ends.filter(|_| kept.dynamic).map(|ends| {
            let left = ends.0.saturating_sub(now.tick.0) / 1000;
            now.unix.saturating_add_unsigned(left) - i64::try_from(close_delay.as_secs()).unwrap_or(0)
        });
        let info = if kept.dynamic { kept.info.clone() } else { Bytes::new() };
        let has = if kept.dynamic { bits(kept.overrides) } else { 0 };
        let channel = kept.channel.as_str().to_owned();
        Some(Self { channel, presence: kept.presence, dynamic: kept.dynamic, info, expire_at, has })
    }

    fn subscribe(&self) -> ServerSubscribe {
        ServerSubscribe {
            channel: ChannelName::from(self.channel.as_str()),
            info: self.info.clone(),
            data: Bytes::new(),
            recover_since: None,
            expire_at: self.expire_at,
            overrides: overrides(self.has),
        }
    }
}

fn bits(overrides: Overrides) -> u8 {
    let Overrides { presence, join_leave, force_recovery, force_positioning, force_push_join_leave } = overrides;
    let all = [presence, join_leave, force_recovery, force_positioning, force_push_join_leave];
    all.iter().enumerate().filter(|(_, has)| **has == Some(true)).map(|(bit, _)| 1 << bit).sum()
}

fn overrides(bits: u8) -> Overrides {
    let has = |bit: u8| Some(bits & (1 << bit) != 0);
    Overrides {
        presence: has(0),
        join_leave: has(1),
        force_recovery: has(2),
        force_positioning: has(3),
        force_push_join_leave: has(4),
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // Serde calls it with a reference.
fn is_false(value: &bool) -> bool {
    !value
}

pub(super) mod base64_bytes {
    use super::{Bytes, Deserialize, Deserializer, Engine, STANDARD, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map(Bytes::from).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use session::Tick;

    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId(Uuid::from_u128(number))
    }

    fn client(number: u128) -> ClientId {
        ClientId(Uuid::from_u128(number))
    }

    fn kept(channel: &str, presence: bool, dynamic: bool) -> Kept {
        let overrides = Overrides {
            presence: Some(presence),
            join_leave: Some(true),
            force_recovery: Some(false),
            force_positioning: Some(true),
            force_push_join_leave: Some(false),
        };
        let (info, ends) = (Bytes::from_static(&[0, 0xff]), Some(Tick(65_000)));
        Kept { channel: channel.into(), presence, dynamic, info, ends, overrides }
    }

    fn stored() -> Record {
        let now = Now { tick: Tick(5_000), unix: 1_000 };
        let all = [kept("a", false, false), kept("b", true, false), kept("c", true, true)];
        let subs = all.iter().filter_map(|kept| Sub::of(kept, now, Duration::from_secs(25))).collect();
        let state = Some("{\"a\": [1]}".to_owned());
        Record { subs, state, state_revision: 3, ..Record::new(client(1), node(1), Bytes::from_static(b"{}")) }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let record = stored();
        assert_eq!(Record::decode(&record.encode()).expect("what was encoded"), record);
        let channels: Vec<_> = record.subs.iter().map(|sub| (sub.channel.as_str(), sub.presence)).collect();
        assert_eq!(channels, [("b", true), ("c", true)]);
        let [dynamic] = <[ServerSubscribe; 1]>::try_from(record.dynamic()).expect("one is dynamic");
        let expected = kept("c", true, true);
        assert_eq!(
            (dynamic.channel, dynamic.info, dynamic.overrides),
            (expected.channel, expected.info, expected.overrides)
        );
        assert_eq!(dynamic.expire_at, Some(1_000 + 60 - 25));
    }

    #[test]
    fn what_a_newer_version_adds_is_kept_and_another_version_is_refused() {
        let newer =
            String::from_utf8(stored().encode().to_vec()).expect("JSON").replace("{\"v\":1,", "{\"v\":1,\"z\":[1],");
        let record = Record::decode(newer.as_bytes()).expect("readable");
        assert!(String::from_utf8(record.encode().to_vec()).expect("JSON").contains("\"z\":[1]"));
        let other = newer.replace("\"v\":1", "\"v\":2");
        assert!(matches!(Record::decode(other.as_bytes()), Err(RecordError::Version(2))));
        assert!(Record::decode(b"{").is_err());
    }

    #[test]
    fn the_first_connection_begins_a_session() {
        let granted = claim(None, client(2), node(2), Bytes::new(), Proof::Own);
        let record = Record::new(client(2), node(2), Bytes::new());
        assert_eq!(granted, Claim::Granted { record, is_back: false, taken_from: None, is_reminded: false });
    }

    #[test]
    fn whoever_comes_back_keeps_the_id_the_state_and_the_subscriptions() {
        let former = stored();
        let taken_from = Some((node(1), client(1)));
        let info = Bytes::from_static(b"[2]");
        let record = Record { generation: 2, node: Some(node(2).0), info: info.clone(), ..former.clone() };
        let granted = claim(Some((former.clone(), false)), client(2), node(2), info, Proof::Own);
        assert_eq!(granted, Claim::Granted { record, is_back: true, taken_from, is_reminded: false });
        let ended = Record { node: None, ..former };
        let granted = claim(Some((ended, false)), client(2), node(2), Bytes::new(), Proof::Own);
        assert!(matches!(granted, Claim::Granted { taken_from: None, is_back: true, .. }), "{granted:?}");
    }

    #[test]
    fn a_revoked_session_begins_anew_and_ends_the_old_connection() {
        let granted = claim(Some((stored(), true)), client(2), node(2), Bytes::new(), Proof::Own);
        let record = Record { generation: 2, ..Record::new(client(2), node(2), Bytes::new()) };
        let taken_from = Some((node(1), client(1)));
        assert_eq!(granted, Claim::Granted { record, is_back: false, taken_from, is_reminded: false });
    }

    #[test]
    fn a_forked_session_is_nobodys() {
        let forked = Record { forked: true, ..stored() };
        for is_revoked in [false, true] {
            assert_eq!(
                claim(Some((forked.clone(), is_revoked)), client(2), node(2), Bytes::new(), Proof::Own),
                Claim::Forked
            );
        }
    }

    #[test]
    fn what_is_handed_over_is_newer_than_what_was_written() {
        let [written, newer] = [(); 2].map(|()| Some(Verdicts::default()));
        let record = Record { verdicts: written.clone(), ..stored() };
        let handed_over = HandedOver { subs: record.subs[1..].to_vec(), verdicts: newer.clone() };
        let encoded = serde_json::to_vec(&handed_over).expect("JSON");
        assert_eq!(serde_json::from_slice::<HandedOver>(&encoded).expect("what was encoded"), handed_over);
        for (is_reminded, verdicts) in [(true, newer), (false, written)] {
            let mut resumed = record.clone();
            resumed.hand_over(handed_over.clone(), is_reminded);
            assert_eq!(resumed, Record { subs: handed_over.subs.clone(), verdicts, ..record.clone() });
        }
    }

    #[test]
    fn what_the_application_has_said_is_replaced_kept_or_void() {
        let [first, second] = [(); 2].map(|()| Some(Verdicts::default()));
        let told = Record { verdicts: first.clone(), ..stored() };
        let judged = |proof: &Proof, found: Option<(Record, bool)>| match claim(
            found,
            client(2),
            node(2),
            Bytes::new(),
            proof.clone(),
        ) {
            Claim::Granted { record, is_reminded, .. } => Some((record.verdicts, is_reminded)),
            Claim::Forked | Claim::Unproven => None,
        };
        let forked = Record { forked: true, ..told.clone() };
        let asked = Proof::Asked(second.clone());
        for (proof, none, told_before, revoked) in [
            (Proof::Own, Some((None, false)), Some((first.clone(), true)), Some((None, false))),
            (asked, Some((second.clone(), false)), Some((second, false)), Some((None, false))),
            (Proof::Asked(None), Some((None, false)), Some((None, false)), Some((None, false))),
            (Proof::Recalled, None, Some((first, true)), None),
        ] {
            assert_eq!(judged(&proof, None), none, "{proof:?}");
            assert_eq!(judged(&proof, Some((told.clone(), false))), told_before, "{proof:?}");
            assert_eq!(judged(&proof, Some((told.clone(), true))), revoked, "{proof:?}");
            assert_eq!(judged(&proof, Some((forked.clone(), false))), None, "{proof:?}");
        }
        assert_eq!(judged(&Proof::Own, Some((stored(), false))), Some((None, false)), "nothing to be reminded of");
    }
}
