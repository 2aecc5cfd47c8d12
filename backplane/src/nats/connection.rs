//! One TCP connection to a server, and requests over it.
//!
//! The client library reconnects by itself, makes subscriptions again without a word, and then sends what was published
//! while it was away. None of that is bearable here: nothing may be published on a connection before it was found out
//! what the server behind it has lost. So a [`Connection`] is one TCP connection: the library is given credentials once,
//! and an error when it asks for them a second time, which ends its one attempt to connect again before it has said
//! anything. Whoever needs a connection makes another [`Connection`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::{AuthError, Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::auth::Proof;
use super::config::{Address, NatsConfig};
use super::request::CallError;
use crate::BackplaneError;
use crate::health::Health;
use crate::tls::client_config;

/// How often the client library asks a server whether it is there; it gives up on the third answer that is missing.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// Requests and their answers.
    Calls,
    /// Subscriptions.
    Deliveries,
}

impl Purpose {
    /// As people see it at the server.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Deliveries => "deliveries",
        }
    }
}

/// Answers that may wait for their askers: more than can be under way, each with the largest page that is asked for.
const ANSWERS_WAITING: usize = 65_536;

/// Servers that are remembered beside those of the settings. A cluster has a few.
const DISCOVERED_MAX: usize = 64;

/// Everything that is needed to connect.
pub(super) struct Access {
    pub(super) config: Arc<NatsConfig>,
    /// What all connections have done.
    pub(super) health: Arc<Health>,
    proof: Proof,
    tls: Option<rustls::ClientConfig>,
    /// Servers that others have named.
    discovered: Mutex<Vec<String>>,
    next: AtomicUsize,
    made: AtomicU64,
}

impl Access {
    /// Checks the settings and reads the files they name.
    pub(super) fn new(config: &NatsConfig) -> Result<Self, BackplaneError> {
        if let Some(problem) = config.problem() {
            return Err(BackplaneError::Protocol(format!("nats settings: {problem}")));
        }
        let tls = config.tls.as_ref().map(client_config).transpose().map_err(of_nats)?;
        Ok(Self {
            proof: Proof::new(&config.auth)?,
            config: Arc::new(config.clone()),
            health: Arc::new(Health::new("nats")),
            tls,
            discovered: Mutex::default(),
            next: AtomicUsize::new(0),
            made: AtomicU64::new(0),
        })
    }

    /// Connects to the first server that can be reached, each tried once.
    pub(super) async fn connect_any(&self, purpose: Purpose) -> Result<Arc<Connection>, BackplaneError> {
        let mut last = BackplaneError::Unavailable("no nats server is known".to_owned());
        for _ in 0..self.config.servers.len() {
            match self.connect(purpose).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Connects to the next server in turn.
    pub(super) async fn connect(&self, purpose: Purpose) -> Result<Arc<Connection>, BackplaneError> {
        let address = self.next_address();
        let limit = 2 * self.config.connect_timeout;
        match tokio::time::timeout(limit, Connection::new(self, &address, purpose)).await {
            Ok(made) => made,
            Err(_) => Err(BackplaneError::Unavailable(format!("nats at {address} did not answer in time"))),
        }
    }

    fn next_address(&self) -> String {
        let known = &self.config.servers;
        let discovered = self.discovered.lock();
        let index = self.next.fetch_add(1, Relaxed) % (known.len() + discovered.len());
        known.get(index).map_or_else(|| discovered[index - known.len()].clone(), Address::to_string)
    }

    /// Whether there is another server than the one that is used.
    fn has_choice(&self) -> bool {
        self.config.servers.len() + self.discovered.lock().len() > 1
    }

    fn remember(&self, named: &[String]) {
        let mut discovered = self.discovered.lock();
        for address in named {
            let is_known =
                discovered.contains(address) || self.config.servers.iter().any(|server| server.to_string() == *address);
            if !is_known && discovered.len() < DISCOVERED_MAX {
                discovered.push(address.clone());
            }
        }
    }
}

/// What a server said of itself.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// New at each of its starts.
    pub(super) id: String,
    /// Major, minor, patch.
    pub(super) version: (u64, u64, u64),
    /// Its name, by which streams are said to be led.
    pub(super) name: String,
    /// It is one of several.
    pub(super) is_clustered: bool,
    /// It keeps streams itself.
    pub(super) has_jetstream: bool,
}

impl Server {
    /// Whether one request can ask for many messages (2.11 and newer).
    pub(super) fn reads_batches(&self) -> bool {
        self.version >= (2, 11, 0)
    }

