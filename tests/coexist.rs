//! Goal: the bond works beside others that change the host's network, and takes nothing of theirs with it: another VPN, a
//! firewall, a manager of addresses. Method: real nodes in a lab; the others' rules, routes, tables and addresses are put in
//! by hand as they do it, and compared byte by byte after the node has stopped.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use mwb_sim::traffic::{FlowResult, FlowSpec, TrafficError, download, upload};

use support::footprint::Footprint;
use support::lab::Bond;
use support::node::{Node, PATIENCE, wait_until};
use support::skip::in_lab;

/// wg-quick's mark and table.
const VPN: u32 = 51820;
const MEGABYTE: u64 = 1_000_000;

fn steps(node: &Node, steps: &[&str]) {
    for step in steps {
        let mut command = Command::new("ip");
        command.args(step.split(' '));
        let output = node.host().output(command).unwrap();
        assert!(output.status.success(), "ip {step}: {output:?}");
    }
}

/// What `wg-quick up` does for `AllowedIPs = 0.0.0.0/0`, in its order; a TUN device stands for the WireGuard one. Answers to
/// its own packets get no mark back here, as with VPNs that do less: they pass our interface all the same.
fn vpn_up(node: &Node) {
    let all = [
        "tuntap add wg0 mode tun",
        "-4 address add 10.66.0.2/32 dev wg0",
        "link set mtu 1420 up dev wg0",
        "-4 route add 0.0.0.0/0 dev wg0 table 51820",
        "-4 rule add not fwmark 51820 table 51820",
        "-4 rule add table main suppress_prefixlength 0",
    ];
    steps(node, &all);
}

/// What `wg-quick down` does: it deletes rules for as long as one is shown that reads as its own.
fn vpn_down(node: &Node) {
    let all = [
        ("lookup 51820", "-4 rule delete table 51820"),
        ("from all lookup main suppress_prefixlength 0", "-4 rule delete table main suppress_prefixlength 0"),
    ];
    for (shown, step) in all {
        for _ in 0..10 {
            if node.ip("-4 rule").contains(shown) {
                steps(node, &[step]);
            }
        }
    }
    steps(node, &["link delete dev wg0"]);
}

#[track_caller]
fn whole(result: Result<FlowResult, TrafficError>) {
    let result = result.unwrap();
    assert!(result.complete(), "{:?}", result.failure);
}

/// Bytes both ways.
#[track_caller]
fn transfer_with(bond: &Bond, server: SocketAddr) {
    let spec = FlowSpec::bytes(server, 2 * MEGABYTE);
    whole(bond.edge.host().run(move || download(&spec)));
    let spec = FlowSpec::bytes(server, MEGABYTE);
    whole(bond.edge.host().run(move || upload(&spec)));
}

/// Bytes through the bond, with both families.
#[track_caller]
fn transfer(bond: &Bond) {
    transfer_with(bond, bond.server());
    transfer_with(bond, bond.server_v6());
}

fn paths_up(bond: &Bond) -> usize {
    let status = bond.edge.status().unwrap_or_default();
    let paths = status["sessions"][0]["paths"].as_array().cloned().unwrap_or_default();
    paths.iter().filter(|path| path["health"] == "up" || path["health"] == "degraded").count()
}

/// The VPN has the host, the bond has the VPN, and its own packets do not go round in circles.
#[track_caller]
fn check_beside_vpn(bond: &mut Bond) {
    let exit = bond.exit.host().address().to_string();
    wait_until("the VPN's own packets use the bond", PATIENCE, || {
        bond.seen_marked(VPN).as_ref() == Some(&exit)
    });
    wait_until("both paths are up", PATIENCE, || paths_up(bond) == 2);
    assert_eq!(bond.seen_as(), None, "what is not marked is the VPN's, where nobody answers");
    let spec = FlowSpec::bytes(bond.server(), MEGABYTE).patience(Duration::from_secs(2));
    let lost = bond.edge.host().run(move || download(&spec));
    assert!(!lost.is_ok_and(|result| result.complete()), "it went past the VPN");
    let told = String::from_utf8(bond.edge.doctor(&[]).stdout).unwrap();
    assert!(told.contains("others come before the node's: IPv4 rule"), "{told}");
    bond.edge.check();
}

