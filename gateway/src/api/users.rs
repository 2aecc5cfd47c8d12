//! What acts on the connections of a user: `subscribe`, `unsubscribe`, `disconnect`, `refresh`.
//!
//! No matching connection is success. An empty user means everyone who is anonymous.

use backplane::{ChannelName, ClientId, UserId};
use bytes::Bytes;
use session::CloseCode;
use session::io::{Overrides, ServerSubscribe};

use crate::node::Node;
use crate::shard::command::{Action, Applied, Refresh, Target};

use super::error::{ApiError, ErrorCode};
use super::execute::resolve;
use super::outcome::Outcome;
use super::request::{
    CloseRequest, DisconnectRequest, OverrideRequest, RefreshRequest, SubscribeRequest, Text, UnsubscribeRequest,
    payload,
};

/// Clients that a `disconnect` may spare: each connection of the user is compared with all of them.
const WHITELIST_MAX: usize = 1000;

/// Bytes of a connection's or subscription's info, as much as a token could carry. It is kept with the connection and
/// goes into presence, join events and publications.
const INFO_BYTES_MAX: usize = 16 * 1024;

pub(super) async fn subscribe(node: &Node, request: SubscribeRequest<'_>) -> Result<Outcome, ApiError> {
    let (channel, ()) = resolve(node, &request.channel, |_| ())?;
    let target = target(&request.user, &request.client, &request.session);
    let action = Action::Subscribe(subscription(request, channel, node.now().unix)?);
    let applied = act(node, target, action).await?;
    if applied.already_subscribed > 0 {
        return Err(ApiError { message: "a connection is already subscribed".into(), ..ErrorCode::Internal.into() });
    }
    Ok(Outcome::Done)
}

pub(super) async fn unsubscribe(node: &Node, request: UnsubscribeRequest<'_>) -> Result<Outcome, ApiError> {
    let (channel, ()) = resolve(node, &request.channel, |_| ())?;
    let target = target(&request.user, &request.client, &request.session);
    act(node, target, Action::Unsubscribe(channel)).await?;
    Ok(Outcome::Done)
}

pub(super) async fn disconnect(node: &Node, request: DisconnectRequest<'_>) -> Result<Outcome, ApiError> {
    let close = close_code(request.disconnect.as_ref())?;
    let except = whitelist(&request.whitelist)?;
    let target = target(&request.user, &request.client, &request.session).map(|target| Target { except, ..target });
    act(node, target, Action::Disconnect(close)).await?;
    Ok(Outcome::Done)
}

pub(super) async fn refresh(node: &Node, request: RefreshRequest<'_>) -> Result<Outcome, ApiError> {
    let info = match request.info {
        Some(info) => Some(bounded("info", payload("info", Some(info), "")?)?),
        None => None,
    };
    let refresh = Refresh { expired: request.expired, expire_at: expire_at(request.expire_at), info };
    let target = target(&request.user, &request.client, &request.session);
    act(node, target, Action::Refresh(refresh)).await?;
    Ok(Outcome::Done)
}

async fn act(node: &Node, target: Option<Target>, action: Action) -> Result<Applied, ApiError> {
    match target {
        Some(target) => node.apply(target, action).await.map_err(ApiError::internal),
        None => Ok(Applied::default()),
    }
}

/// `None` matches no connection: none has a session that could be named.
fn target(user: &str, client: &Text<'_>, session: &str) -> Option<Target> {
    let target = || Target { user: UserId::from(user), client: client.given(), except: Vec::new() };
    session.is_empty().then(target)
}

