//! The program under test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use mwb_sim::lab::{Host, LabChild};
use rustix::process::Signal;

/// How long a node may take for what it is asked.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The program: `MWB_NODE`, or the one that was built with this test.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("MWB_NODE").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_mwb-node")), PathBuf::from)
}

/// Runs the program with `arguments` to its end, without any of our variables in its environment.
pub(crate) fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program can be run")
}

/// A command for [`run`], to be changed first.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MWB_") {
            command.env_remove(name);
        }
    }
    command
}

/// A node with its folders, running or not.
pub(crate) struct Node {
    host: Host,
    config: PathBuf,
    state: PathBuf,
    runtime: PathBuf,
    /// Its id.
    pub(crate) id: String,
    child: Option<LabChild>,
}

impl Node {
    /// A node for `host` with a new key; its files are in `dir`.
    pub(crate) fn new(host: Host, dir: &Path) -> Self {
        let path = |what: &str| dir.join(format!("{}-{what}", host.name()));
        let (config, state, runtime) = (path("config.toml"), path("state"), path("run"));
        let output = run(&["key", "--state-dir", state.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        let id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        assert_eq!(id.len(), 64, "{id}");
        Self { host, config, state, runtime, id, child: None }
    }

    /// Writes its configuration.
    pub(crate) fn configure(&self, text: &str) {
        std::fs::write(&self.config, text).unwrap();
    }

    /// Starts it.
    pub(crate) fn start(&mut self) {
        let config = self.config.clone();
        self.start_with(|command| {
            command.arg("--config").arg(config);
        });
    }

    /// Starts it with more options.
    pub(crate) fn start_with_options(&mut self, options: &[&str]) {
        let config = self.config.clone();
        self.start_with(|command| {
            command.arg("--config").arg(config).args(options);
        });
    }

    /// Starts it without a configuration.
    pub(crate) fn start_without_a_file(&mut self) {
        self.start_with(|_| {});
    }

    /// Starts it as a service manager does: with those capabilities alone (names as in a unit file), and told where it
    /// reports to and how often.
    pub(crate) fn start_as_service(&mut self, capabilities: &[&str], reports: &Path, watchdog: Duration) {
        let (program, config) = (program(), self.config.clone());
        let names = capabilities.iter().map(|name| name.trim_start_matches("CAP_").to_lowercase());
        let bounding: String = names.map(|name| format!(",+{name}")).collect();
        let mut command = Command::new("setpriv");
        command.arg("--no-new-privs").arg(format!("--bounding-set=-all{bounding}"));
        command.arg("--").arg(program).arg("run").arg("--config").arg(config);
        command.arg("--state-dir").arg(&self.state).arg("--runtime-dir").arg(&self.runtime);
        command.env("NOTIFY_SOCKET", reports).env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        self.child = Some(self.host.spawn(command).expect("the program starts"));
    }

    /// Starts it where the programs in `folder` are found before all others.
    pub(crate) fn start_with_programs(&mut self, folder: &Path) {
        let config = self.config.clone();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
        self.start_with(|command| {
            command.arg("--config").arg(config).env("PATH", path);
        });
    }

    fn start_with(&mut self, change: impl FnOnce(&mut Command)) {
        assert!(self.child.is_none(), "it runs already");
        let mut command = command(&["run"]);
        change(&mut command);
        command.arg("--state-dir").arg(&self.state).arg("--runtime-dir").arg(&self.runtime);
        command.env("RUST_BACKTRACE", "1");
        self.child = Some(self.host.spawn(command).expect("the program starts"));
    }

    /// SIGKILL: it can do nothing about it.
    pub(crate) fn kill(&mut self) {
        self.child.take().expect("it runs").kill().unwrap();
    }

    /// SIGTERM: it must end soon, and well.
    pub(crate) fn stop(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let status = child.stop(PATIENCE).unwrap();
        assert!(status.success(), "{status}\n{}", child.stderr());
    }

    /// Sends it a signal.
    pub(crate) fn signal(&mut self, signal: Signal) {
        self.child.as_mut().expect("it runs").signal(signal).unwrap();
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Waits for it to end by itself: its exit code and its log.
    pub(crate) fn ended(&mut self, at_most: Duration) -> (Option<i32>, String) {
        let mut child = self.child.take().expect("it runs");
        let status = child.wait_for(at_most).unwrap();
        let status = status.unwrap_or_else(|| panic!("it still runs:\n{}", child.stderr()));
        (status.code(), child.stderr())
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        self.child.as_ref().map(LabChild::stderr).unwrap_or_default()
    }

    /// What `mwb-node status --json` says, or nothing if it does not answer.
    pub(crate) fn status(&self) -> Option<serde_json::Value> {
        let output = run(&["status", "--json", "--runtime-dir", self.runtime.to_str().unwrap()]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("status prints JSON"))
    }

    /// Asks the running node with `arguments`.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        run(&[arguments, &["--runtime-dir", self.runtime.to_str().unwrap()]].concat())
    }

    /// As [`Self::ask`], on its own host.
    pub(crate) fn ask_here(&self, arguments: &[&str]) -> Output {
        self.host.output(self.asking(arguments)).unwrap()
    }

    /// The same, not waited for.
    pub(crate) fn start_asking(&self, arguments: &[&str]) -> LabChild {
        self.host.spawn(self.asking(arguments)).unwrap()
    }

    fn asking(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.arg("--runtime-dir").arg(&self.runtime);
        command
    }

    /// `mwb-node doctor` on its host, with all of its folders and its configuration.
    pub(crate) fn doctor(&self, arguments: &[&str]) -> Output {
        let mut command = command(&[&["doctor"], arguments].concat());
        command.arg("--config").arg(&self.config).arg("--state-dir").arg(&self.state);
        command.arg("--runtime-dir").arg(&self.runtime);
        self.host.output(command).unwrap()
    }

    /// Runs the program on its host with `arguments` and its state folder.
    pub(crate) fn mwb(&self, arguments: &[&str]) -> Output {
        self.mwb_with(arguments, |_| {})
    }

    /// As [`Self::mwb`], with a command that `change` has changed.
    pub(crate) fn mwb_with(&self, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Output {
        let mut command = command(arguments);
        command.arg("--state-dir").arg(&self.state);
        change(&mut command);
        self.host.output(command).unwrap()
    }

    /// The file of its configuration.
    pub(crate) fn config_file(&self) -> &Path {
        &self.config
    }

    /// Its state folder.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.state
    }

    /// `mwb-node down` for its folders and namespace.
    pub(crate) fn down(&self) -> Output {
        self.host.output(self.asking(&["down"])).unwrap()
    }

    /// The same, not waited for.
    pub(crate) fn start_down(&self) -> LabChild {
        self.host.spawn(self.asking(&["down"])).unwrap()
    }

    /// What `ip` prints in its namespace.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let mut command = Command::new("ip");
        command.args(arguments.split(' '));
        let output = self.host.output(command).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What `nft list ruleset` prints in its namespace.
    pub(crate) fn nft(&self) -> String {
        let mut command = Command::new("nft");
        command.args(["list", "ruleset"]);
        let output = self.host.output(command).unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The host it runs on.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Fails with its log if it has ended.
    pub(crate) fn check(&mut self) {
        let Some(child) = &mut self.child else { return };
        if let Some(status) = child.try_wait().unwrap() {
            panic!("{} ended ({status}):\n{}", self.host.name(), child.stderr());
        }
    }
}

/// Waits until `done` says so; `what` for the message when it does not in time.
#[track_caller]
pub(crate) fn wait_until(what: &str, at_most: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + at_most;
    while !done() {
        assert!(Instant::now() < end, "not within {at_most:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
