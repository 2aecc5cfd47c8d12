//! What nodes say to each other: JSON, because it is little and because fields can be added. A node ignores fields it
//! does not know, and answers a request that it does not know with an error, so that old and new versions share one
//! backplane during a rollout.

use std::collections::BTreeMap;

use backplane::{ChannelName, ClientId, Epoch, NodeId, Offset, StreamPosition, UserId};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use session::CloseCode;
use session::io::{Overrides, ServerSubscribe};
use uuid::Uuid;

use crate::api::info::NodeInfo;
use crate::sessions::record::HandedOver;
use crate::shard::command::{Action, Applied, Refresh, TakenOver, Target};

/// Changes only when an older node must not read what a newer one says.
const VERSION: u32 = 1;

/// What one node asks of all.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct Call {
    v: u32,
    /// Chosen at random by the caller.
    pub id: u64,
    /// The node that gets the answers.
    pub from: Uuid,
    #[serde(deserialize_with = "known_or_default")]
    pub request: Request,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Act on connections.
    Apply { target: WireTarget, action: WireAction },
    /// Which channels have subscribers; an empty pattern means all.
    Channels { pattern: String },
    /// What the node is doing.
    Info {},
    /// Close the connection that has a session. Asked of one node only.
    TakeOver { user: String, client: Uuid, generation: u64 },
    /// One that this version does not know.
    #[default]
    Unknown,
}

/// What one node answers.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct Answer {
    v: u32,
    pub id: u64,
    /// The node that answers.
    pub node: Uuid,
    #[serde(deserialize_with = "known_or_default")]
    pub result: WireResult,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "snake_case")]
pub(super) enum WireResult {
    Applied {
        matched: usize,
        already_subscribed: usize,
    },
    /// Of [`Request::TakeOver`]. Earlier versions say how many they have `Applied` it to.
    TakenOver {
        was_open: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        handed_over: Option<Box<HandedOver>>,
    },
    Channels(BTreeMap<String, usize>),
    Info(Box<NodeInfo>),
    Failed(String),
    /// One that this version does not know.
    #[default]
    Unknown,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct WireTarget {
    user: String,
    client: Option<String>,
    #[serde(default)]
    except: Vec<Uuid>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "snake_case")]
pub(super) enum WireAction {
    Subscribe(Box<WireSubscribe>),
    Unsubscribe { channel: String },
    Disconnect { code: u32, reason: String },
    Refresh { expired: bool, expire_at: Option<i64>, info: Option<Base64> },
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct WireSubscribe {
    channel: String,
    info: Base64,
    data: Base64,
    /// Offset and epoch.
    recover_since: Option<(u64, String)>,
    expire_at: Option<i64>,
    presence: Option<bool>,
    join_leave: Option<bool>,
    force_recovery: Option<bool>,
    force_positioning: Option<bool>,
    force_push_join_leave: Option<bool>,
}

/// A newer version may ask and answer in ways that this one does not know.
fn known_or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(deserializer: D) -> Result<T, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// Bytes that may not be text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Base64(Bytes);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map(|bytes| Self(bytes.into())).map_err(serde::de::Error::custom)
    }
}

/// Why a message of another node is not understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("version {0}, this node reads version {VERSION}")]
    Version(u32),
}

impl Call {
    pub(super) fn new(id: u64, from: NodeId, request: Request) -> Self {
        Self { v: VERSION, id, from: from.0, request }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let call: Self = serde_json::from_slice(bytes)?;
        if call.v == VERSION { Ok(call) } else { Err(WireError::Version(call.v)) }
    }
}

impl Answer {
    pub(super) fn new(id: u64, node: NodeId, result: WireResult) -> Self {
        Self { v: VERSION, id, node: node.0, result }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let answer: Self = serde_json::from_slice(bytes)?;
        if answer.v == VERSION { Ok(answer) } else { Err(WireError::Version(answer.v)) }
    }
}

