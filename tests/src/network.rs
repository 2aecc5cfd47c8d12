//! Machines with addresses of their own, on one switch: network namespaces of the kernel, for what loopback cannot show.
//! They go with the test, however it ends.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::marker::PhantomData;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Command, Stdio};

use apiserver::proxy::install;
use nix::sched::{CloneFlags, setns};

use crate::DEADLINE;

/// The address of the machine that the test itself is on.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

/// The bridge that is the switch, and the interface at [`HERE`].
const SWITCH: &str = "switch";

/// What every kind of rule that tests need is made of: where it is not permitted, or `nft` is not there, this fails.
const PROBE: &str = "table ip probe {\n chain c {\n type nat hook output priority -100;\n }\n}\n";

/// A network. While it is there the thread that made it is on a machine of it, at [`HERE`]: what it connects to, listens on
/// and starts is there, and nothing of it can be seen from the machine outside.
pub struct Network {
    // Left before it is removed.
    _stay: Stay,
    here: Namespace,
}

/// A machine of a [`Network`]. Processes on it should end before it does.
pub struct Machine {
    namespace: Namespace,
    address: Ipv4Addr,
}

impl Network {
    /// Makes one with the switch and the machine at [`HERE`].
    ///
    /// # Errors
    ///
    /// With the reason, where this is not permitted or not possible.
    pub fn make() -> Result<Self, String> {
        // Tests that run at the same time, or were killed before, have other names.
        let random = RandomState::new().hash_one(std::process::id());
        let here = Namespace::make(format!("evenkeel-{random:016x}"))?;
        here.run(&format!("link add {SWITCH} type bridge"))?;
        here.run(&format!("address add {HERE}/24 dev {SWITCH}"))?;
        here.run(&format!("link set {SWITCH} up"))?;
        for script in [PROBE, "delete table ip probe\n"] {
            install(here.name(), script).map_err(|error| format!("nft: {error}"))?;
        }
        let stay = Stay::begin(here.name()).map_err(|error| format!("setns: {error}"))?;
        Ok(Self { _stay: stay, here })
    }

    /// One more machine, at this address of the network of [`HERE`]. What is not in this network it sends to [`HERE`],
    /// unless its own rules say something else.
    ///
    /// # Panics
    ///
    /// When it cannot be made, as by a second one at this address.
    pub fn machine(&self, address: Ipv4Addr) -> Machine {
        let [.., last] = address.octets();
        let made = || {
            let namespace = Namespace::make(format!("{}-{last}", self.here.name()))?;
            let port = format!("port{last}");
            self.here.run(&format!("link add {port} type veth peer name eth0 netns {}", namespace.name()))?;
            self.here.run(&format!("link set {port} master {SWITCH} up"))?;
            namespace.run(&format!("address add {address}/24 dev eth0"))?;
            namespace.run("link set eth0 up")?;
            namespace.run(&format!("route add default via {HERE}"))?;
            Ok(namespace)
        };
        let namespace = made().unwrap_or_else(|error: String| panic!("no machine at {address}: {error}"));
        Machine { namespace, address }
    }
}

impl Machine {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The name of its network namespace, as `ip netns` knows it.
    pub fn netns(&self) -> &str {
        self.namespace.name()
    }

    /// Does something on this machine: sockets that it opens and processes that it starts are there, and stay there.
    ///
    /// # Panics
    ///
    /// When the thread cannot go there.
    pub fn inside<T>(&self, act: impl FnOnce() -> T) -> T {
        let _stay = Stay::begin(self.netns()).expect("a namespace that is there can be entered");
        act()
    }

    /// A TCP connection from this machine. Waits for it with the thread, which takes no time to speak of between machines
    /// of one kernel.
    ///
    /// # Errors
    ///
    /// When it is refused, or nobody answers by [`DEADLINE`].
    pub fn connect(&self, to: SocketAddrV4) -> io::Result<tokio::net::TcpStream> {
        let stream = self.inside(|| std::net::TcpStream::connect_timeout(&to.into(), DEADLINE))?;
        stream.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(stream)
    }
}

/// A network namespace with a name.
struct Namespace(String);

impl Namespace {
    /// Makes it, with nothing but loopback in it.
    fn make(name: String) -> Result<Self, String> {
        ip(&format!("netns add {name}"))?;
        let made = Self(name);
        made.run("link set lo up")?;
        Ok(made)
    }

    fn name(&self) -> &str {
        &self.0
    }

    /// Runs `ip` in it.
    fn run(&self, words: &str) -> Result<(), String> {
        ip(&format!("-n {} {words}", self.0))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Interfaces go with it. An error would only say that somebody else has removed it.
        let _ = ip(&format!("netns delete {}", self.0));
    }
}

/// The stay of this thread in a namespace; it ends where it came from.
struct Stay {
    before: File,
    _on_this_thread: PhantomData<*const ()>,
}

impl Stay {
    fn begin(name: &str) -> io::Result<Self> {
        let before = File::open("/proc/thread-self/ns/net")?;
        setns(File::open(format!("/var/run/netns/{name}"))?, CloneFlags::CLONE_NEWNET)?;
        Ok(Self { before, _on_this_thread: PhantomData })
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        // It has worked on the way in.
        let _ = setns(&self.before, CloneFlags::CLONE_NEWNET);
    }
}

/// Runs `ip` with these words, and says why if it fails.
fn ip(words: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    let output = command.args(words.split(' ')).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("ip cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
