//! Goal: every refusal names the key, its origin and a fix, and what is right is understood.
//! Method: one small text per rule, with an injected environment.

mod egress;
mod formats;
mod second;
mod table;

use super::*;

const ID: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const FILE: &str = "/etc/test.toml";

/// `text` in `format`, with variables and options.
fn load_text(text: &str, format: Format, env: &[(&str, &str)], set: &[&str]) -> Result<Loaded, Refused> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let set: Vec<String> = set.iter().map(|option| (*option).to_owned()).collect();
    parse(text, format, FILE, env, &set)
}

fn with_env(text: &str, env: &[(&str, &str)]) -> Result<NodeConfig, Refused> {
    load_text(text, Format::Toml, env, &[]).map(|loaded| loaded.node)
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
    // What nobody wrote has no line.
    assert!(
        fault.origin.strip_prefix(FILE).is_some_and(|line| line.is_empty() || line.starts_with(':')),
        "{fault}"
    );
    assert!(!fault.fix.is_empty() && !fault.problem.is_empty());
    fault
}

/// `part` of the sample with its examples.
fn uncommented(part: &str) -> String {
    let mut text = String::new();
    for line in part.lines() {
        let key = |rest: &&str| rest.starts_with('[') || rest.split(' ').nth(1) == Some("=");
        text.push_str(line.strip_prefix("# ").filter(key).unwrap_or(line));
        text.push('\n');
    }
    text.replace(&"0".repeat(64), ID)
}

/// What the sample has for an edge and for an exit, examples included.
fn samples() -> (String, String) {
    let (edge, exit) = SAMPLE.split_once("# Makes this node an exit").expect("the exit's section");
    (uncommented(edge), uncommented(&format!("# [[peers]]\n# node_id = \"{ID}\"\n# {exit}")))
}

#[test]
fn the_sample_as_it_is_changes_nothing() {
    let config = read(SAMPLE).expect("sample");
    assert_eq!(config.warnings, []);
    assert_eq!(config, read("").expect("nothing"));
    assert_eq!(config.tun, Tun { name: "mwb0".to_owned(), mtu: 1408, default_route: true, dns: Dns::Auto });
    assert_eq!(config.bond.sender, SenderConfig::default(), "the sample shows the defaults");
    assert_eq!(config.bond.receiver, ReceiverConfig::default(), "the sample shows the defaults");
}

#[test]
fn the_samples_examples_are_valid_too() {
    let (edge, exit) = samples();
    let config = read(&edge).expect("edge with optional keys");
    assert_eq!((config.name.as_str(), config.is_named, config.uplinks.len()), ("edge-1", true, 2));
    assert!(config.uplinks[0].max_bandwidth.is_some() && config.uplinks[0].address.is_some());
    assert!(read(&exit).expect("exit").exit.is_some());
    // Whoever leaves the example's id as it is hears of it.
    let zeros = edge.replace(ID, &"0".repeat(64));
    let fault = fault(&zeros);
    assert!(fault.key == "peers[0].node_id" && fault.fix.contains("mwb-node key"), "{fault}");
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
            health: HealthConfig::default(),
        }]
    );
    assert!(config.exit.is_none());
    assert_eq!(config.peers[0].node_id.as_bytes()[..2], [0x00, 0x11]);
}

#[test]
fn a_satellite_is_judged_as_one() {
    let health =
        |keys: &str| read(&edge(&format!("{LINK}{keys}\n"))).expect("good").uplinks[0].health.clone();
    assert_eq!(health("type = \"satellite\"").latency_max, Duration::from_millis(1400));
    assert_eq!(health("type = \"fiber\"").latency_max, Duration::from_millis(100));
    let own = health("type = \"satellite\"\nmax_latency = \"300ms\"\nmax_packet_loss = 0.5");
    assert_eq!((own.latency_max, own.loss_max), (Duration::from_millis(300), 0.005));
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
    for wrong in ["7", "big", "", "1e3"] {
        let faults = with_env(&text, &[("MWB__TUN__MTU", wrong)]).expect_err("bad").0;
        let named = ("tun.mtu", "environment variable MWB__TUN__MTU");
        assert_eq!((faults[0].key.as_str(), faults[0].origin.as_str()), named);
        assert_eq!(faults.len(), 1, "{faults:?}");
    }
}

#[test]
fn variables_reach_blocks_and_lists_and_are_typed_by_the_table() {
    let env = [
        ("MWB__UPLINKS__0__WEIGHT", "20"),
        ("MWB__UPLINKS__0__NAME", "007"),
        ("MWB__UPLINKS__1__INTERFACE", "wwan0"),
        ("mwb__uplinks__1__metered", "TRUE"),
        ("MWB__DUPLICATION__CLASSES", "voice, video"),
        ("MWB_STATE_DIR", "/elsewhere"),
    ];
    let config = with_env(&edge(LINK), &env).expect("good");
    let uplinks: Vec<_> = config.uplinks.iter().map(|up| (up.name.as_str(), up.weight, up.metered)).collect();
    assert_eq!(uplinks, [("007", 20, false), ("wwan0", 10, true)]);
    let classes = config.bond.sender.duplication.classes;
    assert!(classes.contains(Class::Video) && classes.contains(Class::Voice));
    assert!(!classes.contains(Class::BestEffort));
}

