use super::super::LinuxPlatform;
use super::super::tests::{inside, ip};
use super::judge::{Candidate, DefaultRoute, HostState, Interface, Layer, Network, Wanted, lans, uplinks};
use super::sysfs::Hardware;
use crate::config::LinkType;

/// Hosts that are described in words: one interface after the other, numbered from 1.
#[derive(Default)]
struct Described(HostState);

impl Described {
    fn interface(mut self, name: &str, kind: &str) -> Self {
        self.0.interfaces.push(Interface {
            index: self.0.interfaces.len() as u32 + 1,
            name: name.to_owned(),
            kind: (!kind.is_empty()).then(|| kind.to_owned()),
            layer: if name == "lo" { Layer::Loopback } else { Layer::Other },
            controller: None,
            is_up: true,
            has_carrier: true,
            mtu: 1500,
            hardware: Hardware::default(),
        });
        self
    }

    /// Changes the last one.
    fn with(mut self, change: impl FnOnce(&mut Interface)) -> Self {
        change(self.0.interfaces.last_mut().unwrap());
        self
    }

    fn address(mut self, address: &str) -> Self {
        let (ip, prefix) = address.split_once('/').unwrap();
        let index = self.0.interfaces.len() as u32;
        self.0.networks.push(Network {
            index,
            address: ip.parse().unwrap(),
            prefix: prefix.parse().unwrap(),
        });
        self
    }

    fn route(mut self, gateway: &str, metric: u32) -> Self {
        let index = self.0.interfaces.len() as u32;
        let gateway = gateway.parse().ok();
        let is_v4 = gateway.is_none_or(|gateway: std::net::IpAddr| gateway.is_ipv4());
        self.0.defaults.push(DefaultRoute { index, is_v4, gateway, metric });
        self
    }

    /// An interface with an address and a default route.
    fn uplink(self, name: &str, kind: &str) -> Self {
        let number = self.0.interfaces.len() + 1;
        self.interface(name, kind)
            .address(&format!("10.0.{number}.2/24"))
            .route(&format!("10.0.{number}.1"), 100 + number as u32)
    }

    fn found(&self) -> Vec<Candidate> {
        uplinks(&self.0, &Wanted { uplinks: true, ..Wanted::default() })
    }

    fn names(&self) -> Vec<String> {
        self.found().into_iter().map(|found| found.interface).collect()
    }
}

#[test]
fn interfaces_with_a_default_route_are_uplinks_and_virtual_ones_are_not() {
    let mut host = Described::default().uplink("lo", "").uplink("eth0", "").uplink("wwan0", "wwan");
    for kind in [
        "tun",
        "wireguard",
        "vti",
        "vti6",
        "ipip",
        "gre",
        "sit",
        "vxlan",
        "dummy",
        "ifb",
        "vrf",
        "nlmon",
        "ovpn",
    ] {
        host = host.uplink(&format!("{kind}9"), kind);
    }
    for kind in ["vlan", "bond", "macvlan", "veth"] {
        host = host.uplink(&format!("{kind}8"), kind);
    }
    assert_eq!(host.names(), ["eth0", "wwan0", "vlan8", "bond8", "macvlan8", "veth8"]);
}

#[test]
fn what_has_no_way_out_is_no_uplink() {
    let host = Described::default()
        .interface("eth0", "")
        .address("192.168.1.2/24")
        .interface("eth1", "")
        .route("192.168.2.1", 0)
        .interface("eth2", "")
        .address("fd00::2/64")
        .route("192.168.3.1", 0)
        .uplink("eth3", "")
        .with(|eth3| eth3.is_up = false)
        .uplink("eth4", "")
        .with(|eth4| eth4.controller = Some(99));
    assert_eq!(host.names(), Vec::<String>::new());
    let host = host.interface("eth5", "").address("2001:db8::2/64").route("fe80::1", 1024);
    assert_eq!(host.names(), ["eth5"], "IPv6 alone will do");
}

#[test]
fn dockers_bridge_is_left_alone_and_a_bridge_over_hardware_is_not() {
    let docker = Described::default()
        .uplink("eth0", "")
        .uplink("docker0", "bridge")
        .interface("veth1a2b", "veth")
        .with(|veth| veth.controller = Some(2))
        .uplink("virbr0", "bridge")
        .interface("vnet0", "tun")
        .with(|tap| tap.controller = Some(4));
    assert_eq!(docker.names(), ["eth0"]);
    let server = Described::default()
        .uplink("vmbr0", "bridge")
        .interface("eno1", "")
        .with(|port| port.controller = Some(1));
    assert_eq!(server.names(), ["vmbr0"]);
    let over_vlan = Described::default()
        .uplink("br-wan", "bridge")
        .interface("eth0.7", "vlan")
        .with(|port| port.controller = Some(1));
    assert_eq!(over_vlan.names(), ["br-wan"]);
}

