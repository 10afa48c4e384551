//! Word that a blob was not what its digest says, for whoever has made something of its bytes.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, Ordering},
};

/// Counts how often. What was made of the bytes of one generation is not to be used in the next. Asking is a look at a word of
/// memory.
#[derive(Debug, Default)]
pub struct Refutation {
    generation: AtomicU32,
    blob: OnceLock<String>,
    /// Counts those of several blobs.
    whole: Option<Arc<Refutation>>,
}

impl Refutation {
    /// That of one blob of several; `whole` counts those of all.
    #[must_use]
    pub fn within(whole: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self { whole: Some(Arc::clone(whole)), ..Self::default() })
    }

    /// Says that the bytes of `blob`, a digest, were wrong. To be called when no read gives them any more.
    pub fn raise(&self, blob: &str) {
        self.blob.get_or_init(|| blob.to_owned());
        self.generation.fetch_add(1, Ordering::AcqRel);
        // Last, so that whoever sees it there finds out whose it was.
        if let Some(whole) = &self.whole {
            whole.raise(blob);
        }
    }

    /// How often bytes were wrong.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The digest of the first blob whose bytes were wrong, if one was.
    #[must_use]
    pub fn blob(&self) -> Option<&str> {
        self.blob.get().map(String::as_str)
    }
}
