//! Name resolution: which resolvers an exit has for its edges, and how an edge's host comes to ask them.
//!
//! The usual resolver of a host is the router of its first uplink, reached past the bond and gone with that uplink. So while a
//! session is up the host asks the exit's, through the bond. Where systemd-resolved runs, it is told (with `resolvectl`)
//! that the TUN device has resolvers, and that all names are theirs (`~.`); that ends with the device, whatever ends the node.
//! Elsewhere, and where `/etc/resolv.conf` does not lead to systemd-resolved, that file is changed ([`resolv_conf`]).
//!
//! Nothing here may cost the host its bond: what cannot be done is a warning.

mod resolv_conf;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use resolv_conf::ResolvConf;
use tokio::process::Command;
use tokio::sync::Mutex;

use super::PlatformError;
use crate::config::Dns;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The folder of systemd-resolved while it is in use.
const RESOLVED: &str = "/run/systemd/resolve";
/// The resolvers that systemd-resolved itself asks.
const RESOLVED_UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
/// Where it answers (systemd-resolved.service(8)).
const RESOLVED_STUBS: [IpAddr; 2] = [stub(53), stub(54)];
/// How long `resolvectl` may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often somebody else's change is looked for.
const LOOK: Duration = Duration::from_secs(5);

const fn stub(last: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, last))
}

/// What an edge's host asks while a session is up.
#[derive(Debug)]
pub(super) struct HostNames {
    choice: Dns,
    file: ResolvConf,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The servers that were set last, and at which device.
    set: Option<(String, Vec<IpAddr>)>,
    /// Whether systemd-resolved knows of them.
    resolved: bool,
    file: FileState,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum FileState {
    #[default]
    Untouched,
    Ours,
    /// Somebody else has written it since.
    Theirs,
}

impl HostNames {
    /// By `choice`, for the node with this runtime folder. Changes nothing yet.
    pub(super) fn new(choice: Dns, runtime_dir: &Path) -> Self {
        Self::at(choice, runtime_dir, Path::new(RESOLV_CONF))
    }

    fn at(choice: Dns, runtime_dir: &Path, path: &Path) -> Self {
        let file = ResolvConf::new(path, runtime_dir);
        Self { choice, file, path: path.to_owned(), state: Mutex::default() }
    }

    /// A session is up over `tun`, with inner addresses of these families; its exit offers `offered`.
    pub(super) async fn set(&self, tun: &str, offered: &[IpAddr], (has_v4, has_v6): (bool, bool)) {
        let reachable = |server: &&IpAddr| if server.is_ipv4() { has_v4 } else { has_v6 };
        let servers: Vec<IpAddr> = match &self.choice {
            Dns::Off => return,
            // Whatever the exit says: an address of this host or of its LAN's neighbours is not behind it.
            Dns::Auto => {
                offered.iter().filter(|server| is_elsewhere(**server)).filter(reachable).copied().collect()
            }
            Dns::Given(servers) => servers.clone(),
        };
        let mut state = self.state.lock().await;
        if servers.is_empty() {
            if state.set.is_none() {
                tracing::warn!(
                    "the exit names no resolver that is reached through the bond: names are asked as before, past it; write exit.dns there, \
                     or tun.dns here"
                );
            }
            return;
        }
        if state.set.as_ref().is_some_and(|(device, set)| device == tun && *set == servers) && !state.resolved
        {
            return;
        }
        state.resolved = Path::new(RESOLVED).is_dir() && tell_resolved(tun, &servers).await;
        if !(state.resolved && self.leads_to_resolved()) {
            self.write(&mut state, &servers);
        }
        if state.resolved || state.file == FileState::Ours {
            tracing::info!(tun, ?servers, resolved = state.resolved, "names are asked through the bond");
        }
        state.set = Some((tun.to_owned(), servers));
    }

