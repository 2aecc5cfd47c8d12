//! One connection: its socket, its session, and the task that reads from it.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use protocol::Encoding;
use session::Session;
use session::close::CloseCode;
use session::io::Input;
use session::time::Tick;

use super::Shard;
use super::batch::BatchId;
use crate::admission::AddressSlot;
use crate::hub::{ConnKey, Outgoing};
use crate::proxy::Forwarded;
use crate::transport::socket::{Sent, Socket};
use crate::transport::wire::{Event, Reader};

/// What is known of a client before its connection is made.
#[derive(Default)]
pub struct Arrival {
    /// Its place among the connections of its address; `None` where these are not counted.
    pub slot: Option<AddressSlot>,
    /// What proxies are to be told of its request.
    pub forwarded: Option<Box<Forwarded>>,
    /// The id of the session that it asks for.
    pub session: Option<Box<str>>,
    /// Its address, if that is known.
    pub address: Option<IpAddr>,
}

/// How far a connection has come towards its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Frames flow.
    Open,
    /// The close frame is queued; the peer's is awaited until the deadline.
    Closing,
    /// The peer's bytes make no sense any more: they are read and dropped until it goes away.
    Discarding,
    /// The socket is closed. The entry stays only while joins are under way.
    Gone,
}

/// One connection of a shard. Everything is a cell: it never leaves its thread.
pub struct Connection {
    /// Its place in the shard.
    pub key: ConnKey,
    /// Its wire format.
    pub encoding: Encoding,
    pub(super) session: RefCell<Session>,
    pub(super) io: RefCell<Io>,
    pub(super) phase: Cell<Phase>,
    /// True once the connect reply is on its way; before that, deliveries are corked.
    pub(super) established: Cell<bool>,
    /// In the user index.
    pub(super) indexed: Cell<bool>,
    /// Joins whose answer the session still waits for.
    pub(super) joins_in_flight: Cell<u32>,
    /// What the current pass has gathered.
    pub(super) batch: Cell<BatchId>,
    /// Replies encoded but not yet written, ten bytes of room for the header in front; empty between events.
    pub(super) replies: RefCell<Vec<u8>>,
    /// It missed something and is about to be closed: nothing more is sent.
    pub(super) doomed: Cell<bool>,
    /// A write failed: the task ends the connection even while it does not read.
    pub(super) broken: Cell<bool>,
    /// On the list of connections to flush at the end of the event.
    pub(super) touched: Cell<bool>,
    /// Deliveries held back until the connect reply. `None` nearly always.
    pub(super) corked: Cell<Option<Box<Corked>>>,
    /// The wheel slot that counts; `u64::MAX` when none is armed.
    pub(super) armed: Cell<u64>,
    /// When a closing connection is dropped without the peer's consent.
    pub(super) drop_at: Cell<Tick>,
    /// Its place in the count of its address. `None` unless addresses are counted.
    pub(super) slot: Cell<Option<Box<AddressSlot>>>,
    /// When it was accepted, in seconds since the node started.
    pub(super) accepted_s: u32,
    /// What is kept of its address, to know the client again; 0 if it is not known.
    pub(super) address: u32,
    /// It was told to go, by a drain or in order to move it.
    pub(super) going: Cell<bool>,
    /// Its client was told to go a moment ago, and is back.
    pub(super) came_back: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Headers for the calls of proxies. `None` where nothing is to be passed on.
    pub(super) forwarded: Cell<Option<Box<Forwarded>>>,
}

/// Deliveries that wait for the connect reply.
#[derive(Debug, Default)]
pub(super) struct Corked {
    pub held: Vec<Arc<Outgoing>>,
    pub bytes: usize,
}

/// The parts of a connection that touch the socket.
pub(super) struct Io {
    /// `None` once the connection is gone.
    pub socket: Option<Socket>,
    pub reader: Reader,
    /// Bytes read but not fed yet, because the session wanted no more commands.
    pub leftover: Option<Box<[u8]>>,
    /// Our direction was shut down.
    pub shut_down: bool,
    /// The reader is with the task; a close waits until it is back.
    pub reading: bool,
    pub pending_close: Option<CloseCode>,
}

