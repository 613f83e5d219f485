//! Goal: what is made on a host works, may be made twice, and is undone without a trace, also by a
//! process that did not make it. Method: the test runs itself again in a network namespace of its own (without root
//! in a user namespace), with a bridge in the place of the TUN device, and
//! reads the kernel's state with `ip`.

use std::process::Command;
use std::time::Duration;

use rtnetlink::LinkBridge;

use super::*;

const INSIDE: &str = "MWB_TEST_IN_NAMESPACE";

/// Runs `test` (its full name) in a namespace and returns `false`, or returns `true` inside.
pub(super) fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let works = |flags: &&&str| {
        let tried = Command::new("unshare").args([**flags, "true"]).output();
        tried.is_ok_and(|output| output.status.success())
    };
    let Some(flags) = ["-n", "-Urn"].iter().find(works) else {
        mwb_sim::skip::record(test, "neither root nor user namespaces: unshare -n and unshare -Urn failed");
        return false;
    };
    let output = Command::new("unshare")
        .args([flags, "--"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

pub(super) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn link(name: &str) {
    let netlink = Netlink::open().unwrap();
    netlink.handle().link().add(LinkBridge::new(name).up().build()).execute().await.unwrap();
}

#[tokio::test]
async fn an_edges_routes_come_and_go() {
    if !inside("platform::linux::tests::an_edges_routes_come_and_go") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (rules4, rules6) = (ip("-4 rule"), ip("-6 rule"));
    link("mwb0").await;
    let platform = LinuxPlatform::new(dir.path(), HostSettings::default());
    let addresses = EdgeAddresses { inner: vec![("10.9.8.2".parse().unwrap(), 24)], mtu: Some(1300) };
    for _ in 0..2 {
        platform.edge_up("mwb0", &addresses).await.unwrap();
    }
    let rules = ip("-4 rule");
    let ours = [
        "32765:\tnot from all fwmark 0x6d77 lookup main suppress_prefixlength 0",
        "32765:\tnot from all fwmark 0x6d77 lookup 28023",
        "32766:\tfrom all lookup main",
    ];
    let found: Vec<_> = ours.iter().map(|rule| rules.find(rule)).collect();
    assert!(found.iter().all(Option::is_some) && found.is_sorted(), "{rules}");
    assert_eq!(rules.lines().count(), rules4.lines().count() + 2, "{rules}");
    assert!(ip("-6 rule").contains("32765:\tnot from all fwmark 0x6d77 lookup 28023"));
    let route = ip("-4 route get 192.0.2.9");
    assert!(route.contains("dev mwb0 table 28023 src 10.9.8.2"), "{route}");
    let route = ip("-4 route get 192.0.2.9 mark 0x6d77");
    assert!(route.contains("unreachable"), "outer packets use the host's own routes: {route}");
    // An IPv6 address elsewhere must not be used for what leaves by the tunnel.
    link("lan0").await;
    // A LAN within the pool, its route as network managers make it: it stays as it was.
    assert_eq!(ip("addr add 10.9.8.77/24 dev lan0 noprefixroute"), "");
    assert_eq!(ip("route add 10.9.8.0/24 dev lan0 src 10.9.8.77 metric 100"), "");
    let route = ip("-4 route get 10.9.8.1");
    assert!(route.contains("dev lan0 src 10.9.8.77"), "{route}");
    assert_eq!(ip("-6 addr add fd01::1/64 dev lan0 nodad"), "");
    let refused = UdpSocket::bind("[::]:0").unwrap().connect("[2001:db8::9]:80").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::AddrNotAvailable, "{refused}");
    assert!(ip("-6 route show table 28023").contains("default dev mwb0"));
    assert!(ip("link show mwb0").contains("mtu 1300"));

    // The exit has come to the IPv6 internet; then it gives another address, and at last none again.
    for number in [2, 3] {
        let inner: Vec<(IpAddr, u8)> = vec![
            (format!("10.9.8.{number}").parse().unwrap(), 24),
            (format!("fd00:9::{number}").parse().unwrap(), 64),
        ];
        platform.edge_up("mwb0", &EdgeAddresses { inner, mtu: None }).await.unwrap();
        let route = ip("-6 route get 2001:db8::9");
        assert!(route.contains("dev mwb0 table 28023"), "{route}");
        assert!(route.contains(&format!("src fd00:9::{number} ")), "{route}");
        let route = ip("-4 route get 192.0.2.9");
        assert!(route.contains(&format!("src 10.9.8.{number}")), "{route}");
        assert_eq!(ip("addr show mwb0").matches("inet").count(), 2);
    }
    let undisturbed = tokio::time::timeout(Duration::from_millis(700), platform.disturbed("mwb0"));
    assert!(undisturbed.await.is_err(), "all that was set up is there");
    platform.edge_up("mwb0", &addresses).await.unwrap();
    let undisturbed = tokio::time::timeout(Duration::from_millis(700), platform.disturbed("mwb0"));
    assert!(undisturbed.await.is_err(), "all that was set up is there");
    let refused = UdpSocket::bind("[::]:0").unwrap().connect("[2001:db8::9]:80").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::AddrNotAvailable, "{refused}");

    platform.edge_down().await;
    assert_eq!(ip("-4 rule"), rules4);
    assert_eq!(ip("-6 rule"), rules6);
    assert_eq!(ip("-4 route show table 28023").trim(), "");
    assert_eq!(ip("-6 route show table 28023").trim(), "");
    assert!(cleanup::clean(dir.path()).await.done.is_empty());
}

