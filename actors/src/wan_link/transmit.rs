//! The sending driver of a link: seals each datagram of a batch in place and sends runs of equal
//! size with one call each.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mwb_proto::bond::{TxBatch, TxSegment};

use super::{Link, LinkSocket, SendFailure, TxJob};
use crate::driver::{DriverError, Pulse};

/// Batches sent before other tasks get their turn.
const BATCHES_PER_TURN: usize = 32;
/// Tries of one send that finds no room; then its datagrams are lost, as on any full queue.
const TRIES_MAX: usize = 4;
/// How long to wait for a full device queue, which does not say when it has room again.
const CONGESTED_WAIT: Duration = Duration::from_micros(500);
/// How long to wait for the socket's buffer.
const BLOCKED_WAIT: Duration = Duration::from_millis(20);

/// Sends for ever.
///
/// # Errors
/// By injection only: a send that fails costs its datagrams.
pub(super) async fn run(link: Arc<Link>, pulse: Pulse) -> Result<(), DriverError> {
    loop {
        pulse.beat().await?;
        let mut sent = 0;
        while sent < BATCHES_PER_TURN {
            let Some(job) = link.tx.pop() else { break };
            send(&link, job, &pulse).await;
            sent += 1;
        }
        if sent == BATCHES_PER_TURN {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            () = link.tx.wait() => {}
            () = pulse.asked() => {}
        }
    }
}

async fn send(link: &Link, mut job: TxJob, pulse: &Pulse) {
    let path = &job.path;
    let total = job.batch.slab.len();
    if let (Some(socket), Some((to, from))) = (link.socket(), path.destination(total)) {
        let refused = path.seal(&mut job.batch);
        if refused > 0 {
            link.counters.unsealed.fetch_add(refused as u64, Ordering::Relaxed);
        }
        let TxBatch { slab, segments, .. } = &job.batch;
        let mut rest = segments.as_slice();
        while !rest.is_empty() {
            let size = usize::from(rest[0].len);
            let count = run_length(rest, socket.segments_max(size));
            let (run, after) = rest.split_at(count);
            let bytes = run[0].range().start..run[count - 1].range().end;
            send_run(link, &socket, slab, bytes, size, to, from).await;
            rest = after;
        }
        pulse.count_handled(segments.len() as u64);
    } else {
        let counter =
            if link.socket().is_some() { &link.counters.unproven } else { &link.counters.unreachable };
        counter.fetch_add(job.batch.segments.len() as u64, Ordering::Relaxed);
    }
    job.batch.clear();
    path.session().give_idle(job.batch);
}

async fn send_run(
    link: &Link,
    socket: &LinkSocket,
    slab: &[u8],
    bytes: Range<usize>,
    size: usize,
    to: std::net::SocketAddr,
    from: Option<std::net::IpAddr>,
) {
    let c = &link.counters;
    let contents = &slab[bytes];
    let count = contents.len().div_ceil(size) as u64;
    for _ in 0..TRIES_MAX {
        match socket.send(contents, size, to, from) {
            Ok(()) => {
                c.sent.fetch_add(count, Ordering::Relaxed);
                c.sent_bytes.fetch_add(contents.len() as u64, Ordering::Relaxed);
                return;
            }
            Err(SendFailure::Blocked) => {
                c.blocked.fetch_add(1, Ordering::Relaxed);
                let _ = tokio::time::timeout(BLOCKED_WAIT, socket.writable()).await;
            }
            Err(SendFailure::Congested) => {
                c.blocked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(CONGESTED_WAIT).await;
            }
            Err(failure) if count > 1 => {
                // A device without segmentation, or one datagram that is too long: each alone.
                tracing::debug!(link = link.name(), ?failure, count, "sending one by one");
                for datagram in contents.chunks(size) {
                    match socket.send(datagram, size, to, from) {
                        Ok(()) => {
                            c.sent.fetch_add(1, Ordering::Relaxed);
                            c.sent_bytes.fetch_add(datagram.len() as u64, Ordering::Relaxed);
                        }
                        Err(failure) => link.note_send_failure(failure),
                    }
                }
                return;
            }
            Err(failure) => return link.note_send_failure(failure),
        }
    }
    c.send_failed.fetch_add(count, Ordering::Relaxed);
}

/// How many segments from the front lie back to back with one size, the last perhaps shorter.
fn run_length(segments: &[TxSegment], max: usize) -> usize {
    let size = segments[0].len;
    let mut count = 1;
    while count < segments.len().min(max) {
        let (previous, next) = (&segments[count - 1], &segments[count]);
        if previous.len != size || previous.range().end != next.range().start || next.len > size {
            break;
        }
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(lens: &[u16]) -> Vec<TxSegment> {
        let mut offset = 0;
        lens.iter()
            .enumerate()
            .map(|(i, &len)| {
                let segment = TxSegment { offset, len, path_seq: i as u64 };
                offset += u32::from(len);
                segment
            })
            .collect()
    }

    #[test]
    fn runs_are_equal_but_for_a_shorter_last() {
        assert_eq!(run_length(&segments(&[100]), 64), 1);
        assert_eq!(run_length(&segments(&[100, 100, 100]), 64), 3);
        assert_eq!(run_length(&segments(&[100, 100, 40, 40]), 64), 3);
        assert_eq!(run_length(&segments(&[100, 101]), 64), 1);
        assert_eq!(run_length(&segments(&[100, 100, 100]), 2), 2);
        let mut refused = segments(&[100, 100, 100]);
        refused.remove(1);
        assert_eq!(run_length(&refused, 64), 1, "a refused datagram leaves a hole");
    }
}
