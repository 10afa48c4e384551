//! `layer extract`: the LSMT file of a layer as it is, out of its envelope and decompressed.

use std::{cell::RefCell, io::Write, num::NonZeroUsize, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    OfflineError, PartFile, Watch,
    content::{Bench, Content},
    pipeline::{in_order, workers},
};

/// Content that a thread decodes at once, in bytes; a multiple of every block size, so that no block is decoded twice.
const CHUNK_BYTES: u64 = 256 << 10;

/// How to extract.
#[derive(Debug, Clone, Copy)]
pub struct ExtractOptions {
    /// Threads that decode.
    pub threads: NonZeroUsize,
    /// Whether an existing file is replaced.
    pub overwrite: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extracted {
    /// Bytes of the file.
    pub output_bytes: u64,
}

/// Writes the LSMT file of the layer file `input` to the file `output`, checking every checksum on the way.
///
/// # Errors
/// [`OfflineError`]; then there is no output.
pub fn extract<P: Fn(u64, u64)>(
    input: &Path,
    output: &Path,
    options: &ExtractOptions,
    watch: &Watch<P>,
) -> Result<Extracted, OfflineError> {
    let content = Content::open_layer(input)?;
    let total_bytes = content.size_bytes();
    let part = PartFile::create(output, options.overwrite)?;
    let written = OfflineError::io(output, "write it");
    let mut to = part.file();
    let threads = workers(options.threads, || {
        let (content, mut bench) = (content.clone(), Bench::default());
        Ok(move |(offset, mut chunk): (u64, Vec<u8>)| {
            let len = CHUNK_BYTES.min(content.size_bytes().saturating_sub(offset));
            chunk.resize(usize::try_from(len).unwrap_or(0), 0);
            content.read(&mut bench, offset, &mut chunk).map(|()| chunk)
        })
    })?;
    let mut done_bytes = 0_u64;
    // Memory is used again: new memory of this size comes from the kernel, page by page.
    let spare = RefCell::new(Vec::<Vec<u8>>::new());
    let chunks = (0..total_bytes.div_ceil(CHUNK_BYTES))
        .map(|number| (number.saturating_mul(CHUNK_BYTES), spare.borrow_mut().pop().unwrap_or_default()));
    in_order(threads, chunks, |chunk: Vec<u8>| {
        to.write_all(&chunk).map_err(&written)?;
        done_bytes = done_bytes.saturating_add(chunk.len() as u64);
        spare.borrow_mut().push(chunk);
        watch.tell(done_bytes, total_bytes)
    })?;
    part.finish()?;
    Ok(Extracted { output_bytes: total_bytes })
}
