//! The in-memory backplane with one bug planted, to show that the suite finds it.

use std::collections::HashMap;
use std::future::ready;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backplane::memory::MemoryBackplane;
use backplane::{
    Backplane, BackplaneFuture, ChannelName, ClientId, ClientInfo, Delivery, Disturbance, Epoch, HistoryOptions,
    HistoryPage, HistoryQuery, NewPublication, Offset, PresenceEvent, PresenceStats, PresenceStore, Previous,
    PublishOptions, PublishOutcome, Published, Sink, Status, StreamPosition,
};

use super::broken_stores::Memory;

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    Nothing,
    PreviousIsOneTooLow,
    PreviousIsNeverKnown,
    DeliveriesSwapPlaces,
    EveryTenthDeliveryIsLost,
    DeliveriesComeTwice,
    DeliveriesNameAnotherEpoch,
    TagsAreLost,
    PublishersAreLost,
    EpochsAreReused,
    IdempotencyIsIgnored,
    IdempotencySpansChannels,
    VersionsAreIgnored,
    VersionEpochsAreIgnored,
    AlwaysCovered,
    NeverCovered,
    CoveredWhenCutByTheLimit,
    CoveredInAnotherEpoch,
    CoveredBeyondTheTop,
    CoveredWithoutAPosition,
    CoveredWhenTrimmed,
    UnknownEpochsAreRefused,
    SubscribesTakeEffectLate,
    UnsubscribesAreIgnored,
    SkippedHistoryIsStored,
    ReverseIsIgnored,
    LimitsAreIgnored,
    SinceIsInclusive,
    PositionsAreSorted,
    RemovalForgetsTheEpoch,
    RemovalIsIgnored,
    SizesAreIgnored,
    PublicationsDieYoung,
    PublicationsLiveForEver,
    EpochsDieWithPublications,
    NamesIgnoreCase,
    LongNamesAreCut,
    NullBytesEndNames,
    LeavesAreLost,
    PresenceEventsGoEverywhere,
    AnonymousUsersCountEach,
    PresenceIsNeverReplaced,
    PresenceSpansChannels,
    PresenceIsNeverRemoved,
    PresenceListsAreCut,
    AdoptionIsNotNoticed,
    AdoptionIsAlwaysNoticed,
    AdoptedEntriesLeave,
    LingeringIsIgnored,
    LingeringLeavesAreLost,
    LingeringNeverEnds,
    ReportsNeverEnd,
    AgesStandStill,
    LongReportsAreCut,
    WithdrawalsAreIgnored,
    LeasesGoToTwo,
    LeasesAreOne,
    LeasesNeverEnd,
    TokensGoBack,
    TokensChangeWithRenewals,
    TokensRestartAfterALoss,
    HoldersKeepTheirTokens,
    AnybodyReleases,
    ReleasesAreIgnored,
    UsersShareSessions,
    UserIdsIgnoreCase,
    SessionIdsIgnoreCase,
    NullBytesEndSessionIds,
    LongSessionIdsAreCut,
    SessionCapIsIgnored,
    SessionsDieYoung,
    SessionsNeverEnd,
    LargeSessionsAreCut,
    StaleWritesAreAccepted,
    ConflictsHideTheRecord,
    RevisionsAreReused,
    TouchesAreIgnored,
    TouchesAreWrites,
    DeletesAreIgnored,
    RevocationsAreIgnored,
    RevocationsLastForEver,
    AnyWriteAuthorises,
}

