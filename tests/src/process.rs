//! Signals to processes that a test has started.

use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// What a child is called.
pub(crate) fn id(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a process id fits"))
}

/// Signals a child that was not waited for.
pub(crate) fn signal(child: Pid, signal: Signal) {
    kill(child, signal).expect("a child that was not waited for can be signalled");
}

/// Stops a child, and returns when all of it stands still: `kill` returns when the signal is on its way, and each thread
/// stops by itself. The last of them has the parent told.
pub(crate) fn stop(child: Pid) {
    signal(child, Signal::SIGSTOP);
    let told = waitid(Id::Pid(child), WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    assert!(matches!(told, Ok(WaitStatus::Stopped(..))), "the process does not stand still: {told:?}");
}
