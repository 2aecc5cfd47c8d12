//! Asking nodes whether they take new connections, as a load balancer does.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::nodes::Nodes;
use crate::http::{Head, exchange};
use crate::target::Target;

/// How often each node is asked.
const EVERY: Duration = Duration::from_millis(100);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where to ask a node.
#[derive(Clone, Debug)]
pub enum Health {
    /// A URL that answers 200.
    Url(Target),
    /// Where nothing is known, a node is ready if it can be connected to.
    Connect(Target),
}

impl Health {
    /// Whether the node takes new connections now.
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Url(target) => status(target).is_ok_and(|status| status == 200),
            Self::Connect(target) => TcpStream::connect_timeout(&target.address, PATIENCE).is_ok(),
        }
    }
}

/// The status of a GET request.
fn status(target: &Target) -> io::Result<u16> {
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", target.path, target.host);
    exchange(target, request.as_bytes(), PATIENCE, |answer| {
        Head::parse(answer)?.map(|head| Ok(head.status()?.0)).transpose()
    })
}

/// Keeps [`Nodes`] up to date until it is dropped.
pub struct HealthWatch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HealthWatch {
    /// Starts to ask.
    pub fn start(nodes: Arc<Nodes>, places: Vec<Health>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = stop.clone();
        let watch = move || {
            while !is_over.load(Ordering::Acquire) {
                for (node, place) in places.iter().enumerate() {
                    nodes.set_ready(node, place.is_ready());
                }
                std::thread::park_timeout(EVERY);
            }
        };
        let thread = std::thread::Builder::new().name("health".to_owned()).spawn(watch)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for HealthWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It only asks; a panic there has been printed.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn only_status_200_is_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let server = std::thread::spawn(move || {
            for answer in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 503 Service Unavailable\r\n\r\n", "x"] {
                let (mut socket, _) = listener.accept().expect("a connection");
                let _request = socket.read(&mut [0; 512]).expect("a request");
                socket.write_all(answer.as_bytes()).expect("an answer");
            }
        });
        let target = Target::parse(&format!("http://{address}/health/ready"), "http", false).expect("valid");
        let health = Health::Url(target.clone());
        assert_eq!([0; 3].map(|_| health.is_ready()), [true, false, false]);
        server.join().expect("the server");
        assert!(!health.is_ready() && !Health::Connect(target).is_ready());
    }
}
