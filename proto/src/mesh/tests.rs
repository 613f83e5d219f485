//! Goal: only what the root has signed makes a member, in whatever order it arrives; only who holds a
//! token joins, as often and as long as the inviter said; nothing that is read panics. Method: every
//! truncation and bit flip, random orders of random records, and a table of refusals.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::control::NAME_MAX;

/// A PKCS#8 document of the key with this seed (RFC 8410).
fn root(seed: u8) -> RootKey {
    let prefix = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    RootKey::from_pkcs8(&[&prefix[..], &[seed; 32]].concat()).expect("a key")
}

fn addresses() -> impl Strategy<Value = Vec<SocketAddr>> {
    let address =
        (any::<IpAddr>(), 1..=u16::MAX).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port));
    let holds = |a: &SocketAddr| !a.ip().is_unspecified() && !a.ip().is_multicast();
    prop::collection::vec(address.prop_filter("a host's", holds), 0..=ADDRESSES_MAX)
}

fn record() -> impl Strategy<Value = MemberRecord> {
    // Few keys and serials, so that they meet.
    ((0_u8..3).prop_map(|k| [k; 32]), "[a-zü .-]{1,20}", any::<u8>(), 0_u64..4, addresses()).prop_map(
        |(public_key, name, roles, serial, addresses)| MemberRecord {
            mesh: MeshId::from_bytes([0; 16]),
            public_key,
            name,
            roles: Roles::from_bits(roles),
            serial,
            addresses,
        },
    )
}

fn plain(public_key: u8, serial: u64) -> MemberRecord {
    MemberRecord {
        mesh: MeshId::from_bytes([0; 16]),
        public_key: [public_key; 32],
        name: format!("n{public_key}"),
        roles: Roles::EDGE,
        serial,
        addresses: Vec::new(),
    }
}

fn token() -> impl Strategy<Value = Token> {
    (any::<[u8; 32]>(), any::<[u8; 8]>(), any::<[u8; 16]>(), any::<[u8; 32]>(), addresses())
        .prop_filter("with addresses", |(.., addresses)| !addresses.is_empty())
        .prop_map(|(root, invite, secret, inviter, addresses)| Token {
            root: RootPublicKey::from_bytes(root),
            invite,
            secret,
            inviter: NodeId::from_bytes(inviter),
            addresses,
        })
}

#[derive(Clone, Debug)]
enum Fact {
    Record(SignedRecord),
    Revocation(SignedRevocation),
}

fn fact() -> impl Strategy<Value = Fact> {
    prop_oneof![
        3 => record().prop_map(|record| Fact::Record(root(1).sign_record(record).expect("bounded"))),
        1 => (0_u8..3, 0_u64..4).prop_map(|(key, serial)| {
            Fact::Revocation(root(1).sign_revocation(NodeId::of_public_key(&[key; 32]), serial))
        }),
    ]
}

