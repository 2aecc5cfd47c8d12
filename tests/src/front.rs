//! A load balancer whose clients can be moved from one server to another, which they never notice but as a connection
//! that ended: SDKs before gateways, or gateways before Redis servers.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::gateway::Gateway;

/// Listens on an address of its own. Lives in the test's runtime.
pub struct Front {
    address: String,
    url: String,
    target: Target,
    /// Every change ends the connections there are.
    cuts: watch::Sender<()>,
    accepting: JoinHandle<()>,
}

/// `host:port` of the server that new connections go to; `None` refuses them.
type Target = Arc<Mutex<Option<String>>>;

impl Front {
    /// A front that leads to this gateway.
    pub async fn to(gateway: &Gateway) -> Self {
        let mut front = Self::to_address(gateway.public_address()).await;
        front.url = gateway.url().replacen(gateway.public_address(), &front.address, 1);
        front
    }

    /// A front that leads to the server at this `host:port`.
    pub async fn to_address(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let target = Target::default();
        let (cuts, _) = watch::channel(());
        let accepting = tokio::spawn(accept(listener, Arc::clone(&target), cuts.subscribe()));
        let front = Self { address, url: String::new(), target, cuts, accepting };
        front.lead_to_address(server);
        front
    }

    /// Its own `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The URL for WebSocket clients, before a gateway.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// New connections go to this gateway; those there are stay where they are.
    pub fn lead_to(&self, gateway: &Gateway) {
        self.lead_to_address(gateway.public_address());
    }

    /// The same for any server.
    pub fn lead_to_address(&self, server: &str) {
        self.set(Some(server.to_owned()));
    }

    /// Ends every connection without a close frame and refuses new ones, until [`Front::lead_to`].
    pub fn cut(&self) {
        self.set(None);
        self.cuts.send_replace(());
    }

    fn set(&self, target: Option<String>) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: Target, cuts: watch::Receiver<()>) {
    while let Ok((near, _)) = listener.accept().await {
        let target = target.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(target) = target {
            tokio::spawn(forward(near, target, cuts.clone()));
        }
    }
}

/// Ends with either side, with a cut, and with the front.
async fn forward(mut near: TcpStream, target: String, mut cuts: watch::Receiver<()>) {
    cuts.mark_unchanged();
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    // A client's next message must not wait for an acknowledgement of the last.
    let _only_slower = (near.set_nodelay(true), far.set_nodelay(true));
    tokio::select! {
        _ended = copy_bidirectional(&mut near, &mut far) => {}
        _cut = cuts.changed() => {}
    }
}