    fn write(&self, state: &mut State, servers: &[IpAddr]) {
        if state.file == FileState::Theirs || self.is_overwritten(state) {
            return;
        }
        if is_another_networks(&self.path) {
            tracing::warn!(
                path = %self.path.display(),
                "names are asked as before: this network namespace shares the file with the machine; give it one of its own \
                 (for ip netns: /etc/netns/NAME/resolv.conf)"
            );
            return;
        }
        match self.file.write(servers) {
            Ok(()) => state.file = FileState::Ours,
            Err(error) => tracing::warn!(
                path = %self.path.display(),
                %error,
                "names are asked as before, past the bond: make its folder writable for this node (in a systemd unit \
                 ReadWritePaths=/etc), run systemd-resolved, or write tun.dns = \"off\" and name a resolver there that is \
                 reached by every uplink"
            ),
        }
    }

    /// Whether the file was ours and is not any more; the first time that is told.
    fn is_overwritten(&self, state: &mut State) -> bool {
        if state.file == FileState::Ours && self.file.is_ours().is_ok_and(|ours| !ours) {
            tracing::warn!(
                path = %self.path.display(),
                "another program has written it since: names are asked as that says, perhaps past the bond. Have that \
                 program leave it alone, run systemd-resolved, or write tun.dns = \"off\""
            );
            state.file = FileState::Theirs;
        }
        state.file == FileState::Theirs
    }

    /// Tells when somebody else writes the file. Does not end.
    pub(super) async fn watch(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.is_overwritten(&mut *self.state.lock().await);
        }
    }

    /// The host asks as before.
    pub(super) async fn revert(&self) {
        let mut state = self.state.lock().await;
        let State { set, resolved, file } = std::mem::take(&mut *state);
        if let Some((tun, _)) = set.filter(|_| resolved) {
            // The device ends soon, and this with it.
            if let Err(problem) = resolvectl(&["revert", &tun]).await {
                tracing::debug!(problem, "systemd-resolved was not told that the session is over");
            }
        }
        if file == FileState::Untouched {
            return;
        }
        match self.file.restore() {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                path = %self.path.display(),
                "another program has written it since: it stays as that left it"
            ),
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "is not put back yet"),
        }
    }

    /// Whether programs that read the file ask systemd-resolved.
    fn leads_to_resolved(&self) -> bool {
        let servers = resolv_conf::read(&self.path).map(|text| resolv_conf::nameservers(&text));
        servers.is_ok_and(|servers| servers.iter().any(|server| RESOLVED_STUBS.contains(server)))
    }
}

/// Puts back what an earlier node with this runtime folder left; what was done, in words.
///
/// # Errors
/// When the file cannot be read or written.
pub(super) fn restore(runtime_dir: &Path) -> Result<Option<String>, PlatformError> {
    let file = ResolvConf::new(Path::new(RESOLV_CONF), runtime_dir);
    let restored = file.restore().map_err(PlatformError::file(format!("putting {RESOLV_CONF} back")))?;
    Ok(restored.then(|| format!("{RESOLV_CONF} is what it was before")))
}

/// The resolvers that an exit offers to its edges: those of `choice`, or those that it asks itself. Does not block.
pub(super) fn offered(choice: &Dns) -> Vec<IpAddr> {
    match choice {
        Dns::Off => Vec::new(),
        Dns::Given(servers) => servers.clone(),
        Dns::Auto => {
            let own = |path: &str| -> Vec<IpAddr> {
                let text = resolv_conf::read(Path::new(path)).unwrap_or_default();
                resolv_conf::nameservers(&text).into_iter().filter(|server| is_elsewhere(*server)).collect()
            };
            let servers = own(RESOLV_CONF);
            if servers.is_empty() { own(RESOLVED_UPSTREAM) } else { servers }
        }
    }
}

/// Whether `server` can be another host that is not on the same link only.
pub(crate) fn is_elsewhere(server: IpAddr) -> bool {
    let here = server.is_loopback() || server.is_unspecified() || server.is_multicast();
    let near = match server.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !here && !near
}