#[test]
fn another_vpn_has_the_host_whoever_came_first() {
    in_lab("another_vpn_has_the_host_whoever_came_first", || {
        let mut bond = Bond::prepare();
        bond.exit.start();
        let alone = Footprint::of(&bond.edge);

        vpn_up(&bond.edge);
        let before = Footprint::of(&bond.edge);
        bond.edge.start();
        check_beside_vpn(&mut bond);
        assert!(
            bond.edge.log().contains("another program's rules have this host's traffic"),
            "{}",
            bond.edge.log()
        );
        wait_until("IPv6, which the VPN does not carry, goes through", PATIENCE, || bond.is_through_v6());
        bond.edge.stop();
        before.check(&bond.edge, "beside a VPN that was there before");

        // It goes while the node runs, and comes again.
        bond.edge.start();
        check_beside_vpn(&mut bond);
        vpn_down(&bond.edge);
        bond.wait_until_through();
        transfer(&bond);
        vpn_up(&bond.edge);
        check_beside_vpn(&mut bond);
        assert!(!bond.edge.log().contains("has removed"), "the VPN takes away its own rules alone");
        bond.edge.stop();
        let rules = bond.edge.ip("-4 rule");
        assert!(rules.contains("lookup 51820") && rules.contains("suppress_prefixlength 0"), "{rules}");
        assert!(!rules.contains("28023"), "{rules}");
        vpn_down(&bond.edge);
        alone.check(&bond.edge, "beside a VPN that came and went");
    });
}

#[test]
fn what_others_remove_is_set_up_again() {
    in_lab("what_others_remove_is_set_up_again", || {
        let mut bond = Bond::start();
        bond.wait_until_through();
        wait_until("IPv6 goes through", PATIENCE, || bond.is_through_v6());
        // On an edge: as systemd-networkd does with rules that it does not know, and a person by mistake.
        let lan = bond.edge.ip("-4 rule");
        for step in ["-4 rule delete table 28023", "-6 rule delete table 28023", "-4 address flush dev mwb0"]
        {
            steps(&bond.edge, &[step]);
            bond.wait_until_through();
            wait_until("IPv6 goes through again", PATIENCE, || bond.is_through_v6());
            wait_until("its rules are as before", PATIENCE, || bond.edge.ip("-4 rule") == lan);
        }
        assert!(bond.edge.log().contains("another program has removed the IPv4 rules of table 28023"));
        transfer(&bond);
        // On an exit: as `systemctl restart nftables` and `sysctl --system` do.
        let mut flush = Command::new("nft");
        flush.args(["flush", "ruleset"]);
        assert!(bond.exit.host().output(flush).unwrap().status.success());
        bond.wait_until_through();
        wait_until("its table is there again", PATIENCE, || bond.exit.nft().contains("table inet mwb"));
        bond.exit.host().run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0")).unwrap();
        wait_until("forwarding has ended", PATIENCE, || {
            bond.exit.log().contains("another program has removed the setting net.ipv4.ip_forward")
        });
        bond.wait_until_through();
        transfer(&bond);
        bond.edge.stop();
        bond.exit.stop();
    });
}

#[test]
fn without_the_default_route_only_what_asks_for_it_uses_the_bond() {
    in_lab("without_the_default_route_only_what_asks_for_it_uses_the_bond", || {
        let mut bond = Bond::prepare();
        bond.exit.start();
        let alone = Footprint::of(&bond.edge);
        let past = bond.seen_as().expect("the host has a way of its own");
        bond.edge.start_with_options(&["--no-default-route"]);
        let exit = bond.exit.host().address().to_string();
        wait_until("what is bound to the interface uses the bond", PATIENCE, || {
            bond.seen_by_device("mwb0").as_ref() == Some(&exit)
        });
        assert_eq!(bond.seen_as(), Some(past.clone()), "all else is as it was");
        // What is bound to its address, and a network that is led there.
        let addresses = bond.edge.ip("-4 -o address show dev mwb0");
        let inner =
            addresses.split_whitespace().nth(3).and_then(|net| net.split('/').next()).unwrap().to_owned();
        assert_eq!(bond.seen_from(&inner), Some(exit.clone()));
        let route = format!("-4 route add {}/32 dev mwb0", bond.server().ip());
        steps(&bond.edge, &[&route]);
        let before = bond.carried();
        transfer_with(&bond, bond.server());
        let after = bond.carried();
        assert!(
            after.iter().zip(&before).all(|(after, before)| after.0 > before.0),
            "one of the links was not used"
        );
        // Others take its rules away here too.
        steps(&bond.edge, &["-4 rule delete oif mwb0 table 28023"]);
        wait_until("its rule is there again", PATIENCE, || bond.edge.ip("-4 rule").contains("oif mwb0"));
        bond.edge.stop();
        alone.check(&bond.edge, "beside the host's own default route");
    });
}