fn told(facts: &[Fact]) -> Members {
    let mut members = Members::new(root(1).public_key());
    for fact in facts {
        let _ = match fact {
            Fact::Record(signed) => members.handle_record(signed),
            Fact::Revocation(signed) => members.handle_revocation(signed),
        };
    }
    members
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn members_do_not_depend_on_the_order(
        facts in prop::collection::vec(fact(), 0..12).prop_flat_map(|facts| {
            (Just(facts.clone()), Just(facts).prop_shuffle())
        }),
    ) {
        let (facts, shuffled) = facts;
        let members = told(&facts);
        prop_assert_eq!(&members, &told(&shuffled));
        let twice = told(&[&facts[..], &shuffled[..]].concat());
        prop_assert_eq!(&members, &twice, "hearing it again changes nothing");
        for signed in members.records() {
            let record = signed.record();
            let revoked = members.revocations().any(|r| {
                r.revocation().node == record.node() && r.revocation().serial >= record.serial
            });
            prop_assert!(!revoked);
        }
    }

    #[test]
    fn altered_records_are_nobodys(record in record(), bit in any::<prop::sample::Index>()) {
        let signed = root(1).sign_record(record).expect("bounded");
        let bytes = signed.encode();
        prop_assert!(bytes.len() <= RECORD_LEN_MAX);
        prop_assert_eq!(SignedRecord::decode(&bytes), Ok(signed.clone()));
        prop_assert!(signed.is_signed_by(&root(1).public_key()));
        for len in 0..bytes.len() {
            prop_assert!(SignedRecord::decode(&bytes[..len]).is_err());
        }
        prop_assert_eq!(SignedRecord::decode(&[&bytes[..], &[0]].concat()), Err(FieldError::TooLong));
        let bit = bit.index(bytes.len() * 8);
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = SignedRecord::decode(&flipped) {
            prop_assert!(!other.is_signed_by(&root(1).public_key()), "bit {}", bit);
            let mut members = Members::new(root(1).public_key());
            let node = other.record().node();
            prop_assert!(members.admit(node, &flipped).is_err());
            prop_assert_eq!(members.records().len(), 0);
        }
    }

    #[test]
    fn tokens_survive_mail_and_not_change(token in token(), at in any::<prop::sample::Index>(), to in 0_u8..32) {
        let text = token.encode().expect("bounded");
        prop_assert!(text.len() <= TOKEN_TEXT_MAX);
        prop_assert_eq!(text.parse(), Ok(token.clone()));
        let wrapped: String = text.chars().enumerate().flat_map(|(i, c)| {
            let newline = if i % 20 == 19 { "\r\n " } else { "" };
            newline.chars().chain([c.to_ascii_uppercase()])
        }).collect();
        prop_assert_eq!(wrapped.parse(), Ok(token));
        let at = 5 + at.index(text.len() - 5);
        let mut changed = text.clone().into_bytes();
        changed[at] = b"abcdefghijklmnopqrstuvwxyz234567"[usize::from(to)];
        let changed = String::from_utf8(changed).expect("ASCII");
        prop_assert!(changed == text || changed.parse::<Token>() == Err(TokenError::Checksum), "{}", changed);
        for len in 0..text.len() {
            prop_assert!(text[..len].parse::<Token>().is_err());
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), text in "(mwb1-)?\\PC{0,60}") {
        let _ = SignedRecord::decode(&bytes);
        let _ = SignedRevocation::decode(&bytes);
        let _ = text.parse::<Token>();
        let _ = text.parse::<Roles>();
        let mut members = Members::new(root(1).public_key());
        prop_assert!(members.admit(NodeId::from_bytes([0; 32]), &bytes).is_err());
        // With a version that is known, more of the decoder is reached.
        let bytes = [&[1], &bytes[..]].concat();
        let _ = SignedRecord::decode(&bytes);
        let _ = SignedRevocation::decode(&bytes);
    }

    #[test]
    fn proofs_belong_to_one_connection_pair_and_direction(
        secret in any::<[u8; 16]>(),
        exporter in any::<[u8; 32]>(),
        which in 0_usize..4,
        bit in 0_usize..128,
    ) {
        let (joiner, inviter) = (NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32]));
        let proof = JoinProof { secret: &secret, exporter: &exporter, joiner, inviter };
        prop_assert!(proof.is_request(&proof.request()) && proof.is_accept(b"r", &proof.accept(b"r")));
        prop_assert!(!proof.is_request(&proof.accept(b"")) && !proof.is_accept(b"", &proof.request()));
        prop_assert!(!proof.is_accept(b"s", &proof.accept(b"r")));
        let (mut secret, mut exporter) = (secret, exporter);
        let (mut joiner, mut inviter) = ([1; 32], [2; 32]);
        let fields: [&mut [u8]; 4] = [&mut secret, &mut exporter, &mut joiner, &mut inviter];
        fields.into_iter().nth(which).expect("one of four")[bit / 8] ^= 1 << (bit % 8);
        let (joiner, inviter) = (NodeId::from_bytes(joiner), NodeId::from_bytes(inviter));
        let other = JoinProof { secret: &secret, exporter: &exporter, joiner, inviter };
        prop_assert!(!other.is_request(&proof.request()));
        prop_assert!(!other.is_accept(b"r", &proof.accept(b"r")));
    }
}

#[test]
fn each_reason_to_send_a_node_away() {
    let (ours, theirs) = (root(1), root(2));
    let mut members = Members::new(ours.public_key());
    let good = ours.sign_record(plain(5, 3)).expect("good");
    let node = good.record().node();
    assert_eq!(members.admit(node, &[]), Err(AdmitError::NoRecord));
    assert_eq!(members.admit(node, &[1, 2]), Err(AdmitError::Malformed(FieldError::Truncated)));
    assert_eq!(members.admit(node, &[2]), Err(AdmitError::Malformed(FieldError::Version(2))));
    let other = NodeId::from_bytes([9; 32]);
    assert_eq!(members.admit(other, &good.encode()), Err(AdmitError::AnotherNode));
    let foreign = theirs.sign_record(plain(5, 3)).expect("good").encode();
    assert_eq!(members.admit(node, &foreign), Err(RecordRefused::ForeignMesh.into()));
    let mut forged = good.encode();
    *forged.last_mut().expect("long") ^= 1;
    assert_eq!(members.admit(node, &forged), Err(RecordRefused::Signature.into()));
    assert_eq!(members.records().len(), 0);

    let (record, news) = members.admit(node, &good.encode()).expect("a member");
    assert!(news && record == good.record());
    let newer = ours.sign_record(MemberRecord { name: "new".into(), ..plain(5, 4) }).expect("good");
    assert_eq!(members.handle_record(&newer), Ok(true));
    let (record, news) = members.admit(node, &good.encode()).expect("still a member");
    assert!(!news && record.name == "new", "the newest record counts, whatever is shown");

    let foreign = theirs.sign_revocation(node, 9);
    assert_eq!(members.handle_revocation(&foreign), Err(RecordRefused::ForeignMesh));
    assert_eq!(members.revoke(&ours, node).expect("room").map(|r| r.serial), Some(4));
    for old in [&good, &newer] {
        assert_eq!(members.admit(node, &old.encode()), Err(RecordRefused::Revoked.into()));
    }
    assert_eq!(
        members.admit(node, &[]),
        Err(RecordRefused::Revoked.into()),
        "it has nothing to show any more"
    );
    assert_eq!(members.revoke(&ours, node), Ok(None), "it is no member any more");
    let again = members.enrol(&ours, [5; 32], ("n5", Roles::EDGE, &[])).expect("room");
    assert_eq!(again.record().serial, 5, "above what was revoked");
    members.admit(node, &again.encode()).expect("a member again");
}

