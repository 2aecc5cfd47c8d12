//! The server API over HTTP (protocol section 7), compatible with that of Centrifugo.
//!
//! Reading order: this page (routes, statuses and bodies), [`auth`] (keys), `request` (what comes in), `execute` (one
//! command) with `publish`, `users`, `reads`, `sessions` and `info`, `batch` (several commands), `outcome` (what goes out), `error`.
//!
//! A request is judged in this order: path (404), HTTP method (405), key (401), size (413), JSON (400), and then by the
//! command, whose errors are told in an answer with status 200.

pub mod auth;
mod batch;
mod error;
mod execute;
pub(crate) mod glob;
pub(crate) mod info;
mod meters;
mod outcome;
pub(crate) mod publish;
mod reads;
mod request;
mod sessions;
mod users;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, EXPECT};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::node::Node;

use self::error::{ApiError, Failure, Malformed};
use self::meters::Meters;
use self::outcome::{Answer, Outcome, write};
use self::request::{Method, is_deeper_than};

const ERROR_MODE: HeaderName = HeaderName::from_static("x-centrifugo-error-mode");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// How long a body may take to arrive after its head. Callers are back ends nearby; 10 s is for a bad link, and a bound
/// on what a caller that stops half-way keeps busy.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Objects and arrays inside each other in a body. Payloads people write stay under ten. Clients parse payloads, often
/// recursively, within one or two levels of their own, and at least one widespread parser stops at 128 levels in all.
const DEPTH_MAX: usize = 100;

/// The usual answer has the position of one publication, which fits with room to spare.
const ANSWER_BYTES: usize = 128;

/// Bounds of one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApiLimits {
    /// The largest body; above it the status is 413. 1 MiB by default, for 10,000 channel names in a broadcast or 1,000
    /// payloads of 1 KiB in a batch.
    pub body_bytes: usize,
    /// Channels of one broadcast; above it the error is 107. 10,000 by default, which the backplane in memory does in
    /// some tens of milliseconds; the answer takes about 60 bytes for each.
    pub channels_per_broadcast: usize,
    /// Commands of one batch or of one request to the legacy route; above it the error is 107. 1,000 by default: each
    /// may answer with a whole history, and all answers are in memory until the last is there.
    pub commands_per_batch: usize,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self { body_bytes: 1 << 20, channels_per_broadcast: 10_000, commands_per_batch: 1_000 }
    }
}

/// How an error of a whole request is told. The errors of commands in a batch, of channels in a broadcast and on the
/// legacy route are always told in the answer.
#[derive(Clone, Copy)]
enum ErrorMode {
    /// Status 200 and `{"error": {"code": ..., "message": ...}}`.
    InAnswer,
    /// A status that fits, and the bare error object. A request asks for it with `X-Centrifugo-Error-Mode: transport`.
    Transport,
}

impl ErrorMode {
    fn of(headers: &HeaderMap) -> Self {
        match headers.get(ERROR_MODE) {
            Some(value) if value.as_bytes().eq_ignore_ascii_case(b"transport") => Self::Transport,
            Some(_) | None => Self::InAnswer,
        }
    }
}

/// The routes `/api` and `/api/<method>`. Each request is held against the keys of [`Node::runtime`] at its time.
///
/// Make it after the recorder of metrics was installed, and clone it for every shard.
pub fn router(node: Arc<Node>, limits: ApiLimits) -> Router {
    build(Api { node, limits, body_timeout: BODY_TIMEOUT, meters: Meters::new() })
}

fn build(api: Api) -> Router {
    let api = Arc::new(api);
    let endpoint = |route: Route| {
        let api = api.clone();
        post(move |request: Request| call(api.clone(), route, request))
    };
    let mut router = Router::new()
        .route("/api", endpoint(Route::Legacy))
        .route(&format!("/api/{}", meters::BATCH), endpoint(Route::Batch));
    for method in Method::ALL {
        router = router.route(&format!("/api/{}", method.name()), endpoint(Route::Method(method)));
    }
    router
}

/// What a path asks for.
#[derive(Clone, Copy)]
enum Route {
    Method(Method),
    Batch,
    Legacy,
}

impl Route {
    fn name(self) -> &'static str {
        match self {
            Self::Method(method) => method.name(),
            Self::Batch => meters::BATCH,
            Self::Legacy => meters::LEGACY,
        }
    }
}

/// What all requests share.
struct Api {
    node: Arc<Node>,
    limits: ApiLimits,
    body_timeout: Duration,
    meters: Meters,
}

