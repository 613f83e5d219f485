//! Tells a program at once that its IPv6 goes nowhere. While the exit has no IPv6, a program without an address of its own
//! choice finds none and is refused by its kernel; one that sends from the address of an uplink is led into the TUN,
//! where silence would make it wait for a time-out. It is told "no route to destination" (RFC 4443, section 3.1) instead, and
//! falls back to IPv4.

use std::time::Duration;

use mwb_proto::buf::{BufPool, PacketBuf};
use mwb_proto::time::Time;

/// Most refusals in a second, and at once (RFC 4443, section 2.4 f).
const PER_SECOND: u32 = 100;
/// An ICMPv6 error is no longer than what every link carries.
const ERROR_LEN_MAX: usize = 1280;
const IPV6_HEADER: usize = 40;
const ICMPV6_HEADER: usize = 8;
const PROTO_ICMPV6: u8 = 58;
/// Destination unreachable, and its code for "no route".
const UNREACHABLE: u8 = 1;
const NO_ROUTE: u8 = 0;
/// Where the errors end and questions begin, among the types.
const FIRST_QUESTION: u8 = 128;

/// What may still be said in this second.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    since: Option<Time>,
    told: u32,
}

impl Refusals {
    /// The answer to `packet`, which nobody carries; `None` when it must not or cannot be answered.
    pub(super) fn answer(&mut self, packet: &[u8], pool: &BufPool, now: Time) -> Option<PacketBuf> {
        let answer = no_route(packet, pool)?;
        if self.since.is_none_or(|since| now - since >= Duration::from_secs(1)) {
            (self.since, self.told) = (Some(now), 0);
        }
        self.told += 1;
        (self.told <= PER_SECOND).then_some(answer)
    }
}

/// An ICMPv6 error about `packet`, in the name of its destination; `None` where RFC 4443, section 2.4 e forbids one.
fn no_route(packet: &[u8], pool: &BufPool) -> Option<PacketBuf> {
    let (header, payload) = packet.split_at_checked(IPV6_HEADER)?;
    let (source, destination) = (&header[8..24], &header[24..40]);
    let is_error =
        header[6] == PROTO_ICMPV6 && payload.first().is_none_or(|icmp_type| *icmp_type < FIRST_QUESTION);
    let nobody = source.iter().all(|byte| *byte == 0) || source[0] == 0xff || destination[0] == 0xff;
    if header[0] >> 4 != 6 || is_error || nobody {
        return None;
    }
    let quoted = &packet[..packet.len().min(ERROR_LEN_MAX - IPV6_HEADER - ICMPV6_HEADER)];
    let len = u16::try_from(ICMPV6_HEADER + quoted.len()).ok()?.to_be_bytes();
    let mut icmp = [UNREACHABLE, NO_ROUTE, 0, 0, 0, 0, 0, 0];
    let sum = [destination, source, &len, &[0, PROTO_ICMPV6], &icmp, quoted]
        .iter()
        .fold(0, |sum, part| add(sum, part));
    icmp[2..4].copy_from_slice(&(!fold(sum)).to_be_bytes());
    let mut answer = pool.take();
    let whole = answer.extend_from_slice(&[0x60, 0, 0, 0, len[0], len[1], PROTO_ICMPV6, 64])
        && answer.extend_from_slice(destination)
        && answer.extend_from_slice(source)
        && answer.extend_from_slice(&icmp)
        && answer.extend_from_slice(quoted);
    whole.then_some(answer)
}

/// The internet checksum's sum (RFC 1071); an odd end counts as if a zero followed.
fn add(sum: u64, bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low));
    bytes.chunks(2).fold(sum, |sum, pair| sum + word(pair))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend([0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        packet.extend(payload);
        packet
    }

    #[test]
    fn the_answer_quotes_the_packet_and_its_checksum_holds() {
        let pool = BufPool::new(2048, 4);
        for len in [0, 1, 20, 1232, 1360] {
            let packet = packet(6, &vec![7; len]);
            let answer = no_route(&packet, &pool).expect("an answer");
            assert_eq!(answer[8..24], packet[24..40]);
            assert_eq!(answer[24..40], packet[8..24]);
            assert_eq!(answer[40..42], [UNREACHABLE, NO_ROUTE]);
            let quoted = packet.len().min(1232);
            assert_eq!(answer[48..], packet[..quoted]);
            assert_eq!(usize::from(u16::from_be_bytes([answer[4], answer[5]])), answer.len() - 40);
            let pseudo = [&answer[8..40], &answer[4..6], &[0, PROTO_ICMPV6]];
            let sum = pseudo.iter().fold(add(0, &answer[40..]), |sum, part| add(sum, part));
            assert_eq!(fold(sum), 0xffff, "{len}");
        }
    }

    #[test]
    fn errors_multicast_and_nonsense_are_not_answered() {
        let pool = BufPool::new(2048, 4);
        assert!(no_route(&packet(PROTO_ICMPV6, &[128, 0, 0, 0]), &pool).is_some(), "a ping is");
        assert!(no_route(&packet(PROTO_ICMPV6, &[1, 0, 0, 0]), &pool).is_none());
        assert!(no_route(&packet(PROTO_ICMPV6, &[]), &pool).is_none());
        let whole = packet(17, &[0; 8]);
        for (at, byte) in [(0, 0x45), (8, 0xff), (24, 0xff)] {
            let mut changed = whole.clone();
            changed[at] = byte;
            assert!(no_route(&changed, &pool).is_none(), "byte {at}");
        }
        let mut unspecified = whole.clone();
        unspecified[8..24].fill(0);
        assert!(no_route(&unspecified, &pool).is_none());
        assert!((0..40).all(|len| no_route(&whole[..len], &pool).is_none()));
    }

    #[test]
    fn a_flood_is_not_answered_for_long() {
        let (pool, whole) = (BufPool::new(2048, 4), packet(17, &[0; 8]));
        let mut refusals = Refusals::default();
        let now = crate::clock::now();
        let mut count = |now| (0..1000).filter(|_| refusals.answer(&whole, &pool, now).is_some()).count();
        assert_eq!(count(now), PER_SECOND as usize);
        assert_eq!(count(now + Duration::from_millis(999)), 0);
        assert_eq!(count(now + Duration::from_secs(1)), PER_SECOND as usize);
    }
}
