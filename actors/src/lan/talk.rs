//! `LanPeerActor`: one per member on the LAN. Speaks with it over the first stream of the present
//! connection: signs of life, announcements, and what others have put into the peer's outbox.
//!
//! Stream, half-read frames and half-written ones are held beside the actor: its successor goes on
//! where it was. For that every await of the driver is one that loses nothing when it is cancelled.

use std::sync::Arc;
use std::time::Duration;

use mwb_proto::control::{self, Decoded, FrameDecoder, Message, PeerBeat};
use mwb_proto::time::Time;
use parking_lot::Mutex;
use quinn::{RecvStream, SendStream};
use tokio::sync::Notify;

use super::{LanConnection, LanPeer, LanPeers};
use crate::clock;
use crate::control::{CloseCode, ControlStream};
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};

/// How often a sign of life is sent.
pub(crate) const BEAT_EVERY: Duration = Duration::from_millis(500);
/// Silence after which a peer is gone.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Bytes read from the stream at once.
const READ_MAX: usize = 16 * 1024;
/// Bytes of encoded messages that may wait for QUIC; more stay in the outbox.
const UNSENT_MAX: usize = 64 * 1024;
/// A peer that says more than this in a second is sent away.
const MESSAGES_PER_SECOND_MAX: u32 = 1000;
/// The same in bytes: a thousand messages of the usual size are a tenth of it.
const BYTES_PER_SECOND_MAX: usize = 2 << 20;

/// A connection with its stream and all that is under way in it.
pub(crate) struct LanStream {
    connection: LanConnection,
    send: SendStream,
    receive: RecvStream,
    decoder: FrameDecoder,
    /// Encoded and not yet taken by QUIC.
    unsent: Vec<u8>,
    heard: Time,
    next_beat: Time,
    beats: u64,
    intake: Intake,
}

impl LanStream {
    pub(crate) fn new(connection: LanConnection, stream: ControlStream) -> Self {
        let (send, receive, decoder) = stream.into_parts();
        let now = clock::now();
        let intake = Intake { since: now, messages: 0, bytes: 0 };
        let unsent = Vec::new();
        Self { connection, send, receive, decoder, unsent, heard: now, next_beat: now, beats: 0, intake }
    }
}

/// What was heard in the present second.
struct Intake {
    since: Time,
    messages: u32,
    bytes: usize,
}

impl Intake {
    /// Counts; false when it is too much.
    fn count(&mut self, now: Time, messages: u32, bytes: usize) -> bool {
        if now - self.since >= Duration::from_secs(1) {
            *self = Self { since: now, messages: 0, bytes: 0 };
        }
        self.messages += messages;
        self.bytes += bytes;
        self.messages <= MESSAGES_PER_SECOND_MAX && self.bytes <= BYTES_PER_SECOND_MAX
    }
}

/// The conversation with one peer; survives its actor.
pub struct LanTalk {
    peers: Arc<LanPeers>,
    peer: Arc<LanPeer>,
    /// A new connection, not yet taken by the actor.
    arrival: Mutex<Option<LanStream>>,
    bell: Notify,
    /// Locked by the driver for as long as it lives.
    present: tokio::sync::Mutex<Option<LanStream>>,
}

impl LanTalk {
    pub(crate) fn new(peers: Arc<LanPeers>, peer: Arc<LanPeer>) -> Arc<Self> {
        let (arrival, bell, present) = (Mutex::default(), Notify::new(), tokio::sync::Mutex::default());
        Arc::new(Self { peers, peer, arrival, bell, present })
    }

    /// The peer.
    pub fn peer(&self) -> &Arc<LanPeer> {
        &self.peer
    }

    /// Hands a new connection to the actor; it takes the place of the present one.
    pub(crate) fn begin(&self, stream: LanStream) {
        *self.arrival.lock() = Some(stream);
        self.bell.notify_one();
    }
}

impl std::fmt::Debug for LanTalk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LanTalk({})", self.peer.name())
    }
}

/// Marker of [`LanPeerActor`].
#[derive(Debug)]
pub struct LanTalker;

/// The actor that speaks with one member on the LAN.
pub type LanPeerActor = DrivenActor<LanTalker>;

impl Drive for LanTalker {
    type Lent = Arc<LanTalk>;

    fn launch(talk: &Arc<LanTalk>, crew: &mut Crew) -> Result<(), DriverError> {
        let talk = Arc::clone(talk);
        crew.launch("talk", |pulse| run(talk, pulse));
        Ok(())
    }
}

/// Why a connection is not used any more.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("silent for {SILENCE_MAX:?}")]
    Silent,
    #[error("connection: {0}")]
    Connection(String),
    #[error("{0}")]
    Rules(String),
}

