//! The JSON form of messages.
//!
//! Reading is serde's, with one thing carried along: the frame, so that a payload becomes a slice of it and not a copy.
//! That is why messages are read by [`ReadJson::read`] and not by `Deserialize`. Writing goes straight into the output.

mod envelope;
mod fields;
mod values;

pub(crate) use envelope::{read_command, read_reply, write_command, write_publication, write_push, write_reply};

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::EncodeError;

/// A value that can be read from JSON.
pub(crate) trait ReadJson: Default {
    /// Reads the value; payloads in it become slices of `frame`, of which `input` must be a part.
    fn read<'de, D: Deserializer<'de>>(frame: &Bytes, input: D) -> Result<Self, D::Error>;
}

/// The value of a field that can be written to JSON.
pub(crate) trait WriteJson {
    /// Whether the field is left out unless it is one of those which are always written.
    fn is_absent(&self) -> bool;

    /// Appends the value. On an error some of it may have been written.
    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError>;
}

/// A message read from a JSON object. [`fields`] implements both directions from one table of names for each message.
pub(crate) trait ReadObject: Default {
    /// Reads the value of one member into its field, or skips it when there is no such field.
    fn read_member<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        frame: &Bytes,
        members: &mut A,
    ) -> Result<(), A::Error>;
}

/// A message written as a JSON object.
pub(crate) trait WriteObject {
    /// Appends the members, each followed by a comma.
    fn write_members(&self, out: &mut Vec<u8>) -> Result<(), EncodeError>;
}

impl<T: ReadObject> ReadJson for T {
    fn read<'de, D: Deserializer<'de>>(frame: &Bytes, input: D) -> Result<Self, D::Error> {
        input.deserialize_map(ObjectVisitor { frame, object: PhantomData })
    }
}

impl<T: WriteObject> WriteJson for T {
    fn is_absent(&self) -> bool {
        // A message that is there is written even when nothing is in it; an absent one is a `None` around it.
        false
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.push(b'{');
        self.write_members(out)?;
        close(out, b'}');
        Ok(())
    }
}

/// Ends an object or array whose every entry was followed by a comma.
fn close(out: &mut Vec<u8>, bracket: u8) {
    match out.last_mut() {
        Some(last) if *last == b',' => *last = bracket,
        _ => out.push(bracket),
    }
}

struct ObjectVisitor<'f, T> {
    frame: &'f Bytes,
    object: PhantomData<T>,
}

impl<'de, T: ReadObject> Visitor<'de> for ObjectVisitor<'_, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<T, A::Error> {
        let mut object = T::default();
        while let Some(name) = members.next_key_seed(Name)? {
            object.read_member(&name, self.frame, &mut members)?;
        }
        Ok(object)
    }
}

/// The name of a member, borrowed unless it has escapes.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

/// Reads a value where `null` is an error: an entry of an array or map.
struct Entry<'f, T> {
    frame: &'f Bytes,
    value: PhantomData<T>,
}

impl<'f, T> Entry<'f, T> {
    fn new(frame: &'f Bytes) -> Self {
        Self { frame, value: PhantomData }
    }
}

impl<'de, T: ReadJson> DeserializeSeed<'de> for Entry<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<T, D::Error> {
        T::read(self.frame, input)
    }
}

/// Reads the value of a field, where `null` says that it is absent.
struct Field<'f, T>(Entry<'f, T>);

impl<'de, T: ReadJson> DeserializeSeed<'de> for Field<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<T, D::Error> {
        input.deserialize_option(self)
    }
}

impl<'de, T: ReadJson> Visitor<'de> for Field<'_, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the value of a field")
    }

    fn visit_none<E>(self) -> Result<T, E> {
        Ok(T::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, input: D) -> Result<T, D::Error> {
        self.0.deserialize(input)
    }
}

/// Reads the value of the member whose name was read last.
pub(crate) fn read_field<'de, T: ReadJson, A: MapAccess<'de>>(frame: &Bytes, members: &mut A) -> Result<T, A::Error> {
    members.next_value_seed(Field(Entry::new(frame)))
}

/// Skips the value of the member whose name was read last. It is still checked against the grammar, and without
/// recursion however deep it is.
fn skip_field<'de, A: MapAccess<'de>>(members: &mut A) -> Result<(), A::Error> {
    members.next_value::<IgnoredAny>().map(drop)
}
