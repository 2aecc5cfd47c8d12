//! The server as tests use it.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::answer::{Refusal, answer};
use crate::route::Route;
use crate::store::{Entry, Key, Store};
use crate::stream::watch as watch_changes;

/// Ports below those that the system gives to outgoing connections, so that a server that was killed finds its own free
/// when it comes back.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// What kind of server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens: on the loopback interface, unless a test has networks of its own.
    pub address: IpAddr,
    /// The versions of `discovery.k8s.io` that it has.
    pub slice_versions: Vec<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), slice_versions: vec!["v1"] }
    }
}

/// A request that was answered.
#[derive(Clone, Debug)]
pub struct Call {
    /// When.
    pub at: Instant,
    /// Who asked: the bearer token.
    pub user: String,
    /// What for: `get`, `list`, `watch`, `create`, `update`, `patch` or `delete`.
    pub verb: &'static str,
    /// The plural of the kind.
    pub resource: String,
    /// The name of the object, if the request says one.
    pub name: Option<String>,
    /// The status of the answer.
    pub code: u16,
    /// What was sent; null if nothing was.
    pub body: Value,
}

/// How the server treats requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Mood {
    #[default]
    Answers,
    /// Requests arrive, and nothing happens.
    Silent,
    /// Requests are carried out, and the answers are lost.
    Forgetful,
}

type Hook = Box<dyn FnOnce(&ApiServer) + Send>;

/// What requests and the test share.
pub(crate) struct Shared {
    pub(crate) store: Mutex<Store>,
    pub(crate) changed: watch::Sender<u64>,
    options: Options,
    mood: watch::Sender<Mood>,
    /// Verbs that are refused, by resource; `*` is every verb.
    refused: Mutex<BTreeSet<(String, String)>>,
    hooks: Mutex<Vec<(&'static str, &'static str, Hook)>>,
    calls: Mutex<Vec<Call>>,
}

/// A running server, in the runtime of the test. It ends with this.
#[derive(Clone)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Arc<Mutex<Option<Accepting>>>,
}

