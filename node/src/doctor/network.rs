//! The uplinks that are there and why the others are not, ports, and whether names resolve.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;

use super::kernel::{AS_ROOT, reverse_path_filter};
use super::{Patient, Report};
use crate::config::{Typed, Uplink};
use crate::platform::{NoUplink, Survey, Surveyed, interface_of, survey};

/// Least MTU of IPv6 (RFC 8200, section 5): paths begin with datagrams of that size.
const MTU_LEAST: u32 = 1280;
/// What the default size of packets in the bond fits: PPPoE (RFC 2516).
const MTU_COMMON: u32 = 1492;
/// How long a resolver may take, twice.
const ANSWER_WITHIN: Duration = Duration::from_millis(1000);
/// Who serves the root? Every resolver knows (RFC 1035, section 4.1).
const QUESTION: [u8; 17] = [0x6d, 0x77, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

pub(super) async fn uplinks(patient: &Patient<'_>, report: &mut Report) {
    if !patient.is_edge() {
        return;
    }
    let ignore = patient.config.map(|config| config.discovery.ignore.clone()).unwrap_or_default();
    let survey = match survey(&ignore).await {
        Ok(survey) => survey,
        Err(error) => return report.note("uplinks", format!("cannot be read: {error}"), AS_ROOT),
    };
    let configured = patient.config.map(|config| &config.uplinks[..]).unwrap_or_default();
    let mut used = Vec::new();
    for uplink in configured.iter().filter(|uplink| !uplink.is_typed()) {
        match uplink.interface.clone().or_else(|| uplink.address.and_then(interface_of)) {
            Some(name) => named(uplink, &name, &survey, &mut used, report),
            None => report.fault(
                format!("uplink {}", uplink.name),
                "no interface has its address",
                "ip address; correct uplinks[].address, or name the interface",
            ),
        }
    }
    typed(configured, &survey, &mut used, report);
    let finds = patient.config.is_none_or(|config| config.discovery.uplinks);
    for surveyed in &survey.interfaces {
        if !used.contains(&surveyed.name) && surveyed.name != patient.tun() {
            other(surveyed, finds, &survey, &mut used, report);
        }
    }
    match used.len() {
        0 => report.fault(
            "uplinks",
            "none: no interface has an address and a default route",
            "ip route add default via ROUTER dev INTERFACE metric 500, for each uplink; or plug one in",
        ),
        1 => report.note(
            "uplinks",
            "only one of its own: alone it has nothing to bond; hosts on its LAN may lend theirs",
            "give a second interface a default route",
        ),
        count => report.ok("uplinks", format!("{count} of this host")),
    }
    let surveyed = |name: &String| survey.interfaces.iter().find(|interface| interface.name == *name);
    for interface in used.iter().filter_map(surveyed) {
        mtu(interface, report);
        reverse_path_filter(patient, &interface.name, report);
    }
}

/// An uplink of the configuration.
fn named(uplink: &Uplink, interface: &str, survey: &Survey, used: &mut Vec<String>, report: &mut Report) {
    let subject = format!("uplink {}", uplink.name);
    let Some(surveyed) = survey.interfaces.iter().find(|surveyed| surveyed.name == interface) else {
        let todo = "ip link lists what there is; plug it in, or correct uplinks[].interface";
        return report.fault(subject, format!("there is no interface {interface}"), todo);
    };
    match &surveyed.verdict {
        Ok(candidate) => report.ok(subject, format!("{interface}: {}", candidate.attached)),
        Err(why @ (NoUplink::Down | NoUplink::NoRoute | NoUplink::NoAddress)) => {
            return report.fault(subject, format!("{interface}: {why}"), cure(why, interface));
        }
        // Whoever names it knows better than the rules for what is found.
        Err(why) => report.note(subject, format!("{interface} is used because it is named; {why}"), ""),
    }
    used.push(interface.to_owned());
}

/// Uplinks of the configuration that any interface of their type will do for.
fn typed(configured: &[Uplink], survey: &Survey, used: &mut Vec<String>, report: &mut Report) {
    let free = survey.interfaces.iter().filter(|surveyed| !used.contains(&surveyed.name));
    let present: Vec<_> =
        free.filter_map(|one| Some((one.name.as_str(), one.verdict.as_ref().ok()?.line))).collect();
    let mut typed = Typed::of(configured);
    let places: Vec<_> =
        typed.place(&present).into_iter().map(|(interface, uplink)| (interface, uplink.id)).collect();
    for uplink in typed.all() {
        let subject = format!("uplink {}", uplink.name);
        match places.iter().find(|(_, id)| *id == uplink.id) {
            Some((interface, _)) => {
                report.ok(subject, format!("{interface}, as one of type {}", uplink.kind.name()));
                used.push(interface.clone());
            }
            None => report.note(
                subject,
                format!("no free interface of type {} has a default route: waited for", uplink.kind.name()),
                "plug it in; or name the interface that it is with uplinks[].interface",
            ),
        }
    }
}

/// What to do so that an interface becomes an uplink.
fn cure(why: &NoUplink, interface: &str) -> String {
    match why {
        NoUplink::Down => format!("sudo ip link set {interface} up"),
        NoUplink::NoRoute => format!(
            "sudo ip route add default via ROUTER dev {interface} metric 500, or have a DHCP client do so; nothing if it is \
             no uplink"
        ),
        NoUplink::NoAddress => {
            format!("sudo ip address add ADDRESS/LENGTH dev {interface}, or have a DHCP client do so")
        }
        _ => String::new(),
    }
}

/// An interface that the configuration does not name.
fn other(surveyed: &Surveyed, finds: bool, survey: &Survey, used: &mut Vec<String>, report: &mut Report) {
    let name = &surveyed.name;
    let double = survey.doubles.iter().find(|(double, _)| double == name);
    let subject = |what: &str| format!("{what} {name}");
    match (&surveyed.verdict, double) {
        (Ok(_), Some((_, other))) => report.note(
            subject("uplink"),
            format!("leads to the same router as {other}: only one of them is used"),
            "nothing, if both hang on one line; else name both in [[uplinks]]",
        ),
        (Ok(candidate), None) if finds => {
            let metered = if candidate.metered { ", metered" } else { "" };
            report
                .ok(subject("uplink"), format!("{}{metered}: {}", candidate.line.name(), candidate.attached));
            used.push(name.clone());
        }
        (Ok(_), None) => report.note(
            subject("interface"),
            "could be an uplink, but is not looked for and not named",
            "discovery.uplinks = \"also\", or [[uplinks]] with its name",
        ),
        (Err(why @ (NoUplink::Down | NoUplink::NoRoute | NoUplink::NoAddress)), _) => {
            report.note(subject("interface"), format!("is no uplink: {why}"), cure(why, name));
        }
        (Err(why), _) => report.ok(subject("interface"), format!("is no uplink: {why}")),
    }
}

fn mtu(interface: &Surveyed, report: &mut Report) {
    let (subject, mtu) = (format!("MTU {}", interface.name), interface.mtu);
    if mtu < MTU_LEAST {
        report.fault(
            subject,
            format!("{mtu} bytes are too few: paths need {MTU_LEAST}"),
            format!("sudo ip link set {} mtu {MTU_COMMON}, if the line allows it", interface.name),
        );
    } else if mtu < MTU_COMMON {
        let todo = format!("tun.mtu = {}, if all uplinks are so", mtu.saturating_sub(84).max(MTU_LEAST));
        report.note(subject, format!("{mtu} bytes: full packets cross it in two parts"), todo);
    } else {
        report.ok(subject, format!("{mtu} bytes"));
    }
}

/// Ports that the node would listen on. A running one has them already.
pub(super) fn ports(patient: &Patient<'_>, report: &mut Report) {
    let (Some(config), None) = (patient.config, patient.running) else { return };
    let mut wanted: Vec<(SocketAddr, &str)> = Vec::new();
    if let Some(exit) = &config.exit {
        wanted.extend(exit.listen.iter().map(|listen| (*listen, "exit.listen")));
    }
    if let Some(lan) = &config.lan {
        wanted.push((SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), lan.port), "lan.port"));
    }
    for (address, key) in wanted {
        let subject = format!("port {}", address.port());
        let port = address.port();
        match std::net::UdpSocket::bind(address) {
            Ok(_) => report.ok(subject, format!("{address} is free ({key})")),
            Err(error) if error.kind() == ErrorKind::AddrInUse => report.fault(
                subject,
                format!("{address} is another program's"),
                format!("sudo ss -ulpn 'sport = :{port}' names it; stop it, or change {key}"),
            ),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                report.note(subject, format!("{address} cannot be tried as this user"), AS_ROOT);
            }
            Err(error) => report.fault(subject, format!("{address}: {error}"), format!("change {key}")),
        }
    }
}

