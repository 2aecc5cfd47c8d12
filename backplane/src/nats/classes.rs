//! The streams of channels with history: one for each combination of how many publications are kept and for how long.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::RwLock;

use super::base::Base;
use super::envelope::{Knowledge, check_of};
use super::names::Class;
use super::request::CallError;
use super::stream::{Lineage, Ready, Stream, StreamSettings};
use crate::{BackplaneError, HistoryOptions, IDEMPOTENCY_TTL};

/// Classes at the same time. Each is a stream, and a fleet has as many as its namespaces have different histories.
const CLASSES_MAX: usize = 64;

/// The streams that this node has to do with.
pub(super) struct Classes {
    base: Arc<Base>,
    known: RwLock<HashMap<Class, Arc<Kept>>>,
}

/// A stream of publications.
pub(super) struct Kept {
    pub(super) class: Class,
    pub(super) stream: Arc<Stream>,
    /// Deliveries of it have been seen to arrive, where that is not a matter of course.
    pub(super) is_reached: AtomicBool,
}

impl Classes {
    pub(super) fn new(base: Arc<Base>) -> Self {
        Self { base, known: RwLock::default() }
    }

    /// The stream of a channel with these options.
    pub(super) fn of(&self, channel: &str, options: &HistoryOptions) -> Result<Arc<Kept>, BackplaneError> {
        self.get(Class::of(channel, options))
    }

    /// Streams in which a channel of this class may be too, under options that were others.
    pub(super) fn others(&self, class: Class) -> Vec<Arc<Kept>> {
        let is_other = |kept: &&Arc<Kept>| kept.class != class && kept.class.is_internal == class.is_internal;
        self.known.read().values().filter(is_other).cloned().collect()
    }

    /// Finds the streams that other nodes have made.
    pub(super) async fn discover(&self) -> Result<(), CallError> {
        let connection = self.base.calls.connection()?;
        for stream in connection.streams_of(&self.base.names.all_stored()).await? {
            self.named(&stream);
        }
        Ok(())
    }

    /// The stream of that name, if it is one of publications.
    pub(super) fn named(&self, stream: &str) -> Option<Arc<Kept>> {
        self.base.names.class_of_stream(stream).and_then(|class| self.get(class).ok())
    }

    /// All that are known.
    pub(super) fn all(&self) -> Vec<Arc<Kept>> {
        self.known.read().values().cloned().collect()
    }

    fn get(&self, class: Class) -> Result<Arc<Kept>, BackplaneError> {
        if let Some(kept) = self.known.read().get(&class) {
            return Ok(Arc::clone(kept));
        }
        let mut known = self.known.write();
        if let Some(kept) = known.get(&class) {
            return Ok(Arc::clone(kept));
        }
        if known.len() >= CLASSES_MAX {
            return Err(BackplaneError::Protocol(format!(
                "channels have more than {CLASSES_MAX} different combinations of history size and position lifetime, and \
                 each is a nats stream: use fewer"
            )));
        }
        let names = &self.base.names;
        let subjects = names.class_subjects(class);
        let stream = self.base.stream(StreamSettings {
            name: names.class_stream(class),
            copies: Some((subjects.clone(), names.live_all())),
            subject: subjects,
            // One more than is shown: it proves to who has seen it that nothing is missing before the others.
            per_subject: i64::try_from(class.size).unwrap_or(i64::MAX).saturating_add(1),
            max_age: Some(class.keep()),
            ids_for: IDEMPOTENCY_TTL,
            message_ttls: false,
            is_fenced: true,
        });
        let kept = Arc::new(Kept { class, stream, is_reached: AtomicBool::new(false) });
        known.insert(class, Arc::clone(&kept));
        Ok(kept)
    }
}

impl Kept {
    /// See [`Stream::ready`].
    pub(super) async fn ready(&self) -> Result<Ready, BackplaneError> {
        self.stream.ready().await
    }

    /// Whether deliveries of it have to be looked for before a position of it is handed out.
    pub(super) fn must_be_reached(&self, ready: &Ready) -> bool {
        ready.lineage.is_clustered && !self.is_reached.load(Relaxed)
    }
}

impl Lineage {
    /// What whoever writes now knows.
    pub(super) fn knowledge(&self) -> Knowledge {
        Knowledge { fences: self.fence_count(), epoch_check: check_of(self.epoch()) }
    }
}
