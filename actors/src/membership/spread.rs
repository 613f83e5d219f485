//! Exchange of records over one connection: each end opens a one-way stream, says all it knows, and
//! then what is new.

use mwb_proto::control::{self, Decoded, FrameDecoder, LIST_MAX, MemberList, Message};
use mwb_proto::mesh::Members;
use quinn::{Connection, RecvStream, SendStream};

use super::Membership;

/// Bytes read from a stream at once.
const READ_MAX: usize = 16 * 1024;

/// Exchanges records until the connection ends, or the peer does not keep to the rules.
pub(super) async fn run(membership: &Membership, connection: &Connection) {
    let speak = async {
        let stream = connection.open_uni().await.map_err(|error| error.to_string())?;
        speak(membership, stream).await
    };
    let listen = async {
        loop {
            let stream = connection.accept_uni().await.map_err(|error| error.to_string())?;
            listen(membership, stream).await?;
        }
    };
    // Each goes on without the other: a peer may have nothing to say.
    let (spoken, heard): (Result<(), String>, Result<(), String>) = tokio::join!(speak, listen);
    for problem in [spoken.err(), heard.err()].into_iter().flatten() {
        tracing::debug!(remote = %connection.remote_address(), problem, "exchange of records");
    }
}

async fn speak(membership: &Membership, mut stream: SendStream) -> Result<(), String> {
    let mut changes = membership.changes();
    let mut said = Members::new(*membership.snapshot().root());
    loop {
        changes.mark_unchanged();
        let now = membership.snapshot();
        for list in news(&said, &now) {
            let mut bytes = Vec::new();
            control::encode(&Message::MemberList(list), &mut bytes);
            stream.write_all(&bytes).await.map_err(|error| error.to_string())?;
        }
        said = now;
        tokio::select! {
            changed = changes.changed() => changed.map_err(|error| error.to_string())?,
            stopped = stream.stopped() => return stopped.map(|_| ()).map_err(|error| error.to_string()),
        }
    }
}

async fn listen(membership: &Membership, mut stream: RecvStream) -> Result<(), String> {
    let mut decoder = FrameDecoder::new();
    while let Some(chunk) = stream.read_chunk(READ_MAX, true).await.map_err(|error| error.to_string())? {
        decoder.push(&chunk.bytes);
        while let Some(decoded) = decoder.next().map_err(|error| error.to_string())? {
            match decoded {
                Decoded::Message(Message::MemberList(list)) => membership.learn(&list),
                Decoded::Message(other) => return Err(format!("message of kind {}", other.kind())),
                Decoded::Unknown(kind) => tracing::debug!(kind, "message of an unknown kind"),
            }
        }
    }
    Ok(())
}

/// What `now` has and `said` had not, in lists of the greatest length.
pub(super) fn news(said: &Members, now: &Members) -> Vec<MemberList> {
    let new_record = |signed: &&_| !said.records().any(|known| known == *signed);
    let records: Vec<_> = now.records().filter(new_record).map(|signed| signed.encode()).collect();
    let new_revocation = |signed: &&_| !said.revocations().any(|known| known == *signed);
    let revocations: Vec<_> =
        now.revocations().filter(new_revocation).map(|signed| signed.encode()).collect();
    let count = records.len().max(revocations.len()).div_ceil(LIST_MAX);
    let part = |all: &[Vec<u8>], number: usize| {
        all.chunks(LIST_MAX).nth(number).map(<[_]>::to_vec).unwrap_or_default()
    };
    (0..count)
        .map(|number| MemberList { records: part(&records, number), revocations: part(&revocations, number) })
        .collect()
}
