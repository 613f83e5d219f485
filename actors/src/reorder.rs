//! `ReorderActor`: the shell of [`Receiver`], one per session.
//!
//! Input: opened datagrams from the links. Output: inner packets in lane order to the TUN writer,
//! reports and heartbeats to the router of this side. Inner packets whose address is not the
//! session's are dropped here: at the exit the source must be the edge's, at the edge the
//! destination must be ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mwb_proto::bond::{Receiver, ReceiverConfig};
use mwb_proto::fec::FecJob;
use mwb_proto::time::Time;

use crate::clock::{self, Timer};
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::session::{FromReceiver, InnerAddresses, Received, Role, Session};
use crate::tun::outlet::Outlet;

/// How often the receiver's state is published.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// Batches taken per turn.
const BATCHES_PER_TURN: usize = 16;
/// Packets per batch to the TUN writer: what it can merge at once.
pub(crate) const PACKETS_PER_BATCH: usize = 128;

/// What a resequencer is lent.
#[derive(Clone)]
pub struct ReorderLent {
    /// The session.
    pub session: Arc<Session>,
    /// Settings of the machine.
    pub config: ReceiverConfig,
    /// To the TUN writer.
    pub to_tun: Outlet,
    /// Largest inner packet, for the MSS of passing TCP.
    pub mtu: u16,
}

/// Marker of [`ReorderActor`].
#[derive(Debug)]
pub struct Reorder;

/// The actor around a session's receiver.
pub type ReorderActor = DrivenActor<Reorder>;

impl Drive for Reorder {
    type Lent = ReorderLent;

    fn launch(lent: &ReorderLent, crew: &mut Crew) -> Result<(), DriverError> {
        let timer = Timer::new().map_err(DriverError::io("make a timer"))?;
        let lent = lent.clone();
        crew.launch("resequence", move |pulse| run(lent, timer, pulse));
        Ok(())
    }
}

async fn run(lent: ReorderLent, mut timer: Timer, pulse: Pulse) -> Result<(), DriverError> {
    let session = Arc::clone(&lent.session);
    let now = clock::now();
    let receiver = Receiver::new(lent.config.clone(), now);
    let mut driver = ReorderDriver { lent, receiver, publish_at: now, refused: 0 };
    loop {
        pulse.beat().await?;
        let now = clock::now();
        driver.turn(now, &pulse);
        if !session.received.is_empty() {
            tokio::task::yield_now().await;
            continue;
        }
        let deadline =
            driver.receiver.poll_timeout().map_or(driver.publish_at, |at| at.min(driver.publish_at));
        tokio::select! {
            () = session.received.wait() => {}
            result = timer.wait_until(Some(deadline)) => result.map_err(DriverError::io("wait"))?,
            () = pulse.asked() => {}
        }
    }
}

struct ReorderDriver {
    lent: ReorderLent,
    receiver: Receiver,
    publish_at: Time,
    refused: u64,
}

impl ReorderDriver {
    fn turn(&mut self, now: Time, pulse: &Pulse) {
        let session = Arc::clone(&self.lent.session);
        for _ in 0..BATCHES_PER_TURN {
            match session.received.pop() {
                Some(Received::Items(items)) => {
                    pulse.count_handled(items.len() as u64);
                    for item in items {
                        if let Err(refusal) = self.receiver.handle(item, now) {
                            self.refused += 1;
                            // Authentic yet malformed: the peer speaks another dialect.
                            if self.refused.is_power_of_two() {
                                tracing::warn!(session = session.name(), %refusal, "body refused");
                            }
                        }
                    }
                }
                Some(Received::Decoded(decoded)) => self.receiver.handle_decoded(decoded, now),
                Some(Received::Reset(path)) => self.receiver.reset_path(path, now),
                Some(Received::Mark(mark)) => self.receiver.handle_mark(mark),
                None => break,
            }
        }
        self.receiver.handle_timeout(now);
        while let Some(job) = self.receiver.poll_fec_job() {
            // A codec that is behind: the packets stay lost, and are counted as failed.
            if let Err(FecJob::Decode(job)) = session.fec_jobs.try_push(job) {
                self.receiver.handle_decoded(job.abandoned(), now);
            }
        }
        self.deliver(&session, now);
        while let Some((path, beat)) = self.receiver.poll_heartbeat() {
            let _ = session.from_receiver.try_push(FromReceiver::Heartbeat(path, beat));
        }
        let mut body = Vec::new();
        while self.receiver.poll_report(&mut body, now) {
            let _ = session.from_receiver.try_push(FromReceiver::Report(std::mem::take(&mut body)));
        }
        if now >= self.publish_at {
            self.publish_at = now + PUBLISH_EVERY;
            session.receiver.send_replace(self.receiver.snapshot());
        }
    }

