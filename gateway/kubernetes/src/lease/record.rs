//! Reads and builds the Lease object.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

/// What matters of a Lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The object's version: changes with every write.
    pub version: String,
    /// Who has it; `None` when it was released.
    pub holder: Option<String>,
    /// For how long each renewal counts.
    pub duration: Duration,
    /// How often it has changed hands: the term of its holder.
    pub term: u32,
}

impl Record {
    /// What `lease` says. A part that is missing or absurd reads as nothing, so that a damaged Lease can be taken.
    pub fn read(lease: &Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
        Self {
            version: lease.metadata.resource_version.clone().unwrap_or_default(),
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            duration: Duration::from_secs(seconds),
            term: spec.lease_transitions.and_then(|term| u32::try_from(term).ok()).unwrap_or(0),
        }
    }
}

/// A Lease to be written.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// Its name.
    pub name: &'a str,
    /// The version that it replaces; `None`: it is created.
    pub version: Option<&'a str>,
    /// Who takes or keeps it; `None`: it is released.
    pub holder: Option<&'a str>,
    /// For how long it counts, in whole seconds, rounded up.
    pub duration: Duration,
    /// The term of the holder.
    pub term: u32,
    /// When the holder began, in wall-clock time. For people only: nobody judges by it.
    pub acquired_at: Timestamp,
}

impl Draft<'_> {
    /// The object.
    pub fn lease(&self, now: Timestamp) -> Lease {
        let seconds = self.duration.as_secs_f64().ceil().max(1.0);
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.to_owned()),
                resource_version: self.version.map(str::to_owned),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.holder.unwrap_or_default().to_owned()),
                lease_duration_seconds: Some(seconds.min(f64::from(i32::MAX)) as i32),
                lease_transitions: Some(i32::try_from(self.term).unwrap_or(i32::MAX)),
                acquire_time: Some(MicroTime(self.acquired_at)),
                renew_time: Some(MicroTime(now)),
                ..LeaseSpec::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let now = Timestamp::UNIX_EPOCH;
        let duration = Duration::from_millis(1_500);
        let draft = Draft { name: "l", version: Some("4"), holder: Some("me"), duration, term: 7, acquired_at: now };
        let read = Record::read(&draft.lease(now));
        let duration = Duration::from_secs(2);
        assert_eq!(read, Record { version: "4".into(), holder: Some("me".into()), duration, term: 7 });
        assert_eq!(Record::read(&Draft { holder: None, ..draft }.lease(now)).holder, None);
    }

    #[test]
    fn a_damaged_lease_reads_as_nothing() {
        let spec = LeaseSpec {
            lease_duration_seconds: Some(-4),
            lease_transitions: Some(-1),
            holder_identity: Some(String::new()),
            ..LeaseSpec::default()
        };
        let lease = Lease { metadata: ObjectMeta::default(), spec: Some(spec) };
        let nothing = Record { version: String::new(), holder: None, duration: Duration::ZERO, term: 0 };
        assert_eq!(Record::read(&lease), nothing);
        assert_eq!(Record::read(&Lease::default()), nothing);
    }
}