pub struct Broken {
    pub(super) bug: Bug,
    pub(super) inner: MemoryBackplane,
    /// For the bugs in the fleet and in sessions.
    pub(super) memory: Mutex<Memory>,
    /// For the bug that remembers keys without their channels.
    results: Mutex<HashMap<String, Published>>,
    /// For the bug that subscribes one call late.
    late: Mutex<Vec<ChannelName>>,
    sink: Mutex<Option<Arc<dyn Sink>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broken {
    pub fn new(bug: Bug, inner: MemoryBackplane) -> Self {
        Self {
            bug,
            inner,
            memory: Mutex::default(),
            results: Mutex::default(),
            late: Mutex::default(),
            sink: Mutex::default(),
        }
    }

    pub fn forget(&self) {
        self.note_loss();
        self.inner.forget();
    }

    pub(super) fn is(&self, bug: Bug) -> bool {
        self.bug == bug
    }

    fn name(&self, channel: &ChannelName) -> ChannelName {
        match self.bug {
            Bug::NamesIgnoreCase => channel.to_ascii_lowercase().into(),
            Bug::LongNamesAreCut => channel.chars().take(200).collect::<String>().into(),
            Bug::NullBytesEndNames => channel.trim_end_matches('\0').into(),
            _ => channel.clone(),
        }
    }

    fn room(&self, channel: &ChannelName) -> ChannelName {
        if self.is(Bug::PresenceSpansChannels) { "one room".into() } else { self.name(channel) }
    }

    fn options(&self, mut options: HistoryOptions) -> HistoryOptions {
        match self.bug {
            Bug::SizesAreIgnored => options.size = usize::MAX,
            Bug::PublicationsDieYoung => options.ttl /= 4,
            Bug::PublicationsLiveForEver => options.ttl *= 1_000,
            Bug::EpochsDieWithPublications => options.meta_ttl = options.ttl,
            _ => {}
        }
        options
    }

    fn position(&self, mut position: StreamPosition) -> StreamPosition {
        if self.is(Bug::EpochsAreReused) {
            position.epoch = "same".into();
        }
        position
    }

    fn publish_now(
        &self,
        channel: &ChannelName,
        mut publication: NewPublication,
        mut options: PublishOptions,
    ) -> Result<Published, backplane::BackplaneError> {
        match self.bug {
            Bug::TagsAreLost => publication.tags.clear(),
            Bug::PublishersAreLost => publication.info = None,
            Bug::IdempotencyIsIgnored => options.idempotency_key = None,
            Bug::VersionsAreIgnored => options.version = 0,
            Bug::VersionEpochsAreIgnored => options.version_epoch.clear(),
            Bug::SkippedHistoryIsStored => {
                let first =
                    HistoryOptions { size: 100, ttl: std::time::Duration::MAX, meta_ttl: std::time::Duration::MAX };
                options.history.get_or_insert(first);
            }
            _ => {}
        }
        options.history = options.history.map(|history| self.options(history));
        let key = options.idempotency_key.clone().filter(|_| self.is(Bug::IdempotencySpansChannels));
        if let Some(published) = key.as_ref().and_then(|key| lock(&self.results).get(key).cloned()) {
            return Ok(Published { outcome: PublishOutcome::Repeated, ..published });
        }
        let mut published = done(self.inner.publish(&self.name(channel), publication, options))?;
        published.position = published.position.map(|position| self.position(position));
        if let Some(key) = key {
            lock(&self.results).insert(key, published.clone());
        }
        Ok(published)
    }

    fn read_now(
        &self,
        channel: &ChannelName,
        mut query: HistoryQuery,
        options: HistoryOptions,
    ) -> Result<HistoryPage, backplane::BackplaneError> {
        let options = self.options(options);
        let channel = self.name(channel);
        let asked = query.clone();
        match self.bug {
            Bug::ReverseIsIgnored => query.reverse = false,
            Bug::LimitsAreIgnored => query.limit = query.limit.filter(|&limit| limit == 0),
            _ => {}
        }
        if let Some(since) = &mut query.since {
            match self.bug {
                Bug::CoveredInAnotherEpoch => since.epoch = "".into(),
                Bug::EpochsAreReused => since.epoch = "".into(),
                Bug::SinceIsInclusive => since.offset.0 = since.offset.0.saturating_sub(1),
                _ => {}
            }
        }
        let mut page = done(self.inner.history(&channel, query, options))?;
        if let Some(since) = &asked.since {
            let top = page.top.offset;
            match self.bug {
                Bug::AlwaysCovered => page.covered = true,
                Bug::NeverCovered => page.covered = false,
                Bug::CoveredWhenCutByTheLimit => {
                    let whole = HistoryQuery { limit: None, ..asked.clone() };
                    page.covered = done(self.inner.history(&channel, whole, options))?.covered;
                }
                Bug::CoveredBeyondTheTop => page.covered |= since.offset > top && since.epoch == page.top.epoch,
                Bug::CoveredWhenTrimmed => page.covered |= since.offset < top && since.epoch == page.top.epoch,
                Bug::UnknownEpochsAreRefused => page.covered &= !since.epoch.is_unknown(),
                _ => {}
            }
        } else if self.is(Bug::CoveredWithoutAPosition) {
            page.covered = true;
        }
        page.top = self.position(page.top);
        Ok(page)
    }
}

pub(super) fn done<T>(call: BackplaneFuture<'_, T>) -> Result<T, backplane::BackplaneError> {
    super::ready_at_once(call)
}

/// The sink in front of the suite's, where deliveries are damaged.
struct Damage {
    bug: Bug,
    sink: Arc<dyn Sink>,
    count: AtomicUsize,
    waiting: Mutex<Option<(ChannelName, Delivery)>>,
}

impl Damage {
    fn change(&self, delivery: &mut Delivery) {
        let Delivery::Positioned { epoch, previous, .. } = delivery else { return };
        match (self.bug, &mut *previous) {
            (Bug::PreviousIsOneTooLow, Previous::Known(Offset(offset))) => *offset = offset.saturating_sub(1),
            (Bug::PreviousIsNeverKnown, _) => *previous = Previous::Unknown,
            (Bug::DeliveriesNameAnotherEpoch, _) => *epoch = Epoch::from("another"),
            (Bug::EpochsAreReused, _) => *epoch = Epoch::from("same"),
            _ => {}
        }
    }
}

impl Sink for Damage {
    fn deliver(&self, channel: &ChannelName, mut delivery: Delivery) {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        self.change(&mut delivery);
        let marker = channel.starts_with("marker:");
        match self.bug {
            Bug::EveryTenthDeliveryIsLost if !marker && count % 10 == 9 => {}
            Bug::DeliveriesComeTwice if !marker => {
                self.sink.deliver(channel, delivery.clone());
                self.sink.deliver(channel, delivery);
            }
            Bug::DeliveriesSwapPlaces if !marker => {
                let overtaken = lock(&self.waiting).take();
                if let Some((of, waiting)) = overtaken {
                    self.sink.deliver(channel, delivery);
                    self.sink.deliver(&of, waiting);
                } else {
                    *lock(&self.waiting) = Some((channel.clone(), delivery));
                }
            }
            _ => self.sink.deliver(channel, delivery),
        }
    }

