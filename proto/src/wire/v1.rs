//! Format v1: the 38-byte header and CRC-32, for networks that are trusted or encrypted already.
//!
//! It protects against accidents only, not against people: off unless configured on both ends.

use super::v2::FrameType;
use super::{Reader, Refusal};

/// First byte of every v1 packet.
pub const VERSION: u8 = 1;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 38;
/// Where the CRC-32 lies in the header.
const CHECKSUM_AT: usize = 34;

/// The header's fields, in the order of the wire. All are big-endian.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct V1Header {
    /// What the payload is: byte 1.
    pub frame: FrameType,
    /// The flag bits of [`Flags`](super::v2::Flags) in the low six bits: bytes 2..4.
    pub flags: u16,
    /// Session id: bytes 4..12.
    pub session: u64,
    /// Sequence number: bytes 12..20.
    pub sequence: u64,
    /// The sender's clock in nanoseconds, of any epoch: bytes 20..28.
    pub timestamp: u64,
    /// The WAN (our path id): byte 28.
    pub wan: u8,
    /// 0 to 255, higher is more urgent: byte 29.
    pub priority: u8,
    /// Payload bytes: bytes 30..34. An encoder takes the payload's own length instead.
    pub data_len: u32,
}

/// CRC-32 (IEEE 802.3) over the header with the checksum field zero, then the payload.
fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..CHECKSUM_AT]);
    crc.update(&[0; HEADER_LEN - CHECKSUM_AT]);
    crc.update(payload);
    crc.finalize()
}

impl V1Header {
    /// Writes the header into the first [`HEADER_LEN`] bytes of `packet`, whose other bytes are the
    /// payload already.
    ///
    /// # Panics
    /// When `packet` is shorter than the header or its payload exceeds `u32::MAX` bytes.
    pub fn encode(&self, packet: &mut [u8]) {
        let (header, payload) =
            packet.split_first_chunk_mut::<HEADER_LEN>().expect("the caller left room for the header");
        let data_len = u32::try_from(payload.len()).expect("a UDP payload is shorter than 4 GiB");
        header[0] = VERSION;
        header[1] = self.frame.code();
        header[2..4].copy_from_slice(&self.flags.to_be_bytes());
        header[4..12].copy_from_slice(&self.session.to_be_bytes());
        header[12..20].copy_from_slice(&self.sequence.to_be_bytes());
        header[20..28].copy_from_slice(&self.timestamp.to_be_bytes());
        header[28] = self.wan;
        header[29] = self.priority;
        header[30..34].copy_from_slice(&data_len.to_be_bytes());
        let crc = checksum(header, payload);
        header[CHECKSUM_AT..].copy_from_slice(&crc.to_be_bytes());
    }

    /// Appends the header and `payload` to `out`.
    pub fn encode_into(&self, payload: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + HEADER_LEN, 0);
        out.extend_from_slice(payload);
        self.encode(&mut out[start..]);
    }

    /// Reads one packet: header and payload.
    ///
    /// # Errors
    /// [`Truncated`](Refusal::Truncated), [`BadVersion`](Refusal::BadVersion),
    /// [`BadLength`](Refusal::BadLength) when the datagram is not exactly header and payload,
    /// [`BadChecksum`](Refusal::BadChecksum), [`UnknownType`](Refusal::UnknownType).
    pub fn decode(datagram: &[u8]) -> Result<(Self, &[u8]), Refusal> {
        let (header, payload) = datagram.split_at_checked(HEADER_LEN).ok_or(Refusal::Truncated)?;
        let mut r = Reader(header);
        if r.u8()? != VERSION {
            return Err(Refusal::BadVersion);
        }
        let frame = r.u8()?;
        let flags = r.u16()?;
        let session = u64::from_be_bytes(r.array()?);
        let sequence = u64::from_be_bytes(r.array()?);
        let timestamp = u64::from_be_bytes(r.array()?);
        let wan = r.u8()?;
        let priority = r.u8()?;
        let data_len = r.u32()?;
        if usize::try_from(data_len) != Ok(payload.len()) {
            return Err(Refusal::BadLength);
        }
        if r.u32()? != checksum(header, payload) {
            return Err(Refusal::BadChecksum);
        }
        // After the checksum: a type that damage made up is damage, not a newer peer.
        let frame = FrameType::from_code(frame)?;
        Ok((Self { frame, flags, session, sequence, timestamp, wan, priority, data_len }, payload))
    }
}