#[test]
fn the_kind_of_line_is_guessed() {
    let guess = |host: Described| {
        let found = host.found();
        assert_eq!(found.len(), 1, "{found:?}");
        (found[0].line, found[0].metered)
    };
    let host = Described::default;
    let of_type = |device_type: &str| {
        let device_type = device_type.to_owned();
        move |interface: &mut Interface| interface.hardware.device_type = device_type
    };
    let driven_by = |driver: &str| {
        let driver = driver.to_owned();
        move |interface: &mut Interface| interface.hardware.driver = driver
    };
    assert_eq!(guess(host().uplink("eth0", "").with(driven_by("r8152"))), (LinkType::Ethernet, false));
    assert_eq!(guess(host().uplink("wlp3s0", "").with(of_type("wlan"))), (LinkType::Wifi, false));
    let radio = |interface: &mut Interface| interface.hardware.is_wireless = true;
    assert_eq!(guess(host().uplink("wlan0", "").with(radio)), (LinkType::Wifi, false));
    assert_eq!(guess(host().uplink("wwan0", "")), (LinkType::Lte, true));
    assert_eq!(guess(host().uplink("wwp0s20f0u2", "")), (LinkType::Lte, true));
    assert_eq!(guess(host().uplink("usb7", "").with(of_type("wwan"))), (LinkType::Lte, true));
    assert_eq!(guess(host().uplink("rmnet_data0", "rmnet")), (LinkType::Lte, true));
    let ppp = |mtu| move |ppp: &mut Interface| (ppp.layer, ppp.mtu) = (Layer::Ppp, mtu);
    assert_eq!(guess(host().uplink("ppp0", "ppp").with(ppp(1500))), (LinkType::Lte, true));
    assert_eq!(guess(host().uplink("ppp0", "ppp").with(ppp(1492))), (LinkType::Other, false), "DSL");
    for driver in ["rndis_host", "cdc_ether", "ipheth"] {
        let tethered = host().uplink("enx0a1b2c3d4e5f", "").with(driven_by(driver));
        assert_eq!(guess(tethered), (LinkType::Tethering, true), "{driver}");
    }
    for network in ["192.168.42.7", "192.168.43.7", "192.168.49.7", "172.20.10.3"] {
        let by_cable = host().interface("eth0", "").address(&format!("{network}/24")).route("", 1);
        assert_eq!(guess(by_cable), (LinkType::Tethering, true), "{network}");
        let hot_spot =
            host().interface("wlan0", "").address(&format!("{network}/24")).route("", 1).with(radio);
        assert_eq!(guess(hot_spot), (LinkType::Wifi, true), "{network}");
    }
}

#[test]
fn the_best_come_first_and_say_what_they_are_attached_to() {
    let host = Described::default()
        .interface("wlan0", "")
        .address("192.168.1.7/24")
        .route("192.168.1.1", 600)
        .interface("eth0", "")
        .address("192.168.2.7/24")
        .address("2001:db8::7/64")
        .route("192.168.2.254", 300)
        .route("192.168.2.1", 100)
        .route("fe80::1", 1)
        .interface("eth1", "")
        .address("10.0.0.7/8")
        .route("10.0.0.1", 1)
        .with(|eth1| eth1.has_carrier = false);
    assert_eq!(host.names(), ["eth0", "wlan0", "eth1"], "without a carrier a metric means nothing");
    let eth0 = &host.found()[0];
    assert_eq!(eth0.attached, "192.168.2.7/24 via 192.168.2.1, interface 2");
    assert_eq!(eth0.gateway, Some("192.168.2.1".parse().unwrap()));
}

