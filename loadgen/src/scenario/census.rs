//! Asking every node who is there. Whatever their versions, all must say the same: how many nodes there are, how many
//! clients are in each channel with presence, and how many subscribers it has over all nodes, which each node finds out by
//! asking the others.

use std::io;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use crate::client::plan::{Plan, Publishing};
use crate::http::{append_post, exchange, read_answer};
use crate::progress::pause;
use crate::target::Target;

/// How long one answer may take; nodes wait for each other's for up to two seconds.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// Contradictions that are quoted.
const QUOTED_MAX: usize = 5;

/// What is asked, and what has to be answered.
pub struct Census {
    /// The server API of each node.
    apis: Vec<Target>,
    key: Option<String>,
    /// Channels with presence, and how many clients are subscribed to each.
    channels: Vec<(String, u64)>,
}

/// What came out.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counted {
    /// Times that all nodes were asked until all was right, or time was up.
    pub rounds: u64,
    /// Those that ended with something wrong.
    pub wrong: u64,
    /// Some of what was wrong then.
    pub contradictions: Vec<String>,
}

impl Census {
    /// For the nodes and clients of a plan; None where there is nothing to ask, or the API of only one node is known.
    pub fn of(plan: &Plan) -> Option<Self> {
        let Publishing::Api { targets, key, .. } = &plan.publishing else { return None };
        if plan.presence_channels == 0 || targets.len() < plan.nodes.count() {
            return None;
        }
        let mut members = vec![0; plan.channels.len()];
        let all = plan.layout.channels_between(0, plan.layout.connections());
        all.iter().for_each(|channel| members[*channel as usize] += 1);
        let channels = plan.channels.iter().cloned().zip(members).take(plan.presence_channels as usize);
        // Where it is published is one of the methods.
        let base = |publish: &Target| publish.with_path(publish.path.trim_end_matches("/publish"));
        Some(Self { apis: targets.iter().map(base).collect(), key: key.clone(), channels: channels.collect() })
    }

    /// Asks until all nodes say what they have to, and notes what they said last.
    pub fn take(&self, patience: Duration, counted: &mut Counted) {
        let deadline = Instant::now() + patience;
        let wrong = loop {
            let wrong = self.contradictions();
            if wrong.is_empty() || Instant::now() > deadline {
                break wrong;
            }
            pause();
        };
        counted.note(wrong);
    }

    fn contradictions(&self) -> Vec<String> {
        let nodes = self.apis.len() as u64;
        let mut wrong = Vec::new();
        for api in &self.apis {
            let mut expect = |method: &str, params: Value, expected: u64, find: &dyn Fn(&Value) -> Option<u64>| {
                let said = self.ask(api, method, &params).map_err(|error| error.to_string());
                let found = said.as_ref().ok().and_then(find);
                if found != Some(expected) {
                    let said = said.map_or_else(|error| error, |answer| answer.to_string());
                    wrong.push(format!("{} to {method} {params}, expected {expected}: {said}", api.address));
                }
            };
            let count = |answer: &Value| Some(answer["result"]["nodes"].as_array()?.len() as u64);
            expect("info", json!({}), nodes, &count);
            for (channel, members) in &self.channels {
                let present = |answer: &Value| answer["result"]["num_clients"].as_u64();
                expect("presence_stats", json!({ "channel": channel }), *members, &present);
                let subscribed = |answer: &Value| answer["result"]["channels"][channel]["num_clients"].as_u64();
                expect("channels", json!({ "pattern": channel }), *members, &subscribed);
            }
        }
        wrong
    }

    fn ask(&self, api: &Target, method: &str, params: &Value) -> io::Result<Value> {
        let (path, mut request) = (format!("{}/{method}", api.path), Vec::new());
        append_post(&api.host, &path, self.key.as_deref(), params.to_string().as_bytes(), &mut request);
        let body = exchange(api, &request, ANSWER_PATIENCE, |answer| {
            Ok(read_answer(answer)?.map(|answer| answer.body.to_vec()))
        })?;
        Ok(serde_json::from_slice(&body)?)
    }
}

impl Counted {
    fn note(&mut self, wrong: Vec<String>) {
        self.rounds += 1;
        self.wrong += u64::from(!wrong.is_empty());
        let room = QUOTED_MAX.saturating_sub(self.contradictions.len());
        self.contradictions.extend(wrong.into_iter().take(room));
    }

    /// In a line, and what was wrong in more.
    pub fn detail(&self) -> String {
        let summary = format!("asked after {} restarts, wrong after {}", self.rounds, self.wrong);
        [vec![summary], self.contradictions.clone()].concat().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Answers every question with what it has for its method, until it is dropped by the end of the test.
    fn node(answers: &'static [(&'static str, &'static str)]) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for mut socket in listener.incoming().flatten() {
                let mut request = [0; 1024];
                let count = socket.read(&mut request).unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..count]).into_owned();
                let body = answers.iter().find(|(method, _)| request.starts_with(&format!("POST /api/{method} ")));
                let body = body.map_or("{}", |(_, body)| *body);
                // The one that asked may have gone.
                let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            }
        });
        Target::parse(&format!("http://{address}/api"), "http", false).expect("an address")
    }

    fn census(nodes: &[Target]) -> Census {
        Census { apis: nodes.to_vec(), key: Some("key".to_owned()), channels: vec![("a".to_owned(), 3)] }
    }

    const INFO: (&str, &str) = ("info", r#"{"result":{"nodes":[{},{}]}}"#);
    const CHANNELS: (&str, &str) = ("channels", r#"{"result":{"channels":{"a":{"num_clients":3}}}}"#);

    #[test]
    fn nodes_that_agree_are_right() {
        static RIGHT: [(&str, &str); 3] = [INFO, CHANNELS, ("presence_stats", r#"{"result":{"num_clients":3}}"#)];
        let mut counted = Counted::default();
        census(&[node(&RIGHT), node(&RIGHT)]).take(ANSWER_PATIENCE, &mut counted);
        assert_eq!(counted, Counted { rounds: 1, ..Counted::default() });
    }

    #[test]
    fn a_node_that_says_something_else_is_quoted() {
        static RIGHT: [(&str, &str); 3] = [INFO, CHANNELS, ("presence_stats", r#"{"result":{"num_clients":3}}"#)];
        static WRONG: [(&str, &str); 3] = [INFO, CHANNELS, ("presence_stats", r#"{"error":{"code":100}}"#)];
        let nodes = [node(&RIGHT), node(&WRONG)];
        let mut counted = Counted::default();
        census(&nodes).take(Duration::ZERO, &mut counted);
        assert_eq!((counted.rounds, counted.wrong, counted.contradictions.len()), (1, 1, 1), "{counted:?}");
        let said = &counted.contradictions[0];
        assert!(said.contains(&nodes[1].address.to_string()) && said.contains("\"code\":100"), "{said}");
    }

    #[test]
    fn a_node_that_is_not_there_is_wrong_everywhere() {
        // Nothing listens on the discard port of loopback.
        let nowhere = Target::parse("http://127.0.0.1:9/api", "http", false).expect("an address");
        let mut counted = Counted::default();
        census(&[nowhere]).take(Duration::ZERO, &mut counted);
        assert_eq!((counted.wrong, counted.contradictions.len()), (1, 3), "{counted:?}");
    }
}
