//! `layer compress`: a sealed layer as a ZFile, in an envelope where that is wanted.

use std::{cell::RefCell, io::Write, num::NonZeroUsize, os::unix::fs::FileExt, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    OfflineError, PartFile, Watch,
    content::{Bench, Content},
    pipeline::{in_order, workers},
};
use crate::format::{
    tar::Envelope,
    zfile::{BlockFormat, EncodeError, Encoder, Writer},
};

/// Content that a thread compresses at once, in bytes; a multiple of every block size.
const CHUNK_BYTES: u64 = 256 << 10;

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

/// Some blocks: the encoded bytes, and the sizes of each before and after.
#[derive(Default)]
struct Blocks {
    encoded: Vec<u8>,
    sizes: Vec<(u32, u32)>,
}

/// Compresses the layer in the file `input` to the file `output`. An input that is compressed is decoded first, and one in an
/// envelope taken out of it, so that this also changes the form of a layer.
///
/// # Errors
/// [`OfflineError`]; then there is no output.
pub fn compress<P: Fn(u64, u64)>(
    input: &Path,
    output: &Path,
    options: &CompressOptions,
    watch: &Watch<P>,
) -> Result<Compressed, OfflineError> {
    let content = Content::open_layer(input)?;
    let total_bytes = content.size_bytes();
    let part = PartFile::create(output, options.overwrite)?;
    let written = OfflineError::io(output, "write it");
    let refused = |source| OfflineError::Encode { path: input.to_owned(), source };
    let mut to = part.file();
    let start = if options.tar { Envelope::HEAD_BYTES } else { 0 };
    let mut writer = Writer::new(options.format);
    // Replaced at the end; until then it is no tar, so that nobody takes the file for whole.
    let room = usize::try_from(start).unwrap_or(0);
    to.write_all(&vec![0; room]).and_then(|()| to.write_all(&writer.start())).map_err(&written)?;
    let threads = workers(options.threads, || worker(&content, options.format).map_err(refused))?;
    // Memory is used again: new memory of this size comes from the kernel, page by page.
    let spare = RefCell::new(Vec::<Blocks>::new());
    let chunks = (0..total_bytes.div_ceil(CHUNK_BYTES))
        .map(|number| (number.saturating_mul(CHUNK_BYTES), spare.borrow_mut().pop().unwrap_or_default()));
    in_order(threads, chunks, |blocks: Blocks| {
        for (content_bytes, encoded_bytes) in &blocks.sizes {
            writer.add(*content_bytes, *encoded_bytes).map_err(refused)?;
        }
        to.write_all(&blocks.encoded).map_err(&written)?;
        spare.borrow_mut().push(blocks);
        watch.tell(writer.content_bytes(), total_bytes)
    })?;
    let encoded_bytes = writer.encoded_bytes();
    let tail = writer.finish();
    let payload_bytes = [tail.header.len(), tail.index.len(), tail.trailer.len()]
        .iter()
        .fold(encoded_bytes, |sum, len| sum.saturating_add(*len as u64));
    let (head, end) = match options.tar {
        true => (Envelope::head(payload_bytes), Envelope::tail(payload_bytes)),
        false => (Vec::new(), Vec::new()),
    };
    [&tail.index, &tail.trailer, &end].iter().try_for_each(|bytes| to.write_all(bytes)).map_err(&written)?;
    part.file().write_all_at(&[head, tail.header].concat(), 0).map_err(&written)?;
    part.finish()?;
    let around = start.saturating_add(end.len() as u64);
    Ok(Compressed { content_bytes: total_bytes, output_bytes: payload_bytes.saturating_add(around) })
}

/// Reads a chunk of the content and compresses its blocks.
fn worker(
    content: &Content,
    format: BlockFormat,
) -> Result<impl FnMut((u64, Blocks)) -> Result<Blocks, OfflineError> + Send + use<>, EncodeError> {
    let (content, mut bench, mut encoder) = (content.clone(), Bench::default(), Encoder::new(format)?);
    let mut chunk = Vec::new();
    Ok(move |(offset, mut blocks): (u64, Blocks)| {
        let len = CHUNK_BYTES.min(content.size_bytes().saturating_sub(offset));
        chunk.resize(usize::try_from(len).unwrap_or(0), 0);
        content.read(&mut bench, offset, &mut chunk)?;
        blocks.encoded.clear();
        blocks.sizes.clear();
        for block in chunk.chunks(format.block_size() as usize) {
            let encoded_bytes = encoder
                .encode(block, &mut blocks.encoded)
                .map_err(|source| OfflineError::Encode { path: content.path().to_owned(), source })?;
            blocks.sizes.push((u32::try_from(block.len()).unwrap_or(u32::MAX), encoded_bytes));
        }
        Ok(blocks)
    })
}