    fn disturbed(&self, disturbance: Disturbance) {
        self.sink.disturbed(disturbance);
    }
}

impl Backplane for Broken {
    fn attach(&self, sink: Arc<dyn Sink>) {
        *lock(&self.sink) = Some(Arc::clone(&sink));
        self.inner.attach(Arc::new(Damage {
            bug: self.bug,
            sink,
            count: AtomicUsize::new(0),
            waiting: Mutex::default(),
        }));
    }

    fn publish<'a>(
        &'a self,
        channel: &'a ChannelName,
        publication: NewPublication,
        options: PublishOptions,
    ) -> BackplaneFuture<'a, Published> {
        let outcome = self.publish_now(channel, publication, options);
        let late = std::mem::take(&mut *lock(&self.late));
        let outcome = done(self.inner.subscribe(&late)).and(outcome);
        Box::pin(ready(outcome))
    }

    fn announce<'a>(&'a self, channel: &'a ChannelName, event: PresenceEvent) -> BackplaneFuture<'a, ()> {
        if self.is(Bug::LeavesAreLost) && matches!(event, PresenceEvent::Leave(_)) {
            return Box::pin(ready(Ok(())));
        }
        if self.is(Bug::PresenceEventsGoEverywhere)
            && let Some(sink) = &*lock(&self.sink)
        {
            sink.deliver(channel, Delivery::Presence(event));
            return Box::pin(ready(Ok(())));
        }
        Box::pin(ready(done(self.inner.announce(&self.name(channel), event))))
    }

    fn subscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        if self.is(Bug::SubscribesTakeEffectLate) {
            lock(&self.late).extend(channels.iter().filter(|name| !name.starts_with("marker:")).cloned());
            return Box::pin(ready(Ok(())));
        }
        let names: Vec<_> = channels.iter().map(|channel| self.name(channel)).collect();
        Box::pin(ready(done(self.inner.subscribe(&names))))
    }

    fn unsubscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        if self.is(Bug::UnsubscribesAreIgnored) {
            return Box::pin(ready(Ok(())));
        }
        let names: Vec<_> = channels.iter().map(|channel| self.name(channel)).collect();
        Box::pin(ready(done(self.inner.unsubscribe(&names))))
    }

    fn history<'a>(
        &'a self,
        channel: &'a ChannelName,
        query: HistoryQuery,
        options: HistoryOptions,
    ) -> BackplaneFuture<'a, HistoryPage> {
        Box::pin(ready(self.read_now(channel, query, options)))
    }

    fn positions<'a>(
        &'a self,
        channels: &'a [(ChannelName, HistoryOptions)],
    ) -> BackplaneFuture<'a, Vec<StreamPosition>> {
        let mut asked: Vec<_> =
            channels.iter().map(|(name, options)| (self.name(name), self.options(*options))).collect();
        if self.is(Bug::PositionsAreSorted) {
            asked.sort_by(|one, other| one.0.cmp(&other.0));
        }
        let tops = done(self.inner.positions(&asked));
        Box::pin(ready(tops.map(|tops| tops.into_iter().map(|top| self.position(top)).collect())))
    }

    fn remove_history<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, ()> {
        match self.bug {
            Bug::RemovalIsIgnored => {}
            Bug::RemovalForgetsTheEpoch => self.inner.forget(),
            _ => return Box::pin(ready(done(self.inner.remove_history(&self.name(channel))))),
        }
        Box::pin(ready(Ok(())))
    }

    fn status(&self) -> Status {
        self.inner.status()
    }
}

