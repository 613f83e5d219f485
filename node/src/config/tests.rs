//! Goal: every refusal names the key, its origin and a fix, and what is right is understood.
//! Method: one small text per rule, with an injected environment.

use std::collections::HashMap;

use super::*;

const ID: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn with_env(text: &str, env: &[(&str, &str)]) -> Result<NodeConfig, Refused> {
    let env: HashMap<String, String> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let source = Environment::with_prefix("MWB")
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true)
        .source(Some(env));
    parse(text, "/etc/test.toml", source)
}

fn read(text: &str) -> Result<NodeConfig, Refused> {
    with_env(text, &[])
}

fn edge(rest: &str) -> String {
    format!(
        "[[peers]]\nname = \"x\"\nnode_id = \"{ID}\"\naddresses = [\"192.0.2.1:9000\"]\nexit = true\n{rest}"
    )
}

const LINK: &str = "[[uplinks]]\ninterface = \"eth0\"\n";

/// The one fault that `text` has.
#[track_caller]
fn fault(text: &str) -> Fault {
    let mut faults = read(text).expect_err("must be refused").0;
    assert_eq!(faults.len(), 1, "{faults:?}");
    let fault = faults.remove(0);
    assert_eq!(fault.origin, "/etc/test.toml", "{fault}");
    assert!(!fault.fix.is_empty() && !fault.problem.is_empty());
    fault
}

#[test]
fn the_sample_is_valid() {
    let config = read(SAMPLE).expect("sample");
    assert_eq!(config.name, "edge-1");
    assert_eq!(config.uplinks.len(), 2);
    assert_eq!(config.tun, Tun { name: "mwb0".to_owned(), mtu: 1408 });
    assert_eq!(config.bond.sender, SenderConfig::default(), "the sample shows the defaults");
    assert_eq!(config.bond.receiver, ReceiverConfig::default(), "the sample shows the defaults");
}

#[test]
fn the_samples_comments_are_valid_too() {
    let uncommented = |part: &str| {
        let mut text = String::new();
        for line in part.lines() {
            let key = |rest: &&str| rest.starts_with('[') || rest.split(' ').nth(1) == Some("=");
            text.push_str(line.strip_prefix("# ").filter(key).unwrap_or(line));
            text.push('\n');
        }
        text
    };
    let (edge, exit) = SAMPLE.split_once("# Makes this node an exit").expect("the exit's section");
    let config = read(&uncommented(edge)).expect("edge with optional keys");
    assert!(config.uplinks[0].max_bandwidth.is_some() && config.uplinks[0].address.is_some());
    let exit = uncommented(&format!("[[peers]]\nnode_id = \"{ID}\"\n# {exit}"));
    assert!(read(&exit).expect("exit").exit.is_some());
}

#[test]
fn defaults_fill_an_edge() {
    let config = read(&edge(LINK)).expect("edge");
    assert_eq!(
        config.uplinks,
        [Uplink {
            id: 1,
            name: "eth0".to_owned(),
            interface: Some("eth0".to_owned()),
            address: None,
            kind: LinkType::Other,
            max_bandwidth: None,
            weight: 10,
            metered: false,
            lend: true,
        }]
    );
    assert!(config.exit.is_none());
    assert_eq!(config.peers[0].node_id.as_bytes()[..2], [0x00, 0x11]);
}

#[test]
fn defaults_fill_an_exit() {
    let config = read(&format!("[exit]\n[[peers]]\nnode_id = \"{ID}\"\n")).expect("exit");
    let exit = config.exit.expect("is one");
    assert_eq!(exit.listen, ["0.0.0.0:9000".parse().unwrap()]);
    assert_eq!(exit.pool, (Ipv4Addr::new(10, 109, 119, 1), 24));
    assert_eq!(exit.pool_v6, Some(("fd6d:7762::1".parse().unwrap(), 64)));
}

#[test]
fn the_environment_overrides_the_file_and_is_named() {
    let text = format!("{}[tun]\nmtu = 1400\n", edge(LINK));
    assert_eq!(with_env(&text, &[("MWB__TUN__MTU", "1300")]).expect("good").tun.mtu, 1300);
    let faults = with_env(&text, &[("MWB__TUN__MTU", "7")]).expect_err("bad").0;
    assert_eq!((faults[0].key.as_str(), faults[0].origin.as_str()), ("tun.mtu", "the environment"));
    let faults = with_env(&text, &[("MWB__TUN__MTU", "big")]).expect_err("bad").0;
    assert_eq!((faults[0].key.as_str(), faults[0].origin.as_str()), ("tun.mtu", "the environment"));
}

