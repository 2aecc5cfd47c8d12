//! What can be wrong with a frame that came in, or with a message that is to go out.

/// A frame of the peer is malformed or exceeds a limit. The gateway closes the connection with 3501.
///
/// `at` is the offset in the frame of the first byte of the message at fault.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The frame exceeds [`Limits::frame_bytes`](crate::Limits::frame_bytes).
    #[error("frame of {bytes} bytes exceeds the limit of {limit}")]
    FrameTooLarge {
        /// Length of the frame.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The frame holds more messages than [`Limits::commands`](crate::Limits::commands).
    #[error("frame has more than {limit} messages")]
    TooManyMessages {
        /// The limit.
        limit: usize,
    },
    /// Objects and arrays are nested deeper than [`Limits::depth`](crate::Limits::depth).
    #[error("message at byte {at} is nested deeper than {limit}")]
    TooDeep {
        /// Where the message begins.
        at: usize,
        /// The limit.
        limit: usize,
    },
    /// The frame is empty; a frame has at least one message.
    #[error("frame has no message")]
    Empty,
    /// A line of a JSON frame is empty or white space.
    #[error("blank line at byte {at}")]
    BlankLine {
        /// Where the line begins.
        at: usize,
    },
    /// A JSON message is not UTF-8.
    #[error("message at byte {at} is not UTF-8")]
    NotUtf8 {
        /// Where the message begins.
        at: usize,
        /// How far it is UTF-8.
        source: std::str::Utf8Error,
    },
    /// A JSON message breaks the grammar, or a known field has a value of the wrong type. The source tells the column,
    /// counted from the beginning of the message.
    #[error("malformed JSON message at byte {at}")]
    Json {
        /// Where the message begins.
        at: usize,
        /// What is wrong, and in which column.
        source: serde_json::Error,
    },
    /// The length before a Protobuf message is not a varint of at most 64 bits.
    #[error("bad length of the message at byte {at}")]
    Varint {
        /// Where the length begins.
        at: usize,
    },
    /// The frame ends before the Protobuf message does, or inside its length.
    #[error("message at byte {at} is cut off")]
    Truncated {
        /// Where the length of the message begins.
        at: usize,
    },
    /// A Protobuf message is malformed, or a known field has a value of the wrong type.
    #[error("malformed Protobuf message at byte {at}")]
    Protobuf {
        /// Where the message begins, after its length.
        at: usize,
        /// What is wrong.
        source: prost::DecodeError,
    },
}

/// A message cannot be written in the encoding of this connection.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A payload is not a JSON value, so it cannot be embedded in a JSON message. It usually came from a publisher on a
    /// Protobuf connection. The gateway closes the JSON connection with 3506.
    #[error("payload is not JSON")]
    NotJson(#[source] serde_json::Error),
}
