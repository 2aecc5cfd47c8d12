//! What operators may ask of a node, on the internal listener: `/admin/drain`.
//!
//! Every call needs the header `X-Evenkeel-Admin`, with any value: a web page cannot send it to another origin without
//! asking first, and nobody answers that question here. With `internal.admin_token` it also needs that token.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, StatusCode};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use crate::config::Secret;
use crate::drain::Afterwards;
use crate::node::Node;

const ADMIN_HEADER: HeaderName = HeaderName::from_static("x-evenkeel-admin");
const SCHEME: &[u8] = b"bearer ";

/// Who may use `/admin`. Of the token only a hash is kept, which is also of one length.
#[derive(Clone)]
struct Gate {
    token: Option<[u8; 32]>,
}

/// Why a call is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refused {
    NoHeader,
    NoToken,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::NoHeader => {
                (StatusCode::FORBIDDEN, "send the header X-Evenkeel-Admin: 1 with calls of /admin\n").into_response()
            }
            Self::NoToken => {
                (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], "internal.admin_token is needed\n")
                    .into_response()
            }
        }
    }
}

impl Gate {
    fn new(token: Option<&Secret>) -> Self {
        Self { token: token.map(|token| hash(token.expose().as_bytes())) }
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), Refused> {
        if !headers.contains_key(ADMIN_HEADER) {
            return Err(Refused::NoHeader);
        }
        let Some(token) = &self.token else { return Ok(()) };
        let presented = headers.get(AUTHORIZATION).and_then(|value| {
            let (scheme, token) = value.as_bytes().split_at_checked(SCHEME.len())?;
            scheme.eq_ignore_ascii_case(SCHEME).then(|| hash(token.trim_ascii()))
        });
        match presented {
            Some(presented) if bool::from(presented.ct_eq(token)) => Ok(()),
            Some(_) | None => Err(Refused::NoToken),
        }
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// `POST /admin/drain` begins a drain, `GET` says how far it is.
pub fn router(node: Arc<Node>, token: Option<&Secret>) -> Router {
    let gate = Gate::new(token);
    Router::new().route("/admin/drain", get(progress).post(drain)).with_state(node).layer(middleware::from_fn(
        move |request: Request, next: Next| {
            let checked = gate.check(request.headers());
            async move {
                match checked {
                    Ok(()) => next.run(request).await,
                    Err(refused) => refused.into_response(),
                }
            }
        },
    ))
}

async fn progress(State(node): State<Arc<Node>>) -> Response {
    answer(&node, StatusCode::OK)
}

/// Whether the process is to end with the drain.
#[derive(Deserialize)]
struct DrainQuery {
    #[serde(default)]
    exit: bool,
}

async fn drain(State(node): State<Arc<Node>>, Query(query): Query<DrainQuery>) -> Response {
    let afterwards = if query.exit { Afterwards::Exit } else { Afterwards::Stay };
    tracing::info!(?afterwards, "an operator asks for a drain");
    node.drain.request(afterwards, node.connections());
    answer(&node, StatusCode::ACCEPTED)
}

fn answer(node: &Node, status: StatusCode) -> Response {
    match serde_json::to_string(&node.drain.progress(node.connections())) {
        Ok(body) => (status, [(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_header_is_always_needed_and_the_token_where_there_is_one() {
        let secret = Secret::new("a-token".to_owned());
        let admin = (ADMIN_HEADER, "1");
        let bearer = |value: &'static str| (AUTHORIZATION, value);
        for (token, headers, expected) in [
            (None, vec![], Err(Refused::NoHeader)),
            (None, vec![admin.clone()], Ok(())),
            (Some(&secret), vec![bearer("Bearer a-token")], Err(Refused::NoHeader)),
            (Some(&secret), vec![admin.clone()], Err(Refused::NoToken)),
            (Some(&secret), vec![admin.clone(), bearer("Bearer a-toke")], Err(Refused::NoToken)),
            (Some(&secret), vec![admin.clone(), bearer("a-token")], Err(Refused::NoToken)),
            (Some(&secret), vec![admin.clone(), bearer("bearer  a-token")], Ok(())),
        ] {
            let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            assert_eq!(
                Gate::new(token).check(&headers.clone().collect()),
                expected,
                "{:?}",
                headers.collect::<Vec<_>>()
            );
        }
    }
}
