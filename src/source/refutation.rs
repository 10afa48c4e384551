//! Word that a blob was not what its digest says, for whoever has made something of its bytes.

use std::sync::OnceLock;

/// Raised once, and then stays. Asking is a look at a word of memory.
#[derive(Debug, Default)]
pub struct Refutation(OnceLock<String>);

impl Refutation {
    /// Says that the bytes of `blob`, a digest, were wrong.
    pub fn raise(&self, blob: &str) {
        self.0.get_or_init(|| blob.to_owned());
    }

    /// The digest of the blob whose bytes were wrong, if one was.
    #[must_use]
    #[inline]
    pub fn blob(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}
