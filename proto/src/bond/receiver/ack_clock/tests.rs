//! Goal: acknowledgements keep the usual round trip, nothing else ever waits, memory is bounded. Method: one flow of a mark
//! every two milliseconds, acknowledged after a chosen time.

use super::*;
use crate::buf::BufPool;

const MS: u64 = 1_000_000;

fn at(ms: u64) -> Time {
    Time::from_nanos(ms * MS)
}

/// A packet of the peer's TCP to ours, port by port.
fn packet(port: u16, flags: u8, ack: u32, options: &[u8], payload: usize) -> Vec<u8> {
    let header = 20 + options.len();
    let len = 20 + header + payload;
    let mut packet = vec![0; len];
    (packet[0], packet[8], packet[9]) = (0x45, 64, 6);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 0, 0, 2]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 1]);
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&443_u16.to_be_bytes());
    packet[28..32].copy_from_slice(&ack.to_be_bytes());
    (packet[32], packet[33]) = ((header as u8 / 4) << 4, flags);
    packet[40..40 + options.len()].copy_from_slice(options);
    packet
}

/// A SACK option with one block.
fn blocks(start: u32, end: u32) -> Vec<u8> {
    let mut options = vec![1, 1, SACK, 10];
    options.extend([start, end].iter().flat_map(|edge| edge.to_be_bytes()));
    options
}

fn tuple(port: u16) -> TcpTuple {
    let address = |last| IpAddr::from([10, 0, 0, last]);
    TcpTuple { source: (address(1), 443), destination: (address(2), port) }
}

struct Bench {
    clock: AckClock,
    pool: BufPool,
}

impl Bench {
    fn new() -> Self {
        Self { clock: AckClock::default(), pool: BufPool::new(2048, 64) }
    }

    fn note(&mut self, port: u16, end: u32, ms: u64) {
        self.clock.note(SentMark { flow: tuple(port), end, at: at(ms) });
    }

    /// Whether the packet is handed on at once.
    fn passes(&mut self, packet: &[u8], ms: u64) -> bool {
        let packet = self.pool.copy_from(packet).expect("fits");
        self.clock.offer(packet, at(ms)).is_some()
    }

    /// An acknowledgement, as [`passes`](Self::passes).
    fn ack(&mut self, port: u16, ack: u32, ms: u64) -> bool {
        self.passes(&packet(port, tcp_flags::ACK, ack, &[], 0), ms)
    }

    /// Eight seconds of full flight with this round trip from `from` on; sequence numbers are a thousand per millisecond.
    fn fly(&mut self, rtt: u64, from: u64) {
        for ms in (from..from + 8000).step_by(2) {
            self.note(5, ms as u32 * 1000, ms);
            if ms >= from + rtt {
                self.ack(5, (ms - rtt) as u32 * 1000, ms);
                while self.clock.poll(at(ms)).is_some() {}
            }
        }
    }
}

#[test]
fn an_acknowledgement_that_comes_early_waits_for_the_usual_time() {
    let mut bench = Bench::new();
    bench.fly(100, 0);
    // A pause: what went before arrives, then one packet is answered after 10 ms.
    assert!(bench.ack(5, 7_998_000, 8098));
    bench.note(5, 8_500_000, 8100);
    assert!(!bench.ack(5, 8_500_000, 8110));
    let due = bench.clock.poll_timeout().expect("waits");
    assert!(due >= at(8180) && due <= at(8191), "{due:?}");
    assert!(bench.clock.poll(due.saturating_sub(Duration::from_nanos(1))).is_none());
    assert!(bench.clock.poll(due).is_some());
    assert!(bench.clock.poll_timeout().is_none());
    // What takes as long as usual does not wait.
    bench.note(5, 9_000_000, 9000);
    assert!(bench.ack(5, 9_000_000, 9095));
}

/// BBR measures for 200 ms with four packets a round; what is usual hardly changes by that, and what comes later is held.
#[test]
fn a_pause_does_not_change_what_is_usual() {
    let mut bench = Bench::new();
    bench.fly(100, 0);
    bench.ack(5, 7_998_000, 8098);
    for round in 0..4 {
        let (ms, end) = (8100 + round * 90, 8_100_000 + round as u32 * 5800);
        bench.note(5, end, ms);
        assert!(!bench.ack(5, end, ms + 10), "round {round}");
    }
    let usual = bench.clock.flows[0].usual;
    assert!((0.09..=0.1).contains(&usual), "{usual}");
}

/// A path goes away for good: the round trip that was usual is forgotten.
#[test]
fn a_shorter_way_becomes_usual() {
    let mut bench = Bench::new();
    bench.fly(100, 0);
    for k in 0..3 {
        bench.fly(20, 8000 + 8000 * k);
    }
    let usual = bench.clock.flows[0].usual;
    assert!((0.02..0.03).contains(&usual), "{usual}");
}

/// CUBIC's window shrinks after a loss, and its round trip with it: it gets no pause for that.
#[test]
fn nothing_waits_before_a_pause_or_after_a_loss() {
    let mut bench = Bench::new();
    bench.fly(100, 0);
    // The round trip shrinks without a pause.
    for ms in (8000..8200).step_by(2) {
        bench.note(5, ms as u32 * 1000, ms);
        assert!(bench.ack(5, ms as u32 * 1000 - 10_000, ms), "at {ms} ms");
    }
    // A hole, and silence.
    bench.note(5, 8_250_000, 8202);
    assert!(bench.passes(&packet(5, tcp_flags::ACK, 8_198_000, &blocks(8_240_000, 8_250_000), 0), 8212));
    bench.note(5, 8_500_000, 8300);
    assert!(bench.ack(5, 8_500_000, 8310));
    assert_eq!(bench.clock.held(), 0);
}