impl Connection {
    pub(super) fn new(key: ConnKey, encoding: Encoding, session: Session, socket: Socket, first_bytes: &[u8]) -> Self {
        Self {
            key,
            encoding,
            session: RefCell::new(session),
            io: RefCell::new(Io {
                socket: Some(socket),
                reader: Reader::default(),
                leftover: (!first_bytes.is_empty()).then(|| first_bytes.into()),
                shut_down: false,
                reading: false,
                pending_close: None,
            }),
            phase: Cell::new(Phase::Open),
            established: Cell::new(false),
            indexed: Cell::new(false),
            joins_in_flight: Cell::new(0),
            batch: Cell::new(BatchId::EMPTY),
            replies: RefCell::new(Vec::new()),
            doomed: Cell::new(false),
            broken: Cell::new(false),
            touched: Cell::new(false),
            corked: Cell::new(None),
            armed: Cell::new(u64::MAX),
            drop_at: Cell::new(Tick(u64::MAX)),
            slot: Cell::new(None),
            accepted_s: 0,
            address: 0,
            going: Cell::new(false),
            came_back: Cell::new(false),
            waker: RefCell::new(None),
            forwarded: Cell::new(None),
        }
    }

    /// Has the task look at the connection again.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Bytes waiting for the peer.
    pub(super) fn queued_bytes(&self) -> usize {
        self.io.borrow().socket.as_ref().map_or(0, Socket::queued_bytes)
    }

    /// Sends frames held in shared memory.
    pub(super) fn send(&self, frames: &Bytes, queue_bytes_max: usize) -> Sent {
        let mut io = self.io.borrow_mut();
        let Some(socket) = &mut io.socket else { return Sent::Broken };
        let sent = socket.send(frames, queue_bytes_max);
        drop(io);
        if sent == Sent::Queued {
            self.wake();
        }
        sent
    }

    /// Sends frames from borrowed memory.
    pub(super) fn send_slice(&self, frames: &[u8], queue_bytes_max: usize) -> Sent {
        let mut io = self.io.borrow_mut();
        let Some(socket) = &mut io.socket else { return Sent::Broken };
        let sent = socket.send_slice(frames, queue_bytes_max);
        drop(io);
        if sent == Sent::Queued {
            self.wake();
        }
        sent
    }
}

/// Reads of one wake-up before other tasks get their turn. A read is up to 64 KiB of commands.
const READS_PER_POLL: usize = 2;

/// The task of a connection: 16 bytes of state. It reads, and drains the queue of a slow peer; everything else is
/// written by whoever has something to say.
pub(super) struct ConnectionTask {
    pub shard: Rc<Shard>,
    pub connection: Rc<Connection>,
}

