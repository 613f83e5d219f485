//! Golden vectors of a mesh's records, tokens, proofs and messages, written out as hexadecimal.
//!
//! Goal: what is signed today verifies tomorrow, and a stranger can test an implementation against it.
//! The bytes were computed by another program (Python's cryptography and hashlib), not by this crate. A
//! change that breaks one of these is a new version of the format.

use mwb_proto::control::{
    self, Decoded, FrameDecoder, JoinAccept, JoinRefuse, JoinRefuseReason, JoinRequest, MemberList, Message,
};
use mwb_proto::mesh::{
    JoinProof, MemberRecord, MeshId, NodeId, Roles, RootKey, SignedRecord, SignedRevocation, Token,
};

/// Public key of the root whose seed is 32 times 1.
const ROOT: &str = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";

/// Public key of the node whose seed is 32 times 2.
const NODE: &str = "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394";

/// Its id.
const NODE_ID: &str = "47dea58ea00fae9417ee19d76755bfef690899021132effb04fe1f9e4f0c8059";

/// The mesh of the root.
const MESH: &str = "34750f98bd59fcfc946da45aaabe933b";

/// A signed record: version, mesh, key, serial, roles edge and exit, "exit", two addresses, signature.
const RECORD: &str = "0134750f98bd59fcfc946da45aaabe933b8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8f\
    c9b39401020304050607080504657869740204cb00710523280620010db800000000000000000000000501bb5b1d\
    f23bcf7db183091528f4c4c75aec065ed202cd7764f60643a1e168be9fb8fc06a3122dfffaf1c7606fe35c47b854\
    09b793ad804573e3d1d37667ea628204";

/// A signed revocation of the node up to serial 7.
const REVOCATION: &str = "0134750f98bd59fcfc946da45aaabe933b47dea58ea00fae9417ee19d76755bfef690899021132effb04fe1f9e4f\
    0c80590000000000000007ce9597cba8c21dc0c89f3686792d4330be37d1d7a90e83b037efd0771e4752f1ea97b5\
    cea2babe7747b7ee6921d17651494898f165e6596ebbeb6e95027c160c";

/// A token: that root and node, secret 00 to 0f, invite 10 to 17, 203.0.113.5:9000.
const TOKEN: &str = "mwb1-agfiry65oqe7dfp5klns2pf2lvzmuzyjx4ozieq36n2iqanub5xvyearcijrifiwc4aacaqdaqcqmbyibefawda\
    nbyhupxvfr2qa7luuc7xbtv3hkw7662iitebbcmxp7mcp4h46j4giawibatfqa4ifemuphznatu";

/// Proof of a request: that secret, exporter 32 times 77, joiner 32 times 11, inviter 32 times 22.
const REQUEST: &str = "cabf49839f5b5ba87bfdfa7f2ffec8e6f0811cc2ec2d5060e26391807349dbe3";

/// Proof of an accept: the same and the record "record".
const ACCEPT: &str = "15d8491f8a7eca36104c79a7d3ccd7bbdae497f604b25c92d86b7af9acaf1463";

/// Frames of a join's request, accept and refusal, and of a list with the record and the revocation.
const JOIN_REQUEST: &str = "00000046003034750f98bd59fcfc946da45aaabe933b1011121314151617cabf49839f5b5ba87bfdfa7f2ffec8e6\
    f0811cc2ec2d5060e26391807349dbe30270690100cb007105fb2823";

/// See [`JOIN_REQUEST`].
const JOIN_ACCEPT: &str =
    "00000029003115d8491f8a7eca36104c79a7d3ccd7bbdae497f604b25c92d86b7af9acaf1463067265636f7264";

/// See [`JOIN_REQUEST`].
const JOIN_REFUSE: &str = "00000008003204046c617465";

/// See [`JOIN_REQUEST`]; in front of the record, and between it and the revocation.
const MEMBER_LIST: [&str; 2] = ["000001190033019a", "0179"];

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}

fn array<const N: usize>(hex: &str) -> [u8; N] {
    bytes(hex).try_into().expect("of this length")
}

