use std::net::Ipv4Addr;
use std::time::Duration;

use mwb_proto::buf::{BufPool, PacketBuf};
use mwb_proto::packet::{Ecn, tcp_flags};
use mwb_proto::time::Time;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::virtual_time::Agenda;
use crate::wan::{Direction, DirectionSpec, QueueLimit};

const TUPLE: Tuple =
    Tuple { source: (Ipv4Addr::new(10, 0, 0, 1), 5000), destination: (Ipv4Addr::new(10, 0, 0, 2), 80) };

/// One connection over one link; returns both sides after `seconds`.
fn transfer(spec: DirectionSpec, options: SenderOptions, seconds: u64) -> (TcpSender, TcpReceiver, Time) {
    let (mut sender, mut receiver) = (TcpSender::new(options), TcpReceiver::new());
    let back = DirectionSpec { rate: None, loss: 0.0, burst: None, ..spec.clone() };
    let mut there: Direction<PacketBuf> = Direction::new(spec, 7, Time::ZERO);
    let mut here: Direction<PacketBuf> = Direction::new(back, 8, Time::ZERO);
    let pool = BufPool::new(2048, 64);
    let mut agenda = Agenda::new(4);
    agenda.arm(0, Some(Time::ZERO));
    let mut done = Time::ZERO;
    while let Some((now, component)) = agenda.pop() {
        if now > Time::from_millis(seconds * 1000) || sender.is_done() {
            break;
        }
        done = now;
        match component {
            0 => sender.handle_timeout(now),
            1 => receiver.handle_timeout(now),
            2 => {
                while let Some((packet, ..)) = there.pop_due(now) {
                    let (tuple, segment) = Segment::decode(&packet).expect("intact");
                    assert_eq!(tuple, TUPLE);
                    receiver.handle(&segment, now);
                }
            }
            _ => {
                while let Some((packet, ..)) = here.pop_due(now) {
                    let (_, segment) = Segment::decode(&packet).expect("intact");
                    sender.handle(&segment, now);
                }
            }
        }
        while let Some(segment) = sender.poll(now) {
            let packet = segment.encode(TUPLE, &pool).expect("fits");
            let len = packet.len();
            there.arrive(packet, len, now);
        }
        while let Some(segment) = receiver.poll() {
            let packet = segment.encode(TUPLE.reversed(), &pool).expect("fits");
            let len = packet.len();
            here.arrive(packet, len, now);
        }
        agenda.arm(0, sender.poll_timeout());
        agenda.arm(1, receiver.poll_timeout());
        agenda.arm(2, there.next_due());
        agenda.arm(3, here.next_due());
    }
    (sender, receiver, done)
}

fn link(queue_ms: u64) -> DirectionSpec {
    DirectionSpec::mbit(20.0).delay_ms(20).queue(QueueLimit::Time(Duration::from_millis(queue_ms)))
}

fn mbit(receiver: &TcpReceiver, seconds: u64) -> f64 {
    receiver.stats().delivered as f64 * 8e-6 / seconds as f64
}

#[test]
fn segments_survive_the_wire() {
    let segment = Segment {
        flags: tcp_flags::ACK | tcp_flags::ECE,
        seq: 0xffff_fff0,
        ack: 17,
        tsval: 99,
        tsecr: 3,
        sack: [Some((1, 2)), Some((0xffff_fff0, 5)), None],
        payload_len: 100,
        ecn: Ecn::Ect0,
    };
    let pool = BufPool::new(2048, 1);
    let mut packet = segment.encode(TUPLE, &pool).expect("fits");
    assert_eq!(Segment::decode(&packet), Some((TUPLE, segment)));
    assert!(mwb_proto::packet::set_ce(&mut packet));
    assert_eq!(Segment::decode(&packet), Some((TUPLE, Segment { ecn: Ecn::Ce, ..segment })));
    packet[15] ^= 1;
    assert_eq!(Segment::decode(&packet), None, "a damaged header is noticed");
}

#[test]
fn a_clean_link_is_filled() {
    // Ceiling: 1372 of 1424 bytes.
    let (sender, receiver, _) = transfer(link(100), SenderOptions::default(), 10);
    let goodput = mbit(&receiver, 10);
    assert!((18.0..19.3).contains(&goodput), "{goodput} {:?}", sender.stats());
    assert_eq!(sender.stats().timeouts, 0, "{:?}", sender.stats());
}

