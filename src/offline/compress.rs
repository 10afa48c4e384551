//! `layer compress`: a sealed layer as a ZFile, in an envelope where that is wanted.

use std::{io::Read, num::NonZeroUsize, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    OfflineError, Watch,
    content::{Bench, Content},
    output::Output,
    pipeline::workers,
    zfile::write_zfile,
};
use crate::format::zfile::{BlockFormat, EncodeError};

/// Content that is read and compressed at once, in bytes; a multiple of every block size. It is read into the cache of the processor
/// that compresses it, so that reading it takes next to no time.
const CHUNK_BYTES: usize = 64 << 10;
const CHUNK: u64 = CHUNK_BYTES as u64;

/// How to compress.
#[derive(Debug, Clone, Copy)]
pub struct CompressOptions {
    /// The blocks.
    pub format: BlockFormat,
    /// Whether the ZFile gets the tar envelope that registries take for a layer.
    pub tar: bool,
    /// Threads that compress.
    pub threads: NonZeroUsize,
    /// Whether an existing file is replaced.
    pub overwrite: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compressed {
    /// Bytes of the layer.
    pub content_bytes: u64,
    /// Bytes of the file.
    pub output_bytes: u64,
}

/// Compresses the layer in the file `input` to the file `output`. An input that is compressed is decoded first, and one in an
/// envelope taken out of it, so that this also changes the form of a layer.
///
/// # Errors
/// [`OfflineError`]; then there is no output.
pub fn compress<P: Fn(u64, u64) + Sync>(
    input: &Path,
    output: &Path,
    options: &CompressOptions,
    watch: &Watch<P>,
) -> Result<Compressed, OfflineError> {
    let content = Content::open_layer(input)?;
    let total_bytes = content.size_bytes();
    if total_bytes > options.format.content_limit_bytes() {
        let source = EncodeError::TooManyBlocks(options.format.block_size());
        return Err(OfflineError::Encode { path: input.to_owned(), source });
    }
    let mut to = Output::create(output, options.tar, options.overwrite)?;
    let fills = workers(options.threads, || {
        let (content, mut bench) = (content.clone(), Bench::default());
        Ok(move |offset: u64, chunk: &mut Vec<u8>| {
            let len = CHUNK.min(content.size_bytes().saturating_sub(offset));
            chunk.resize(usize::try_from(len).unwrap_or(0), 0);
            content.read(&mut bench, offset, chunk)
        })
    })?;
    let offsets = (0..total_bytes.div_ceil(CHUNK)).map(|number| number.saturating_mul(CHUNK));
    let told = |done_bytes| watch.tell(done_bytes, total_bytes);
    let header = write_zfile(|bytes: &[u8]| to.write(bytes), input, options.format, fills, offsets, told)?;
    watch.go_on()?;
    Ok(Compressed { content_bytes: total_bytes, output_bytes: to.finish(&header)? })
}

/// Compresses all that `input` gives, whatever it is, to the file `output`, as `overlaybd-zfile` does: the slot at the start refers
/// to the one at the end. `name` is what an error calls the input.
///
/// # Errors
/// [`OfflineError`]; then there is no output.
pub fn compress_stream<P: Fn(u64, u64) + Sync>(
    mut input: impl Read + Send,
    name: &Path,
    output: &Path,
    options: &CompressOptions,
    watch: &Watch<P>,
) -> Result<Compressed, OfflineError> {
    let mut to = Output::create(output, options.tar, options.overwrite)?;
    let mut failure = None;
    // Nothing is read after the end, which of a terminal would not be the last one, nor after a failure.
    let chunks = std::iter::from_fn(|| {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        match input.by_ref().take(CHUNK).read_to_end(&mut chunk) {
            Ok(0) => None,
            Ok(_) => Some(chunk),
            Err(error) => {
                failure = Some(error);
                None
            }
        }
    })
    .fuse();
    let fills = workers(options.threads, || {
        Ok(|read: Vec<u8>, chunk: &mut Vec<u8>| {
            *chunk = read;
            Ok(())
        })
    })?;
    let mut content_bytes = 0;
    write_zfile(
        |bytes: &[u8]| to.write(bytes),
        name,
        options.format,
        fills,
        chunks,
        |done_bytes| {
            content_bytes = done_bytes;
            watch.tell(done_bytes, done_bytes)
        },
    )?;
    watch.go_on()?;
    match failure {
        Some(error) => Err(OfflineError::io(name, "read it")(error)),
        None => Ok(Compressed { content_bytes, output_bytes: to.finish(&[])? }),
    }
}
