//! The one place where bincode is used.
//!
//! Without a limit bincode allocates whatever a length in the message says, and a message of twelve
//! bytes ends the process. So: always the limit, never a trailing byte, and bounds checked again on
//! what came out.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::lan::{PeerBeat, UplinkAnnounce};
use super::lease::{LeaseAccept, LeaseEnd, LeaseRefuse, LeaseRequest, PathLimit, RateGrants};
use super::message::{
    Bounded, Bye, Hello, JoinAccept, JoinRefuse, JoinRequest, MemberList, Message, PathAccept, PathJoin,
    PathRefuse,
};
use super::{ControlError, FRAME_MAX};

type Config = Configuration<LittleEndian, Varint, Limit<FRAME_MAX>>;

const CONFIG: Config = bincode::config::standard().with_limit::<FRAME_MAX>();

/// Appends the body of `message`; fields beyond their bounds are cut.
pub(super) fn encode_body(message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Hello(hello) | Message::HelloAck(hello) => encode_one(hello, out),
        Message::PathJoin(join) => encode_one(join, out),
        Message::PathAccept(accept) => encode_one(accept, out),
        Message::PathRefuse(refuse) => encode_one(refuse, out),
        Message::Bye(bye) => encode_one(bye, out),
        Message::PeerBeat(beat) => encode_one(beat, out),
        Message::UplinkAnnounce(announce) => encode_one(announce, out),
        Message::LeaseRequest(request) => encode_one(request, out),
        Message::LeaseAccept(accept) => encode_one(accept, out),
        Message::LeaseRefuse(refuse) => encode_one(refuse, out),
        Message::LeaseEnd(end) => encode_one(end, out),
        Message::RateGrants(grants) => encode_one(grants, out),
        Message::PathLimit(limit) => encode_one(limit, out),
        Message::JoinRequest(request) => encode_one(request, out),
        Message::JoinAccept(accept) => encode_one(accept, out),
        Message::JoinRefuse(refuse) => encode_one(refuse, out),
        Message::MemberList(list) => encode_one(list, out),
    }
}

fn encode_one<T: Serialize + Bounded + Clone>(value: &T, out: &mut Vec<u8>) {
    let cut;
    let value = if value.holds() {
        value
    } else {
        cut = {
            let mut copy = value.clone();
            copy.cut();
            copy
        };
        &cut
    };
    bincode::serde::encode_into_std_write(value, out, CONFIG)
        .expect("a bounded message encodes, and a vector takes every byte");
}

/// Reads a body; `None` when the kind is not known.
pub(super) fn decode_body(kind: u16, body: &[u8]) -> Result<Option<Message>, ControlError> {
    Ok(Some(match kind {
        1 => Message::Hello(decode_one::<Hello>(kind, body)?),
        2 => Message::HelloAck(decode_one::<Hello>(kind, body)?),
        3 => Message::PathJoin(decode_one::<PathJoin>(kind, body)?),
        4 => Message::PathAccept(decode_one::<PathAccept>(kind, body)?),
        5 => Message::PathRefuse(decode_one::<PathRefuse>(kind, body)?),
        6 => Message::Bye(decode_one::<Bye>(kind, body)?),
        16 => Message::PeerBeat(decode_one::<PeerBeat>(kind, body)?),
        17 => Message::UplinkAnnounce(decode_one::<UplinkAnnounce>(kind, body)?),
        32 => Message::LeaseRequest(decode_one::<LeaseRequest>(kind, body)?),
        33 => Message::LeaseAccept(decode_one::<LeaseAccept>(kind, body)?),
        34 => Message::LeaseRefuse(decode_one::<LeaseRefuse>(kind, body)?),
        35 => Message::LeaseEnd(decode_one::<LeaseEnd>(kind, body)?),
        36 => Message::RateGrants(decode_one::<RateGrants>(kind, body)?),
        37 => Message::PathLimit(decode_one::<PathLimit>(kind, body)?),
        48 => Message::JoinRequest(decode_one::<JoinRequest>(kind, body)?),
        49 => Message::JoinAccept(decode_one::<JoinAccept>(kind, body)?),
        50 => Message::JoinRefuse(decode_one::<JoinRefuse>(kind, body)?),
        51 => Message::MemberList(decode_one::<MemberList>(kind, body)?),
        _ => return Ok(None),
    }))
}

fn decode_one<T: DeserializeOwned + Bounded>(kind: u16, body: &[u8]) -> Result<T, ControlError> {
    let (value, used): (T, usize) =
        bincode::serde::decode_from_slice(body, CONFIG).map_err(|_| ControlError::Malformed(kind))?;
    if used != body.len() {
        return Err(ControlError::Malformed(kind));
    }
    if value.holds() { Ok(value) } else { Err(ControlError::OutOfBounds(kind)) }
}
