//! Pending batches: what a fan-out pass has gathered for each connection, 4 bytes per connection.
//!
//! A batch is a node in a tree: its parent batch plus one more message. Connections that were sent the same messages
//! share the node, so their joined frames are built once and shared, and appending a message to ten thousand
//! connections allocates nothing but one node.

use std::sync::Arc;

use bytes::Bytes;
use protocol::Encoding;

use crate::hub::Outgoing;
use crate::transport::frame;

/// A batch of the current pass. [`BatchId::EMPTY`] is no message at all.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct BatchId(u32);

impl BatchId {
    /// No message.
    pub const EMPTY: Self = Self(0);

    /// True if there is nothing to send.
    pub fn is_empty(self) -> bool {
        self == Self::EMPTY
    }
}

/// Messages joined into one WebSocket frame at most; more follow in the next frame of the same write. Client
/// libraries parse a frame in one go, so this bounds their longest pause.
const MESSAGES_PER_FRAME: usize = 64;

/// Payload bytes after which a frame is ended.
const FRAME_BYTES: usize = 64 << 10;

/// All batches of a shard's current pass.
#[derive(Default)]
pub struct Batches {
    nodes: Vec<Node>,
    /// The message being appended; its serial tells whether a batch has met it before.
    current: Option<Arc<Outgoing>>,
    serial: u64,
    /// What the empty batch became with the current message.
    first: Step,
}

struct Node {
    parent: BatchId,
    outgoing: Arc<Outgoing>,
    messages: u32,
    /// Connections that have this very batch: when the last of them is written, the joined frames can go.
    connections: u32,
    /// What this batch last became.
    next: Step,
    joined: [Option<Bytes>; 2],
}

/// The batch that another one became with the message of a serial.
#[derive(Clone, Copy, Default)]
struct Step {
    serial: u64,
    batch: BatchId,
}

impl Batches {
    /// Moves one connection from `batch` to the batch that is `batch` followed by a message.
    pub fn append(&mut self, batch: BatchId, outgoing: &Arc<Outgoing>) -> BatchId {
        if self.current.as_ref().is_none_or(|current| !Arc::ptr_eq(current, outgoing)) {
            self.current = Some(outgoing.clone());
            self.serial += 1;
        }
        let serial = self.serial;
        let step = match self.node_mut(batch) {
            Some(node) => {
                node.connections -= 1;
                node.next
            }
            None => self.first,
        };
        let next = if step.serial == serial { step.batch } else { self.grow(batch, outgoing) };
        if let Some(node) = self.node_mut(next) {
            node.connections += 1;
        }
        next
    }

    fn grow(&mut self, batch: BatchId, outgoing: &Arc<Outgoing>) -> BatchId {
        let messages = 1 + self.messages(batch) as u32;
        let outgoing = outgoing.clone();
        let (next, joined) = (Step::default(), [None, None]);
        self.nodes.push(Node { parent: batch, outgoing, messages, connections: 0, next, joined });
        let grown = BatchId(u32::try_from(self.nodes.len()).expect("a pass is bounded far below 2^32 messages"));
        let step = Step { serial: self.serial, batch: grown };
        match self.node_mut(batch) {
            Some(node) => node.next = step,
            None => self.first = step,
        }
        grown
    }

    /// Batches of the pass so far; their number bounds the memory of a pass in which few are shared.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// True before the first message of a pass.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many messages a batch has.
    pub fn messages(&self, batch: BatchId) -> usize {
        self.node(batch).map_or(0, |node| node.messages as usize)
    }

    /// The batch as whole WebSocket frames, for one of the connections that have it: built once per wire format and
    /// kept until the last of them has asked. Messages that this format cannot carry are left out; the caller does not
    /// append them.
    pub fn take_frames(&mut self, batch: BatchId, encoding: Encoding) -> Bytes {
        let slot = match encoding {
            Encoding::Json => 0,
            Encoding::Protobuf => 1,
        };
        let Some(node) = self.node_mut(batch) else { return Bytes::new() };
        node.connections -= 1;
        let is_last = node.connections == 0;
        let joined = match node.joined[slot].take() {
            Some(joined) => joined,
            None if node.messages == 1 => {
                node.outgoing.encoded(encoding).map(|encoded| encoded.frame.clone()).unwrap_or_default()
            }
            None => self.join(batch, encoding),
        };
        if let Some(node) = self.node_mut(batch) {
            if is_last {
                node.joined = [None, None];
            } else {
                node.joined[slot] = Some(joined.clone());
            }
        }
        joined
    }

    /// One connection will not be written: it gives its batch up.
    pub fn abandon(&mut self, batch: BatchId) {
        if let Some(node) = self.node_mut(batch) {
            node.connections -= 1;
            if node.connections == 0 {
                node.joined = [None, None];
            }
        }
    }

