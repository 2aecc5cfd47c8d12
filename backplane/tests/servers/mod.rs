//! What tests with real server processes have in common: free ports, waiting, certificates ([`authority`]), a connection
//! that can be cut ([`link`]), and a node that records what it is told ([`node`]).

// Each test target uses a part of this.
#![allow(dead_code)]

pub mod authority;
pub mod link;
pub mod node;

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;

/// A port below those which the operating system gives to outgoing connections: one of these could have the server's port
/// when it starts again, or be connected to itself while the server is away.
pub fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| rand::rng().random_range(10_000..32_000)).take(1_000);
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    ports.into_iter().find(is_free).expect("a free port")
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
    let pid = i32::try_from(pid).expect("a process id");
    kill(Pid::from_raw(pid), signal).expect("the server is running");
}

/// A runtime for one test.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}
