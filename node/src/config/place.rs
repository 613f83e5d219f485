//! Uplinks that name neither an interface nor an address mean any interface of their type.

use std::collections::BTreeSet;

use super::{LinkType, Uplink, Warning};

/// Gives each of `uplinks` that names neither an interface nor an address the first of `interfaces` (those with a
/// default route, the preferred first) that fits its type and is not taken. Those for which there is none are left
/// out, except one when nothing else is there: the main routing table may know a way for it later. A single uplink
/// whose type fits the preferred interface is left to that table too: it follows when the route changes.
/// `taken` are interfaces that others use by their address.
pub(crate) fn place(uplinks: &mut Vec<Uplink>, interfaces: &[String], taken: &[String]) -> Vec<Warning> {
    let unbound = |uplink: &Uplink| uplink.interface.is_none() && uplink.address.is_none();
    if let ([single], Some(preferred)) = (uplinks.as_slice(), interfaces.first())
        && unbound(single)
        && single.kind.fits(preferred)
    {
        return Vec::new();
    }
    let named = uplinks.iter().filter_map(|uplink| uplink.interface.clone());
    let mut taken: BTreeSet<String> = taken.iter().cloned().chain(named).collect();
    // Those of a type choose first: the others can use what remains.
    let (typed, any): (Vec<_>, Vec<_>) = uplinks
        .iter_mut()
        .filter(|uplink| unbound(uplink))
        .partition(|uplink| uplink.kind != LinkType::Other);
    for uplink in typed.into_iter().chain(any) {
        let fits = |name: &&String| !taken.contains(*name) && uplink.kind.fits(name);
        if let Some(found) = interfaces.iter().find(fits).cloned() {
            taken.insert(found.clone());
            uplink.interface = Some(found);
        }
    }
    let mut kept = !uplinks.iter().all(unbound);
    let mut warnings = Vec::new();
    uplinks.retain(|uplink| {
        let keep = !unbound(uplink) || !kept;
        kept = true;
        if !keep {
            warnings.push(Warning {
                key: format!("uplink {}", uplink.name),
                origin: format!("type {}", uplink.kind.name()),
                says: "is left out: no free interface of that type has a default route now; name one with interface = \
                       \"…\" to have it waited for"
                    .to_owned(),
            });
        }
        keep
    });
    warnings
}

impl LinkType {
    /// Whether a line of this type can be behind an interface of that name (systemd.net-naming-scheme(7), and the
    /// kernel's own names).
    fn fits(self, interface: &str) -> bool {
        let any = |starts: &[&str]| starts.iter().any(|start| interface.starts_with(start));
        let (wireless, cellular) = (any(&["wl"]), any(&["ww", "rmnet", "usb"]));
        match self {
            // Dialled, either way.
            Self::Lte | Self::FiveG => cellular || any(&["ppp"]),
            Self::Wifi => wireless,
            // Named by its hardware address where names are made predictable.
            Self::Tethering => any(&["usb", "enx"]),
            Self::Other => true,
            Self::Adsl
            | Self::Vdsl
            | Self::Fiber
            | Self::Starlink
            | Self::Satellite
            | Self::Cable
            | Self::Ethernet => !wireless && !cellular,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(id: u8, kind: LinkType, interface: Option<&str>) -> Uplink {
        Uplink {
            id,
            name: format!("u{id}"),
            interface: interface.map(str::to_owned),
            address: None,
            kind,
            max_bandwidth: None,
            weight: 10,
            metered: false,
            lend: true,
            health: kind.health(),
        }
    }

    fn placed(
        uplinks: &[(LinkType, Option<&str>)],
        interfaces: &[&str],
    ) -> (Vec<(u8, Option<String>)>, usize) {
        let numbered = uplinks.iter().zip(1..);
        let mut uplinks = numbered.map(|((kind, interface), id)| uplink(id, *kind, *interface)).collect();
        let interfaces: Vec<String> = interfaces.iter().map(|name| (*name).to_owned()).collect();
        let warnings = place(&mut uplinks, &interfaces, &["used0".to_owned()]);
        (uplinks.into_iter().map(|uplink| (uplink.id, uplink.interface)).collect(), warnings.len())
    }

    #[test]
    fn each_takes_an_interface_of_its_type() {
        use LinkType::{Fiber, FiveG, Lte, Other, Starlink, Wifi};
        let some = |id, name: &str| (id, Some(name.to_owned()));
        let all = ["used0", "enp1s0", "wlan0", "wwan0", "eth1"];
        let (uplinks, warnings) = placed(&[(Fiber, None), (Starlink, None), (Lte, None), (Wifi, None)], &all);
        assert_eq!(uplinks, [some(1, "enp1s0"), some(2, "eth1"), some(3, "wwan0"), some(4, "wlan0")]);
        assert_eq!(warnings, 0);
        // What is named is not given away, and what takes anything takes what the others leave.
        let (uplinks, warnings) = placed(&[(Other, None), (Fiber, None), (Fiber, Some("enp1s0"))], &all);
        assert_eq!(uplinks, [some(1, "wlan0"), some(2, "eth1"), some(3, "enp1s0")]);
        assert_eq!(warnings, 0);
        let (uplinks, warnings) = placed(&[(Fiber, None), (FiveG, None)], &["eth0", "eth1"]);
        assert_eq!((uplinks, warnings), (vec![some(1, "eth0")], 1));
    }

    #[test]
    fn one_always_remains() {
        use LinkType::{Fiber, Lte, Other};
        let eth0 = || Some("eth0".to_owned());
        assert_eq!(
            placed(&[(Fiber, None)], &["eth0"]),
            (vec![(1, None)], 0),
            "the main routing table has it"
        );
        assert_eq!(placed(&[(Other, None)], &["eth0", "eth1"]), (vec![(1, None)], 0));
        assert_eq!(placed(&[(Fiber, None)], &["wwan0", "eth0"]), (vec![(1, eth0())], 0));
        assert_eq!(placed(&[(Lte, None)], &["eth0"]), (vec![(1, None)], 0), "it may come");
        assert_eq!(placed(&[(Fiber, None), (Lte, None)], &[]), (vec![(1, None)], 1));
        assert_eq!(placed(&[(Lte, None), (Fiber, Some("eth0"))], &["eth0"]), (vec![(2, eth0())], 1));
    }
}
