//! Bounds on what one frame may hold, checked before anything is built from it.

/// Bounds on one frame. Exceeding any of them is an error of the peer, which costs it the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes in a frame. 64 KiB by default, the default of the reference server for a message of a client.
    pub frame_bytes: usize,
    /// Objects and arrays inside each other in a JSON message, the message itself included. 64 by default: a command
    /// uses two or three of them, which leaves about sixty to the application's payload; payloads people write stay
    /// under ten. Protobuf payloads are opaque, so nothing is counted there.
    pub depth: usize,
    /// Messages in a frame. 1024 by default: the first frame of an SDK holds one `connect` and a `subscribe` for each of
    /// its channels, whose usual limit is 128 and which operators raise to several hundred. Without a bound a 64 KiB
    /// frame could hold 65536 empty Protobuf messages.
    pub commands: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { frame_bytes: 64 * 1024, depth: 64, commands: 1024 }
    }
}

impl Limits {
    /// What a client accepts from a server it trusts. A reply may hold a page of history or the presence of a large
    /// channel, hence 64 MiB in a frame; payloads from the server API may be deeper than those of clients, and a reply
    /// wraps them deeper too, hence a depth of 256; and a frame may be a whole write queue, hence 65536 messages.
    pub fn for_replies() -> Self {
        Self { frame_bytes: 64 * 1024 * 1024, depth: 256, commands: 65536 }
    }
}
