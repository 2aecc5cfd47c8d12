//! The HTTP side of the WebSocket handshake (RFC 6455 section 4.2, protocol section 1.2).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use protocol::Encoding;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::client_address::ClientAddress;
use super::socket::Stream;
use crate::admission::{AddressRefusal, AddressSlot, Crowded, Gate, retry_after};
use crate::metrics::CONNECTS;
use crate::node::Node;
use crate::shard::Shard;
use crate::shard::connection::Arrival;

/// Where clients connect: requests for paths that begin like this count as handshakes.
pub const CONNECTION_PATHS: &str = "/connection/";

/// How long hyper may take to hand the stream over after the 101 was written.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);

const PROTOBUF: &str = "centrifuge-protobuf";
const JSON: &str = "centrifuge-json";

/// `GET /connection/websocket`
pub async fn websocket(State(node): State<Arc<Node>>, mut request: Request) -> Response {
    let address = request.extensions().get::<ClientAddress>().copied();
    // Taken out of the address here: it goes nowhere else, as addresses of sessions are not to be seen.
    let session = crate::sessions::requested(request.uri().query().unwrap_or_default());
    let accepted = session.map_err(|_| Refusal::BadSession).and_then(|session| {
        let accepted = accept(&node, address, &mut request)?;
        Ok((accepted, session))
    });
    match accepted {
        Ok((Accepted { upgrade, encoding, slot, response }, session)) => {
            let forwarded = node.runtime().proxies.forwarded(request.headers());
            let arrival = Arrival { slot, forwarded, session, address: address.map(|address| address.0) };
            let Some(shard) = Shard::current() else {
                return Refusal::NoShard.into_response();
            };
            tokio::task::spawn_local(async move {
                match tokio::time::timeout(HANDOVER_TIMEOUT, upgrade).await {
                    Ok(Ok(upgraded)) => match split(upgraded) {
                        Some((stream, first_bytes)) => {
                            if let Some(gate) = Gate::current() {
                                gate.upgraded();
                            }
                            shard.adopt(stream, encoding, &first_bytes, arrival);
                        }
                        None => tracing::error!("an upgraded stream is neither TCP nor TLS"),
                    },
                    Ok(Err(error)) => tracing::debug!(%error, "the peer left during the handshake"),
                    Err(_) => tracing::debug!("the upgrade was not completed in time"),
                }
            });
            response
        }
        Err(refusal) => {
            metrics::counter!(CONNECTS, "result" => refusal.label()).increment(1);
            if refusal.is_ours() {
                node.placing.count_refused();
            }
            tracing::debug!(client = ?address.map(|address| address.0), ?refusal, "an upgrade was refused");
            refusal.into_response()
        }
    }
}

/// Why an upgrade was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refusal {
    Draining,
    Full,
    Crowded,
    Rate,
    AddressConnections,
    AddressRate,
    NotAWebSocket,
    BadMethod,
    BadVersion,
    BadKey,
    BadOrigin,
    BadSession,
    NoShard,
}

impl Refusal {
    fn label(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Full => "full",
            Self::Crowded => "overloaded",
            Self::Rate => "rate",
            Self::AddressConnections => "address_connections",
            Self::AddressRate => "address_rate",
            Self::NotAWebSocket | Self::BadMethod | Self::BadVersion | Self::BadKey => "bad_handshake",
            Self::BadOrigin => "bad_origin",
            Self::BadSession => "bad_session",
            Self::NoShard => "internal",
        }
    }
}

impl Refusal {
    /// Whether this node is to blame: the fleet looks at these, and another node may take the client.
    fn is_ours(self) -> bool {
        matches!(self, Self::Full | Self::Crowded | Self::Rate | Self::NoShard)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "this node is going away\n"),
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, "this node has no room for more connections\n"),
            Self::Crowded => (StatusCode::SERVICE_UNAVAILABLE, "too many handshakes are under way\n"),
            Self::Rate => (StatusCode::SERVICE_UNAVAILABLE, "too many clients connect at once\n"),
            Self::AddressConnections => {
                (StatusCode::TOO_MANY_REQUESTS, "this address has too many connections already\n")
            }
            Self::AddressRate => (StatusCode::TOO_MANY_REQUESTS, "this address connects too often\n"),
            Self::NotAWebSocket => (StatusCode::BAD_REQUEST, "this is a WebSocket endpoint: send an upgrade request\n"),
            Self::BadMethod => (StatusCode::METHOD_NOT_ALLOWED, "a WebSocket handshake is a GET request\n"),
            Self::BadVersion => (StatusCode::UPGRADE_REQUIRED, "only WebSocket version 13 is spoken here\n"),
            Self::BadKey => (StatusCode::BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64\n"),
            Self::BadOrigin => (StatusCode::FORBIDDEN, "this origin is not allowed to connect\n"),
            Self::BadSession => {
                (StatusCode::BAD_REQUEST, "session must be 8 to 64 of the characters A-Z a-z 0-9 _ -, given once\n")
            }
            Self::NoShard => (StatusCode::INTERNAL_SERVER_ERROR, "not served by a shard\n"),
        };
        let mut response = (status, text).into_response();
        match self {
            Self::Draining | Self::Full | Self::Crowded | Self::Rate | Self::AddressConnections | Self::AddressRate => {
                response.headers_mut().insert(header::RETRY_AFTER, retry_after());
            }
            Self::BadVersion => {
                response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            Self::BadMethod => {
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            }
            Self::NotAWebSocket | Self::BadKey | Self::BadOrigin | Self::BadSession | Self::NoShard => {}
        }
        response
    }
}

