//! Several sealed layers of a stack as one that can take their place among the others of it.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use super::{
    OfflineError, PackOptions, Stack, Watch, lock::LockMode, output::Output, pack::pack, source::Source,
};
use crate::format::lsmt::Packing;

/// Writes what is seen of `layers`, the lowest first, to the file `output`, as one layer that is not compressed and that its owner alone
/// may read; returns its size in bytes. It has the UUID of the highest, since the layer above names that one, and the parent of the lowest. What lies past the
/// end of the device stays: layers above may say another end. One thread reads and one writes.
///
/// # Errors
/// [`OfflineError`], also where it would have too many segments; then there is no output.
pub fn fold<P: Fn(u64, u64) + Sync>(
    layers: &[PathBuf],
    output: &Path,
    watch: &Watch<P>,
) -> Result<u64, OfflineError> {
    let source = Source::open_stack(&Stack { lowers: layers.to_vec(), upper: None }, LockMode::Shared)?;
    let options = PackOptions {
        packing: Packing::Aligned,
        compression: None,
        tar: false,
        final_header: true,
        threads: NonZeroUsize::MIN,
        overwrite: false,
        allow_torn: false,
    };
    pack(&source, &source.identity, Output::create_private(output)?, &options, watch)
}
