//! Framing on the stream.

use super::codec::{decode_body, encode_body};
use super::message::Message;
use super::{ControlError, FRAME_MAX};

/// Bytes of the length field.
const LENGTH_LEN: usize = 4;
/// Bytes of the kind.
const KIND_LEN: usize = 2;

/// Appends `message` to `out` as one frame. Lists and texts beyond their bounds are cut, so that the
/// peer never refuses what we send.
pub fn encode(message: &Message, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_LEN]);
    out.extend_from_slice(&message.kind().to_be_bytes());
    encode_body(message, out);
    let length = u32::try_from(out.len() - start - LENGTH_LEN).expect("a bounded message is short");
    out[start..start + LENGTH_LEN].copy_from_slice(&length.to_be_bytes());
}

/// What [`FrameDecoder::next`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// A message.
    Message(Message),
    /// A frame of a kind that is not known here; it was skipped.
    Unknown(u16),
}

/// Cuts the bytes of a control stream into messages.
///
/// Holds at most two frames of the greatest length: push what one read of the stream gave (no more
/// than [`FRAME_MAX`] bytes), then call [`next`](Self::next) until it gives nothing. An error is
/// final: every later call returns it again.
#[derive(Debug)]
pub struct FrameDecoder {
    pub(super) buffer: Vec<u8>,
    /// Bytes at the front of `buffer` whose frames have been taken.
    taken: usize,
    frame_max: usize,
    failed: Option<ControlError>,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// A decoder for frames up to [`FRAME_MAX`].
    pub const fn new() -> Self {
        Self { buffer: Vec::new(), taken: 0, frame_max: FRAME_MAX, failed: None }
    }

    /// Changes the limit of a frame, at most [`FRAME_MAX`]: low for a peer that has not shown who it
    /// is, raised when it has.
    pub fn set_frame_max(&mut self, frame_max: usize) {
        self.frame_max = frame_max.min(FRAME_MAX);
    }

    /// Takes bytes of the stream. A length beyond the limit is noticed here, before its frame is
    /// buffered; [`next`](Self::next) tells.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        self.buffer.drain(..self.taken);
        self.taken = 0;
        if self.buffer.len() + bytes.len() > 2 * (LENGTH_LEN + FRAME_MAX) {
            self.fail(ControlError::Overrun);
            return;
        }
        // The length field may be split over two pushes: look at both parts, buffer nothing yet.
        let mut length = [0; LENGTH_LEN];
        let mut visible = self.buffer.iter().chain(bytes);
        let complete = length.iter_mut().all(|byte| visible.next().map(|&b| *byte = b).is_some());
        if complete && let Err(error) = self.check_length(u32::from_be_bytes(length)) {
            self.fail(error);
            return;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, `None` when more bytes are needed.
    ///
    /// # Errors
    /// Any [`ControlError`]; the stream can not be read on.
    // Not an iterator: an end does not mean that nothing will follow.
    #[expect(clippy::should_implement_trait, reason = "`None` means later, not never")]
    pub fn next(&mut self) -> Result<Option<Decoded>, ControlError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.take_frame().inspect_err(|&error| self.fail(error))
    }

    fn take_frame(&mut self) -> Result<Option<Decoded>, ControlError> {
        let waiting = &self.buffer[self.taken..];
        let Some((length, rest)) = waiting.split_first_chunk::<LENGTH_LEN>() else { return Ok(None) };
        let length = self.check_length(u32::from_be_bytes(*length))?;
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let (kind, body) = frame.split_first_chunk::<KIND_LEN>().expect("the length includes the kind");
        let kind = u16::from_be_bytes(*kind);
        let decoded = decode_body(kind, body)?.map_or(Decoded::Unknown(kind), Decoded::Message);
        self.taken += LENGTH_LEN + length;
        Ok(Some(decoded))
    }

    fn check_length(&self, length: u32) -> Result<usize, ControlError> {
        match usize::try_from(length) {
            Ok(l) if l > self.frame_max => Err(ControlError::TooLong(length)),
            Ok(l) if l < KIND_LEN => Err(ControlError::TooShort(length)),
            Ok(l) => Ok(l),
            Err(_) => Err(ControlError::TooLong(length)),
        }
    }

    fn fail(&mut self, error: ControlError) {
        self.failed = Some(error);
        self.buffer = Vec::new();
        self.taken = 0;
    }
}
