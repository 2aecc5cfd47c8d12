//! A real `redis-server` on a free loopback port, ended with the test.

// Each test target uses a part of this.
#![allow(dead_code)]

pub mod node;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backplane::redis::{Address, RedisConfig, Topology, acl_line};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;
use tempfile::TempDir;

const USER: &str = "evenkeel";
const PASSWORD: &str = "not-a-secret";
const PREFIX: &str = "test.ek";

/// The process may be ended and started again on the same port, with the data it has written.
pub struct Server {
    process: Child,
    pub port: u16,
    directory: TempDir,
    persistence: &'static [&'static str],
}

/// Nothing is written.
pub const VOLATILE: &[&str] = &["--save", "", "--appendonly", "no"];
/// Every write is on disk before its answer; with `everysec` one may wait for a sync that is under way.
pub const APPEND_ONLY: &[&str] = &["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

impl Server {
    /// Starts a server with a user that has just the documented permissions.
    pub fn start(persistence: &'static [&'static str]) -> Self {
        Self::with_permissions(persistence, "")
    }

    /// `changes` are further rules for the user.
    pub fn with_permissions(persistence: &'static [&'static str], changes: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let rules = acl_line(USER, PREFIX).replacen("ACL SETUSER", "user", 1);
        std::fs::write(directory.path().join("redis.conf"), format!("{rules} >{PASSWORD} {changes}\n"))
            .expect("the temporary directory is writable");
        for _ in 0..20 {
            let port = free_port();
            if let Some(process) = launch(&directory, port, persistence) {
                return Self { process, port, directory, persistence };
            }
        }
        panic!("redis-server does not start; is it installed?");
    }

    /// How to reach it, with time limits that suit a test.
    pub fn config(&self) -> RedisConfig {
        RedisConfig {
            topology: Topology::Standalone(Address::new("127.0.0.1", self.port)),
            username: Some(USER.to_owned()),
            password: Some(PASSWORD.to_owned()),
            prefix: PREFIX.to_owned(),
            reconnect_delay_max: Duration::from_millis(200),
            liveness_interval: Duration::from_millis(200),
            ..RedisConfig::default()
        }
    }

    /// Ends the process as a crash does, and starts it again on its data.
    pub fn restart(&mut self) {
        self.end();
        self.start_again();
    }

    /// Starts the ended process on its data.
    pub fn start_again(&mut self) {
        // Somebody may use the port for a moment, in vain.
        let started = (0..50).find_map(|_| launch(&self.directory, self.port, self.persistence));
        self.process = started.expect("redis-server starts again");
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("the server is running");
    }

    /// Runs a command as administrator and returns the first line of the answer.
    pub fn admin(&self, command: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("the server is running");
        stream.write_all(format!("{command}\r\n").as_bytes()).expect("the server listens");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("the server answers");
        answer.trim_end().to_owned()
    }

    /// The same for an answer of many lines.
    pub fn admin_text(&self, command: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("the server is running");
        stream.write_all(format!("{command}\r\n").as_bytes()).expect("the server listens");
        let (mut stream, mut head) = (BufReader::new(stream), String::new());
        stream.read_line(&mut head).expect("the server answers");
        let length = head.trim_end().strip_prefix('$').and_then(|length| length.parse().ok());
        let mut text = vec![0; length.unwrap_or_else(|| panic!("{command} is answered with a text, not {head}"))];
        stream.read_exact(&mut text).expect("the whole answer");
        String::from_utf8(text).expect("an answer in words")
    }

    /// Ends the process as a crash does.
    pub fn end(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// A port below those which the operating system gives to outgoing connections: one of these could have the server's port
/// when it starts again, or be connected to itself while the server is away.
fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| rand::rng().random_range(10_000..32_000)).take(1_000);
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    ports.into_iter().find(is_free).expect("a free port")
}

/// `None` if the process ends instead of being ready.
fn launch(directory: &TempDir, port: u16, persistence: &[&str]) -> Option<Child> {
    let mut process = Command::new("redis-server")
        .arg(directory.path().join("redis.conf"))
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--daemonize", "no"])
        .arg("--dir")
        .arg(directory.path())
        .args(persistence)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut log = BufReader::new(process.stdout.take().expect("the output is piped"));
    let mut line = String::new();
    while log.read_line(&mut line).is_ok_and(|read| read > 0) {
        if line.contains("Ready to accept connections") {
            // Whoever writes to a closed pipe is ended, so it stays open and is emptied.
            std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
            return Some(process);
        }
        line.clear();
    }
    let _ = process.kill();
    let _ = process.wait();
    None
}

/// A runtime for one test.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}
