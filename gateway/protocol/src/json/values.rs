//! Values that are not messages: numbers, strings, payloads, lists and maps.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Entry, ReadJson, WriteJson, close};
use crate::EncodeError;

/// Implements reading and writing for types whose JSON form is the one serde gives them.
macro_rules! plain {
    ($($type:ty),+) => {$(
        impl ReadJson for $type {
            fn read<'de, D: Deserializer<'de>>(_frame: &Bytes, input: D) -> Result<Self, D::Error> {
                Self::deserialize(input)
            }
        }

        impl WriteJson for $type {
            fn is_absent(&self) -> bool {
                *self == Self::default()
            }

            fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                write_plain(self, out);
                Ok(())
            }
        }
    )+};
}

plain!(bool, u32, u64, i32, i64, String);

/// Appends a number, a boolean or a string.
pub(super) fn write_plain<T: serde::Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("scalars have a JSON form, and writing into a Vec does not fail");
}

/// A payload: any JSON value, embedded as it is.
impl ReadJson for Bytes {
    fn read<'de, D: Deserializer<'de>>(frame: &Bytes, input: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(input)?;
        Ok(frame.slice_ref(raw.get().as_bytes()))
    }
}

impl WriteJson for Bytes {
    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        // Checked with serde_json's scan of a raw value, which does not recurse, so depth is no danger here.
        serde_json::from_slice::<&RawValue>(self).map_err(EncodeError::NotJson)?;
        // A raw newline would end the message. JSON has none inside its tokens, so it is white space and can go; so
        // can its companion, the carriage return.
        let mut rest: &[u8] = self;
        while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
            out.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
        }
        out.extend_from_slice(rest);
        Ok(())
    }
}

/// A nested message.
impl<T: ReadJson> ReadJson for Option<T> {
    fn read<'de, D: Deserializer<'de>>(frame: &Bytes, input: D) -> Result<Self, D::Error> {
        T::read(frame, input).map(Some)
    }
}

impl<T: WriteJson> WriteJson for Option<T> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Some(value) => value.write(out),
            None => {
                out.extend_from_slice(b"null");
                Ok(())
            }
        }
    }
}

impl<T: ReadJson> ReadJson for Vec<T> {
    fn read<'de, D: Deserializer<'de>>(frame: &Bytes, input: D) -> Result<Self, D::Error> {
        input.deserialize_seq(ListVisitor { frame, entry: PhantomData })
    }
}

impl<T: WriteJson> WriteJson for Vec<T> {
    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.push(b'[');
        for entry in self {
            entry.write(out)?;
            out.push(b',');
        }
        close(out, b']');
        Ok(())
    }
}

struct ListVisitor<'f, T> {
    frame: &'f Bytes,
    entry: PhantomData<T>,
}

impl<'de, T: ReadJson> Visitor<'de> for ListVisitor<'_, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element_seed(Entry::new(self.frame))? {
            list.push(entry);
        }
        Ok(list)
    }
}

impl<T: ReadJson> ReadJson for BTreeMap<String, T> {
    fn read<'de, D: Deserializer<'de>>(frame: &Bytes, input: D) -> Result<Self, D::Error> {
        input.deserialize_map(MapVisitor { frame, entry: PhantomData })
    }
}

impl<T: WriteJson> WriteJson for BTreeMap<String, T> {
    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.push(b'{');
        for (key, entry) in self {
            write_plain(key, out);
            out.push(b':');
            entry.write(out)?;
            out.push(b',');
        }
        close(out, b'}');
        Ok(())
    }
}

struct MapVisitor<'f, T> {
    frame: &'f Bytes,
    entry: PhantomData<T>,
}

impl<'de, T: ReadJson> Visitor<'de> for MapVisitor<'_, T> {
    type Value = BTreeMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = entries.next_key()? {
            map.insert(key, entries.next_value_seed(Entry::new(self.frame))?);
        }
        Ok(map)
    }
}
