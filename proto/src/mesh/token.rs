//! The text that a person carries from an inviter to a node that is to join.
//!
//! ```text
//! text    "mwb1-" | base32 (RFC 4648, lower case, no padding) of
//! token   version 1 | root public key 32 | invite id 8 | secret 16 | inviter node id 32 | addresses | checksum 4
//! ```
//!
//! The addresses are encoded as in a record, at least one; the checksum is the beginning of SHA-256 of
//! everything before it. It finds what copying breaks; whether the token is honest the inviter's proof
//! tells.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use aws_lc_rs::digest;

use super::codec::{ADDRESSES_MAX, FieldError, Fields, addresses_hold, put_addresses};
use super::{MeshId, NodeId, RootPublicKey};

const PREFIX: &str = "mwb1-";
const VERSION: u8 = 1;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Bytes of an invite's id.
pub const INVITE_ID_LEN: usize = 8;
/// Bytes of an invite's secret.
pub const SECRET_LEN: usize = 16;
const CHECKSUM_LEN: usize = 4;
const BYTES_MAX: usize = 1 + 32 + INVITE_ID_LEN + SECRET_LEN + 32 + 1 + ADDRESSES_MAX * 19 + CHECKSUM_LEN;
/// The most characters of a token's text.
pub const TOKEN_TEXT_MAX: usize = PREFIX.len() + (BYTES_MAX * 8).div_ceil(5);

/// An invitation as its bearer has it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The root of the mesh.
    pub root: RootPublicKey,
    /// Which invite it is.
    pub invite: [u8; INVITE_ID_LEN],
    /// Who holds it may join.
    pub secret: [u8; SECRET_LEN],
    /// The node to join through.
    pub inviter: NodeId,
    /// Where it can be reached; 1 to [`ADDRESSES_MAX`].
    pub addresses: Vec<SocketAddr>,
}

/// What is wrong with the text of a token.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TokenError {
    /// There is nothing in it.
    #[error("the token is empty")]
    Empty,
    /// It does not begin as tokens do.
    #[error("this is not a token: a token begins with {PREFIX}")]
    NotAToken,
    /// It begins as a token of another version.
    #[error("the token is of version {0}, which this program does not know: it may be too old")]
    Version(u32),
    /// A character that no token has; the place counts from 1 without white space.
    #[error("the token is damaged: {character:?} at place {place} does not belong in a token")]
    Character {
        /// The character.
        character: char,
        /// Where.
        place: usize,
    },
    /// It is too long.
    #[error("the token is damaged: something follows its end")]
    TooLong,
    /// It is too short.
    #[error("the token is damaged: its end is missing")]
    Truncated,
    /// It was changed.
    #[error("the token is damaged: its checksum is wrong; copy it again, whole")]
    Checksum,
    /// The checksum is right and the contents are not.
    #[error("the token was made wrong: {0}")]
    Malformed(FieldError),
}

impl Token {
    /// The mesh it invites to.
    pub fn mesh(&self) -> MeshId {
        self.root.mesh()
    }

    /// The text, or what is wrong with the addresses.
    ///
    /// # Errors
    /// [`FieldError::Address`] when there is none, too many, or one that no node can have.
    pub fn encode(&self) -> Result<String, FieldError> {
        if self.addresses.is_empty() || !addresses_hold(&self.addresses) {
            return Err(FieldError::Address);
        }
        let mut bytes = Vec::with_capacity(BYTES_MAX);
        bytes.push(VERSION);
        bytes.extend_from_slice(self.root.as_bytes());
        bytes.extend_from_slice(&self.invite);
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(self.inviter.as_bytes());
        put_addresses(&mut bytes, &self.addresses);
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        Ok(format!("{PREFIX}{}", to_base32(&bytes)))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// White space is ignored, wherever it is: mail programs wrap lines. So is the case of letters.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // What cannot be a token is not copied.
        let text: String =
            text.chars().filter(|c| !c.is_whitespace()).take(TOKEN_TEXT_MAX + 1).collect::<String>();
        let text = text.to_ascii_lowercase();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        let body = match text.strip_prefix(PREFIX) {
            Some(body) => body,
            None => return Err(other_version(&text)),
        };
        let (bytes, whole) = from_base32(body)?;
        if text.chars().count() > TOKEN_TEXT_MAX {
            return Err(TokenError::TooLong);
        }
        let least = 1 + 32 + INVITE_ID_LEN + SECRET_LEN + 32 + 1 + CHECKSUM_LEN;
        if bytes.len() < least {
            return Err(TokenError::Truncated);
        }
        let (body, sum) = bytes.split_at(bytes.len() - CHECKSUM_LEN);
        if !whole || checksum(body) != sum {
            return Err(TokenError::Checksum);
        }
        decode(body).map_err(TokenError::Malformed)
    }
}

fn decode(bytes: &[u8]) -> Result<Token, FieldError> {
    let mut fields = Fields(bytes);
    match fields.u8()? {
        VERSION => {}
        other => return Err(FieldError::Version(other)),
    }
    let root = RootPublicKey::from_bytes(fields.array()?);
    let (invite, secret) = (fields.array()?, fields.array()?);
    let inviter = NodeId::from_bytes(fields.array()?);
    let addresses = fields.addresses()?;
    fields.end()?;
    if addresses.is_empty() {
        return Err(FieldError::Address);
    }
    Ok(Token { root, invite, secret, inviter, addresses })
}

fn other_version(text: &str) -> TokenError {
    let version = text.strip_prefix("mwb").and_then(|rest| rest.split_once('-'));
    match version.and_then(|(number, _)| number.parse().ok()) {
        Some(number) => TokenError::Version(number),
        None => TokenError::NotAToken,
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let hash = digest::digest(&digest::SHA256, bytes);
    let (sum, _) = hash.as_ref().split_first_chunk().expect("SHA-256 has 32 bytes");
    *sum
}

fn to_base32(bytes: &[u8]) -> String {
    let mut out = String::with_capacity((bytes.len() * 8).div_ceil(5));
    let (mut held, mut bits) = (0_u32, 0);
    for &byte in bytes {
        held = held << 8 | u32::from(byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(char::from(ALPHABET[(held >> bits) as usize & 31]));
        }
        held &= (1 << bits) - 1;
    }
    if bits > 0 {
        out.push(char::from(ALPHABET[(held << (5 - bits)) as usize & 31]));
    }
    out
}

/// The bytes, and whether they end as an encoding does: with less than a character left over, of zero
/// bits, so that one token has one text.
fn from_base32(text: &str) -> Result<(Vec<u8>, bool), TokenError> {
    let mut out = Vec::with_capacity(text.len() * 5 / 8);
    let (mut held, mut bits) = (0_u32, 0);
    for (at, character) in text.chars().enumerate() {
        let value = u8::try_from(character).ok().and_then(|c| ALPHABET.iter().position(|&a| a == c));
        let Some(value) = value else {
            return Err(TokenError::Character { character, place: PREFIX.len() + at + 1 });
        };
        held = held << 5 | u32::try_from(value).expect("below 32");
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from(held >> bits).expect("the bits above were taken"));
            held &= (1 << bits) - 1;
        }
    }
    Ok((out, bits < 5 && held == 0))
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(to {} by {:?} at {:?})", self.mesh(), self.inviter, self.addresses)
    }
}
