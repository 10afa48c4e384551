//! `layer merge` and `layer flatten`: a stack of layers as one layer.

use std::path::Path;

use super::{
    Committed, Naming, OfflineError, PackOptions, Stack, Watch, lock::LockMode, output::Output, pack::pack,
    source::Source,
};
use crate::format::lsmt::Packing;

/// Writes what is seen of `stack` from above to the file `output`, as one layer, which says what the top of the stack says of itself,
/// but that its parent is that of the lowest layer. What lies past the end of the device is kept: a larger layer over the output shows
/// what it would show over the stack.
///
/// As upstream, a segment keeps the number of the file that it came from, and the parent is that of the layer that may be written,
/// if there is one. But the size is always the device's: upstream takes that of the highest read-only layer, and what was written
/// past it to a device that has grown would be lost.
///
/// # Errors
/// [`OfflineError`]; then there is no output.
pub fn merge<P: Fn(u64, u64) + Sync>(
    stack: &Stack,
    output: &Path,
    naming: &Naming,
    options: &PackOptions,
    watch: &Watch<P>,
) -> Result<Committed, OfflineError> {
    let mut source = Source::open_stack(stack, LockMode::Shared)?;
    source.require_whole(options.allow_torn)?;
    if options.packing == Packing::AsUpstream {
        source.identity.parent_uuid = source.last_parent_uuid;
    }
    let identity = naming.of(&source.identity, options.packing);
    let output = Output::create(output, options.tar, options.overwrite)?;
    let output_bytes = pack(&source, &identity, output, options, watch)?;
    let (data_bytes, torn_entries) = (source.data_bytes(), source.torn_entries);
    Ok(Committed { data_bytes, output_bytes, torn_entries })
}