/// Rules of IPv4 in the order in which they are asked, by what they lead to.
fn asked() -> Vec<String> {
    let rules = ip("-4 rule");
    rules.lines().map(|rule| rule.split(" lookup ").nth(1).unwrap_or_default().trim().to_owned()).collect()
}

#[tokio::test]
async fn rules_of_others_are_asked_before_an_edges() {
    if !inside("platform::linux::tests::rules_of_others_are_asked_before_an_edges") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    link("mwb0").await;
    let platform = LinuxPlatform::new(dir.path(), HostSettings::default());
    let addresses = EdgeAddresses { inner: vec![("10.9.8.2".parse().unwrap(), 24)], mtu: None };
    let up = || async { platform.edge_up("mwb0", &addresses).await.unwrap() };
    let ours = ["main suppress_prefixlength 0 proto 109", "28023 proto 109", "main", "default"];
    let order = |others: &[&'static str]| [&["local"], others, &ours].concat();
    assert_eq!(ip("-4 rule add not fwmark 51820 table 51820"), "");
    up().await;
    assert_eq!(asked(), order(&["51820"]), "of those that were there");
    assert_eq!(ip("-4 rule add from 192.0.2.1 table 100"), "");
    assert_eq!(asked(), order(&["100", "51820"]), "of those that come later");
    up().await;
    assert_eq!(asked(), order(&["100", "51820"]));
    // One of the two is gone, and is asked in its turn again.
    let edge = platform.set_up.lock().edge.clone().unwrap();
    let netlink = Netlink::open().unwrap();
    let missing = || routes::missing(&netlink, edge.index, &edge.led);
    assert_eq!(missing().await.unwrap(), None);
    for gone in ["table 28023", "not fwmark 0x6d77 table main"] {
        assert_eq!(ip(&format!("-4 rule del {gone}")), "");
        assert_eq!(missing().await.unwrap().as_deref(), Some("the IPv4 rules of table 28023"));
        up().await;
        assert_eq!(asked(), order(&["100", "51820"]));
    }
    assert_eq!(ip("-4 route del default dev mwb0 table 28023"), "");
    assert_eq!(missing().await.unwrap().as_deref(), Some("the IPv4 default route of table 28023"));
    up().await;
    assert_eq!(missing().await.unwrap(), None);
    // Where somebody has moved the main table's rule to, the default route of that table is still what ours comes before.
    assert_eq!(ip("-4 rule add priority 1000 table main"), "");
    up().await;
    assert_eq!(asked()[..4], ["local", ours[0], ours[1], "main"]);
    assert_eq!(ip("-4 rule del priority 1000"), "");
    platform.edge_down().await;
    assert_eq!(asked(), ["local", "100", "51820", "main", "default"]);
}

#[tokio::test]
async fn what_a_killed_edge_left_is_cleaned() {
    if !inside("platform::linux::tests::what_a_killed_edge_left_is_cleaned") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (rules4, rules6) = (ip("-4 rule"), ip("-6 rule"));
    link("mwb0").await;
    link("wan0").await;
    std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
    std::fs::write("/proc/sys/net/ipv4/conf/wan0/rp_filter", "0").unwrap();
    let filter = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/wan0/rp_filter").unwrap();

    let platform = LinuxPlatform::new(dir.path(), HostSettings::default());
    platform.prepare_uplinks(&[(Some("wan0".to_owned()), None), (None, None)]).await.unwrap();
    assert_eq!(filter().trim(), "2");
    let inner = vec![("10.9.8.2".parse().unwrap(), 24), ("fd00::2".parse().unwrap(), 64)];
    platform.edge_up("mwb0", &EdgeAddresses { inner, mtu: None }).await.unwrap();
    assert!(ip("-6 route get 2001:db8::9").contains("dev mwb0"));
    drop(platform);
    // The device of a killed node goes, and its default routes with it: the rules lead nowhere.
    assert!(ip("link del mwb0").is_empty());
    assert_eq!(ip("-4 route show table 28023").trim(), "");
    assert_eq!(ip("-6 route show table 28023").trim(), "");

    let cleaned = cleanup::clean(dir.path()).await;
    assert!(cleaned.failed.is_empty(), "{:?}", cleaned.failed);
    assert_eq!(cleaned.done.len(), 5, "{:?}", cleaned.done);
    assert_eq!(filter().trim(), "0");
    assert_eq!(ip("-4 rule"), rules4);
    assert_eq!(ip("-6 rule"), rules6);
    assert!(cleanup::clean(dir.path()).await.done.is_empty(), "nothing is left for a second time");
}

#[tokio::test]
async fn an_uplink_that_comes_later_is_prepared() {
    if !inside("platform::linux::tests::an_uplink_that_comes_later_is_prepared") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
    let platform = LinuxPlatform::new(dir.path(), HostSettings::default());
    let uplinks = [(Some("wan7".to_owned()), None)];
    let look = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        link("wan7").await;
        let file = "/proc/sys/net/ipv4/conf/wan7/rp_filter";
        while std::fs::read_to_string(file).unwrap().trim() != "2" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = platform.watch_uplinks(&uplinks) => panic!("does not end"),
        done = tokio::time::timeout(Duration::from_secs(5), look) => done.expect("prepared in time"),
    }
}