    /// Forgets every batch. No connection may hold one any more.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.nodes.shrink_to(1024);
        self.current = None;
        self.first = Step::default();
    }

    fn node_mut(&mut self, batch: BatchId) -> Option<&mut Node> {
        (batch.0 as usize).checked_sub(1).and_then(|index| self.nodes.get_mut(index))
    }

    fn node(&self, batch: BatchId) -> Option<&Node> {
        (batch.0 as usize).checked_sub(1).and_then(|index| self.nodes.get(index))
    }

    fn join(&self, batch: BatchId, encoding: Encoding) -> Bytes {
        let mut chain: Vec<&Bytes> = Vec::with_capacity(self.messages(batch));
        let mut at = batch;
        while let Some(node) = self.node(at) {
            chain.extend(node.outgoing.encoded(encoding).map(|encoded| &encoded.message));
            at = node.parent;
        }
        chain.reverse();
        let total: usize = chain.iter().map(|message| message.len()).sum();
        let mut out = Vec::with_capacity(total + frame::HEADER_MAX * (1 + chain.len() / MESSAGES_PER_FRAME));
        let mut payload = Vec::new();
        let mut count = 0;
        for message in chain {
            if count == MESSAGES_PER_FRAME || (count > 0 && payload.len() + message.len() > FRAME_BYTES) {
                frame::append(&mut out, encoding, protocol::frame_payload(encoding, &payload));
                payload.clear();
                count = 0;
            }
            payload.extend_from_slice(message);
            count += 1;
        }
        if count > 0 {
            frame::append(&mut out, encoding, protocol::frame_payload(encoding, &payload));
        }
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backplane::{ChannelName, Delivery, Publication};
    use std::time::Instant;

    fn message(text: &str) -> Arc<Outgoing> {
        let publication =
            Publication { offset: None, data: Bytes::from(text.to_owned()), info: None, tags: Default::default() };
        Arc::new(Outgoing::new(ChannelName::from("c"), Delivery::Unpositioned(Arc::new(publication)), Instant::now()))
    }

    #[test]
    fn connections_with_the_same_messages_share_one_joined_buffer() {
        let mut batches = Batches::default();
        let (a, b) = (message("1"), message("2"));
        let mut connections = [BatchId::EMPTY; 3];
        for connection in &mut connections {
            *connection = batches.append(*connection, &a);
        }
        for connection in &mut connections[..2] {
            *connection = batches.append(*connection, &b);
        }
        assert_eq!(connections[0], connections[1]);
        assert_ne!(connections[0], connections[2]);
        let first = batches.take_frames(connections[0], Encoding::Json);
        let second = batches.take_frames(connections[1], Encoding::Json);
        assert_eq!(first.as_ptr(), second.as_ptr(), "built once");
        assert!(batches.nodes.iter().all(|node| node.joined[0].is_none()), "and let go with the last of them");
        let text = String::from_utf8(first[2..].to_vec()).unwrap();
        assert_eq!(
            text,
            "{\"push\":{\"channel\":\"c\",\"pub\":{\"data\":1}}}\n{\"push\":{\"channel\":\"c\",\"pub\":{\"data\":2}}}"
        );
        assert_eq!(batches.messages(connections[0]), 2);
    }

    #[test]
    fn a_message_after_different_batches_makes_different_batches() {
        let mut batches = Batches::default();
        let (a, b, c) = (message("1"), message("2"), message("3"));
        let x = batches.append(BatchId::EMPTY, &a);
        assert_eq!(batches.append(BatchId::EMPTY, &a), x, "a second connection");
        let y = batches.append(BatchId::EMPTY, &b);
        let xc = batches.append(x, &c);
        let yc = batches.append(y, &c);
        let xc_again = batches.append(x, &c);
        assert_ne!(xc, yc);
        assert_eq!(xc, xc_again);
        assert_eq!(batches.messages(yc), 2);
    }

    #[test]
    fn long_batches_are_cut_into_frames() {
        let mut batches = Batches::default();
        let mut batch = BatchId::EMPTY;
        for n in 0..100 {
            batch = batches.append(batch, &message(&n.to_string()));
        }
        let bytes = batches.take_frames(batch, Encoding::Json);
        let mut socket = tokio_tungstenite::tungstenite::protocol::frame::FrameSocket::new(std::io::Cursor::new(bytes));
        let lines = |frame: tokio_tungstenite::tungstenite::protocol::frame::Frame| {
            String::from_utf8(frame.into_payload().to_vec()).unwrap().lines().count()
        };
        assert_eq!(lines(socket.read(None).unwrap().unwrap()), 64);
        assert_eq!(lines(socket.read(None).unwrap().unwrap()), 36);
    }
}