    /// Whether copies of what a stream takes keep the order of the stream (2.10.25 and newer).
    pub(super) fn keeps_order(&self) -> bool {
        self.version >= (2, 10, 25)
    }
}

/// One TCP connection, from the greeting to its end.
pub(super) struct Connection {
    client: Client,
    /// Distinguishes connections of this process; grows.
    pub(super) number: u64,
    pub(super) server: Server,
    inbox: String,
    requests: Arc<Requests>,
    state: Arc<State>,
    confirmation: Mutex<Confirmation>,
    this: Weak<Self>,
    answers: JoinHandle<()>,
}

impl Connection {
    async fn new(access: &Access, address: &str, purpose: Purpose) -> Result<Arc<Self>, BackplaneError> {
        let requests = Arc::new(Requests::default());
        let state = Arc::new(State::new());
        let options = options(access, purpose, &state, &requests);
        let scheme = if access.tls.is_some() { "tls" } else { "nats" };
        let connected = options.connect(format!("{scheme}://{address}")).await;
        let client = connected.map_err(|error| refused_or_unavailable(address, &error))?;
        let info = client.server_info();
        access.remember(&info.connect_urls);
        let server = Server {
            version: version(&info.version),
            is_clustered: info.cluster.is_some(),
            has_jetstream: info.jetstream,
            id: info.server_id,
            name: info.server_name,
        };
        let inbox = format!("_INBOX.{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>());
        let subscriber = client
            .subscribe(format!("{inbox}.*"))
            .await
            .map_err(|error| BackplaneError::Unavailable(format!("nats at {address}: {error}")))?;
        let answers = tokio::spawn(hand_out(subscriber, Arc::clone(&requests), Arc::clone(&state)));
        let number = access.made.fetch_add(1, Relaxed);
        let connection = Arc::new_cyclic(|this| Self {
            client,
            number,
            server,
            inbox,
            requests,
            state,
            confirmation: Mutex::default(),
            this: this.clone(),
            answers,
        });
        // What the server must allow, and that the subscription is made.
        match tokio::time::timeout(access.config.connect_timeout, connection.confirm()).await {
            Ok(Ok(())) => Ok(connection),
            _ => Err(BackplaneError::Unavailable(format!(
                "nats at {address} does not return what is published to {}.*; the user must be allowed to publish and \
                 subscribe to _INBOX.>",
                connection.inbox
            ))),
        }
    }

    /// Ends when the connection does.
    pub(super) async fn ended(&self) {
        let mut is_over = self.state.is_over.subscribe();
        // The sender lives as long as this.
        let _ = is_over.wait_for(|is_over| *is_over).await;
    }

    /// Whether it has ended.
    pub(super) fn is_over(&self) -> bool {
        *self.state.is_over.borrow()
    }

    /// Treats it as ended: whoever uses it makes another one.
    pub(super) fn end(&self) {
        self.state.end(&self.requests);
    }

    /// How often the client library has dropped messages because nobody took them. More than this is not known: it
    /// tells of some of them only.
    pub(super) fn overflows(&self) -> watch::Receiver<u64> {
        self.state.overflows.subscribe()
    }

    /// Subscribes. Returns before the server knows: see [`confirm`](Self::confirm).
    pub(super) async fn subscribe(&self, subject: String) -> Result<Subscriber, CallError> {
        self.client.subscribe(subject).await.map_err(|error| CallError::Unavailable(error.to_string()))
    }

    /// Hands a message to the connection. Whether it arrives is not known: see [`confirm`](Self::confirm).
    pub(super) async fn send(&self, subject: String, payload: Bytes) -> Result<(), CallError> {
        if self.is_over() {
            return Err(CallError::away());
        }
        self.client.publish(subject, payload).await.map_err(unsendable)
    }

    /// Hands a request to the connection. When this returns it has its place among everything that is sent; the answer
    /// is for the caller to wait for.
    pub(super) async fn ask(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Answer, CallError> {
        let (token, receiver) = self.requests.insert(Asker::One, oneshot::channel)?;
        let answer = Answer { receiver, _place: Place { requests: Arc::clone(&self.requests), token } };
        self.dispatch(subject, token, headers, payload).await?;
        Ok(answer)
    }

    /// The same for a request with several answers.
    pub(super) async fn ask_for_many(&self, subject: String, payload: Bytes) -> Result<Answers, CallError> {
        let (token, receiver) = self.requests.insert(Asker::Many, mpsc::unbounded_channel)?;
        let answers = Answers { receiver, _place: Place { requests: Arc::clone(&self.requests), token } };
        self.dispatch(subject, token, None, payload).await?;
        Ok(answers)
    }

    /// A subscription of its own for answers that come under other subjects than the one they are asked to be sent to,
    /// as those of consumers do.
    pub(super) async fn mailbox(&self) -> Result<Mailbox<'_>, CallError> {
        let subject = format!("{}{:x}", self.inbox, self.requests.next.fetch_add(1, Relaxed));
        let subscriber = self.subscribe(subject.clone()).await?;
        Ok(Mailbox { connection: self, subject, subscriber })
    }

    async fn dispatch(
        &self,
        subject: String,
        token: u64,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<(), CallError> {
        let reply = self.reply(token);
        match headers {
            Some(headers) => self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await,
            None => self.client.publish_with_reply(subject, reply, payload).await,
        }
        .map_err(unsendable)
    }

    fn reply(&self, token: u64) -> String {
        format!("{}.{token}", self.inbox)
    }

    /// Returns when the server has handled everything that was handed to this connection before. Many callers share one
    /// message to ourselves and back.
    pub(super) async fn confirm(&self) -> Result<(), CallError> {
        let (done, confirmed) = oneshot::channel();
        let is_first = {
            let mut confirmation = self.confirmation.lock();
            confirmation.waiting.push(done);
            !std::mem::replace(&mut confirmation.is_under_way, true)
        };
        if is_first && let Some(this) = self.this.upgrade() {
            // In a task of its own, so that a caller that is dropped leaves no other one waiting.
            tokio::spawn(async move { this.confirm_all().await });
        }
        confirmed.await.map_err(|_| CallError::away())
    }

    async fn confirm_all(&self) {
        loop {
            let waiting = {
                let mut confirmation = self.confirmation.lock();
                if confirmation.waiting.is_empty() {
                    confirmation.is_under_way = false;
                    return;
                }
                std::mem::take(&mut confirmation.waiting)
            };
            if self.echo().await.is_err() {
                let mut confirmation = self.confirmation.lock();
                confirmation.is_under_way = false;
                // The ends of their channels tell the others.
                confirmation.waiting.clear();
                return;
            }
            for done in waiting {
                // Whoever stopped waiting needs no answer.
                let _ = done.send(());
            }
        }
    }

    async fn echo(&self) -> Result<(), CallError> {
        let (token, receiver) = self.requests.insert(Asker::One, oneshot::channel)?;
        let _place = Place { requests: Arc::clone(&self.requests), token };
        self.client.publish(self.reply(token), Bytes::new()).await.map_err(unsendable)?;
        receiver.await.map(drop).map_err(|_| CallError::away())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

/// Those who wait for a confirmation.
#[derive(Default)]
struct Confirmation {
    is_under_way: bool,
    waiting: Vec<oneshot::Sender<()>>,
}

/// Whether the connection lives, and what it lost.
struct State {
    is_over: watch::Sender<bool>,
    overflows: watch::Sender<u64>,
}

impl State {
    fn new() -> Self {
        Self { is_over: watch::Sender::new(false), overflows: watch::Sender::new(0) }
    }

    fn end(&self, requests: &Requests) {
        self.is_over.send_replace(true);
        requests.close();
    }
}

/// An answer that is waited for. Dropping it is giving up.
pub(super) struct Answer {
    receiver: oneshot::Receiver<Message>,
    _place: Place,
}

impl Answer {
    /// Waits for it, as long as the connection lives.
    pub(super) async fn get(self) -> Result<Message, CallError> {
        self.receiver.await.map_err(|_| CallError::away())
    }
}

/// Answers that are waited for. Dropping it is giving up.
pub(super) struct Answers {
    receiver: mpsc::UnboundedReceiver<Message>,
    _place: Place,
}

impl Answers {
    /// Waits for the next one, as long as the connection lives.
    pub(super) async fn next(&mut self) -> Result<Message, CallError> {
        self.receiver.recv().await.ok_or_else(CallError::away)
    }
}

/// A place to which several answers are sent.
pub(super) struct Mailbox<'a> {
    connection: &'a Connection,
    subject: String,
    subscriber: Subscriber,
}

impl Mailbox<'_> {
    /// Hands a request to the connection whose answers come here.
    pub(super) async fn ask(&self, subject: String, payload: Bytes) -> Result<(), CallError> {
        let sent = self.connection.client.publish_with_reply(subject, self.subject.clone(), payload).await;
        sent.map_err(unsendable)
    }

    /// Waits for the next answer, as long as the connection lives.
    pub(super) async fn next(&mut self) -> Result<Message, CallError> {
        tokio::select! {
            biased;
            answer = self.subscriber.next() => answer.ok_or_else(CallError::away),
            () = self.connection.ended() => Err(CallError::away()),
        }
    }
}

enum Asker {
    One(oneshot::Sender<Message>),
    Many(mpsc::UnboundedSender<Message>),
}

/// Who waits for which answer. Bounded by the calls that may be under way.
#[derive(Default)]
struct Requests {
    waiting: Mutex<Waiting>,
    next: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    is_closed: bool,
    askers: HashMap<u64, Asker>,
}

impl Requests {
    /// Makes a channel and takes a place for its sending end.
    fn insert<S, R>(
        &self,
        asker: impl FnOnce(S) -> Asker,
        channel: impl FnOnce() -> (S, R),
    ) -> Result<(u64, R), CallError> {
        let (sender, receiver) = channel();
        let token = self.next.fetch_add(1, Relaxed);
        let mut waiting = self.waiting.lock();
        if waiting.is_closed {
            return Err(CallError::away());
        }
        waiting.askers.insert(token, asker(sender));
        Ok((token, receiver))
    }

    fn close(&self) {
        let askers = {
            let mut waiting = self.waiting.lock();
            waiting.is_closed = true;
            std::mem::take(&mut waiting.askers)
        };
        drop(askers);
    }

    fn answer(&self, message: Message) {
        let token = message.subject.rsplit('.').next().and_then(|token| token.parse().ok());
        let Some(token): Option<u64> = token else { return };
        let mut waiting = self.waiting.lock();
        // Whoever stopped waiting needs no answer.
        match waiting.askers.get(&token) {
            Some(Asker::Many(sender)) => drop(sender.send(message)),
            Some(Asker::One(_)) => {
                if let Some(Asker::One(sender)) = waiting.askers.remove(&token) {
                    drop(waiting);
                    let _ = sender.send(message);
                }
            }
            None => {}
        }
    }
}

/// A place among those who wait for answers.
struct Place {
    requests: Arc<Requests>,
    token: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let asker = self.requests.waiting.lock().askers.remove(&self.token);
        drop(asker);
    }
}

/// Hands answers to those who asked.
async fn hand_out(mut answers: Subscriber, requests: Arc<Requests>, state: Arc<State>) {
    while let Some(answer) = answers.next().await {
        requests.answer(answer);
    }
    state.end(&requests);
}

fn options(access: &Access, purpose: Purpose, state: &Arc<State>, requests: &Arc<Requests>) -> ConnectOptions {
    let config = &access.config;
    let proof = access.proof.clone();
    let is_used = Arc::new(AtomicBool::new(false));
    let options = ConnectOptions::with_auth_callback(move |challenge| {
        let answer = if is_used.swap(true, Relaxed) {
            Err(AuthError::new("one connection only"))
        } else {
            proof.answer(&challenge)
        };
        std::future::ready(answer)
    });
    let (state, requests) = (Arc::downgrade(state), Arc::downgrade(requests));
    let has_choice = access.has_choice();
    let mut options = options
        .name(format!("{} {}", config.node_name, purpose.word()))
        .ping_interval(PING_INTERVAL)
        .connection_timeout(config.connect_timeout)
        // One attempt to connect again, which comes to nothing for lack of credentials; 0 would mean no limit.
        .max_reconnects(1)
        .ignore_discovered_servers()
        .retain_servers_order()
        .subscription_capacity(match purpose {
            Purpose::Calls => ANSWERS_WAITING,
            Purpose::Deliveries => config.deliveries_waiting_max,
        })
        .request_timeout(None)
        // All subjects here are made of encoded tokens.
        .skip_subject_validation(true)
        .event_callback(move |event| {
            if let (Some(state), Some(requests)) = (state.upgrade(), requests.upgrade()) {
                match event {
                    Event::Disconnected | Event::Closed => state.end(&requests),
                    // The server is about to stop. Another one can be used at once.
                    Event::LameDuckMode if has_choice => state.end(&requests),
                    Event::SlowConsumer(_) => state.overflows.send_modify(|overflows| *overflows += 1),
                    Event::ServerError(error) => tracing::warn!(%error, "nats refuses something"),
                    _ => {}
                }
            }
            std::future::ready(())
        });
    if let Some(tls) = &access.tls {
        options = options.tls_client_config(tls.clone()).require_tls(true);
    }
    options
}

fn unsendable(error: async_nats::PublishError) -> CallError {
    match error.kind() {
        async_nats::client::PublishErrorKind::MaxPayloadExceeded => {
            CallError::Refused { code: 400, description: format!("too large for nats (max_payload): {error}") }
        }
        _ => CallError::Unavailable(error.to_string()),
    }
}

/// Says of a mistake in the settings whose they are.
fn of_nats(error: BackplaneError) -> BackplaneError {
    match error {
        BackplaneError::Protocol(why) => BackplaneError::Protocol(format!("nats {why}")),
        unavailable @ BackplaneError::Unavailable(_) => unavailable,
    }
}

fn refused_or_unavailable(address: &str, error: &async_nats::ConnectError) -> BackplaneError {
    let text = error.to_string();
    let is_setting = matches!(
        error.kind(),
        ConnectErrorKind::Authentication
            | ConnectErrorKind::AuthorizationViolation
            | ConnectErrorKind::ServerParse
            | ConnectErrorKind::Tls
    );
    // The way in which the TLS library says that it does not trust the other side, or is not trusted.
    let is_setting = is_setting || text.contains("invalid peer certificate") || text.contains("fatal alert");
    let why = format!("nats at {address}: {text}");
    if is_setting { BackplaneError::Protocol(why) } else { BackplaneError::Unavailable(why) }
}

/// The three numbers of a version; what is not a number counts as 0.
fn version(text: &str) -> (u64, u64, u64) {
    let mut parts = text.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    (part(), part(), part())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let server = |text: &str| Server {
            id: String::new(),
            name: String::new(),
            version: version(text),
            is_clustered: false,
            has_jetstream: true,
        };
        assert_eq!(version("2.9.10"), (2, 9, 10));
        assert_eq!(version("2.12.0-RC.1"), (2, 12, 0));
        assert_eq!(version("odd"), (0, 0, 0));
        assert!(!server("2.9.10").reads_batches() && !server("2.10.25").reads_batches());
        assert!(server("2.11.0").reads_batches() && server("2.15.1").reads_batches());
        assert!(!server("2.10.24").keeps_order());
        assert!(server("2.10.25").keeps_order() && server("2.15.1").keeps_order());
    }

    #[test]
    fn whoever_waits_is_told_of_the_end() {
        let requests = Requests::default();
        let (_, mut receiver) = requests.insert(Asker::One, oneshot::channel).expect("it is open");
        requests.close();
        assert!(matches!(receiver.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert!(requests.insert(Asker::One, oneshot::channel).is_err());
    }

    #[test]
    fn servers_take_turns_and_others_are_remembered() {
        let servers = vec![Address::new("a", 1), Address::new("b", 2)];
        let access = Access::new(&NatsConfig { servers, ..NatsConfig::default() }).expect("the settings are sound");
        assert_eq!([access.next_address(), access.next_address(), access.next_address()], ["a:1", "b:2", "a:1"]);
        access.remember(&["c:3".to_owned(), "a:1".to_owned(), "c:3".to_owned()]);
        let next: Vec<_> = (0..3).map(|_| access.next_address()).collect();
        assert_eq!(next, ["a:1", "b:2", "c:3"]);
    }
}
