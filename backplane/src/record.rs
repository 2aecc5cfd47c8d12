//! How a publication or a presence event is written to a server.
//!
//! A record is one byte of version, one of kind, and fields, each with its length before it:
//!
//! | | |
//! |---|---|
//! | version | 1 |
//! | kind | `P` publication, `J` join, `L` leave |
//! | publisher or member | length 0, or 16 bytes of client id, then user, connection info, channel info |
//! | publications only | count of tags, then name and value of each, then the payload |
//!
//! Lengths and counts are 32-bit, most significant byte first. Bytes after the last known field are ignored, so that a
//! newer version can add fields without a new version number; an unknown version or kind is an error.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::{ClientId, ClientInfo, NewPublication, Offset, PresenceEvent, Publication};

const VERSION: u8 = 1;
const PUBLICATION: u8 = b'P';
const JOIN: u8 = b'J';
const LEAVE: u8 = b'L';

/// What a record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Publication(Publication),
    Presence(PresenceEvent),
}

/// A record that this version cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("a record ends too early")]
    Short,
    #[error("a record of version {0}, this node reads version {VERSION}")]
    Version(u8),
    #[error("a record of the unknown kind {0}")]
    Kind(u8),
    #[error("a record holds text that is not UTF-8")]
    Text,
}

pub(crate) fn encode_publication(publication: &NewPublication) -> Vec<u8> {
    let mut out = Vec::with_capacity(publication.data.len() + 64);
    out.extend([VERSION, PUBLICATION]);
    put_info(&mut out, publication.info.as_deref());
    put_len(&mut out, publication.tags.len());
    for (name, value) in &publication.tags {
        put(&mut out, name.as_bytes());
        put(&mut out, value.as_bytes());
    }
    put(&mut out, &publication.data);
    out
}

pub(crate) fn encode_presence(event: &PresenceEvent) -> Vec<u8> {
    let (kind, info) = match event {
        PresenceEvent::Join(info) => (JOIN, info),
        PresenceEvent::Leave(info) => (LEAVE, info),
    };
    let mut out = vec![VERSION, kind];
    put_info(&mut out, Some(info));
    out
}

/// Reads a record; `offset` is the one a publication has in its stream.
pub(crate) fn decode(bytes: &[u8], offset: Option<Offset>) -> Result<Record, RecordError> {
    let mut rest = Reader(bytes);
    let version = rest.byte()?;
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    let kind = rest.byte()?;
    if !matches!(kind, PUBLICATION | JOIN | LEAVE) {
        return Err(RecordError::Kind(kind));
    }
    let info = rest.info()?;
    if kind != PUBLICATION {
        let info = info.ok_or(RecordError::Short)?;
        let event = if kind == JOIN { PresenceEvent::Join(info) } else { PresenceEvent::Leave(info) };
        return Ok(Record::Presence(event));
    }
    let mut tags = BTreeMap::new();
    for _ in 0..rest.len()? {
        let name = rest.text()?.to_owned();
        tags.insert(name, rest.text()?.to_owned());
    }
    Ok(Record::Publication(Publication { offset, data: rest.copy()?, info, tags }))
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    // Redis refuses values of more than 512 MB, NATS of more than 64 MB.
    out.extend(u32::try_from(len).expect("a field is shorter than 4 GB").to_be_bytes());
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_info(out: &mut Vec<u8>, info: Option<&ClientInfo>) {
    let Some(info) = info else { return put_len(out, 0) };
    put(out, info.client.0.as_bytes());
    put(out, info.user.as_str().as_bytes());
    put(out, &info.conn_info);
    put(out, &info.chan_info);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(RecordError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, RecordError> {
        Ok(self.take(1)?[0])
    }

    fn len(&mut self) -> Result<usize, RecordError> {
        let (len, rest) = self.0.split_first_chunk().ok_or(RecordError::Short)?;
        self.0 = rest;
        usize::try_from(u32::from_be_bytes(*len)).map_err(|_| RecordError::Short)
    }

    fn field(&mut self) -> Result<&'a [u8], RecordError> {
        let len = self.len()?;
        self.take(len)
    }

    fn text(&mut self) -> Result<&'a str, RecordError> {
        str::from_utf8(self.field()?).map_err(|_| RecordError::Text)
    }

    /// Copied, because a slice would keep the connection's whole read buffer alive as long as the publication.
    fn copy(&mut self) -> Result<Bytes, RecordError> {
        self.field().map(Bytes::copy_from_slice)
    }

    fn info(&mut self) -> Result<Option<Arc<ClientInfo>>, RecordError> {
        let client = self.field()?;
        if client.is_empty() {
            return Ok(None);
        }
        let client = ClientId(Uuid::from_slice(client).map_err(|_| RecordError::Short)?);
        let user = self.text()?.into();
        Ok(Some(Arc::new(ClientInfo { client, user, conn_info: self.copy()?, chan_info: self.copy()? })))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
    }

    fn info() -> impl Strategy<Value = Arc<ClientInfo>> {
        (any::<u128>(), ".{0,8}", bytes(), bytes()).prop_map(|(client, user, conn_info, chan_info)| {
            Arc::new(ClientInfo { client: ClientId(Uuid::from_u128(client)), user: user.into(), conn_info, chan_info })
        })
    }

    fn publication() -> impl Strategy<Value = NewPublication> {
        (bytes(), prop::option::of(info()), prop::collection::btree_map(".{0,4}", ".{0,4}", 0..4))
            .prop_map(|(data, info, tags)| NewPublication { data, info, tags })
    }

    proptest! {
        #[test]
        fn publications_come_back(publication in publication(), newer in bytes()) {
            let mut record = encode_publication(&publication);
            record.extend_from_slice(&newer);
            let NewPublication { data, info, tags } = publication;
            let expected = Publication { offset: Some(Offset(7)), data, info, tags };
            prop_assert_eq!(decode(&record, Some(Offset(7))), Ok(Record::Publication(expected)));
        }

        #[test]
        fn events_come_back(info in info(), join: bool) {
            let event = if join { PresenceEvent::Join(info) } else { PresenceEvent::Leave(info) };
            prop_assert_eq!(decode(&encode_presence(&event), None), Ok(Record::Presence(event)));
        }

        #[test]
        fn every_shorter_record_is_refused(publication in publication(), cut in any::<prop::sample::Index>()) {
            let record = encode_publication(&publication);
            let cut = cut.index(record.len());
            prop_assert_eq!(decode(&record[..cut], None), Err(RecordError::Short));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut record = vec![VERSION, PUBLICATION];
            record.extend(&bytes);
            let _ = decode(&record, None);
            let _ = decode(&bytes, None);
        }
    }

    #[test]
    fn records_of_the_future_are_named() {
        assert_eq!(decode(&[2, PUBLICATION], None), Err(RecordError::Version(2)));
        assert_eq!(decode(&[VERSION, b'Z'], None), Err(RecordError::Kind(b'Z')));
        let mut record = encode_publication(&NewPublication::default());
        record[6..10].copy_from_slice(&1u32.to_be_bytes());
        record.extend([0, 0, 0, 1, 0xff]);
        assert!(decode(&record, None).is_err());
    }
}