impl Future for ConnectionTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { shard, connection } = &*self;
        {
            let mut waker = connection.waker.borrow_mut();
            if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        let done = poll_connection(shard, connection, cx);
        if done {
            shard.finish(connection);
            *connection.waker.borrow_mut() = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// True when the connection is over.
fn poll_connection(shard: &Rc<Shard>, connection: &Rc<Connection>, cx: &mut Context<'_>) -> bool {
    if connection.broken.get() || !drain(connection, cx) {
        return true;
    }
    for _ in 0..READS_PER_POLL {
        match connection.phase.get() {
            Phase::Gone => return true,
            Phase::Open => {
                if !connection.session.borrow().wants_commands() {
                    // Whoever answers the session wakes this task.
                    return false;
                }
            }
            Phase::Closing | Phase::Discarding => {}
        }
        let leftover = connection.io.borrow_mut().leftover.take();
        let progress = match leftover {
            Some(bytes) => process(shard, connection, &bytes, false),
            None => {
                let mut scratch = shard.scratch();
                let read = {
                    let mut io = connection.io.borrow_mut();
                    let Some(socket) = &mut io.socket else { return true };
                    socket.poll_read(cx, &mut scratch)
                };
                let progress = match read {
                    Poll::Pending => None,
                    Poll::Ready(Ok(length)) => Some(process(shard, connection, &scratch[..length], length == 0)),
                    Poll::Ready(Err(_)) => Some(Progress::Over),
                };
                shard.give_back_scratch(scratch);
                match progress {
                    Some(progress) => progress,
                    None => return false,
                }
            }
        };
        match progress {
            Progress::More => {}
            Progress::Over => return true,
        }
        // A close that this very burst caused may have left something to write.
        if !drain(connection, cx) {
            return true;
        }
    }
    cx.waker().wake_by_ref();
    false
}

enum Progress {
    More,
    Over,
}

/// Feeds a piece of the stream to the reader and every message of it to the session.
fn process(shard: &Rc<Shard>, connection: &Rc<Connection>, data: &[u8], at_end: bool) -> Progress {
    if connection.phase.get() == Phase::Discarding {
        return if at_end { Progress::Over } else { Progress::More };
    }
    let limits = shard.io_limits();
    let mut reader = {
        let mut io = connection.io.borrow_mut();
        io.reading = true;
        std::mem::take(&mut io.reader)
    };
    let mut burst = reader.burst(data, at_end, limits.message_bytes);
    let progress = loop {
        let event = match &mut connection.io.borrow_mut().socket {
            Some(socket) => burst.next(socket, limits.queue_bytes),
            None => Event::Finished,
        };
        match event {
            Event::Message(payload) => {
                // Commands read after the close are discarded.
                if connection.phase.get() == Phase::Open {
                    shard.message(connection, &payload);
                    let open = connection.phase.get() == Phase::Open;
                    if !open || !connection.session.borrow().wants_commands() {
                        connection.io.borrow_mut().leftover = Some(burst.rest().into());
                        break Progress::More;
                    }
                }
            }
            Event::Exhausted => break Progress::More,
            Event::Finished => break Progress::Over,
            Event::Violation(code) => {
                if connection.phase.get() == Phase::Open {
                    shard.input(connection, Input::Close(code));
                }
                if connection.phase.get() != Phase::Gone {
                    connection.phase.set(Phase::Discarding);
                }
                break Progress::More;
            }
        }
    };
    drop(burst);
    let mut io = connection.io.borrow_mut();
    let Io { socket, reader: place, reading, pending_close, .. } = &mut *io;
    *place = reader;
    *reading = false;
    if let (Some(code), Some(socket)) = (pending_close.take(), socket) {
        place.close(&code, socket, limits.message_bytes);
    }
    progress
}

/// Writes what waits; false when the socket is broken. A discarding connection's direction is shut down after it.
fn drain(connection: &Connection, cx: &mut Context<'_>) -> bool {
    let mut io = connection.io.borrow_mut();
    let Io { socket: Some(socket), shut_down, .. } = &mut *io else { return true };
    if socket.wants_drain() {
        match socket.poll_drain(cx) {
            Poll::Pending => return true,
            Poll::Ready(Err(_)) => return false,
            Poll::Ready(Ok(())) => {}
        }
    }
    if connection.phase.get() == Phase::Discarding && !*shut_down {
        match socket.poll_shutdown(cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => *shut_down = true,
            Poll::Ready(Err(_)) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything the shard keeps for an idle connection, its session included. Beside it stand the runtime's socket and
    /// task, and a few small lists. With the two counts of its `Rc` it has the allocator's size class of 448 bytes, as
    /// anything from 385 on.
    #[test]
    fn an_idle_connection_stays_small() {
        assert!(size_of::<Session>() <= 120, "{}", size_of::<Session>());
        assert!(size_of::<Connection>() <= 400, "{}", size_of::<Connection>());
    }
}
