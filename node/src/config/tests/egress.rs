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
