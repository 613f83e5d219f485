//! Sealing of v2 datagrams in place, and opening of them into another buffer.
//!
//! A [`Sealer`] and an [`Opener`] per path and direction live in the link drivers. Plain frames come
//! from the bond's sender; opened ones go to the bond's receiver. The key schedule is in
//! `proto/README.md`, section "Keys".
//!
//! No key and nonce meet twice: the nonce is the path sequence, which only rises, and keys come from
//! fresh random bytes of both ends each time a path joins. Keys move along a chain of *epochs*; the
//! parity of the epoch rides in the clear header, and the opener follows it only after a datagram
//! opened under the new key.

mod keys;
mod replay;

#[cfg(test)]
mod tests;

use std::fmt;

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};

pub use keys::{EXPORTER_LABEL, PathSecrets, Role, Secret, Suite, derive};
pub use replay::ReplayWindow;

use crate::wire::Refusal;
use crate::wire::v2::{CLEAR_LEN, Clear, PATH_SEQ_AT, PHASE_BIT, TAG_LEN};
use keys::Chain;

/// Packets sealed under one key before the sealer moves to the next. RFC 9001 appendix B.1.1 allows
/// AES-GCM 2^28 packets of up to 2 KiB per key; this is 17 s at a million packets per second.
pub const EPOCH_PACKETS: u64 = 1 << 24;

/// How many epochs a sender may run ahead of what its peer saw. With a time ratchet every hour this
/// is a path that passes nothing one way for 16 hours; such a path is joined anew.
const EPOCHS_AHEAD: u64 = 16;

/// Packets between two searches for a lost epoch, so that forgeries cost little more than one opening.
const SEARCH_INTERVAL: u32 = 256;

fn nonce(path_seq: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&path_seq.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Seals the datagrams of one path in one direction.
pub struct Sealer {
    chain: Chain,
    key: LessSafeKey,
    epoch: u64,
    /// Datagrams sealed under `key`.
    sealed: u64,
    epoch_packets: u64,
    last: Option<u64>,
}

impl Sealer {
    /// A sealer at epoch 0 of `secret`. A secret goes into one sealer only.
    pub fn new(secret: Secret, suite: Suite) -> Self {
        Self::with_epoch_packets(secret, suite, EPOCH_PACKETS)
    }

    fn with_epoch_packets(secret: Secret, suite: Suite, epoch_packets: u64) -> Self {
        let mut chain = Chain::new(secret, suite);
        let key = chain.next_key();
        Self { chain, key, epoch: 0, sealed: 0, epoch_packets, last: None }
    }

    /// Seals `datagram` = clear header ([`CLEAR_LEN`]) | plain body | [`TAG_LEN`] bytes of room.
    ///
    /// Writes the key phase and the path sequence into the clear header, encrypts the body and puts
    /// the tag behind it. Moves to the next key first when this one is used up.
    ///
    /// # Panics
    /// When `path_seq` is not above every one sealed before (the same key and nonce twice would give
    /// the key away: better no packet), or the datagram has no room for header and tag.
    pub fn seal(&mut self, path_seq: u64, datagram: &mut [u8]) {
        assert!(self.last.is_none_or(|last| path_seq > last), "path sequences only rise");
        assert!(datagram.len() >= CLEAR_LEN + TAG_LEN, "a datagram has room for header and tag");
        self.last = Some(path_seq);
        if self.sealed >= self.epoch_packets {
            self.ratchet();
        }
        self.sealed += 1;
        let phase = if self.epoch & 1 == 1 { PHASE_BIT } else { 0 };
        datagram[0] = datagram[0] & !PHASE_BIT | phase;
        datagram[PATH_SEQ_AT..CLEAR_LEN].copy_from_slice(&(path_seq as u32).to_be_bytes());
        let (clear, rest) = datagram.split_at_mut(CLEAR_LEN);
        let (body, room) = rest.split_at_mut(rest.len() - TAG_LEN);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(path_seq), Aad::from(clear), body)
            .expect("a datagram is far below the cipher's length limit");
        room.copy_from_slice(tag.as_ref());
    }

    /// Moves to the next key and erases the one in use; for the shell to call every hour. Does
    /// nothing when the present key has not sealed anything: a silent path does not run ahead.
    pub fn ratchet(&mut self) {
        if self.sealed == 0 {
            return;
        }
        self.key = self.chain.next_key();
        self.epoch += 1;
        self.sealed = 0;
    }

    /// How many keys have been used up.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The highest path sequence sealed so far; the next one must be above it.
    pub const fn last_path_seq(&self) -> Option<u64> {
        self.last
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("epoch", &self.epoch).field("last", &self.last).finish()
    }
}

