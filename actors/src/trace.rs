//! The trace file: one JSON line per session and path every 100 ms, for plots and for finding out
//! why a run went as it did. Writing never delays a router: what the writer cannot take is lost and
//! counted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mwb_proto::bond::{PathSnapshot, SenderSnapshot};
use serde::Serialize;
use tokio::io::AsyncWriteExt;

use crate::channel::BatchQueue;
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};

/// Snapshots that may wait for the disk: 25 s of one session.
const WAITING_MAX: usize = 256;

/// Where the routers write to. Without a file it takes nothing.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    target: Option<Arc<Target>>,
}

#[derive(Debug)]
struct Target {
    path: PathBuf,
    queue: BatchQueue<(String, SenderSnapshot)>,
}

impl Trace {
    /// A trace into the file `path`, appended to; into `node`.jsonl there when it is a directory or
    /// has no extension; nothing when there is none.
    pub fn new(path: Option<&Path>, node: &str) -> Self {
        let target = path.map(|path| {
            let is_dir = path.is_dir() || path.extension().is_none();
            let path = if is_dir { path.join(format!("{node}.jsonl")) } else { path.to_owned() };
            Arc::new(Target { path, queue: BatchQueue::new(WAITING_MAX) })
        });
        Self { target }
    }

    /// Whether anything is written.
    pub fn is_on(&self) -> bool {
        self.target.is_some()
    }

    /// Hands a snapshot of `session` to the writer.
    pub fn write(&self, session: &str, snapshot: &SenderSnapshot) {
        if let Some(target) = &self.target {
            let _ = target.queue.try_push((session.to_owned(), snapshot.clone()));
        }
    }
}

/// One line of the file: the session's figures repeated beside those of each path.
#[derive(Serialize)]
struct Line<'a> {
    at: f64,
    session: &'a str,
    queue_bytes: usize,
    queue_packets: usize,
    resend_queued: usize,
    held_packets: usize,
    packets_in: u64,
    packets_sent: u64,
    resent: u64,
    copied: u64,
    given_up: u64,
    protected: u64,
    parity_sent: u64,
    redundancy: f64,
    rebuilt: u64,
    duplicated: u64,
    dropped_codel: u64,
    marked: u64,
    dropped_overflow: u64,
    dropped_stale: u64,
    #[serde(flatten)]
    path: &'a PathSnapshot,
}

fn lines(session: &str, snapshot: &SenderSnapshot) -> String {
    let mut out = String::new();
    for path in &snapshot.paths {
        let line = Line {
            at: snapshot.at,
            session,
            queue_bytes: snapshot.queue_bytes,
            queue_packets: snapshot.queue_packets,
            resend_queued: snapshot.resend_queued,
            held_packets: snapshot.held_packets,
            packets_in: snapshot.packets_in,
            packets_sent: snapshot.packets_sent,
            resent: snapshot.resent,
            copied: snapshot.copied,
            given_up: snapshot.given_up,
            protected: snapshot.protected,
            parity_sent: snapshot.parity_sent,
            redundancy: snapshot.redundancy,
            rebuilt: snapshot.rebuilt,
            duplicated: snapshot.duplicated,
            dropped_codel: snapshot.dropped_codel,
            marked: snapshot.marked,
            dropped_overflow: snapshot.dropped_overflow,
            dropped_stale: snapshot.dropped_stale,
            path,
        };
        if let Ok(text) = serde_json::to_string(&line) {
            out.push_str(&text);
            out.push('\n');
        }
    }
    out
}

/// Marker of [`TraceActor`].
#[derive(Debug)]
pub struct TraceWriter;

/// The actor that writes the trace file.
pub type TraceActor = DrivenActor<TraceWriter>;

impl Drive for TraceWriter {
    type Lent = Trace;

    fn launch(trace: &Trace, crew: &mut Crew) -> Result<(), DriverError> {
        if let Some(target) = trace.target.clone() {
            crew.launch("write", move |pulse| run(target, pulse));
        }
        Ok(())
    }
}

async fn run(target: Arc<Target>, pulse: Pulse) -> Result<(), DriverError> {
    if let Some(parent) = target.path.parent() {
        let made = pulse.alive_during(tokio::fs::create_dir_all(parent)).await?;
        made.map_err(DriverError::io("make the trace directory"))?;
    }
    let mut options = tokio::fs::OpenOptions::new();
    let open = options.create(true).append(true).open(&target.path);
    let mut file = pulse.alive_during(open).await?.map_err(DriverError::io("open the trace file"))?;
    loop {
        pulse.beat().await?;
        let mut text = String::new();
        while let Some((session, snapshot)) = target.queue.pop() {
            text.push_str(&lines(&session, &snapshot));
        }
        if !text.is_empty() {
            pulse.count_handled(1);
            let write = async {
                file.write_all(text.as_bytes()).await?;
                file.flush().await
            };
            pulse.alive_during(write).await?.map_err(DriverError::io("write the trace file"))?;
        }
        tokio::select! {
            () = target.queue.wait() => {}
            () = pulse.asked() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use mwb_proto::bond::{PathSetup, Sender, SenderConfig};
    use mwb_proto::buf::BufPool;
    use mwb_proto::time::Time;
    use mwb_proto::wire::PathId;

    use super::*;

    #[test]
    fn a_line_per_path_as_json() {
        let now = Time::from_millis(1_500);
        let mut sender = Sender::new(SenderConfig::default(), 0, BufPool::new(2048, 4), now);
        for path in [3, 7] {
            let setup = PathSetup {
                receiver: 1,
                first_path_seq: 1,
                datagram_max: 1472,
                rate_max: None,
                weight: 10,
                bundles: true,
            };
            sender.add_path(PathId(path), setup, now);
        }
        let text = lines("exit1", &sender.snapshot(now));
        let parsed: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
        assert_eq!(parsed.len(), 2);
        assert_eq!(parsed[1]["path"], 7);
        assert_eq!(parsed[1]["session"], "exit1");
        assert_eq!(parsed[1]["at"], 1.5);
        assert!(parsed[1]["rate_mbit"].is_number());
    }
}
