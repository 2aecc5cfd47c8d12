//! What tests with real server processes have in common: free ports, waiting, signals, certificates ([`authority`]), a
//! connection that can be cut ([`link`]), and a node that records what it is told ([`node`]).

// Each test target uses a part of this.
#![allow(dead_code)]

pub mod authority;
pub mod link;
pub mod node;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use rand::Rng;

/// A port below those which the operating system gives to outgoing connections: one of these could have the server's port
/// when it starts again, or be connected to itself while the server is away. No other call of this process gets it.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let ports = std::iter::repeat_with(|| rand::rng().random_range(10_000..32_000)).take(1_000);
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let is_new = |port: &u16| GIVEN.lock().expect("no holder panics").insert(*port);
    ports.into_iter().find(|port| is_free(port) && is_new(port)).expect("a free port")
}

/// Waits until `is_so`.
#[expect(clippy::disallowed_methods, reason = "servers do not say when they agree, so they are asked again and again")]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Signals a process that the test has started.
pub fn signal(pid: u32, signal: Signal) {
    kill(process(pid), signal).expect("the server is running");
}

/// Stops a process that the test has started, and returns when all of it stands still: `kill` returns when the signal is
/// on its way, and each thread stops by itself. The last of them has the parent told.
pub fn stop(pid: u32) {
    signal(pid, Signal::SIGSTOP);
    let told = waitid(Id::Pid(process(pid)), WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    assert!(matches!(told, Ok(WaitStatus::Stopped(..))), "the server does not stand still: {told:?}");
}

fn process(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a process id"))
}

/// A runtime for one test.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}
