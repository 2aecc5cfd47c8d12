//! What this process uses, as the kernel counts it.

use std::fs;

/// Clock ticks in a second as `/proc` counts them: 100 in the interface of Linux to programs, whatever the kernel uses.
const TICKS_PER_SECOND: f64 = 100.0;

/// Use so far; zeros where `/proc` cannot be read.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Usage {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors: each connection is one.
    pub descriptors: usize,
}

impl Usage {
    /// Reads it, which is a copy from the kernel's memory and does not wait for a disk.
    pub fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (stat, status) = (read("/proc/self/stat"), read("/proc/self/status"));
        Self { descriptors: descriptors(), ..Self::of(&stat, &status) }
    }

    fn of(stat: &str, status: &str) -> Self {
        Self {
            cpu_seconds: cpu_seconds(stat).unwrap_or_default(),
            resident_bytes: number(status, "VmRSS:").unwrap_or_default() * 1024,
            threads: number(status, "Threads:").unwrap_or_default(),
            descriptors: 0,
        }
    }
}

/// The size of this directory is the number of its entries on Linux 6.2 and newer, which spares listing 100,000 of them.
fn descriptors() -> usize {
    let size = fs::metadata("/proc/self/fd").map_or(0, |directory| directory.len());
    if size > 0 {
        return usize::try_from(size).unwrap_or(usize::MAX);
    }
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// User and system time in `/proc/self/stat`: the 14th and 15th field. The second is the program's name in brackets,
/// which may hold anything, so fields are counted from its end.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

/// The number after a name in `/proc/self/status`; sizes are in kilobytes there.
fn number(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 99 0 0 0 250 150 8 9 20 0 1 0 100 1 2";
        assert_eq!(cpu_seconds(stat), Some(4.0));
        let status = "Name:\tgateway\nVmRSS:\t    1234 kB\nThreads:\t5\n";
        assert_eq!((number(status, "VmRSS:"), number(status, "Threads:")), (Some(1234), Some(5)));
        for text in ["", "7 (a", "7 (a) S 1", "VmRSS:", "VmRSS: x kB"] {
            assert_eq!((cpu_seconds(text), number(text, "VmRSS:")), (None, None), "{text}");
        }
    }

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::now();
        assert!(usage.resident_bytes > 0 && usage.threads >= 1, "{usage:?}");
        let before = usage.descriptors;
        let held = std::fs::File::open("/proc/self/stat").expect("it is readable");
        assert!(Usage::now().descriptors > before, "one more than {before}");
        drop(held);
    }
}
