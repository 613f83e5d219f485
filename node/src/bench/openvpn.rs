//! OpenVPN between the edge and the exit of a lab, point to point, in user space and with our cipher: the rival of the
//! CPU-bound run. It uses one uplink.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mwb_sim::lab::{Host, Lab, LabChild};

const PORT: &str = "1194";
/// Inner addresses of exit and edge.
const EXIT: &str = "10.88.0.1";
const EDGE: &str = "10.88.0.2";
const POOL: &str = "10.88.0.0/24";
const CIPHER: &str = "AES-128-GCM";
/// What it logs once the tunnel is usable.
const READY: &str = "Initialization Sequence Completed";
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(50);

/// Two running processes, and the routes through them; all ends with it.
pub(super) struct OpenVpn {
    edge: LabChild,
    exit: LabChild,
}

impl OpenVpn {
    /// Starts both ends, and routes `server` through them.
    ///
    /// # Errors
    /// When a program is not installed, or the two do not find each other.
    pub(super) fn start(lab: &Lab, server: IpAddr) -> anyhow::Result<Self> {
        let (edge, exit) = (lab.host("edge"), lab.host("exit"));
        let version = Command::new("openvpn").arg("--version").output();
        version.context("running openvpn: apt-get install openvpn openssl")?;
        let dir = lab.dir().join("openvpn");
        std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let (of_edge, of_exit) = (Identity::new(&dir, "edge")?, Identity::new(&dir, "exit")?);
        let mut command = of_exit.command(&of_edge, EXIT, EDGE);
        command.args(["--tls-server", "--dh", "none", "--lport", PORT]);
        let mut exit_end = exit.spawn(command)?;
        let mut command = of_edge.command(&of_exit, EDGE, EXIT);
        command.args(["--tls-client", "--nobind", "--remote", &exit.address().to_string(), PORT]);
        let mut edge_end = edge.spawn(command)?;
        ready(&mut exit_end)?;
        ready(&mut edge_end)?;
        exit.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
            .context("forwarding on the exit")?;
        route(&lab.host("internet"), &[POOL, "via", &exit.address().to_string()])?;
        // It goes with the device.
        route(&edge, &[&server.to_string(), "via", EXIT])?;
        Ok(Self { edge: edge_end, exit: exit_end })
    }

    /// Process ids of edge and exit.
    pub(super) fn pids(&self) -> (u32, u32) {
        (self.edge.id(), self.exit.id())
    }
}

/// A key with a certificate signed by itself, known by its fingerprint.
struct Identity {
    key: PathBuf,
    certificate: PathBuf,
    fingerprint: String,
}

impl Identity {
    fn new(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let (key, certificate) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.crt")));
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        command.args(["-days", "30", "-subj", &format!("/CN={name}")]);
        command.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        output(command)?;
        let mut command = Command::new("openssl");
        command.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(&certificate);
        let text = output(command)?;
        let fingerprint = fingerprint(&text).with_context(|| format!("no fingerprint in {text:?}"))?;
        Ok(Self { key, certificate, fingerprint })
    }

    /// What both ends are told.
    fn command(&self, peer: &Self, local: &str, remote: &str) -> Command {
        let mut command = Command::new("openvpn");
        command.args(["--dev", "tun", "--proto", "udp4", "--disable-dco", "--ifconfig", local, remote]);
        command.args(["--data-ciphers", CIPHER, "--peer-fingerprint", &peer.fingerprint]);
        command.arg("--key").arg(&self.key).arg("--cert").arg(&self.certificate);
        command
    }
}

/// The hexadecimal part of `sha256 Fingerprint=AA:BB:…`.
fn fingerprint(text: &str) -> Option<String> {
    let (_, digits) = text.trim().split_once("Fingerprint=")?;
    let valid = digits.split(':').all(|byte| byte.len() == 2 && u8::from_str_radix(byte, 16).is_ok());
    (valid && digits.split(':').count() == 32).then(|| digits.to_owned())
}

fn output(mut command: Command) -> anyhow::Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("running {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn route(host: &Host, args: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(["route", "add"]).args(args);
    let output = host.output(command).context("running ip, of the package iproute2")?;
    if !output.status.success() {
        bail!("ip route add {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn ready(end: &mut LabChild) -> anyhow::Result<()> {
    let last = Instant::now() + PATIENCE;
    while !end.stdout().contains(READY) {
        if let Some(status) = end.try_wait()? {
            bail!("openvpn ended ({status}): {}", end.stdout().trim());
        }
        if Instant::now() >= last {
            bail!("openvpn found no peer in {PATIENCE:?}: {}", end.stdout().trim());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_32_bytes_in_hexadecimal() {
        let digits = vec!["A7"; 32].join(":");
        assert_eq!(fingerprint(&format!("sha256 Fingerprint={digits}\n")), Some(digits.clone()));
        assert_eq!(fingerprint(&format!("sha1 Fingerprint={}", &digits[3..])), None);
        assert_eq!(fingerprint(&format!("sha256 Fingerprint={}", digits.replace('A', "G"))), None);
        assert_eq!(fingerprint("unable to load certificate"), None);
    }
}
