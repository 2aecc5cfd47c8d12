//! What `/proc` says about processes and the machine.

use std::fs;
use std::io;

use serde::Serialize;

use crate::sys;

/// Memory of a process that is in RAM.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Memory {
    /// Resident set size in bytes.
    pub rss_bytes: u64,
    /// Resident bytes with shared pages divided among their users; absent where the kernel does not let us read it.
    pub pss_bytes: Option<u64>,
}

/// CPU time of a process (user and system, all threads, dead ones included) in seconds. The kernel counts in ticks of
/// usually 10 ms, so a difference is only worth quoting over a second or more.
pub fn process_cpu_seconds(pid: u32) -> io::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = parse_stat_ticks(&text).ok_or_else(|| unreadable("stat"))?;
    Ok(ticks as f64 / sys::ticks_per_second())
}

fn parse_stat_ticks(text: &str) -> Option<u64> {
    // The second field is the command in parentheses and may hold spaces; what follows the last one is regular.
    let rest = &text[text.rfind(')')? + 1..];
    // utime and stime are fields 14 and 15, so 12th and 13th of the rest, which starts with field 3.
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Memory of a process: proportional where `smaps_rollup` is readable (own processes), otherwise only resident.
pub fn process_memory(pid: u32) -> io::Result<Memory> {
    if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        && let Some(rss_bytes) = parse_kib_line(&text, "Rss:")
    {
        return Ok(Memory { rss_bytes, pss_bytes: parse_kib_line(&text, "Pss:") });
    }
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss_bytes = parse_kib_line(&text, "VmRSS:").ok_or_else(|| unreadable("status"))?;
    Ok(Memory { rss_bytes, pss_bytes: None })
}

/// Resident bytes of a process by the kernel's running count: cheap to read often, also of a large process, and a little
/// coarser than [`process_memory`].
pub fn resident_bytes(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse_kib_line(&text, "VmRSS:").ok_or_else(|| unreadable("status"))
}

/// Whether a process runs. One that has ended and is not waited for yet does not.
pub fn is_running(pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = text.rfind(')').and_then(|at| text[at + 1..].trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

fn parse_kib_line(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// How long the calling thread was ready to run but had no core, in nanoseconds so far. None on kernels without
/// scheduler statistics.
pub fn own_run_delay_ns() -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/task/{}/schedstat", sys::thread_id())).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The threads of a process.
pub fn threads_of(pid: u32) -> io::Result<Vec<i32>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(thread) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            threads.push(thread);
        }
    }
    Ok(threads)
}

/// Ticks spent by each core since boot.
#[derive(Clone, Debug, Default)]
pub struct CoreTimes(Vec<(usize, u64, u64)>);

impl CoreTimes {
    /// Reads the counters; empty where `/proc/stat` is not readable.
    pub fn now() -> Self {
        Self::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut cores = Vec::new();
        for line in text.lines() {
            let mut fields = line.split_ascii_whitespace();
            let Some(core) = fields.next().and_then(|name| name.strip_prefix("cpu")).and_then(|core| core.parse().ok())
            else {
                continue;
            };
            // user nice system idle iowait irq softirq steal; guest times are already part of user.
            let ticks: Vec<u64> = fields.take(8).filter_map(|field| field.parse().ok()).collect();
            let total: u64 = ticks.iter().sum();
            let idle = ticks.get(3).copied().unwrap_or(0) + ticks.get(4).copied().unwrap_or(0);
            cores.push((core, total - idle, total));
        }
        Self(cores)
    }

    /// The busiest of the named cores since `earlier`, as (core, share of time it was not idle).
    pub fn busiest_since(&self, earlier: &CoreTimes, cores: &[usize]) -> Option<(usize, f64)> {
        let share = |(core, busy, total): &(usize, u64, u64)| {
            let (_, busy_then, total_then) = earlier.0.iter().find(|(other, ..)| other == core)?;
            let elapsed = total.saturating_sub(*total_then);
            (elapsed > 0 && cores.contains(core))
                .then(|| (*core, busy.saturating_sub(*busy_then) as f64 / elapsed as f64))
        };
        self.0.iter().filter_map(share).max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// What a figure must be quoted with.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// Model of the first processor.
    pub cpu: String,
    /// Cores that are online.
    pub cores: usize,
    /// RAM in bytes.
    pub memory_bytes: u64,
}

impl Machine {
    /// Reads the facts; what is unreadable is left empty.
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = text("/proc/cpuinfo");
        let model = cpuinfo.lines().find(|line| line.starts_with("model name") || line.starts_with("CPU part"));
        Self {
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: model.and_then(|line| line.split_once(':')).map_or(String::new(), |(_, name)| name.trim().to_owned()),
            cores: CoreTimes::now().0.len(),
            memory_bytes: parse_kib_line(&text("/proc/meminfo"), "MemTotal:").unwrap_or(0),
        }
    }
}

fn unreadable(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's `{file}` has an unknown form"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_survives_a_command_with_spaces_and_parentheses() {
        let line = "42 (a (b) c) S 1 42 42 0 -1 4194560 900 0 0 0 37 5 0 0 20 0 3 0 100 0 0";
        assert_eq!(parse_stat_ticks(line), Some(42));
        assert_eq!(parse_stat_ticks("42 (short) S 1"), None);
    }

    #[test]
    fn memory_lines_are_kibibytes() {
        let rollup = "00-ff ---p 00000000 00:00 0 [rollup]\nRss:    12 kB\nPss:     8 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(parse_kib_line(rollup, "Rss:"), Some(12 * 1024));
        assert_eq!(parse_kib_line(rollup, "Pss:"), Some(8 * 1024));
        assert_eq!(parse_kib_line(rollup, "Swap:"), None);
    }

    #[test]
    fn the_busiest_core_is_taken_among_the_named_ones() {
        let before = CoreTimes::parse("cpu 0 0 0 0\ncpu0 100 0 0 900 0 0 0 0\ncpu1 0 0 0 1000 0 0 0 0\n");
        let after = CoreTimes::parse("cpu 0 0 0 0\ncpu0 190 0 0 910 0 0 0 0\ncpu1 30 0 0 1060 10 0 0 0\n");
        assert_eq!(after.busiest_since(&before, &[0, 1]), Some((0, 0.9)));
        assert_eq!(after.busiest_since(&before, &[1]), Some((1, 0.3)));
        assert_eq!(after.busiest_since(&before, &[7]), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let own = std::process::id();
        assert!(process_memory(own).expect("own memory").rss_bytes > 0);
        assert!(resident_bytes(own).expect("own memory") > 0);
        assert!(is_running(own) && !is_running(u32::MAX));
        assert!(process_cpu_seconds(own).expect("own CPU time") >= 0.0);
        assert!(!threads_of(own).expect("own threads").is_empty());
        assert!(!Machine::read().kernel.is_empty());
    }
}
