//! The fields of what is signed and of tokens: fixed widths, big-endian, one encoding per value.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::control::NAME_MAX;

/// The most addresses of an exit or in a token.
pub const ADDRESSES_MAX: usize = 4;

/// What is wrong with encoded fields.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum FieldError {
    /// The bytes end before the fields do.
    #[error("it ends too early")]
    Truncated,
    /// Bytes follow the fields.
    #[error("bytes follow its end")]
    TooLong,
    /// A version of the format that is not known here.
    #[error("its version {0} is not known here")]
    Version(u8),
    /// A name that is empty, too long, not UTF-8, or holds a slash or control characters.
    #[error("its name cannot be one")]
    Name,
    /// Too many addresses, or one that no node can have.
    #[error("its addresses cannot be right")]
    Address,
}

/// Whether a node may be called so: 1 to [`NAME_MAX`] bytes, no slash, no control characters.
pub(super) fn name_holds(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.contains(|c: char| c == '/' || c.is_control())
}

/// Whether a node may listen there.
pub(super) fn addresses_hold(addresses: &[SocketAddr]) -> bool {
    let holds = |a: &SocketAddr| a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast();
    addresses.len() <= ADDRESSES_MAX && addresses.iter().all(holds)
}

/// Appends a name that [holds](name_holds).
pub(super) fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(u8::try_from(name.len()).expect("a name is short"));
    out.extend_from_slice(name.as_bytes());
}

/// Appends addresses that [hold](addresses_hold): a count, and each as family, address and port.
pub(super) fn put_addresses(out: &mut Vec<u8>, addresses: &[SocketAddr]) {
    out.push(u8::try_from(addresses.len()).expect("addresses are few"));
    for address in addresses {
        match address.ip() {
            IpAddr::V4(v4) => {
                out.push(4);
                out.extend_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                out.push(6);
                out.extend_from_slice(&v6.octets());
            }
        }
        out.extend_from_slice(&address.port().to_be_bytes());
    }
}

/// Takes fields off the front of bytes.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], FieldError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(FieldError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FieldError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(FieldError::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, FieldError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u64(&mut self) -> Result<u64, FieldError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn name(&mut self) -> Result<String, FieldError> {
        let len = usize::from(self.u8()?);
        let name = std::str::from_utf8(self.bytes(len)?).map_err(|_| FieldError::Name)?;
        if name_holds(name) { Ok(name.to_owned()) } else { Err(FieldError::Name) }
    }

    pub(super) fn addresses(&mut self) -> Result<Vec<SocketAddr>, FieldError> {
        let count = usize::from(self.u8()?);
        if count > ADDRESSES_MAX {
            return Err(FieldError::Address);
        }
        let mut addresses = Vec::with_capacity(count);
        for _ in 0..count {
            let ip = match self.u8()? {
                4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
                6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
                _ => return Err(FieldError::Address),
            };
            addresses.push(SocketAddr::new(ip, u16::from_be_bytes(self.array()?)));
        }
        if addresses_hold(&addresses) { Ok(addresses) } else { Err(FieldError::Address) }
    }

    pub(super) fn end(self) -> Result<(), FieldError> {
        if self.0.is_empty() { Ok(()) } else { Err(FieldError::TooLong) }
    }
}