fn root() -> RootKey {
    let prefix = bytes("302e020100300506032b657004220420");
    RootKey::from_pkcs8(&[&prefix[..], &[1; 32]].concat()).expect("a key")
}

#[test]
fn names_follow_from_keys() {
    assert_eq!(root().public_key().as_bytes(), &array(ROOT));
    assert_eq!(root().public_key().mesh().to_string(), MESH);
    assert_eq!(NodeId::of_public_key(&array(NODE)).to_string(), NODE_ID);
}

#[test]
fn records() {
    let record = MemberRecord {
        mesh: MeshId::from_bytes(array(MESH)),
        public_key: array(NODE),
        name: "exit".into(),
        roles: Roles::EDGE.with(Roles::EXIT),
        serial: 0x0102_0304_0506_0708,
        addresses: vec!["203.0.113.5:9000".parse().unwrap(), "[2001:db8::5]:443".parse().unwrap()],
    };
    let signed = root().sign_record(record.clone()).unwrap();
    assert_eq!(signed.encode(), bytes(RECORD));
    let decoded = SignedRecord::decode(&bytes(RECORD)).unwrap();
    assert_eq!(decoded.record(), &record);
    assert!(decoded.is_signed_by(&root().public_key()));

    let revocation = root().sign_revocation(NodeId::from_bytes(array(NODE_ID)), 7);
    assert_eq!(revocation.encode(), bytes(REVOCATION));
    let decoded = SignedRevocation::decode(&bytes(REVOCATION)).unwrap();
    assert!(decoded == revocation && decoded.is_signed_by(&root().public_key()));
}

#[test]
fn tokens() {
    let token = Token {
        root: root().public_key(),
        invite: array("1011121314151617"),
        secret: array("000102030405060708090a0b0c0d0e0f"),
        inviter: NodeId::from_bytes(array(NODE_ID)),
        addresses: vec!["203.0.113.5:9000".parse().unwrap()],
    };
    assert_eq!(token.encode().unwrap(), TOKEN);
    assert_eq!(TOKEN.parse(), Ok(token));
}

#[test]
fn proofs() {
    let secret = array("000102030405060708090a0b0c0d0e0f");
    let (joiner, inviter) = (NodeId::from_bytes([0x11; 32]), NodeId::from_bytes([0x22; 32]));
    let proof = JoinProof { secret: &secret, exporter: &[0x77; 32], joiner, inviter };
    assert_eq!(proof.request(), array(REQUEST));
    assert_eq!(proof.accept(b"record"), array(ACCEPT));
    assert!(proof.is_request(&bytes(REQUEST)) && proof.is_accept(b"record", &bytes(ACCEPT)));
}

/// Old messages stay readable: each is the only encoding of its value.
#[test]
fn messages() {
    let request = JoinRequest {
        mesh: array(MESH),
        invite: array("1011121314151617"),
        proof: array(REQUEST),
        name: "pi".into(),
        addresses: vec!["203.0.113.5:9000".parse().unwrap()],
    };
    let accept = JoinAccept { proof: array(ACCEPT), record: b"record".to_vec() };
    let refuse = JoinRefuse { reason: JoinRefuseReason::Expired, text: "late".into() };
    let list = MemberList { records: vec![bytes(RECORD)], revocations: vec![bytes(REVOCATION)] };
    let list_bytes = [MEMBER_LIST[0], RECORD, MEMBER_LIST[1], REVOCATION].concat();
    for (message, hex) in [
        (Message::JoinRequest(request), JOIN_REQUEST),
        (Message::JoinAccept(accept), JOIN_ACCEPT),
        (Message::JoinRefuse(refuse), JOIN_REFUSE),
        (Message::MemberList(list), &list_bytes),
    ] {
        let mut out = Vec::new();
        control::encode(&message, &mut out);
        assert_eq!(out, bytes(hex), "{message:?}");
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes(hex));
        assert_eq!(decoder.next(), Ok(Some(Decoded::Message(message))));
        assert_eq!(decoder.next(), Ok(None));
    }
}
