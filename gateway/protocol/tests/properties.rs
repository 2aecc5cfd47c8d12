//! Properties of both codecs over any message and any bytes.

mod arbitrary;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use protocol::*;

fn encoding() -> impl Strategy<Value = Encoding> {
    prop_oneof![Just(Encoding::Json), Just(Encoding::Protobuf)]
}

fn commands() -> impl Strategy<Value = (Encoding, Vec<Command>)> {
    encoding().prop_flat_map(|encoding| (Just(encoding), vec(arbitrary::command(encoding), 1..4)))
}

fn replies() -> impl Strategy<Value = (Encoding, Vec<Reply>)> {
    encoding().prop_flat_map(|encoding| (Just(encoding), vec(arbitrary::reply(encoding), 1..4)))
}

fn commands_frame(encoding: Encoding, commands: &[Command]) -> Bytes {
    let mut out = Vec::new();
    for command in commands {
        encode_command(encoding, command, &mut out).expect("payloads suit the encoding");
    }
    Bytes::copy_from_slice(frame_payload(encoding, &out))
}

fn replies_frame(encoding: Encoding, replies: &[Reply]) -> Bytes {
    let mut out = Vec::new();
    for reply in replies {
        encode_reply(encoding, reply, &mut out).expect("payloads suit the encoding");
    }
    Bytes::copy_from_slice(frame_payload(encoding, &out))
}

/// A change to the bytes of a frame: what happens, where (as a share of the length), and a byte to do it with.
#[derive(Debug, Clone)]
enum Mutation {
    Replace(prop::sample::Index, u8),
    Insert(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    Cut(prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<prop::sample::Index>;
    let byte = || prop_oneof![any::<u8>(), prop::sample::select(&b"{}[]\",:\\\n 0nt\x00\x80\xff"[..])];
    prop_oneof![
        (index(), byte()).prop_map(|(at, byte)| Mutation::Replace(at, byte)),
        (index(), byte()).prop_map(|(at, byte)| Mutation::Insert(at, byte)),
        index().prop_map(Mutation::Remove),
        index().prop_map(Mutation::Cut),
        (index(), index()).prop_map(|(a, b)| Mutation::Repeat(a, b)),
    ]
}

fn mutate(frame: &Bytes, mutations: &[Mutation]) -> Bytes {
    let mut frame = frame.to_vec();
    for mutation in mutations {
        let len = frame.len();
        match mutation {
            Mutation::Insert(at, byte) => frame.insert(at.index(len + 1), *byte),
            _ if len == 0 => {}
            Mutation::Replace(at, byte) => frame[at.index(len)] = *byte,
            Mutation::Remove(at) => drop(frame.remove(at.index(len))),
            Mutation::Cut(at) => frame.truncate(at.index(len)),
            Mutation::Repeat(a, b) => {
                let (a, b) = (a.index(len), b.index(len));
                frame.extend_from_within(a.min(b)..a.max(b));
            }
        }
    }
    Bytes::from(frame)
}

/// Reads bytes of unknown origin both ways. Whatever is accepted must be a message that can be written, and what is
/// written must read back to something that is written the same way.
fn survives(encoding: Encoding, frame: &Bytes) -> Result<(), TestCaseError> {
    let limits = Limits::default();
    let mut commands = decode_commands(encoding, frame, &limits);
    let read: Vec<_> = commands.by_ref().collect();
    prop_assert!(commands.next().is_none(), "the iterator is fused");
    prop_assert!(!read.is_empty(), "a frame has a message or an error");
    prop_assert!(read.len() <= limits.commands + 1);
    prop_assert!(read[..read.len() - 1].iter().all(Result::is_ok), "nothing follows an error");
    let read: Vec<_> = read.into_iter().flatten().collect();
    if !read.is_empty() {
        let written = commands_frame(encoding, &read);
        let again: Vec<_> = decode_commands(encoding, &written, &Limits::for_replies()).map(Result::unwrap).collect();
        prop_assert_eq!(commands_frame(encoding, &again), written);
    }

    let mut replies = decode_replies(encoding, frame, &limits);
    let read: Vec<_> = replies.by_ref().collect();
    prop_assert!(replies.next().is_none(), "the iterator is fused");
    prop_assert!(read.iter().rev().skip(1).all(Result::is_ok), "nothing follows an error");
    let read: Vec<_> = read.into_iter().flatten().collect();
    if !read.is_empty() {
        let written = replies_frame(encoding, &read);
        let again: Vec<_> = decode_replies(encoding, &written, &Limits::for_replies()).map(Result::unwrap).collect();
        prop_assert_eq!(replies_frame(encoding, &again), written);
    }
    Ok(())
}

proptest! {
    #[test]
    fn commands_round_trip((encoding, commands) in commands()) {
        let frame = commands_frame(encoding, &commands);
        let read: Vec<_> =
            decode_commands(encoding, &frame, &Limits::for_replies()).map(Result::unwrap).collect();
        prop_assert_eq!(read, commands);
    }

    #[test]
    fn replies_round_trip((encoding, replies) in replies()) {
        let frame = replies_frame(encoding, &replies);
        let read: Vec<_> =
            decode_replies(encoding, &frame, &Limits::for_replies()).map(Result::unwrap).collect();
        prop_assert_eq!(read, replies);
    }

    #[test]
    fn a_publication_is_encoded_as_its_push_is(
        (encoding, publication) in encoding().prop_flat_map(|e| (Just(e), arbitrary::publication(e))),
        channel in ".{0,9}",
    ) {
        let mut direct = b"before".to_vec();
        encode_publication(encoding, &channel, &publication, &mut direct).unwrap();
        let body = Some(ReplyBody::Push(Push { channel, body: PushBody::Publication(publication) }));
        let mut push = b"before".to_vec();
        encode_reply(encoding, &Reply { id: 0, body }, &mut push).unwrap();
        prop_assert_eq!(direct, push);
    }

    #[test]
    fn any_bytes_are_survived(encoding in encoding(), frame in vec(any::<u8>(), 0..200)) {
        survives(encoding, &Bytes::from(frame))?;
    }

    #[test]
    fn any_json_like_text_is_survived(frame in r#"([{}\[\]":, \n0-9]|\\u?|null|true|"id"|"connect"|"push"|"data"){0,40}"#) {
        survives(Encoding::Json, &Bytes::from(frame))?;
    }

    #[test]
    fn mutated_commands_are_survived((encoding, commands) in commands(), mutations in vec(mutation(), 1..4)) {
        survives(encoding, &mutate(&commands_frame(encoding, &commands), &mutations))?;
    }

    #[test]
    fn mutated_replies_are_survived((encoding, replies) in replies(), mutations in vec(mutation(), 1..4)) {
        survives(encoding, &mutate(&replies_frame(encoding, &replies), &mutations))?;
    }

    #[test]
    fn commands_before_a_malformed_one_are_kept((encoding, commands) in commands()) {
        let mut frame = Vec::new();
        for command in &commands {
            encode_command(encoding, command, &mut frame).unwrap();
        }
        // Neither a JSON value nor, as a length of 125, followed by enough bytes.
        frame.extend_from_slice(b"}{");
        let frame = Bytes::from(frame);
        let read: Vec<_> = decode_commands(encoding, &frame, &Limits::for_replies()).collect();
        prop_assert!(read.last().unwrap().is_err());
        let read: Vec<_> = read.into_iter().flatten().collect();
        prop_assert_eq!(read, commands);
    }
}
