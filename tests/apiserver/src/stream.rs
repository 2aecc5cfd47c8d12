//! Watches: a line of JSON for each change.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::answer::shown;
use crate::route::Route;
use crate::selector::matches;
use crate::server::Shared;
use crate::store::{Change, Store};

/// A watch under way.
struct Watch {
    shared: Arc<Shared>,
    route: Route,
    seen: u64,
    lines: VecDeque<Bytes>,
    ends_at: Instant,
    is_over: bool,
}

/// The answer to a request for changes.
pub(crate) fn watch(shared: Arc<Shared>, route: Route) -> Response {
    let seconds = route.parameter("timeoutSeconds").parse().unwrap_or(300);
    let ends_at = Instant::now() + Duration::from_secs(seconds);
    let asked = route.parameter("resourceVersion").parse().ok().filter(|version| *version > 0);
    let mut watch = Watch { seen: 0, lines: VecDeque::new(), ends_at, is_over: false, shared, route };
    watch.begin(asked);
    let lines = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), watch))
    });
    (StatusCode::OK, [("content-type", "application/json")], Body::from_stream(lines)).into_response()
}

impl Watch {
    fn begin(&mut self, asked: Option<u64>) {
        let shared = Arc::clone(&self.shared);
        let store = shared.store.lock();
        self.seen = asked.unwrap_or_else(|| store.version());
        if asked.is_none() {
            let selector = self.route.parameter("labelSelector").to_owned();
            for object in store.all(&self.route.resource, &self.route.namespace).filter(|each| matches(&selector, each))
            {
                self.lines.push_back(line("ADDED", shown(object.clone(), &self.route)));
            }
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.is_over {
                return None;
            }
            let mut changed = self.shared.changed.subscribe();
            let shared = Arc::clone(&self.shared);
            self.gather(&shared.store.lock());
            if !self.lines.is_empty() {
                continue;
            }
            if tokio::time::timeout_at(self.ends_at, changed.changed()).await.is_err() {
                self.is_over = true;
                self.lines.push_back(self.bookmark());
            }
        }
    }

    fn gather(&mut self, store: &Store) {
        let Some(changes) = store.since(self.seen) else {
            let gone = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410,
            });
            self.lines.push_back(line("ERROR", gone));
            self.is_over = true;
            return;
        };
        let lines: Vec<Bytes> = changes.filter_map(|change| self.describe(change)).collect();
        self.lines.extend(lines);
        self.seen = store.version();
    }

    /// How a change looks through the selector: what matches no more is gone.
    fn describe(&self, change: &Change) -> Option<Bytes> {
        if change.key.resource != self.route.resource || change.key.namespace != self.route.namespace {
            return None;
        }
        let selector = self.route.parameter("labelSelector");
        let was = change.before.as_ref().is_some_and(|before| matches(selector, before));
        let is = !change.is_deletion && matches(selector, &change.after);
        let kind = match (was, is) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        Some(line(kind, shown(change.after.clone(), &self.route)))
    }

    fn bookmark(&self) -> Bytes {
        let object = json!({ "metadata": { "resourceVersion": self.seen.to_string() } });
        line("BOOKMARK", shown(object, &self.route))
    }
}

fn line(kind: &str, object: Value) -> Bytes {
    format!("{}\n", json!({ "type": kind, "object": object })).into()
}
