//! Resolvers and what an exit lets out.

use super::*;

fn exit(rest: &str) -> String {
    format!("[exit]\n{rest}\n[[peers]]\nname = \"x\"\nnode_id = \"{ID}\"\n")
}

#[test]
fn resolvers_are_a_word_or_a_list() {
    let servers =
        |texts: &[&str]| Dns::Given(texts.iter().map(|text| text.parse().expect("address")).collect());
    for (written, dns) in [
        ("", Dns::Auto),
        ("dns = \"auto\"", Dns::Auto),
        ("dns = \"off\"", Dns::Off),
        ("dns = [\"9.9.9.9\", \"2620:fe::fe\"]", servers(&["9.9.9.9", "2620:fe::fe"])),
    ] {
        assert_eq!(read(&format!("[tun]\n{written}\n{}", edge(""))).expect("good").tun.dns, dns);
        assert_eq!(read(&exit(written)).expect("good").exit.expect("an exit").dns, dns);
    }
    // A host may ask itself; it cannot tell others to.
    assert_eq!(
        read(&format!("[tun]\ndns = [\"127.0.0.1\"]\n{}", edge(""))).expect("good").tun.dns,
        servers(&["127.0.0.1"])
    );
    let env = [("MWB__TUN__DNS", "9.9.9.9,1.1.1.1")];
    assert_eq!(with_env(&edge(""), &env).expect("good").tun.dns, servers(&["9.9.9.9", "1.1.1.1"]));
    assert_eq!(with_env(&edge(""), &[("MWB__TUN__DNS", "off")]).expect("good").tun.dns, Dns::Off);
    for (written, problem) in [
        (
            "dns = [\"127.0.0.1\"]",
            "exit.dns[0] (/etc/test.toml:2): 127.0.0.1 is nobody whom an edge could ask",
        ),
        ("dns = [\"9.9.9.9:53\"]", "\"9.9.9.9:53\" is not an IP address"),
        ("dns = []", "0 are no number of resolvers"),
        ("dns = \"none\"", "\"none\" is none of them"),
        ("dns = 7", "found the number 7, expected auto, off or a list"),
    ] {
        let text = read(&exit(written)).expect_err(written).to_string();
        assert!(text.contains(problem), "{problem} in {text}");
    }
}

#[test]
fn an_exit_lets_out_to_the_internet_and_to_what_is_allowed() {
    let egress = |written: &str| read(&exit(written)).expect("good").exit.expect("an exit").egress;
    assert_eq!(egress(""), Egress::default());
    let written = "allow = [\"192.168.1.7/24\", \"10.0.0.9\", \"fd00:1::/64\"]\nmax_rate = 12500000\nmax_connections = 100";
    let mut allow: Vec<IpNet> =
        ["192.168.1.0/24", "10.0.0.9/32", "fd00:1::/64"].map(|net| net.parse().expect("network")).to_vec();
    allow.sort();
    let found = egress(written);
    assert_eq!(found.allow, allow);
    assert_eq!(found.max_rate, NonZeroU64::new(12_500_000));
    assert_eq!(found.max_connections, NonZeroU64::new(100));
    for (written, problem) in [
        ("allow = [\"127.0.0.0/8\"]", "127.0.0.0/8 cannot be allowed"),
        ("allow = [\"169.254.169.254\"]", "169.254.169.254/32 cannot be allowed"),
        ("allow = [\"0.0.0.0/0\"]", "0.0.0.0/0 cannot be allowed"),
        ("allow = [\"lan\"]", "\"lan\" is no network"),
        ("max_rate = 0", "0 is out of range"),
        ("max_connections = 0", "0 is out of range"),
    ] {
        let text = read(&exit(written)).expect_err(written).to_string();
        assert!(text.contains(problem), "{problem} in {text}");
    }
}
