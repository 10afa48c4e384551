//! Parser of `Content-Range` (RFC 9110, section 14.4), the only proof of which bytes a body holds.

use std::str::FromStr;

/// `bytes start-last/total` of a 206 answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    /// First byte of the body in the blob.
    pub start: u64,
    /// Last byte of the body in the blob, inclusive; at least `start`.
    pub last: u64,
    /// Size of the blob in bytes, above `last`. A server that does not say it cannot be checked and is refused.
    pub total: u64,
}

/// A `Content-Range` that is not `bytes start-last/total` with `start <= last < total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Content-Range is not \"bytes start-last/total\" with start <= last < total")]
pub struct ContentRangeError;

impl FromStr for ContentRange {
    type Err = ContentRangeError;

    fn from_str(text: &str) -> Result<Self, ContentRangeError> {
        let (unit, rest) = text.trim().split_once(' ').ok_or(ContentRangeError)?;
        let (range, total) = rest.trim_start().split_once('/').ok_or(ContentRangeError)?;
        let (start, last) = range.split_once('-').ok_or(ContentRangeError)?;
        let parsed = Self { start: number(start)?, last: number(last)?, total: number(total)? };
        if unit.eq_ignore_ascii_case("bytes") && parsed.start <= parsed.last && parsed.last < parsed.total {
            Ok(parsed)
        } else {
            Err(ContentRangeError)
        }
    }
}

/// Digits only: `u64::from_str` alone would also take a sign.
fn number(text: &str) -> Result<u64, ContentRangeError> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_err(|_| ContentRangeError)
    } else {
        Err(ContentRangeError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_complete_and_ordered_range_is_read() {
        let parsed: ContentRange = "bytes 0-9/10".parse().unwrap();
        assert_eq!(parsed, ContentRange { start: 0, last: 9, total: 10 });
        for bad in [
            "",
            "bytes",
            "bytes 0-9",
            "bytes 0-9/*",
            "bytes */10",
            "bytes 5-4/10",
            "bytes 0-10/10",
            "bytes +0-9/10",
            "bytes -1-9/10",
            "items 0-9/10",
            "bytes 0-18446744073709551616/18446744073709551617",
            "bytes 0-9/10, bytes 0-9/10",
        ] {
            assert!(bad.parse::<ContentRange>().is_err(), "{bad}");
        }
    }
}