#[tokio::test]
async fn an_exit_masquerades_until_it_is_cleaned() {
    if !inside("platform::linux::tests::an_exit_masquerades_until_it_is_cleaned") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    link("mwb0").await;
    let platform = LinuxPlatform::new(dir.path(), HostSettings::default());
    link("eth0").await;
    std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "1").unwrap();
    let settings = || {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/sys/net/{file}")).unwrap();
        ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/eth0/accept_ra"]
            .map(|file| read(file).trim().to_owned())
    };
    assert!(!platform.reaches_ipv6(), "there is no route");
    let mut gateways = Gateways { v4: ("10.9.8.1".parse().unwrap(), 24), v6: None };
    platform.exit_up("mwb0", &gateways).await.unwrap();
    assert_eq!(settings(), ["1", "0", "1"], "IPv6 is left alone without an IPv6 pool");
    assert_eq!(ip("-6 addr add 2001:db8::1/64 dev eth0 nodad") + &ip("-6 route add default dev eth0"), "");
    assert!(platform.reaches_ipv6());
    gateways.v6 = Some(("fd00:9::1".parse().unwrap(), 64));
    for _ in 0..2 {
        platform.exit_up("mwb0", &gateways).await.unwrap();
    }
    let list = || {
        let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let rules = list();
    for rule in [
        "\tip daddr { 127.0.0.0/8, 169.254.0.0/16 } drop",
        "iifname \"mwb0\" jump from_edge",
        "oifname \"mwb0\" ct state established,related accept",
        "oifname \"mwb0\" drop",
        "\tip6 daddr { ::1, fd00:ec2::/32, fe80::/10 } drop",
        "ip saddr 10.9.8.0/24 oifname != \"mwb0\" masquerade",
        "ip6 saddr fd00:9::/64 oifname != \"mwb0\" masquerade",
    ] {
        assert_eq!(rules.matches(rule).count(), 1, "{rule} in\n{rules}");
    }
    let addresses = ip("addr show mwb0");
    assert!(addresses.contains("10.9.8.1/24") && addresses.contains("fd00:9::1/64"), "{addresses}");
    assert_eq!(settings(), ["1", "1", "2"]);
    drop(platform);

    let cleaned = cleanup::clean(dir.path()).await;
    assert!(cleaned.failed.is_empty(), "{:?}", cleaned.failed);
    assert_eq!(list().trim(), "");
    assert_eq!(settings(), ["0", "0", "1"]);
    assert!(cleanup::clean(dir.path()).await.done.is_empty());
}

