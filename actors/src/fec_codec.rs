//! `FecCodecActor`: does the arithmetic of parity for a session, off its router and its resequencer.
//!
//! Input: jobs of both, in one bounded queue. Output: parity to the router, rebuilt packets in line with what the
//! links deliver to the resequencer. It holds nothing but tables: when it dies, the job at hand is lost, those that
//! wait are done by its successor, and data goes on all the while. A session that protects nothing never wakes it.

use std::sync::Arc;

use mwb_proto::fec::{FecCodec, FecDone};

use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::session::{Received, Session};

/// Jobs per turn, 25 us for 16 packets and 0.1 ms for 32; then other tasks get theirs.
const JOBS_PER_TURN: usize = 8;

/// Marker of [`FecCodecActor`].
#[derive(Debug)]
pub struct FecCodecs;

/// The actor around a session's codec.
pub type FecCodecActor = DrivenActor<FecCodecs>;

impl Drive for FecCodecs {
    type Lent = Arc<Session>;

    fn launch(session: &Arc<Session>, crew: &mut Crew) -> Result<(), DriverError> {
        let session = Arc::clone(session);
        crew.launch("code", move |pulse| run(session, pulse));
        Ok(())
    }
}

async fn run(session: Arc<Session>, pulse: Pulse) -> Result<(), DriverError> {
    let mut codec = FecCodec::new();
    loop {
        pulse.beat().await?;
        for _ in 0..JOBS_PER_TURN {
            let Some(job) = session.fec_jobs.pop() else { break };
            pulse.count_handled(1);
            // A full queue is counted by the queue; whoever asked has given the block up by then.
            match codec.run(job) {
                FecDone::Encoded(done) => _ = session.encoded.try_push(done),
                FecDone::Decoded(done) => _ = session.received.try_push(Received::Decoded(done)),
            }
        }
        if !session.fec_jobs.is_empty() {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            () = session.fec_jobs.wait() => {}
            () = pulse.asked() => {}
        }
    }
}
