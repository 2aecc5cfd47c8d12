//! The PROXY protocol, versions 1 and 2: a load balancer says, before anything else, whom it speaks for (HAProxy's
//! `proxy-protocol.txt`).
//!
//! Only the source address is of interest. Exactly the header is taken from the stream: what follows it belongs to TLS or
//! HTTP. A header is bounded in size, and its caller bounds it in time.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The beginning of version 2, which no other protocol begins with.
const SIGNATURE_V2: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The beginning of version 1.
const BEGINNING_V1: &[u8] = b"PROXY ";

/// The longest header of version 1, the end of the line included.
const V1_BYTES_MAX: usize = 107;

/// The longest body of version 2 that is taken: addresses are 36 bytes, and load balancers add some hundred about
/// certificates and endpoints.
const V2_BYTES_MAX: usize = 2048;

/// Why a header is not one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// It begins otherwise: the peer does not speak the protocol.
    #[error("the connection does not begin with a PROXY header")]
    Absent,
    /// Its parts make no sense.
    #[error("the PROXY header is malformed")]
    Garbled,
    /// It is longer than it may be.
    #[error("the PROXY header is too long")]
    TooLong,
}

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> Self {
        Self::new(io::ErrorKind::InvalidData, malformed)
    }
}

/// Reads the header; `None` when the proxy speaks for itself (a health check) or for a protocol without addresses.
///
/// # Errors
/// When there is no header, it cannot be used, or the stream ends.
pub async fn read_header(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    // Shorter than any header, so that nothing beyond it is taken.
    let mut beginning = [0; SIGNATURE_V2.len()];
    stream.read_exact(&mut beginning).await?;
    if beginning == SIGNATURE_V2 {
        return read_v2(stream).await;
    }
    if !beginning.starts_with(BEGINNING_V1) {
        return Err(Malformed::Absent.into());
    }
    let mut line = beginning.to_vec();
    while !line.ends_with(b"\n") {
        let room = V1_BYTES_MAX - line.len();
        if room == 0 {
            return Err(Malformed::TooLong.into());
        }
        let mut ahead = [0; V1_BYTES_MAX];
        let seen = stream.peek(&mut ahead[..room]).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let taken = ahead[..seen].iter().position(|byte| *byte == b'\n').map_or(seen, |end| end + 1);
        let start = line.len();
        line.resize(start + taken, 0);
        stream.read_exact(&mut line[start..]).await?;
    }
    Ok(parse_v1(&line)?)
}

async fn read_v2(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if length > V2_BYTES_MAX {
        return Err(Malformed::TooLong.into());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(parse_v2(head[0], head[1], &body)?)
}

/// A whole line of version 1.
fn parse_v1(line: &[u8]) -> Result<Option<IpAddr>, Malformed> {
    let line = line.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok()).ok_or(Malformed::Garbled)?;
    let mut words = line.split(' ').skip(1);
    let is_v4 = match words.next() {
        Some("TCP4") => true,
        Some("TCP6") => false,
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => return Ok(None),
        Some(_) | None => return Err(Malformed::Garbled),
    };
    let mut address = || words.next()?.parse::<IpAddr>().ok().filter(|address| address.is_ipv4() == is_v4);
    let (source, destination) = (address(), address());
    let mut port = || words.next()?.parse::<u16>().ok();
    let (source_port, destination_port) = (port(), port());
    match (source, destination, source_port, destination_port, words.next()) {
        (Some(source), Some(_), Some(_), Some(_), None) => Ok(Some(source)),
        _ => Err(Malformed::Garbled),
    }
}

