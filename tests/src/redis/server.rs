//! One `redis-server` process.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use backplane::redis::acl_line;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::resp::Admin;
use super::{PASSWORD, PREFIX, USER, section};
use crate::ports::free_port;
use crate::turn::Turn;
use crate::{DEADLINE, process};

/// Nothing is written to disk.
pub const VOLATILE: &[&str] = &["--save", "", "--appendonly", "no"];

/// Every write is on disk before its answer.
pub const APPEND_ONLY: &[&str] = &["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

/// A process that may be ended and started again on the same port, with the data it has written.
pub struct Server {
    process: Child,
    address: Ipv4Addr,
    port: u16,
    directory: TempDir,
    arguments: Vec<String>,
    log: Log,
    _turn: Turn,
}

/// What the process has said, for those who must find out why a test failed.
type Log = Arc<Mutex<String>>;

impl Server {
    /// Starts a server with these settings (`--name value ...`) and with the user that the gateways need.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start(settings: &[&str]) -> Self {
        Self::with_file(&users(), settings)
    }

    /// The same on a [`Network`](crate::network::Network): other machines reach it at this address of the one that the
    /// test is on.
    pub fn start_at(address: Ipv4Addr, settings: &[&str]) -> Self {
        // Otherwise only the own machine may use a server whose administrator has no password.
        let settings = [settings, &["--protected-mode", "no"]].concat();
        Self::with_file_at(address, &users(), &settings)
    }

    /// A server that is not there yet: it starts, with these settings, by [`Server::start_again`].
    pub fn later(settings: &[&str]) -> Self {
        let mut server = Self::start(settings);
        server.kill();
        server
    }

    /// Starts a server with this configuration file and these settings.
    pub(super) fn with_file(file: &str, settings: &[&str]) -> Self {
        Self::with_file_at(Ipv4Addr::LOCALHOST, file, settings)
    }

    fn with_file_at(address: Ipv4Addr, file: &str, settings: &[&str]) -> Self {
        let turn = Turn::take();
        let directory = tempfile::Builder::new().prefix("evenkeel-redis-").tempdir().expect("a temporary directory");
        fs::write(directory.path().join("redis.conf"), file).expect("the temporary directory is writable");
        let arguments: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let log = Log::default();
        for _ in 0..20 {
            // Somebody may take the port before the server does.
            let port = free_port();
            if let Some(process) = launch(&directory, address, port, &arguments, &log) {
                return Self { process, address, port, directory, arguments, log, _turn: turn };
            }
        }
        panic!("redis-server does not start; is it installed?\n{}", said(&log));
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    /// The configuration that leads a gateway here; further lines belong to its section `redis`.
    pub fn config(&self, more: &str) -> String {
        self.config_through(&self.address(), more)
    }

    /// The same by way of another address, which leads here.
    pub fn config_through(&self, address: &str, more: &str) -> String {
        section(&format!("addresses = [{address:?}]\n{more}"))
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
        let launch = || launch(&self.directory, self.address, self.port, &self.arguments, &self.log);
        let started = (0..50).find_map(|_| launch());
        self.process = started.unwrap_or_else(|| panic!("redis-server does not start again\n{}", said(&self.log)));
    }

    /// Stops the process until [`Server::resume`], as a machine does that hangs. Returns when it stands still.
    pub fn freeze(&self) {
        process::stop(process::id(&self.process));
    }

    /// The end of [`Server::freeze`].
    pub fn resume(&self) {
        process::signal(process::id(&self.process), Signal::SIGCONT);
    }

    /// Takes a command away from the user of the gateways.
    pub fn forbid(&self, command: &str) {
        self.admin(&["ACL", "SETUSER", USER, &format!("-{command}")]);
    }

    /// The end of [`Server::forbid`].
    pub fn allow(&self, command: &str) {
        self.admin(&["ACL", "SETUSER", USER, &format!("+{command}")]);
    }

    /// Runs a command as administrator.
    ///
    /// # Panics
    ///
    /// When it fails.
    pub fn admin(&self, command: &[&str]) -> Value {
        self.try_admin(command).unwrap_or_else(|| panic!("{command:?} failed\n{}", said(&self.log)))
    }

    /// Runs a command as administrator; `None` when it fails.
    pub fn try_admin(&self, command: &[&str]) -> Option<Value> {
        Admin::connect(self.port)?.run(command)
    }

    /// The value of a field that `INFO` shows in this section.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn info(&self, part: &str, field: &str) -> String {
        let text = self.admin(&["INFO", part]);
        let lines = text.as_str().unwrap_or_default().lines();
        let value = lines.filter_map(|line| line.split_once(':')).find(|(name, _)| *name == field);
        value.unwrap_or_else(|| panic!("INFO {part} has no {field}: {text}")).1.to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = said(&self.log);
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(25)..].join("\n");
            eprintln!("---- end of the log of the Redis on {} ----\n{end}\n----", self.port);
        }
    }
}

/// The user that gateways log in as.
fn users() -> String {
    let rules = acl_line(USER, PREFIX).replacen("ACL SETUSER", "user", 1);
    format!("{rules} >{PASSWORD}\n")
}

fn said(log: &Log) -> String {
    log.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// `None` if the process ends instead of being ready.
fn launch(directory: &TempDir, address: Ipv4Addr, port: u16, arguments: &[String], log: &Log) -> Option<Child> {
    // The administrator is always on this machine.
    let addresses = BTreeSet::from([Ipv4Addr::LOCALHOST, address]);
    let mut process = Command::new("redis-server")
        .arg(directory.path().join("redis.conf"))
        .args(arguments)
        .args(["--port", &port.to_string(), "--bind"])
        .args(addresses.iter().map(Ipv4Addr::to_string))
        .args(["--daemonize", "no", "--dir"])
        .arg(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let output = BufReader::new(process.stdout.take().expect("the output is piped"));
    let (ready, is_ready) = mpsc::channel();
    let log = Arc::clone(log);
    // Whoever writes to a closed pipe is ended, so it is read to the end.
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if line.contains("Ready to accept connections") || line.contains("Sentinel ID is") {
                let _nobody_waits_any_more = ready.send(());
            }
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&line);
            log.push('\n');
        }
    });
    if is_ready.recv_timeout(DEADLINE).is_ok() {
        return Some(process);
    }
    let _ = process.kill();
    let _ = process.wait();
    None
}
