//! The offline toolbox: makes layer files from layer files, with plain reads and writes and some threads.
//!
//! Every tool streams: memory is some chunks for each thread, four bytes for each compressed block and some tens for each
//! segment, however large the layer. The output has its name only when it is complete and on disk; until then, and when the tool
//! fails or is interrupted, nothing of that name is touched.

mod amend;
mod commit;
mod compress;
mod content;
mod create;
mod diff;
mod e2fs;
mod error;
mod ext4;
mod extract;
mod flat;
mod fold;
mod journal;
mod lock;
mod log_index;
mod merge;
mod output;
mod pack;
mod part_file;
mod patient;
mod pipeline;
mod place;
mod resize;
mod resize_ext4;
mod seal;
mod source;
mod stack_reader;
mod streamed;
mod tree;
mod window;
mod zfile;

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicBool, Ordering},
};

pub use amend::Amendment;
pub use commit::{Committed, Naming, commit};
pub use compress::{CompressOptions, Compressed, compress, compress_stream};
pub use create::{CreateOptions, Created, create, create_watched};
pub use diff::{Compared, Difference, diff};
pub use error::OfflineError;
pub use extract::{ExtractOptions, Extracted, extract, extract_zfile, verify_zfile};
pub use fold::fold;
pub use merge::merge;
pub use pack::PackOptions;
pub use part_file::{NamedFile, PartFile, ReadyFile};
pub use patient::Patient;
pub use resize::{Resized, resize};
pub use resize_ext4::{ResizedExt4, resize_ext4};
pub use seal::{SealedLayer, require_sealed, seal};
pub use source::{Stack, Upper};
pub use stack_reader::StackReader;
pub use streamed::StreamedLayer;
pub use tree::add_tree;

/// How whoever started a tool follows it and ends it.
#[derive(Debug, Default)]
pub struct Watch<P> {
    /// Is told the bytes of the content that are done and those that there are.
    pub progress: P,
    /// Ends the tool, soon, when it is set.
    pub cancelled: AtomicBool,
}

impl<P: Fn(u64, u64) + Sync> Watch<P> {
    fn tell(&self, done_bytes: u64, total_bytes: u64) -> Result<(), OfflineError> {
        self.go_on()?;
        (self.progress)(done_bytes, total_bytes);
        Ok(())
    }

    /// Ends a tool that is to end. Asked once more before an output gets its name.
    fn go_on(&self) -> Result<(), OfflineError> {
        if self.cancelled.load(Ordering::Relaxed) { Err(OfflineError::Cancelled) } else { Ok(()) }
    }
}

/// As many threads as there are processors for this process.
#[must_use]
pub fn default_threads() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
