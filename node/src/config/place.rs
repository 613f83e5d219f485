//! Uplinks that name neither an interface nor an address mean any interface of their type.

use std::collections::BTreeMap;

use super::{LinkType, Uplink};

/// Such uplinks, and the interfaces that they have. No I/O: what is there goes in, each time it may have changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Typed {
    uplinks: Vec<Uplink>,
    /// By id.
    places: BTreeMap<u8, String>,
}

impl Typed {
    /// Those of `uplinks` that name neither an interface nor an address.
    pub(crate) fn of(uplinks: &[Uplink]) -> Self {
        Self {
            uplinks: uplinks.iter().filter(|uplink| uplink.is_typed()).cloned().collect(),
            ..Self::default()
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.uplinks.is_empty()
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Uplink] {
        &self.uplinks
    }

    /// Gives each the first of `present` (those that could be an uplink and that nobody names, the preferred first, each with
    /// what it seems to be) that fits its type. Who has an interface keeps it while it is there: another that comes is
    /// no reason to break what runs over it.
    pub(crate) fn place(&mut self, present: &[(&str, LinkType)]) -> BTreeMap<String, &Uplink> {
        self.places.retain(|_, place| present.iter().any(|(name, _)| name == place));
        // Those of a type choose first: the others can use what remains.
        let (typed, any): (Vec<_>, Vec<_>) =
            self.uplinks.iter().partition(|uplink| uplink.kind != LinkType::Other);
        for uplink in typed.into_iter().chain(any) {
            if self.places.contains_key(&uplink.id) {
                continue;
            }
            let free = |(name, line): &&(&str, LinkType)| {
                !self.places.values().any(|taken| taken == name) && uplink.kind.fits(name, *line)
            };
            if let Some((name, _)) = present.iter().find(free) {
                self.places.insert(uplink.id, (*name).to_owned());
            }
        }
        let placed =
            self.uplinks.iter().filter_map(|uplink| Some((self.places.get(&uplink.id)?.clone(), uplink)));
        placed.collect()
    }
}

impl Uplink {
    /// Ceiling of its rate, bit/s.
    pub(crate) fn rate_max(&self) -> Option<u64> {
        self.max_bandwidth.map(|bytes| bytes.get() * 8)
    }

    /// Whether it means any interface of its type.
    pub(crate) fn is_typed(&self) -> bool {
        self.interface.is_none() && self.address.is_none()
    }
}

impl LinkType {
    /// Whether a line of this type can be behind an interface of that name (systemd.net-naming-scheme(7), and the
    /// kernel's own names), which seems to be a `line`.
    fn fits(self, interface: &str, line: Self) -> bool {
        let any = |starts: &[&str]| starts.iter().any(|start| interface.starts_with(start));
        let (wireless, cellular) = (any(&["wl"]), any(&["ww", "rmnet", "usb"]));
        let is_wired = !matches!(line, Self::Wifi | Self::Lte | Self::FiveG | Self::Tethering);
        match self {
            kind if kind == line => true,
            // Dialled, either way.
            Self::Lte | Self::FiveG => cellular || any(&["ppp"]) || matches!(line, Self::Lte | Self::FiveG),
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
            | Self::Ethernet => !wireless && !cellular && is_wired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LinkType::{Ethernet, Fiber, FiveG, Lte, Other, Starlink, Tethering, Wifi};

    fn typed(kinds: &[LinkType]) -> Typed {
        let uplink = |(kind, id): (&LinkType, u8)| Uplink {
            id,
            name: format!("u{id}"),
            interface: None,
            address: None,
            kind: *kind,
            max_bandwidth: None,
            weight: 10,
            metered: false,
            lend: true,
            health: kind.health(),
        };
        let mut uplinks: Vec<_> = kinds.iter().zip(1..).map(uplink).collect();
        uplinks.push(Uplink { interface: Some("eth9".to_owned()), ..uplink((&Fiber, 31)) });
        Typed::of(&uplinks)
    }

    /// Interfaces of the uplinks 1, 2 and so on; `-` without one.
    fn placed(typed: &mut Typed, present: &[(&str, LinkType)]) -> String {
        let count = typed.all().len();
        let places = typed.place(present);
        let of = |id: usize| places.iter().find(|(_, uplink)| usize::from(uplink.id) == id);
        let names: Vec<_> =
            (1..=count).map(|id| of(id).map_or("-", |(interface, _)| interface.as_str())).collect();
        names.join(" ")
    }

    const ALL: [(&str, LinkType); 5] =
        [("enp1s0", Ethernet), ("wlan0", Wifi), ("wwan0", Lte), ("eth1", Ethernet), ("usb0", Tethering)];

    #[test]
    fn each_takes_an_interface_of_its_type() {
        assert_eq!(placed(&mut typed(&[Fiber, Starlink, Lte, Wifi]), &ALL), "enp1s0 eth1 wwan0 wlan0");
        // What takes anything takes what the others leave.
        assert_eq!(placed(&mut typed(&[Other, Fiber, Tethering]), &ALL), "wlan0 enp1s0 usb0");
        assert_eq!(placed(&mut typed(&[Fiber, FiveG]), &[("eth0", Ethernet), ("eth1", Ethernet)]), "eth0 -");
        // A modem by its driver, whatever its name is.
        assert_eq!(placed(&mut typed(&[Fiber, FiveG]), &[("lan7", Lte), ("eth1", Ethernet)]), "eth1 lan7");
    }

    #[test]
    fn who_comes_later_is_used_and_who_has_one_keeps_it() {
        let mut typed = typed(&[Fiber, Lte]);
        assert_eq!(placed(&mut typed, &[]), "- -");
        assert_eq!(placed(&mut typed, &[("eth1", Ethernet)]), "eth1 -");
        assert_eq!(
            placed(&mut typed, &[("eth0", Ethernet), ("eth1", Ethernet), ("wwan1", Lte)]),
            "eth1 wwan1"
        );
        assert_eq!(
            placed(&mut typed, &[("eth0", Ethernet), ("wwan0", Lte)]),
            "eth0 wwan0",
            "theirs have gone"
        );
    }
}