/// What [`Opener::open`] says about an authentic datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The clear header, now authenticated.
    pub clear: Clear,
    /// The whole path sequence.
    pub path_seq: u64,
    /// Length of the body, which lies at the front of the buffer it was opened into.
    pub len: usize,
    /// Whether this is the highest path sequence so far: only such a datagram may move the path to
    /// the address it came from.
    pub newest: bool,
}

/// Opens the datagrams of one path in one direction.
///
/// ```text
///  phase as the current epoch ---------------------------------> current key
///  other phase, above all that was accepted -------------------> next key; opened: the epoch moves
///  other phase, below the first of the current epoch ----------> previous key, while it is kept
/// ```
pub struct Opener {
    /// Stands at `epoch + 2`.
    chain: Chain,
    epoch: u64,
    current: LessSafeKey,
    /// Made ahead, so that a forged phase bit costs no key derivation and shows none in its timing.
    next: LessSafeKey,
    /// For packets that the network reordered around a change of keys.
    previous: Option<LessSafeKey>,
    /// Least path sequence opened with the current key.
    first: Option<u64>,
    window: ReplayWindow,
    search: Search,
}

/// Leave to look for an epoch further ahead.
struct Search {
    /// Packets since the last search, saturating.
    packets: u32,
    /// Whether the last packet did not open.
    failed: bool,
}

/// The parts of a sealed datagram, and the room for what is in it.
struct Sealed<'a> {
    clear: &'a [u8],
    body: &'a [u8],
    tag: &'a [u8],
    plain: &'a mut [u8],
}

impl Sealed<'_> {
    fn open(&mut self, key: &LessSafeKey, path_seq: u64) -> bool {
        let aad = Aad::from(self.clear);
        key.open_separate_gather(nonce(path_seq), aad, self.body, self.tag, self.plain).is_ok()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Previous,
    Current,
    Next,
}

impl Opener {
    /// An opener at epoch 0 of `secret` that has seen nothing. The first path sequence may be any
    /// below 2^32.
    pub fn new(secret: Secret, suite: Suite) -> Self {
        let mut chain = Chain::new(secret, suite);
        let current = chain.next_key();
        let next = chain.next_key();
        Self {
            chain,
            epoch: 0,
            current,
            next,
            previous: None,
            first: None,
            window: ReplayWindow::default(),
            search: Search { packets: SEARCH_INTERVAL, failed: false },
        }
    }

