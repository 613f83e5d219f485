//! The topologies: which namespaces there are and what connects them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::wan::bridge::PacketSocket;
use crate::wan::{ETHERNET_HEADER, Emulator, EmulatorConfig, EmulatorControl, LinkPorts, LinkSpec};

use super::host::{Host, Uplink};
use super::namespace::{Mac, Namespace};
use super::preflight::preflight;
use super::runtime_dir::RuntimeDir;
use super::{LabError, sys};

const LINKS_MAX: usize = 200;
const HOSTS_MAX: usize = 60;

/// Settings of a lab.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// `rp_filter` of the hosts with uplinks: 0 off, 1 strict, 2 loose (default, as systemd sets it).
    /// The router, exit and server have none.
    pub rp_filter: u8,
    /// MTU of every interface.
    pub mtu: u32,
    /// Uplinks are plain pairs of virtual interfaces with all their offloads, as fast as the machine: for what costs
    /// processor time. The emulator has no links then, and what a link's specification says of them is void.
    pub plain: bool,
    /// Settings of the emulator; its `frame_max` follows the MTU.
    pub emulator: EmulatorConfig,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self { rp_filter: 2, mtu: 1500, plain: false, emulator: EmulatorConfig::default() }
    }
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    // In this order they end: first the emulator, then the hosts, then their files.
    emulator: Emulator,
    hosts: Vec<Host>,
    _plumbing: Vec<Namespace>,
    files: RuntimeDir,
}

impl Lab {
    /// Tries the operations a lab and nodes in it need, and names the first that is refused. See
    /// [`preflight()`] for all.
    pub fn preflight() -> Result<(), LabError> {
        let checks = preflight();
        // Without a user namespace root goes on; what matters then is the network namespace.
        checks.into_iter().try_for_each(|check| check.result)
    }

    /// One host `edge` with an uplink per link: `up0` with 10.1.0.2/24, `up1` with 10.1.1.2/24 and so
    /// on. Further hosts: `internet`, `exit` (198.51.100.2) and `server` (203.0.113.10).
    pub fn edge_exit(links: &[LinkSpec]) -> Result<Self, LabError> {
        Self::edge_exit_with(links, &LabOptions::default())
    }

    /// [`Self::edge_exit`] with settings.
    pub fn edge_exit_with(links: &[LinkSpec], options: &LabOptions) -> Result<Self, LabError> {
        let mut plan = Plan::new(options)?;
        plan.add_host("edge", links, |m| (10, 1, m), None)?;
        plan.finish()
    }

    /// Hosts `host1`, `host2` and so on, one per list of links, on one LAN: `lan0` with
    /// 192.168.50.11/24 and on, and `up0`, `up1` with 10.(10+k).m.2/24. The rest as in
    /// [`Self::edge_exit`].
    pub fn lan(links_per_host: &[Vec<LinkSpec>]) -> Result<Self, LabError> {
        Self::lan_with(links_per_host, &LabOptions::default())
    }

    /// [`Self::lan`] with settings.
    pub fn lan_with(links_per_host: &[Vec<LinkSpec>], options: &LabOptions) -> Result<Self, LabError> {
        if links_per_host.is_empty() || links_per_host.len() > HOSTS_MAX {
            return Err(LabError::Size(links_per_host.len()));
        }
        let mut plan = Plan::new(options)?;
        let switch = Namespace::new("switch")?;
        switch.netlink("adding a bridge", |netlink| netlink.add_bridge("br0"))?;
        for (links, k) in links_per_host.iter().zip(1u8..) {
            plan.add_host(&format!("host{k}"), links, |m| (10, 10 + k, m), Some((&switch, k)))?;
        }
        plan.plumbing.push(switch);
        plan.finish()
    }

    /// A host by its name in the topology.
    ///
    /// # Panics
    /// When the topology has no such host.
    pub fn host(&self, name: &str) -> Host {
        let host = self.hosts.iter().find(|host| host.name() == name);
        host.unwrap_or_else(|| panic!("the lab has no host {name}")).clone()
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// A folder for files of the lab's programs, which hosts see under the same path. It is removed with the
    /// lab; that of a killed lab is removed by the next one.
    pub fn dir(&self) -> &Path {
        self.files.path()
    }

    /// Control of the emulated links.
    pub fn emulator(&self) -> EmulatorControl {
        self.emulator.control()
    }
}

/// One end of a link.
struct End<'a> {
    namespace: &'a Namespace,
    interface: String,
    mac: Mac,
    addresses: Vec<(IpAddr, u8)>,
}

/// The hardware address of an interface, by what it is at and its number there.
fn mac(kind: u8, number: u8) -> Mac {
    // The first byte says: locally administered.
    [0x02, b'm', b'w', b'b', kind, number]
}