/// As ufw and firewalld have it on a desktop: nothing comes in that was not asked for.
const FIREWALL: &str = "add table inet firewalld; \
    add chain inet firewalld pre { type filter hook prerouting priority -290; policy accept; }; \
    add rule inet firewalld pre meta nfproto ipv6 fib saddr . mark . iif oif missing drop; \
    add chain inet firewalld in { type filter hook input priority 10; policy accept; }; \
    add rule inet firewalld in ct state { established, related } accept; \
    add rule inet firewalld in iifname lo accept; \
    add rule inet firewalld in ct state invalid drop; \
    add rule inet firewalld in reject with icmpx admin-prohibited; \
    add chain inet firewalld forward { type filter hook forward priority 10; policy drop; }; \
    add table ip filter; \
    add chain ip filter INPUT { type filter hook input priority 0; policy drop; }; \
    add rule ip filter INPUT iifname lo accept; \
    add rule ip filter INPUT ct state related,established accept; \
    add rule ip filter INPUT ct state invalid drop; \
    add rule ip filter INPUT tcp dport 22 accept; \
    add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }; \
    add chain ip filter OUTPUT { type filter hook output priority 0; policy drop; }; \
    add rule ip filter OUTPUT oifname lo accept; \
    add rule ip filter OUTPUT ct state new,related,established accept";

#[test]
fn firewalls_on_the_edge_let_the_bond_through_and_stay() {
    in_lab("firewalls_on_the_edge_let_the_bond_through_and_stay", || {
        let mut bond = Bond::prepare();
        let mut command = Command::new("nft");
        command.arg(FIREWALL);
        let output = bond.edge.host().output(command).unwrap();
        assert!(output.status.success(), "{output:?}");
        let before = Footprint::of(&bond.edge);
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        wait_until("IPv6 goes through", PATIENCE, || bond.is_through_v6());
        wait_until("both paths are up", PATIENCE, || paths_up(&bond) == 2);
        transfer(&bond);
        // Long silence ends no path: its own heartbeats keep the firewall's memory of it.
        bond.edge.check();
        bond.edge.stop();
        before.check(&bond.edge, "behind firewalls");
        bond.edge.start();
        bond.wait_until_through();
        bond.edge.kill();
        assert!(bond.edge.down().status.success());
        before.check(&bond.edge, "killed behind firewalls");
    });
}

/// As NetworkManager does at another lease: all of the interface goes, then the new address and route come.
fn change(node: &Node, link: usize, host: &str) {
    for step in [format!("-4 address flush dev up{link}"), format!("-4 route flush dev up{link}")] {
        // Nothing to flush is an error to `ip`.
        node.ip(&step);
    }
    std::thread::sleep(Duration::from_millis(200));
    let renew = [
        format!("-4 address add 10.1.{link}.{host}/24 brd + dev up{link}"),
        format!("-4 route add default via 10.1.{link}.1 dev up{link} proto static metric 10{link}"),
    ];
    steps(node, &renew.each_ref().map(String::as_str));
}

#[test]
fn addresses_that_change_under_a_download_are_followed() {
    in_lab("addresses_that_change_under_a_download_are_followed", || {
        let mut bond = Bond::prepare();
        let before = Footprint::of(&bond.edge);
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        wait_until("both paths are up", PATIENCE, || paths_up(&bond) == 2);
        let spec = FlowSpec::bytes(bond.server(), 60 * MEGABYTE).patience(Duration::from_secs(60));
        let running = bond.edge.host().start(move || download(&spec));
        for (link, host) in [(1, "77"), (0, "78")] {
            std::thread::sleep(Duration::from_millis(1500));
            change(&bond.edge, link, host);
            let carried = bond.carried()[link].0;
            wait_until("the link carries its part again", PATIENCE, || {
                bond.carried()[link].0 > carried + MEGABYTE / 2
            });
            assert!(!running.is_finished(), "the download was over before");
        }
        whole(running.join());
        wait_until("both paths are up again", PATIENCE, || paths_up(&bond) == 2);
        bond.edge.stop();
        for link in [0, 1] {
            change(&bond.edge, link, "2");
        }
        before.check(&bond.edge, "after other addresses");
    });
}
