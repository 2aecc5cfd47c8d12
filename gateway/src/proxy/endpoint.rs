//! One endpoint: the call over HTTP, its limits, and what is known about the backend's health.

use std::error::Error;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client};
use session::proxy::{ProxyName, ProxyRefusal, ProxyResult};
use session::time::Tick;

use super::answer::Read;
use super::breaker::{Admission, Breaker, Health};
use super::gate::Gate;
use super::headers::{self, Forwarded};
use crate::config;
use crate::metrics::{ProxyMeters, ProxyOutcome};

/// At most one line about failures in this time and of one endpoint: a backend that is down fails thousands of calls.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// A backend that is asked.
pub struct Endpoint {
    name: ProxyName,
    config: config::Endpoint,
    client: Client,
    gate: Gate,
    breaker: Mutex<Breaker>,
    started: Instant,
    /// When something was last said about failures, in milliseconds since `started`, plus one; 0 never.
    told: AtomicU64,
    /// Made by the first call, when the recorder is there.
    meters: OnceLock<ProxyMeters>,
}

/// Why a call has no answer.
#[derive(Debug)]
struct Failure {
    outcome: ProxyOutcome,
    reason: String,
}

impl Endpoint {
    /// Does not ask anything yet.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(name: &ProxyName, config: config::Endpoint) -> anyhow::Result<Self> {
        Ok(Self {
            name: name.clone(),
            client: client(&config)?,
            gate: Gate::new(config.concurrency, config.queue),
            breaker: Mutex::new(Breaker::new(config.breaker_failures, config.breaker_pause, config.timeout)),
            started: Instant::now(),
            told: AtomicU64::new(0),
            meters: OnceLock::new(),
            config,
        })
    }

    /// How it is configured.
    pub fn config(&self) -> &config::Endpoint {
        &self.config
    }

    /// The headers of a question about a connection.
    pub(super) fn headers(&self, forwarded: Option<&Forwarded>) -> HeaderMap {
        headers::headers(&self.config, forwarded)
    }

    /// Asks, and reads the answer.
    pub(super) async fn call<T>(&self, body: Vec<u8>, headers: HeaderMap, read: Read<T>) -> ProxyResult<T> {
        let meters = self.meters.get_or_init(|| ProxyMeters::new(&self.name));
        let Some(admission) = self.breaker.lock().admit(self.now()) else {
            meters.refused_by_breaker();
            return Err(ProxyRefusal::Unavailable("the backend has failed repeatedly and is left alone".to_owned()));
        };
        let mut verdict = Verdict { endpoint: self, admission, health: Health::Unknown };
        let started = Instant::now();
        meters.began();
        let answered = self.within_time(body, headers).await;
        let answered = answered.and_then(|body| {
            read(&body).map_err(|reason| {
                let reason = format!("the answer cannot be used: {reason}");
                Failure { outcome: ProxyOutcome::Invalid, reason }
            })
        });
        let (outcome, result) = match answered {
            Ok(Ok(result)) => (ProxyOutcome::Accepted, Ok(result)),
            Ok(Err(refusal)) => (outcome_of(&refusal), Err(refusal)),
            Err(Failure { outcome, reason }) => {
                self.tell(&reason);
                (outcome, Err(ProxyRefusal::Unavailable(reason)))
            }
        };
        meters.ended(outcome, started.elapsed());
        verdict.health = health(outcome);
        result
    }

    async fn within_time(&self, body: Vec<u8>, headers: HeaderMap) -> Result<Vec<u8>, Failure> {
        let failure = |outcome, reason: String| Failure { outcome, reason };
        let mut asked_at: Option<Instant> = None;
        let asked = async {
            let Ok(_slot) = self.gate.enter().await else {
                return Err(failure(ProxyOutcome::Busy, "too many calls wait for the backend".to_owned()));
            };
            asked_at = Some(Instant::now());
            self.exchange(body, headers).await
        };
        match tokio::time::timeout(self.config.timeout, asked).await {
            Ok(result) => result,
            // The backend was not asked, or so late that it cannot be blamed.
            Err(_) if asked_at.is_none_or(|at| at.elapsed() < self.config.timeout / 2) => {
                Err(failure(ProxyOutcome::Busy, "no call to the backend ended in time to make room".to_owned()))
            }
            Err(_) => Err(failure(ProxyOutcome::Timeout, format!("no answer within {:?}", self.config.timeout))),
        }
    }

    async fn exchange(&self, body: Vec<u8>, headers: HeaderMap) -> Result<Vec<u8>, Failure> {
        // The address may say more than a log should.
        let unreachable =
            |error: reqwest::Error| Failure { outcome: ProxyOutcome::Unreachable, reason: chain(&error.without_url()) };
        let request = self.client.post(self.config.url.clone()).headers(headers).body(body);
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if status != StatusCode::OK {
            // The body, if it is short, is read and dropped with the connection kept; nobody waits for it.
            let outcome = if is_ill(status) { ProxyOutcome::Overloaded } else { ProxyOutcome::Status };
            return Err(Failure { outcome, reason: format!("the backend answered HTTP {}", status.as_u16()) });
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if answer.len() + chunk.len() > self.config.response_bytes {
                let reason = format!("the answer has more than {} bytes", self.config.response_bytes);
                return Err(Failure { outcome: ProxyOutcome::TooLarge, reason });
            }
            answer.extend_from_slice(&chunk);
        }
        Ok(answer)
    }

    fn now(&self) -> Tick {
        Tick(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn report(&self, admission: Admission, health: Health) {
        let now = self.now();
        let (was_open, is_open) = {
            let mut breaker = self.breaker.lock();
            let was_open = breaker.is_open();
            breaker.report(admission, health, now);
            (was_open, breaker.is_open())
        };
        if was_open == is_open {
            return;
        }
        if let Some(meters) = self.meters.get() {
            meters.breaker(is_open);
        }
        if is_open {
            tracing::warn!(proxy = %self.name, "the backend fails again and again: not asked for a while");
        } else {
            tracing::info!(proxy = %self.name, "the backend answers again");
        }
    }

    /// Says why a call failed, unless something was said a moment ago.
    fn tell(&self, reason: &str) {
        let now = self.now().0 + 1;
        let last = self.told.load(Ordering::Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= TOLD_EVERY.as_millis() as u64;
        if due && self.told.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::warn!(proxy = %self.name, reason, "a call failed; further ones are only counted for a while");
        } else {
            tracing::debug!(proxy = %self.name, reason, "a call failed");
        }
    }
}

/// Reports the outcome of an admitted call however it ends.
struct Verdict<'a> {
    endpoint: &'a Endpoint,
    admission: Admission,
    health: Health,
}

