use std::sync::atomic::AtomicUsize;

use axum::Router;
use axum::extract::State as AxumState;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::*;
use crate::test_keys::{jwk, sign, signer_and_keys};
use crate::{KeySet, Verification, Verifier, VerifierConfig};

const NOW: i64 = 1_700_000_000;
/// Far longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the endpoint answers next, and how often it was asked.
struct Endpoint {
    answer: Mutex<(StatusCode, String)>,
    requests: AtomicUsize,
    /// Each request takes one permit before it is answered.
    gate: Semaphore,
}

impl Endpoint {
    fn answer(&self, document: &Value) {
        *self.answer.lock() = (StatusCode::OK, document.to_string());
    }

    fn fail(&self) {
        *self.answer.lock() = (StatusCode::INTERNAL_SERVER_ERROR, "no".to_owned());
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn respond(AxumState(endpoint): AxumState<Arc<Endpoint>>) -> (StatusCode, String) {
    endpoint.requests.fetch_add(1, Ordering::SeqCst);
    endpoint.gate.acquire().await.expect("the gate is never closed").forget();
    endpoint.answer.lock().clone()
}

/// An endpoint on loopback, a source for it, and a clock that the test moves.
struct Bench {
    endpoint: Arc<Endpoint>,
    source: Arc<JwksSource>,
    clock: Arc<AtomicU64>,
    url: String,
}

impl Bench {
    /// With a generous request timeout: a busy test machine must not look like a failing endpoint.
    async fn new(document: &Value) -> Self {
        Self::with_timeout(document, DEADLINE).await
    }

    async fn with_timeout(document: &Value, timeout: Duration) -> Self {
        let endpoint = Arc::new(Endpoint {
            answer: Mutex::new((StatusCode::OK, document.to_string())),
            requests: AtomicUsize::new(0),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
        let router = Router::new().route("/keys", get(respond)).with_state(Arc::clone(&endpoint));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let clock = Arc::new(AtomicU64::new(1_000_000));
        let reading = Arc::clone(&clock);
        let clock_fn = Box::new(move || Duration::from_millis(reading.load(Ordering::SeqCst)));
        let options = JwksOptions { timeout, ..JwksOptions::default() };
        let source = Arc::new(JwksSource::with_clock(&url, options, clock_fn).expect("a usable address"));
        Self { endpoint, source, clock, url }
    }

    fn advance(&self, time: Duration) {
        self.clock.fetch_add(u64::try_from(time.as_millis()).expect("a short time"), Ordering::SeqCst);
    }

    /// Resolves a key id as a verification does.
    async fn key(&self, kid: &str) -> Result<(), TokenError> {
        self.key_for(kid, Algorithm::ES256).await
    }

    async fn key_for(&self, kid: &str, algorithm: Algorithm) -> Result<(), TokenError> {
        match self.source.look_up(kid, algorithm) {
            Lookup::Found(_) => Ok(()),
            Lookup::Refused(error) => Err(error),
            Lookup::Fetch => self.source.fetch_key(kid, algorithm).await.map(|_| ()),
        }
    }
}

fn document(kids: &[&str]) -> Value {
    json!({"keys": kids.iter().map(|kid| jwk(Algorithm::ES256, kid)).collect::<Vec<_>>()})
}

#[track_caller]
fn assert_unavailable(result: Result<(), TokenError>, part: &str) {
    match result {
        Err(TokenError::Unavailable(reason)) if reason.contains(part) => {}
        other => panic!("expected an unavailable key that names {part:?}, got {other:?}"),
    }
}

#[track_caller]
fn assert_invalid<T: std::fmt::Debug>(result: Result<T, TokenError>, part: &str) {
    match result {
        Err(TokenError::Invalid(reason)) if reason.contains(part) => {}
        other => panic!("expected an invalid token that names {part:?}, got {other:?}"),
    }
}

#[tokio::test]
async fn keys_are_fetched_once_and_used_for_their_time() {
    let bench = Bench::new(&document(&["k1", "k2"])).await;
    for kid in ["k1", "k2", "k1"] {
        assert_eq!(bench.key(kid).await, Ok(()));
    }
    bench.advance(bench.source.options().ttl - Duration::from_millis(1));
    assert_eq!(bench.key("k1").await, Ok(()));
    assert_eq!(bench.endpoint.requests(), 1);
    bench.advance(Duration::from_millis(1));
    assert_eq!(bench.key("k1").await, Ok(()));
    assert_eq!(bench.endpoint.requests(), 2);
    assert_eq!(bench.source.stats(), JwksStats { fetches: 2, failures: 0, hits: 3 });
}

#[tokio::test]
async fn an_unknown_key_id_causes_one_fetch_per_cooldown() {
    let bench = Bench::new(&document(&["k1"])).await;
    assert_eq!(bench.key("k1").await, Ok(()));
    // During the cooldown this is no verdict: the key may have been published since.
    assert_unavailable(bench.key("k2").await, "just now");
    assert_unavailable(bench.key("made-up").await, "just now");
    assert_eq!(bench.endpoint.requests(), 1);

    bench.advance(Duration::from_secs(10));
    assert_invalid(bench.key("made-up").await, "made-up");
    assert_eq!(bench.endpoint.requests(), 2);

    bench.endpoint.answer(&document(&["k1", "k2"]));
    bench.advance(Duration::from_secs(10));
    assert_eq!(bench.key("k2").await, Ok(()));
    assert_eq!(bench.endpoint.requests(), 3);
}

#[tokio::test]
async fn a_withdrawn_key_is_refused_after_the_next_fetch() {
    let bench = Bench::new(&document(&["k1", "k2"])).await;
    assert_eq!(bench.key("k1").await, Ok(()));
    bench.endpoint.answer(&document(&["k2"]));
    bench.advance(bench.source.options().ttl);
    assert_invalid(bench.key("k1").await, "k1");
    assert_eq!(bench.key("k2").await, Ok(()));
}

#[tokio::test]
async fn all_waiters_share_one_fetch_and_may_give_up() {
    let bench = Bench::new(&document(&["k1"])).await;
    let closed = bench.endpoint.gate.forget_permits(Semaphore::MAX_PERMITS);
    assert_eq!(closed, Semaphore::MAX_PERMITS);
    let waiters: Vec<_> = (0..20)
        .map(|_| {
            assert!(matches!(bench.source.look_up("k1", Algorithm::ES256), Lookup::Fetch));
            let source = Arc::clone(&bench.source);
            tokio::spawn(async move { source.fetch_key("k1", Algorithm::ES256).await.map(|_| ()) })
        })
        .collect();
    let asked = async {
        while bench.endpoint.requests() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, asked).await.expect("the endpoint is asked");
    // The waiter that began the fetch leaves; the others still get their key.
    waiters[0].abort();
    bench.endpoint.gate.add_permits(1);
    for waiter in waiters.into_iter().skip(1) {
        assert_eq!(waiter.await.expect("a waiter does not panic"), Ok(()));
    }
    assert_eq!(bench.endpoint.requests(), 1);
    assert_eq!(bench.source.stats().fetches, 1);
}

#[tokio::test]
async fn known_keys_outlive_a_failing_endpoint() {
    let bench = Bench::new(&document(&["k1"])).await;
    assert_eq!(bench.key("k1").await, Ok(()));
    bench.endpoint.fail();
    bench.advance(bench.source.options().ttl);
    assert_eq!(bench.key("k1").await, Ok(()), "stale keys serve when the fetch fails");
    assert_eq!(bench.endpoint.requests(), 3, "two attempts");
    assert_eq!(bench.key("k1").await, Ok(()));
    assert_eq!(bench.endpoint.requests(), 3, "the endpoint is left alone for the cooldown");
    assert_unavailable(bench.key("k2").await, "HTTP 500");
    bench.advance(Duration::from_secs(10));
    assert_unavailable(bench.key("k2").await, "HTTP 500");
    assert_eq!(bench.endpoint.requests(), 5);
    assert_eq!(bench.source.stats(), JwksStats { fetches: 3, failures: 2, hits: 1 });

    bench.endpoint.answer(&document(&["k2"]));
    bench.advance(Duration::from_secs(10));
    assert_eq!(bench.key("k2").await, Ok(()));
}

#[tokio::test]
async fn an_endpoint_that_never_answered_makes_tokens_unavailable_not_invalid() {
    let bench = Bench::new(&document(&["k1"])).await;
    bench.endpoint.fail();
    assert_unavailable(bench.key("k1").await, "HTTP 500");
    assert_unavailable(bench.key("k1").await, "HTTP 500");
    assert_eq!(bench.endpoint.requests(), 2, "one fetch of two attempts");
    bench.endpoint.answer(&document(&["k1"]));
    bench.advance(Duration::from_secs(10));
    assert_eq!(bench.key("k1").await, Ok(()));
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_given_up_after_two_attempts() {
    let bench = Bench::with_timeout(&document(&["k1"]), Duration::from_millis(30)).await;
    bench.endpoint.gate.forget_permits(Semaphore::MAX_PERMITS);
    assert_unavailable(bench.key("k1").await, "timed out");
    assert_eq!(bench.source.stats(), JwksStats { fetches: 1, failures: 1, hits: 0 });
    // Whether a request that timed out reached the endpoint is up to the machine.
    assert!(bench.endpoint.requests() <= 2);
}

#[tokio::test]
async fn a_fetch_whose_task_was_dropped_is_begun_again() {
    let bench = Bench::new(&document(&["k1"])).await;
    let (end, ended) = watch::channel(());
    bench.source.state.lock().in_flight = Some(ended);
    drop(end);
    assert_eq!(bench.key("k1").await, Ok(()));
}

#[tokio::test]
async fn documents_over_the_limits_are_refused() {
    let bench = Bench::new(&document(&["k1"])).await;
    *bench.endpoint.answer.lock() = (StatusCode::OK, format!("{{\"keys\":[]{}}}", " ".repeat(64 * 1024)));
    assert_unavailable(bench.key("k1").await, "65536 bytes");

    let many: Vec<Value> = (0..=document::MAX_KEYS).map(|_| json!({"kty": "x"})).collect();
    bench.endpoint.answer(&json!({"keys": many}));
    bench.advance(Duration::from_secs(10));
    assert_unavailable(bench.key("k1").await, "101 keys");

    for wrong in ["", "{}", "[]", "{\"keys\":{}}"] {
        *bench.endpoint.answer.lock() = (StatusCode::OK, wrong.to_owned());
        bench.advance(Duration::from_secs(10));
        assert_unavailable(bench.key("k1").await, "not a JWKS document");
    }
}

#[tokio::test]
async fn keys_that_cannot_be_used_are_left_out() {
    let with = |change: fn(&mut serde_json::Map<String, Value>)| {
        let mut key = jwk(Algorithm::ES256, "bad");
        change(key.as_object_mut().expect("a JWK is an object"));
        key
    };
    let bad = [
        json!({"kty": "oct", "kid": "bad", "k": "c2VjcmV0", "alg": "HS256"}),
        json!({"kty": "EC", "kid": "bad", "crv": "P-521", "x": "AA", "y": "AA"}),
        json!({"kty": "RSA", "kid": "bad", "n": "AQAB"}),
        json!({"kty": "OKP", "kid": "bad", "crv": "Ed448", "x": "AA"}),
        json!("not an object"),
        with(|key| drop(key.insert("use".to_owned(), json!("enc")))),
        with(|key| drop(key.insert("key_ops".to_owned(), json!(["sign"])))),
        with(|key| drop(key.insert("alg".to_owned(), json!("ES384")))),
        with(|key| drop(key.insert("x".to_owned(), json!("#")))),
        with(|key| drop(key.remove("kid"))),
    ];
    for bad in bad {
        let bench = Bench::new(&json!({"keys": [bad, jwk(Algorithm::ES256, "good")]})).await;
        assert_eq!(bench.key("good").await, Ok(()), "{bad}");
        bench.advance(Duration::from_secs(10));
        assert_invalid(bench.key("bad").await, "no key with id");
    }
}

#[tokio::test]
async fn a_key_serves_only_algorithms_it_fits() {
    let mut without_alg = jwk(Algorithm::RS256, "rsa");
    without_alg.as_object_mut().expect("an object").remove("alg");
    let bench = Bench::new(&json!({"keys": [jwk(Algorithm::RS256, "rs256"), without_alg]})).await;
    assert_eq!(bench.key_for("rsa", Algorithm::PS512).await, Ok(()));
    assert_eq!(bench.key_for("rs256", Algorithm::RS256).await, Ok(()));
    bench.advance(Duration::from_secs(10));
    assert_invalid(bench.key_for("rs256", Algorithm::PS256).await, "PS256 does not fit");
    bench.advance(Duration::from_secs(10));
    assert_invalid(bench.key_for("rsa", Algorithm::HS256).await, "HS256 does not fit");
}

#[tokio::test]
async fn a_verifier_uses_the_key_set_for_tokens_of_every_public_key_family() {
    let algorithms = [Algorithm::RS256, Algorithm::PS384, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];
    let keys: Vec<Value> = algorithms.iter().map(|algorithm| jwk(*algorithm, &format!("{algorithm:?}"))).collect();
    let bench = Bench::new(&json!({"keys": keys})).await;
    let hmac = signer_and_keys(Algorithm::HS256).1;
    let set = KeySet { jwks_url: Some(bench.url.clone()), ..hmac };
    let jwks = JwksOptions { timeout: DEADLINE, ..JwksOptions::default() };
    let config = VerifierConfig { connection: set, subscription: None, jwks };
    let verifier = Verifier::new(&config).expect("a usable address");
    for (position, algorithm) in algorithms.into_iter().enumerate() {
        let token = sign(algorithm, Some(&format!("{algorithm:?}")), &json!({"sub": "u17"}));
        let verification = verifier.verify_connection(&token, NOW);
        assert_eq!(matches!(verification, Verification::Pending(_)), position == 0, "only the first token waits");
        assert_eq!(verification.wait().await.map(|grant| grant.user.as_str().to_owned()), Ok("u17".to_owned()));
    }
    let expired = sign(Algorithm::ES256, Some("ES256"), &json!({"exp": NOW}));
    assert_eq!(verifier.verify_connection(&expired, NOW).wait().await, Err(TokenError::Expired));

    // The key set replaces static keys, and a token must name its key.
    let hmac_token = sign(Algorithm::HS256, Some("ES256"), &json!({}));
    assert!(verifier.verify_connection(&hmac_token, NOW).wait().await.is_err());
    let nameless = sign(Algorithm::ES256, None, &json!({}));
    assert_invalid(verifier.verify_connection(&nameless, NOW).wait().await, "no kid");
    let other_key = sign(Algorithm::ES256, Some("ES384"), &json!({}));
    assert!(verifier.verify_connection(&other_key, NOW).wait().await.is_err());

    // A reload keeps what was fetched.
    let successor = verifier.succeed(&config).expect("a usable address");
    let token = sign(Algorithm::EdDSA, Some("EdDSA"), &json!({"channel": "a"}));
    assert!(matches!(successor.verify_subscription(&token, NOW), Verification::Ready(Ok(_))));
    assert_eq!(bench.endpoint.requests(), 1);
    assert_eq!(successor.jwks_stats().fetches, 1);
}

#[test]
fn the_defaults_are_those_of_the_reference() {
    let options = JwksOptions::default();
    let seconds = [options.ttl, options.cooldown, options.timeout].map(|time| time.as_secs());
    assert_eq!((seconds, options.attempts), ([3600, 10, 1], 2));
}