/// A lab that is being built.
struct Plan<'a> {
    options: &'a LabOptions,
    files: RuntimeDir,
    wan: Namespace,
    internet: Namespace,
    plumbing: Vec<Namespace>,
    hosts: Vec<Host>,
    ports: Vec<LinkPorts>,
    /// Links so far, emulated or not.
    links: usize,
}

impl<'a> Plan<'a> {
    fn new(options: &'a LabOptions) -> Result<Self, LabError> {
        let files = RuntimeDir::create().map_err(|source| LabError::System {
            what: format!("making a directory in {}", std::env::temp_dir().display()),
            namespace: "the system".into(),
            source,
        })?;
        let wan = Namespace::new("wan-emulator")?;
        // Its interfaces are wires: the kernel has nothing to say on them.
        wan.sysctls(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")])?;
        let internet = Namespace::new("internet")?;
        prepare(&internet, 0)?;
        internet.sysctls(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        Ok(Self {
            options,
            files,
            wan,
            internet,
            plumbing: Vec::new(),
            hosts: Vec::new(),
            ports: Vec::new(),
            links: 0,
        })
    }

    /// A host with uplinks; `net` gives the first three bytes of the prefix of its m-th uplink.
    fn add_host(
        &mut self,
        name: &str,
        links: &[LinkSpec],
        net: impl Fn(u8) -> (u8, u8, u8),
        lan: Option<(&Namespace, u8)>,
    ) -> Result<(), LabError> {
        if (links.is_empty() && lan.is_none()) || self.links + links.len() > LINKS_MAX {
            return Err(LabError::Size(links.len()));
        }
        let namespace = Namespace::new(name)?;
        prepare(&namespace, self.options.rp_filter)?;
        let mut addresses = Vec::new();
        if let Some((switch, k)) = lan {
            let v4 = IpAddr::from([192, 168, 50, 10 + k]);
            let v6 = IpAddr::from(Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, u16::from(k)));
            addresses.extend([v4, v6]);
            let port = format!("port{k}");
            self.connect(
                End {
                    namespace: &namespace,
                    interface: "lan0".into(),
                    mac: mac(0x40, k),
                    addresses: vec![(v4, 24), (v6, 64)],
                },
                End { namespace: switch, interface: port.clone(), mac: mac(0x41, k), addresses: vec![] },
            )?;
            switch.netlink("joining the bridge", move |netlink| netlink.join_bridge(&port, "br0"))?;
        }
        let mut uplinks = Vec::new();
        for (spec, m) in links.iter().zip(0u8..) {
            let (a, b, c) = net(m);
            let v6 = |last| Ipv6Addr::new(0xfd00, u16::from(b), u16::from(c), 0, 0, 0, 0, last);
            let uplink = Uplink {
                interface: format!("up{m}"),
                link: spec.name.clone(),
                address: Ipv4Addr::new(a, b, c, 2),
                gateway: Ipv4Addr::new(a, b, c, 1),
                address_v6: v6(2),
                gateway_v6: v6(1),
                gateway_mac: mac(0x11, self.links as u8),
            };
            self.add_uplink(&namespace, &uplink, spec)?;
            uplinks.push(uplink);
        }
        addresses.extend(uplinks.iter().map(|uplink| IpAddr::from(uplink.address)));
        addresses.extend(uplinks.iter().map(|uplink| IpAddr::from(uplink.address_v6)));
        if let Some(first) = uplinks.first() {
            // As most routers say of themselves. Nobody answers there.
            let resolver = format!("nameserver {}\n", first.gateway);
            namespace.system("writing /etc/resolv.conf", || std::fs::write("/etc/resolv.conf", resolver))?;
        }
        let host = Host::new(namespace, uplinks, addresses, self.files.path());
        for index in 0..links.len() {
            host.add_routes(index)?;
        }
        self.hosts.push(host);
        Ok(())
    }

    /// Two wires and the sockets of the emulator between them, or one wire.
    fn add_uplink(&mut self, host: &Namespace, uplink: &Uplink, spec: &LinkSpec) -> Result<(), LabError> {
        let number = self.links as u8;
        self.links += 1;
        let host_mac = mac(0x10, number);
        let (inner, outer, wan) = (format!("h{number}"), format!("w{number}"), format!("wan{number}"));
        let near = End {
            namespace: host,
            interface: uplink.interface.clone(),
            mac: host_mac,
            addresses: vec![(uplink.address.into(), 24), (uplink.address_v6.into(), 64)],
        };
        let far = End {
            namespace: &self.internet,
            interface: wan.clone(),
            mac: uplink.gateway_mac,
            addresses: vec![(uplink.gateway.into(), 24), (uplink.gateway_v6.into(), 64)],
        };
        let wire = |interface: &str, kind: u8| End {
            namespace: &self.wan,
            interface: interface.to_owned(),
            mac: mac(kind, number),
            addresses: vec![],
        };
        if self.options.plain {
            self.connect(near, far)?;
        } else {
            self.connect(near, wire(&inner, 0x20))?;
            self.connect(far, wire(&outer, 0x21))?;
        }
        let (interface, peers) = (wan.clone(), [IpAddr::from(uplink.address), uplink.address_v6.into()]);
        self.internet.netlink(format!("adding the neighbour on {wan}"), move |netlink| {
            peers.into_iter().try_for_each(|peer| netlink.add_neighbour(&interface, peer, host_mac))
        })?;
        if self.options.plain {
            return Ok(());
        }
        let real_frames = |namespace: &Namespace, interface: String| {
            let what = format!("switching off the offloads of {interface}");
            namespace.system(what, move || sys::switch_off_offloads(&interface))
        };
        real_frames(host, uplink.interface.clone())?;
        real_frames(&self.internet, wan)?;
        let socket = |interface: String| {
            let what = format!("opening a packet socket on {interface}");
            self.wan.system(what, move || PacketSocket::open(sys::interface_index(&interface)?))
        };
        let (host, internet) = (socket(inner)?, socket(outer)?);
        self.ports.push(LinkPorts { spec: spec.clone(), host, internet });
        Ok(())
    }

    /// A host behind the router, without an emulated link.
    fn add_public(&mut self, name: &str, v4: [u8; 4], v6: Ipv6Addr) -> Result<(), LabError> {
        let namespace = Namespace::new(name)?;
        let number = self.hosts.len() as u8;
        prepare(&namespace, 0)?;
        let (host_v4, host_v6) = (IpAddr::from(v4), IpAddr::from(v6));
        let gateway_v4 = IpAddr::from([v4[0], v4[1], v4[2], 1]);
        let mut segments = v6.segments();
        segments[7] = 1;
        let gateway_v6 = IpAddr::from(segments);
        self.connect(
            End {
                namespace: &namespace,
                interface: "eth0".into(),
                mac: mac(0x30, number),
                addresses: vec![(host_v4, 24), (host_v6, 64)],
            },
            End {
                namespace: &self.internet,
                interface: name.to_owned(),
                mac: mac(0x31, number),
                addresses: vec![(gateway_v4, 24), (gateway_v6, 64)],
            },
        )?;
        namespace.netlink("adding a default route", move |netlink| {
            netlink.add_default("eth0", gateway_v4, 0)?;
            netlink.add_default("eth0", gateway_v6, 0)
        })?;
        self.hosts.push(Host::new(namespace, vec![], vec![host_v4, host_v6], self.files.path()));
        Ok(())
    }

    fn connect(&self, a: End<'_>, b: End<'_>) -> Result<(), LabError> {
        let mtu = self.options.mtu;
        let handle = b.namespace.raw_handle();
        let (near, far) = ((a.interface.clone(), a.mac), (b.interface.clone(), b.mac));
        a.namespace.netlink(format!("adding the pair {}, {}", near.0, far.0), move |netlink| {
            netlink.add_veth((&near.0, near.1), (&far.0, far.1), handle, mtu)
        })?;
        for end in [a, b] {
            let what = format!("configuring {}", end.interface);
            end.namespace.netlink(what, move |netlink| {
                netlink.link_up(&end.interface)?;
                end.addresses
                    .iter()
                    .try_for_each(|(a, prefix)| netlink.add_address(&end.interface, *a, *prefix))
            })?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Lab, LabError> {
        let v6 = |net, last| Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, last);
        self.add_public("exit", [198, 51, 100, 2], v6(0x198, 2))?;
        self.add_public("server", [203, 0, 113, 10], v6(0x203, 0x10))?;
        let frame_max = self.options.mtu as usize + ETHERNET_HEADER;
        let config = EmulatorConfig { frame_max, ..self.options.emulator.clone() };
        let emulator = Emulator::start(self.ports, config)?;
        self.hosts.push(Host::new(
            self.internet,
            vec![],
            vec![IpAddr::from([198, 51, 100, 1])],
            self.files.path(),
        ));
        self.plumbing.push(self.wan);
        Ok(Lab { emulator, hosts: self.hosts, _plumbing: self.plumbing, files: self.files })
    }
}

/// Settings every namespace with addresses gets, before it has links.
fn prepare(namespace: &Namespace, rp_filter: u8) -> Result<(), LabError> {
    let rp_filter = rp_filter.to_string();
    namespace.sysctls(&[
        ("ipv4/conf/all/rp_filter", &rp_filter),
        ("ipv4/conf/default/rp_filter", &rp_filter),
        // Addresses at once, and no chatter that counters would see.
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/dad_transmits", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        // One run must not profit from what another learnt about the paths.
        ("ipv4/tcp_no_metrics_save", "1"),
    ])
}
