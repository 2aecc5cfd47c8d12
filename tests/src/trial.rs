//! A load of numbered messages with real SDK clients that listen, to be troubled by a scenario and judged at its end.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::{Agent, Event};
use crate::api::Api;
use crate::audit::{Message, Seen, Truth};
use crate::fleet::Fleet;
use crate::front::Front;
use crate::gateway::Gateway;
use crate::load::{self, Attempt, Load};
use crate::until_some_time;

/// The namespace of the channels keeps everything that is published while a trial lasts.
pub const CHANNELS: [&str; 2] = ["ledger:one", "ledger:two"];

/// Listeners on each node; each of them is in every channel.
const LISTENERS_PER_NODE: usize = 2;

/// Between an answer and the next publish.
const PAUSE: Duration = Duration::from_millis(20);

/// For how many milliseconds clients wait for an answer: longer than gateways take to give one, also on a machine that
/// stands still for some seconds.
const CLIENT_PATIENCE: u64 = 15_000;

/// The publisher of what marks the end.
const MARKER: u64 = 0;

/// Publishers that are clients have numbers from here on.
const FIRST_CLIENT: u64 = 100;

/// The parts at work. Each node has a publisher on its API and two listeners for every channel; one listener publishes.
pub struct Trial {
    /// The clients, in Node.
    pub agent: Agent,
    /// The publishers on the API.
    pub load: Load,
    /// What the listeners of each node connect to, at first that node.
    pub fronts: Vec<Front>,
    listeners: Vec<String>,
    /// What the scenario has published itself.
    attempts: Vec<Attempt>,
}

/// What came of it.
pub struct Report {
    /// What must not be, in words.
    pub violations: Vec<String>,
    /// How often a listener was told that something may be lost in a channel.
    pub told: usize,
    /// Subscriptions that were listened to.
    pub subscriptions: usize,
    /// Connections that ended, in words.
    pub disconnects: Vec<String>,
    /// Every publish, of clients as well as of the API.
    pub attempts: Vec<Attempt>,
    /// Acknowledged publications that the store does not have.
    pub forgotten: Vec<Message>,
}

impl Trial {
    /// Starts listeners and publishers on every node.
    pub async fn start(fleet: &Fleet) -> Self {
        Self::start_publishing_on(fleet, fleet.nodes()).await
    }

    /// Starts listeners on every node, and publishers on the API of these.
    pub async fn start_publishing_on(fleet: &Fleet, publishing: &[Gateway]) -> Self {
        let mut agent = Agent::node().await;
        let (mut listeners, mut fronts) = (Vec::new(), Vec::new());
        for (node, gateway) in fleet.nodes().iter().enumerate() {
            let front = Front::to(gateway).await;
            for number in 0..LISTENERS_PER_NODE {
                let name = listener(number, node);
                agent.connect_with(&name, front.url(), json!({ "timeout": CLIENT_PATIENCE })).await;
                for channel in CHANNELS {
                    agent.subscribe(&name, channel).await;
                }
                listeners.push(name);
            }
            fronts.push(front);
        }
        let mut load = Load::new();
        for (index, channel) in CHANNELS.into_iter().enumerate() {
            for (node, gateway) in publishing.iter().enumerate() {
                let publisher = 1 + (index * publishing.len() + node) as u64;
                load.add(publisher, gateway.api(), channel, PAUSE);
            }
            let publisher = FIRST_CLIENT + index as u64;
            let client = &listeners[index % listeners.len()];
            let pause = PAUSE.as_millis() as u64;
            let start = json!({
                "op": "startPublishing", "client": client, "channel": channel, "publisher": publisher, "pause": pause,
            });
            agent.ok(start).await;
        }
        Self { agent, load, fronts, listeners, attempts: Vec::new() }
    }

    /// Publishes one more message, made longer by this padding.
    pub async fn publish_padded(&mut self, api: &Api, channel: &str, message: Message, padding: &str) {
        self.attempts.push(load::publish(api, channel, message, padding).await);
    }

    /// Waits until the listeners that began on this node have connected once more.
    pub async fn reconnected(&mut self, node: usize) {
        for number in 0..LISTENERS_PER_NODE {
            self.agent.take(&listener(number, node), "connected").await;
        }
    }

