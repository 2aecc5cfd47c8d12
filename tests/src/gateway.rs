//! A gateway process: started on free loopback ports, killed when dropped, its log shown when the test fails.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::api::{Api, send};
use crate::client::Client;
use crate::turn::Turn;
use crate::{DEADLINE, process};

/// The server API key of [`CONFIG`].
pub const API_KEY: &str = "test-api-key-0123456789";

/// The HMAC secret of [`CONFIG`].
pub const SECRET: &str = "test-hmac-secret-0123456789abcdef";

/// A configuration with a namespace for every need of the tests. Scenarios that need other limits add theirs.
pub const CONFIG: &str = include_str!("gateway.toml");

/// [`CONFIG`] with these lines added to one of its sections.
///
/// # Panics
///
/// When there is no such section.
pub fn config_with(section: &str, lines: &str) -> String {
    let header = format!("[{section}]\n");
    assert!(CONFIG.contains(&header), "the configuration has no section {section}");
    CONFIG.replacen(&header, &format!("{header}{lines}\n"), 1)
}

/// The path of a program of this workspace, beside the running test.
///
/// # Panics
///
/// When it was not built: `tests/run` builds every program before the tests.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of a running test is known");
    let profile = test.parent().and_then(Path::parent).expect("a test runs from target/<profile>/deps");
    let path = profile.join(name);
    assert!(path.is_file(), "{} is missing: run tests/run, or build it with this test's profile", path.display());
    path
}

