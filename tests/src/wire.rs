//! Just enough Protobuf, by hand, to be a second opinion on the gateway's encoder.

/// A field of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Field {
    /// Wire type 0.
    Varint(u32, u64),
    /// Wire type 2.
    Bytes(u32, Vec<u8>),
}

/// A message that is being written.
#[derive(Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// An empty message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a number.
    #[must_use]
    pub fn number(mut self, field: u32, value: u64) -> Self {
        put_varint(&mut self.0, u64::from(field) << 3);
        put_varint(&mut self.0, value);
        self
    }

    /// Adds bytes or a string.
    #[must_use]
    pub fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        put_varint(&mut self.0, u64::from(field) << 3 | 2);
        put_varint(&mut self.0, value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// Adds a message.
    #[must_use]
    pub fn message(self, field: u32, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }

    /// The message with its length before it, as it stands in a frame.
    pub fn framed(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, self.0.len() as u64);
        bytes.extend_from_slice(&self.0);
        bytes
    }
}

/// The messages of a frame.
///
/// # Panics
///
/// When a length does not fit.
pub fn split(mut frame: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while !frame.is_empty() {
        let len = take_len(&mut frame);
        messages.push(take(&mut frame, len).to_vec());
    }
    messages
}

/// The fields of a message, in the order in which they are there.
///
/// # Panics
///
/// When the message is malformed.
pub fn fields(mut message: &[u8]) -> Vec<Field> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let tag = take_varint(&mut message);
        let number = u32::try_from(tag >> 3).expect("a field number");
        fields.push(match tag & 7 {
            0 => Field::Varint(number, take_varint(&mut message)),
            2 => {
                let len = take_len(&mut message);
                Field::Bytes(number, take(&mut message, len).to_vec())
            }
            other => panic!("no message of the protocol has a field of wire type {other}"),
        });
    }
    fields
}

/// The bytes of the first field of this number.
///
/// # Panics
///
/// When there is none.
pub fn bytes_of(message: &[u8], number: u32) -> Vec<u8> {
    let found = fields(message).into_iter().find_map(|field| match field {
        Field::Bytes(at, bytes) if at == number => Some(bytes),
        Field::Bytes(..) | Field::Varint(..) => None,
    });
    found.unwrap_or_else(|| panic!("no field {number} in {:?}", fields(message)))
}

/// The number in the first field of this number, or zero, which is not written.
pub fn number_of(message: &[u8], number: u32) -> u64 {
    let found = fields(message).into_iter().find_map(|field| match field {
        Field::Varint(at, value) if at == number => Some(value),
        Field::Bytes(..) | Field::Varint(..) => None,
    });
    found.unwrap_or(0)
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint of more than ten bytes");
}

fn take_len(bytes: &mut &[u8]) -> usize {
    usize::try_from(take_varint(bytes)).expect("a length")
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
    assert!(len <= bytes.len(), "{len} bytes announced, {} there", bytes.len());
    let (taken, rest) = bytes.split_at(len);
    *bytes = rest;
    taken
}
