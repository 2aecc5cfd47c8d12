//! The router over a node with the backplane in memory, and a shard that only writes down what it is told.

mod methods;
mod requests;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use auth::{Verifier, VerifierConfig};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use backplane::memory::{MemoryBackplane, MemoryLimits};
use backplane::{HistoryOptions, NodeId};
use parking_lot::Mutex;
use serde_json::Value;
use session::{ChannelOptions, ChannelSyntax, Channels, DataFormat, Settings};
use tower::ServiceExt;

use super::auth::ApiKeys;
use super::meters::Meters;
use super::{Api, ApiLimits, BODY_TIMEOUT, build};
use crate::config::origin::OriginRule;
use crate::node::{Node, NodeOptions, Runtime};
use crate::placing::RebalanceSettings;
use crate::proxy::Proxies;
use crate::sessions::SessionSettings;
use crate::sessions::store::Sessions;
use crate::shard::IoLimits;
use crate::shard::command::{Action, Applied, Command, Survey, Target};
use crate::shard::inbox::{Inbox, InboxLimits, Item};

const KEY: &str = "key-of-the-tests";

/// A gateway without sockets.
struct Fixture {
    node: Arc<Node>,
    router: Router,
    told: Arc<Mutex<Told>>,
}

/// What a shard was told, and what it shall answer.
#[derive(Default)]
struct Told {
    applied: Vec<(Target, Action)>,
    answer: Applied,
    survey: Survey,
    silent: bool,
}

/// An answer over HTTP.
#[derive(PartialEq, Eq, Debug)]
struct Answer {
    status: u16,
    content_type: String,
    text: String,
}

impl Fixture {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Api)) -> Self {
        Self::over(MemoryLimits::default(), change)
    }

    fn over(memory: MemoryLimits, change: impl FnOnce(&mut Api)) -> Self {
        let inbox = Arc::new(Inbox::new(InboxLimits::default()));
        let told = Arc::new(Mutex::new(Told::default()));
        let backplane = Arc::new(MemoryBackplane::new(memory));
        let options = NodeOptions::default();
        let node = Node::new("test".to_owned(), backplane.clone(), vec![inbox.clone()], runtime(&[KEY]), options);
        node.set_sessions(Sessions::new(backplane, NodeId(node.uid)));
        let mut api =
            Api { node: node.clone(), limits: ApiLimits::default(), body_timeout: BODY_TIMEOUT, meters: Meters::new() };
        change(&mut api);
        tokio::spawn(shard(inbox, told.clone()));
        Self { node, router: build(api), told }
    }

    async fn send(&self, request: Request) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap_or_else(|never: Infallible| match never {});
        let status = response.status().as_u16();
        let content_type = response.headers().get("content-type").map(|value| value.to_str().unwrap().to_owned());
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Answer { status, content_type: content_type.unwrap_or_default(), text }
    }

    /// With the key, to `/api` and what follows.
    async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send(post(path).body(body.into()).unwrap()).await
    }

    /// The whole text of an answer with status 200.
    async fn call(&self, method: &str, body: impl Into<Body>) -> String {
        let answer = self.post(&format!("/{method}"), body).await;
        assert_eq!((answer.status, answer.content_type.as_str()), (200, "application/json"), "{method}: {answer:?}");
        answer.text
    }

    async fn ok(&self, method: &str, body: impl Into<Body>) -> Value {
        let text = self.call(method, body).await;
        let mut answer: Value = serde_json::from_str(&text).unwrap();
        assert!(answer["result"].is_object() && answer.get("error").is_none(), "{method}: {text}");
        answer["result"].take()
    }

    /// The code and message of an error.
    async fn error(&self, method: &str, body: impl Into<Body>) -> (u64, String) {
        let text = self.call(method, body).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        let error = &answer["error"];
        assert!(answer.get("result").is_none(), "{method}: {text}");
        (error["code"].as_u64().unwrap(), error["message"].as_str().unwrap().to_owned())
    }
}

fn post(path: &str) -> http::request::Builder {
    Request::post(format!("/api{path}")).header("X-API-Key", KEY)
}

pub(crate) fn runtime(keys: &[&str]) -> Runtime {
    let history = Some(HistoryOptions { size: 10, ttl: Duration::from_secs(300), meta_ttl: Duration::from_secs(3600) });
    let chat = ChannelOptions { presence: true, history, ..ChannelOptions::default() };
    let format = |publication_data_format| ChannelOptions { publication_data_format, ..ChannelOptions::default() };
    let namespaces = [
        ("chat", chat),
        ("bare", ChannelOptions::default()),
        ("json", format(DataFormat::Json)),
        ("object", format(DataFormat::JsonObject)),
        ("binary", ChannelOptions { history, ..format(DataFormat::Binary) }),
    ];
    let namespaces = namespaces.map(|(name, options)| (name.to_owned(), options));
    Runtime {
        session: Settings::default(),
        channels: Channels::new(None, namespaces, ChannelSyntax::default()).unwrap(),
        verifier: Verifier::new(&VerifierConfig::default()).unwrap(),
        limits: protocol::Limits::default(),
        io: IoLimits { message_bytes: 65_536, queue_bytes: 1 << 20 },
        sessions: SessionSettings::default(),
        origins: OriginRule::default(),
        api: ApiKeys::new(keys, false),
        proxies: Proxies::new(&Default::default(), None).unwrap(),
        backplane_required: false,
        rebalance: RebalanceSettings::default(),
    }
}

async fn shard(inbox: Arc<Inbox>, told: Arc<Mutex<Told>>) {
    loop {
        inbox.ready().await;
        for item in inbox.take(usize::MAX, usize::MAX).items {
            let Item::Command(command) = item else { continue };
            let mut told = told.lock();
            if told.silent {
                // The way to answer is dropped, as by a shard that ended.
                continue;
            }
            match *command {
                Command::Apply { target, action, done } => {
                    told.applied.push((target, (*action).clone()));
                    done.send(told.answer).unwrap();
                }
                Command::Survey { done } => done.send(told.survey.clone()).unwrap(),
                Command::TakeOver { .. }
                | Command::CountMovable { .. }
                | Command::Move { .. }
                | Command::StopAccepting { .. }
                | Command::CloseSome { .. } => panic!("the API does not ask for this"),
            }
        }
    }
}
