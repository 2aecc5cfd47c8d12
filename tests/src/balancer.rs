//! The load balancers that `deploy/` has configurations for, as real processes with exactly these configurations: only
//! addresses, paths and what a machine for tests is too small for are other ones.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::api::{Api, send};
use crate::gateway::Gateway;
use crate::ports::free_port;
use crate::until;

/// Which program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `deploy/haproxy/haproxy.cfg`.
    Haproxy,
    /// `deploy/nginx/nginx.conf`.
    Nginx,
}

/// A gateway behind it, and the port of its agent (`placement.agent_listen`).
#[derive(Clone, Copy)]
pub struct Member<'a> {
    /// The gateway.
    pub gateway: &'a Gateway,
    /// The port.
    pub agent_port: u16,
}

/// A running load balancer. Its processes end when it is dropped.
pub struct Balancer {
    kind: Kind,
    master: Child,
    port: u16,
    stats_port: u16,
    directory: TempDir,
}

impl Balancer {
    /// Starts one in front of these gateways and waits until it accepts connections.
    pub async fn start(kind: Kind, members: &[Member<'_>]) -> Self {
        let directory = tempfile::Builder::new().prefix("evenkeel-balancer-").tempdir().expect("a temporary directory");
        let (port, stats_port) = (free_port(), free_port());
        let config = directory.path().join("config");
        fs::write(&config, kind.config(members, port, stats_port, directory.path())).expect("it is writable");
        let log = File::create(directory.path().join("log")).expect("it is writable");
        let mut command = kind.command(&config, directory.path());
        // Workers must not outlive it, whatever happens to the master.
        command.process_group(0).stdin(Stdio::null()).stderr(log.try_clone().expect("a file")).stdout(log);
        let master = command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        let balancer = Self { kind, master, port, stats_port, directory };
        let accepts = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        until("the load balancer to accept connections", accepts).await;
        balancer
    }

    /// The URL for WebSocket clients.
    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}/connection/websocket", self.port)
    }

    /// Puts it in front of these gateways, by a reload, and waits until new processes have taken over.
    pub async fn reload(&self, members: &[Member<'_>]) {
        let text = self.kind.config(members, self.port, self.stats_port, self.directory.path());
        fs::write(self.directory.path().join("config"), text).expect("it is writable");
        let before = self.workers();
        let signal = match self.kind {
            Kind::Haproxy => Signal::SIGUSR2,
            Kind::Nginx => Signal::SIGHUP,
        };
        kill(self.pid(), signal).expect("a child that was not waited for can be signalled");
        let has_new = || self.workers().iter().any(|worker| !before.contains(worker));
        let taken_over = async || has_new() && !before.iter().any(|worker| is_accepting(worker));
        until("new workers in place of the old", taken_over).await;
    }

    /// What HAProxy's page of statistics says of a server, such as `UP` or `DRAIN`.
    pub async fn status(&self, server: usize) -> String {
        let page = Api::new(String::new(), "");
        let text = send(page.get(&format!("http://127.0.0.1:{}/;csv", self.stats_port))).await.text;
        let line = text.lines().find(|line| line.starts_with(&format!("gateways,gw{server},")));
        // It is the 18th field.
        line.and_then(|line| line.split(',').nth(17)).unwrap_or_default().to_owned()
    }

    /// Process ids of its workers, those that only keep their old connections included.
    pub fn workers(&self) -> Vec<String> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().map(str::to_owned).collect()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.master.id()).expect("a process id fits"))
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _all_ended_already = killpg(self.pid(), Signal::SIGKILL);
        let _reaped = self.master.wait();
        if thread::panicking() {
            let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            eprintln!("---- log of the load balancer ----\n{log}---- end of log ----");
        }
    }
}

impl Kind {
    /// In the foreground, with a master that reloads.
    fn command(self, config: &Path, directory: &Path) -> Command {
        let mut command = match self {
            Self::Haproxy => Command::new("haproxy"),
            Self::Nginx => Command::new("nginx"),
        };
        match self {
            Self::Haproxy => command.args(["-W", "-db", "-f"]).arg(config),
            Self::Nginx => {
                command.args(["-e", "stderr", "-g", "daemon off;", "-p"]).arg(directory).arg("-c").arg(config)
            }
        };
        // Debian has them where only root's path leads.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        command
    }

    /// The shipped configuration with these gateways for its servers.
    fn config(self, members: &[Member<'_>], port: u16, stats_port: u16, directory: &Path) -> String {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(match self {
            Self::Haproxy => "haproxy/haproxy.cfg",
            Self::Nginx => "nginx/nginx.conf",
        });
        let text = fs::read_to_string(&shipped).unwrap_or_else(|error| panic!("{}: {error}", shipped.display()));
        let directory = directory.display();
        let changes = match self {
            Self::Haproxy => vec![
                ("bind :8080\n", format!("bind 127.0.0.1:{port}\n")),
                ("bind 127.0.0.1:8404\n", format!("bind 127.0.0.1:{stats_port}\n")),
                ("/run/haproxy/admin.sock", format!("{directory}/admin.sock")),
                // It does not start with more than it has descriptors for.
                ("maxconn 200000\n", "maxconn 1000\n".to_owned()),
            ],
            Self::Nginx => vec![
                ("listen 8080 ", format!("listen 127.0.0.1:{port} ")),
                ("pid /run/nginx.pid;", format!("pid {directory}/nginx.pid;")),
                ("worker_rlimit_nofile 200000;", String::new()),
                ("worker_connections 90000;", "worker_connections 1000;".to_owned()),
                ("http {\n", format!("http {{\n{}", temporary_paths(&directory.to_string()))),
            ],
        };
        let text = changes.iter().fold(text, |text, (from, to)| {
            assert!(text.contains(from), "{} has no {from:?} any more", shipped.display());
            text.replacen(from, to, 1)
        });
        self.with_servers(&text, members)
    }

    /// Each server's line is that of the first one, with another name and other addresses.
    fn with_servers(self, text: &str, members: &[Member<'_>]) -> String {
        const ADDRESS: &str = "10.0.0.11:8000";
        let first = text.lines().find(|line| line.contains(ADDRESS)).expect("the configuration has servers");
        let lines = members.iter().enumerate().map(|(index, Member { gateway, agent_port })| {
            let readiness = gateway.internal_address().rsplit(':').next().expect("an address has a port");
            let address = match self {
                // The ports of the checks are the same for all nodes elsewhere, and in the defaults for servers.
                Self::Haproxy => format!("{} port {readiness} agent-port {agent_port}", gateway.public_address()),
                Self::Nginx => gateway.public_address().to_owned(),
            };
            first.replacen("gw1", &format!("gw{index}"), 1).replacen(ADDRESS, &address, 1)
        });
        let servers = lines.collect::<Vec<_>>().join("\n");
        let others = |line: &&str| !line.contains("10.0.0.12:") && !line.contains("10.0.0.13:");
        let kept: Vec<&str> = text.lines().filter(others).collect();
        kept.join("\n").replacen(first, &servers, 1) + "\n"
    }
}

/// Whether this worker of nginx is not on its way out; those of HAProxy do not tell, and go when a new one has come.
fn is_accepting(worker: &str) -> bool {
    let title = fs::read_to_string(format!("/proc/{worker}/cmdline")).unwrap_or_default();
    title.contains("nginx: worker process") && !title.contains("shutting down")
}

/// Where nginx may write without being root.
fn temporary_paths(directory: &str) -> String {
    let names = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    names.map(|name| format!("{name}_temp_path {directory}/{name};\n")).concat()
}