    fn deliver(&mut self, session: &Session, now: Time) {
        let inner = session.inner();
        let mut batch = Vec::new();
        while let Some(mut packet) = self.receiver.poll_packet(now) {
            if !inner.as_ref().is_some_and(|inner| is_ours(&packet, inner, session.role())) {
                session.foreign.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            session.clamp_mss(&mut packet, self.lent.mtu);
            if batch.is_empty() {
                batch.reserve(PACKETS_PER_BATCH);
            }
            batch.push(packet);
            if batch.len() == PACKETS_PER_BATCH {
                // A full queue is counted by the queue.
                self.lent.to_tun.push(std::mem::take(&mut batch));
            }
        }
        if !batch.is_empty() {
            self.lent.to_tun.push(batch);
        }
    }
}

/// Whether an inner packet may pass: cryptokey routing, as WireGuard calls it.
fn is_ours(packet: &[u8], inner: &InnerAddresses, role: Role) -> bool {
    let address = match role {
        Role::Exit => addresses(packet).map(|(source, _)| source),
        Role::Edge => addresses(packet).map(|(_, destination)| destination),
    };
    address.is_some_and(|address| inner.owns(address))
}

/// Source and destination of an IP packet.
pub(crate) fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            Some((Ipv4Addr::from(source).into(), Ipv4Addr::from(destination).into()))
        }
        6 => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            Some((Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use mwb_proto::bond::RxItem;
    use mwb_proto::buf::BufPool;
    use mwb_proto::wire::PathId;
    use mwb_proto::wire::v2::{Class, DATA_LEN, DataHeader, Flags, FrameType};

    use super::*;
    use crate::identity::NodeId;

    #[test]
    fn only_the_sessions_own_addresses_pass() {
        let inner =
            InnerAddresses { v4: Some(("10.9.0.5".parse().expect("ip"), 24)), ..InnerAddresses::default() };
        let mut packet = [0_u8; 20];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&[10, 9, 0, 5]);
        packet[16..20].copy_from_slice(&[8, 8, 8, 8]);
        assert!(is_ours(&packet, &inner, Role::Exit));
        assert!(!is_ours(&packet, &inner, Role::Edge));
        assert!(!is_ours(&packet[..15], &inner, Role::Exit));
        packet[15] = 6;
        assert!(!is_ours(&packet, &inner, Role::Exit));
        assert!(!is_ours(&[], &inner, Role::Exit));
    }

    #[test]
    fn an_edge_that_sends_from_anothers_address_is_not_heard() {
        let (pool, now) = (BufPool::new(2048, 4), Time::from_millis(10));
        let session = Session::new("edge".into(), Role::Exit, NodeId::from_bytes([0; 32]), 1, Arc::default());
        let v4 = Some(("10.9.0.5".parse().expect("ip"), 24));
        session.set_inner(Arc::new(InnerAddresses { v4, ..InnerAddresses::default() }));
        let to_tun = Outlet::new();
        let config = ReceiverConfig::default();
        let lent = ReorderLent { session: Arc::clone(&session), config, to_tun: to_tun.clone(), mtu: 1400 };
        let receiver = Receiver::new(ReceiverConfig::default(), now);
        let mut driver = ReorderDriver { lent, receiver, publish_at: now, refused: 0 };
        for (number, source) in [(0, 5), (1, 6), (2, 1), (3, 5)] {
            let mut packet = [0; 28];
            (packet[0], packet[3], packet[9]) = (0x45, 28, 17);
            packet[12..16].copy_from_slice(&[10, 9, 0, source]);
            packet[16..20].copy_from_slice(&[8, 8, 8, 8]);
            let header =
                DataHeader { sent: now.stamp(), lane: 0, lane_seq: number, incarnation: 1, unqueued: 0 };
            let mut start = [0; DATA_LEN];
            header.encode(&mut start);
            let item = RxItem {
                path: PathId(0),
                path_seq: number.into(),
                arrival: now,
                wire_len: 64,
                ce: false,
                frame: FrameType::Data,
                flags: Flags::default(),
                class: Class::BestEffort,
                plain: pool.copy_from(&[&start[..], &packet].concat()).expect("fits"),
            };
            driver.receiver.handle(item, now).expect("well made");
        }
        // Whatever order was waited for.
        driver.receiver.handle_timeout(now + Duration::from_secs(2));
        driver.deliver(&session, now);
        let passed: Vec<u8> = to_tun.pop().expect("a batch").iter().map(|packet| packet[15]).collect();
        assert_eq!((passed, session.foreign.load(Ordering::Relaxed)), (vec![5, 5], 2));
    }
}
