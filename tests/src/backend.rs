//! The application behind the gateway: an HTTP server that answers the questions of event proxies as the test says, and
//! tells what it was asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::ports::free_port;
use crate::tokens::now;
use crate::within;

/// What the backend does with a question.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Status 200 and this body.
    Json(Value),
    /// Status 200 and this result, with an `expire_at` so many seconds after the question.
    Expiring(Value, i64),
    /// This status and body.
    Text(u16, String),
    /// Nothing, ever.
    Silence,
}

/// A question as it came.
#[derive(Debug)]
pub struct Asked {
    /// Which proxy.
    pub path: String,
    /// The headers of the request.
    pub headers: HeaderMap,
    /// The body.
    pub body: Value,
}

impl Asked {
    /// All values of a header, joined.
    pub fn header(&self, name: &str) -> String {
        let values: Vec<_> = self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        values.join("|")
    }
}

/// The server. It ends when it is dropped.
pub struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    asked: mpsc::UnboundedReceiver<Asked>,
    /// Questions that came while others were waited for.
    others: Vec<Asked>,
    /// `None` while it is down.
    runtime: Option<Runtime>,
}

struct Shared {
    answers: Mutex<HashMap<String, Answer>>,
    asked: mpsc::UnboundedSender<Asked>,
}

impl Backend {
    /// A backend that says `{"result":{}}` to everything.
    pub fn start() -> Self {
        let (sender, asked) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { answers: Mutex::default(), asked: sender });
        // Nobody else gets it while the backend is down.
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut backend = Self { address, shared, asked, others: Vec::new(), runtime: None };
        backend.go_up();
        backend
    }

    /// The address of one of its paths.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on questions to this path are answered so.
    pub fn answer(&self, path: &str, answer: Answer) {
        let mut answers = self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.insert(path.to_owned(), answer);
    }

    /// From now on questions to this path have this result.
    pub fn accept(&self, path: &str, result: Value) {
        self.answer(path, Answer::Json(json!({ "result": result })));
    }

    /// The first question to this path that was not taken yet.
    pub async fn asked(&mut self, path: &str) -> Asked {
        loop {
            if let Some(index) = self.others.iter().position(|asked| asked.path == path) {
                return self.others.remove(index);
            }
            let next = within(&format!("a question to {path}"), self.asked.recv()).await;
            self.others.push(next.expect("the backend lives"));
        }
    }

    /// How many questions to this path were not taken yet.
    pub fn count(&mut self, path: &str) -> usize {
        while let Ok(next) = self.asked.try_recv() {
            self.others.push(next);
        }
        self.others.iter().filter(|asked| asked.path == path).count()
    }

    /// Forgets all questions so far.
    pub fn forget(&mut self) {
        while self.asked.try_recv().is_ok() {}
        self.others.clear();
    }

    /// Ends every connection and refuses new ones.
    pub fn go_down(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime may not be dropped where others are at work; this one's tasks end with it all the same.
            std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5)))
                .join()
                .expect("the backend's thread ends");
        }
    }

    /// Answers again, on the same port.
    pub fn go_up(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let address = self.address;
        let shared = self.shared.clone();
        let (sender, bound) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let listener = TcpListener::bind(address).await.expect("the port is free");
            sender.send(listener.local_addr().expect("it is bound")).expect("the test waits");
            axum::serve(listener, Router::new().fallback(answer).with_state(shared)).await
        });
        self.address = bound.recv_timeout(crate::DEADLINE).expect("the backend listens");
        self.runtime = Some(runtime);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.go_down();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let path = uri.path().to_owned();
    let body = serde_json::from_slice(&body).unwrap_or_else(|_| json!({ "not JSON": body.len() }));
    let answer = shared.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&path).cloned();
    let _the_test_is_over = shared.asked.send(Asked { path, headers, body });
    match answer {
        None => axum::Json(json!({ "result": {} })).into_response(),
        Some(Answer::Json(body)) => axum::Json(body).into_response(),
        Some(Answer::Expiring(mut result, seconds)) => {
            result["expire_at"] = json!(now() + seconds);
            axum::Json(json!({ "result": result })).into_response()
        }
        Some(Answer::Text(status, text)) => (StatusCode::from_u16(status).expect("a status"), text).into_response(),
        Some(Answer::Silence) => std::future::pending().await,
    }
}
