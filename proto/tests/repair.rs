//! What repair does on single packets.
//!
//! Goal: no copy of a packet exceeds what its path carries, blocks end in time, and a codec that does not answer costs
//! parity only. Method: a sender alone, its datagrams read.

use std::time::Duration;

use mwb_proto::bond::{FecMode, PathSetup, Sender, SenderConfig, TxBatch};
use mwb_proto::buf::BufPool;
use mwb_proto::fec::{Encoded, FecCodec, FecDone, FecJob};
use mwb_proto::time::{Stamp, Time};
use mwb_proto::wire::v2::{CLEAR_LEN, Clear, FrameType, TAG_LEN};
use mwb_proto::wire::{Parity, PathId, PathReport, Report};

fn setup(path: u8, datagram_max: usize) -> PathSetup {
    PathSetup {
        receiver: u32::from(path),
        first_path_seq: 1,
        datagram_max,
        rate_max: None,
        weight: 1,
        bundles: true,
    }
}

fn udp(len: usize) -> Vec<u8> {
    let mut packet = vec![0u8; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = 17;
    packet[12..20].copy_from_slice(&[10, 0, 0, 2, 192, 0, 2, 1]);
    packet[20..28].copy_from_slice(&[0x20, 0, 0x20, 1, 0, 0, 0, 0]);
    packet[24..26].copy_from_slice(&((len - 20) as u16).to_be_bytes());
    packet
}

struct Bed {
    sender: Sender,
    pool: BufPool,
    now: Time,
}

impl Bed {
    fn new(config: SenderConfig, paths: &[usize]) -> Self {
        let (pool, now) = (BufPool::new(2048, 64), Time::from_millis(1000));
        let mut sender = Sender::new(config, 3, pool.clone(), now);
        for (path, datagram_max) in paths.iter().enumerate() {
            sender.add_path(PathId(path as u8), setup(path as u8, *datagram_max), now);
        }
        Self { sender, pool, now }
    }

    fn send(&mut self, len: usize) {
        let packet = self.pool.copy_from(&udp(len)).expect("fits");
        self.sender.enqueue(packet, self.now);
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.sender.handle_timeout(self.now);
    }

    /// Frames that leave now: path, type, body, length of the datagram.
    fn leave(&mut self) -> Vec<(u8, FrameType, Vec<u8>, usize)> {
        let (mut out, mut batch) = (Vec::new(), TxBatch::new());
        while self.sender.poll_transmit(&mut batch, self.now) {
            for segment in &batch.segments {
                let (from, len) = (segment.offset as usize, usize::from(segment.len));
                let datagram = &batch.slab[from..from + len];
                let clear = Clear::decode(datagram).expect("ours");
                out.push((batch.path.0, clear.frame, datagram[CLEAR_LEN..len - TAG_LEN].to_vec(), len));
            }
            batch.clear();
        }
        out
    }

    /// A full block of packets that are small enough to leave within its time on a path that is not measured.
    fn burst(&mut self) -> Vec<(u8, FrameType, Vec<u8>, usize)> {
        (0..16).for_each(|_| self.send(60));
        let mut left = self.leave();
        for _ in 0..7 {
            self.now += Duration::from_millis(1);
            left.extend(self.leave());
        }
        left
    }

    fn parity(&mut self) -> Vec<Parity> {
        let leaving = self.leave();
        let parity = leaving.iter().filter(|frame| frame.1 == FrameType::Fec);
        parity.map(|frame| Parity::decode(&frame.2).expect("well formed").0).collect()
    }
}

#[test]
fn no_copy_exceeds_what_its_path_carries() {
    let mut bed = Bed::new(SenderConfig::default(), &[1232, 1472]);
    (0..5).for_each(|_| bed.send(1400));
    // Nothing is known of either path yet: each packet leaves in two fragments.
    let data = |frames: &[(u8, FrameType, Vec<u8>, usize)]| {
        let data: Vec<_> = frames.iter().filter(|frame| frame.1 == FrameType::Data).collect();
        assert!(data.iter().all(|frame| frame.3 <= 1232), "{data:?}");
        data.len()
    };
    let mut sent = 0;
    for _ in 0..20 {
        sent += data(&bed.leave());
        bed.now += Duration::from_millis(1);
    }
    assert_eq!(sent, 10);
    // What was in flight is sent again, cut anew.
    bed.sender.remove_path(PathId(1), bed.now);
    for _ in 0..50 {
        bed.pass(20);
        data(&bed.leave());
    }
    let snapshot = bed.sender.snapshot(bed.now);
    let accounted = snapshot.packets_arrived + snapshot.given_up + snapshot.held_packets as u64;
    assert_eq!((snapshot.packets_sent, accounted), (5, 5));
}

fn enabled() -> SenderConfig {
    let mut config = SenderConfig::default();
    config.fec.mode = FecMode::Enabled;
    config
}

#[test]
fn a_block_ends_when_it_is_full_or_late_and_its_parity_names_it() {
    let mut bed = Bed::new(enabled(), &[1472]);
    let mut codec = FecCodec::new();
    let mut answer = |bed: &mut Bed| {
        while let Some(job) = bed.sender.poll_fec_job() {
            let FecDone::Encoded(done) = codec.run(job) else { panic!("a sender wants parity") };
            bed.sender.handle_encoded(done, bed.now);
        }
        bed.parity()
    };
    for _ in 0..9 {
        bed.send(60);
        bed.leave();
        bed.pass(1);
    }
    // Eight milliseconds after its first packet at the latest.
    let parity = answer(&mut bed);
    assert!(!parity.is_empty());
    assert!(parity.iter().all(|p| p.data == 8 && p.parity == 2 && p.incarnation == 3), "{parity:?}");
    assert_eq!((parity.len(), parity[0].lane_seq), (2, 0));
    bed.pass(20);
    assert_eq!(answer(&mut bed).len(), 1, "a block of one packet gets one");

    bed.burst();
    let parity = answer(&mut bed);
    assert_eq!(parity.len(), 4, "{parity:?}");
    for (index, p) in parity.iter().enumerate() {
        assert_eq!((p.data, p.parity, usize::from(p.index), p.lane_seq), (16, 4, index, 9));
    }
}

#[test]
fn a_codec_that_does_not_answer_costs_parity_only() {
    let mut bed = Bed::new(enabled(), &[1472]);
    bed.burst();
    let Some(FecJob::Encode(job)) = bed.sender.poll_fec_job() else { panic!("a full block") };
    bed.pass(500);
    // Too late, twice, and about nothing: all ignored.
    for block in [job.block, job.block, 77] {
        bed.sender.handle_encoded(Encoded { block, shards: vec![vec![0; 62]; 4] }, bed.now);
    }
    assert!(bed.parity().is_empty());
    // Nothing was acknowledged: what was sent is sent again, or given up, all of it.
    bed.sender.remove_path(PathId(0), bed.now);
    bed.sender.add_path(PathId(0), setup(0, 1472), bed.now);
    for _ in 0..100 {
        bed.pass(20);
        bed.leave();
    }
    let snapshot = bed.sender.snapshot(bed.now);
    let accounted = snapshot.packets_arrived + snapshot.given_up + snapshot.held_packets as u64;
    assert_eq!((snapshot.packets_sent, accounted), (16, 16));
}

/// A packet that would make its parity too long goes without.
#[test]
fn a_packet_too_long_for_parity_is_not_protected() {
    let mut bed = Bed::new(enabled(), &[1472]);
    bed.send(1232 - 36);
    bed.send(1232 - 40);
    bed.leave();
    let snapshot = bed.sender.snapshot(bed.now);
    assert_eq!((snapshot.packets_sent, snapshot.protected), (2, 1));
}

#[test]
fn a_path_that_dies_before_it_has_proved_itself_is_left() {
    let mut bed = Bed::new(SenderConfig::default(), &[1448, 1448]);
    let (mut sent, mut heard) = ([0_u32; 2], [0_u32; 2]);
    let mut last_on_dead = Time::from_millis(0);
    for step in 0..300 {
        if step % 5 == 0 {
            bed.send(100);
        }
        for frame in bed.leave() {
            sent[usize::from(frame.0)] += 1;
            if frame.0 == 0 && frame.1 == FrameType::Data {
                last_on_dead = bed.now;
            }
        }
        bed.pass(10);
        // The near path has its first datagram reported and dies; the far one lives.
        let highest = [sent[0].min(1), sent[1]];
        let report = |path: usize| PathReport {
            path: PathId(path as u8),
            highest: highest[path],
            highest_age: 0,
            received_bytes: 100 * highest[path],
            ce: 0,
            owd_min: Stamp::new([60, 1200][path]),
            owd_mean_excess: 0,
            owd_highest_excess: 0,
            floor: 1,
            missing: vec![],
        };
        let paths: Vec<_> =
            [0, 1].into_iter().filter(|&path| highest[path] > heard[path]).map(report).collect();
        heard = highest;
        let time = bed.now.stamp();
        bed.sender.handle_report(&Report { sent: time, number: step, time, paths }, bed.now);
    }
    assert!(sent[0] > 1, "it was used: {sent:?}");
    let since = bed.now - last_on_dead;
    assert!(since > Duration::from_secs(1), "data still went to it {since:?} ago, {sent:?}");
}