/// Asks each resolver of this host.
pub(super) async fn resolvers(patient: &Patient<'_>, report: &mut Report) {
    let file = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let resolvers = nameservers(&file);
    if resolvers.is_empty() {
        return report.fault(
            "DNS",
            "/etc/resolv.conf names no resolver",
            "ls -l /etc/resolv.conf; resolvectl status",
        );
    }
    let answers = join_all(resolvers.iter().map(|resolver| answers(*resolver))).await;
    let told = |wanted: bool| -> Vec<String> {
        let asked = resolvers.iter().zip(&answers);
        asked.filter(|(_, answers)| **answers == wanted).map(|(resolver, _)| resolver.to_string()).collect()
    };
    let (good, bad) = (told(true).join(", "), told(false).join(", "));
    if good.is_empty() && patient.is_offline() {
        let says = format!("{bad} does not answer: the bond that leads there is offline");
        return report.note("DNS", says, "nothing: what is said of offline above is the cause");
    }
    let todo = format!("resolvectl status; or another nameserver line in /etc/resolv.conf than {bad}");
    match (good.is_empty(), bad.is_empty()) {
        (false, true) => report.ok("DNS", format!("{good} answers")),
        (false, false) => {
            report.note("DNS", format!("{good} answers, {bad} does not: names resolve slowly"), todo)
        }
        _ => report.fault("DNS", format!("{bad} does not answer: names do not resolve"), todo),
    }
}