impl From<AddressRefusal> for Refusal {
    fn from(refusal: AddressRefusal) -> Self {
        match refusal {
            AddressRefusal::Connections => Self::AddressConnections,
            AddressRefusal::Rate => Self::AddressRate,
        }
    }
}

/// What an accepted upgrade goes on with.
struct Accepted {
    upgrade: OnUpgrade,
    encoding: Encoding,
    /// The connection's place in the count of its address.
    slot: Option<AddressSlot>,
    response: Response,
}

/// Whether there is room for one more, from the cheapest question to the dearest. A single address that asks too often is
/// refused before it uses up what is there for all.
fn admit(node: &Node, address: Option<ClientAddress>, is_crowded: bool) -> Result<Option<AddressSlot>, Refusal> {
    if node.is_draining() {
        return Err(Refusal::Draining);
    }
    if !node.has_room() {
        return Err(Refusal::Full);
    }
    if is_crowded {
        return Err(Refusal::Crowded);
    }
    let slot = match address {
        Some(ClientAddress(address)) => node.address_limits.admit(address, node.uptime())?,
        None => None,
    };
    if Gate::current().is_some_and(|gate| !gate.take(node.uptime())) {
        return Err(Refusal::Rate);
    }
    Ok(slot)
}

/// Checks everything before anything is promised.
fn accept(node: &Node, address: Option<ClientAddress>, request: &mut Request) -> Result<Accepted, Refusal> {
    let slot = admit(node, address, request.extensions().get::<Crowded>().is_some())?;
    if request.method() != Method::GET {
        return Err(Refusal::BadMethod);
    }
    let headers = request.headers();
    if !has_token(headers, header::CONNECTION, "upgrade") || !has_token(headers, header::UPGRADE, "websocket") {
        return Err(Refusal::NotAWebSocket);
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::BadVersion);
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or(Refusal::BadKey)?;
    if STANDARD.decode(key.as_bytes()).is_ok_and(|nonce| nonce.len() == 16) {
        let origin = headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or("\u{0}"));
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if !node.runtime().origins.allows(origin, host) {
            return Err(Refusal::BadOrigin);
        }
    } else {
        return Err(Refusal::BadKey);
    }
    let (encoding, subprotocol) = negotiate(headers, request.uri().query().unwrap_or_default());
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()))
        .body(Body::empty())
        .map_err(|_| Refusal::BadKey)?;
    if let Some(subprotocol) = subprotocol {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    }
    Ok(Accepted { upgrade: hyper::upgrade::on(request), encoding, slot, response })
}

/// The wire format, and the subprotocol to echo: a browser aborts when its offer is not answered.
fn negotiate(headers: &HeaderMap, query: &str) -> (Encoding, Option<&'static str>) {
    let offered = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim);
    for name in offered {
        match name {
            PROTOBUF => return (Encoding::Protobuf, Some(PROTOBUF)),
            JSON => return (Encoding::Json, Some(JSON)),
            _ => {}
        }
    }
    let asks_protobuf = query.split('&').any(|pair| pair == "format=protobuf" || pair == "cf_protocol=protobuf");
    (if asks_protobuf { Encoding::Protobuf } else { Encoding::Json }, None)
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// Takes the socket out of hyper, with the bytes it has read beyond the handshake. They are copied: hyper's buffer
/// would otherwise stay alive as long as the connection.
fn split(upgraded: Upgraded) -> Option<(Stream, Vec<u8>)> {
    let upgraded = match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => return Some((Stream::Plain(parts.io.into_inner()), parts.read_buf.to_vec())),
        Err(upgraded) => upgraded,
    };
    let parts = upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>().ok()?;
    Some((Stream::Tls(Box::new(parts.io.into_inner())), parts.read_buf.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(offer: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(offer))])
    }

    #[test]
    fn the_wire_format_is_negotiated_and_the_choice_echoed() {
        for (headers, query, expected) in [
            (HeaderMap::new(), "", (Encoding::Json, None)),
            (offer("centrifuge-protobuf"), "", (Encoding::Protobuf, Some(PROTOBUF))),
            (offer("centrifuge-json"), "format=protobuf", (Encoding::Json, Some(JSON))),
            (offer("chat, centrifuge-protobuf"), "", (Encoding::Protobuf, Some(PROTOBUF))),
            (offer("chat"), "", (Encoding::Json, None)),
            (HeaderMap::new(), "a=b&format=protobuf", (Encoding::Protobuf, None)),
            (HeaderMap::new(), "cf_protocol=protobuf", (Encoding::Protobuf, None)),
            (HeaderMap::new(), "xformat=protobuf", (Encoding::Json, None)),
        ] {
            assert_eq!(negotiate(&headers, query), expected, "{headers:?} {query}");
        }
    }

    #[test]
    fn header_tokens_are_found_in_lists_whatever_their_case() {
        let headers = HeaderMap::from_iter([(header::CONNECTION, HeaderValue::from_static("keep-alive, UpGrade"))]);
        assert!(has_token(&headers, header::CONNECTION, "upgrade"));
        assert!(!has_token(&headers, header::CONNECTION, "websocket"));
    }
}
