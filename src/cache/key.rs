//! The name of an entry: a blob's digest, checked.

use std::{fmt, path::PathBuf};

use sha2::{Digest, Sha256, Sha512, digest::DynDigest};

use super::CacheError;

/// Hashes that an entry may be named by, and their digits.
const ALGORITHMS: [(&str, usize); 2] = [("sha256", 64), ("sha512", 128)];

/// A digest that is safe as a path.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct BlobKey {
    algorithm: &'static str,
    digits: String,
}

impl BlobKey {
    pub(super) fn parse(digest: &str) -> Result<Self, CacheError> {
        let parsed = digest.split_once(':').and_then(|(name, digits)| {
            let (algorithm, len) = ALGORITHMS.iter().find(|(known, _)| *known == name)?;
            let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let right = digits.len() == *len && digits.bytes().all(hexadecimal);
            right.then(|| Self { algorithm, digits: digits.to_owned() })
        });
        parsed.ok_or_else(|| CacheError::Digest(digest.chars().take(160).collect()))
    }

    /// Where the entry lies below the cache's folder of blobs.
    pub(super) fn path(&self) -> PathBuf {
        self.steps().iter().collect()
    }

    /// The names of the folders on the way there.
    pub(super) fn steps(&self) -> [&str; 3] {
        [self.algorithm, self.digits.get(..2).unwrap_or_default(), &self.digits]
    }

    /// A hash of the key, of one length for all algorithms.
    pub(super) fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.to_string()).into()
    }

    /// The hash that the blob is named by, in hexadecimal digits.
    pub(super) fn digits(&self) -> &str {
        &self.digits
    }

    /// What computes that hash.
    pub(super) fn hasher(&self) -> Box<dyn DynDigest> {
        match self.algorithm {
            "sha512" => Box::new(Sha512::new()),
            _ => Box::new(Sha256::new()),
        }
    }

    /// The algorithms that have folders of their own.
    pub(super) fn algorithms() -> impl Iterator<Item = &'static str> {
        ALGORITHMS.iter().map(|(name, _)| *name)
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.digits)
    }
}

impl fmt::Debug for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_digest_names_an_entry() {
        let good = format!("sha256:{}", "0a".repeat(32));
        let key = BlobKey::parse(&good).unwrap();
        assert_eq!(
            (key.to_string(), key.path()),
            (good, ["sha256", "0a", &"0a".repeat(32)].iter().collect())
        );
        for bad in [
            String::new(),
            "sha256:".into(),
            format!("sha256:{}", "0A".repeat(32)),
            format!("sha256:{}", "0a".repeat(31)),
            format!("sha256:../{}", "0".repeat(61)),
            format!("sha512:{}", "0a".repeat(32)),
            format!("md5:{}", "0a".repeat(16)),
        ] {
            assert!(BlobKey::parse(&bad).is_err(), "{bad}");
        }
    }
}
