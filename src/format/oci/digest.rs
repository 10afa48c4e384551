//! The name of a blob by its content: `sha256:` and 64 hexadecimal digits.

use std::{fmt, str::FromStr};

const PREFIX: &str = "sha256:";
const HASH_BYTES: usize = 32;

/// A SHA-256 digest, shown as `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; HASH_BYTES]);

/// The text is not a SHA-256 digest. It may come from a registry, so it is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is `sha256:` and 64 hexadecimal digits")]
pub struct DigestError;

impl Digest {
    /// The digest whose hash this is.
    #[must_use]
    pub fn from_hash(hash: [u8; HASH_BYTES]) -> Self {
        Self(hash)
    }

    /// The 32 bytes of the hash.
    #[must_use]
    pub fn hash(&self) -> &[u8; HASH_BYTES] {
        &self.0
    }

    /// The 64 lower-case hexadecimal digits, fit for a file name.
    #[must_use]
    pub fn hex(&self) -> String {
        format!("{self:x}")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digits = text.strip_prefix(PREFIX).ok_or(DigestError)?.as_bytes();
        let (pairs, rest) = digits.as_chunks::<2>();
        let pairs: &[[u8; 2]; HASH_BYTES] = pairs.try_into().map_err(|_| DigestError)?;
        let mut hash = [0; HASH_BYTES];
        for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
            *byte = nibble(*high)? << 4 | nibble(*low)?;
        }
        if rest.is_empty() { Ok(Self(hash)) } else { Err(DigestError) }
    }
}

fn nibble(digit: u8) -> Result<u8, DigestError> {
    let value = char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    value.ok_or(DigestError)
}

impl fmt::LowerHex for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{self:x}")
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, DigestError};

    const HEX: &str = "9b559a5f0bc3811f1986fefe1a81935c695827e9e8265cd890d3c25702837ca0";

    #[test]
    fn either_case_is_read_and_lower_case_is_shown() {
        let digest: Digest = format!("sha256:{}", HEX.to_uppercase()).parse().unwrap();
        assert_eq!(digest.to_string(), format!("sha256:{HEX}"));
        assert_eq!(digest.hex(), HEX);
        assert_eq!((digest.hash()[0], digest.hash()[31]), (0x9b, 0xa0));
        assert_eq!(Digest::from_hash(*digest.hash()), digest);
    }

    #[test]
    fn other_text_is_refused() {
        let long = format!("sha256:{HEX}0");
        let odd = format!("sha256:g{}", &HEX[1..]);
        let signed = format!("sha256:+{}", &HEX[1..]);
        let other = format!("sha512:{HEX}{HEX}");
        for text in ["", HEX, "sha256:", &long, &long[..70], &odd, &signed, &other, &format!("SHA256:{HEX}")]
        {
            assert_eq!(text.parse::<Digest>(), Err(DigestError), "{text}");
        }
    }
}