async fn run(talk: Arc<LanTalk>, pulse: Pulse) -> Result<(), DriverError> {
    // A predecessor that was just aborted may take a moment to let go.
    let mut present = pulse.alive_during(talk.present.lock()).await?;
    loop {
        pulse.beat().await?;
        if let Some(arrival) = talk.arrival.lock().take() {
            *present = Some(arrival);
        }
        let Some(stream) = &mut *present else {
            tokio::select! {
                () = talk.bell.notified() => {}
                () = pulse.asked() => {}
            }
            continue;
        };
        let Err(end) = turn(&talk, stream, &pulse).await else { continue };
        let (peer, remote) = (talk.peer.name(), stream.connection.remote());
        tracing::info!(peer, %remote, reason = %end, "no longer on the LAN");
        match end {
            End::Silent => CloseCode::Timeout.close(&stream.connection.connection),
            End::Connection(_) => CloseCode::Done.close(&stream.connection.connection),
            End::Rules(text) => CloseCode::Protocol.close_saying(&stream.connection.connection, &text),
        }
        talk.peers.disconnected(&talk.peer, stream.connection.generation);
        *present = None;
    }
}

/// One thing that is to be done on the present connection, or a wait.
async fn turn(talk: &LanTalk, stream: &mut LanStream, pulse: &Pulse) -> Result<(), End> {
    let now = clock::now();
    if now - stream.heard >= SILENCE_MAX {
        return Err(End::Silent);
    }
    if now >= stream.next_beat {
        stream.beats += 1;
        stream.next_beat = now + BEAT_EVERY;
        // A peer that does not read must not make us hoard: what waits shows that we live as well.
        if stream.unsent.len() < UNSENT_MAX {
            control::encode(&Message::PeerBeat(PeerBeat { sequence: stream.beats }), &mut stream.unsent);
        }
    }
    while stream.unsent.len() < UNSENT_MAX {
        let Some(message) = talk.peer.outbox.pop() else { break };
        control::encode(&message, &mut stream.unsent);
    }
    let wake = stream.next_beat.min(stream.heard + SILENCE_MAX) - now;
    let gone = |reason: String| End::Connection(reason);
    let has_room = stream.unsent.len() < UNSENT_MAX;
    tokio::select! {
        written = stream.send.write(&stream.unsent), if !stream.unsent.is_empty() => {
            let written = written.map_err(|error| gone(error.to_string()))?;
            stream.unsent.drain(..written);
        }
        chunk = stream.receive.read_chunk(READ_MAX, true) => {
            let chunk = chunk.map_err(|error| gone(error.to_string()))?;
            let chunk = chunk.ok_or_else(|| gone("the peer has ended the stream".to_owned()))?;
            pulse.count_handled(hear(talk, stream, &chunk.bytes)?);
        }
        () = talk.peer.outbox.wait(), if has_room => {}
        () = talk.bell.notified() => {}
        () = tokio::time::sleep(wake) => {}
        () = pulse.asked() => {}
    }
    Ok(())
}

/// Takes bytes of the stream; gives the number of messages in them.
fn hear(talk: &LanTalk, stream: &mut LanStream, bytes: &[u8]) -> Result<u64, End> {
    let now = clock::now();
    stream.heard = now;
    stream.decoder.push(bytes);
    let mut count = 0;
    while let Some(decoded) = stream.decoder.next().map_err(|error| End::Rules(error.to_string()))? {
        count += 1;
        match decoded {
            Decoded::Message(message) => handle(talk, message)?,
            Decoded::Unknown(kind) => tracing::debug!(kind, "message of an unknown kind"),
        }
    }
    if !stream.intake.count(now, u32::try_from(count).unwrap_or(u32::MAX), bytes.len()) {
        return Err(End::Rules("too many messages".to_owned()));
    }
    Ok(count)
}

fn handle(talk: &LanTalk, message: Message) -> Result<(), End> {
    match message {
        Message::PeerBeat(_) => {}
        Message::UplinkAnnounce(announce) => talk.peers.announced(&talk.peer, announce.uplinks),
        Message::LeaseRequest(_)
        | Message::LeaseAccept(_)
        | Message::LeaseRefuse(_)
        | Message::LeaseEnd(_)
        | Message::RateGrants(_) => {
            // What does not fit is counted by the queue; all of these are said again.
            let _ = talk.peer.lease_inbox.try_push(message);
        }
        other => return Err(End::Rules(format!("message of kind {} on a LAN connection", other.kind()))),
    }
    Ok(())
}