    /// Ends the load, asks this node for the truth, waits until every listener is at the end of every channel, and judges.
    pub async fn finish(self, node: &Gateway) -> Report {
        let Self { mut agent, load, fronts: _fronts, listeners, mut attempts } = self;
        attempts.extend(load.stop().await);
        for (index, channel) in CHANNELS.into_iter().enumerate() {
            let publisher = FIRST_CLIENT + index as u64;
            let done = agent.ok(json!({ "op": "stopPublishing", "publisher": publisher })).await;
            attempts.extend(done.as_array().expect("a list").iter().map(|one| client_attempt(channel, publisher, one)));
        }
        let api = node.api();
        let mut numbers = 1..;
        let mut marker = || Message { publisher: MARKER, number: numbers.next().unwrap_or_default() };
        for channel in CHANNELS {
            // A listener that was told to start anew may stand behind one marker; the next reaches it.
            let mut waiting: BTreeSet<&String> = listeners.iter().collect();
            let reached = async || {
                attempts.push(load::publish(&api, channel, marker(), "").await);
                agent.ok(json!({ "op": "hello" })).await;
                waiting.retain(|listener| !has_marker(agent.events(), listener, channel));
                waiting.is_empty()
            };
            until_some_time("every listener to be given something new", reached).await;
            let last = marker();
            attempts.push(load::publish(&api, channel, last, "").await);
            for listener in &listeners {
                let fits = |context: &Value| load::message(&context["data"]) == last;
                agent.take_that(listener, channel, "publication", fits).await;
            }
        }
        judge(&api, &agent, &listeners, attempts).await
    }
}

impl Report {
    /// Nothing must have been lost, repeated or reordered in silence.
    ///
    /// # Panics
    ///
    /// When it was.
    #[track_caller]
    pub fn expect_truthful(&self) {
        let failed = self.attempts.iter().filter(|attempt| attempt.outcome.is_err()).count();
        let summary = format!(
            "{} publishes ({failed} failed, {} forgotten), {} subscriptions ({} told)",
            self.attempts.len(),
            self.forgotten.len(),
            self.subscriptions,
            self.told
        );
        println!("{summary}");
        assert!(self.violations.is_empty(), "{summary}\n{}", self.violations.join("\n"));
    }

    /// The same; besides, no connection may have ended.
    ///
    /// # Panics
    ///
    /// When it was.
    #[track_caller]
    pub fn expect_clean(&self) {
        self.expect_truthful();
        assert!(self.disconnects.is_empty(), "connections ended:\n{}", self.disconnects.join("\n"));
    }

    /// The same; besides, nothing that was acknowledged may be forgotten and nobody told to start anew.
    ///
    /// # Panics
    ///
    /// When it was.
    #[track_caller]
    pub fn expect_nothing_lost(&self) {
        self.expect_clean();
        self.expect_kept();
    }

    /// Everything that was acknowledged must be stored, and nobody told to start anew.
    ///
    /// # Panics
    ///
    /// When it is not.
    #[track_caller]
    pub fn expect_kept(&self) {
        assert_eq!(self.forgotten, [], "acknowledged is stored");
        assert_eq!(self.told, 0, "told to start anew, though nothing is lost");
    }

    /// Publishes that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| attempt.outcome.is_err())
    }
}

fn listener(number: usize, node: usize) -> String {
    format!("listener-{number}-on-{node}")
}

async fn judge(api: &Api, agent: &Agent, listeners: &[String], attempts: Vec<Attempt>) -> Report {
    let mut report = Report {
        violations: Vec::new(),
        told: 0,
        subscriptions: 0,
        disconnects: disconnects(agent.events()),
        attempts,
        forgotten: Vec::new(),
    };
    for channel in CHANNELS {
        let (epoch, kept) = load::history(api, channel).await;
        let acknowledged = report.attempts.iter().filter(|attempt| attempt.channel == channel);
        let acknowledged = acknowledged.filter_map(|attempt| Some((attempt.outcome.clone().ok()??, attempt.message)));
        let truth = Truth { epoch, kept: kept.into_iter().collect(), acknowledged: acknowledged.collect() };
        report.forgotten.extend(truth.forgotten());
        // Clients are not told a position, so theirs are looked for anywhere.
        let kept: BTreeSet<Message> = truth.kept.values().copied().collect();
        let of_clients = report.attempts.iter().filter(|one| one.channel == channel && one.outcome == Ok(None));
        report.forgotten.extend(of_clients.map(|one| one.message).filter(|message| !kept.contains(message)));
        for message in truth.repeated() {
            report.violations.push(format!("{channel}: {message:?} is stored twice"));
        }
        for listener in listeners {
            let verdict = truth.judge(&seen(agent.events(), listener, channel));
            report.told += verdict.told;
            report.subscriptions += 1;
            let named = verdict.violations.into_iter().map(|text| format!("{listener} in {channel}: {text}"));
            report.violations.extend(named);
        }
    }
    report
}

