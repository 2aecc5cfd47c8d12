//! WebSocket frames as bytes (RFC 6455 section 5.2), also the wrong ones.

/// Opcode of a continuation frame.
pub const CONTINUATION: u8 = 0x0;
/// Opcode of a text frame.
pub const TEXT: u8 = 0x1;
/// Opcode of a binary frame.
pub const BINARY: u8 = 0x2;
/// Opcode of a close frame.
pub const CLOSE: u8 = 0x8;
/// Opcode of a ping frame.
pub const PING: u8 = 0x9;
/// Opcode of a pong frame.
pub const PONG: u8 = 0xA;

/// The masking key; any value will do.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A frame that is being built. [`Frame::new`] is a correct one; the other methods break it.
pub struct Frame {
    first: u8,
    masked: bool,
    payload: Vec<u8>,
    announced_len: u64,
}

impl Frame {
    /// A final, masked frame.
    pub fn new(opcode: u8, payload: &[u8]) -> Self {
        Self { first: 0x80 | opcode, masked: true, payload: payload.to_vec(), announced_len: payload.len() as u64 }
    }

    /// Without the FIN bit: more fragments follow.
    #[must_use]
    pub fn not_final(mut self) -> Self {
        self.first &= 0x7f;
        self
    }

    /// With reserved bits (`0x40`, `0x20`, `0x10`).
    #[must_use]
    pub fn reserved(mut self, bits: u8) -> Self {
        self.first |= bits;
        self
    }

    /// Without a mask, which a client may not send.
    #[must_use]
    pub fn unmasked(mut self) -> Self {
        self.masked = false;
        self
    }

    /// With a header that announces another length than the payload has.
    #[must_use]
    pub fn announcing(mut self, len: u64) -> Self {
        self.announced_len = len;
        self
    }

    /// The bytes for the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mask_bit = if self.masked { 0x80 } else { 0 };
        let mut bytes = vec![self.first];
        match self.announced_len {
            len @ 0..=125 => bytes.push(mask_bit | len as u8),
            len @ 126..=0xffff => {
                bytes.push(mask_bit | 126);
                bytes.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                bytes.push(mask_bit | 127);
                bytes.extend_from_slice(&len.to_be_bytes());
            }
        }
        if self.masked {
            bytes.extend_from_slice(&MASK);
            bytes.extend(self.payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        } else {
            bytes.extend_from_slice(&self.payload);
        }
        bytes
    }
}
