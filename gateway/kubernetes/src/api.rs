//! Calls to the API server: with a time limit, counted, and their errors sorted by what can be done about them.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::status::{Health, count};

/// Why a call failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No answer, or the server could not serve. Later it may.
    #[error("the API server is away: {0}")]
    Unavailable(String),
    /// Somebody else was first; what is there now must be read.
    #[error("somebody else has changed it")]
    Conflict,
    /// It is not there.
    #[error("it does not exist")]
    NotFound,
    /// A permission is missing.
    #[error("forbidden: {0}")]
    Forbidden(String),
    /// The object would not be valid: it is another one than the caller meant, or a bug here.
    #[error("invalid: {0}")]
    Invalid(String),
    /// The server does not want this, also not later: a bug here, or a server of another kind.
    #[error("refused: {0}")]
    Refused(String),
    /// The right to act has ended.
    #[error("the lease has ended")]
    Ended,
}

/// The API server, in one namespace.
#[derive(Clone)]
pub(crate) struct Api {
    client: kube::Client,
    namespace: Arc<str>,
    timeout: Duration,
    health: Arc<Health>,
}

impl Api {
    pub(crate) fn new(client: kube::Client, namespace: &str, timeout: Duration, health: Arc<Health>) -> Self {
        Self { client, namespace: namespace.into(), timeout, health }
    }

    pub(crate) fn client(&self) -> kube::Client {
        self.client.clone()
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// Waits for a call. With `until` it is not begun after that time; it may end later, by the time limit of a call.
    pub(crate) async fn call<T>(
        &self,
        until: Option<Instant>,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CallError> {
        if until.is_some_and(|until| Instant::now() >= until) {
            return Err(CallError::Ended);
        }
        let asked = Instant::now();
        let outcome = match tokio::time::timeout(self.timeout, call).await {
            Ok(outcome) => outcome.map_err(|error| sort(&error)),
            Err(_) => {
                count(&self.health.calls_timed_out);
                Err(CallError::Unavailable(format!("no answer within {:?}", self.timeout)))
            }
        };
        self.note(asked, outcome.as_ref().err());
        outcome
    }

    /// Counts a call that was made at `asked` and has ended, and notes whether the server is there.
    pub(crate) fn note(&self, asked: Instant, error: Option<&CallError>) {
        count(&self.health.calls);
        match error {
            Some(CallError::Unavailable(why)) => {
                count(&self.health.calls_failed);
                self.health.unanswered(why);
                return;
            }
            Some(CallError::Forbidden(_)) => count(&self.health.calls_forbidden),
            _ => {}
        }
        self.health.answered(asked);
    }
}

/// What an error of the client means.
pub(crate) fn sort(error: &kube::Error) -> CallError {
    match error {
        kube::Error::Api(status) => sort_status(status),
        kube::Error::SerdeError(error) => CallError::Refused(format!("an answer that cannot be read: {error}")),
        kube::Error::BuildRequest(error) => CallError::Refused(chain(error)),
        other => CallError::Unavailable(chain(other)),
    }
}

/// What an answer of the server other than success means.
pub(crate) fn sort_status(status: &kube::core::Status) -> CallError {
    let said = || format!("{} ({})", status.message, status.code);
    match status.code {
        401 | 403 => CallError::Forbidden(said()),
        404 => CallError::NotFound,
        409 => CallError::Conflict,
        422 => CallError::Invalid(said()),
        408 | 429 | 500.. => CallError::Unavailable(said()),
        _ => CallError::Refused(said()),
    }
}

/// An error with its causes: the outermost of an HTTP client alone says little. A cause that says what was already said is
/// left out.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}
