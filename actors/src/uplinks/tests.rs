use mwb_proto::control::UplinkKind;

use super::*;

fn parts(names: &[&str]) -> UplinksParts {
    let identity = Identity::from_pkcs8(&Identity::generate().unwrap()).unwrap();
    UplinksParts {
        identity: Arc::new(identity),
        table: Arc::default(),
        pool: BufPool::new(2048, 1),
        links: Plan::new([]),
        exits: vec!["192.0.2.1:9000".parse().unwrap()],
        membership: None,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        reserved: vec![],
    }
}

fn found(interface: &str) -> FoundUplink {
    FoundUplink {
        interface: interface.to_owned(),
        attached: "192.0.2.7".to_owned(),
        own: None,
        rate_max: None,
        weight: 10,
        fwmark: None,
        kind: UplinkKind::Unknown,
        line: "ethernet",
        metered: false,
        lend: true,
        health: Default::default(),
    }
}

fn fixed(id: u8, name: &str, interface: &str) -> UplinkSpec {
    UplinkSpec {
        id,
        name: name.to_owned(),
        interface: Some(interface.to_owned()),
        address: None,
        rate_max: None,
        weight: 10,
        fwmark: None,
        kind: UplinkKind::Unknown,
        line: "other",
        metered: false,
        lend: true,
        health: Default::default(),
    }
}

fn names(uplinks: &Uplinks) -> Vec<(u8, String)> {
    uplinks.all().into_iter().map(|uplink| (uplink.spec.id, uplink.spec.name)).collect()
}

fn follow(uplinks: &Uplinks, now: &[FoundUplink]) {
    uplinks.take_out(now);
    uplinks.take_in(now);
}

#[test]
fn who_comes_back_has_its_id_and_nobody_that_of_a_fixed_one() {
    let uplinks = Uplinks::new(parts(&[]), &[fixed(2, "fibre", "eth0")]);
    follow(&uplinks, &[found("eth1"), found("wwan0")]);
    assert_eq!(names(&uplinks), [(1, "eth1".into()), (2, "fibre".into()), (3, "wwan0".into())]);
    follow(&uplinks, &[found("wwan0")]);
    assert_eq!(names(&uplinks), [(2, "fibre".into()), (3, "wwan0".into())], "the fixed one stays");
    follow(&uplinks, &[found("wwan0"), found("usb0")]);
    assert_eq!(
        names(&uplinks)[2],
        (4, "usb0".into()),
        "an id is not given to another while there are others"
    );
    follow(&uplinks, &[found("usb0"), found("eth1")]);
    assert_eq!(names(&uplinks), [(1, "eth1".into()), (2, "fibre".into()), (4, "usb0".into())]);
    assert_eq!(uplinks.parts.links.names(), ["eth1", "fibre", "usb0", "wwan0"], "one is not closed yet");
}

#[test]
fn what_the_configuration_describes_has_its_number_and_name_whatever_came_before() {
    let reserved = vec![(1, "lte".to_owned()), (2, "usb0".to_owned())];
    let uplinks = Uplinks::new(UplinksParts { reserved, ..parts(&[]) }, &[]);
    let lte = |interface: &str| FoundUplink { own: Some((1, "lte".to_owned())), ..found(interface) };
    follow(&uplinks, &[found("eth0"), found("usb0")]);
    assert_eq!(names(&uplinks), [(3, "eth0".into()), (4, "usb0-2".into())], "theirs are kept free");
    follow(&uplinks, &[found("eth0"), found("usb0"), lte("wwan0")]);
    assert_eq!(names(&uplinks)[0], (1, "lte".into()));
    let told: Vec<_> = uplinks.status().iter().map(|uplink| uplink.found).collect();
    assert_eq!(told, [false, true, true]);
    // Its interface goes, and it gets one that was found before.
    let link = uplinks.link(1).unwrap();
    follow(&uplinks, &[found("eth0"), lte("usb0")]);
    assert_eq!(names(&uplinks), [(1, "lte".into()), (3, "eth0".into())]);
    assert!(!Arc::ptr_eq(&link, &uplinks.link(1).unwrap()), "it is another device");
}

#[test]
fn a_name_that_is_taken_gets_a_number() {
    let uplinks = Uplinks::new(parts(&["eth7"]), &[fixed(1, "eth1", "eth0")]);
    follow(&uplinks, &[found("eth1"), found("eth7"), found("lan-eth0")]);
    let found =
        [(2, "eth1-2"), (3, "eth7-2"), (4, "uplink-lan-eth0")].map(|(id, name)| (id, name.to_owned()));
    assert_eq!(names(&uplinks)[1..], found);
    follow(&uplinks, &[]);
    assert_eq!(names(&uplinks), [(1, "eth1".into())]);
}

#[test]
fn more_than_all_ids_are_refused_and_ids_of_the_gone_are_used_again() {
    let uplinks = Uplinks::new(parts(&[]), &[]);
    let many: Vec<_> = (0..40).map(|number| found(&format!("eth{number}"))).collect();
    follow(&uplinks, &many);
    assert_eq!(uplinks.all().len(), usize::from(UPLINK_ID_MAX));
    follow(&uplinks, &many[39..]);
    assert_eq!(names(&uplinks), [(1, "eth39".into())]);
    follow(&uplinks, &many[9..]);
    assert_eq!(uplinks.all().len(), usize::from(UPLINK_ID_MAX));
}

#[test]
fn what_an_interface_becomes_is_followed_and_told_once() {
    let uplinks = Uplinks::new(parts(&[]), &[]);
    let mut changes = uplinks.changes();
    let mut wifi = found("wlan0");
    let mut told = |now: &FoundUplink| {
        changes.mark_unchanged();
        follow(&uplinks, std::slice::from_ref(now));
        changes.has_changed().unwrap()
    };
    assert!(told(&wifi));
    let link = uplinks.link(1).unwrap();
    assert!(!told(&wifi));
    wifi.metered = true;
    wifi.attached = "192.168.43.7".to_owned();
    assert!(told(&wifi));
    assert!(!told(&wifi));
    assert!(uplinks.all()[0].spec.metered);
    assert!(Arc::ptr_eq(&link, &uplinks.link(1).unwrap()), "its paths go on");
}

#[tokio::test]
async fn a_link_that_was_closed_stays_closed() {
    let uplinks = Uplinks::new(parts(&[]), &[]);
    let on_loopback = found("lo");
    follow(&uplinks, std::slice::from_ref(&on_loopback));
    let link = uplinks.link(1).unwrap();
    follow(&uplinks, &[]);
    let pulse = Pulse::unwatched("test");
    uplinks.close_leaving(&pulse).await.unwrap();
    assert!(uplinks.parts.links.names().is_empty());
    assert!(link.open().is_err() && link.endpoint().is_err() && link.socket().is_none());
    follow(&uplinks, &[on_loopback]);
    assert!(!Arc::ptr_eq(&link, &uplinks.link(1).unwrap()), "who comes back has a new one");
}
