//! Flows that do not fill the bond although they could.
//!
//! A flow whose window is made for the nearest path (BBR) leaves the others idle. While traffic takes less than
//! [`FILLED`] of what the paths can carry, the flows that it belongs to are watched: how far each had been sent, and
//! when, goes to the receiver of this side, which keeps their acknowledgements from coming sooner than usual. A flow that
//! is watched stays so until it is silent: filling the bond is what it was watched for.

use std::time::Duration;

use crate::bond::classify::{FlowHash, Verdict};
use crate::bond::receiver::{SentMark, TcpTuple};
use crate::bond::sender::{Sender, SenderEvent};
use crate::packet;
use crate::time::Time;

/// Above this share of the paths' rates nothing is left to gain.
const FILLED: f64 = 0.9;
/// The bond has to be unfilled for so long.
const UNFILLED_FOR: Duration = Duration::from_secs(1);
/// One packet in so many bytes decides whose traffic it is.
const SAMPLE_BYTES: usize = 65_536;
/// Time between two marks of a flow.
const MARK_EVERY: Duration = Duration::from_millis(2);
/// Flows watched at a time.
const FLOWS_MAX: usize = 16;
/// A flow is forgotten after this much silence.
const FORGET_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Watched {
    flow: FlowHash,
    marked: Time,
}

/// The flows that are watched.
#[derive(Debug, Default)]
pub(super) struct Unfilled {
    flows: Vec<Watched>,
    since: Option<Time>,
    bytes: usize,
}

impl Unfilled {
    /// Takes note of a packet of TCP payload; true when a mark of its flow is due.
    fn on_packet(&mut self, flow: FlowHash, len: usize, now: Time) -> bool {
        if let Some(since) = self.since {
            self.bytes += len;
            if self.bytes >= SAMPLE_BYTES {
                self.bytes = 0;
                if now - since >= UNFILLED_FOR {
                    self.watch(flow, now);
                }
            }
        }
        let Some(watched) = self.flows.iter_mut().find(|watched| watched.flow == flow) else { return false };
        let due = now - watched.marked >= MARK_EVERY;
        if due {
            watched.marked = now;
        }
        due
    }

    fn watch(&mut self, flow: FlowHash, now: Time) {
        if self.flows.iter().any(|watched| watched.flow == flow) {
            return;
        }
        self.flows.retain(|watched| now - watched.marked < FORGET_AFTER);
        if self.flows.len() < FLOWS_MAX {
            self.flows.push(Watched { flow, marked: Time::ZERO });
        }
    }
}

impl Sender {
    /// Compares what the paths are given with what they can carry.
    pub(super) fn weigh_filling(&mut self, now: Time) {
        let live = || self.paths.iter().filter(|p| p.is_live());
        let given: f64 = live().map(|p| p.load.rate(now)).sum();
        let rates: f64 = live().map(|p| p.rate.rate()).sum();
        if live().count() < 2 || given >= FILLED * rates {
            self.unfilled.since = None;
        } else {
            self.unfilled.since.get_or_insert(now);
        }
    }

    /// Tells the receiver of this side how far a watched flow has come.
    pub(super) fn mark_flow(&mut self, verdict: &Verdict, bytes: &[u8], now: Time) {
        if !verdict.ordered || verdict.datagram || !self.unfilled.on_packet(verdict.flow, bytes.len(), now) {
            return;
        }
        let Ok(inner) = packet::parse(bytes) else { return };
        let (Some(tcp), Some(flow)) = (inner.tcp, TcpTuple::of(&inner)) else { return };
        let end = tcp.seq.wrapping_add(tcp.payload_len as u32);
        self.events.push_back(SenderEvent::Mark(SentMark { flow, end, at: now }));
    }
}