pub(super) fn encode(message: &impl Serialize) -> Bytes {
    serde_json::to_vec(message).expect("messages between nodes have text for keys and finite numbers").into()
}

impl From<Applied> for WireResult {
    fn from(applied: Applied) -> Self {
        Self::Applied { matched: applied.matched, already_subscribed: applied.already_subscribed }
    }
}

impl From<Option<TakenOver>> for WireResult {
    fn from(taken_over: Option<TakenOver>) -> Self {
        match taken_over {
            Some(TakenOver { was_open, handed_over }) => {
                Self::TakenOver { was_open, handed_over: handed_over.map(Box::new) }
            }
            None => Self::TakenOver { was_open: false, handed_over: None },
        }
    }
}

impl WireResult {
    /// What it says of a takeover; `None` when it could not be told.
    pub(super) fn taken_over(self) -> Option<TakenOver> {
        match self {
            Self::TakenOver { was_open, handed_over } => {
                Some(TakenOver { was_open, handed_over: handed_over.map(|handed_over| *handed_over) })
            }
            Self::Applied { matched, .. } => Some(TakenOver { was_open: matched > 0, handed_over: None }),
            Self::Channels(_) | Self::Info(_) | Self::Failed(_) | Self::Unknown => None,
        }
    }
}

impl From<Target> for WireTarget {
    fn from(target: Target) -> Self {
        let Target { user, client, except } = target;
        Self { user: user.as_str().to_owned(), client, except: except.into_iter().map(|client| client.0).collect() }
    }
}

impl From<WireTarget> for Target {
    fn from(target: WireTarget) -> Self {
        let WireTarget { user, client, except } = target;
        Self { user: UserId::from(user), client, except: except.into_iter().map(ClientId).collect() }
    }
}

impl From<&Action> for WireAction {
    fn from(action: &Action) -> Self {
        match action {
            Action::Subscribe(subscribe) => Self::Subscribe(Box::new(subscribe.into())),
            Action::Unsubscribe(channel) => Self::Unsubscribe { channel: channel.as_str().to_owned() },
            Action::Disconnect(close) => {
                Self::Disconnect { code: close.code().into(), reason: close.reason().to_owned() }
            }
            Action::Refresh(Refresh { expired, expire_at, info }) => {
                Self::Refresh { expired: *expired, expire_at: *expire_at, info: info.clone().map(Base64) }
            }
        }
    }
}

impl TryFrom<WireAction> for Action {
    type Error = String;

    fn try_from(action: WireAction) -> Result<Self, String> {
        Ok(match action {
            WireAction::Subscribe(subscribe) => Self::Subscribe((*subscribe).into()),
            WireAction::Unsubscribe { channel } => Self::Unsubscribe(channel.into()),
            WireAction::Disconnect { code, reason } => Self::Disconnect(close_code(code, &reason)?),
            WireAction::Refresh { expired, expire_at, info } => {
                Self::Refresh(Refresh { expired, expire_at, info: info.map(|info| info.0) })
            }
        })
    }
}

fn close_code(code: u32, reason: &str) -> Result<CloseCode, String> {
    let built_in =
        CloseCode::BUILT_IN.into_iter().find(|close| u32::from(close.code()) == code && close.reason() == reason);
    match built_in {
        Some(close) => Ok(close),
        None => CloseCode::custom(code, reason).map_err(|error| error.to_string()),
    }
}

impl From<&ServerSubscribe> for WireSubscribe {
    fn from(subscribe: &ServerSubscribe) -> Self {
        let ServerSubscribe { channel, info, data, recover_since, expire_at, overrides } = subscribe.clone();
        let Overrides { presence, join_leave, force_recovery, force_positioning, force_push_join_leave } = overrides;
        Self {
            channel: channel.as_str().to_owned(),
            info: Base64(info),
            data: Base64(data),
            recover_since: recover_since.map(|since| (since.offset.0, since.epoch.as_str().to_owned())),
            expire_at,
            presence,
            join_leave,
            force_recovery,
            force_positioning,
            force_push_join_leave,
        }
    }
}

