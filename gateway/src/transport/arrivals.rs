//! Connections that the kernel has made and that wait for their turn.
//!
//! The kernel's own queue is short (`net.core.somaxconn`, 4096 unless somebody raised it). Once it is full, the kernel drops
//! what comes, and a client hears nothing for a second, then for two, while the server may have no work left. So connections
//! are taken from it as fast as they come, and wait here.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream};

/// Connections taken from the kernel between two rounds of work on those that came before. Taking one costs little beside
/// a handshake.
const TAKEN_AT_ONCE: usize = 64;

/// A connection on which nothing was read yet.
#[derive(Debug)]
pub struct Arrival {
    /// Its socket.
    pub stream: TcpStream,
    /// The other end of the socket.
    pub peer: IpAddr,
    taken_at: Instant,
}

impl Arrival {
    /// How long it has waited so far.
    pub fn waited(&self) -> Duration {
        self.taken_at.elapsed()
    }
}

/// A listener and the connections that were taken from it, in the order in which they came.
pub struct Arrivals {
    listener: TcpListener,
    waiting: VecDeque<Arrival>,
}

impl Arrivals {
    /// Those of a listener that does not block.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(listener: StdListener) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::from_std(listener)?, waiting: VecDeque::new() })
    }

    /// Takes what has come, at most until so many wait. Pends only while nobody waits.
    ///
    /// # Errors
    /// Those of accept(2). What was taken before still waits.
    pub async fn take_in(&mut self, most: usize) -> io::Result<()> {
        if self.waiting.is_empty() {
            let accepted = self.listener.accept().await?;
            self.add(accepted);
        }
        for _ in 0..TAKEN_AT_ONCE.min(most.saturating_sub(self.waiting.len())) {
            let Some(accepted) = self.listener.accept().now_or_never() else { break };
            self.add(accepted?);
        }
        Ok(())
    }

    fn add(&mut self, (stream, peer): (TcpStream, SocketAddr)) {
        self.waiting.push_back(Arrival { stream, peer: peer.ip(), taken_at: Instant::now() });
    }

    /// The one that has waited longest.
    pub fn take(&mut self) -> Option<Arrival> {
        let next = self.waiting.pop_front();
        if self.waiting.is_empty() {
            // A storm is over, and its room is not kept.
            self.waiting.shrink_to(TAKEN_AT_ONCE);
        }
        next
    }

    /// How long that one has waited so far. `None` when nobody waits.
    pub fn waited(&self) -> Option<Duration> {
        self.waiting.front().map(Arrival::waited)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream as Client;

    use super::*;

    fn arrivals() -> (Arrivals, SocketAddr) {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        (Arrivals::new(listener).unwrap(), address)
    }

    /// So many connections, which the kernel has made when this returns, and their ports.
    fn connect(address: SocketAddr, count: usize) -> (Vec<Client>, Vec<u16>) {
        let streams: Vec<Client> = (0..count).map(|_| Client::connect(address).unwrap()).collect();
        let ports = streams.iter().map(|stream| stream.local_addr().unwrap().port()).collect();
        (streams, ports)
    }

    fn ports(arrivals: &mut Arrivals) -> Vec<u16> {
        std::iter::from_fn(|| arrivals.take()).map(|arrival| arrival.stream.peer_addr().unwrap().port()).collect()
    }

    #[tokio::test]
    async fn they_wait_in_the_order_in_which_they_came() {
        let (mut arrivals, address) = arrivals();
        let (_streams, came) = connect(address, TAKEN_AT_ONCE + 1);
        while arrivals.len() < came.len() {
            arrivals.take_in(usize::MAX).await.unwrap();
        }
        assert_eq!(ports(&mut arrivals), came);
    }

    #[tokio::test]
    async fn no_more_are_taken_than_may_wait() {
        let (mut arrivals, address) = arrivals();
        let (_streams, came) = connect(address, 5);
        arrivals.take_in(3).await.unwrap();
        arrivals.take_in(3).await.unwrap();
        assert_eq!(ports(&mut arrivals), came[..3]);
        arrivals.take_in(0).await.unwrap();
        assert_eq!(ports(&mut arrivals), came[3..4], "somebody is taken in any case, to be told");
        arrivals.take_in(3).await.unwrap();
        assert_eq!(ports(&mut arrivals), came[4..]);
    }

    #[tokio::test]
    async fn who_comes_while_nobody_waits_is_noticed() {
        let (mut arrivals, address) = arrivals();
        for _ in 0..3 {
            let client = TcpStream::connect(address);
            let (client, taken) = tokio::join!(client, arrivals.take_in(8));
            taken.unwrap();
            let port = client.unwrap().local_addr().unwrap().port();
            assert_eq!(ports(&mut arrivals), [port]);
        }
    }
}