#[test]
fn unknown_keys_are_refused_with_their_place() {
    let fault = fault(&edge(&format!("{LINK}wieght = 3\n")));
    assert!(fault.key.starts_with("uplinks[0]"), "{fault}");
    assert!(fault.problem.contains("wieght") && fault.problem.contains("weight"), "{fault}");
    let faults = read("colour = 1").expect_err("bad").0;
    assert!(faults[0].problem.contains("colour"), "{faults:?}");
}

#[test]
fn wrong_types_are_refused() {
    let fault = fault(&edge(&format!("{LINK}weight = \"heavy\"\n")));
    assert_eq!(fault.key, "uplinks[0].weight");
    assert!(fault.problem.contains("heavy"), "{fault}");
    let fault = self::fault(&edge(&format!("{LINK}type = \"pigeon\"\n")));
    assert!(fault.key.starts_with("uplinks[0]") && fault.problem.contains("pigeon"), "{fault}");
}

#[test]
fn broken_toml_is_refused() {
    let fault = fault("[tun\nmtu = 3");
    assert!(fault.problem.contains("TOML"), "{fault}");
}

#[test]
fn values_out_of_range_are_refused() {
    for (text, key) in [
        ("[tun]\nmtu = 500\n", "tun.mtu"),
        ("[tun]\nmtu = 20000\n", "tun.mtu"),
        ("[tun]\nname = \"a/b\"\n", "tun.name"),
        ("[tun]\nname = \"abcdefghijklmnop\"\n", "tun.name"),
        ("[node]\nname = \"\"\n", "node.name"),
        ("[node]\nworkers = 0\n", "node.workers"),
        ("[bond]\nreorder_timeout = \"300\"\n", "bond.reorder_timeout"),
        ("[bond]\nreorder_timeout = \"1m\"\n", "bond.reorder_timeout"),
        ("[bond]\nspread_max = \"0ms\"\n", "bond.spread_max"),
        ("[bond]\nheartbeat_idle = \"x\"\n", "bond.heartbeat_idle"),
        ("[bond]\nqueue_bytes_max = 10\n", "bond.queue_bytes_max"),
        ("[bond]\nreorder_bytes_max = 10\n", "bond.reorder_bytes_max"),
        ("[log]\nlevel = \"a=b=c\"\n", "log.level"),
    ] {
        assert_eq!(fault(&edge(&format!("{LINK}{text}"))).key, key);
    }
    for (text, key) in [
        ("id = 0\n", "uplinks[0].id"),
        ("id = 32\n", "uplinks[0].id"),
        ("weight = 0\n", "uplinks[0].weight"),
        ("weight = 1001\n", "uplinks[0].weight"),
        ("max_bandwidth = 0\n", "uplinks[0].max_bandwidth"),
        ("address = \"0.0.0.0\"\n", "uplinks[0].address"),
        ("address = \"here\"\n", "uplinks[0].address"),
    ] {
        assert_eq!(fault(&edge(&format!("{LINK}{text}"))).key, key);
    }
    assert_eq!(fault(&edge("[[uplinks]]\ninterface = \"mwb0\"\n")).key, "uplinks[0].interface");
}

#[test]
fn duplicates_are_refused() {
    let two = |first: &str, second: &str| {
        edge(&format!("[[uplinks]]\ninterface = \"a\"\n{first}[[uplinks]]\ninterface = \"b\"\n{second}"))
    };
    assert_eq!(fault(&two("id = 2\n", "id = 2\n")).key, "uplinks[1].id");
    assert_eq!(fault(&two("name = \"n\"\n", "name = \"n\"\n")).key, "uplinks[1].name");
    let same = edge(&format!("{LINK}name = \"a\"\n{LINK}name = \"b\"\n"));
    assert_eq!(fault(&same).key, "uplinks[1].interface");
    let unbound = edge("[[uplinks]]\n[[uplinks]]\n");
    assert_eq!(fault(&unbound).key, "uplinks[1].interface");
    let peers = format!("{}[[peers]]\nname = \"y\"\nnode_id = \"{}\"\n", edge(LINK), ID.to_uppercase());
    assert_eq!(fault(&peers).key, "peers[1].node_id");
    let other = ID.replace('0', "1");
    let peers = format!("{}[[peers]]\nname = \"x\"\nnode_id = \"{other}\"\n", edge(LINK));
    assert_eq!(fault(&peers).key, "peers[1].name");
}

