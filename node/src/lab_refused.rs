//! What to do where the machine refuses what a lab needs.

use std::path::Path;

use mwb_sim::lab::{LabError, Operation};

const APPARMOR: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
const USER_NAMESPACES: &str = "/proc/sys/user/max_user_namespaces";
/// What Docker and Podman leave in their containers.
const CONTAINER_FILES: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];
/// What systemd-nspawn and others, and Kubernetes, set in theirs.
const CONTAINER_VARIABLES: [&str; 2] = ["container", "KUBERNETES_SERVICE_HOST"];
/// `systempaths` makes `/proc/sys/net` writable, without AppArmor's profile mounts are allowed; both only matter
/// inside the namespaces of the lab.
const DOCKER: &str = "docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN --cap-add NET_RAW \
                      --security-opt apparmor=unconfined --security-opt systempaths=unconfined \
                      --device /dev/net/tun …";

/// What explains a refusal.
#[derive(Clone, Copy, Debug)]
struct Place {
    root: bool,
    /// Ubuntu's rule since 23.10: user namespaces without any right.
    apparmor: bool,
    user_namespaces_off: bool,
    container: bool,
}

impl Place {
    fn here() -> Self {
        let number = |path: &str| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
        Self {
            root: rustix::process::geteuid().is_root(),
            apparmor: number(APPARMOR).is_some_and(|value| value > 0),
            user_namespaces_off: number(USER_NAMESPACES) == Some(0),
            container: CONTAINER_FILES.iter().any(|file| Path::new(file).exists())
                || CONTAINER_VARIABLES.iter().any(|name| std::env::var_os(name).is_some()),
        }
    }
}

/// Names the operation that failed, why, and the cure for this machine.
pub(crate) fn explain(error: &LabError) -> String {
    explain_at(error, Place::here())
}

fn explain_at(error: &LabError, place: Place) -> String {
    let mut text = format!("no lab can be built here: {error}");
    let LabError::Refused { operation, .. } = error else { return text };
    let namespaces = matches!(operation, Operation::UserNamespace | Operation::NetworkNamespace);
    if namespaces && place.apparmor && !place.root {
        text.push_str(
            "\n  AppArmor restricts user namespaces here (Ubuntu's default). Run it with sudo, or until the next boot: \
             sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        );
    }
    if namespaces && place.user_namespaces_off && !place.root {
        text.push_str(
            "\n  User namespaces are switched off here. Run it with sudo, or: \
             sudo sysctl -w user.max_user_namespaces=10000",
        );
    }
    // A missing program is no matter of rights.
    if place.container && *operation != Operation::NfTable {
        text.push_str(&format!("\n  In a container run it as root; this is enough: {DOCKER}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(operation: Operation) -> LabError {
        let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        LabError::Refused { operation, source, cure: operation.cure() }
    }

    #[test]
    fn the_cure_is_the_one_for_the_place() {
        let user = Place { root: false, apparmor: true, user_namespaces_off: false, container: false };
        let ubuntu = explain_at(&refused(Operation::NetworkNamespace), user);
        assert!(ubuntu.contains("making a network namespace failed"), "{ubuntu}");
        assert!(
            ubuntu.contains("kernel.apparmor_restrict_unprivileged_userns=0") && !ubuntu.contains("docker")
        );
        let off = Place { apparmor: false, user_namespaces_off: true, ..user };
        let text = explain_at(&refused(Operation::UserNamespace), off);
        assert!(text.contains("user.max_user_namespaces=") && !text.contains("AppArmor"), "{text}");
        let container = Place { root: true, container: true, ..user };
        let text = explain_at(&refused(Operation::Tun), container);
        assert!(text.contains("--cap-add NET_ADMIN") && text.contains("--device /dev/net/tun"), "{text}");
        assert!(!text.contains("AppArmor restricts"), "root is not restricted: {text}");
        let nft = explain_at(&refused(Operation::NfTable), Place { container: true, ..user });
        assert!(nft.contains("apt-get install nftables") && !nft.contains("docker run"), "{nft}");
        assert!(!nft.contains("AppArmor"), "{nft}");
    }
}
