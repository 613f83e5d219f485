//! Preflight by doing: each operation a lab needs is tried, since rights on paper say little (Ubuntu
//! lets `unshare` succeed and then denies every capability; uid 0 in a container is not one).

use std::fmt;
use std::io;
use std::process::{Command, Stdio};

use super::namespace::Namespace;
use super::{LabError, entry, sys};
use crate::wan::bridge::PacketSocket;

/// What a lab, or the node in it, needs from the system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Making a user namespace and being root in it. Not needed by root.
    UserNamespace,
    /// Making a network namespace.
    NetworkNamespace,
    /// Adding a pair of virtual interfaces.
    Veth,
    /// Writing settings below `/proc/sys/net`.
    Sysctl,
    /// Opening a raw socket.
    PacketSocket,
    /// Opening a TUN device.
    Tun,
    /// Adding a table with NAT by the program `nft`.
    NfTable,
}

impl Operation {
    /// What the emulator and the lab themselves need.
    pub const LAB: &[Self] =
        &[Self::UserNamespace, Self::NetworkNamespace, Self::Veth, Self::Sysctl, Self::PacketSocket];
    /// What nodes in the lab need besides.
    pub const NODE: &[Self] = &[Self::Tun, Self::NfTable];

    /// What to do when the operation is refused.
    pub const fn cure(self) -> &'static str {
        match self {
            Self::UserNamespace => {
                "run as root, or allow it: sysctl kernel.unprivileged_userns_clone=1, \
                 kernel.apparmor_restrict_unprivileged_userns=0, user.max_user_namespaces above 0"
            }
            Self::NetworkNamespace => {
                "run as root or as a user who may make user namespaces; in a container add --privileged, \
                 or --cap-add SYS_ADMIN --cap-add NET_ADMIN"
            }
            Self::Veth => "load the kernel module: modprobe veth",
            Self::Sysctl => "in a container make /proc/sys writable (--privileged)",
            Self::PacketSocket => {
                "the kernel needs CONFIG_PACKET (modprobe af_packet); in a container add --cap-add NET_RAW"
            }
            Self::Tun => {
                "run as root, or: modprobe tun; chmod 0666 /dev/net/tun; in a container add --device /dev/net/tun"
            }
            Self::NfTable => {
                "install nftables (apt-get install nftables) and load the modules nf_tables and nft_chain_nat"
            }
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserNamespace => "making a user namespace",
            Self::NetworkNamespace => "making a network namespace",
            Self::Veth => "adding a veth pair",
            Self::Sysctl => "writing to /proc/sys/net",
            Self::PacketSocket => "opening a packet socket",
            Self::Tun => "opening a TUN device",
            Self::NfTable => "adding an nftables table",
        })
    }
}

/// The result of one operation tried.
#[derive(Debug)]
pub struct Check {
    /// What was tried.
    pub operation: Operation,
    /// How it went; the error names the cure.
    pub result: Result<(), LabError>,
}

/// Tries all operations, in order, each in a namespace that vanishes again. After a refused
/// [`Operation::NetworkNamespace`] the others are not tried.
pub fn preflight() -> Vec<Check> {
    let mut checks = Vec::new();
    let mut note = |operation: Operation, result: io::Result<()>| {
        let result = result.map_err(|source| LabError::Refused { operation, source, cure: operation.cure() });
        checks.push(Check { operation, result });
    };
    let privileged = entry::may_unshare_network();
    if privileged.is_err() {
        note(Operation::UserNamespace, try_user_namespace());
    }
    note(Operation::NetworkNamespace, privileged);
    // The namespace of this one may be refused only if the one before was.
    let Ok(namespace) = Namespace::new("preflight") else { return checks };
    let handle = namespace.raw_handle();
    let veth = namespace.call(move |netlink| {
        netlink.add_veth(("mwb-a", [2, 0, 0, 0, 0, 1]), ("mwb-b", [2, 0, 0, 0, 0, 2]), handle, 1500)
    });
    note(Operation::Veth, veth.map_err(io::Error::other).and_then(|r| r.map_err(io::Error::other)));
    let mut inside = |operation, attempt: fn() -> io::Result<()>| {
        note(operation, namespace.call(move |_| attempt()).unwrap_or_else(|e| Err(io::Error::other(e))));
    };
    inside(Operation::Sysctl, || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"));
    inside(Operation::PacketSocket, || PacketSocket::open(sys::interface_index("lo")?).map(drop));
    inside(Operation::Tun, || sys::try_tun("mwb-try"));
    inside(Operation::NfTable, try_nft);
    checks
}

fn try_user_namespace() -> io::Result<()> {
    let mut command = Command::new("/bin/true");
    sys::start_in_user_namespace(&mut command);
    command.stdin(Stdio::null()).status().map(drop)
}

/// A table with a masquerading chain, as an exit needs it, goes with the namespace.
fn try_nft() -> io::Result<()> {
    let rules = "add table inet mwb_try; \
        add chain inet mwb_try nat { type nat hook postrouting priority 100; }; \
        add rule inet mwb_try nat masquerade";
    let output = Command::new("nft").arg(rules).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(io::Error::other(text.trim().to_owned())) }
}