#[tokio::test]
async fn a_missing_interface_is_named() {
    let platform = LinuxPlatform::new(Path::new("/nonexistent"), HostSettings::default());
    let addresses = EdgeAddresses { inner: Vec::new(), mtu: None };
    let error = platform.edge_up("mwbnone9", &addresses).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no interface mwbnone9");
}

#[tokio::test]
async fn the_router_behind_an_interface_is_found() {
    if !inside("platform::linux::tests::the_router_behind_an_interface_is_found") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let platform = LinuxPlatform::new(dir.path(), HostSettings::default());
    // A cable whose far end is on another host: a namespace that lives as long as the process in it.
    let mut far = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let theirs = format!("/proc/{}/ns/net", far.id());
    while std::fs::read_link(&theirs).unwrap() == own {
        std::thread::yield_now();
    }
    let far_ip = |arguments: &str| {
        let target = far.id().to_string();
        let enter = ["-t", &target, "-n", "ip"];
        let output = Command::new("nsenter").args(enter).args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
    };
    ip(&format!("link add up0 type veth peer name far0 address 02:00:00:00:00:77 netns {}", far.id()));
    for command in ["link set up0 up", "address add 192.0.2.2/24 dev up0"] {
        assert_eq!(ip(command), "", "{command}");
    }
    far_ip("link set far0 up");
    assert_eq!(platform.gateway("up0").await, None, "without a route");
    assert_eq!(platform.gateway("up9").await, None, "without an interface");
    let gateway =
        |address: &str| Some(Gateway { address: address.parse().unwrap(), mac: [2, 0, 0, 0, 0, 0x77] });
    assert_eq!(ip("route add default via 192.0.2.1 dev up0 metric 100"), "");
    assert_eq!(platform.gateway("up0").await, None, "a router that does not answer");
    assert_eq!(ip("neighbour replace 192.0.2.1 lladdr 02:00:00:00:00:77 dev up0"), "");
    assert_eq!(platform.gateway("up0").await, gateway("192.0.2.1"));
    // A better route counts; its router has to be asked for.
    far_ip("address add 192.0.2.9/24 dev far0");
    assert_eq!(ip("route add default via 192.0.2.9 dev up0 metric 50"), "");
    assert_eq!(platform.gateway("up0").await, gateway("192.0.2.9"));
    far.kill().unwrap();
    far.wait().unwrap();
}
