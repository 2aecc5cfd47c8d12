//! Ports for programs that do not choose one themselves.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Below those which the operating system gives to outgoing connections: one of these could have a server's port when it
/// starts again, or be connected to itself while the server is away.
const FIRST: u16 = 10_000;

const COUNT: u16 = 10_000;

/// A loopback port that nobody listens on. No other call of this process gets it, until all were given.
///
/// # Panics
///
/// When there is none.
pub fn free_port() -> u16 {
    static GIVEN: AtomicUsize = AtomicUsize::new(0);
    // Far from where the process before has begun, some of whose servers may be ending yet.
    let start = std::process::id() as usize * 101;
    let next = || {
        let place = (start + GIVEN.fetch_add(1, Ordering::Relaxed)) % usize::from(COUNT);
        FIRST + u16::try_from(place).expect("less than the count")
    };
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    std::iter::repeat_with(next).take(usize::from(COUNT)).find(is_free).expect("a free port")
}
