//! The digest of a blob or manifest as registries write it, checked.

use std::{fmt, fmt::Write as _, str::FromStr};

use sha2::{Digest as _, Sha256, Sha512};

/// `sha256:` or `sha512:` and the hash in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

/// Why a text is not a digest that this program can check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest {0:?} is not sha256 or sha512 in lower-case hexadecimal")]
pub struct DigestError(String);

/// The longest digest: `sha512:` and 128 hexadecimal digits.
const MAX_DIGEST_BYTES: usize = 135;

impl Digest {
    /// The SHA-256 digest of `bytes`.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        Self(format!("sha256:{}", hex(&Sha256::digest(bytes))))
    }

    /// The digest of `bytes` by the same algorithm as this one.
    #[must_use]
    pub fn of_same_kind(&self, bytes: &[u8]) -> Self {
        if self.0.starts_with("sha512:") {
            Self(format!("sha512:{}", hex(&Sha512::digest(bytes))))
        } else {
            Self::sha256(bytes)
        }
    }

    /// The whole text, algorithm included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digits = match text.split_once(':') {
            Some(("sha256", digits)) if digits.len() == 64 => digits,
            Some(("sha512", digits)) if digits.len() == 128 => digits,
            _ => return Err(refuse(text)),
        };
        if digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text.to_owned()))
        } else {
            Err(refuse(text))
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn refuse(text: &str) -> DigestError {
    DigestError(text.chars().take(MAX_DIGEST_BYTES).collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_checkable_digests_are_taken() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest: Digest = empty.parse().unwrap();
        assert_eq!(digest, Digest::sha256(b""));
        assert_eq!(digest.of_same_kind(b""), digest);
        let upper = empty.to_uppercase();
        for bad in ["", "sha256:", "sha256:../../x", "md5:abc", &upper, &empty[..70]] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
