//! The internet checksum, updated in place (RFC 1624).

/// Corrects the checksum at `at..at + 2` of `header` after one 16-bit word under it changed from
/// `old` to `new`: HC' = ~(~HC + ~m + m'), which unlike the older formula never gives a wrong zero.
pub(super) fn replace(header: &mut [u8], at: usize, old: u16, new: u16) {
    let Some(field) = header.get_mut(at..at + 2) else { return };
    let checksum = u16::from_be_bytes([field[0], field[1]]);
    let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    field.copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