/// A text that is no client id names no connection, so there is nothing to spare.
fn whitelist(clients: &[Text<'_>]) -> Result<Vec<ClientId>, ApiError> {
    if clients.len() > WHITELIST_MAX {
        let detail = format_args!("{} clients in whitelist, more than {WHITELIST_MAX}", clients.len());
        return Err(ApiError::bad_request(detail));
    }
    Ok(clients.iter().filter_map(|client| ClientId::parse(client)).collect())
}

fn subscription(
    request: SubscribeRequest<'_>,
    channel: ChannelName,
    now_unix: i64,
) -> Result<ServerSubscribe, ApiError> {
    let expire_at = expire_at(request.expire_at);
    if expire_at.is_some_and(|expire_at| expire_at <= now_unix) {
        return Err(ApiError::bad_request("expire_at is in the past"));
    }
    Ok(ServerSubscribe {
        channel,
        info: bounded("info", payload("b64info", request.info, &request.b64info)?)?,
        data: payload("b64data", request.data, &request.b64data)?,
        recover_since: request.recover_since.map(Into::into),
        expire_at,
        overrides: overrides(request.r#override),
    })
}

/// 0 is never.
fn expire_at(unix: i64) -> Option<i64> {
    (unix != 0).then_some(unix)
}

fn bounded(field: &str, info: Bytes) -> Result<Bytes, ApiError> {
    if info.len() > INFO_BYTES_MAX {
        let detail = format_args!("{field} has {} bytes, more than {INFO_BYTES_MAX}", info.len());
        return Err(ApiError::bad_request(detail));
    }
    Ok(info)
}

fn overrides(request: OverrideRequest) -> Overrides {
    Overrides {
        presence: request.presence.map(|setting| setting.value),
        join_leave: request.join_leave.map(|setting| setting.value),
        force_recovery: request.force_recovery.map(|setting| setting.value),
        force_positioning: request.force_positioning.map(|setting| setting.value),
        force_push_join_leave: request.force_push_join_leave.map(|setting| setting.value),
    }
}

/// Nothing given is 3503. A built-in code from 3000 on may come without its reason or with its own; anything else is
/// the application's and has to be one that SDKs understand.
fn close_code(request: Option<&CloseRequest<'_>>) -> Result<CloseCode, ApiError> {
    let Some(CloseRequest { code, reason }) = request else { return Ok(CloseCode::ForceDisconnect) };
    if *code == 0 && reason.is_empty() {
        return Ok(CloseCode::ForceDisconnect);
    }
    let built_in = CloseCode::BUILT_IN.into_iter().find(|close| u32::from(close.code()) == *code && *code >= 3000);
    match built_in {
        Some(close) if reason.is_empty() || close.reason() == &**reason => Ok(close),
        _ => CloseCode::custom(*code, reason).map_err(ApiError::bad_request),
    }
}

#[cfg(test)]
mod tests {
    use backplane::{Epoch, Offset, StreamPosition};

    use super::*;
    use crate::api::request::parse;

    #[test]
    fn a_target_is_a_user_narrowed_to_a_client() {
        let of = |user: &str, client: Option<&str>| {
            Some(Target { user: UserId::from(user), client: client.map(str::to_owned), except: Vec::new() })
        };
        assert_eq!(target("ann", &Text::default(), ""), of("ann", None));
        assert_eq!(target("", &Text::default(), ""), of("", None), "the anonymous user");
        assert_eq!(target("ann", &Text::from("c1"), ""), of("ann", Some("c1")));
        assert_eq!(target("ann", &Text::from("c1"), "s1"), None, "no connection has a session");
    }

    #[test]
    fn a_white_list_holds_client_ids() {
        let id = ClientId::random();
        let text = id.to_string();
        assert_eq!(whitelist(&[Text::from("x"), Text::from(text.as_str())]), Ok(vec![id]));
        assert!(whitelist(&vec![Text::from("x"); WHITELIST_MAX]).is_ok());
        assert_eq!(whitelist(&vec![Text::from("x"); WHITELIST_MAX + 1]).unwrap_err().code, ErrorCode::BadRequest);
    }

    #[test]
    fn a_subscription_has_all_that_was_asked_for() {
        let check = |body: &str| subscription(parse(body.as_bytes()).unwrap(), ChannelName::from("a:b"), 1000);
        let plain = ServerSubscribe {
            channel: ChannelName::from("a:b"),
            info: Bytes::new(),
            data: Bytes::new(),
            recover_since: None,
            expire_at: None,
            overrides: Overrides::default(),
        };
        assert_eq!(check(r#"{"user":"ann"}"#), Ok(plain.clone()));
        let body = r#"{"info":{"a":1},"b64data":"AAEC","data":{},"recover_since":{"offset":7,"epoch":"e"},
            "expire_at":1001,"override":{"presence":{"value":true},"force_recovery":{"value":false},"join_leave":{}}}"#;
        let overrides = Overrides {
            presence: Some(true),
            force_recovery: Some(false),
            join_leave: Some(false),
            ..Overrides::default()
        };
        let full = ServerSubscribe {
            info: Bytes::from_static(b"{\"a\":1}"),
            data: Bytes::from_static(&[0, 1, 2]),
            recover_since: Some(StreamPosition { epoch: Epoch::from("e"), offset: Offset(7) }),
            expire_at: Some(1001),
            overrides,
            ..plain.clone()
        };
        assert_eq!(check(body), Ok(full));
        assert_eq!(check(r#"{"expire_at":0,"recover_since":null}"#), Ok(plain));
        let large = format!(r#"{{"info":"{}"}}"#, "x".repeat(INFO_BYTES_MAX));
        for body in [r#"{"expire_at":1000}"#, r#"{"expire_at":-1}"#, r#"{"b64info":"*"}"#, &large] {
            assert_eq!(check(body).unwrap_err().code, ErrorCode::BadRequest, "{body:.40}");
        }
    }

    #[test]
    fn close_codes_are_built_in_or_fit_for_sdks() {
        let close = |code: u32, reason: &str| close_code(Some(&CloseRequest { code, reason: Text::from(reason) }));
        assert_eq!(close_code(None), Ok(CloseCode::ForceDisconnect));
        assert_eq!(close(0, ""), Ok(CloseCode::ForceDisconnect));
        assert_eq!(close(3503, ""), Ok(CloseCode::ForceDisconnect));
        assert_eq!(close(3011, "force reconnect"), Ok(CloseCode::ForceReconnect));
        assert_eq!(close(4501, "one only"), Ok(CloseCode::custom(4501, "one only").unwrap()));
        assert_eq!(close(3503, "banned").unwrap().reason(), "banned");
        for (code, reason, part) in [
            (0, "gone", "not in 3000..=4999"),
            (1001, "", "not in 3000..=4999"),
            (1006, "reserved", "not in 3000..=4999"),
            (70_000, "too large", "not in 3000..=4999"),
            (4501, "", "reason is empty"),
            (4501, "17", "JSON"),
        ] {
            let error = close(code, reason).unwrap_err();
            assert_eq!(error.code, ErrorCode::BadRequest);
            assert!(error.message.contains(part), "{code} {reason:?}: {error}");
        }
    }
}
