//! `layer extract`: the LSMT file of a layer as it is, out of its envelope and decompressed.

use std::{num::NonZeroUsize, path::Path, sync::mpsc::channel};

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
pub fn extract<P: Fn(u64, u64) + Sync>(
    input: &Path,
    output: &Path,
    options: &ExtractOptions,
    watch: &Watch<P>,
) -> Result<Extracted, OfflineError> {
    save(&Content::open_layer(input)?, output, options, watch)
}

/// Writes the content of the ZFile `input`, whatever it is, to the file `output`, checking every checksum on the way.
///
/// # Errors
/// [`OfflineError`]; then there is no output.
pub fn extract_zfile<P: Fn(u64, u64) + Sync>(
    input: &Path,
    output: &Path,
    options: &ExtractOptions,
    watch: &Watch<P>,
) -> Result<Extracted, OfflineError> {
    let content = Content::open(input)?;
    content.layout_of_blocks().ok_or_else(|| OfflineError::NotZfile(input.to_owned()))?;
    save(&content, output, options, watch)
}

/// Checks every checksum of the ZFile `input`, and returns the bytes of its content.
///
/// # Errors
/// [`OfflineError`], also where the file has no checksums.
pub fn verify_zfile<P: Fn(u64, u64) + Sync>(
    input: &Path,
    threads: NonZeroUsize,
    watch: &Watch<P>,
) -> Result<u64, OfflineError> {
    let content = Content::open(input)?;
    let layout = content.layout_of_blocks().ok_or_else(|| OfflineError::NotZfile(input.to_owned()))?;
    if !layout.verify() {
        return Err(OfflineError::NoChecksums(input.to_owned()));
    }
    decode(&content, threads, watch, |_| Ok(()))?;
    Ok(content.size_bytes())
}

fn save<P: Fn(u64, u64) + Sync>(
    content: &Content,
    output: &Path,
    options: &ExtractOptions,
    watch: &Watch<P>,
) -> Result<Extracted, OfflineError> {
    let total_bytes = content.size_bytes();
    let mut part = PartFile::create(output, options.overwrite)?;
    let mut end = 0_u64;
    decode(content, options.threads, watch, |chunk| {
        part.write_at(chunk, end).map_err(OfflineError::io(output, "write it"))?;
        end = end.saturating_add(chunk.len() as u64);
        Ok(())
    })?;
    watch.go_on()?;
    part.finish()?;
    Ok(Extracted { output_bytes: total_bytes })
}

/// Decodes all of `content` on `threads`, and gives it to `take` in order.
fn decode<P: Fn(u64, u64) + Sync>(
    content: &Content,
    threads: NonZeroUsize,
    watch: &Watch<P>,
    mut take: impl FnMut(&[u8]) -> Result<(), OfflineError> + Send,
) -> Result<(), OfflineError> {
    let total_bytes = content.size_bytes();
    let threads = workers(threads, || {
        let (content, mut bench) = (content.clone(), Bench::default());
        Ok(move |(offset, mut chunk): (u64, Vec<u8>)| {
            let len = CHUNK_BYTES.min(content.size_bytes().saturating_sub(offset));
            chunk.resize(usize::try_from(len).unwrap_or(0), 0);
            content.read(&mut bench, offset, &mut chunk).map(|()| chunk)
        })
    })?;
    let mut done_bytes = 0_u64;
    // Memory is used again: new memory of this size comes from the kernel, page by page.
    let (used, spare) = channel::<Vec<u8>>();
    let chunks = (0..total_bytes.div_ceil(CHUNK_BYTES))
        .map(move |number| (number.saturating_mul(CHUNK_BYTES), spare.try_recv().unwrap_or_default()));
    in_order(threads, chunks, |chunk: Vec<u8>| {
        take(&chunk)?;
        done_bytes = done_bytes.saturating_add(chunk.len() as u64);
        // That nobody wants the memory again is no failure: all has been read then.
        drop(used.send(chunk));
        watch.tell(done_bytes, total_bytes)
    })
}