#[test]
fn a_record_is_not_a_revocation() {
    // Bodies of equal bytes must still have signatures that differ.
    let signed = root(1).sign_revocation(NodeId::from_bytes([7; 32]), 1);
    assert!(signed.is_signed_by(&root(1).public_key()));
    assert!(SignedRecord::decode(&signed.encode()).is_err());
    let record = root(1).sign_record(plain(1, 1)).expect("good");
    assert!(SignedRevocation::decode(&record.encode()).is_err());
}

#[test]
fn enrolling_names_numbers_and_bounds() {
    let root = root(1);
    let mut members = Members::new(root.public_key());
    let address = "192.0.2.1:9000".parse().expect("good");
    let first = members.enrol(&root, [1; 32], ("pi", Roles::EXIT, &[address])).expect("room");
    assert_eq!(members.enrol(&root, [1; 32], ("pi", Roles::EXIT, &[address])), Ok(first), "nothing new");
    let second = members.enrol(&root, [2; 32], ("pi", Roles::EDGE, &[])).expect("room");
    assert_eq!((second.record().name.as_str(), second.record().serial), ("pi-2", 1));
    let long = "ü".repeat(NAME_MAX / 2);
    for key in 3..5 {
        members.enrol(&root, [key; 32], (&long, Roles::EDGE, &[])).expect("room");
    }
    let exits: Vec<_> = members.exits().iter().map(|exit| exit.name.clone()).collect();
    assert_eq!(exits, ["pi"]);
    let changed = members.enrol(&root, [1; 32], ("pi", Roles::EDGE, &[])).expect("room");
    assert_eq!(changed.record().serial, 2);
    assert!(members.exits().is_empty());
    for name in ["", "a/b", "a\nb", &"x".repeat(NAME_MAX + 1)] {
        assert_eq!(members.enrol(&root, [9; 32], (name, Roles::EDGE, &[])), Err(FieldError::Name.into()));
    }
    for text in ["0.0.0.0:1", "192.0.2.1:0", "224.0.0.1:1", "[::ffff:0.0.0.0]:1"] {
        let address: SocketAddr = text.parse().expect("an address");
        let refused = members.enrol(&root, [9; 32], ("x", Roles::EXIT, &[address]));
        assert_eq!(refused, Err(FieldError::Address.into()), "{text}");
    }
    for key in 5..=u8::MAX {
        members.enrol(&root, [key; 32], (&format!("n{key}"), Roles::EDGE, &[])).expect("room");
    }
    members.enrol(&root, [0; 32], ("n0", Roles::EDGE, &[])).expect("the last");
    let mut key = [0; 32];
    key[0] = 1;
    assert_eq!(members.enrol(&root, key, ("n", Roles::EDGE, &[])), Err(RecordRefused::Full.into()));
}

#[test]
fn each_fault_of_a_token_is_named() {
    let token = Token {
        root: root(1).public_key(),
        invite: [1; 8],
        secret: [0x5e; 16],
        inviter: NodeId::from_bytes([2; 32]),
        addresses: vec!["192.0.2.1:9000".parse().expect("good")],
    };
    let text = token.encode().expect("good");
    let fault = |text: &str| text.parse::<Token>().expect_err("must be refused");
    assert_eq!(fault("  \n"), TokenError::Empty);
    assert_eq!(fault("hello"), TokenError::NotAToken);
    assert_eq!(fault(&text[5..]), TokenError::NotAToken);
    assert_eq!(fault(&text.replace("mwb1-", "mwb2-")), TokenError::Version(2));
    let odd = format!("{}1{}", &text[..20], &text[21..]);
    assert_eq!(fault(&odd), TokenError::Character { character: '1', place: 21 });
    assert_eq!(fault(&text[..40]), TokenError::Truncated);
    assert_eq!(fault(&text[..text.len() - 8]), TokenError::Checksum);
    assert_eq!(fault(&format!("{text}aaaaaaaa")), TokenError::Checksum);
    assert_eq!(fault(&format!("{text}{}", "a".repeat(1000))), TokenError::TooLong);
    assert_eq!(Token { addresses: Vec::new(), ..token.clone() }.encode(), Err(FieldError::Address));
    let other = Token { secret: [0; 16], ..token.clone() };
    assert_eq!(format!("{token:?}"), format!("{other:?}"), "secrets stay out of logs");
}

