//! The name of an entry: a blob's digest, and what its bytes are proven by, checked.

use std::{fmt, path::PathBuf};

use sha2::{Digest, Sha256, Sha512, digest::DynDigest};

use super::CacheError;
use crate::source::Proof;

/// Hashes that an entry may be named by, and their digits.
const ALGORITHMS: [(&str, usize); 2] = [("sha256", 64), ("sha512", 128)];

/// Digits of the name of a proof, which follow those of the digest and a full stop.
const PROOF_DIGITS: usize = 64;

/// A digest that is safe as a path. What is proven has entries of its own: nothing gets there that is not.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct BlobKey {
    algorithm: &'static str,
    digits: String,
    /// The digits, and what follows them.
    name: String,
}

impl BlobKey {
    /// That of the blob with this digest, whose bytes are proven by `proof` where there is one.
    pub(super) fn of(digest: &str, proof: Option<&Proof>) -> Result<Self, CacheError> {
        match proof {
            Some(proof) => Self::parse(&format!("{digest}.{}", proof.name())),
            None => Self::parse(digest),
        }
    }

    /// That of an entry, as it is shown and lies on disk.
    pub(super) fn parse(text: &str) -> Result<Self, CacheError> {
        let parsed = text.split_once(':').and_then(|(algorithm, name)| {
            let (algorithm, len) = ALGORITHMS.iter().find(|(known, _)| *known == algorithm)?;
            let hexadecimal = |digits: &str, len| {
                digits.len() == len && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            };
            let (digits, proof) =
                name.split_once('.').map_or((name, None), |(digits, proof)| (digits, Some(proof)));
            let right =
                hexadecimal(digits, *len) && proof.is_none_or(|proof| hexadecimal(proof, PROOF_DIGITS));
            right.then(|| Self { algorithm, digits: digits.to_owned(), name: name.to_owned() })
        });
        parsed.ok_or_else(|| CacheError::Digest(text.chars().take(160).collect()))
    }

    /// Where the entry lies below the cache's folder of blobs.
    pub(super) fn path(&self) -> PathBuf {
        self.steps().iter().collect()
    }

    /// The names of the folders on the way there.
    pub(super) fn steps(&self) -> [&str; 3] {
        [self.algorithm, self.digits.get(..2).unwrap_or_default(), &self.name]
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
        write!(f, "{}:{}", self.algorithm, self.name)
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
            (good.clone(), ["sha256", "0a", &"0a".repeat(32)].iter().collect())
        );
        let proven = format!("{good}.{}", "0b".repeat(32));
        let key = BlobKey::parse(&proven).unwrap();
        assert_eq!((key.to_string(), key.digits()), (proven, &*"0a".repeat(32)));
        for bad in [
            String::new(),
            "sha256:".into(),
            format!("sha256:{}", "0A".repeat(32)),
            format!("sha256:{}", "0a".repeat(31)),
            format!("sha256:../{}", "0".repeat(61)),
            format!("sha512:{}", "0a".repeat(32)),
            format!("md5:{}", "0a".repeat(16)),
            format!("{good}."),
            format!("{good}.{}", "0a".repeat(33)),
            format!("{good}.{}.", "0a".repeat(32)),
        ] {
            assert!(BlobKey::parse(&bad).is_err(), "{bad}");
        }
    }
}