#[test]
fn what_the_configuration_names_or_ignores_is_not_found() {
    let host =
        Described::default().uplink("eth0", "").uplink("eth1", "").uplink("wlan0", "").uplink("usb0", "");
    let left = |ignore: &[&str], named: &[&str], addresses: &[&str]| {
        let wanted = Wanted {
            uplinks: true,
            lans: true,
            ignore: ignore.iter().map(|text| (*text).to_owned()).collect(),
            named: named.iter().map(|text| (*text).to_owned()).collect(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            doubles: false,
        };
        uplinks(&host.0, &wanted).into_iter().map(|found| found.interface).collect::<Vec<_>>()
    };
    assert_eq!(left(&["eth*"], &[], &[]), ["wlan0", "usb0"]);
    assert_eq!(left(&["*0"], &[], &[]), ["eth1"]);
    assert_eq!(left(&["eth?", "*la*0*"], &[], &[]), ["usb0"]);
    assert_eq!(left(&["eth"], &["eth1"], &["10.0.1.2"]), ["wlan0", "usb0"]);
    assert_eq!(left(&["*"], &[], &[]), Vec::<String>::new());
    assert_eq!(left(&["", "?", "*x", "*****z"], &[], &[]).len(), 4);
}

#[test]
fn a_lan_is_a_cable_or_wifi_with_a_private_address() {
    let lans = |host: &Described, ignore: &[&str]| {
        let ignore = ignore.iter().map(|text| (*text).to_owned()).collect();
        lans(&host.0, &Wanted { lans: true, ignore, ..Wanted::default() })
    };
    let host = Described::default()
        .interface("wan", "")
        .address("203.0.113.7/24")
        .route("203.0.113.1", 1)
        .interface("lan", "")
        .address("192.168.50.11/24")
        .interface("home", "")
        .address("10.1.2.3/8")
        .route("10.0.0.1", 100)
        .interface("six", "")
        .address("fd00::7/64")
        .interface("nothing", "")
        .interface("down", "")
        .address("192.168.51.11/24")
        .with(|down| down.is_up = false)
        .interface("docker0", "bridge")
        .address("172.17.0.1/16")
        .interface("wg0", "wireguard")
        .address("10.9.9.1/24")
        .interface("phone", "")
        .address("192.168.42.129/24")
        .interface("wwan0", "")
        .address("10.66.0.9/29");
    assert_eq!(lans(&host, &[]), ["home", "lan", "six"]);
    assert_eq!(lans(&host, &["h*"]), ["lan", "six"]);
}

/// Goal: what a kernel says is read as it is meant. Method: pairs in a namespace of its own, routed as hosts with several
/// uplinks are.
#[tokio::test]
async fn a_kernels_interfaces_are_read() {
    if !inside("platform::linux::uplinks::tests::a_kernels_interfaces_are_read") {
        return;
    }
    let pair = |name: &str| {
        format!("link add {name} type veth peer name {name}p; link set {name} up; link set {name}p up")
    };
    let run = |steps: &str| {
        for step in steps.split("; ") {
            assert_eq!(ip(step), "", "{step}");
        }
    };
    run("link set lo up");
    for (number, name) in ["cable", "wifi", "other", "shared", "lan", "pulled"].into_iter().enumerate() {
        run(&pair(name));
        run(&format!("address add 10.0.{number}.2/24 dev {name}"));
    }
    // A notebook's cable and Wi-Fi behind one router, an uplink in a table of its own, one hop of several.
    run("address add 192.168.1.7/24 dev cable; address add 192.168.1.8/24 dev wifi");
    for (name, metric) in [("cable", 100), ("wifi", 600)] {
        run(&format!("neighbour add 192.168.1.1 lladdr 02:00:00:00:00:01 dev {name} nud permanent"));
        run(&format!("route add default via 192.168.1.1 dev {name} metric {metric}"));
    }
    run("route add default via 10.0.2.1 dev other table 77");
    run("route add default metric 700 nexthop via 10.0.3.1 dev shared nexthop via 10.0.0.1 dev cable");
    // What is no uplink.
    run("link add br9 type bridge; address add 10.9.0.1/24 dev br9; link set br9 up");
    run("route add default via 10.9.0.2 dev br9 metric 800");
    run("link set pulledp master br9; address add 10.9.1.1/24 dev pulledp");
    run("route add default via 10.9.1.2 dev pulledp metric 801");
    run("route add unreachable default metric 900; route add 0.0.0.0/1 via 10.0.4.1 dev lan");
    let dir = tempfile::tempdir().unwrap();
    let platform = LinuxPlatform::new(dir.path(), super::super::HostSettings::default());
    let wanted = Wanted { uplinks: true, lans: true, ..Wanted::default() };
    let uplinks = async || {
        let found = platform.find(&wanted).await.unwrap();
        found.uplinks.into_iter().map(|found| found.interface).collect::<Vec<_>>()
    };
    assert_eq!(uplinks().await, ["other", "cable", "shared"], "one of two that have the same router");
    let found = platform.find(&wanted).await.unwrap();
    assert_eq!(found.lans, ["cable", "lan", "other", "pulled", "shared", "wifi"]);
    assert!(found.uplinks[1].attached.contains("192.168.1.7/24 via 192.168.1.1, interface "), "{found:?}");
    run("neighbour change 192.168.1.1 lladdr 02:00:00:00:00:02 dev wifi nud permanent");
    assert_eq!(uplinks().await, ["other", "cable", "wifi", "shared"], "two routers may have one address");
    run("neighbour change 192.168.1.1 lladdr 02:00:00:00:00:01 dev wifi nud permanent; link set cable down");
    assert_eq!(uplinks().await, ["other", "wifi", "shared"], "the other takes over");
}
