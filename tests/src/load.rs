//! Publishers of numbered messages over the server API, and what they were told about each.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::Api;
use crate::audit::{Message, Position};
use crate::{PATIENCE, within};

/// One publish.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Where to.
    pub channel: String,
    /// What.
    pub message: Message,
    /// The position, as far as the publisher is told it, or the code of the error.
    pub outcome: Result<Option<Position>, u64>,
    /// How long it took.
    pub took: Duration,
}

/// Publishers at work.
pub struct Load {
    publishers: Vec<JoinHandle<Vec<Attempt>>>,
    stop: watch::Sender<bool>,
    /// How many publishes have succeeded, and how many have failed.
    counts: watch::Sender<(u64, u64)>,
}

impl Load {
    /// No publisher yet.
    pub fn new() -> Self {
        Self { publishers: Vec::new(), stop: watch::Sender::new(false), counts: watch::Sender::new((0, 0)) }
    }

    /// One more publisher: one message after another, with a pause between an answer and the next.
    pub fn add(&mut self, publisher: u64, api: Api, channel: &str, pause: Duration) {
        let (channel, stop, counts) = (channel.to_owned(), self.stop.subscribe(), self.counts.clone());
        self.publishers.push(tokio::spawn(async move {
            let mut attempts = Vec::new();
            while !*stop.borrow() {
                let message = Message { publisher, number: attempts.len() as u64 + 1 };
                let attempt = publish(&api, &channel, message, "").await;
                let succeeded = attempt.outcome.is_ok();
                counts.send_modify(|(good, bad)| if succeeded { *good += 1 } else { *bad += 1 });
                attempts.push(attempt);
                tokio::time::sleep(pause).await;
            }
            attempts
        }));
    }

    /// Waits until so many more publishes have succeeded.
    pub async fn succeed(&self, more: u64) {
        let target = self.counts.borrow().0 + more;
        self.reach("publishes to succeed", |(good, _)| *good >= target).await;
    }

    /// Waits until so many more publishes have failed.
    pub async fn fail(&self, more: u64) {
        let target = self.counts.borrow().1 + more;
        self.reach("publishes to fail", |(_, bad)| *bad >= target).await;
    }

    /// Servers may have to choose another leader first, by times of their own.
    async fn reach(&self, what: &str, holds: impl FnMut(&(u64, u64)) -> bool) {
        let mut counts = self.counts.subscribe();
        let reached = tokio::time::timeout(PATIENCE, counts.wait_for(holds)).await;
        let reached = reached.unwrap_or_else(|_| panic!("nothing within {PATIENCE:?}: {what}"));
        drop(reached.expect("the sender is here"));
    }

    /// Stops all publishers and returns what they did.
    pub async fn stop(self) -> Vec<Attempt> {
        self.stop.send_replace(true);
        let mut attempts = Vec::new();
        for publisher in self.publishers {
            attempts.extend(within("the end of a publisher", publisher).await.expect("a publisher does not panic"));
        }
        attempts
    }
}

impl Default for Load {
    fn default() -> Self {
        Self::new()
    }
}

/// The message in this data.
///
/// # Panics
///
/// When there is none.
pub fn message(data: &Value) -> Message {
    let field = |name: &str| data[name].as_u64().unwrap_or_else(|| panic!("no message: {data}"));
    Message { publisher: field("p"), number: field("n") }
}

/// Publishes one message, made longer by this padding.
pub async fn publish(api: &Api, channel: &str, message: Message, padding: &str) -> Attempt {
    let mut data = json!({ "p": message.publisher, "n": message.number });
    if !padding.is_empty() {
        data["padding"] = json!(padding);
    }
    let began = Instant::now();
    let answer = api.call("publish", json!({ "channel": channel, "data": data })).await;
    let outcome = match answer["error"]["code"].as_u64() {
        Some(code) => Err(code),
        None => Ok(Some(position(&answer["result"]))),
    };
    Attempt { channel: channel.to_owned(), message, outcome, took: began.elapsed() }
}

/// The position in this object.
///
/// # Panics
///
/// When there is none.
pub fn position(value: &Value) -> Position {
    let epoch = value["epoch"].as_str().unwrap_or_else(|| panic!("no position: {value}"));
    Position { epoch: epoch.to_owned(), offset: value["offset"].as_u64().unwrap_or_default() }
}

/// Everything that a channel's history has, by offset, and its epoch.
pub async fn history(api: &Api, channel: &str) -> (String, Vec<(u64, Message)>) {
    let mut publications: Vec<(u64, Message)> = Vec::new();
    let mut since: Option<Position> = None;
    loop {
        let mut request = json!({ "channel": channel, "limit": 1000 });
        if let Some(since) = &since {
            request["since"] = json!({ "offset": since.offset, "epoch": since.epoch });
        }
        let page = api.ok("history", request).await;
        let epoch = page["epoch"].as_str().unwrap_or_default().to_owned();
        let entries = page["publications"].as_array().map(Vec::as_slice).unwrap_or_default();
        if entries.is_empty() {
            return (epoch, publications);
        }
        for entry in entries {
            publications.push((entry["offset"].as_u64().expect("an offset"), message(&entry["data"])));
        }
        since = publications.last().map(|(offset, _)| Position { epoch, offset: *offset });
    }
}