#[test]
fn random_loss_costs_what_cubic_pays_and_no_timeouts() {
    let (sender, receiver, _) = transfer(link(100).loss(0.002), SenderOptions::default(), 20);
    let goodput = mbit(&receiver, 20);
    assert!((6.0..18.5).contains(&goodput), "{goodput} {:?}", sender.stats());
    assert!(sender.stats().recoveries > 5 && sender.stats().timeouts <= 1, "{:?}", sender.stats());
}

#[test]
fn reordering_is_not_taken_for_loss() {
    let mut spec = link(100).jitter_ms(8);
    spec.jitter_reorders = true;
    let (sender, receiver, _) = transfer(spec, SenderOptions::default(), 10);
    let goodput = mbit(&receiver, 10);
    assert!(goodput > 17.0, "{goodput} {:?}", sender.stats());
    assert!(receiver.stats().out_of_order > 1000, "{:?}", receiver.stats());
    assert!(receiver.stats().duplicates < 10, "{:?} {:?}", sender.stats(), receiver.stats());
}

/// BBR fills a clean link without its queue, and random loss costs it little more than what is lost.
#[test]
fn bbr_fills_the_link_and_does_not_mind_loss() {
    let options = SenderOptions { transport: Transport::Bbr, ..SenderOptions::default() };
    let (sender, receiver, _) = transfer(link(100), options, 15);
    let goodput = mbit(&receiver, 15);
    assert!((17.3..19.3).contains(&goodput), "{goodput} {:?}", sender.stats());
    let srtt = sender.srtt().expect("measured");
    assert!(srtt < Duration::from_millis(95), "twice the least round trip at the most: {srtt:?}");
    let (sender, receiver, _) = transfer(link(100).loss(0.02), options, 15);
    let goodput = mbit(&receiver, 15);
    assert!(goodput > 16.0, "{goodput} {:?}", sender.stats());
}

/// What TCP tolerates costs a sender with a fixed threshold most of its rate; without disorder both are equal.
#[test]
fn a_fixed_threshold_pays_for_reordering() {
    let options = SenderOptions { transport: Transport::Quic, ..SenderOptions::default() };
    let (_, receiver, _) = transfer(link(100), options, 10);
    assert!(mbit(&receiver, 10) > 18.0, "{}", mbit(&receiver, 10));
    let mut spec = link(100).jitter_ms(8);
    spec.jitter_reorders = true;
    let (sender, receiver, _) = transfer(spec, options, 10);
    assert!(mbit(&receiver, 10) < 9.0, "{}", mbit(&receiver, 10));
    assert!(sender.stats().undone == 0 && sender.stats().recoveries > 20, "{:?}", sender.stats());
}

#[test]
fn a_segment_survives_the_clothes_of_quic() {
    let pool = BufPool::new(2048, 4);
    let segment = Segment {
        flags: tcp_flags::ACK,
        seq: 5,
        ack: 1,
        tsval: 7,
        tsecr: 3,
        sack: [None; 3],
        payload_len: 900,
        ecn: Ecn::Ect0,
    };
    let bare = segment.encode(TUPLE, &pool).expect("fits");
    let packet = quic::wrap(&bare, true, &pool).expect("fits");
    let inner = mwb_proto::packet::parse(&packet).expect("a UDP packet");
    assert_eq!(inner.ports, Some((5000, 443)));
    assert_eq!(quic::unwrap(&packet).as_deref(), Some(&bare[..]));
    assert_eq!(quic::unwrap(&bare), None);
}

#[test]
fn a_finite_transfer_ends_even_over_bursts() {
    let mut rng = SmallRng::seed_from_u64(5);
    for _ in 0..30 {
        let burst = crate::wan::BurstLoss::of(rng.random_range(0.0..0.1), rng.random_range(1.0..8.0));
        let bytes = rng.random_range(1..400_000);
        let options = SenderOptions {
            bytes: Some(bytes),
            isn: rng.random(),
            ecn: rng.random(),
            ..SenderOptions::default()
        };
        let (sender, receiver, at) = transfer(link(50).burst(burst), options, 600);
        assert!(sender.is_done(), "{bytes} {burst:?} {at:?} {:?}", sender.stats());
        assert_eq!(receiver.stats().delivered, bytes);
    }
}

#[test]
fn positions_unwrap_near_the_expected_one() {
    assert_eq!(unwrap_seq(5 << 32, 10), (5 << 32) + 10);
    assert_eq!(unwrap_seq((5 << 32) + 10, 0xffff_fff0), (5 << 32) - 16);
}