    /// Opens `datagram` into the front of `plain`, which has room for its body ([`CLEAR_LEN`] and [`TAG_LEN`] less than the
    /// datagram). Only an authentic one changes the window or the keys. After [`Refusal::NotAuthentic`] there is garbage
    /// in `plain`.
    ///
    /// # Errors
    /// Those of [`Clear::decode`], [`Refusal::Truncated`], [`Refusal::BadLength`] when there is not enough room,
    /// [`Refusal::TooOld`], [`Refusal::Replayed`], [`Refusal::NotAuthentic`].
    pub fn open(&mut self, datagram: &[u8], plain: &mut [u8]) -> Result<Opened, Refusal> {
        let clear = Clear::decode(datagram)?;
        let (header, sealed) = datagram.split_at(CLEAR_LEN);
        let len = sealed.len().checked_sub(TAG_LEN).ok_or(Refusal::Truncated)?;
        let (body, tag) = sealed.split_at(len);
        let plain = plain.get_mut(..len).ok_or(Refusal::BadLength)?;
        let mut sealed = Sealed { clear: header, body, tag, plain };
        let path_seq = self.window.rebuild(clear.path_seq_low)?;
        self.window.check(path_seq)?;

        let ahead = self.window.highest().is_none_or(|highest| path_seq > highest);
        let searching = ahead && self.search.begin();
        let opened = self.open_with_key(&clear, path_seq, ahead, &mut sealed)
            || searching && self.open_ahead(&clear, path_seq, &mut sealed);
        self.search.failed = !opened;
        if !opened {
            return Err(Refusal::NotAuthentic);
        }
        let newest = self.window.accept(path_seq);
        self.forget();
        Ok(Opened { clear, path_seq, len, newest })
    }

    /// The epoch of the newest datagram.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The highest path sequence accepted so far.
    pub const fn highest(&self) -> Option<u64> {
        self.window.highest()
    }

    /// Tries the one key that phase and path sequence point at.
    fn open_with_key(&mut self, clear: &Clear, path_seq: u64, ahead: bool, sealed: &mut Sealed<'_>) -> bool {
        let which = if clear.key_phase == (self.epoch & 1 == 1) {
            Which::Current
        } else if ahead {
            Which::Next
        } else if self.first.is_some_and(|first| path_seq < first) {
            Which::Previous
        } else {
            // A sender's epochs rise with its sequences, so no key can fit.
            return false;
        };
        let key = match which {
            Which::Current => &self.current,
            Which::Next => &self.next,
            Which::Previous => match &self.previous {
                Some(previous) => previous,
                None => return false,
            },
        };
        if !sealed.open(key, path_seq) {
            return false;
        }
        match which {
            Which::Current => {
                self.first = Some(self.first.map_or(path_seq, |first| first.min(path_seq)));
            }
            Which::Next => {
                let made_ahead = self.chain.next_key();
                let opened_with = std::mem::replace(&mut self.next, made_ahead);
                self.previous = Some(std::mem::replace(&mut self.current, opened_with));
                self.epoch += 1;
                self.first = Some(path_seq);
            }
            Which::Previous => {}
        }
        true
    }

    /// Tries the epochs after the next one: the peer's packets of whole epochs may have been lost on
    /// a path that was dead one way.
    fn open_ahead(&mut self, clear: &Clear, path_seq: u64, sealed: &mut Sealed<'_>) -> bool {
        let mut chain = self.chain.clone();
        let mut before: Option<LessSafeKey> = None;
        let mut found = false;
        for offset in 2..=EPOCHS_AHEAD {
            let key = chain.next_key();
            let epoch = self.epoch + offset;
            if clear.key_phase == (epoch & 1 == 1) && sealed.open(&key, path_seq) {
                let made_ahead = chain.next_key();
                let next = std::mem::replace(&mut self.next, made_ahead);
                self.previous = Some(before.unwrap_or(next));
                self.current = key;
                self.chain = chain;
                self.epoch = epoch;
                self.first = Some(path_seq);
                found = true;
                break;
            }
            before = Some(key);
        }
        found
    }

    /// Erases the previous key once everything sealed with it lies below the replay window.
    fn forget(&mut self) {
        if let (Some(_), Some(first), Some(highest)) = (&self.previous, self.first, self.window.highest())
            && highest.saturating_sub(first) >= ReplayWindow::WIDTH
        {
            self.previous = None;
        }
    }
}

impl Search {
    /// Whether this packet may be searched for, should it not open.
    fn begin(&mut self) -> bool {
        self.packets = self.packets.saturating_add(1);
        let may = self.failed && self.packets > SEARCH_INTERVAL;
        if may {
            self.packets = 0;
        }
        may
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("epoch", &self.epoch).field("highest", &self.highest()).finish()
    }
}
