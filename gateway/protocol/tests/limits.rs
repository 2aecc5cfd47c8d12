//! Frames: how messages are told apart in them, and how much a frame may hold.

use bytes::Bytes;
use protocol::*;

fn read(encoding: Encoding, frame: impl AsRef<[u8]>, limits: Limits) -> Vec<Result<Command, DecodeError>> {
    decode_commands(encoding, &Bytes::copy_from_slice(frame.as_ref()), &limits).collect()
}

/// A command whose payload makes the message `depth` deep: the command, the request, and the rest in arrays.
fn nested(depth: usize) -> String {
    let arrays = depth - 2;
    format!(r#"{{"id":1,"send":{{"data":{}{}}}}}"#, "[".repeat(arrays), "]".repeat(arrays))
}

#[test]
fn one_newline_may_end_a_json_frame() {
    for (frame, messages) in [("{}", 1), ("{}\n", 1), ("{}\n{}", 2), ("{}\n{}\n", 2), ("{}\r\n {} \r\n", 2)] {
        let read = read(Encoding::Json, frame, Limits::default());
        assert_eq!(read.len(), messages, "{frame:?}");
        assert!(read.iter().all(|read| *read.as_ref().unwrap() == Command::default()));
    }
}

#[test]
fn a_blank_line_is_an_error() {
    for (frame, before, where_) in
        [("\n", 0, 0), ("{}\n\n", 1, 3), ("\n{}", 0, 0), ("{}\n\n{}", 1, 3), (" ", 0, 0), ("{}\n\r\n", 1, 3)]
    {
        let read = read(Encoding::Json, frame, Limits::default());
        assert_eq!(read.len(), before + 1, "{frame:?}");
        assert!(matches!(read.last(), Some(Err(DecodeError::BlankLine { at })) if *at == where_), "{frame:?} {read:?}");
    }
}

#[test]
fn a_frame_without_a_message_is_an_error() {
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        assert!(matches!(&read(encoding, "", Limits::default())[..], [Err(DecodeError::Empty)]));
        let frame = Bytes::new();
        let mut replies = decode_replies(encoding, &frame, &Limits::for_replies());
        assert!(matches!(replies.next(), Some(Err(DecodeError::Empty))));
        assert!(replies.next().is_none());
    }
}

#[test]
fn pongs_are_counted_in_both_encodings() {
    assert_eq!(read(Encoding::Protobuf, [0, 0, 0], Limits::default()).len(), 3);
    let limits = Limits { commands: 3, ..Limits::default() };
    for (encoding, pong) in [(Encoding::Json, &b"{}\n"[..]), (Encoding::Protobuf, &b"\0"[..])] {
        let three = read(encoding, pong.repeat(3), limits);
        assert_eq!(three.into_iter().map(Result::unwrap).collect::<Vec<_>>(), vec![Command::default(); 3]);
        let four = read(encoding, pong.repeat(4), limits);
        assert_eq!(four.len(), 4);
        assert!(four[..3].iter().all(Result::is_ok));
        assert!(matches!(four[3], Err(DecodeError::TooManyMessages { limit: 3 })));
    }
}

#[test]
fn a_frame_has_a_size_limit() {
    let limits = Limits { frame_bytes: 4, ..Limits::default() };
    for (encoding, fits, too_large) in
        [(Encoding::Json, &b"{ }\n"[..], &b"{  }\n"[..]), (Encoding::Protobuf, &[0; 4][..], &[0; 5][..])]
    {
        assert!(read(encoding, fits, limits).iter().all(Result::is_ok));
        let read = read(encoding, too_large, limits);
        assert!(matches!(&read[..], [Err(DecodeError::FrameTooLarge { bytes: 5, limit: 4 })]));
    }
}

#[test]
fn json_has_a_depth_limit() {
    let limits = Limits::default();
    assert!(matches!(&read(Encoding::Json, nested(limits.depth), limits)[..], [Ok(_)]));
    let frame = format!("{{}}\n{}", nested(limits.depth + 1));
    assert!(matches!(
        &read(Encoding::Json, frame, limits)[..],
        [Ok(_), Err(DecodeError::TooDeep { at: 3, limit: 64 })]
    ));
    // Many brackets are not depth: side by side, in a string, behind an escaped quote.
    for payload in [
        format!("[{}0]", "[],{},".repeat(200)),
        format!("\"{}\"", "[{".repeat(200)),
        format!(r#""\"{}\\""#, "[".repeat(200)),
        format!(r#"["\\",{}0]"#, "[],".repeat(200)),
    ] {
        let frame = format!(r#"{{"send":{{"data":{payload}}}}}"#);
        let read = read(Encoding::Json, frame, limits);
        let [Ok(Command { request: Some(Request::Send(send)), .. })] = &read[..] else { panic!("{read:?}") };
        assert_eq!(send.data, payload);
    }
    // Depth behind such strings is still found.
    let frame = format!(r#"{{"send":{{"data":["\\",{}0]}}}}"#, "[".repeat(64));
    assert!(matches!(&read(Encoding::Json, frame, limits)[..], [Err(DecodeError::TooDeep { .. })]));
}

#[test]
fn depth_does_not_exhaust_the_stack_even_without_a_limit() {
    let limits = Limits { frame_bytes: usize::MAX, depth: usize::MAX, commands: 1 };
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    for frame in [
        format!(r#"{{"unknown":{deep}}}"#),
        format!(r#"{{"connect":{{"unknown":{deep}}}}}"#),
        format!(r#"{{"connect":{{"data":{deep}}}}}"#),
    ] {
        assert!(matches!(&read(Encoding::Json, frame, limits)[..], [Ok(_)]));
    }
    for frame in ["[".repeat(1_000_000), r#"{"connect":"#.repeat(1_000_000), r#"{"a":["#.repeat(1_000_000)] {
        assert!(matches!(&read(Encoding::Json, frame, limits)[..], [Err(DecodeError::Json { .. })]));
    }
    let publication = Publication { data: Bytes::from(deep), ..Default::default() };
    encode_publication(Encoding::Json, "c", &publication, &mut Vec::new()).unwrap();
}

#[test]
fn json_must_be_utf8() {
    for frame in [&b"{\"a\":\"\xff\"}"[..], b"\xc3\x28", b"{\"send\":{\"data\":\"\xed\xa0\x80\"}}"] {
        assert!(matches!(
            &read(Encoding::Json, frame, Limits::default())[..],
            [Err(DecodeError::NotUtf8 { at: 0, .. })]
        ));
    }
}

#[test]
fn protobuf_lengths_are_checked() {
    type Check = fn(&DecodeError) -> bool;
    let truncated: Check = |error| matches!(error, DecodeError::Truncated { at: 1 });
    let varint: Check = |error| matches!(error, DecodeError::Varint { at: 1 });
    for (length, check) in [
        (&b"\x01"[..], truncated),
        (b"\x02\x08", truncated),
        (b"\x80", truncated),
        (b"\xff\xff\xff", truncated),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff", truncated),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", truncated),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", varint),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", varint),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", varint),
    ] {
        let read = read(Encoding::Protobuf, [b"\x00", length].concat(), Limits::default());
        let [Ok(_), Err(error)] = &read[..] else { panic!("{length:?}: {read:?}") };
        assert!(check(error), "{length:?}: {error:?}");
    }
}