#[test]
fn ids_left_out_take_the_free_numbers() {
    let text = edge("[[uplinks]]\ninterface = \"a\"\n[[uplinks]]\ninterface = \"b\"\nid = 1\n");
    let ids: Vec<u8> = read(&text).expect("good").uplinks.iter().map(|uplink| uplink.id).collect();
    assert_eq!(ids, [2, 1]);
}

#[test]
fn disabled_uplinks_are_checked_but_not_used() {
    let text = edge(&format!("{LINK}[[uplinks]]\ninterface = \"b\"\nenabled = false\n"));
    assert_eq!(read(&text).expect("good").uplinks.len(), 1);
    let off = "[discovery]\nuplinks = \"off\"\n";
    assert_eq!(fault(&edge(&format!("{off}{LINK}enabled = false\n"))).key, "uplinks");
}

#[test]
fn uplinks_are_looked_for_where_none_is_named() {
    let found = |text: &str| read(text).expect("good").discovery;
    let discovery = |what: &str| format!("[discovery]\nuplinks = \"{what}\"\n");
    assert!(found("").uplinks && found(&edge("")).uplinks);
    assert!(!found(&edge(LINK)).uplinks);
    assert!(found(&edge(&(discovery("also") + LINK))).uplinks);
    assert!(!found(&discovery("off")).uplinks);
    assert_eq!(fault(&edge(&discovery("off"))).key, "uplinks");
    let disabled = found(&edge(&format!("{LINK}enabled = false\n[discovery]\nignore = [\"wlan*\"]\n")));
    assert!(disabled.uplinks);
    assert_eq!(disabled.ignore, ["eth0", "wlan*"]);
    let exit = format!("[[peers]]\nnode_id = \"{ID}\"\n[exit]\n");
    assert!(!found(&exit).uplinks);
    assert_eq!(fault(&(discovery("also") + &exit)).key, "discovery.uplinks");
    assert_eq!(fault(&discovery("yes")).key, "discovery.uplinks");
    let lan = |text: &str| {
        let config = read(text).expect("good");
        (config.discovery.lan, config.lan.map(|lan| lan.interfaces))
    };
    assert_eq!(lan(""), (true, Some(Vec::new())));
    assert_eq!(lan("[lan]\ninterfaces = [\"eth1\"]\n"), (false, Some(vec!["eth1".to_owned()])));
    assert_eq!(lan("[discovery]\nlan = \"off\"\n"), (false, None));
    assert_eq!(lan(&exit), (false, None));
    assert_eq!(fault("[discovery]\nignore = [\"a/b\"]\n").key, "discovery.ignore[0]");
}

#[test]
fn peers_need_an_id_and_an_exit_addresses() {
    let peer = |rest: &str| format!("{LINK}[[peers]]\nexit = true\n{rest}");
    let good = format!("node_id = \"{ID}\"\n");
    assert_eq!(fault(&peer("addresses = [\"192.0.2.1:9\"]\nnode_id = \"abc\"\n")).key, "peers[0].node_id");
    let sign = ID.replacen('0', "+", 1);
    let text = format!("addresses = [\"192.0.2.1:9\"]\nnode_id = \"{sign}\"\n");
    assert_eq!(fault(&peer(&text)).key, "peers[0].node_id");
    assert_eq!(fault(&peer(&good)).key, "peers[0].addresses");
    assert_eq!(fault(&peer(&format!("{good}addresses = [\"192.0.2.1\"]\n"))).key, "peers[0].addresses[0]");
    assert_eq!(fault(&peer(&format!("{good}addresses = [\"192.0.2.1:0\"]\n"))).key, "peers[0].addresses[0]");
}

#[test]
fn exits_need_a_pool_and_an_address() {
    let exit = |rest: &str| format!("[[peers]]\nnode_id = \"{ID}\"\n[exit]\n{rest}");
    assert_eq!(fault(&exit("pool = \"10.0.0.0/31\"\n")).key, "exit.pool");
    assert_eq!(fault(&exit("pool = \"127.0.0.0/24\"\n")).key, "exit.pool");
    assert_eq!(fault(&exit("pool = \"10.0.0.0\"\n")).key, "exit.pool");
    for pool in ["10.0.0.0/24", "fd00::/128", "fe80::/64", "ff02::/64", "::/64", "off"] {
        assert_eq!(fault(&exit(&format!("pool_v6 = \"{pool}\"\n"))).key, "exit.pool_v6", "{pool}");
    }
    assert_eq!(fault(&exit("listen = []\n")).key, "exit.listen");
    assert_eq!(fault(&exit("listen = [\"9000\"]\n")).key, "exit.listen[0]");
}

