//! One `nats-server` process.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{PASSWORD, USER, Version, section};
use crate::ports::free_port;
use crate::turn::Turn;
use crate::{DEADLINE, process};

/// Where streams are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Storage {
    /// In files, which outlive the process.
    File,
    /// In memory.
    Memory,
}

/// A copy of a server's data. It is removed with the test.
pub struct Copy(TempDir);

/// A process that may be ended and started again on the same port, with the data it has written.
pub struct Server {
    process: Child,
    program: PathBuf,
    port: u16,
    directory: TempDir,
    storage: Storage,
    _turn: Turn,
}

impl Server {
    /// Starts a server with JetStream and the user that the gateways need, whose gateways keep their streams like this.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start(version: Version, storage: Storage) -> Self {
        for _ in 0..20 {
            // Somebody may take the port before the server does.
            if let Some(server) = Self::launch_on(version, storage, free_port(), "") {
                return server;
            }
        }
        panic!("nats-server does not start; is it installed?");
    }

    /// A server that is not there yet: it starts by [`Server::start_again`].
    pub fn later(version: Version, storage: Storage) -> Self {
        let mut server = Self::start(version, storage);
        server.kill();
        server
    }

    /// `None` when it ends or says nothing. `more` are further lines of its configuration.
    pub(super) fn launch_on(version: Version, storage: Storage, port: u16, more: &str) -> Option<Self> {
        let turn = Turn::take();
        let directory = tempfile::Builder::new().prefix("evenkeel-nats-").tempdir().expect("a temporary directory");
        let data = directory.path().join("data");
        let text = format!(
            "listen: 127.0.0.1:{port}\n\
             jetstream {{ store_dir: {data:?}, max_memory_store: 1GB, max_file_store: 4GB }}\n\
             authorization {{ users = [ {{ user: {USER}, password: {PASSWORD} }} ] }}\n\
             {more}\n"
        );
        fs::write(directory.path().join("nats.conf"), text).expect("the temporary directory is writable");
        let program = version.program();
        let process = launch(&program, directory.path(), port)?;
        Some(Self { process, program, port, directory, storage, _turn: turn })
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The configuration that leads a gateway here; further lines belong to its section `nats`.
    pub fn config(&self, more: &str) -> String {
        self.config_through(&self.address(), more)
    }

    /// The same by way of another address, which leads here.
    pub fn config_through(&self, address: &str, more: &str) -> String {
        section(&[address.to_owned()], self.storage, 1, more)
    }

    /// Ends the process as a crash does.
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts the process again, after [`Server::kill`].
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start_again(&mut self) {
        // Somebody may use the port for a moment, in vain.
        let started = (0..50).find_map(|_| launch(&self.program, self.directory.path(), self.port));
        self.process = started.unwrap_or_else(|| panic!("nats-server does not start again\n{}", self.log()));
    }

    /// Stops the process until [`Server::resume`], as a machine does that hangs. Returns when it stands still.
    pub fn freeze(&self) {
        process::stop(process::id(&self.process));
    }

    /// The end of [`Server::freeze`].
    pub fn resume(&self) {
        process::signal(process::id(&self.process), Signal::SIGCONT);
    }

    /// Keeps a copy of the data as it is on disk now. The process should have ended.
    ///
    /// # Panics
    ///
    /// When the data cannot be copied.
    pub fn copy_data(&self) -> Copy {
        let copy = tempfile::Builder::new().prefix("evenkeel-nats-copy-").tempdir().expect("a temporary directory");
        copy_directory(&self.data(), copy.path());
        Copy(copy)
    }

    /// Puts an earlier copy in the place of the data, as a volume that was restored. The process must have ended.
    ///
    /// # Panics
    ///
    /// When the data cannot be replaced.
    pub fn roll_back_to(&self, copy: &Copy) {
        fs::remove_dir_all(self.data()).expect("the data can be removed");
        copy_directory(copy.0.path(), &self.data());
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(25)..].join("\n");
            eprintln!("---- end of the log of the NATS on {} ----\n{end}\n----", self.port);
        }
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory can be made");
    for entry in fs::read_dir(from).expect("the directory is readable") {
        let entry = entry.expect("the directory is readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a file has a type").is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a file can be copied");
        }
    }
}

/// `None` if the process ends instead of being ready, which it is when it greets and says so in its log.
fn launch(program: &Path, directory: &Path, port: u16) -> Option<Child> {
    let log = File::create(directory.join("log")).expect("the temporary directory is writable");
    let mut process = Command::new(program)
        .arg("-c")
        .arg(directory.join("nats.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .ok()?;
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline && process.try_wait().is_ok_and(|status| status.is_none()) {
        let is_ready = fs::read_to_string(directory.join("log")).is_ok_and(|log| log.contains("Server is ready"));
        if is_ready && greets(port) {
            return Some(process);
        }
        pause();
    }
    let _ = process.kill();
    let _ = process.wait();
    None
}

#[expect(clippy::disallowed_methods, reason = "the server tells only its log when it is ready")]
fn pause() {
    thread::sleep(Duration::from_millis(10));
}

/// Whether a server on this port says who it is.
fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
    let limited = stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok();
    let mut line = String::new();
    let greeted = limited && BufReader::new(&stream).read_line(&mut line).is_ok() && line.starts_with("INFO");
    // Not a client: it leaves in good order.
    let _gone_already = stream.write_all(b"");
    greeted
}
