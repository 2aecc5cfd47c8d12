//! Messages with a map of messages, encoded by hand.
//!
//! The derive leaves the value of a map entry out when it equals the default. That is legal, but the Protobuf decoder of
//! the JavaScript SDK then has `null` in the place of an empty result, and fails: a plain server-side subscription is
//! just such an empty result. So here every entry has its value.

use std::collections::BTreeMap;

use prost::Message;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType};
use prost::{DecodeError, encoding};

use super::{Connect, ConnectRequest, ConnectResult};

/// A map of messages by channel, in the form of the modules of [`prost::encoding`].
mod subs {
    use super::*;

    pub fn encode<M: Message>(tag: u32, entries: &BTreeMap<String, M>, buf: &mut impl BufMut) {
        for (channel, value) in entries {
            encoding::encode_key(tag, WireType::LengthDelimited, buf);
            encoding::encode_varint(entry_len(channel, value) as u64, buf);
            encoding::string::encode(1, channel, buf);
            encoding::message::encode(2, value, buf);
        }
    }

    pub fn encoded_len<M: Message>(tag: u32, entries: &BTreeMap<String, M>) -> usize {
        let entry = |(channel, value): (&String, &M)| {
            let length = entry_len(channel, value);
            encoding::key_len(tag) + encoding::encoded_len_varint(length as u64) + length
        };
        entries.iter().map(entry).sum()
    }

    pub fn merge<M: Message + Default>(
        _wire_type: WireType,
        entries: &mut BTreeMap<String, M>,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        encoding::btree_map::merge(encoding::string::merge, encoding::message::merge, entries, buf, ctx)
    }

    fn entry_len<M: Message>(channel: &String, value: &M) -> usize {
        encoding::string::encoded_len(1, channel) + encoding::message::encoded_len(2, value)
    }
}

/// A map of texts; an empty text may be left out, every decoder knows it.
mod texts {
    use super::*;

    pub fn encode(tag: u32, entries: &BTreeMap<String, String>, buf: &mut impl BufMut) {
        use encoding::string;
        encoding::btree_map::encode(
            string::encode,
            string::encoded_len,
            string::encode,
            string::encoded_len,
            tag,
            entries,
            buf,
        );
    }

    pub fn encoded_len(tag: u32, entries: &BTreeMap<String, String>) -> usize {
        use encoding::string;
        encoding::btree_map::encoded_len(string::encoded_len, string::encoded_len, tag, entries)
    }

    pub fn merge(
        _wire_type: WireType,
        entries: &mut BTreeMap<String, String>,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        encoding::btree_map::merge(encoding::string::merge, encoding::string::merge, entries, buf, ctx)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Implements [`Message`] field by field: number, module that encodes it, name.
macro_rules! message {
    ($message:ident { $($tag:literal $kind:path: $field:ident,)* }) => {
        impl Message for $message {
            fn encode_raw(&self, buf: &mut impl BufMut) {
                $({
                    use $kind as kind;
                    if !is_default(&self.$field) {
                        kind::encode($tag, &self.$field, buf);
                    }
                })*
            }

            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                buf: &mut impl Buf,
                ctx: DecodeContext,
            ) -> Result<(), DecodeError> {
                match tag {
                    $($tag => {
                        use $kind as kind;
                        kind::merge(wire_type, &mut self.$field, buf, ctx)
                    })*
                    _ => encoding::skip_field(wire_type, tag, buf, ctx),
                }
            }

            fn encoded_len(&self) -> usize {
                let mut length = 0;
                $({
                    use $kind as kind;
                    if !is_default(&self.$field) {
                        length += kind::encoded_len($tag, &self.$field);
                    }
                })*
                length
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }
    };
}

message!(ConnectRequest {
    1 encoding::string: token,
    2 encoding::bytes: data,
    3 subs: subs,
    4 encoding::string: name,
    5 encoding::string: version,
    6 texts: headers,
});

message!(ConnectResult {
    1 encoding::string: client,
    2 encoding::string: version,
    3 encoding::bool: expires,
    4 encoding::uint32: ttl,
    5 encoding::bytes: data,
    6 subs: subs,
    7 encoding::uint32: ping,
    8 encoding::bool: pong,
    9 encoding::string: session,
    10 encoding::string: node,
    11 encoding::int64: time,
});

message!(Connect {
    1 encoding::string: client,
    2 encoding::string: version,
    3 encoding::bytes: data,
    4 subs: subs,
    5 encoding::bool: expires,
    6 encoding::uint32: ttl,
    7 encoding::uint32: ping,
    8 encoding::bool: pong,
    9 encoding::string: session,
    10 encoding::string: node,
    11 encoding::int64: time,
});

#[cfg(test)]
mod tests {
    use super::super::SubscribeResult;
    use super::*;

    #[test]
    fn an_empty_result_is_in_its_entry() {
        let subs = BTreeMap::from([("c".to_owned(), SubscribeResult::default())]);
        let bytes = ConnectResult { subs, ..ConnectResult::default() }.encode_to_vec();
        // Field 6, 5 bytes: key "c" as field 1, an empty message as field 2.
        assert_eq!(bytes, [0x32, 5, 0x0a, 1, b'c', 0x12, 0]);
    }
}