impl From<WireSubscribe> for ServerSubscribe {
    fn from(subscribe: WireSubscribe) -> Self {
        let WireSubscribe {
            channel,
            info,
            data,
            recover_since,
            expire_at,
            presence,
            join_leave,
            force_recovery,
            force_positioning,
            force_push_join_leave,
        } = subscribe;
        Self {
            channel: ChannelName::from(channel),
            info: info.0,
            data: data.0,
            recover_since: recover_since
                .map(|(offset, epoch)| StreamPosition { epoch: Epoch::from(epoch), offset: Offset(offset) }),
            expire_at,
            overrides: Overrides { presence, join_leave, force_recovery, force_positioning, force_push_join_leave },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::verdict::Verdicts;

    fn target() -> Target {
        Target { user: "u\"\u{e9}".into(), client: Some("x".to_owned()), except: vec![ClientId::random()] }
    }

    fn actions() -> Vec<Action> {
        let subscribe = ServerSubscribe {
            channel: "a:b".into(),
            info: Bytes::from_static(&[0, 0xff]),
            data: Bytes::from_static(b"{}"),
            recover_since: Some(StreamPosition { epoch: "e".into(), offset: Offset(1 << 52) }),
            expire_at: Some(7),
            overrides: Overrides { presence: Some(false), force_recovery: Some(true), ..Overrides::default() },
        };
        let info = Some(Bytes::from_static(b"[1]"));
        let mut actions = vec![
            Action::Subscribe(subscribe),
            Action::Unsubscribe("c".into()),
            Action::Refresh(Refresh { expired: true, expire_at: None, info }),
            Action::Disconnect(CloseCode::custom(4100, "why").expect("a legal code")),
        ];
        actions.extend(CloseCode::BUILT_IN.map(Action::Disconnect));
        actions
    }

    #[test]
    fn commands_arrive_as_they_were_sent() {
        for action in actions() {
            let request = Request::Apply { target: target().into(), action: (&action).into() };
            let bytes = encode(&Call::new(u64::MAX, NodeId(Uuid::nil()), request.clone()));
            let call = Call::decode(&bytes).expect("what was encoded");
            assert_eq!((call.id, &call.request), (u64::MAX, &request));
            let Request::Apply { action: wire, .. } = call.request else { panic!("another request") };
            assert_eq!(Action::try_from(wire), Ok(action));
        }
        let there_and_back = Target::from(WireTarget::from(target()));
        assert_eq!((there_and_back.user, there_and_back.except.len()), (target().user, 1));
    }

    #[test]
    fn what_is_handed_over_arrives_and_an_earlier_version_hands_nothing_over() {
        let handed_over = Some(HandedOver { subs: Vec::new(), verdicts: Some(Verdicts::default()) });
        let taken_over = Some(TakenOver { was_open: true, handed_over });
        let arrived = |result| {
            let bytes = encode(&Answer::new(1, NodeId(Uuid::nil()), result));
            Answer::decode(&bytes).expect("what was encoded").result.taken_over()
        };
        assert_eq!(arrived(taken_over.clone().into()), taken_over);
        let nothing = |was_open| Some(TakenOver { was_open, handed_over: None });
        assert_eq!(arrived(None.into()), nothing(false));
        assert_eq!(arrived(Applied { matched: 1, already_subscribed: 0 }.into()), nothing(true));
        assert_eq!(arrived(WireResult::Failed("no".to_owned())), None);
    }

    #[test]
    fn what_a_newer_version_asks_is_no_mistake() {
        let newer =
            r#"{"v":1,"id":1,"from":"00000000-0000-0000-0000-000000000000","request":{"later":{"a":[1]}},"more":1}"#;
        assert_eq!(Call::decode(newer.as_bytes()).expect("readable").request, Request::Unknown);
        let other = newer.replace("\"v\":1", "\"v\":2");
        assert!(matches!(Call::decode(other.as_bytes()), Err(WireError::Version(2))));
        assert!(Call::decode(b"{").is_err());
    }
}
