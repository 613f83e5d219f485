//! Golden vectors of the messages about leases, written out as hexadecimal.
//!
//! Goal: what a lender says today a borrower understands tomorrow, and a stranger can test an implementation
//! against it. The bytes were computed by another program (Python, from the text of the specification), not by
//! this crate. A change that breaks one of these is a new version of the format.

use mwb_proto::control::{
    self, Decoded, FrameDecoder, LeaseAccept, LeaseEnd, LeaseRefuse, LeaseRefuseReason, LeaseRequest,
    Message, PathLimit, RateGrant, RateGrants,
};

const LEASE: u64 = 0x0102_0304_0506_0708;

/// A request: lease 0x0102030405060708, uplink 3, exit 32 times 11, 203.0.113.5:9000.
const REQUEST: &str = "000000340020fd080706050403020103111111111111111111111111111111111111111111111111111111111111\
    111100cb007105fb2823";

/// A request: lease 7, uplink 255, exit 32 times 22, [2001:db8::5]:443.
const REQUEST_V6: &str = "00000038002007ff22222222222222222222222222222222222222222222222222222222222222220120010db800\
    0000000000000000000005fbbb01";

/// Consent to the first: port 40000, 10 s, no bound of bytes.
const ACCEPT: &str = "0000001a0021fd0807060504030201fb409cfb1027fdffffffffffffffff";

/// Its refusal: both are behind the same router.
const REFUSE: &str = "000000180022fd0807060504030201040b73616d6520726f75746572";

/// The end of lease 250.
const END: &str = "0000000b0023fa0775736564207570";

/// Two grants: no limit up and the trickle down; nothing up and 5 Gbit/s down.
const GRANTS: &str = "0000002d002402fd0807060504030201fdfffffffffffffffffc00f40100fc70110100fbfb0000fd00f2052a0100\
    000001";

/// A limit of 128 kbit/s.
const LIMIT: &str = "000000070025fc00f40100";

/// No limit.
const NO_LIMIT: &str = "0000000b0025fdffffffffffffffff";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}

fn check(message: &Message, hex: &str) {
    let mut encoded = Vec::new();
    control::encode(message, &mut encoded);
    assert_eq!(encoded, bytes(hex), "{message:?}");
    let mut decoder = FrameDecoder::new();
    decoder.push(&bytes(hex));
    assert_eq!(decoder.next(), Ok(Some(Decoded::Message(message.clone()))));
    assert_eq!(decoder.next(), Ok(None));
}

#[test]
fn requests() {
    let address = "203.0.113.5:9000".parse().expect("an address");
    let request = LeaseRequest { lease: LEASE, uplink: 3, exit: [0x11; 32], address };
    check(&Message::LeaseRequest(request), REQUEST);
    let address = "[2001:db8::5]:443".parse().expect("an address");
    let request = LeaseRequest { lease: 7, uplink: 255, exit: [0x22; 32], address };
    check(&Message::LeaseRequest(request), REQUEST_V6);
}

#[test]
fn answers() {
    let accept = LeaseAccept { lease: LEASE, port: 40_000, ttl_ms: 10_000, bytes_left: u64::MAX };
    check(&Message::LeaseAccept(accept), ACCEPT);
    let (reason, text) = (LeaseRefuseReason::SameUplink, "same router".to_owned());
    check(&Message::LeaseRefuse(LeaseRefuse { lease: LEASE, reason, text }), REFUSE);
    check(&Message::LeaseEnd(LeaseEnd { lease: 250, text: "used up".to_owned() }), END);
}

#[test]
fn grants_and_limits() {
    let first = RateGrant { lease: LEASE, up: u64::MAX, down: 128_000, bytes: 70_000 };
    let second = RateGrant { lease: 251, up: 0, down: 5_000_000_000, bytes: 1 };
    check(&Message::RateGrants(RateGrants { grants: vec![first, second] }), GRANTS);
    check(&Message::PathLimit(PathLimit { rate_max: 128_000 }), LIMIT);
    check(&Message::PathLimit(PathLimit { rate_max: u64::MAX }), NO_LIMIT);
}
