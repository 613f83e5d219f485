//! Goal: files written for the keys of other bonding programs load as they are and mean what they say there.
//! Method: such files under `tests/fixtures/config`, and one small text for each key that is turned into others.

use std::time::Duration;

use mwb_proto::bond::{DuplicationMode, FecMode, RoutingMode};
use mwb_proto::wire::v2::Class;

use super::*;

fn fixture(name: &str) -> Loaded {
    let path = format!("{}/../tests/fixtures/config/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    load_text(&text, Format::of(Path::new(name)), &[], &[])
        .unwrap_or_else(|refused| panic!("{name}: {refused}"))
}

fn warned(loaded: &Loaded) -> Vec<&str> {
    loaded.node.warnings.iter().map(|warning| warning.key.as_str()).collect()
}

#[test]
fn two_wans_with_addresses() {
    let loaded = fixture("quick-start.json");
    let uplinks: Vec<_> =
        loaded.node.uplinks.iter().map(|up| (up.id, up.name.as_str(), up.kind, up.address)).collect();
    let address = |text: &str| Some(text.parse().expect("an address"));
    assert_eq!(
        uplinks,
        [
            (1, "Primary", LinkType::Fiber, address("192.168.1.100")),
            (2, "Backup", LinkType::Lte, address("192.168.2.100")),
        ]
    );
    assert_eq!(loaded.node.bond.sender.mode, RoutingMode::Adaptive);
    let endpoints =
        ["session.local_endpoint", "session.remote_endpoint", "wans[0].remote_addr", "wans[1].remote_addr"];
    assert_eq!(warned(&loaded), endpoints, "an edge's exit is known by its key, not by a name");
}

#[test]
fn wans_without_addresses() {
    let loaded = fixture("high-availability.json");
    let uplinks: Vec<_> =
        loaded.node.uplinks.iter().map(|up| (up.name.as_str(), up.weight, up.address)).collect();
    assert_eq!(uplinks, [("Fiber Primary", 10, None), ("LTE Backup", 1, None)]);
    assert!(loaded.node.uplinks.iter().all(|uplink| uplink.interface.is_none()), "any of its type");
    assert_eq!(loaded.node.bond.sender.mode, RoutingMode::Weighted);
    assert_eq!(warned(&loaded), [""; 0]);

    let loaded = fixture("bandwidth.json");
    let caps: Vec<_> = loaded.node.uplinks.iter().map(|up| up.max_bandwidth.map(NonZeroU64::get)).collect();
    assert_eq!(caps, [Some(104_857_600), Some(104_857_600), Some(52_428_800)], "bytes per second");
    assert_eq!(loaded.node.bond.sender.mode, RoutingMode::LeastUsed);
    assert_eq!(warned(&loaded), [""; 0]);
}

#[test]
fn copies_and_parity() {
    let loaded = fixture("mission-critical.json");
    let sender = &loaded.node.bond.sender;
    assert_eq!(sender.duplication.mode, DuplicationMode::Fastest);
    assert!(Class::ALL.into_iter().all(|class| sender.duplication.classes.contains(class)));
    assert_eq!((sender.fec.mode, sender.fec.data_shards, sender.fec.parity_shards), (FecMode::Enabled, 4, 2));
    assert_eq!(loaded.node.uplinks.len(), 3);
    assert_eq!(warned(&loaded), ["fec.redundancy"], "the shards say how much is sent");
}

#[test]
fn tuning() {
    let loaded = fixture("low-latency.json");
    let bond = &loaded.node.bond;
    assert_eq!((bond.sender.mode, bond.sender.fec.mode), (RoutingMode::LeastLatency, FecMode::Off));
    assert_eq!(bond.receiver.reorder_timeout, Duration::from_millis(50));
    assert_eq!(bond.receiver.reorder_bytes_max, 1 << 20);
    assert_eq!(warned(&loaded), ["session.reorder_buffer"], "raised to what a resequencer can work with");

    let loaded = fixture("throughput.json");
    let bond = &loaded.node.bond;
    assert_eq!(
        (bond.sender.fec.mode, bond.sender.fec.data_shards, bond.sender.fec.parity_shards),
        (FecMode::Enabled, 16, 2)
    );
    assert_eq!(
        (bond.receiver.reorder_bytes_max, bond.receiver.reorder_timeout),
        (7_500_000, Duration::from_secs(1))
    );

    let loaded = fixture("reliability.json");
    let bond = &loaded.node.bond;
    assert_eq!((bond.sender.fec.parity_shards, bond.sender.duplication.mode), (5, DuplicationMode::Fastest));
    assert_eq!(
        (bond.receiver.reorder_bytes_max, bond.receiver.reorder_timeout),
        (3_000_000, Duration::from_millis(800))
    );
    assert_eq!(warned(&loaded), [""; 0]);
}

#[test]
fn a_mesh_network() {
    let loaded = fixture("mesh.json");
    let uplinks: Vec<_> = loaded.node.uplinks.iter().map(|up| (up.id, up.name.as_str(), up.weight)).collect();
    assert_eq!(uplinks, [(1, "eth0", 20), (2, "wlan0", 10), (3, "ppp0", 10)]);
    assert_eq!(loaded.node.bond.sender.mode, RoutingMode::RoundRobin);
    assert_eq!(loaded.node.bond.sender.queue_bytes_max, 1_500_000);
    let port = loaded.entries.iter().find(|entry| entry.key == "lan.port").expect("a port");
    assert_eq!((port.value.clone(), port.source()), (Some(9999.into()), "file"));
    assert_eq!(loaded.node.warnings.len(), 6, "{:?}", loaded.node.warnings);
    assert!(warned(&loaded).contains(&"mesh_network.failover.threshold"));
}

fn json(text: &str) -> Result<Loaded, Refused> {
    load_text(text, Format::Json, &[], &[])
}

#[test]
fn faults_name_keys_as_they_are_written() {
    let refused =
        json("{\"wans\": [\n{\"local_addr\": \"here\"},\n{\"wieght\": 3, \"weight\": 0}]}").expect_err("bad");
    let named: Vec<_> = refused.0.iter().map(|fault| (fault.key.as_str(), fault.origin.as_str())).collect();
    let expected = [
        ("wans[1].weight", "/etc/test.toml:3"),
        ("wans[1].wieght", "/etc/test.toml:3"),
        ("wans[0].local_addr", "/etc/test.toml:2"),
    ];
    assert_eq!(named, expected, "{refused}");
    let refused =
        json("{\"session\": {\"reorder_timeout\": \"5h\", \"duplicate_packets\": 1}}").expect_err("bad");
    let named: Vec<_> = refused.0.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(named, ["session.duplicate_packets", "session.reorder_timeout"], "{refused}");
}

#[test]
fn both_names_at_once_are_refused() {
    for (text, key) in [
        (r#"{"wans": [{}], "uplinks": [{}]}"#, "wans"),
        (r#"{"wans": [{"address": "192.0.2.1", "local_addr": "192.0.2.1"}]}"#, "wans[0].local_addr"),
        (
            r#"{"session": {"reorder_timeout": "1s"}, "bond": {"reorder_timeout": "1s"}}"#,
            "session.reorder_timeout",
        ),
        (
            r#"{"session": {"reorder_buffer": 900}, "bond": {"reorder_bytes_max": 2000000}}"#,
            "session.reorder_buffer",
        ),
        (
            r#"{"session": {"duplicate_packets": true}, "duplication": {"mode": "off"}}"#,
            "session.duplicate_packets",
        ),
        (r#"{"fec": {"enabled": true, "mode": "off"}}"#, "fec.enabled"),
        (
            r#"{"mesh_network": {"interfaces": {"primary": "a"}}, "uplinks": [{}]}"#,
            "mesh_network.interfaces.primary",
        ),
    ] {
        let refused = json(text).expect_err(text);
        assert_eq!(refused.0.len(), 1, "{refused}");
        assert_eq!(refused.0[0].key, key);
        assert!(refused.to_string().contains("both are written"), "{refused}");
    }
    // The environment still rules over a second name.
    let env = [("MWB__BOND__REORDER_TIMEOUT", "2s"), ("MWB__UPLINKS__0__WEIGHT", "7")];
    let text = r#"{"session": {"reorder_timeout": "1s"}, "wans": [{"weight": 5}]}"#;
    let node = load_text(text, Format::Json, &env, &[]).expect("good").node;
    assert_eq!((node.bond.receiver.reorder_timeout, node.uplinks[0].weight), (Duration::from_secs(2), 7));
    let refused = load_text(text, Format::Json, &[("MWB__UPLINKS__0__WEIGHT", "0")], &[]).expect_err("bad");
    assert_eq!(refused.0[0].key, "uplinks[0].weight", "as the variable calls it");
}

#[test]
fn keys_without_effect_are_told_by_name() {
    let text = r#"{"plugins": {"x": [1]}, "monitoring": {"port": 9090}, "session": {"multicast_enabled": true},
        "wans": [{"max_jitter": "30ms", "failure_threshold": 4}], "uplink_policy": 1}"#;
    let refused = json(text).expect_err("an unknown key");
    assert_eq!(refused.0.len(), 1, "{refused}");
    let loaded = json(&text.replace(", \"uplink_policy\": 1", "")).expect("good");
    let health = &loaded.node.uplinks[0].health;
    assert_eq!((health.jitter_max, health.failure_threshold), (Duration::from_millis(30), 4));
    let mut keys = warned(&loaded);
    keys.sort_unstable();
    let all = ["monitoring", "plugins", "session.multicast_enabled"];
    assert_eq!(keys, all);
    assert!(loaded.node.warnings.iter().all(|warning| warning.says.contains("no effect")));
    assert_eq!(warned(&json(r#"{"session": {"multicast_enabled": false}}"#).expect("good")), [""; 0]);
}

#[test]
fn an_exits_addresses_may_stand_with_the_session() {
    let peer = |rest: &str| format!(r#""peers": [{{"node_id": "{ID}", "exit": true{rest}}}]"#);
    let text = |peer: &str| {
        format!(
            r#"{{"session": {{"remote_endpoint": "192.0.2.1:9000"}}, {peer},
            "wans": [{{"local_addr": "10.0.0.1", "remote_addr": "192.0.2.1:9000"}},
                     {{"local_addr": "10.0.1.1", "remote_addr": "192.0.2.2:9000"}}]}}"#
        )
    };
    let loaded = json(&text(&peer(""))).expect("good");
    assert_eq!(loaded.node.peers[0].addresses.len(), 2, "each once");
    assert_eq!(warned(&loaded), [""; 0]);
    let loaded = json(&text(&peer(r#", "addresses": ["192.0.2.9:1"]"#))).expect("good");
    assert_eq!(loaded.node.peers[0].addresses.len(), 1);
    assert_eq!(loaded.node.warnings.len(), 3);
    let exit =
        json(r#"{"exit": {}, "session": {"local_endpoint": "0.0.0.0:9123"}}"#).expect("good").node.exit;
    assert_eq!(exit.expect("an exit").listen, ["0.0.0.0:9123".parse().expect("an address")]);
}

#[test]
fn small_turns() {
    let node = |text: &str| json(text).expect(text).node;
    let ids =
        node(r#"{"wans": [{"id": 40}, {"id": 1}, {}]}"#).uplinks.iter().map(|up| up.id).collect::<Vec<_>>();
    assert_eq!(ids, [2, 1, 3], "numbered anew");
    assert!(json(r#"{"wans": [{"id": 256}]}"#).is_err() && json(r#"{"uplinks": [{"id": 40}]}"#).is_err());
    let off = node(r#"{"session": {"duplicate_packets": false, "duplicate_mode": "best"}}"#);
    assert_eq!(off.bond.sender.duplication.mode, DuplicationMode::Off);
    let auto = node(r#"{"session": {"duplicate_mode": "best"}}"#);
    assert_eq!((auto.bond.sender.duplication.mode, auto.warnings.len()), (DuplicationMode::Auto, 1));
    let probes = node(r#"{"wans": [{"health_check_interval": "1s"}, {"health_check_interval": "500ms"}]}"#);
    assert_eq!((probes.bond.sender.heartbeat_idle, probes.warnings.len()), (Duration::from_millis(500), 1));
    let parity =
        |fec: &str| node(&format!(r#"{{"fec": {{"enabled": true, {fec}}}}}"#)).bond.sender.fec.parity_shards;
    assert_eq!((parity(r#""redundancy": 0.3, "data_shards": 10"#), parity(r#""data_shards": 8"#)), (3, 4));
    assert_eq!(parity(r#""redundancy": 1, "data_shards": 32"#), 16);
}