/// What follows the signature of version 2: version and command, family, and the body.
fn parse_v2(version_and_command: u8, family: u8, body: &[u8]) -> Result<Option<IpAddr>, Malformed> {
    match version_and_command {
        // LOCAL: the proxy itself.
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(Malformed::Garbled),
    }
    match family >> 4 {
        1 => {
            let source: [u8; 4] = addresses(body, 12)?;
            Ok(Some(IpAddr::V4(Ipv4Addr::from(source))))
        }
        2 => {
            let source: [u8; 16] = addresses(body, 36)?;
            Ok(Some(IpAddr::V6(Ipv6Addr::from(source)).to_canonical()))
        }
        // Unspecified, or sockets of one machine.
        0 | 3 => Ok(None),
        _ => Err(Malformed::Garbled),
    }
}

/// The source, at the beginning of an address block of this length.
fn addresses<const N: usize>(body: &[u8], block_bytes: usize) -> Result<[u8; N], Malformed> {
    let block = body.get(..block_bytes).ok_or(Malformed::Garbled)?;
    block.first_chunk().copied().ok_or(Malformed::Garbled)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE_V2.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    /// What is read of these bytes, written in two parts, and what is left of the stream.
    async fn read(bytes: &[u8], cut: usize) -> (Result<Option<IpAddr>, io::ErrorKind>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.set_nodelay(true).unwrap();
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        let write = async {
            client.write_all(first).await.unwrap();
            tokio::task::yield_now().await;
            // The reader may have gone away already.
            let _ = client.write_all(second).await;
            let _ = client.shutdown().await;
        };
        let (header, ()) = tokio::join!(read_header(&mut server), write);
        let mut rest = Vec::new();
        let _ = server.read_to_end(&mut rest).await;
        (header.map_err(|error| error.kind()), rest)
    }

    #[tokio::test]
    async fn headers_are_read_to_their_last_byte_and_no_further() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0x01, 0xbb];
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&"2001:db8::9".parse::<Ipv6Addr>().unwrap().octets());
        let with_extras: Vec<u8> = v4.iter().copied().chain([0x04; 300]).collect();
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX - 16));
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 443\r\n".to_vec(), Some("192.0.2.7")),
            (b"PROXY TCP6 2001:db8::9 ::1 4660 443\r\n".to_vec(), Some("2001:db8::9")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (longest.into_bytes(), None),
            (v2(0x21, 0x11, &v4), Some("192.0.2.7")),
            (v2(0x21, 0x21, &v6), Some("2001:db8::9")),
            (v2(0x21, 0x11, &with_extras), Some("192.0.2.7")),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            let bytes = [header.as_slice(), b"GET / HTTP/1.1\r\n"].concat();
            for cut in [0, 3, 12, 14, header.len(), bytes.len()] {
                let (read, rest) = read(&bytes, cut).await;
                assert_eq!((read, rest.as_slice()), (Ok(expected), &b"GET / HTTP/1.1\r\n"[..]), "cut at {cut}");
            }
        }
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX));
        for bytes in [
            b"GET /connection/websocket HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4660\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 443 1\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::9 ::1 4660 443\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 99999\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 443\n".to_vec(),
            b"PROXY SCTP a b c d\r\n".to_vec(),
            too_long.into_bytes(),
            v2(0x11, 0x11, &[0; 12]),
            v2(0x22, 0x11, &[0; 12]),
            v2(0x21, 0x11, &[0; 11]),
            v2(0x21, 0x21, &[0; 12]),
            v2(0x21, 0x11, &[0; V2_BYTES_MAX + 1]),
        ] {
            let (read, _) = read(&bytes, bytes.len()).await;
            assert_eq!(read, Err(io::ErrorKind::InvalidData), "{}", String::from_utf8_lossy(&bytes));
        }
        let (cut_short, _) = read(b"PROXY TCP4 192.0.2.7", 99).await;
        assert_eq!(cut_short, Err(io::ErrorKind::UnexpectedEof));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn arbitrary_bytes_do_no_harm(line: Vec<u8>, command: u8, family: u8, body: Vec<u8>) {
            let _ = parse_v1(&[BEGINNING_V1, &line, b"\r\n"].concat());
            let _ = parse_v2(command, family, &body);
        }
    }
}
