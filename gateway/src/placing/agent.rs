//! HAProxy's agent check: whoever connects is told in one line whether this node wants new connections.
//!
//! HAProxy with `balance leastconn` sends new connections to the server that has the fewest; the agent check takes out
//! nodes that are full, leave, or empty themselves, some seconds before its health check could, and brings them back.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::node::Node;

/// Pause after a failed accept: it fails again at once when descriptors have run out.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How long a peer may take to read one line.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers under way: proxies ask once in a few seconds, so more are not proxies.
const IN_FLIGHT: usize = 64;

/// Binds the listener.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let listener = StdListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers for ever.
pub async fn serve(listener: TcpListener, node: Arc<Node>) {
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let line = answer(&node);
                tokio::spawn(async move {
                    // A proxy that does not listen asks again.
                    let _ = tokio::time::timeout(ANSWER_TIMEOUT, tell(stream, line)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "an agent check was not accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn tell(mut stream: TcpStream, line: &'static str) -> io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await
}

/// `up ready 100%`; `drain` for a node that keeps its connections but wants no more; `down` before it is ready. The
/// weight and the administrative state are said each time, because HAProxy keeps what it was told last.
fn answer(node: &Node) -> &'static str {
    if node.is_leaving() || node.placing.is_retiring() || (node.is_ready() && !node.has_room()) {
        "up drain\n"
    } else if node.is_ready() {
        "up ready 100%\n"
    } else {
        "down\n"
    }
}
