//! Real `nats-server` processes of both versions that must work, on free loopback ports, ended with the test: one alone,
//! three together ([`cluster`]), and how clients may have to prove who they are ([`access`]).

// Each test target uses a part of this.
#![allow(dead_code, unused_imports)]

pub mod access;
pub mod cluster;
pub mod node;
pub mod wire;

#[path = "../servers/mod.rs"]
pub mod servers;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use access::Access;
use backplane::nats::{Address, NatsConfig};
use nix::sys::signal::Signal;
use servers::{eventually, free_port};
use tempfile::TempDir;
use wire::Wire;

const PREFIX: &str = "test-ek";

/// Names the present version's program, where it is not among the tools of `tests/run`.
const CURRENT_VARIABLE: &str = "EVENKEEL_NATS_SERVER_CURRENT";
const CURRENT_PLACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/.tools/venv/bin/nats-server");

/// Which server: the oldest that must work, and the present one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// 2.9.10, which Debian 12 has.
    Debian,
    /// The one that `tests/run` installs.
    Current,
}

impl Version {
    pub const ALL: [Self; 2] = [Self::Debian, Self::Current];

    /// The program, which must say that it is of this version.
    fn program(self) -> PathBuf {
        let (program, begin) = match self {
            Self::Debian => (PathBuf::from("nats-server"), "2.9."),
            Self::Current => {
                let given = std::env::var_os(CURRENT_VARIABLE);
                (given.map_or_else(|| PathBuf::from(CURRENT_PLACE), PathBuf::from), "2.15.")
            }
        };
        let answer = Command::new(&program).arg("--version").output();
        let answer = answer.unwrap_or_else(|error| {
            panic!(
                "{} cannot be run ({error}): tests/run installs it, or name it in {CURRENT_VARIABLE}",
                program.display()
            )
        });
        let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert!(answer.contains(&format!("v{begin}")), "{} is {}, not {begin}x", program.display(), answer.trim());
        program
    }
}

/// The process may be ended and started again on the same ports, with the data it has written.
pub struct Server {
    pub version: Version,
    /// Where clients connect.
    pub port: u16,
    pub access: Access,
    process: Child,
    /// Where it can be asked about itself without proof.
    monitor: u16,
    program: PathBuf,
    /// Settings and data.
    directory: TempDir,
}

impl Server {
    /// Starts a server that lets everybody in.
    pub fn start(version: Version) -> Self {
        Self::with_access(version, Access::Open)
    }

    pub fn with_access(version: Version, access: Access) -> Self {
        Self::with_settings(version, access, |_| String::new())
    }

    /// `further` are more settings, made for the port of clients.
    pub fn with_settings(version: Version, access: Access, further: impl Fn(u16) -> String) -> Self {
        let (program, directory) = (version.program(), TempDir::new().expect("a temporary directory"));
        let mut why = String::new();
        for _ in 0..20 {
            let (port, monitor) = (free_port(), free_port());
            let store = data(directory.path());
            let settings = format!(
                "listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitor}\"\njetstream {{ store_dir: {store:?} }}\n{}{}",
                access.settings(),
                further(port)
            );
            std::fs::write(directory.path().join(SETTINGS), settings).expect("the temporary directory is writable");
            match launch(&program, directory.path()) {
                Ok(process) => return Self { version, port, access, process, monitor, program, directory },
                Err(log) => why = log,
            }
        }
        panic!("{} does not start: {why}", program.display());
    }

    /// How to reach it, with time limits that suit a test.
    pub fn config(&self) -> NatsConfig {
        config_for(&[self.port], &self.access)
    }

    /// Ends the process as a crash does, and starts it again on its data.
    pub fn restart(&mut self) {
        self.end();
        self.start_again();
    }

    /// Starts the ended process on its data.
    pub fn start_again(&mut self) {
        // Somebody may use a port for a moment, in vain.
        let started = (0..50).find_map(|_| launch(&self.program, self.directory.path()).ok());
        self.process = started.expect("nats-server starts again");
    }

    /// Ends the process as a crash does.
    pub fn end(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// The same, and with it everything that was stored.
    pub fn end_without_data(&mut self) {
        self.end();
        // A server that stored nothing has no directory.
        let _ = std::fs::remove_dir_all(data(self.directory.path()));
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn signal(&self, signal: Signal) {
        servers::signal(self.process.id(), signal);
    }

    /// Stops the process, and returns when it stands still.
    pub fn stop(&self) {
        servers::stop(self.pid());
    }

    /// What is on disk now, as a snapshot of the volume has it: the process stands still meanwhile and goes on.
    pub fn snapshot(&self) -> TempDir {
        let copy = TempDir::new().expect("a temporary directory");
        self.stop();
        copy_tree(&data(self.directory.path()), copy.path());
        self.signal(Signal::SIGCONT);
        copy
    }

    /// Crashes, and comes back with the data of this snapshot.
    pub fn roll_back(&mut self, snapshot: &TempDir) {
        self.end_without_data();
        copy_tree(snapshot.path(), &data(self.directory.path()));
        self.start_again();
    }

    /// A connection of the test's own, as somebody who may do everything.
    pub fn wire(&self) -> Wire {
        Wire::connect(self.port, &self.access)
    }

    /// The answer to a request, as text.
    pub fn ask(&self, subject: &str, payload: &str) -> String {
        self.wire().ask(subject, payload)
    }

    /// What the server says of itself, for example under `/varz`.
    pub fn monitor(&self, path: &str) -> String {
        wire::get(self.monitor, path)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// How to reach servers with this access, or links to them.
pub fn config_for(ports: &[u16], access: &Access) -> NatsConfig {
    let mut config = NatsConfig {
        servers: ports.iter().map(|port| Address::new("127.0.0.1", *port)).collect(),
        prefix: PREFIX.to_owned(),
        // What is to fail in time sets shorter limits: a machine that stands still is no silent server.
        command_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        reconnect_delay_max: Duration::from_millis(200),
        liveness_interval: Duration::from_millis(200),
        ..NatsConfig::default()
    };
    access.configure(&mut config);
    config
}

const SETTINGS: &str = "nats.conf";

fn data(directory: &Path) -> PathBuf {
    directory.join("data")
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the temporary directory is writable");
    for entry in std::fs::read_dir(from).expect("the data is there") {
        let entry = entry.expect("the data can be listed");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a file has a type").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("the data can be copied");
        }
    }
}

/// What the process has said, if it ends instead of being ready.
fn launch(program: &Path, directory: &Path) -> Result<Child, String> {
    let mut process = Command::new(program)
        .arg("--config")
        .arg(directory.join(SETTINGS))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut log = BufReader::new(process.stderr.take().expect("the output is piped"));
    let (mut said, mut line) = (String::new(), String::new());
    while log.read_line(&mut line).is_ok_and(|read| read > 0) {
        if line.contains("Server is ready") {
            // Whoever writes to a closed pipe is ended, so it stays open and is emptied.
            std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
            return Ok(process);
        }
        said.push_str(&line);
        line.clear();
    }
    let _ = process.kill();
    let _ = process.wait();
    Err(said)
}