#[test]
fn roles_do_not_mix() {
    assert_eq!(fault(&format!("{}[exit]\n", edge(LINK))).key, "exit");
    assert_eq!(fault(&format!("{LINK}[[peers]]\nnode_id = \"{ID}\"\n[exit]\n")).key, "uplinks");
    let other = ID.replace('0', "1");
    let second = format!("[[peers]]\nexit = true\nnode_id = \"{other}\"\naddresses = [\"192.0.2.2:9\"]\n");
    assert_eq!(fault(&format!("{}{second}", edge(LINK))).key, "peers");
}

#[test]
fn a_member_of_a_mesh_needs_no_peers() {
    assert!(read("[exit]\n").expect("the mesh's edges may use it").peers.is_empty());
    assert_eq!(read(LINK).expect("the mesh's exit is used").uplinks.len(), 1);
    assert!(read("").expect("its record says what it is").exit.is_none());
}

#[test]
fn all_faults_are_told_at_once() {
    let text = edge("[[uplinks]]\nid = 99\nweight = 0\naddress = \"x\"\n");
    let refused = read(&text).expect_err("bad");
    assert_eq!(refused.0.len(), 3);
    let message = refused.to_string();
    assert!(message.contains("uplinks[0].id (/etc/test.toml): 99 is out of range"), "{message}");
    assert!(message.contains("fix: write a number from 1 to 31"), "{message}");
}

#[test]
fn routing_modes_are_read_and_unknown_ones_refused() {
    for mode in mwb_proto::bond::RoutingMode::ALL {
        let config = read(&edge(&format!("{LINK}[routing]\nmode = \"{mode}\"\n"))).expect("a mode");
        assert_eq!(config.bond.sender.mode, mode);
        assert_eq!(serde_json::to_value(mode).expect("a text"), mode.name(), "snapshots use the same name");
    }
    for wrong in ["fastest", "", "Adaptive"] {
        let fault = fault(&edge(&format!("{LINK}[routing]\nmode = \"{wrong}\"\n")));
        assert_eq!(fault.key, "routing.mode");
        assert!(fault.fix.contains("round_robin, weighted") && fault.fix.contains("broadcast"), "{fault}");
    }
}

#[test]
fn parity_and_duplication_are_read_and_nonsense_is_refused() {
    use mwb_proto::bond::{DuplicationMode, FecMode};
    use mwb_proto::wire::v2::Class;

    let config = read(LINK).expect("defaults").bond.sender;
    assert_eq!((config.fec.mode, config.duplication.mode), (FecMode::Adaptive, DuplicationMode::Auto));
    for mode in FecMode::ALL {
        let text = format!("{LINK}[fec]\nmode = \"{}\"\ndata_shards = 32\nparity_shards = 16\n", mode.name());
        let fec = read(&text).expect("a mode").bond.sender.fec;
        assert_eq!((fec.mode, fec.data_shards, fec.parity_shards), (mode, 32, 16));
    }
    for mode in DuplicationMode::ALL {
        let text =
            format!("{LINK}[duplication]\nmode = \"{}\"\nclasses = [\"voice\", \"video\"]\n", mode.name());
        let duplication = read(&text).expect("a mode").bond.sender.duplication;
        assert_eq!(duplication.mode, mode);
        assert!(
            duplication.classes.contains(Class::Video) && !duplication.classes.contains(Class::BestEffort)
        );
    }
    for (text, key) in [
        ("[fec]\nmode = \"on\"\n", "fec.mode"),
        ("[fec]\ndata_shards = 33\n", "fec.data_shards"),
        ("[fec]\nparity_shards = 0\n", "fec.parity_shards"),
        ("[fec]\nredundancy = 1.5\n", "fec.redundancy"),
        ("[fec]\nredundancy = nan\n", "fec.redundancy"),
        ("[duplication]\nmode = \"all\"\n", "duplication.mode"),
        ("[duplication]\nclasses = [\"voice\", \"games\"]\n", "duplication.classes[1]"),
    ] {
        assert_eq!(fault(&format!("{LINK}{text}")).key, key);
    }
}
