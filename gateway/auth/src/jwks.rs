//! Keys fetched from a JWKS address (RFC 7517): cached, fetched by one request at a time, kept while the endpoint fails.

mod document;
mod fetch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::Mutex;
use session::io::TokenError;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::algorithm::{invalid, shown};
use crate::keys::KeyError;
use document::FetchedKey;
use fetch::Fetcher;

/// How keys are fetched and kept. The defaults are those of protocol section 6.1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JwksOptions {
    /// How long fetched keys are used without asking again: 1 h. This is also how long a withdrawn key lives on.
    pub ttl: Duration,
    /// The least time between two fetches: 10 s. It bounds what tokens with invented key ids can cause, and is how
    /// long a node leaves a failing endpoint alone.
    pub cooldown: Duration,
    /// The time limit of one request, body included: 1 s.
    pub timeout: Duration,
    /// Requests per fetch: 2.
    pub attempts: u32,
}

impl Default for JwksOptions {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(3600),
            cooldown: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            attempts: 2,
        }
    }
}

/// Counters since the verifier was made; they only grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JwksStats {
    /// Fetches begun (each of one or more requests).
    pub fetches: u64,
    /// Fetches that brought no usable document.
    pub failures: u64,
    /// Tokens whose key was in the cache.
    pub hits: u64,
}

impl JwksStats {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            fetches: self.fetches + other.fetches,
            failures: self.failures + other.failures,
            hits: self.hits + other.hits,
        }
    }
}

/// What the cache says about a key id.
pub(crate) enum Lookup {
    /// Use this key.
    Found(DecodingKey),
    /// No key, and no reason to fetch.
    Refused(TokenError),
    /// Ask [`JwksSource::fetch_key`].
    Fetch,
}

/// One JWKS address with its cache.
pub(crate) struct JwksSource {
    url: String,
    options: JwksOptions,
    fetcher: Fetcher,
    clock: Clock,
    /// Read on every token, replaced by every successful fetch.
    cache: ArcSwap<Cache>,
    /// Never held across an await.
    state: Mutex<State>,
    fetches: AtomicU64,
    failures: AtomicU64,
    hits: AtomicU64,
}

/// Time since an arbitrary start; a test can hold it still.
type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

#[derive(Default)]
struct Cache {
    keys: Vec<FetchedKey>,
    /// When the keys were asked for; `None` before the first success.
    fetched_at: Option<Duration>,
}

#[derive(Default)]
struct State {
    /// The fetch in flight: closed when it ends, however it ends.
    in_flight: Option<watch::Receiver<()>>,
    /// When the latest fetch began.
    begun_at: Option<Duration>,
    /// Why the latest fetch failed, if it did.
    failure: Option<String>,
}

impl JwksSource {
    pub(crate) fn new(url: &str, options: JwksOptions) -> Result<Self, KeyError> {
        let start = Instant::now();
        Self::with_clock(url, options, Box::new(move || start.elapsed()))
    }