#[test]
fn variables_that_set_nothing_are_refused() {
    for (name, key, says) in [
        ("MWB__TUN__MTV", "tun.mtv", "MWB__TUN__MTU"),
        ("MWB__TUN", "tun", "is a section"),
        ("MWB__UPLINKS__999999999999__WEIGHT", "uplinks[999999999999].weight", "not so many"),
        ("MWB__UPLINKS__0__LOCAL_ADDR", "uplinks[0].local_addr", "name for files"),
        ("MWB__SESSION__DUPLICATE_PACKETS", "session.duplicate_packets", "for files"),
        ("MWB__PLUGINS", "plugins", "no effect"),
        ("MWB__", "", "unknown key"),
    ] {
        let faults = with_env(&edge(LINK), &[(name, "1")]).expect_err(name).0;
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(
            (faults[0].key.as_str(), faults[0].origin.as_str()),
            (key, format!("environment variable {name}").as_str())
        );
        assert!(faults[0].to_string().contains(says), "{}", faults[0]);
    }
    let faults = with_env(&edge(LINK), &[("MWB__UPLINKS__3__WEIGHT", "1")]).expect_err("a gap").0;
    assert_eq!(faults[0].key, "uplinks[1]", "{faults:?}");
}

#[test]
fn options_override_the_environment() {
    let load = |set: &[&str]| load_text(&edge(LINK), Format::Toml, &[("MWB__TUN__MTU", "1300")], set);
    let loaded = load(&["tun.mtu=1290", "uplinks[0].weight=3", "uplinks.0.lend=false"]).expect("good");
    assert_eq!(loaded.node.tun.mtu, 1290);
    assert_eq!((loaded.node.uplinks[0].weight, loaded.node.uplinks[0].lend), (3, false));
    let entry = |key: &str| loaded.entries.iter().find(|entry| entry.key == key).expect(key).clone();
    assert_eq!((entry("tun.mtu").source(), entry("tun.mtu").origin.as_str()), ("flag", "--set tun.mtu"));
    for (wrong, says) in [("tun.mtu", "no value"), ("tun.mtuu=1", "tun.mtu"), ("tun.mtu=1", "out of range")] {
        let faults = load(&[wrong]).expect_err(wrong).0;
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(
            faults[0].origin.starts_with("--set tun.mtu") && faults[0].to_string().contains(says),
            "{faults:?}"
        );
    }
}

#[test]
fn unknown_keys_are_refused_with_their_place() {
    let fault = fault(&edge(&format!("{LINK}wieght = 3\n")));
    assert_eq!((fault.key.as_str(), fault.origin.as_str()), ("uplinks[0].wieght", "/etc/test.toml:8"));
    assert!(fault.problem.contains("did you mean uplinks[].weight?"), "{fault}");
    for (text, key, says) in [
        ("colour = 1", "colour", "there are node, tun, "),
        ("[tunn]\nmtu = 1400", "tunn", "did you mean tun?"),
        ("mtu = 1400", "mtu", "did you mean tun.mtu?"),
        ("[tun]\nMTU = 1400", "tun.MTU", "did you mean tun.mtu?"),
        ("[lan]\nlend-metered = true", "lan.lend-metered", "did you mean lan.lend_metered?"),
        (
            "[session]\nreorder_timout = \"1s\"",
            "session.reorder_timout",
            "did you mean session.reorder_timeout?",
        ),
        ("\"a[99999999]\" = 1", "a[99999999]", "unknown key"),
    ] {
        let fault = self::fault(text);
        assert_eq!(fault.key, key);
        assert!(fault.to_string().contains(says), "{fault}");
    }
}

#[test]
fn wrong_types_are_refused() {
    let fault = fault(&edge(&format!("{LINK}weight = \"heavy\"\n")));
    assert_eq!(fault.key, "uplinks[0].weight");
    assert!(fault.problem.contains("heavy"), "{fault}");
    let fault = self::fault(&edge(&format!("{LINK}type = \"pigeon\"\n")));
    assert!(fault.key == "uplinks[0].type" && fault.problem.contains("pigeon"), "{fault}");
    let fault = self::fault(&edge(&format!("{LINK}type = \"fibre\"\n")));
    assert!(fault.fix.contains("did you mean \"fiber\"?"), "{fault}");
    assert_eq!(self::fault("uplinks = 3").key, "uplinks");
    assert_eq!(self::fault("[uplinks]\nid = 1").key, "uplinks");
    assert_eq!(self::fault("uplinks = [3]").key, "uplinks[0]");
    assert_eq!(self::fault("tun = 3").key, "tun");
    assert_eq!(
        self::fault(&edge(&format!("{LINK}[bond]\nreorder_timeout = 800\n"))).key,
        "bond.reorder_timeout"
    );
    assert_eq!(self::fault("[lan]\ninterfaces = [\"a\", 3]").key, "lan.interfaces[1]");
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
    // Any interface of their type is another one for each.
    assert_eq!(read(&edge("[[uplinks]]\n[[uplinks]]\n")).expect("good").uplinks.len(), 2);
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
    assert!(message.contains("uplinks[0].id (/etc/test.toml:7): 99 is out of range"), "{message}");
    assert!(message.contains("fix: write a number from 1 to 31"), "{message}");
    let text =
        "colour = 1\n[tun]\nmtu = \"x\"\nname = \"a/b\"\n[bond]\nspread_max = \"9\"\n[[peers]]\nexit = 3\n";
    let refused = load_text(text, Format::Toml, &[("MWB__LAN__PRT", "1")], &["lan.port=0"]).expect_err("bad");
    let mut keys: Vec<_> = refused.0.iter().map(|fault| fault.key.as_str()).collect();
    keys.sort_unstable();
    let all = [
        "bond.spread_max",
        "colour",
        "lan.port",
        "lan.prt",
        "peers[0].exit",
        "peers[0].node_id",
        "tun.mtu",
        "tun.name",
    ];
    assert_eq!(keys, all, "{refused}");
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
