//! A peer that is authentic but broken or malicious: nothing that it says may panic the machines
//! or make them grow.

use std::time::Duration;

use mwb_proto::bond::{PathSetup, Receiver, ReceiverConfig, RxItem, Sender, SenderConfig, TxBatch};
use mwb_proto::buf::BufPool;
use mwb_proto::time::{Stamp, Time};
use mwb_proto::wire::v2::{Class, Flags, FrameType};
use mwb_proto::wire::{Heartbeat, HeartbeatKind, MissingRange, PathId, PathReport, Report};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn path_report() -> impl Strategy<Value = PathReport> {
    (
        (0u8..4, 0u32..200, any::<u16>(), any::<u32>(), any::<u16>()),
        (any::<u32>(), any::<u16>(), any::<u16>(), any::<u16>()),
        prop::collection::vec((any::<u16>(), any::<u16>()), 0..24),
    )
        .prop_map(|((path, highest, age, bytes, ce), (owd, mean, top, floor), missing)| PathReport {
            path: PathId(path),
            highest,
            highest_age: age,
            received_bytes: bytes,
            ce,
            owd_min: Stamp::new(owd),
            owd_mean_excess: mean,
            owd_highest_excess: top,
            floor,
            missing: missing
                .into_iter()
                .map(|(below_highest, len)| MissingRange { below_highest, len })
                .collect(),
        })
}

#[derive(Debug, Clone)]
enum Step {
    Packets(u8),
    Report(u32, u32, Vec<PathReport>),
    Beat(u8, u32),
    Remove(u8),
    Add(u8),
    Pass(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u8..60).prop_map(Step::Packets),
        (any::<u32>(), any::<u32>(), prop::collection::vec(path_report(), 0..4))
            .prop_map(|(number, time, paths)| Step::Report(number, time, paths)),
        (0u8..5, any::<u32>()).prop_map(|(path, echo)| Step::Beat(path, echo)),
        (0u8..4).prop_map(Step::Remove),
        (0u8..4).prop_map(Step::Add),
        (1u32..400_000).prop_map(Step::Pass),
    ]
}

fn udp_packet(len: usize, port: u8) -> Vec<u8> {
    let mut p = vec![0u8; len.max(28)];
    p[0] = 0x45;
    let total = (p.len() as u16).to_be_bytes();
    p[2..4].copy_from_slice(&total);
    p[9] = if port.is_multiple_of(2) { 17 } else { 6 };
    p[23] = port;
    if p.len() > 33 {
        p[32] = 0x50;
        p[33] = 0x10;
    }
    p
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_sender_survives_any_reports(steps in prop::collection::vec(step(), 1..120)) {
        let pool = BufPool::new(2048, 64);
        let mut now = Time::from_millis(10);
        let mut sender = Sender::new(SenderConfig::default(), 0, pool.clone(), now);
        let setup = PathSetup { receiver: 1, first_path_seq: 0, datagram_max: 1472, rate_max: None, weight: 1, bundles: true };
        sender.add_path(PathId(0), setup.clone(), now);
        sender.add_path(PathId(1), setup.clone(), now);
        let mut batch = TxBatch::new();
        for s in steps {
            match s {
                Step::Packets(n) => {
                    for i in 0..n {
                        let bytes = udp_packet(usize::from(n) * 20 + 40, i);
                        sender.enqueue(pool.copy_from(&bytes).expect("fits"), now);
                    }
                }
                Step::Report(number, time, paths) => {
                    sender.handle_report(&Report { sent: Stamp::new(0), number, time: Stamp::new(time), paths }, now);
                }
                Step::Beat(path, echo) => {
                    let kind = if echo % 2 == 0 { HeartbeatKind::Ping } else { HeartbeatKind::Pong };
                    let beat = Heartbeat { sent: now.stamp(), kind, id: 0, echo: Stamp::new(echo) };
                    sender.handle_heartbeat(PathId(path), &beat, now);
                }
                Step::Remove(path) => sender.remove_path(PathId(path), now),
                Step::Add(path) => sender.add_path(PathId(path), setup.clone(), now),
                Step::Pass(micros) => now += Duration::from_micros(u64::from(micros)),
            }
            sender.handle_timeout(now);
            let mut rounds = 0;
            while sender.poll_transmit(&mut batch, now) {
                for segment in &batch.segments {
                    prop_assert!(segment.offset as usize + usize::from(segment.len) <= batch.slab.len());
                }
                batch.clear();
                rounds += 1;
                prop_assert!(rounds < 10_000, "transmitting must come to an end");
            }
            if let Some(at) = sender.poll_timeout() {
                prop_assert!(at < now + Duration::from_secs(60));
            }
            let snapshot = sender.snapshot(now);
            prop_assert!(snapshot.paths.iter().all(|p| p.rate_mbit.is_finite() && p.rate_mbit > 0.0));
        }
    }

    #[test]
    fn the_receiver_survives_any_bodies(
        items in prop::collection::vec(
            (0u8..40, any::<u64>(), 0u8..8, prop::collection::vec(any::<u8>(), 0..80), 0u32..50_000), 1..200),
    ) {
        let pool = BufPool::new(2048, 64);
        let mut now = Time::from_millis(10);
        let config = ReceiverConfig { reorder_bytes_max: 1 << 18, ..ReceiverConfig::default() };
        let mut receiver = Receiver::new(config, now);
        let mut body = Vec::new();
        let frames = [FrameType::Data, FrameType::Ack, FrameType::Heartbeat, FrameType::Control,
            FrameType::Multicast, FrameType::Fec, FrameType::Skip, FrameType::Bundle];
        for (path, seq, frame, plain, micros) in items {
            now += Duration::from_micros(u64::from(micros));
            let item = RxItem {
                path: PathId(path),
                path_seq: seq >> (seq % 60),
                arrival: now,
                wire_len: plain.len() as u16 + 26,
                ce: false,
                frame: frames[usize::from(frame)],
                flags: Flags(seq as u8 & Flags::MASK),
                class: Class::BestEffort,
                plain: pool.copy_from(&plain).expect("fits"),
            };
            let _ = receiver.handle(item, now);
            receiver.handle_timeout(now);
            if receiver.poll_report(&mut body, now) {
                prop_assert!(Report::decode(&body).is_ok());
            }
            while receiver.poll_packet(now).is_some() {}
            prop_assert!(receiver.snapshot().held_bytes <= 1 << 18);
        }
    }
}
