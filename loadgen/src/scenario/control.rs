//! Processes a scenario ends and starts again: those it spawned, and those of somebody else, by a file with the process id
//! and a command.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::process::Server;
use crate::procfs;
use crate::progress::pause;
use crate::sys::{self, Signal};

/// A process that can be signalled and, perhaps, started again.
pub enum Control {
    /// Started by the scenario, and ended with it.
    Spawned {
        /// Program, and the arguments that were given with it.
        command: Vec<String>,
        /// Arguments after these.
        more: Vec<String>,
        /// Environment added to the scenario's own.
        environment: Vec<(&'static str, String)>,
        /// The process, while there is one.
        server: Option<Server>,
    },
    /// Started by others.
    External {
        /// Where its process id is.
        pid_file: PathBuf,
        /// How it is started again, by a shell.
        start: Option<String>,
        /// The shell of the last start.
        shell: Option<Child>,
    },
    /// Known by its process id only.
    Pid(u32),
}

impl Control {
    /// A command line, split at spaces, that is yet to be started.
    pub fn command(line: &str, more: Vec<String>, environment: Vec<(&'static str, String)>) -> Result<Self> {
        Ok(Self::Spawned { command: words(line)?, more, environment, server: None })
    }

    /// From its next start on it is this command line, with the same arguments after it.
    pub fn change_command(&mut self, line: &str) -> Result<()> {
        let Self::Spawned { command, .. } = self else {
            bail!("only what the scenario starts can become another program")
        };
        *command = words(line)?;
        Ok(())
    }

    /// The process id now.
    pub fn pid(&self) -> Result<u32> {
        match self {
            Self::Spawned { server, .. } => Ok(server.as_ref().context("the process is not running")?.pid()),
            Self::Pid(pid) => Ok(*pid),
            Self::External { pid_file, .. } => {
                let name = pid_file.display();
                let text = fs::read_to_string(pid_file).with_context(|| format!("cannot read {name}"))?;
                text.trim().parse().with_context(|| format!("{name} does not hold a process id"))
            }
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid()?;
        sys::signal(pid, signal).with_context(|| format!("cannot signal process {pid}"))
    }

    /// Starts it, for the first time or again.
    pub fn start(&mut self) -> Result<()> {
        match self {
            Self::Spawned { command, more, environment, server } => {
                let mut next = Command::new(&command[0]);
                next.args(&command[1..]).args(more).envs(environment.iter().map(|(name, value)| (*name, value)));
                *server = Some(Server::spawn(next, None, false)?);
                Ok(())
            }
            Self::External { start: Some(start), shell, .. } => {
                let mut next = Command::new("sh");
                next.args(["-c", start]).stdin(Stdio::null());
                *shell = Some(next.spawn().with_context(|| format!("cannot run `{start}`"))?);
                Ok(())
            }
            Self::External { start: None, .. } | Self::Pid(_) => bail!("no command is known to start it again"),
        }
    }

    /// Sends a signal that ends the process and waits until it has ended. Returns its exit code where that is known.
    pub fn end(&mut self, signal: Signal, patience: Duration) -> Result<Option<i32>> {
        let pid = self.pid()?;
        self.signal(signal)?;
        if let Self::Spawned { server, .. } = self
            && let Some(mut process) = server.take()
        {
            return Ok(process.wait(patience)?.code());
        }
        let deadline = Instant::now() + patience;
        while procfs::is_running(pid) {
            if Instant::now() > deadline {
                bail!("process {pid} did not end within {patience:?}");
            }
            self.reap();
            pause();
        }
        self.reap();
        Ok(None)
    }

    /// A shell that ends must be waited for, or it stays in the table of processes.
    fn reap(&mut self) {
        if let Self::External { shell: Some(shell), .. } = self {
            // It is looked at again if it still runs.
            let _ = shell.try_wait();
        }
    }
}

fn words(line: &str) -> Result<Vec<String>> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    if words.is_empty() {
        bail!("a command line is empty");
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_spawned_process_is_ended_and_started_again() {
        let mut control = Control::command("sleep 600", Vec::new(), Vec::new()).expect("a command");
        assert!(control.pid().is_err());
        control.start().expect("starts");
        let first = control.pid().expect("a process");
        assert_eq!(control.end(Signal::Kill, PATIENCE).expect("ends"), None, "a signal leaves no exit code");
        assert!(!procfs::is_running(first));
        control.start().expect("starts again");
        assert_ne!(control.pid().expect("a process"), first);
        assert!(Control::command(" ", Vec::new(), Vec::new()).is_err());
    }

    #[test]
    fn a_process_that_is_started_again_may_be_another_program() {
        let status = |control: &mut Control| {
            control.start().expect("starts");
            let Control::Spawned { server: Some(server), .. } = control else { panic!("it was spawned") };
            server.wait(PATIENCE).expect("ends").code()
        };
        let script = "exit 3".to_owned();
        let mut control = Control::command("sh -c", vec![script], Vec::new()).expect("a command");
        assert_eq!(status(&mut control), Some(3));
        control.change_command("echo").expect("a command");
        assert_eq!(status(&mut control), Some(0), "another program, with the arguments after it");
        assert!(control.change_command(" ").is_err() && Control::Pid(1).change_command("true").is_err());
    }

    #[test]
    fn a_process_of_others_is_found_by_its_file() {
        let dir = std::env::temp_dir().join(format!("loadgen-control-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let pid_file = dir.join("pid");
        let start = format!("echo $$ >{}; exec sleep 600", pid_file.display());
        let mut control = Control::External { pid_file: pid_file.clone(), start: Some(start), shell: None };
        let began = |control: &Control| {
            let deadline = Instant::now() + PATIENCE;
            loop {
                match control.pid() {
                    Ok(pid) => return pid,
                    Err(error) => assert!(Instant::now() < deadline, "{error:#}"),
                }
                pause();
            }
        };
        control.start().expect("starts");
        let pid = began(&control);
        control.end(Signal::Terminate, PATIENCE).expect("ends");
        assert!(!procfs::is_running(pid));
        fs::remove_dir_all(&dir).expect("removed");
        assert!(Control::Pid(1).start().is_err());
    }
}
