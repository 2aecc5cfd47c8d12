//! The system calls std has no safe form of. This is the only module with `unsafe` in it.
//!
//! Linux only (5.11 or newer, for `epoll_pwait2`): the tool reads `/proc` and pins threads as well.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Readiness of one registered descriptor.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Event(libc::epoll_event);

impl Event {
    /// An unset entry, to fill a list given to [`Epoll::wait`].
    pub const EMPTY: Event = Event(libc::epoll_event { events: 0, u64: 0 });

    /// The token the descriptor was registered with.
    pub fn token(&self) -> u64 {
        self.0.u64
    }

    /// There is something to read, or the peer is gone, which a read will tell.
    pub fn is_readable(&self) -> bool {
        self.0.events & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// The peer has closed its side, or the connection failed: what is left to read ends with that.
    pub fn is_closing(&self) -> bool {
        self.0.events & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// There is room to write, or a connection attempt has ended.
    pub fn is_writable(&self) -> bool {
        self.0.events & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }
}

/// An epoll instance.
pub struct Epoll(OwnedFd);

impl Epoll {
    /// Opens one.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointer is passed; the result is checked before it is used.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: `fd` was just opened and nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Registers a descriptor, edge-triggered for both directions, so that no later call is needed per state change:
    /// the owner reads until a short read and writes until `WouldBlock`. Closing the descriptor ends the registration.
    pub fn add_edge(&self, fd: &impl AsRawFd, token: u64) -> io::Result<()> {
        let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        self.add(fd.as_raw_fd(), interest as u32, token)
    }

    /// Registers a descriptor for reading, level-triggered.
    pub fn add_readable(&self, fd: &impl AsRawFd, token: u64) -> io::Result<()> {
        self.add(fd.as_raw_fd(), libc::EPOLLIN as u32, token)
    }

    fn add(&self, fd: RawFd, interest: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest, u64: token };
        // SAFETY: both descriptors are open for the duration of the call and `event` outlives it.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
        Ok(())
    }

    /// Waits for events, at most for `timeout` (nanosecond resolution), and returns those which came.
    /// An interruption by a signal counts as no event.
    pub fn wait<'e>(&self, events: &'e mut [Event], timeout: Duration) -> io::Result<&'e [Event]> {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        };
        let capacity = events.len().min(i32::MAX as usize) as libc::c_int;
        // The raw call, because glibc before 2.35 has no wrapper for it.
        // SAFETY: `Event` is a transparent `epoll_event`; the kernel writes at most `capacity` of them into the list;
        // the timespec outlives the call, and a null signal mask is allowed.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                capacity,
                &raw const timeout,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        match count {
            0.. => Ok(&events[..count as usize]),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(&[]),
                error => Err(error),
            },
        }
    }
}

/// Nanoseconds of the monotonic clock, which all processes of a machine share: a publisher's stamp can be compared
/// with a receiver's, and no adjustment of the wall clock disturbs it.
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// CPU time used by the calling thread so far, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing. The three clocks used here exist on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The kernel's id of the calling thread, the name of its folder in `/proc/self/task`.
pub fn thread_id() -> i32 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::gettid() }
}

/// Clock ticks per second, the unit of the times in `/proc/PID/stat`.
pub fn ticks_per_second() -> f64 {
    // SAFETY: no pointer is passed.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

/// Binds a thread (0: the calling one) to one core. Threads and processes it starts later inherit that.
pub fn pin_thread(thread: i32, core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("core {core} does not exist")));
    }
    // SAFETY: an all-zero cpu_set_t is the empty set, and `core` was checked against its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        set
    };
    // SAFETY: the set is valid for reading and its true size is passed.
    check(unsafe { libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), &raw const set) })?;
    Ok(())
}

/// The cores a process may run on.
pub fn cores_of(pid: i32) -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is valid for writing and its true size is passed.
    check(unsafe { libc::sched_getaffinity(pid, size_of::<libc::cpu_set_t>(), &raw mut set) })?;
    // SAFETY: every index tested is below the size of the set.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect())
}

/// Lets a socket that is bound to an address choose its port only when it connects, when ports in use towards other
/// destinations do not count.
pub fn choose_port_at_connect(socket: &impl AsRawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which outlives the call and whose true size is passed.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// A signal loadgen sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM: it is asked to end.
    Terminate,
    /// SIGKILL: it ends.
    Kill,
    /// SIGSTOP: it stands still.
    Stop,
    /// SIGCONT: it goes on.
    Continue,
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "process id out of range"))?;
    let number = match signal {
        Signal::Terminate => libc::SIGTERM,
        Signal::Kill => libc::SIGKILL,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
    };
    // SAFETY: no pointer is passed; a process that is gone gives an error.
    check(unsafe { libc::kill(pid, number) })?;
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_is_reported_with_its_token() {
        let (mut near, far) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
        let epoll = Epoll::new().expect("epoll");
        epoll.add_edge(&far, 7).expect("register");
        let mut events = [Event::EMPTY; 4];
        let first = epoll.wait(&mut events, Duration::from_secs(5)).expect("wait");
        assert!(first[0].is_writable() && !first[0].is_readable());
        assert!(epoll.wait(&mut events, Duration::ZERO).expect("wait").is_empty(), "an edge is reported once");
        io::Write::write_all(&mut near, b"x").expect("write");
        let second = epoll.wait(&mut events, Duration::from_secs(5)).expect("wait");
        assert_eq!((second.len(), second[0].token(), second[0].is_readable()), (1, 7, true));
    }

    #[test]
    fn clocks_advance_and_the_process_has_a_core() {
        let before = monotonic_ns();
        assert!(thread_cpu_ns() > 0);
        assert!(monotonic_ns() >= before);
        assert!(!cores_of(0).expect("own affinity").is_empty());
        assert!(pin_thread(0, usize::MAX).is_err());
    }
}
