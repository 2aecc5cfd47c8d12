//! Writing unmasked server frames (RFC 6455 section 5.2). Reading is tungstenite's.

use protocol::Encoding;

/// The longest header of a server frame: two bytes and a 64-bit length.
pub const HEADER_MAX: usize = 10;

/// Appends one whole text (JSON) or binary (Protobuf) frame.
pub fn append(out: &mut Vec<u8>, encoding: Encoding, payload: &[u8]) {
    let (header, length) = header(encoding, payload.len());
    out.extend_from_slice(&header[..length]);
    out.extend_from_slice(payload);
}

/// The header of a final text or binary frame, and how many of its bytes are used.
pub fn header(encoding: Encoding, payload_bytes: usize) -> ([u8; HEADER_MAX], usize) {
    let mut header = [0; HEADER_MAX];
    header[0] = match encoding {
        Encoding::Json => 0x81,
        Encoding::Protobuf => 0x82,
    };
    match payload_bytes {
        0..126 => {
            header[1] = payload_bytes as u8;
            (header, 2)
        }
        126..65536 => {
            header[1] = 126;
            header[2..4].copy_from_slice(&(payload_bytes as u16).to_be_bytes());
            (header, 4)
        }
        _ => {
            header[1] = 127;
            header[2..10].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
            (header, 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_tungstenite::tungstenite::protocol::frame::FrameSocket;

    #[test]
    fn tungstenite_reads_every_length_form() {
        for length in [0, 1, 125, 126, 127, 65535, 65536, 70000] {
            let payload = vec![b'x'; length];
            let mut bytes = Vec::new();
            append(&mut bytes, Encoding::Json, &payload);
            let frame = FrameSocket::new(std::io::Cursor::new(bytes)).read(None).unwrap().unwrap();
            assert_eq!(frame.payload().len(), length);
            assert!(frame.header().is_final);
        }
    }
}
