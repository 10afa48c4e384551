//! Reads a whole device through its engine and writes it to a file, hashes it, or both. No driver takes part.

mod sink;

use std::{convert::Infallible, fs::File, path::PathBuf, pin::pin, sync::Arc};

use futures_util::{
    future::{Either, select},
    stream::{self, StreamExt},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::failure::{Failure, FailureClass};
use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ByteRange, ErrorKind},
    reactor::{Reactor, ReactorHandle},
};
use sink::Sink;

/// Bytes of one read: large enough that neighbouring compressed runs are joined and a registry is asked for long ranges.
const CHUNK_BYTES: u64 = 1 << 20;

/// Reads in flight; with the channel below this bounds the memory of an export to 8 MiB.
const CHUNKS_IN_FLIGHT: usize = 4;

/// Longest stretch of zeroes that is passed on at once: to hash it takes a fraction of a second, after which one that is given up ends.
const ZEROES_BYTES: u64 = 256 << 20;

/// What to do with the bytes.
#[derive(Debug, Default)]
pub struct ExportOptions {
    /// Where to write them.
    pub output: Option<ExportOutput>,
    /// Whether to hash.
    pub sha256: bool,
}

/// Where the bytes go.
#[derive(Debug)]
pub enum ExportOutput {
    /// A file with holes, which appears when it is complete.
    File {
        /// Its name.
        path: PathBuf,
        /// Whether an existing file is replaced.
        overwrite: bool,
    },
    /// What is open takes all of them one after another: a pipe, say.
    Stream(File),
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Size of the device in bytes.
    pub size_bytes: u64,
    /// Where it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
    /// Bytes of the file that hold data; the rest are holes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_bytes: Option<u64>,
    /// SHA-256 of all bytes, 64 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// A part of the device.
#[derive(Debug)]
enum Chunk {
    Data(Vec<u8>),
    /// So many zeroes, which nobody has read.
    Zeroes(u64),
}

/// Bytes of zeroes that a hash or a stream is given at once.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

impl Chunk {
    fn len(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Zeroes(len) => *len,
        }
    }

    /// Gives all of it to `take`; zeroes are not made for that.
    fn each(&self, mut take: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        match self {
            Self::Data(bytes) => take(bytes),
            Self::Zeroes(len) => {
                let mut left = *len;
                while left > 0 {
                    let count = usize::try_from(left).unwrap_or(ZEROES.len()).min(ZEROES.len());
                    take(ZEROES.get(..count).unwrap_or_default())?;
                    left = left.saturating_sub(count as u64);
                }
                Ok(())
            }
        }
    }
}

