//! Numbers and times as Go reads them, which is more than their writers are told to write.

use super::Timestamp;

/// A field of a header: the two's complement of its bits after a first 1, or octal digits.
pub(super) fn field(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => binary(field, if first & 0x40 == 0 { 0 } else { 0xff }),
        _ => octal(field)?.try_into().ok(),
    }
}

/// `inversion` is 0xff for a negative number, for which -a - 1 = !a.
fn binary(field: &[u8], inversion: u8) -> Option<i64> {
    let mut number = 0_u64;
    for (at, byte) in field.iter().enumerate() {
        let byte = byte ^ inversion;
        let byte = if at == 0 { byte & 0x7f } else { byte };
        number = number.checked_mul(0x100)? | u64::from(byte);
    }
    let number = i64::try_from(number).ok()?;
    Some(if inversion == 0 { number } else { !number })
}

/// Digits between any spaces and NULs, up to the first NUL; no digits are zero.
pub(super) fn octal(field: &[u8]) -> Option<u64> {
    let is_filler = |byte: &u8| matches!(*byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !is_filler(byte)) else { return Some(0) };
    let end = field.iter().rposition(|byte| !is_filler(byte))?;
    let digits = text(field.get(start..=end)?);
    // The library would take a sign.
    if digits.iter().all(u8::is_ascii_digit) {
        u64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
    } else {
        None
    }
}

/// Digits with a sign or without.
pub(super) fn decimal(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Seconds with a sign or without, and a fraction, of which nanoseconds count.
pub(super) fn time(value: &[u8]) -> Option<Timestamp> {
    let (seconds, fraction) = match value.iter().position(|byte| *byte == b'.') {
        Some(point) => (value.get(..point)?, value.get(point..)?.split_first()?.1),
        None => (value, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let digit = |byte: &u8| u32::from(byte.saturating_sub(b'0'));
    let nanoseconds =
        digits.fold(0_u32, |number, byte| number.saturating_mul(10).saturating_add(digit(byte)));
    let whole = decimal(seconds)?;
    if seconds.starts_with(b"-") && nanoseconds > 0 {
        // Time runs up from the second below.
        let nanoseconds = 1_000_000_000_u32.checked_sub(nanoseconds)?;
        return Some(Timestamp { seconds: whole.checked_sub(1)?, nanoseconds });
    }
    Some(Timestamp { seconds: whole, nanoseconds })
}

/// The bytes before the first NUL, or all.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}
