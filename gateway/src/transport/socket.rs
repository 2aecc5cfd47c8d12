//! The socket of one connection: plain or TLS, written to directly, with one bounded queue for what it does not take.
//!
//! Everything that is sent goes through [`Socket::send`] in whole frames, so frames never interleave, whoever sends
//! them: the fan-out pass, replies, or tungstenite's pongs and close frames.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Buffers given to one vectored write.
const WRITE_SLICES: usize = 64;

/// The byte stream below a connection.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Plain(TcpStream),
    /// TLS over TCP. Boxed: the TLS state is large and plain sockets should not pay for it.
    Tls(Box<TlsStream<TcpStream>>),
}

/// What became of a frame handed to [`Socket::send`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// The kernel has it.
    Written,
    /// It, or its rest, waits in the queue: the connection's task must be woken to drain it.
    Queued,
    /// The queue is full: the peer reads too slowly. Nothing of the frame was queued.
    Overflow,
    /// The socket is broken.
    Broken,
}

/// What a queued chunk costs beside its bytes: without it a flood of tiny frames would be nearly free.
const CHUNK_OVERHEAD: usize = 64;

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    /// The first chunk is the rest of a frame whose beginning was sent.
    head_is_partial: bool,
}

/// One connection's socket.
#[derive(Debug)]
pub struct Socket {
    stream: Stream,
    /// Only while the peer does not keep up.
    queue: Option<Box<Queue>>,
    /// TLS accepted bytes that it has not yet written to TCP.
    unflushed: bool,
}

impl Socket {
    /// Takes over an upgraded stream.
    pub fn new(stream: Stream) -> Self {
        Self { stream, queue: None, unflushed: false }
    }

    /// Bytes waiting for the peer, the memory of each chunk included.
    pub fn queued_bytes(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.bytes + queue.chunks.len() * CHUNK_OVERHEAD)
    }

    /// True while something waits: the task has to call [`Socket::poll_drain`].
    pub fn wants_drain(&self) -> bool {
        self.queue.is_some() || self.unflushed
    }

    /// Sends whole frames held in shared memory.
    pub fn send(&mut self, frames: &Bytes, queue_bytes_max: usize) -> Sent {
        match self.write_now(frames) {
            Ok(written) if written == frames.len() => self.sent(),
            Ok(written) => self.enqueue(frames.slice(written..), written > 0, queue_bytes_max),
            Err(_) => Sent::Broken,
        }
    }

    /// Sends whole frames from borrowed memory; only what is not taken is copied.
    pub fn send_slice(&mut self, frames: &[u8], queue_bytes_max: usize) -> Sent {
        match self.write_now(frames) {
            Ok(written) if written == frames.len() => self.sent(),
            Ok(written) => self.enqueue(Bytes::copy_from_slice(&frames[written..]), written > 0, queue_bytes_max),
            Err(_) => Sent::Broken,
        }
    }

    /// Drops what waits, except the rest of a frame that was begun, so that a close frame can follow.
    pub fn discard_queue(&mut self) {
        if let Some(queue) = &mut self.queue {
            let keep = usize::from(queue.head_is_partial);
            queue.chunks.truncate(keep);
            queue.bytes = queue.chunks.iter().map(Bytes::len).sum();
            if queue.chunks.is_empty() {
                self.queue = None;
            }
        }
    }

    /// Writes what waits. `Ready(Ok)` when nothing is left.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(queue) = &mut self.queue {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            let mut used = 0;
            for (slice, chunk) in slices.iter_mut().zip(&queue.chunks) {
                *slice = IoSlice::new(chunk);
                used += 1;
            }
            let written = match &mut self.stream {
                Stream::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, &slices[..used]),
                Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, &slices[..used]),
            };
            let Poll::Ready(written) = written else { return Poll::Pending };
            let written = written?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = matches!(self.stream, Stream::Tls(_));
            queue.advance(written);
            if queue.chunks.is_empty() {
                self.queue = None;
            }
        }
        if self.unflushed {
            if let Stream::Tls(tls) = &mut self.stream {
                match Pin::new(tls).poll_flush(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(flushed) => flushed?,
                }
            }
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads into `buf`; `Ready(Ok(0))` at the end of the stream.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut read = ReadBuf::new(buf);
        let done = match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, &mut read),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, &mut read),
        };
        match done {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(read.filled().len())),
        }
    }

    /// Ends our direction of the stream.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }

    /// As many bytes as the socket takes at once; none while something waits.
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.queue.is_some() {
            return Ok(0);
        }
        match &mut self.stream {
            Stream::Plain(tcp) => match tcp.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                result => result,
            },
            Stream::Tls(tls) => {
                // The waker is none: when something is left, the caller wakes the task, which drains with its own.
                let mut cx = Context::from_waker(Waker::noop());
                let mut written = 0;
                while written < bytes.len() {
                    match Pin::new(&mut *tls).poll_write(&mut cx, &bytes[written..]) {
                        Poll::Pending => break,
                        Poll::Ready(more) => written += more?,
                    }
                }
                self.unflushed = match Pin::new(tls).poll_flush(&mut cx) {
                    Poll::Pending => true,
                    Poll::Ready(flushed) => {
                        flushed?;
                        false
                    }
                };
                Ok(written)
            }
        }
    }

    fn sent(&self) -> Sent {
        if self.unflushed { Sent::Queued } else { Sent::Written }
    }

    fn enqueue(&mut self, rest: Bytes, is_partial: bool, queue_bytes_max: usize) -> Sent {
        // The rest of a frame that was begun is always kept: half a frame would garble all that follows.
        if !is_partial && self.queued_bytes() + rest.len() > queue_bytes_max {
            return Sent::Overflow;
        }
        let queue = self.queue.get_or_insert_default();
        if queue.chunks.is_empty() {
            queue.head_is_partial = is_partial;
        }
        queue.bytes += rest.len();
        queue.chunks.push_back(rest);
        Sent::Queued
    }
}