impl Api {
    /// Carries out one command and counts it.
    async fn execute(&self, method: Method, params: &[u8]) -> Result<Outcome, Failure> {
        let result = execute::execute(&self.node, &self.limits, method, params).await;
        match &result {
            Ok(_) => self.meters.command(method),
            Err(failure) => self.failed(Route::Method(method), failure),
        }
        result
    }

    fn failed(&self, route: Route, failure: &Failure) {
        let result = match failure {
            Failure::Malformed(_) => "malformed",
            Failure::Api(error) => error.code.label(),
        };
        self.meters.failed(route.name(), result);
    }

    /// The body, in one piece. `waits` says that the caller sends it only when asked for.
    async fn read(&self, mut body: Body, waits: bool) -> Result<Bytes, Rejection> {
        let bytes_max = self.limits.body_bytes;
        // The length is often known before anything was read.
        if body.size_hint().lower() <= bytes_max as u64 {
            let whole = Limited::new(&mut body, bytes_max).collect();
            match tokio::time::timeout(self.body_timeout, whole).await {
                Ok(Ok(whole)) => return Ok(whole.to_bytes()),
                Ok(Err(error)) if error.is::<LengthLimitError>() => {}
                Ok(Err(_)) => return Err(Rejection::Broken),
                Err(_) => return Err(Rejection::Timeout(self.body_timeout)),
            }
        }
        if !waits {
            // A caller that first writes and then reads would see a reset connection instead of the answer.
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            let _ = tokio::time::timeout(self.body_timeout, rest).await;
        }
        Err(Rejection::TooLarge { bytes_max })
    }
}

async fn call(api: Arc<Api>, route: Route, request: Request) -> Response {
    let allowed = api.node.runtime().api.check(request.headers(), request.uri());
    if allowed.is_err() {
        return Rejection::Unauthorized.respond(&api, route);
    }
    let error_mode = ErrorMode::of(request.headers());
    let waits = request.headers().contains_key(EXPECT);
    let body = match api.read(request.into_body(), waits).await {
        Ok(body) => body,
        Err(rejection) => return rejection.respond(&api, route),
    };
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    match carry_out(&api, route, &body, &mut answer).await {
        Ok(()) => json(StatusCode::OK, answer),
        Err(Failure::Api(error)) => fail(error_mode, &error, answer),
        Err(Failure::Malformed(malformed)) => (StatusCode::BAD_REQUEST, malformed.to_string()).into_response(),
    }
}

/// Writes the answer of whatever can be answered.
async fn carry_out(api: &Api, route: Route, body: &[u8], answer: &mut Vec<u8>) -> Result<(), Failure> {
    let result = if is_deeper_than(DEPTH_MAX, body) {
        Err(Malformed::TooDeep(DEPTH_MAX).into())
    } else {
        match route {
            Route::Method(method) => {
                let outcome = api.execute(method, body).await?;
                write(&Answer::Result(outcome), answer);
                return Ok(());
            }
            Route::Batch => batch::batch(api, body, answer).await.inspect(|()| api.meters.batch()),
            Route::Legacy => batch::legacy(api, body, answer).await.inspect(|()| api.meters.legacy()),
        }
    };
    result.inspect_err(|failure| api.failed(route, failure))
}

fn fail(error_mode: ErrorMode, error: &ApiError, mut answer: Vec<u8>) -> Response {
    match error_mode {
        ErrorMode::InAnswer => {
            write(&Answer::<()>::Error(error), &mut answer);
            json(StatusCode::OK, answer)
        }
        ErrorMode::Transport => {
            write(error, &mut answer);
            json(error.code.status(), answer)
        }
    }
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// Why a request was turned away before its body was looked at.
enum Rejection {
    Unauthorized,
    TooLarge { bytes_max: usize },
    Timeout(Duration),
    Broken,
}

impl Rejection {
    fn respond(self, api: &Api, route: Route) -> Response {
        let (label, response) = match self {
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED.into_response()),
            Self::TooLarge { bytes_max } => {
                let text = format!("the body has more than {bytes_max} bytes");
                ("too_large", (StatusCode::PAYLOAD_TOO_LARGE, text).into_response())
            }
            Self::Timeout(timeout) => {
                let text = format!("the body did not arrive within {timeout:?}");
                ("timeout", (StatusCode::REQUEST_TIMEOUT, text).into_response())
            }
            Self::Broken => ("broken", (StatusCode::BAD_REQUEST, "the body cannot be read").into_response()),
        };
        api.meters.failed(route.name(), label);
        response
    }
}

#[cfg(test)]
pub(crate) mod tests;
