use serde_json::json;

use super::*;

/// A table `inet filter` with one base chain of this hook and policy, and these rules of it and of the chain `more`.
fn table(hook: &str, policy: &str, rules: &[Value], more: &[Value]) -> Value {
    let rule = |chain: &str, expr: &Value| json!({"rule": {"family": "inet", "table": "filter", "chain": chain, "handle": 1, "expr": expr}});
    let mut list = vec![
        json!({"metainfo": {"version": "1.0.9"}}),
        json!({"table": {"family": "inet", "name": "filter", "handle": 1}}),
        json!({"chain": {"family": "inet", "table": "filter", "name": "in", "type": "filter", "hook": hook,
            "prio": 0, "policy": policy}}),
        json!({"chain": {"family": "inet", "table": "filter", "name": "more"}}),
    ];
    list.extend(rules.iter().map(|expr| rule("in", expr)));
    list.extend(more.iter().map(|expr| rule("more", expr)));
    json!({ "nftables": list })
}

fn is(left: Value, right: Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn dport(right: Value) -> Value {
    is(json!({"payload": {"protocol": "udp", "field": "dport"}}), right)
}

fn state(right: Value) -> Value {
    is(json!({"ct": {"key": "state"}}), right)
}

#[track_caller]
fn check(json: &Value, wanted: Wanted, expected: &str) {
    let fate = Ruleset::of(json).fate(&wanted);
    let word = match &fate {
        Fate::Through => "through".to_owned(),
        Fate::Uncertain => "uncertain".to_owned(),
        Fate::Eaten(chain) => chain.join(" "),
    };
    assert_eq!(word, expected, "{wanted:?}");
}

#[test]
fn a_call_needs_a_rule_where_all_else_is_dropped() {
    let accept = json!({"accept": null});
    let established = json!([state(json!({"set": ["established", "related"]})), accept]);
    let lo = json!([is(json!({"meta": {"key": "iifname"}}), json!("lo")), accept]);
    let usual =
        |rules: &[Value]| table("input", "drop", &[&[established.clone(), lo.clone()], rules].concat(), &[]);
    check(&usual(&[]), Wanted::Call(9000), "inet filter in");
    check(&usual(&[]), Wanted::Answer, "through");
    check(&table("input", "drop", &[], &[]), Wanted::Answer, "inet filter in");
    check(&table("input", "accept", &[], &[]), Wanted::Call(9000), "through");
    check(&json!({"nftables": []}), Wanted::Call(9000), "through");
    for (ports, expected) in [
        (json!(9000), "through"),
        (json!(9001), "inet filter in"),
        (json!({"set": [53, {"range": [8999, 9001]}]}), "through"),
        (json!("@open"), "uncertain"),
    ] {
        let rule = json!([dport(ports), {"counter": {"packets": 0}}, accept]);
        check(&usual(&[rule]), Wanted::Call(9000), expected);
    }
    // Only from one network: who calls is not known.
    let source = is(json!({"payload": {"protocol": "ip", "field": "saddr"}}), json!("192.0.2.1"));
    check(&usual(&[json!([source, accept])]), Wanted::Call(9000), "uncertain");
    // TCP alone.
    let tcp = is(json!({"payload": {"protocol": "tcp", "field": "dport"}}), json!(9000));
    check(&usual(&[json!([tcp, accept])]), Wanted::Call(9000), "inet filter in");
}

#[test]
fn jumps_are_followed_and_a_drop_at_the_end_is_one() {
    let jump = json!([{"jump": {"target": "more"}}]);
    let open = json!([dport(json!(9000)), {"accept": null}]);
    let reject = json!([{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]);
    let with = |more: &[Value]| table("input", "accept", &[jump.clone(), reject.clone()], more);
    check(&with(std::slice::from_ref(&open)), Wanted::Call(9000), "through");
    check(&with(&[]), Wanted::Call(9000), "inet filter in");
    check(&with(&[json!([{"return": null}]), open]), Wanted::Call(9000), "inet filter in");
    // A chain that jumps into itself ends somewhere.
    let circle = json!([{"jump": {"target": "more"}}]);
    check(&with(&[circle]), Wanted::Call(9000), "uncertain");
}

#[test]
fn what_an_exit_forwards_may_be_eaten_and_the_cure_is_the_owners() {
    let tun = |name: &str| json!([is(json!({"meta": {"key": "iifname"}}), json!(name)), {"accept": null}]);
    let wanted = || Wanted::Forward("mwb0".to_owned());
    let mut docker = table("forward", "drop", &[tun("docker0")], &[]);
    check(&docker, wanted(), "inet filter in");
    check(&docker, Wanted::Call(9000), "through");
    check(&table("forward", "drop", &[tun("mwb0")], &[]), wanted(), "through");
    let chain = ["inet", "filter", "in"].map(str::to_owned);
    assert!(Ruleset::of(&docker).cure(&wanted(), &chain).contains("iifname mwb0 accept"));
    docker["nftables"]
        .as_array_mut()
        .unwrap()
        .push(json!({"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}}));
    assert!(Ruleset::of(&docker).cure(&wanted(), &chain).starts_with("sudo iptables -I DOCKER-USER -i mwb0"));
    let call = Ruleset::of(&docker).cure(&Wanted::Call(9000), &chain);
    assert_eq!(call, "sudo nft insert rule inet filter in udp dport 9000 accept");
}

#[test]
fn our_own_table_and_strange_ones_are_no_obstacle() {
    let ours = json!({"nftables": [
        {"table": {"family": "inet", "name": "mwb"}},
        {"chain": {"family": "inet", "table": "mwb", "name": "forward", "hook": "forward", "policy": "drop"}},
        {"chain": "no object"}, {"rule": null}, 7]});
    check(&ours, Wanted::Forward("mwb0".to_owned()), "through");
    check(&Value::Null, Wanted::Answer, "through");
}