/// What was in flight when all paths died is acknowledged ten seconds later.
#[test]
fn an_outage_is_not_usual() {
    let mut bench = Bench::new();
    bench.fly(20, 0);
    bench.ack(5, 7_998_000, 18_000);
    let usual = bench.clock.flows[0].usual;
    assert!((0.015..0.05).contains(&usual), "{usual}");
    // Nobody is held for long, even with a packet at a time.
    bench.clock.flows[0].usual = USUAL_MAX;
    for ms in (19_000..34_000).step_by(1000) {
        bench.note(5, ms as u32 * 1000, ms);
        bench.ack(5, ms as u32 * 1000, ms + 20);
    }
    let usual = bench.clock.flows[0].usual;
    assert!((0.015..0.1).contains(&usual), "{usual}");
}

#[test]
fn only_pure_acknowledgements_of_marked_flows_wait() {
    let mut bench = Bench::new();
    bench.fly(100, 0);
    bench.note(5, 8_500_000, 8100);
    let ack = tcp_flags::ACK;
    for (what, passing) in [
        ("payload", packet(5, ack, 8_500_000, &[], 100)),
        ("SYN", packet(5, ack | tcp_flags::SYN, 8_500_000, &[], 0)),
        ("FIN", packet(5, ack | tcp_flags::FIN, 8_500_000, &[], 0)),
        ("RST", packet(5, tcp_flags::RST, 0, &[], 0)),
        ("another flow", packet(6, ack, 8_500_000, &[], 0)),
        ("no IP packet", vec![0; 9]),
    ] {
        assert!(bench.passes(&passing, 8110), "{what}");
    }
    assert!(!bench.ack(5, 8_500_000, 8110));
}

/// A segment that arrived behind a hole is a measurement too.
#[test]
fn a_selective_acknowledgement_waits() {
    let mut bench = Bench::new();
    bench.fly(100, 0);
    bench.ack(5, 7_998_000, 8098);
    bench.note(5, 8_500_000, 8100);
    let sack = packet(5, tcp_flags::ACK, 7_998_000, &blocks(8_499_000, 8_500_000), 0);
    assert!(!bench.passes(&sack, 8110));
    assert!(bench.clock.poll_timeout().expect("waits") >= at(8180));
    // Later ones of the flow do not overtake it.
    assert!(!bench.ack(5, 7_998_000, 8111));
    let order: Vec<usize> = std::iter::from_fn(|| bench.clock.poll(at(8200)).map(|p| p.len())).collect();
    assert_eq!(order, [52, 40]);
}

#[test]
fn options_cut_short_are_no_blocks() {
    for options in [&[][..], &[0, 5, 10], &[1, 1, 1], &[5], &[5, 10, 0, 0], &[8, 0, 0, 0], &[8, 200]] {
        assert_eq!(sack_blocks(options), None, "{options:?}");
    }
    assert_eq!(sack_blocks(&[1, 8, 3, 7, 5, 4, 1, 2]), Some(&[1, 2][..]));
}

#[test]
fn memory_is_bounded() {
    let mut bench = Bench::new();
    for port in 0..100 {
        bench.note(port, 1, u64::from(port));
    }
    assert_eq!(bench.clock.flows.len(), FLOWS_MAX);
    bench.fly(100, 1000);
    for k in 0..10_000 {
        bench.note(5, 10_000_000 + k, 9100);
    }
    assert_eq!(bench.clock.flows.iter().map(|flow| flow.marks.len()).max(), Some(MARKS_MAX));
    let passed = (0..3000).filter(|&k| bench.ack(5, 10_009_000 + k % 1000, 9101)).count();
    assert_eq!(bench.clock.held.len(), HELD_MAX);
    assert_eq!(passed, 3000 - HELD_MAX);
}

/// Numbers wrap around.
#[test]
fn sequence_numbers_wrap() {
    assert!(is_after(5, u32::MAX - 5) && !is_after(u32::MAX - 5, 5) && !is_after(7, 7));
    let mut bench = Bench::new();
    for (end, ms) in [(u32::MAX - 10, 0), (20, 2)] {
        bench.note(5, end, ms);
    }
    bench.ack(5, 20, 102);
    assert!(bench.clock.flows[0].marks.is_empty());
}

proptest::proptest! {
    /// Whatever an acknowledgement says, nobody panics, and it is delivered within a second.
    #[test]
    fn no_acknowledgement_is_held_for_long(
        words in proptest::collection::vec(proptest::num::u32::ANY, 0..10),
        ack in proptest::num::u32::ANY,
        flags in proptest::num::u8::ANY,
    ) {
        let mut bench = Bench::new();
        bench.fly(100, 0);
        bench.note(5, 8_500_000, 8100);
        let options: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        bench.passes(&packet(5, flags, ack, &options, 0), 8110);
        proptest::prop_assert!(bench.clock.poll_timeout().is_none_or(|due| due <= at(9110)));
    }
}