/// A command for the gateway program without any `EVENKEEL_` variable of the surroundings.
pub fn command() -> Command {
    let mut command = Command::new(program("gateway"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EVENKEEL_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs the gateway program to its end with these arguments.
pub fn run_to_end(arguments: &[&str]) -> Output {
    command().args(arguments).output().expect("the gateway program can be started")
}

/// What to start.
pub struct Builder {
    dir: TempDir,
    config: Option<String>,
    listen: String,
    internal_listen: String,
    command: Command,
}

/// A running gateway.
pub struct Gateway {
    process: Arc<Mutex<Process>>,
    exit: watch::Receiver<Option<ExitStatus>>,
    pid: Pid,
    public: String,
    internal: String,
    lines: mpsc::Receiver<String>,
    dir: TempDir,
    _turn: Turn,
}

/// The child, and whether it was waited for (its process id may belong to someone else after that).
struct Process {
    child: Child,
    reaped: bool,
}

impl Gateway {
    /// A gateway with this TOML configuration; `{dir}` in it becomes the directory of the files of [`Builder::file`].
    pub fn with(config: &str) -> Builder {
        Builder { config: Some(config.to_owned()), ..Self::without_config() }
    }

    /// A gateway without a configuration file.
    pub fn without_config() -> Builder {
        let dir = tempfile::Builder::new().prefix("evenkeel-test-").tempdir().expect("a temporary directory");
        let anywhere = "127.0.0.1:0".to_owned();
        Builder { dir, config: None, listen: anywhere.clone(), internal_listen: anywhere, command: command() }
    }

    /// A gateway with [`CONFIG`].
    pub fn start() -> Self {
        Self::with(CONFIG).start()
    }

    /// The URL for WebSocket clients.
    pub fn url(&self) -> &str {
        &self.public
    }

    /// `host:port` of the public listener.
    pub fn public_address(&self) -> &str {
        address(&self.public)
    }

    /// `http://host:port` of the public listener.
    pub fn public_http(&self) -> String {
        format!("http://{}", self.public_address())
    }

    /// `http://host:port` of the internal listener.
    pub fn internal_http(&self) -> &str {
        &self.internal
    }

    /// `host:port` of the internal listener.
    pub fn internal_address(&self) -> &str {
        address(&self.internal)
    }

    /// The server API with the key of [`CONFIG`].
    pub fn api(&self) -> Api {
        Api::new(format!("{}/api", self.public_http()), API_KEY)
    }

    /// A new JSON connection, not yet connected in the sense of the protocol.
    pub async fn open(&self) -> Client {
        Client::open(self.url()).await
    }

    /// A new JSON connection on which `connect` has succeeded for this user.
    pub async fn connect(&self, user: &str) -> Client {
        let mut client = self.open().await;
        client.connect_as(user).await;
        client
    }

    /// The next line of standard output, after those about the listeners, that contains this text.
    ///
    /// # Panics
    ///
    /// When there is none by the deadline.
    pub fn stdout_line(&self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let line = self.next_line(deadline);
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// The path of a file beside the configuration.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces the configuration file. It is read again at a [`Gateway::hang_up`].
    pub fn rewrite_config(&self, config: &str) {
        write_config(self.dir.path(), config);
    }

    /// Everything the gateway has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Asks the gateway to drain and stop.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Asks the gateway to stop, as Ctrl-C does.
    pub fn interrupt(&self) {
        self.signal(Signal::SIGINT);
    }

    /// Asks the gateway to read its configuration again.
    pub fn hang_up(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// Ends the process as a crash does.
    pub async fn kill(&self) {
        self.signal(Signal::SIGKILL);
        self.exit_code().await;
    }

    /// Stops the process until [`Gateway::resume`], as a machine does that hangs. Returns when it stands still.
    pub fn freeze(&self) {
        let _living = self.living();
        process::stop(self.pid);
    }

    /// The end of [`Gateway::freeze`].
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// The status of a path of the internal listener.
    pub async fn internal_status(&self, path: &str) -> u16 {
        send(self.api().get(&format!("{}{path}", self.internal))).await.status
    }

    /// The value of the metric whose line starts with this name and labels; `None` when there is none.
    pub async fn metric(&self, line_start: &str) -> Option<f64> {
        let text = send(self.api().get(&format!("{}/metrics", self.internal))).await.text;
        text.lines().find(|line| line.starts_with(line_start))?.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until the process has ended and returns its exit code; a signal that ended it is a negative number.
    ///
    /// # Panics
    ///
    /// When it still runs at the deadline.
    pub async fn exit_code(&self) -> i32 {
        let mut exit = self.exit.clone();
        let status = crate::within("the gateway's end", exit.wait_for(Option::is_some)).await;
        let status = status.ok().and_then(|status| *status).expect("the waiting thread tells the status");
        status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
    }

    /// Whether the process still runs.
    pub fn is_running(&self) -> bool {
        self.exit.borrow().is_none()
    }

    fn signal(&self, signal: Signal) {
        let _living = self.living();
        process::signal(self.pid, signal);
    }

    /// The process, which is not waited for as long as this is held.
    fn living(&self) -> MutexGuard<'_, Process> {
        let process = lock(&self.process);
        assert!(!process.reaped, "the gateway has ended already; its log:\n{}", self.log());
        process
    }
}

impl Builder {
    /// Adds a command line argument.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.command.arg(argument);
        self
    }

    /// Clients connect to this `host:port` instead of a free one.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        address.clone_into(&mut self.listen);
        self
    }

    /// Operators ask at this `host:port` instead of a free one.
    #[must_use]
    pub fn internal_listen(mut self, address: &str) -> Self {
        address.clone_into(&mut self.internal_listen);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Adds a file beside the configuration.
    #[must_use]
    pub fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.dir.path().join(name), text).expect("the temporary directory is writable");
        self
    }

    /// Starts the process and waits until it accepts connections.
    ///
    /// # Panics
    ///
    /// With its log, when it ends or stays silent.
    pub fn start(mut self) -> Gateway {
        let turn = Turn::take();
        self.command.args(["--listen", &self.listen, "--internal-listen", &self.internal_listen]);
        if let Some(config) = &self.config {
            self.command.arg("--config").arg(write_config(self.dir.path(), config));
        }
        let log = self.dir.path().join("log");
        self.command.stdout(Stdio::piped()).stderr(File::create(&log).expect("the temporary directory is writable"));
        let mut child = self.command.spawn().expect("the gateway program can be started");
        let pid = process::id(&child);
        let lines = read_lines(child.stdout.take().expect("standard output is a pipe"));
        let process = Arc::new(Mutex::new(Process { child, reaped: false }));
        let exit = watch_exit(Arc::clone(&process), pid);
        let mut gateway = Gateway {
            process,
            exit,
            pid,
            public: String::new(),
            internal: String::new(),
            lines,
            dir: self.dir,
            _turn: turn,
        };
        gateway.wait_until_ready();
        gateway
    }
}

impl Gateway {
    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        while self.public.is_empty() || self.internal.is_empty() {
            let line = self.next_line(deadline);
            if let Some(url) = line.strip_prefix("listening public=") {
                self.public = url.to_owned();
            } else if let Some(url) = line.strip_prefix("listening internal=") {
                self.internal = url.to_owned();
            }
        }
    }

    fn next_line(&self, deadline: Instant) -> String {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("the gateway did not print what was expected in time"),
            Err(RecvTimeoutError::Disconnected) => panic!("the gateway ended, or closed its output"),
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        {
            let mut process = lock(&self.process);
            if !process.reaped {
                // An error would only say that it has just ended by itself.
                let _ended_meanwhile = process.child.kill();
            }
        }
        if thread::panicking() {
            eprintln!("---- log of gateway {} ----\n{}---- end of log ----", self.pid, self.log());
        }
    }
}

fn write_config(dir: &Path, config: &str) -> PathBuf {
    let path = dir.join("gateway.toml");
    let text = config.replace("{dir}", &dir.display().to_string());
    fs::write(&path, text).expect("the temporary directory is writable");
    path
}

fn address(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

fn lock(process: &Mutex<Process>) -> MutexGuard<'_, Process> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads lines on a thread, whether or not they are asked for.
fn read_lines(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Read to the end also when nobody listens any more: a full pipe would stop the gateway.
            let _nobody_listens = sender.send(line);
        }
    });
    receiver
}

/// Waits for the end without reaping, then reaps under the lock, so that no signal can ever reach a reused id.
fn watch_exit(process: Arc<Mutex<Process>>, pid: Pid) -> watch::Receiver<Option<ExitStatus>> {
    let (sender, receiver) = watch::channel(None);
    thread::spawn(move || {
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).is_err() {}
        let mut process = lock(&process);
        process.reaped = true;
        sender.send_replace(process.child.wait().ok());
    });
    receiver
}