/// Exports `device`, reading on `reactor`; blocks the calling thread, which writes. `progress` is told the bytes that are
/// done. It ends early when the sender of `cancel` is dropped, also while it waits for a registry. What the engine knows to be
/// zeroes is neither read nor written to a file; to hash it takes the time that the hash takes.
///
/// # Errors
/// When the device cannot be read or the file not written; then there is no file.
pub fn export<D: BlockDevice>(
    reactor: &ReactorHandle,
    device: &Arc<D>,
    options: ExportOptions,
    cancel: oneshot::Receiver<Infallible>,
    progress: impl Fn(u64),
) -> Result<Exported, Failure> {
    let size_bytes = device.geometry().size_bytes;
    let path = match &options.output {
        Some(ExportOutput::File { path, .. }) => Some(path.clone()),
        Some(ExportOutput::Stream(_)) | None => None,
    };
    let mut sink = options.output.map(|output| Sink::open(output, size_bytes)).transpose()?;
    let mut hash = options.sha256.then(Sha256::new);
    let (sender, mut receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let source = Arc::clone(device);
    reactor.spawn(move |reactor| read_all(reactor.clone(), source, size_bytes, sender, cancel));
    let mut done_bytes = 0_u64;
    while let Some(chunk) = receiver.blocking_recv() {
        let chunk = chunk?;
        if let Some(hash) = &mut hash {
            chunk.each(|bytes| {
                hash.update(bytes);
                Ok(())
            })?;
        }
        if let Some(sink) = &mut sink {
            sink.put(done_bytes, &chunk)?;
        }
        done_bytes = done_bytes.saturating_add(chunk.len());
        progress(done_bytes);
    }
    if done_bytes != size_bytes {
        let text = format!("reading ended after {done_bytes} of {size_bytes} bytes");
        return Err(Failure::new(FailureClass::Internal, text));
    }
    let data_bytes = sink.map(Sink::finish).transpose()?.flatten();
    let sha256 = hash.map(|hash| hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
    Ok(Exported { size_bytes, output: path, data_bytes, sha256 })
}

async fn read_all<D: BlockDevice>(
    reactor: Reactor,
    device: Arc<D>,
    size_bytes: u64,
    sender: mpsc::Sender<Result<Chunk, Failure>>,
    cancel: oneshot::Receiver<Infallible>,
) {
    let ended = {
        let sending = pin!(send_chunks(&reactor, &*device, size_bytes, &sender));
        match select(sending, cancel).await {
            Either::Left((sent, _)) => sent,
            Either::Right(_) => Err(Failure::new(FailureClass::Interrupted, "interrupted")),
        }
    };
    if let Err(failure) = ended {
        // The receiver has gone only when the export has failed already.
        let _ = sender.send(Err(failure)).await;
    }
}

async fn send_chunks<D: BlockDevice>(
    reactor: &Reactor,
    device: &D,
    size_bytes: u64,
    sender: &mpsc::Sender<Result<Chunk, Failure>>,
) -> Result<(), Failure> {
    let queue = &device.open_queue(reactor).map_err(unreadable)?;
    let block_bytes = device.geometry().logical_block_bytes.into();
    let mut chunks = stream::iter(Ranges { queue, size_bytes, block_bytes, at: 0 })
        .map(|(range, is_data)| async move {
            if !is_data {
                return Ok(Chunk::Zeroes(range.len()));
            }
            let mut bytes = vec![0; usize::try_from(range.len()).unwrap_or(0)];
            queue.read(range.start(), &mut bytes).await.map(|()| Chunk::Data(bytes))
        })
        .buffered(CHUNKS_IN_FLIGHT);
    while let Some(chunk) = chunks.next().await {
        if sender.send(Ok(chunk.map_err(unreadable)?)).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// The ranges of a device one after another, and whether they may hold something else than zeroes. Those end where chunks do.
struct Ranges<'a, Q> {
    queue: &'a Q,
    size_bytes: u64,
    block_bytes: u64,
    at: u64,
}

impl<Q: BlockQueue> Iterator for Ranges<'_, Q> {
    type Item = (ByteRange, bool);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = ByteRange::between(self.at, self.size_bytes);
        if rest.is_empty() {
            return None;
        }
        let far = ByteRange::between(self.at, self.at.saturating_add(ZEROES_BYTES)).intersect(rest);
        let data = self.queue.next_data(far).intersect(far).align_out(self.block_bytes, self.size_bytes);
        let is_data = !data.is_empty() && data.start() <= self.at;
        let end = match (data.is_empty(), is_data) {
            (true, _) => far.end(),
            (false, false) => data.start(),
            // The rest of the chunk too: what is near is had in one read.
            (false, true) => (self.at - self.at % CHUNK_BYTES).saturating_add(CHUNK_BYTES),
        };
        let range = ByteRange::between(self.at, end).intersect(rest);
        self.at = range.end();
        Some((range, is_data))
    }
}

/// Whether it is the image or the way to it that failed cannot be told from the kind alone: the cause decides.
fn unreadable(error: BlockError) -> Failure {
    let class = match error.kind() {
        ErrorKind::TimedOut => FailureClass::Registry,
        _ => super::failure::class_of_data_error(&error),
    };
    Failure::with_source(class, "cannot read the image", error)
}

#[cfg(test)]
mod tests;
