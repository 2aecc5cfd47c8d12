//! Real `redis-server` processes on free loopback ports, ended with the test: one alone, one with replicas and Sentinels
//! ([`sentinel`]), a cluster ([`cluster`]); and a node that records what it is told ([`node`]).

// Each test target uses a part of this.
#![allow(dead_code, unused_imports)]

pub mod cluster;
pub mod node;
pub mod sentinel;
#[path = "../servers/mod.rs"]
pub mod servers;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backplane::redis::{Address, RedisConfig, Topology, acl_line};
use nix::sys::signal::Signal;
#[allow(unused_imports, reason = "each test target uses a part of this")]
pub use servers::{eventually, free_port, run};
use tempfile::TempDir;

const USER: &str = "evenkeel";
const PASSWORD: &str = "not-a-secret";
const PREFIX: &str = "test.ek";

/// The process may be ended and started again on the same port, with the data it has written.
pub struct Server {
    process: Child,
    pub port: u16,
    directory: TempDir,
    arguments: Vec<String>,
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
        Self::with_arguments(persistence, changes, |_| Vec::new())
    }

    /// `arguments` are further ones for the process, made for a port.
    pub fn with_arguments(
        persistence: &'static [&'static str],
        changes: &str,
        arguments: impl Fn(u16) -> Vec<String>,
    ) -> Self {
        let rules = acl_line(USER, PREFIX).replacen("ACL SETUSER", "user", 1);
        let arguments = |port| {
            let persistence = persistence.iter().map(|argument| (*argument).to_owned());
            let port_argument = ["--port".to_owned(), port_text(port)];
            port_argument.into_iter().chain(persistence).chain(arguments(port)).collect()
        };
        Self::with_file(&format!("{rules} >{PASSWORD} {changes}\n"), arguments)
    }

    /// Starts a server with this file of settings and all arguments but those of the place.
    pub fn with_file(file: &str, arguments: impl Fn(u16) -> Vec<String>) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        std::fs::write(directory.path().join("redis.conf"), file).expect("the temporary directory is writable");
        for _ in 0..20 {
            let port = free_port();
            let arguments: Vec<String> = arguments(port);
            if let Some(process) = launch(&directory, &arguments) {
                return Self { process, port, directory, arguments };
            }
        }
        panic!("redis-server does not start; is it installed?");
    }

    /// How to reach it, with time limits that suit a test.
    pub fn config(&self) -> RedisConfig {
        RedisConfig {
            topology: Topology::Standalone(self.address()),
            username: Some(USER.to_owned()),
            password: Some(PASSWORD.to_owned()),
            prefix: PREFIX.to_owned(),
            // What is to fail in time sets shorter limits: a machine that stands still is no silent server.
            command_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            reconnect_delay_max: Duration::from_millis(200),
            liveness_interval: Duration::from_millis(200),
            ..RedisConfig::default()
        }
    }

    pub fn address(&self) -> Address {
        Address::new("127.0.0.1", self.port)
    }

    /// Ends the process as a crash does, and starts it again on its data.
    pub fn restart(&mut self) {
        self.end();
        self.start_again();
    }

    /// Starts the ended process on its data.
    pub fn start_again(&mut self) {
        // Somebody may use the port for a moment, in vain.
        let started = (0..50).find_map(|_| launch(&self.directory, &self.arguments));
        self.process = started.expect("redis-server starts again");
    }

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

    /// Runs a command as administrator and returns the answer, one item per line.
    pub fn ask(&self, command: &[&str]) -> String {
        let answer = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(command).output();
        String::from_utf8_lossy(&answer.expect("redis-cli is installed").stdout).trim_end().to_owned()
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

fn port_text(port: u16) -> String {
    port.to_string()
}

/// `None` if the process ends instead of being ready.
fn launch(directory: &TempDir, arguments: &[String]) -> Option<Child> {
    let mut process = Command::new("redis-server")
        .arg(directory.path().join("redis.conf"))
        .args(["--bind", "127.0.0.1", "--daemonize", "no"])
        .arg("--dir")
        .arg(directory.path())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut log = BufReader::new(process.stdout.take().expect("the output is piped"));
    let mut line = String::new();
    while log.read_line(&mut line).is_ok_and(|read| read > 0) {
        // The latter is what a Sentinel says.
        if line.contains("Ready to accept connections") || line.contains("+monitor master") {
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