const SECRET: [u8; 16] = [6; 16];
const EXPORTER: [u8; 32] = [8; 32];

fn proof(joiner: NodeId) -> [u8; PROOF_LEN] {
    let inviter = NodeId::from_bytes([0; 32]);
    JoinProof { secret: &SECRET, exporter: &EXPORTER, joiner, inviter }.request()
}

fn redeem(invites: &mut Invites, joiner: u8, now: u64) -> Result<Redeemed, RedeemError> {
    let (joiner, inviter) = (NodeId::from_bytes([joiner; 32]), NodeId::from_bytes([0; 32]));
    invites.redeem(&[1; 8], &proof(joiner), (&EXPORTER, joiner, inviter), now)
}

#[test]
fn invites_end_by_use_and_by_time() {
    let mut invites = Invites::default();
    let hour = Duration::from_secs(3600);
    invites.issue([1; 8], SECRET, (Roles::EDGE, 2, hour), 1000).expect("good");
    assert_eq!(redeem(&mut invites, 1, 1000), Ok(Redeemed { roles: Roles::EDGE, secret: SECRET }));
    redeem(&mut invites, 1, 1001).expect("the same node again");
    redeem(&mut invites, 2, 4599).expect("the second node, in the last second");
    assert_eq!(redeem(&mut invites, 3, 4599), Err(RedeemError::UsedUp));
    assert_eq!(redeem(&mut invites, 1, 4600), Err(RedeemError::Expired));
    assert_eq!(redeem(&mut invites, 1, 1000), Err(RedeemError::Expired), "a clock set back revives nothing");

    let (joiner, inviter) = (NodeId::from_bytes([1; 32]), NodeId::from_bytes([0; 32]));
    let mut ask = |id: [u8; 8], proof: &[u8]| invites.redeem(&id, proof, (&EXPORTER, joiner, inviter), 5000);
    assert_eq!(ask([2; 8], &proof(joiner)), Err(RedeemError::Unknown));
    assert_eq!(ask([1; 8], &proof(inviter)), Err(RedeemError::Proof), "before anything else is told");
    assert_eq!(ask([1; 8], &[]), Err(RedeemError::Proof));
}

#[test]
fn invites_are_bounded() {
    let mut invites = Invites::default();
    let day = Duration::from_secs(86400);
    let mut issue = |id: u16, roles, uses, ttl, now| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        invites.issue(bytes, SECRET, (roles, uses, ttl), now)
    };
    assert_eq!(issue(0, Roles::EDGE, 0, day, 0), Err(IssueError::Uses));
    assert_eq!(issue(0, Roles::EDGE, USES_MAX + 1, day, 0), Err(IssueError::Uses));
    assert_eq!(issue(0, Roles::EDGE, 1, Duration::ZERO, 0), Err(IssueError::Ttl));
    assert_eq!(issue(0, Roles::EDGE, 1, TTL_MAX + day, 0), Err(IssueError::Ttl));
    assert_eq!(issue(0, Roles::NONE, 1, day, 0), Err(IssueError::Roles));
    for id in 0..INVITES_MAX as u16 {
        issue(id, Roles::EDGE, 1, day * (1 + u32::from(id == 7)), 0).expect("room");
    }
    assert_eq!(issue(7, Roles::EDGE, 1, day, 0), Err(IssueError::Exists));
    assert_eq!(issue(999, Roles::EDGE, 1, day, 0), Err(IssueError::Full));
    issue(999, Roles::EDGE, 1, day, 86400).expect("one that is over makes room");
    assert_eq!(invites.all().len(), INVITES_MAX);
    assert!(invites.all().iter().any(|invite| invite.id[1] == 7 && invite.id[0] == 0));
}

#[test]
fn roles_have_names() {
    assert_eq!("edge, lender".parse(), Ok(Roles::EDGE.with(Roles::LENDER)));
    assert_eq!("exit".parse::<Roles>().expect("good").bits(), 4);
    assert_eq!("".parse::<Roles>(), Err(RolesError(String::new())));
    assert_eq!("edge,king".parse::<Roles>(), Err(RolesError("king".to_owned())));
    assert_eq!(Roles::from_bits(0xff).to_string(), "edge,lender,exit");
    assert_eq!(Roles::NONE.to_string(), "none");
}