/// Addresses of the `nameserver` lines (resolv.conf(5)); three count.
fn nameservers(file: &str) -> Vec<IpAddr> {
    let words = file.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    // A zone behind the address (fe80::1%eth0) is not understood here; such a line is left out.
    words.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).take(3).collect()
}

async fn answers(resolver: IpAddr) -> bool {
    let any: IpAddr =
        if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    for _ in 0..2 {
        let ask = async {
            let socket = tokio::net::UdpSocket::bind((any, 0)).await?;
            socket.connect((resolver, 53)).await?;
            socket.send(&QUESTION).await?;
            let mut answer = [0; 512];
            loop {
                let len = socket.recv(&mut answer).await?;
                // Its number, and that it is an answer.
                if len >= 12 && answer[..2] == QUESTION[..2] && answer[2] & 0x80 != 0 {
                    return std::io::Result::Ok(());
                }
            }
        };
        if let Ok(Ok(())) = tokio::time::timeout(ANSWER_WITHIN, ask).await {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_the_library_does() {
        let file = "# nameserver 1.1.1.1\nsearch lan\nnameserver 127.0.0.53\n  nameserver\t9.9.9.9 # quad\nnameserver fe80::1%up0\n\
                    nameserver 2620:fe::fe\nnameserver 8.8.8.8\n";
        let found: Vec<_> = nameservers(file).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53", "9.9.9.9", "2620:fe::fe"]);
    }
}