impl Drop for Verdict<'_> {
    fn drop(&mut self) {
        self.endpoint.report(self.admission, self.health);
    }
}

fn outcome_of(refusal: &ProxyRefusal) -> ProxyOutcome {
    match refusal {
        ProxyRefusal::Error(_) => ProxyOutcome::Error,
        ProxyRefusal::Disconnect(_) => ProxyOutcome::Disconnect,
        ProxyRefusal::Unavailable(_) => ProxyOutcome::Invalid,
    }
}

/// Only what says that the backend is not there counts against it. Whatever a client may bring about, such as a status
/// 500 for an argument that nobody thought of, must not close the door to all others.
fn health(outcome: ProxyOutcome) -> Health {
    match outcome {
        ProxyOutcome::Accepted
        | ProxyOutcome::Error
        | ProxyOutcome::Disconnect
        | ProxyOutcome::Invalid
        | ProxyOutcome::TooLarge
        | ProxyOutcome::Status => Health::Well,
        ProxyOutcome::Overloaded | ProxyOutcome::Timeout | ProxyOutcome::Unreachable => Health::Ill,
        ProxyOutcome::Busy => Health::Unknown,
    }
}

/// A backend or a proxy before it that asks to be left alone, or that cannot reach what it needs.
fn is_ill(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

fn client(config: &config::Endpoint) -> anyhow::Result<Client> {
    let secure = config.url.scheme() == "https";
    let builder = Client::builder()
        .https_only(secure)
        .redirect(Policy::none())
        .referer(false)
        // The backend is where the configuration says, whatever the surroundings think of outgoing calls.
        .no_proxy()
        .user_agent(concat!("evenkeel/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(config.timeout)
        .tcp_nodelay(true)
        .pool_max_idle_per_host(config.concurrency)
        .pool_idle_timeout(config.idle_timeout);
    let builder = match &config.ca {
        Some(pem) => {
            let certificates = Certificate::from_pem_bundle(pem.as_bytes()).context("ca_file")?;
            builder.tls_certs_only(certificates)
        }
        // Plain http needs no roots, and must work in an image that carries none.
        None if !secure => builder.tls_certs_only([]),
        None => builder,
    };
    builder.build().map_err(|error| anyhow::anyhow!("{}", chain(&error)))
}

/// An error with its causes: the outermost of an HTTP client alone says little.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An endpoint with the defaults.
    pub(crate) fn config(url: &str) -> config::Endpoint {
        config::Endpoint {
            url: url.parse().expect("a URL"),
            timeout: Duration::from_secs(1),
            concurrency: 256,
            queue: 4096,
            response_bytes: 1 << 20,
            breaker_failures: 10,
            breaker_pause: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(4),
            http_headers: Vec::new(),
            emulated_headers: Vec::new(),
            static_headers: Vec::new(),
            include_connection_meta: false,
            binary_encoding: false,
            ca: None,
        }
    }
}
