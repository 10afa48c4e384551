//! Compresses a payload on many threads: the stage that `compress` and `commit` end with.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::channel,
};

use super::{OfflineError, pipeline::in_order};
use crate::format::zfile::{BlockFormat, EncodeError, Encoder, Writer};

/// Content that a thread compresses at once, in bytes; a multiple of every block size.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// Some blocks: their content, the encoded bytes, and the sizes of each before and after.
#[derive(Default)]
struct Blocks {
    content: Vec<u8>,
    encoded: Vec<u8>,
    sizes: Vec<(u32, u32)>,
}

/// Gives `write` the ZFile of the content that `fills`, one for each thread, make of `jobs`: each job comes to
/// [`CHUNK_BYTES`], the last to fewer. `done` is told the bytes of the content so far. Returns the slot that
/// takes the place of the first bytes at the end. `path` is what an error names.
pub(super) fn write_zfile<J, F>(
    mut write: impl FnMut(&[u8]) -> Result<(), OfflineError> + Send,
    path: &Path,
    format: BlockFormat,
    fills: Vec<F>,
    jobs: impl Iterator<Item = J> + Send,
    mut done: impl FnMut(u64) -> Result<(), OfflineError> + Send,
) -> Result<Vec<u8>, OfflineError>
where
    J: Send,
    F: FnMut(J, &mut Vec<u8>) -> Result<(), OfflineError> + Send,
{
    let refused = |source| OfflineError::Encode { path: path.to_owned(), source };
    let mut writer = Writer::new(format);
    write(&writer.start())?;
    let threads =
        fills.into_iter().map(|fill| worker(fill, format, path.to_owned())).collect::<Result<_, _>>();
    // Memory is used again: new memory of this size comes from the kernel, page by page.
    let (used, spare) = channel::<Blocks>();
    let jobs = jobs.map(move |job| (job, spare.try_recv().unwrap_or_default()));
    in_order(threads.map_err(refused)?, jobs, |blocks: Blocks| {
        for (content_bytes, encoded_bytes) in &blocks.sizes {
            writer.add(*content_bytes, *encoded_bytes).map_err(refused)?;
        }
        write(&blocks.encoded)?;
        // That nobody wants the memory again is no failure: all has been read then.
        drop(used.send(blocks));
        done(writer.content_bytes())
    })?;
    let tail = writer.finish();
    write(&tail.index)?;
    write(&tail.trailer)?;
    Ok(tail.header)
}

/// Fills a chunk and compresses its blocks.
fn worker<J, F: FnMut(J, &mut Vec<u8>) -> Result<(), OfflineError>>(
    mut fill: F,
    format: BlockFormat,
    path: PathBuf,
) -> Result<impl FnMut((J, Blocks)) -> Result<Blocks, OfflineError>, EncodeError> {
    let mut encoder = Encoder::new(format)?;
    Ok(move |(job, mut blocks): (J, Blocks)| {
        fill(job, &mut blocks.content)?;
        blocks.encoded.clear();
        blocks.sizes.clear();
        for block in blocks.content.chunks(format.block_size() as usize) {
            let encoded_bytes = encoder
                .encode(block, &mut blocks.encoded)
                .map_err(|source| OfflineError::Encode { path: path.clone(), source })?;
            blocks.sizes.push((u32::try_from(block.len()).unwrap_or(u32::MAX), encoded_bytes));
        }
        Ok(blocks)
    })
}
