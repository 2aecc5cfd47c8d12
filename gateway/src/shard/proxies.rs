//! Questions to the application, on behalf of the sessions of this shard.

use std::collections::BTreeMap;
use std::rc::Rc;

use session::io::Input;
use session::proxy::ProxyCall;

use super::connection::Connection;
use super::{Shard, Work};

impl Shard {
    /// Asks a proxy; the session hears its answer exactly once, within the proxy's timeout.
    pub(super) fn ask_proxy(self: &Rc<Self>, connection: Rc<Connection>, call: ProxyCall) {
        let forwarded = connection.forwarded.take();
        let client = connection.session.borrow().client();
        let asked = self.node.runtime().proxies.ask(call, client, connection.encoding, forwarded.as_deref());
        connection.forwarded.set(forwarded);
        self.perform(asked, move |shard, answer| {
            shard.enqueue(Work::Input(connection, Input::Proxied(Box::new(answer))));
        });
    }

    /// Keeps what is wanted of the headers that a client claims to have sent.
    pub(super) fn keep_emulated(&self, connection: &Connection, claimed: &BTreeMap<String, String>) {
        let forwarded = connection.forwarded.take();
        connection.forwarded.set(self.node.runtime().proxies.emulate(forwarded, claimed));
    }
}
