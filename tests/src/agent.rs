//! A process with real SDK clients that does what the test says and tells what its clients see.
//!
//! Test and agent exchange lines of JSON: commands with a number, their results, and the events of the SDKs. The
//! agents are in `tests/sdk`: JavaScript in Node, JavaScript in headless Chromium, Python.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc as blocking;
use std::thread;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::DEADLINE;
use crate::script;
use crate::tokens;
use crate::within;

/// What an SDK told one of its clients.
#[derive(Clone, Debug)]
pub struct Event {
    /// The client's name, given by the test.
    pub client: String,
    /// The channel; empty for events of the connection.
    pub channel: String,
    /// The SDK's name of the event.
    pub name: String,
    /// What the SDK says with it, in the words of the JavaScript SDK.
    pub context: Value,
    taken: bool,
}

impl Event {
    /// An event that was not taken yet.
    pub(crate) fn new(client: &str, channel: &str, name: &str, context: Value) -> Self {
        let [client, channel, name] = [client, channel, name].map(str::to_owned);
        Self { client, channel, name, context, taken: false }
    }
}

/// The process. It ends when it is dropped: its standard input does.
pub struct Agent {
    child: Child,
    /// `None` only at the end.
    commands: Option<ChildStdin>,
    lines: mpsc::UnboundedReceiver<String>,
    /// Closed when the process closes its output.
    end: blocking::Receiver<()>,
    events: Vec<Event>,
    /// Results that came while another was waited for.
    results: Vec<Value>,
    calls: u64,
}

impl Agent {
    /// The JavaScript SDK in Node.
    pub async fn node() -> Self {
        Self::start(script::node_command(&["agent-node.js"])).await
    }

    /// The JavaScript SDK in headless Chromium.
    pub async fn chromium() -> Self {
        Self::start(script::node_command(&["agent-browser.js"])).await
    }

    /// The Python SDK.
    pub async fn python() -> Self {
        Self::start(script::python_command(&["agent.py"])).await
    }

    async fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        let commands = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        let (sender, lines) = mpsc::unbounded_channel();
        let (running, end) = blocking::channel();
        thread::spawn(move || {
            let _running: blocking::Sender<()> = running;
            for line in output.lines().map_while(Result::ok) {
                let _nobody_listens_any_more = sender.send(line);
            }
        });
        let mut agent = Self { child, commands, lines, end, events: Vec::new(), results: Vec::new(), calls: 0 };
        // The first answer tells that it has started.
        agent.ok(json!({ "op": "hello" })).await;
        agent
    }

    /// Connects a new client of this name, which is its user, too. Returns the context of `connected`.
    pub async fn connect(&mut self, client: &str, url: &str) -> Value {
        self.connect_with(client, url, json!({})).await
    }

    /// The same with these options of the SDK.
    pub async fn connect_with(&mut self, client: &str, url: &str, options: Value) -> Value {
        let token = tokens::connection(json!({ "sub": client }));
        self.ok(json!({ "op": "connect", "client": client, "url": url, "token": token, "options": options })).await;
        self.take(client, "connected").await
    }

    /// Subscribes; returns the context of `subscribed`.
    pub async fn subscribe(&mut self, client: &str, channel: &str) -> Value {
        self.ok(json!({ "op": "subscribe", "client": client, "channel": channel })).await;
        self.take_from(client, channel, "subscribed").await
    }

    /// Runs a command that must succeed; returns its result.
    pub async fn ok(&mut self, command: Value) -> Value {
        let answer = self.call(command.clone()).await;
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer["result"].clone()
    }

    /// Runs a command that must fail; returns the code.
    pub async fn error(&mut self, command: Value) -> u64 {
        let answer = self.call(command.clone()).await;
        answer["error"]["code"].as_u64().unwrap_or_else(|| panic!("{command} must fail: {answer}"))
    }

    /// Runs a command; returns `result` or `error`.
    pub async fn call(&mut self, command: Value) -> Value {
        let call = self.send(command);
        self.answer(call).await
    }

    /// Sends a command, to be followed by [`Agent::answer`] with the number that is returned.
    pub fn send(&mut self, mut command: Value) -> u64 {
        self.calls += 1;
        command["call"] = json!(self.calls);
        let commands = self.commands.as_mut().expect("the agent lives");
        writeln!(commands, "{command}").expect("the agent listens");
        self.calls
    }

    /// The answer to a command.
    pub async fn answer(&mut self, call: u64) -> Value {
        loop {
            if let Some(index) = self.results.iter().position(|result| result["call"] == json!(call)) {
                return self.results.swap_remove(index);
            }
            self.read().await;
        }
    }

    /// The context of the first event of this name that the client's connection had and that was not taken yet.
    pub async fn take(&mut self, client: &str, name: &str) -> Value {
        self.take_from(client, "", name).await
    }

    /// The same of the client's subscription to this channel.
    pub async fn take_from(&mut self, client: &str, channel: &str, name: &str) -> Value {
        self.take_that(client, channel, name, |_| true).await
    }

    /// The context of the first such event that fits.
    pub async fn take_that(&mut self, client: &str, channel: &str, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut next = 0;
        loop {
            for event in &mut self.events[next..] {
                if !event.taken
                    && event.name == name
                    && event.client == client
                    && event.channel == channel
                    && fits(&event.context)
                {
                    event.taken = true;
                    return event.context.clone();
                }
            }
            next = self.events.len();
            self.read_for(&format!("{name} of {client} in '{channel}'")).await;
        }
    }

    /// All events so far, taken or not.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// All events so far of this client, channel (empty for the connection) and name.
    pub fn contexts(&self, client: &str, channel: &str, name: &str) -> Vec<Value> {
        let wanted = |event: &&Event| event.client == client && event.channel == channel && event.name == name;
        self.events.iter().filter(wanted).map(|event| event.context.clone()).collect()
    }

    /// The numbers `n` in the data of all publications that this client has had in this channel.
    pub fn numbers(&self, client: &str, channel: &str) -> Vec<u64> {
        let contexts = self.contexts(client, channel, "publication");
        contexts.iter().map(|context| context["data"]["n"].as_u64().unwrap_or_else(|| panic!("{context}"))).collect()
    }

    /// Takes publications until the one with this number `n`.
    pub async fn take_number(&mut self, client: &str, channel: &str, n: u64) -> Value {
        self.take_that(client, channel, "publication", |context| context["data"]["n"] == json!(n)).await
    }

    async fn read(&mut self) {
        self.read_for("an answer").await;
    }

    async fn read_for(&mut self, what: &str) {
        let line = within(&format!("a line from the agent: {what}"), self.lines.recv()).await;
        let line = line.unwrap_or_else(|| panic!("the agent ended, expected {what}"));
        let value: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the agent said {line:?}"));
        if value.get("call").is_some() {
            self.results.push(value);
            return;
        }
        let text = |name: &str| value[name].as_str().unwrap_or_default();
        self.events.push(Event::new(text("client"), text("channel"), text("event"), value["context"].clone()));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The one in a browser must end that, too, so it is asked before it is forced.
        self.commands = None;
        if self.end.recv_timeout(DEADLINE) == Err(blocking::RecvTimeoutError::Timeout) {
            let _ended_meanwhile = self.child.kill();
        }
        let _reaped = self.child.wait();
    }
}
