//! Server processes a scenario starts itself.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::progress::pause;
use crate::sys::Signal;
use crate::{procfs, sys};

/// How long a server may take to listen.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a server may take to end once asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A child process that does not outlive this value.
pub struct Server {
    child: Child,
    name: String,
}

impl Server {
    /// Starts a command, on one core if asked to. Its output is thrown away unless it is read by the caller.
    pub fn spawn(mut command: Command, core: Option<usize>, read_output: bool) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stderr(if read_output { Stdio::inherit() } else { Stdio::null() });
        command.stdout(if read_output { Stdio::piped() } else { Stdio::null() });
        // A child inherits the cores of the thread that starts it, so a thread of its own is pinned for the purpose.
        let spawn = move || {
            if let Some(core) = core {
                sys::pin_thread(0, core)?;
            }
            command.spawn()
        };
        let spawned = std::thread::spawn(spawn).join().map_err(|_| anyhow::anyhow!("the spawning thread panicked"))?;
        Ok(Self { child: spawned.with_context(|| format!("cannot start `{name}`"))?, name })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until something listens at the address.
    pub fn wait_until_listening(&mut self, address: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("`{}` ended with {status} before it listened on {address}; run it by hand to see why", self.name);
            }
            if Instant::now() > deadline {
                bail!("`{}` did not listen on {address} within {START_PATIENCE:?}", self.name);
            }
            pause();
        }
        Ok(())
    }

    /// Reads the first line of the output.
    pub fn first_line(&mut self) -> Result<(String, BufReader<ChildStdout>)> {
        let output = self.child.stdout.take().context("the output is being read already")?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        // A line is short; the bound is for a server that is not ours.
        output.by_ref().take(4096).read_line(&mut line)?;
        if line.is_empty() {
            bail!("`{}` ended before it listened", self.name);
        }
        Ok((line, output))
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("`{}` did not end within {patience:?}", self.name);
            }
            pause();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let asked = sys::signal(self.child.id(), Signal::Terminate).is_ok();
        if !asked || self.wait(STOP_PATIENCE).is_err() {
            // It did not listen to the polite request; errors mean that it is gone.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Moves all threads of a running process to one core.
pub fn pin_process(pid: u32, core: usize) -> Result<()> {
    for thread in procfs::threads_of(pid).with_context(|| format!("cannot list the threads of process {pid}"))? {
        sys::pin_thread(thread, core).with_context(|| format!("cannot move process {pid} to core {core}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_child_runs_on_its_core_and_ends_with_its_owner() {
        let core = sys::cores_of(0).expect("own cores")[0];
        let mut command = Command::new("sleep");
        command.arg("600");
        let server = Server::spawn(command, Some(core), false).expect("sleep starts");
        let pid = server.pid();
        assert_eq!(sys::cores_of(pid as i32).expect("its cores"), [core]);
        drop(server);
        assert!(procfs::process_cpu_seconds(pid).is_err(), "the process is still there");
    }

    #[test]
    fn a_server_that_ends_early_is_reported() {
        let mut server = Server::spawn(Command::new("false"), None, false).expect("false starts");
        let error = server.wait_until_listening("127.0.0.1:1".parse().expect("an address")).expect_err("never listens");
        assert!(error.to_string().contains("before it listened"), "{error}");
    }
}
