//! Keeps asking for the lease, and renews it while it is held.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use tokio::sync::watch;

use super::election::{Election, Step, Tenure, pause};
use super::record::{Draft, Record};
use crate::api::{Api, CallError};
use crate::settings::{Settings, Timing};
use crate::status::count;

/// After somebody else was first it is looked again this soon, at most: what is there now must be known.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A candidate.
pub(crate) struct Campaign {
    api: Api,
    leases: kube::Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
    election: Election,
    acquired_at: Timestamp,
    failures: u32,
    tenure: watch::Sender<Option<Tenure>>,
}

/// What happened to a step.
enum Outcome {
    /// It was carried out, or there was nothing to do.
    Done,
    /// Somebody else was first.
    Overtaken,
    /// The server is away, or does not want it.
    Failed,
}

impl Campaign {
    /// `tenure` always says what this candidate may do. `identity` is unique to this process.
    pub(crate) fn new(api: Api, settings: &Settings, identity: &str, tenure: watch::Sender<Option<Tenure>>) -> Self {
        Self {
            leases: kube::Api::namespaced(api.client(), api.namespace()),
            api,
            name: settings.lease.clone(),
            identity: identity.to_owned(),
            timing: settings.timing,
            election: Election::new(identity.to_owned(), settings.timing),
            acquired_at: Timestamp::UNIX_EPOCH,
            failures: 0,
            tenure,
        }
    }

    /// Runs until dropped, or until a permission turns out to be missing. `found` tells of terms on what is written.
    pub(crate) async fn run(&mut self, mut found: watch::Receiver<u32>) -> CallError {
        loop {
            self.election.found_term(*found.borrow_and_update());
            let rest = match self.round().await {
                Ok(Outcome::Overtaken) => LOOK_AGAIN.mul_f64(rand::random()),
                Ok(Outcome::Done) => {
                    self.failures = 0;
                    self.rest()
                }
                Ok(Outcome::Failed) => {
                    self.failures = self.failures.saturating_add(1);
                    self.rest()
                }
                Err(forbidden) => {
                    self.publish();
                    return forbidden;
                }
            };
            self.publish();
            // The end of the tenure is told on time, also when nothing is to be done then.
            let until = self.election.tenure(Instant::now()).map(|tenure| tenure.until);
            let left = until.map_or(rest, |until| until.saturating_duration_since(Instant::now()).min(rest));
            tokio::select! {
                () = tokio::time::sleep(left) => self.publish(),
                _ = found.changed() => {}
            }
        }
    }

    fn rest(&self) -> Duration {
        let now = Instant::now();
        let usual = pause(&self.timing, self.election.tenure(now).is_some(), self.failures, rand::random());
        match self.election.due() {
            // The holder may be gone by then; not all candidates look at the same moment.
            Some(due) if self.failures == 0 => {
                usual.min(due.saturating_duration_since(now) + LOOK_AGAIN.mul_f64(rand::random()))
            }
            _ => usual,
        }
    }

    /// Looks, unless the lease is held, and does what is due. The error: not permitted.
    async fn round(&mut self) -> Result<Outcome, CallError> {
        if self.election.tenure(Instant::now()).is_none() {
            let lease = match self.api.call(None, self.leases.get(&self.name)).await {
                Ok(lease) => Some(lease),
                Err(CallError::NotFound) => None,
                Err(error) => return failed(error),
            };
            self.election.observe(Instant::now(), lease.as_ref().map(Record::read));
            self.publish();
        }
        let now = Instant::now();
        let (version, term) = match self.election.step(now) {
            Step::Wait => return Ok(Outcome::Done),
            Step::Create(term) => (None, term),
            Step::Replace { version, term, is_renewal } => {
                if !is_renewal {
                    self.acquired_at = Timestamp::now();
                }
                (Some(version), term)
            }
        };
        if version.is_none() {
            self.acquired_at = Timestamp::now();
        }
        match self.write(version.as_deref(), term, Some(&self.identity)).await {
            Ok(lease) => {
                self.election.written(now, Instant::now(), Record::read(&lease));
                Ok(Outcome::Done)
            }
            Err(CallError::Conflict) => {
                self.election.refused();
                Ok(Outcome::Overtaken)
            }
            Err(CallError::NotFound) => {
                self.election.observe(Instant::now(), None);
                Ok(Outcome::Overtaken)
            }
            Err(error) => failed(error),
        }
    }

    async fn write(&self, version: Option<&str>, term: u32, holder: Option<&str>) -> Result<Lease, CallError> {
        let draft = Draft {
            name: &self.name,
            version,
            holder,
            duration: self.timing.duration,
            term,
            acquired_at: self.acquired_at,
        };
        let lease = draft.lease(Timestamp::now());
        let params = PostParams::default();
        match version {
            None => self.api.call(None, self.leases.create(&params, &lease)).await,
            Some(_) => self.api.call(None, self.leases.replace(&self.name, &params, &lease)).await,
        }
    }

    /// Gives the lease up, if it is held, so that nobody has to wait for it to run out.
    pub(crate) async fn release(&mut self) {
        let Some((version, term)) = self.election.resign() else { return };
        self.tenure.send_replace(None);
        self.api.health().is_writer.store(false, Relaxed);
        let mut released = self.write(Some(&version), term, None).await.map(drop);
        if released == Err(CallError::Conflict) {
            released = self.release_anew(term).await;
        }
        match released {
            Ok(()) => tracing::info!(term, "this node has handed over: another one may write the open set now"),
            Err(error) => tracing::info!(term, %error, "the lease was not released; others wait until it runs out"),
        }
    }

    /// A renewal that was broken off may have changed the version.
    async fn release_anew(&self, term: u32) -> Result<(), CallError> {
        let record = Record::read(&self.api.call(None, self.leases.get(&self.name)).await?);
        if record.holder.as_ref() != Some(&self.identity) {
            return Ok(());
        }
        self.write(Some(&record.version), record.term.max(term), None).await.map(drop)
    }

    /// Tells what this candidate may do now.
    fn publish(&mut self) {
        let now = self.election.tenure(Instant::now());
        let before = self.tenure.send_replace(now);
        let health = self.api.health();
        health.is_writer.store(now.is_some(), Relaxed);
        match (before, now) {
            (None, Some(tenure)) => {
                count(&health.leases_taken);
                health.term.store(tenure.term, Relaxed);
                tracing::info!(term = tenure.term, "this node writes the open set now");
            }
            (Some(tenure), None) => {
                count(&health.leases_lost);
                // Those of a holder, who tries often, say nothing about how often a candidate should.
                self.failures = 0;
                tracing::info!(term = tenure.term, "this node does not write the open set any more");
            }
            (_, Some(tenure)) => health.term.store(tenure.term, std::sync::atomic::Ordering::Relaxed),
            (None, None) => {}
        }
    }
}

fn failed(error: CallError) -> Result<Outcome, CallError> {
    match error {
        CallError::Forbidden(_) => Err(error),
        CallError::Invalid(why) | CallError::Refused(why) => {
            tracing::debug!(why, "the lease cannot be written");
            Ok(Outcome::Failed)
        }
        CallError::Unavailable(_) | CallError::Conflict | CallError::NotFound | CallError::Ended => Ok(Outcome::Failed),
    }
}

impl Drop for Campaign {
    /// Whoever does not campaign does not hold.
    fn drop(&mut self) {
        self.election.resign();
        self.tenure.send_replace(None);
    }
}
