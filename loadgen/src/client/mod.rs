//! The client side of every scenario: connections that subscribe, receive and audit, and publishers.
//!
//! In reading order: [`plan`] says what is to be done, [`worker`] does it on one thread per core, `receive` is its hot
//! path, `reconnect` the edges of a connection, `publisher` keeps to the schedule, [`nodes`] are the servers and the choice
//! among them, [`presence`] judges join and leave events, [`shared`] is how a scenario follows the run.

pub mod nodes;
pub mod plan;
pub mod presence;
mod publisher;
mod receive;
mod reconnect;
pub mod shared;
pub mod socket;
pub mod worker;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;

use crate::audit::{Findings, Ledger, Outcome};
use crate::timeline::Timeline;
use plan::{Plan, Publishing};
use presence::Seen;
use shared::{Reasons, Shared, microseconds};
use worker::{Busy, Harvest, Published, Tally, Worker};

/// Descriptors a client needs beside those of its connections.
const SPARE_DESCRIPTORS: u64 = 64;

/// Raises the limit on open files to what the system allows, and checks that it is enough.
pub fn allow_descriptors(connections: usize) -> Result<()> {
    let needed = connections as u64 + SPARE_DESCRIPTORS;
    let allowed = rlimit::increase_nofile_limit(u64::MAX).context("cannot read the limit on open files")?;
    if allowed < needed {
        let max = allowed.saturating_sub(SPARE_DESCRIPTORS);
        bail!(
            "{connections} connections need {needed} open files, but the hard limit is {allowed}: use -n {max} or fewer"
        );
    }
    Ok(())
}

/// A run that has started.
pub struct Client {
    /// What it does.
    pub plan: Arc<Plan>,
    /// How far it is.
    pub shared: Arc<Shared>,
    threads: Vec<JoinHandle<Harvest>>,
}

impl Client {
    /// Starts the workers, which begin to connect at once.
    pub fn start(plan: Plan) -> Result<Self> {
        allow_descriptors(plan.layout.connections() + plan.schedule.publishers as usize)?;
        let plan = Arc::new(plan);
        let shared = Arc::new(Shared::new(plan.threads));
        let connections = plan.layout.connections();
        let bound = |index: usize| connections * index / plan.threads;
        let start = |index: usize| -> io::Result<JoinHandle<Harvest>> {
            let worker = Worker::new(plan.clone(), shared.clone(), index, bound(index), bound(index + 1))?;
            std::thread::Builder::new().name(format!("client-{index}")).spawn(move || worker.run())
        };
        let threads = (0..plan.threads).map(start).collect::<io::Result<_>>().context("cannot start a worker")?;
        Ok(Self { plan, shared, threads })
    }

    /// Waits for the workers, which must have been told to stop, and closes the books.
    pub fn finish(self) -> Result<Results> {
        let mut harvests = Vec::new();
        for thread in self.threads {
            harvests.push(thread.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?);
        }
        let published = harvests.iter_mut().find_map(|harvest| harvest.published.take());
        let schedule = self.plan.schedule;
        let published = published.unwrap_or_else(|| Published {
            // The physical-limit server counts failed sends itself; all it was to send is due here.
            outcomes: match self.plan.publishing {
                Publishing::Peer => vec![Outcome::Acknowledged; schedule.total as usize],
                Publishing::Nobody | Publishing::Api { .. } | Publishing::WebSocket { .. } => Vec::new(),
            },
            ack_us: microseconds(),
            failures: Reasons::default(),
            timeline: Timeline::new(self.shared.origin_ns),
            last_trouble_ns: 0,
        });
        let Published { outcomes, ack_us, failures, timeline, last_trouble_ns } = published;
        let ledger = Ledger::new(schedule, &outcomes);
        let mut presence = Seen::default();
        for harvest in &mut harvests {
            let subscriptions = self.plan.layout.channels_between(harvest.first, self.plan.layout.connections());
            presence.add(std::mem::take(&mut harvest.events), |subscription| subscriptions[subscription]);
        }
        let mut harvests = harvests.into_iter();
        let first = harvests.next().context("a client has at least one worker")?;
        let mut results = Results {
            findings: first.audit.finish(&ledger),
            busy: vec![first.tally.busy],
            tally: first.tally,
            presence,
            acknowledged: outcomes.iter().filter(|outcome| **outcome == Outcome::Acknowledged).count() as u64,
            failed: outcomes.iter().filter(|outcome| **outcome == Outcome::Failed).count() as u64,
            ack_us,
            failures,
        };
        results.tally.timeline.add(&timeline);
        results.tally.last_trouble_ns = results.tally.last_trouble_ns.max(last_trouble_ns);
        for harvest in harvests {
            results.findings.add(&harvest.audit.finish(&ledger));
            results.busy.push(harvest.tally.busy);
            results.tally.add(harvest.tally);
        }
        if let Some(reason) = &results.tally.broken {
            bail!("the run broke off: {reason}");
        }
        Ok(results)
    }
}

/// What a run found.
pub struct Results {
    /// The audit.
    pub findings: Findings,
    /// Join and leave events that subscribers saw.
    pub presence: Seen,
    /// Counts and histograms of all workers.
    pub tally: Tally,
    /// How busy each worker was while the schedule ran.
    pub busy: Vec<Busy>,
    /// Messages whose publish was acknowledged.
    pub acknowledged: u64,
    /// Messages sent whose publish was refused or not answered.
    pub failed: u64,
    /// From the intended send time to the answer.
    pub ack_us: Histogram<u64>,
    /// Why publishes failed.
    pub failures: Reasons,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.connect_us.add(&other.connect_us).expect("the histograms have the same bounds");
        self.latency_us.add(&other.latency_us).expect("the histograms have the same bounds");
        self.refused.merge(&other.refused);
        self.lost.merge(&other.lost);
        self.cuts.merge(&other.cuts);
        self.failed_attempts.merge(&other.failed_attempts);
        for (own, others) in [
            (&mut self.reconnect_us, &other.reconnect_us),
            (&mut self.cut_to_connect_us, &other.cut_to_connect_us),
            (&mut self.cut_to_live_us, &other.cut_to_live_us),
        ] {
            own.add(others).expect("the histograms have the same bounds");
        }
        self.recovered += other.recovered;
        self.not_recovered += other.not_recovered;
        self.client_kept += other.client_kept;
        self.client_changed += other.client_changed;
        self.last_trouble_ns = self.last_trouble_ns.max(other.last_trouble_ns);
        self.away.extend(&other.away);
        self.timeline.add(&other.timeline);
        self.resumed += other.resumed;
        self.pings += other.pings;
        self.foreign += other.foreign;
        self.received_bytes += other.received_bytes;
        self.reads += other.reads;
        self.message_bytes += other.message_bytes;
        self.last_delivery_ns = self.last_delivery_ns.max(other.last_delivery_ns);
        self.broken = self.broken.take().or(other.broken);
    }
}