/// What this client saw of this channel.
fn seen(events: &[Event], client: &str, channel: &str) -> Vec<Seen> {
    let here = events.iter().filter(|event| event.client == client && event.channel == channel);
    here.filter_map(|event| {
        let context = &event.context;
        match event.name.as_str() {
            "subscribed" => Some(Seen::Subscribed {
                at: load::position(&context["streamPosition"]),
                recovered: (context["wasRecovering"] == json!(true)).then(|| context["recovered"] == json!(true)),
            }),
            "publication" => Some(Seen::Publication {
                offset: context["offset"].as_u64().unwrap_or_default(),
                message: load::message(&context["data"]),
            }),
            "unsubscribed" => Some(Seen::Ended(context.to_string())),
            _ => None,
        }
    })
    .collect()
}

/// Connections that ended, or that clients had to make again.
fn disconnects(events: &[Event]) -> Vec<String> {
    // The first `connecting` of a client is that of the test; its code is 0.
    let lost = |event: &&Event| match event.name.as_str() {
        "connecting" => event.channel.is_empty() && event.context["code"] != json!(0),
        "disconnected" => true,
        _ => false,
    };
    events.iter().filter(lost).map(|event| format!("{}: {} {}", event.client, event.name, event.context)).collect()
}

fn has_marker(events: &[Event], client: &str, channel: &str) -> bool {
    let is_marker = |event: &Event| {
        event.name == "publication"
            && event.client == client
            && event.channel == channel
            && load::message(&event.context["data"]).publisher == MARKER
    };
    events.iter().rev().any(is_marker)
}

fn client_attempt(channel: &str, publisher: u64, one: &Value) -> Attempt {
    let code = one["code"].as_i64().expect("a code");
    // A client that gives up by itself has a code of its own, too; -1 stands for what has none.
    let outcome = if code == 0 { Ok(None) } else { Err(u64::try_from(code).unwrap_or(u64::MAX)) };
    Attempt {
        channel: channel.to_owned(),
        message: Message { publisher, number: one["n"].as_u64().expect("a number") },
        outcome,
        took: Duration::from_secs_f64(one["took"].as_f64().expect("a time") / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Position;

    #[test]
    fn what_the_sdk_tells_is_understood() {
        let event = |channel: &str, name: &str, context: Value| Event::new("ann", channel, name, context);
        let position = json!({ "epoch": "e", "offset": 4 });
        let subscribed = |was: bool, recovered: bool| {
            let context = json!({ "streamPosition": position, "wasRecovering": was, "recovered": recovered });
            event("a", "subscribed", context)
        };
        let publication = json!({ "offset": 5, "data": { "p": 1, "n": 2 } });
        let events = [
            event("", "connecting", json!({ "code": 0 })),
            subscribed(false, false),
            event("a", "publication", publication.clone()),
            event("b", "publication", publication),
            event("", "connecting", json!({ "code": 1 })),
            event("a", "subscribing", json!({ "code": 2500 })),
            subscribed(true, true),
            subscribed(true, false),
            event("a", "unsubscribed", json!({ "code": 103 })),
        ];
        let at = Position { epoch: "e".to_owned(), offset: 4 };
        let again = |recovered| Seen::Subscribed { at: at.clone(), recovered };
        let expected = [
            again(None),
            Seen::Publication { offset: 5, message: Message { publisher: 1, number: 2 } },
            again(Some(true)),
            again(Some(false)),
            Seen::Ended(json!({ "code": 103 }).to_string()),
        ];
        assert_eq!(seen(&events, "ann", "a"), expected);
        assert_eq!(disconnects(&events).len(), 1, "the first connecting is the test's");
    }
}