/// The task that accepts; its connections end with it.
struct Accepting(JoinHandle<()>);

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ApiServer {
    /// Starts one, with nothing in it.
    ///
    /// # Panics
    ///
    /// When no port is free.
    pub async fn start(options: Options) -> Self {
        let listener = listen(options.address).await;
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            changed: watch::Sender::new(0),
            options,
            mood: watch::Sender::default(),
            refused: Mutex::default(),
            hooks: Mutex::default(),
            calls: Mutex::default(),
        });
        let server = Self { shared, address, accepting: Arc::default() };
        server.accept(listener);
        server
    }

    /// The address that clients use.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig for `user` in `namespace`. It is JSON, which is YAML too.
    pub fn kubeconfig(&self, user: &str, namespace: &str) -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": { "server": self.url() } }],
            "users": [{ "name": user, "user": { "token": user } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": user, "namespace": namespace } }],
            "current-context": "test",
        })
        .to_string()
    }

    /// Kills it: every connection breaks, and nobody listens. Objects stay.
    pub fn kill(&self) {
        self.accepting.lock().take();
    }

    /// Starts it again after [`kill`](Self::kill), on the same port.
    ///
    /// # Panics
    ///
    /// When the port is taken.
    pub async fn revive(&self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                // The task that listened has not ended yet.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => tokio::task::yield_now().await,
                Err(error) => panic!("{}: {error}", self.address),
            }
        };
        self.accept(listener);
    }

    /// From now on requests arrive, and nothing happens: a network that loses packets.
    pub fn fall_silent(&self) {
        self.shared.mood.send_replace(Mood::Silent);
    }

    /// From now on requests are carried out, and their answers lost.
    pub fn lose_answers(&self) {
        self.shared.mood.send_replace(Mood::Forgetful);
    }

    /// Everything is answered again.
    pub fn recover(&self) {
        self.shared.mood.send_replace(Mood::Answers);
    }

    /// Refuses `verb` on `resource` to everybody; `*` is every verb.
    pub fn refuse(&self, verb: &str, resource: &str) {
        self.shared.refused.lock().insert((verb.to_owned(), resource.to_owned()));
    }

    /// Refuses nothing any more.
    pub fn allow_all(&self) {
        self.shared.refused.lock().clear();
    }

    /// No watch can go on from where it was: each is told that its version is too old.
    pub fn forget_history(&self) {
        self.shared.store.lock().forget();
        self.notify();
    }

    /// Does something just before the next `verb` on `resource` is carried out: that one was decided without knowing it.
    pub fn before_next(&self, verb: &'static str, resource: &'static str, hook: impl FnOnce(&Self) + Send + 'static) {
        self.shared.hooks.lock().push((verb, resource, Box::new(hook)));
    }

    /// Stores an object, as somebody else with all rights would.
    pub fn put(&self, resource: &str, namespace: &str, name: &str, object: Value) -> Value {
        let key = key(resource, namespace, name);
        let stored = {
            let mut store = self.shared.store.lock();
            let mut fields = store.entry(&key).map(|entry| entry.fields.clone()).unwrap_or_default();
            let before = store.entry(&key).map_or(json!({}), |entry| entry.object.clone());
            fields.note_update("test", &before, &object);
            store.put(&key, Entry { object, fields })
        };
        self.notify();
        stored
    }

    /// Changes an object that is there.
    ///
    /// # Panics
    ///
    /// When it is not.
    pub fn change(&self, resource: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.object(resource, namespace, name).expect("an object to change");
        change(&mut object);
        self.put(resource, namespace, name, object);
    }

    /// Removes an object, and what belongs to it.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        self.shared.store.lock().remove(&key(resource, namespace, name));
        self.notify();
    }

    /// One object.
    pub fn object(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.store.lock().entry(&key(resource, namespace, name)).map(|entry| entry.object.clone())
    }

    /// All objects of a kind in a namespace, by name.
    pub fn objects(&self, resource: &str, namespace: &str) -> Vec<Value> {
        self.shared.store.lock().all(resource, namespace).cloned().collect()
    }

    /// The requests so far.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().clone()
    }

    /// Changes with every request and every change of an object.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Waits until `holds` says yes; it is asked after every request and every change of an object.
    ///
    /// # Panics
    ///
    /// With `what` when it has not within `deadline`.
    pub async fn until(&self, what: &str, deadline: Duration, mut holds: impl FnMut(&Self) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let waiting = async {
            while !holds(self) {
                changed.changed().await.expect("the sender lives as long as this");
            }
        };
        let is_late = tokio::time::timeout(deadline, waiting).await.is_err();
        assert!(!is_late, "not within {deadline:?}: {what}");
    }

    fn notify(&self) {
        self.shared.changed.send_modify(|changes| *changes += 1);
    }

    fn accept(&self, listener: TcpListener) {
        let router = Router::new().fallback(serve).with_state(self.without_task());
        *self.accepting.lock() = Some(Accepting(tokio::spawn(accept(listener, router))));
    }

    /// For the task itself, which must not keep itself alive.
    fn without_task(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), address: self.address, accepting: Arc::default() }
    }

    fn is_refused(&self, verb: &str, resource: &str) -> bool {
        let refused = self.shared.refused.lock();
        [verb, "*"].iter().any(|verb| refused.contains(&((*verb).to_owned(), resource.to_owned())))
    }

    fn run_hook(&self, route: &Route) {
        let hook = {
            let mut hooks = self.shared.hooks.lock();
            let found = hooks.iter().position(|(verb, resource, _)| *verb == route.verb && *resource == route.resource);
            found.map(|index| hooks.remove(index).2)
        };
        if let Some(hook) = hook {
            hook(self);
        }
    }

    /// The answer to everything but a watch.
    fn carry_out(&self, route: &Route, headers: &HeaderMap, body: &Value) -> Result<(StatusCode, Value), Refusal> {
        self.check(route)?;
        if route.resource == "selfsubjectaccessreviews" {
            return Ok((StatusCode::CREATED, self.review(body)));
        }
        self.run_hook(route);
        let is_apply = headers.get("content-type").is_some_and(|kind| kind == "application/apply-patch+yaml");
        answer(&mut self.shared.store.lock(), route, body, is_apply)
    }

    fn check(&self, route: &Route) -> Result<(), Refusal> {
        let versions = &self.shared.options.slice_versions;
        if route.group == "discovery.k8s.io" && !versions.contains(&route.version.as_str()) {
            let message = "the server could not find the requested resource";
            return Err(Refusal::new(StatusCode::NOT_FOUND, "NotFound", message));
        }
        if self.is_refused(route.verb, &route.resource) {
            let message = format!("{} is forbidden: cannot {} it", route.resource, route.verb);
            return Err(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", message));
        }
        Ok(())
    }

    fn review(&self, body: &Value) -> Value {
        let asked = &body["spec"]["resourceAttributes"];
        let [verb, resource] = ["verb", "resource"].map(|field| asked[field].as_str().unwrap_or_default());
        let mut answer = body.clone();
        answer["status"] = json!({ "allowed": !self.is_refused(verb, resource) });
        answer
    }

    fn record(&self, route: &Route, headers: &HeaderMap, code: StatusCode, body: Value) {
        let user = headers.get("authorization").and_then(|header| header.to_str().ok()?.strip_prefix("Bearer "));
        self.shared.calls.lock().push(Call {
            at: Instant::now(),
            user: user.unwrap_or_default().to_owned(),
            verb: route.verb,
            resource: route.resource.clone(),
            name: route.name.clone().or_else(|| body["metadata"]["name"].as_str().map(str::to_owned)),
            code: code.as_u16(),
            body,
        });
        self.notify();
    }
}

fn key(resource: &str, namespace: &str, name: &str) -> Key {
    Key { resource: resource.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
}

async fn listen(address: IpAddr) -> TcpListener {
    /// Servers tried to start in this process so far. None gets a port that another one had, which may come back to it.
    static TRIES: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    for _ in 0..count {
        // Each process begins far from the others.
        let offset = std::process::id().wrapping_mul(7_919).wrapping_add(TRIES.fetch_add(1, Relaxed)) % count;
        let port = PORTS.start + offset as u16;
        if let Ok(listener) = TcpListener::bind((address, port)).await {
            return listener;
        }
    }
    panic!("no port of {PORTS:?} is free on {address}");
}

async fn accept(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let service = TowerToHyperService::new(router.clone());
        // A client that goes away is no error.
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn serve(
    State(server): State<ApiServer>,
    method: Method,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(route) = Route::read(&method, &uri, query) else { return StatusCode::NOT_FOUND.into_response() };
    let mut mood = server.shared.mood.subscribe();
    if mood.wait_for(|mood| *mood != Mood::Silent).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if route.verb == "watch" && server.check(&route).is_ok() {
        server.record(&route, &headers, StatusCode::OK, body);
        return watch_changes(Arc::clone(&server.shared), route);
    }
    let (code, answer) =
        server.carry_out(&route, &headers, &body).unwrap_or_else(|refusal| (refusal.code, refusal.status()));
    server.record(&route, &headers, code, body);
    if mood.wait_for(|mood| *mood != Mood::Forgetful).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    (code, axum::Json(answer)).into_response()
}
