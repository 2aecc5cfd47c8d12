//! Questions to the application, on behalf of the sessions of this shard.

use std::collections::BTreeMap;
use std::rc::Rc;

use session::io::Input;
use session::proxy::{ProxyAnswer, ProxyCall, ProxyEvent};

use super::connection::Connection;
use super::verdicts::Question;
use super::{Shard, Work};

impl Shard {
    /// Answers a question by what the application has said before, or asks it; the session hears the answer exactly once,
    /// within the proxy's timeout.
    pub(super) fn ask_proxy(self: &Rc<Self>, connection: Rc<Connection>, call: ProxyCall) {
        let Some(question) = self.question(&connection, &call) else {
            return self.ask_application(connection, call, None);
        };
        match &call.event {
            ProxyEvent::Connect { .. } => self.recall_connect(connection, call, question),
            ProxyEvent::Subscribe { id, channel, .. } => {
                let Some(verdict) = self.recall_subscribe(&connection, channel, &question) else {
                    return self.ask_application(connection, call, Some(question));
                };
                let (id, channel, result) = (*id, channel.clone(), Ok(Some(verdict)));
                let answer = Box::new(ProxyAnswer::Subscribe { id, channel, result });
                self.enqueue(Work::Input(connection, Input::Proxied(answer)));
            }
            ProxyEvent::Refresh
            | ProxyEvent::SubRefresh { .. }
            | ProxyEvent::Publish { .. }
            | ProxyEvent::Rpc { .. } => self.ask_application(connection, call, Some(question)),
        }
    }

    /// Asks the application.
    pub(super) fn ask_application(
        self: &Rc<Self>,
        connection: Rc<Connection>,
        call: ProxyCall,
        question: Option<Question>,
    ) {
        let forwarded = connection.forwarded.take();
        let client = connection.session.borrow().client();
        let asked = self.node.runtime().proxies.ask(call, client, connection.encoding, forwarded.as_deref());
        connection.forwarded.set(forwarded);
        self.perform(asked, move |shard, answer| {
            shard.remember(&connection, question.as_ref(), &answer);
            shard.enqueue(Work::Input(connection, Input::Proxied(Box::new(answer))));
        });
    }

    /// Keeps what is wanted of the headers that a client claims to have sent.
    pub(super) fn keep_emulated(&self, connection: &Connection, claimed: &BTreeMap<String, String>) {
        let forwarded = connection.forwarded.take();
        connection.forwarded.set(self.node.runtime().proxies.emulate(forwarded, claimed));
    }
}