    fn with_clock(url: &str, options: JwksOptions, clock: Clock) -> Result<Self, KeyError> {
        Ok(Self {
            url: url.to_owned(),
            fetcher: Fetcher::new(url, &options)?,
            options,
            clock,
            cache: ArcSwap::default(),
            state: Mutex::default(),
            fetches: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            hits: AtomicU64::new(0),
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn options(&self) -> &JwksOptions {
        &self.options
    }

    pub(crate) fn stats(&self) -> JwksStats {
        JwksStats {
            fetches: self.fetches.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            hits: self.hits.load(Ordering::Relaxed),
        }
    }

    /// Answers from the cache where it can.
    pub(crate) fn look_up(&self, kid: &str, algorithm: Algorithm) -> Lookup {
        let now = (self.clock)();
        let cache = self.cache.load();
        let key = cache.find(kid, algorithm);
        if let Some(key) = key
            && cache.is_fresh(now, self.options.ttl)
        {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Lookup::Found(key.clone());
        }
        let state = self.state.lock();
        if state.in_flight.is_some() || !state.cools_down(now, self.options.cooldown) {
            return Lookup::Fetch;
        }
        match key {
            // Stale, and a fetch was just tried: the old keys serve until the endpoint answers again.
            Some(key) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                Lookup::Found(key.clone())
            }
            // Whether the endpoint has this key now is not known, so this is no verdict on the token.
            None => Lookup::Refused(TokenError::Unavailable(match &state.failure {
                Some(failure) => format!("keys could not be fetched: {failure}"),
                None => format!("key id {} is not in the key set, which was fetched just now", shown(kid)),
            })),
        }
    }

    /// Waits for the fetch in flight, or begins one, then answers from what it brought.
    pub(crate) async fn fetch_key(
        self: &Arc<Self>,
        kid: &str,
        algorithm: Algorithm,
    ) -> Result<DecodingKey, TokenError> {
        let mut ended = self.join_fetch();
        // Nothing is ever sent: the channel closes when the fetching task ends, also if it is dropped or panics.
        while ended.changed().await.is_ok() {}
        let failure = self.state.lock().failure.clone();
        let cache = self.cache.load();
        match (cache.find(kid, algorithm), failure) {
            (Some(key), _) => Ok(key.clone()),
            (None, Some(failure)) => Err(TokenError::Unavailable(format!("keys could not be fetched: {failure}"))),
            (None, None) => Err(cache.why_missing(kid, algorithm)),
        }
    }

    /// The end of the fetch in flight, which this call begins if there is none. The fetch is a task of its own: a
    /// waiter that gives up does not take it away from the others.
    fn join_fetch(self: &Arc<Self>) -> watch::Receiver<()> {
        let mut state = self.state.lock();
        // A closed channel here means that the task was dropped with its runtime before it could clear the field.
        if let Some(ended) = &state.in_flight
            && ended.has_changed().is_ok()
        {
            return ended.clone();
        }
        let begun_at = (self.clock)();
        let (end, ended) = watch::channel(());
        state.in_flight = Some(ended.clone());
        state.begun_at = Some(begun_at);
        state.failure = Some("the fetch was interrupted".to_owned());
        drop(state);
        self.fetches.fetch_add(1, Ordering::Relaxed);
        let source = Arc::clone(self);
        tokio::spawn(async move {
            source.fetch(begun_at).await;
            drop(end);
        });
        ended
    }

    async fn fetch(&self, begun_at: Duration) {
        let failure = match self.fetcher.fetch().await {
            Ok(keys) => {
                debug!(url = self.url, keys = keys.len(), "fetched a key set");
                self.cache.store(Arc::new(Cache { keys, fetched_at: Some(begun_at) }));
                None
            }
            Err(failure) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                let kept = self.cache.load().keys.len();
                warn!(url = self.url, error = failure, kept, "cannot fetch the key set, the known keys stay in use");
                Some(failure)
            }
        };
        let mut state = self.state.lock();
        state.failure = failure;
        state.in_flight = None;
    }
}

impl Cache {
    fn find(&self, kid: &str, algorithm: Algorithm) -> Option<&DecodingKey> {
        self.keys.iter().find(|key| key.kid == kid && key.fits(algorithm)).map(|key| &key.key)
    }

    fn is_fresh(&self, now: Duration, ttl: Duration) -> bool {
        self.fetched_at.is_some_and(|at| now.saturating_sub(at) < ttl)
    }

    /// The verdict on a token whose key a fresh key set does not have.
    fn why_missing(&self, kid: &str, algorithm: Algorithm) -> TokenError {
        if self.keys.iter().any(|key| key.kid == kid) {
            invalid(format!("algorithm {algorithm:?} does not fit the key with id {}", shown(kid)))
        } else {
            invalid(format!("no key with id {} in the key set", shown(kid)))
        }
    }
}

impl State {
    fn cools_down(&self, now: Duration, cooldown: Duration) -> bool {
        self.begun_at.is_some_and(|at| now.saturating_sub(at) < cooldown)
    }
}

#[cfg(test)]
mod tests;