impl PresenceStore for Broken {
    fn add_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, ()> {
        let room = self.room(channel);
        let present = done(self.inner.presence(&room));
        if self.is(Bug::PresenceIsNeverReplaced)
            && present.is_ok_and(|members| members.iter().any(|member| member.client == info.client))
        {
            return Box::pin(ready(Ok(())));
        }
        Box::pin(ready(done(self.inner.add_presence(&room, info))))
    }

    fn adopt_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, bool> {
        let room = self.room(channel);
        let adopted = match self.bug {
            Bug::AdoptedEntriesLeave
                if done(self.inner.presence_stats(&room)).is_ok_and(|stats| stats.num_clients > 0) =>
            {
                Ok(true)
            }
            _ => done(self.inner.adopt_presence(&room, info)),
        };
        Box::pin(ready(adopted.map(|adopted| match self.bug {
            Bug::AdoptionIsNotNoticed => false,
            Bug::AdoptionIsAlwaysNoticed => true,
            _ => adopted,
        })))
    }

    fn linger_presence<'a>(
        &'a self,
        channel: &'a ChannelName,
        client: ClientId,
        grace: Duration,
    ) -> BackplaneFuture<'a, ()> {
        let room = self.room(channel);
        let done = match self.bug {
            Bug::LingeringIsIgnored => done(self.inner.linger_presence(&room, client, Duration::ZERO)),
            Bug::LingeringLeavesAreLost => done(self.inner.remove_presence(&room, client)),
            Bug::LingeringNeverEnds => Ok(()),
            _ => done(self.inner.linger_presence(&room, client, grace)),
        };
        Box::pin(ready(done))
    }

    fn remove_presence<'a>(&'a self, channel: &'a ChannelName, client: ClientId) -> BackplaneFuture<'a, ()> {
        if self.is(Bug::PresenceIsNeverRemoved) {
            return Box::pin(ready(Ok(())));
        }
        Box::pin(ready(done(self.inner.remove_presence(&self.room(channel), client))))
    }

    fn presence<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, Vec<Arc<ClientInfo>>> {
        let mut members = done(self.inner.presence(&self.room(channel)));
        if let Ok(members) = members.as_mut()
            && self.is(Bug::PresenceListsAreCut)
        {
            members.truncate(100);
        }
        Box::pin(ready(members))
    }

    fn presence_stats<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, PresenceStats> {
        let room = self.room(channel);
        let mut stats = done(self.inner.presence_stats(&room));
        let members = done(self.inner.presence(&room));
        if let (Bug::AnonymousUsersCountEach, Ok(stats), Ok(members)) = (self.bug, stats.as_mut(), members) {
            let anonymous = members.iter().filter(|info| info.user.is_anonymous()).count();
            stats.num_users += u32::try_from(anonymous.saturating_sub(1)).unwrap_or(u32::MAX);
        }
        Box::pin(ready(stats))
    }
}
