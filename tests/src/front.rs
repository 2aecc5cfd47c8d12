//! A load balancer whose clients can be moved from one gateway to another, which their SDKs never notice but as a
//! connection that ended.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::gateway::Gateway;

/// Listens on an address of its own. Lives in the test's runtime.
pub struct Front {
    url: String,
    /// `host:port` of the gateway; `None` refuses everybody. Every change ends the connections there are.
    target: watch::Sender<Option<String>>,
    accepting: JoinHandle<()>,
}

impl Front {
    /// A front that leads to this gateway.
    pub async fn to(gateway: &Gateway) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let (target, targets) = watch::channel(Some(gateway.public_address().to_owned()));
        let url = gateway.url().replacen(gateway.public_address(), &address, 1);
        Self { url, target, accepting: tokio::spawn(accept(listener, targets)) }
    }

    /// The URL for WebSocket clients.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends every connection without a close frame; new ones go to this gateway.
    pub fn move_to(&self, gateway: &Gateway) {
        self.target.send_replace(Some(gateway.public_address().to_owned()));
    }

    /// Ends every connection without a close frame and refuses new ones.
    pub fn cut(&self) {
        self.target.send_replace(None);
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, targets: watch::Receiver<Option<String>>) {
    while let Ok((near, _)) = listener.accept().await {
        tokio::spawn(forward(near, targets.clone()));
    }
}

/// Ends with either side, with a change of the target, and with the front.
async fn forward(mut near: TcpStream, mut targets: watch::Receiver<Option<String>>) {
    let Some(target) = targets.borrow_and_update().clone() else { return };
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    // A client's next message must not wait for an acknowledgement of the last.
    let _only_slower = (near.set_nodelay(true), far.set_nodelay(true));
    tokio::select! {
        _ended = copy_bidirectional(&mut near, &mut far) => {}
        _moved = targets.changed() => {}
    }
}