async fn tell_resolved(tun: &str, servers: &[IpAddr]) -> bool {
    let addresses: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
    let mut dns = vec!["dns", tun];
    dns.extend(addresses.iter().map(String::as_str));
    for arguments in [&dns[..], &["domain", tun, "~."], &["default-route", tun, "yes"]] {
        if let Err(problem) = resolvectl(arguments).await {
            tracing::debug!(problem, "systemd-resolved does not take resolvers");
            return false;
        }
    }
    true
}

async fn resolvectl(arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new("resolvectl");
    command.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let told = || format!("resolvectl {}", arguments.join(" "));
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_late) => Err(format!("{} takes longer than {PATIENCE:?}", told())),
        Ok(Err(error)) => Err(format!("{}: {error}", told())),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(format!("{}: {}", told(), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Whether the file is that of the machine's first process, while our network is not: then it is about another one.
fn is_another_networks(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let (Some(ours), Some(first)) = (of("self"), of("1")) else { return false };
    let file = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let theirs = Path::new("/proc/1/root").join(path.strip_prefix("/").unwrap_or(path));
    ours != first && file(path).is_some() && file(path) == file(&theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn only_resolvers_elsewhere_are_offered_and_used() {
        let here = [
            "127.0.0.53",
            "::1",
            "0.0.0.0",
            "::",
            "169.254.169.253",
            "fe80::1",
            "224.0.0.1",
            "::ffff:127.0.0.1",
        ];
        assert!(addresses(&here).into_iter().all(|server| !is_elsewhere(server)));
        let elsewhere = ["10.0.0.2", "9.9.9.9", "2620:fe::fe", "fd00::53"];
        assert!(addresses(&elsewhere).into_iter().all(is_elsewhere));
        assert!(offered(&Dns::Off).is_empty());
        assert_eq!(offered(&Dns::Given(addresses(&["9.9.9.9"]))), addresses(&["9.9.9.9"]));
    }

    #[tokio::test]
    async fn the_file_follows_the_session_unless_somebody_else_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let before = "nameserver 192.0.2.1";
        std::fs::write(&path, before).unwrap();
        let text = || std::fs::read_to_string(&path).unwrap();
        let names = HostNames::at(Dns::Auto, dir.path(), &path);
        names.set("none0", &addresses(&["127.0.0.1", "2001:db8::53"]), (true, false)).await;
        assert_eq!(text(), before, "nothing that could be asked is offered");
        names.set("none0", &addresses(&["127.0.0.1", "198.51.100.53", "2001:db8::53"]), (true, false)).await;
        assert_eq!(resolv_conf::nameservers(text().as_bytes()), addresses(&["198.51.100.53"]));
        names.set("none0", &addresses(&["198.51.100.54"]), (true, false)).await;
        assert_eq!(resolv_conf::nameservers(text().as_bytes()), addresses(&["198.51.100.54"]));
        names.revert().await;
        assert_eq!(text(), before);

        names.set("none0", &addresses(&["198.51.100.53"]), (true, true)).await;
        std::fs::write(&path, "nameserver 192.0.2.77\n").unwrap();
        names.set("none0", &addresses(&["198.51.100.54"]), (true, true)).await;
        names.revert().await;
        assert_eq!(text(), "nameserver 192.0.2.77\n");

        let names = HostNames::at(Dns::Off, dir.path(), &path);
        names.set("none0", &addresses(&["198.51.100.53"]), (true, true)).await;
        assert_eq!(text(), "nameserver 192.0.2.77\n");
        let names = HostNames::at(Dns::Given(addresses(&["127.0.0.1"])), dir.path(), &path);
        names.set("none0", &[], (true, false)).await;
        assert_eq!(resolv_conf::nameservers(text().as_bytes()), addresses(&["127.0.0.1"]));
        names.revert().await;
    }
}