impl Queue {
    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while written > 0 {
            let Some(head) = self.chunks.front_mut() else { return };
            if written < head.len() {
                *head = head.slice(written..);
                self.head_is_partial = true;
                return;
            }
            written -= head.len();
            self.chunks.pop_front();
            self.head_is_partial = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), async {
            listener.accept().await.unwrap().0
        });
        (Socket::new(Stream::Plain(server)), client.unwrap())
    }

    /// Sends until the kernel takes no more; returns how much was sent, what is queued included.
    fn fill(socket: &mut Socket, frame: &Bytes) -> usize {
        let mut sent = 0;
        loop {
            let outcome = socket.send(frame, usize::MAX);
            sent += frame.len();
            match outcome {
                Sent::Written => {}
                Sent::Queued => return sent,
                Sent::Overflow | Sent::Broken => panic!("{outcome:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_a_peer_does_not_read_waits_in_order_and_is_written_when_it_does() {
        let (mut socket, mut client) = pair().await;
        let frame = Bytes::from(vec![b'a'; 10_000]);
        let mut expected = fill(&mut socket, &frame);
        for _ in 0..100 {
            assert_eq!(socket.send(&frame, usize::MAX), Sent::Queued);
            expected += frame.len();
        }
        assert_eq!(socket.send_slice(b"end", usize::MAX), Sent::Queued);
        let drain = std::future::poll_fn(|cx| socket.poll_drain(cx));
        let read = async {
            let mut received = vec![0; expected + 3];
            client.read_exact(&mut received).await.unwrap();
            received
        };
        let (drained, received) = tokio::join!(drain, read);
        drained.unwrap();
        assert!(received.ends_with(b"aend"));
        assert!(!socket.wants_drain());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_whole_frames_and_counts_the_memory_of_small_ones() {
        let (mut socket, _client) = pair().await;
        fill(&mut socket, &Bytes::from(vec![b'a'; 10_000]));
        let bound = socket.queued_bytes() + 1_000;
        let mut taken = 0;
        while socket.send_slice(b"xx", bound) == Sent::Queued {
            taken += 1;
        }
        assert_eq!(socket.send_slice(b"xx", bound), Sent::Overflow);
        assert!(taken <= 1_000 / CHUNK_OVERHEAD + 1, "{taken} frames of two bytes fitted into 1,000");
        socket.discard_queue();
        assert!(socket.queued_bytes() <= 10_000 + CHUNK_OVERHEAD, "only the frame that was begun is left");
        assert_eq!(socket.send_slice(b"close", usize::MAX), Sent::Queued, "so a close frame can follow it");
    }
}
