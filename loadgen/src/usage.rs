//! What a run cost: CPU and memory of the server, and whether the client had enough CPU itself.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::client::worker::Busy;
use crate::procfs::{self, CoreTimes, Memory};
use crate::sys;

/// The share of time over which a client counts as too busy.
const BUSY_MAX: f64 = 0.9;

/// Watches a server process.
pub struct ServerMeter {
    pid: u32,
    from_ns: u64,
    cpu_seconds: f64,
    memory: Memory,
}

/// What a server used during a run.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct ServerUsage {
    /// CPU time, user and system.
    pub cpu_seconds: f64,
    /// CPU time by wall-clock time; 1 is one core.
    pub cpu_share: f64,
    /// Memory before.
    pub memory_before: Memory,
    /// Memory after.
    pub memory_after: Memory,
}

impl ServerMeter {
    /// Starts to watch.
    pub fn start(pid: u32) -> Result<Self> {
        let context = || format!("cannot read /proc of the server process {pid}");
        Ok(Self {
            pid,
            from_ns: sys::monotonic_ns(),
            cpu_seconds: procfs::process_cpu_seconds(pid).with_context(context)?,
            memory: procfs::process_memory(pid).with_context(context)?,
        })
    }

    /// What was used since the start.
    pub fn read(&self) -> Result<ServerUsage> {
        let context = || format!("the server process {} is gone", self.pid);
        let cpu_seconds = procfs::process_cpu_seconds(self.pid).with_context(context)? - self.cpu_seconds;
        let wall = (sys::monotonic_ns() - self.from_ns) as f64 / 1e9;
        Ok(ServerUsage {
            cpu_seconds,
            cpu_share: cpu_seconds / wall.max(1e-9),
            memory_before: self.memory,
            memory_after: procfs::process_memory(self.pid).with_context(context)?,
        })
    }
}

impl ServerUsage {
    /// Resident bytes added per unit, such as a connection.
    pub fn rss_bytes_per(&self, units: u64) -> f64 {
        difference(self.memory_before.rss_bytes, self.memory_after.rss_bytes) / units.max(1) as f64
    }

    /// Proportional bytes added per unit, where they can be read.
    pub fn pss_bytes_per(&self, units: u64) -> Option<f64> {
        let (before, after) = self.memory_before.pss_bytes.zip(self.memory_after.pss_bytes)?;
        Some(difference(before, after) / units.max(1) as f64)
    }

    /// CPU time per unit, in microseconds.
    pub fn cpu_us_per(&self, units: u64) -> f64 {
        self.cpu_seconds * 1e6 / units.max(1) as f64
    }
}

fn difference(before: u64, after: u64) -> f64 {
    after as f64 - before as f64
}

/// The client's own load while the schedule ran.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct ClientUsage {
    /// CPU time of all workers.
    pub cpu_seconds: f64,
    /// CPU time of the busiest worker by wall-clock time.
    pub busy_share: f64,
    /// Share of time that worker was ready to run but had no core: others used it. Absent where the kernel does not say.
    pub starved_share: Option<f64>,
    /// The busiest of the cores the client may run on. It may have been busy with others' work.
    pub busiest_core: Option<usize>,
    /// Its share of time not idle.
    pub busiest_core_share: Option<f64>,
}

impl ClientUsage {
    /// Puts together what the workers and the kernel counted.
    pub fn new(workers: &[Busy], before: &CoreTimes, after: &CoreTimes) -> Self {
        let share = |busy: &Busy, ns: u64| ns as f64 / busy.wall_ns.max(1) as f64;
        let demand = |busy: &Busy| share(busy, busy.cpu_ns + busy.run_delay_ns.unwrap_or(0));
        let worst = workers.iter().max_by(|a, b| demand(a).total_cmp(&demand(b))).copied().unwrap_or_default();
        let cores = sys::cores_of(0).unwrap_or_default();
        let busiest = after.busiest_since(before, &cores);
        Self {
            cpu_seconds: workers.iter().map(|busy| busy.cpu_ns).sum::<u64>() as f64 / 1e9,
            busy_share: share(&worst, worst.cpu_ns),
            starved_share: worst.run_delay_ns.map(|delay| share(&worst, delay)),
            busiest_core: busiest.map(|(core, _)| core),
            busiest_core_share: busiest.map(|(_, share)| share),
        }
    }

    /// The client could not keep up for certain, so what it measured is not the server. It counts what a worker ran and
    /// what it waited for a core; where the kernel does not tell the latter, the load of the core stands in for it.
    pub fn is_void(&self) -> bool {
        let starved = match self.starved_share {
            Some(share) => self.busy_share + share,
            None => self.busiest_core_share.unwrap_or(0.0).max(self.busy_share),
        };
        starved > BUSY_MAX
    }

    /// One line of a table.
    pub fn line(&self) -> String {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let starved =
            self.starved_share.map_or(String::new(), |share| format!(", waiting for a core {}", percent(share)));
        let core = self.busiest_core.zip(self.busiest_core_share);
        let core = core.map_or(String::new(), |(core, share)| format!(", core {core} busy {}", percent(share)));
        format!("{:.2} s CPU, busiest worker {}{starved}{core}", self.cpu_seconds, percent(self.busy_share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(cpu_ns: u64, run_delay_ns: Option<u64>) -> ClientUsage {
        let idle = Busy { wall_ns: 1000, cpu_ns: 0, run_delay_ns: Some(0) };
        let busy = Busy { wall_ns: 1000, cpu_ns, run_delay_ns };
        ClientUsage::new(&[idle, busy], &CoreTimes::default(), &CoreTimes::default())
    }

    #[test]
    fn a_client_that_ran_or_waited_for_its_core_all_the_time_is_void() {
        assert!(usage(950, Some(0)).is_void());
        assert!(usage(500, Some(450)).is_void());
        assert!(usage(950, None).is_void());
        assert!(!usage(850, Some(40)).is_void());
        assert!(!usage(500, None).is_void());
    }

    #[test]
    fn memory_per_connection_may_be_negative_when_the_server_gave_some_back() {
        let memory = |bytes| Memory { rss_bytes: bytes, pss_bytes: None };
        let usage =
            ServerUsage { cpu_seconds: 1.5, cpu_share: 0.5, memory_before: memory(3000), memory_after: memory(1000) };
        assert_eq!((usage.rss_bytes_per(2), usage.pss_bytes_per(2), usage.cpu_us_per(3)), (-1000.0, None, 500_000.0));
    }

    #[test]
    fn this_process_can_be_metered() {
        let meter = ServerMeter::start(std::process::id()).expect("own process");
        assert!(meter.read().expect("still there").cpu_seconds >= 0.0);
        assert!(ServerMeter::start(u32::MAX).is_err());
    }
}
