//! UUID text as LSMT headers hold it.

use std::{fmt, str::FromStr};

/// Characters of a UUID, `8-4-4-4-12`.
const TEXT_LEN: usize = 36;

/// A UUID, kept as its text in upper case.
///
/// It stays text because upstream accepts a hexadecimal digit in the place of a dash, and such a value has no 16-byte
/// form. Version and variant are not checked: writers derive UUIDs from digests.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid([u8; TEXT_LEN]);

/// The text is not a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a UUID is 36 characters, hexadecimal digits with a dash after the 8th, 12th, 16th and 20th")]
pub struct UuidError;

impl Uuid {
    /// What writers put where they have no UUID.
    pub const NULL: Self = Self(*b"00000000-0000-0000-0000-000000000000");

    /// The UUID of these 36 bytes of text, in either case.
    ///
    /// # Errors
    /// When a byte is neither a hexadecimal digit nor a dash in its place.
    pub fn from_text(text: &[u8; TEXT_LEN]) -> Result<Self, UuidError> {
        let plausible = |(at, byte): (usize, &u8)| match byte {
            b'-' => matches!(at, 8 | 13 | 18 | 23),
            other => other.is_ascii_hexdigit(),
        };
        if text.iter().enumerate().all(plausible) {
            Ok(Self(text.map(|byte| byte.to_ascii_uppercase())))
        } else {
            Err(UuidError)
        }
    }

    /// The 36 characters, upper case.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; TEXT_LEN] {
        &self.0
    }

    /// Whether it stands for "none".
    #[must_use]
    pub fn is_null(&self) -> bool {
        *self == Self::NULL
    }
}

impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        text.as_bytes().try_into().map_err(|_| UuidError).and_then(Self::from_text)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| fmt::Write::write_char(f, char::from(*byte)))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::{Uuid, UuidError};

    #[test]
    fn either_case_is_read_and_upper_case_is_shown() {
        let uuid: Uuid = "c02fb491-b4d4-4904-8684-a014d032af78".parse().unwrap();
        assert_eq!(uuid.to_string(), "C02FB491-B4D4-4904-8684-A014D032AF78");
        assert!(!uuid.is_null());
        assert!("00000000-0000-0000-0000-000000000000".parse::<Uuid>().unwrap().is_null());
    }

    #[test]
    fn a_digit_in_a_dash_position_passes_as_it_does_upstream() {
        assert!("0123456789-a-bcd-0000-0000-000000000".parse::<Uuid>().is_err());
        assert!("012345678123401234012340123456789012".parse::<Uuid>().is_ok());
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "c02fb491-b4d4-4904-8684-a014d032af7", "g02fb491-b4d4-4904-8684-a014d032af78"] {
            assert_eq!(text.parse::<Uuid>(), Err(UuidError), "{text}");
        }
    }
}
