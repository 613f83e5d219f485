//! A program that runs inside a namespace of the lab.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::sys;

/// Between two looks at whether a program has ended.
const LOOK: Duration = Duration::from_millis(5);

/// The files that take the output of a program.
#[derive(Debug)]
pub(super) struct Output {
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Output {
    /// New files named after host and program.
    pub(super) fn create(logs: &Path, host: &str, command: &Command, number: u32) -> io::Result<Self> {
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().display();
        let path = |stream: &str| logs.join(format!("{host}-{number}-{program}.{stream}"));
        let output = Self { stdout: path("out"), stderr: path("err") };
        File::create(&output.stdout)?;
        File::create(&output.stderr)?;
        Ok(output)
    }
}

/// A program in the lab, killed when dropped.
#[derive(Debug)]
pub struct LabChild {
    child: Child,
    output: Output,
}

impl LabChild {
    /// Starts it from this thread, with which it dies.
    pub(super) fn start(command: &mut Command, output: Output) -> io::Result<Self> {
        let append = |path: &Path| File::options().append(true).open(path);
        command.stdin(Stdio::null());
        command.stdout(append(&output.stdout)?).stderr(append(&output.stderr)?);
        sys::die_with_parent(command);
        Ok(Self { child: command.spawn()?, output })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file with its standard output.
    pub fn stdout_path(&self) -> &Path {
        &self.output.stdout
    }

    /// The file with its standard error.
    pub fn stderr_path(&self) -> &Path {
        &self.output.stderr
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.output.stdout)
    }

    /// Its standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.output.stderr)
    }

    /// Sends a signal. A program that has ended is no error.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        // A child that was waited for has no process any more, and its id may be another's.
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).map_err(io::Error::from)
    }

    /// Its exit status, if it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end, but not longer than `at_most`; `None` if it still runs then.
    pub fn wait_for(&mut self, at_most: Duration) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + at_most;
        loop {
            match self.child.try_wait()? {
                None if Instant::now() < end => std::thread::sleep(LOOK),
                status => return Ok(status),
            }
        }
    }

    /// Asks it to end with SIGTERM, and kills it after `grace`.
    pub fn stop(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        match self.wait_for(grace)? {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// Waits until `text` is in one of its outputs; false if it ended, or `at_most` went by, without.
    pub fn wait_for_output(&mut self, text: &str, at_most: Duration) -> io::Result<bool> {
        let end = Instant::now() + at_most;
        loop {
            let ended = self.child.try_wait()?.is_some();
            if self.stdout().contains(text) || self.stderr().contains(text) {
                return Ok(true);
            }
            if ended || Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for LabChild {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}

/// What is in a file, or nothing if it is gone.
fn read(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
