//! Reads a whole device through its engine and writes it to a file, hashes it, or both. No driver takes part.

mod sink;

use std::{convert::Infallible, path::PathBuf, pin::pin, sync::Arc};

use futures_util::{
    future::{Either, select},
    stream::{self, StreamExt},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::failure::{Failure, FailureClass};
use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ErrorKind},
    reactor::{Reactor, ReactorHandle},
};
use sink::SparseFile;

/// Bytes of one read: large enough that neighbouring compressed runs are joined and a registry is asked for long ranges.
const CHUNK_BYTES: u64 = 1 << 20;

/// Reads in flight; with the channel below this bounds the memory of an export to 8 MiB.
const CHUNKS_IN_FLIGHT: usize = 4;

/// What to do with the bytes.
#[derive(Debug, Clone, Default)]
pub struct ExportOptions {
    /// File to write; it appears when it is complete.
    pub output: Option<PathBuf>,
    /// Whether an existing file is replaced.
    pub overwrite: bool,
    /// Whether to hash.
    pub sha256: bool,
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

type Chunk = Result<Vec<u8>, Failure>;

/// Exports `device`, reading on `reactor`; blocks the calling thread, which writes. `progress` is told the bytes that are
/// done. It ends early when the sender of `cancel` is dropped, also while it waits for a registry.
///
/// # Errors
/// When the device cannot be read or the file not written; then there is no file.
pub fn export<D: BlockDevice>(
    reactor: &ReactorHandle,
    device: &Arc<D>,
    options: &ExportOptions,
    cancel: oneshot::Receiver<Infallible>,
    progress: impl Fn(u64),
) -> Result<Exported, Failure> {
    let size_bytes = device.geometry().size_bytes;
    let mut file = match &options.output {
        Some(path) => Some(SparseFile::create(path, options.overwrite, size_bytes)?),
        None => None,
    };
    let mut hash = options.sha256.then(Sha256::new);
    let (sender, mut receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let source = Arc::clone(device);
    reactor.spawn(move |reactor| read_all(reactor.clone(), source, size_bytes, sender, cancel));
    let mut done_bytes = 0_u64;
    while let Some(chunk) = receiver.blocking_recv() {
        let chunk = chunk?;
        if let Some(hash) = &mut hash {
            hash.update(&chunk);
        }
        if let Some(file) = &mut file {
            file.write_at(done_bytes, &chunk)?;
        }
        done_bytes = done_bytes.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        progress(done_bytes);
    }
    if done_bytes != size_bytes {
        let text = format!("reading ended after {done_bytes} of {size_bytes} bytes");
        return Err(Failure::new(FailureClass::Internal, text));
    }
    let data_bytes = file.map(SparseFile::finish).transpose()?;
    let sha256 = hash.map(|hash| hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
    Ok(Exported { size_bytes, output: options.output.clone(), data_bytes, sha256 })
}

async fn read_all<D: BlockDevice>(
    reactor: Reactor,
    device: Arc<D>,
    size_bytes: u64,
    sender: mpsc::Sender<Chunk>,
    cancel: oneshot::Receiver<Infallible>,
) {
    let ended = {
        let sending = pin!(send_chunks(&reactor, &*device, size_bytes, &sender));
        match select(sending, cancel).await {
            Either::Left((sent, _)) => sent,
            Either::Right(_) => Err(Failure::new(FailureClass::Internal, "interrupted")),
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
    sender: &mpsc::Sender<Chunk>,
) -> Result<(), Failure> {
    let queue = device.open_queue(reactor).map_err(unreadable)?;
    let queue = &queue;
    let count = size_bytes.div_ceil(CHUNK_BYTES);
    let mut chunks = stream::iter(0..count)
        .map(|index| async move {
            let offset = index.saturating_mul(CHUNK_BYTES);
            let len = CHUNK_BYTES.min(size_bytes.saturating_sub(offset));
            let mut chunk = vec![0; usize::try_from(len).unwrap_or(0)];
            queue.read(offset, &mut chunk).await.map(|()| chunk)
        })
        .buffered(CHUNKS_IN_FLIGHT);
    while let Some(chunk) = chunks.next().await {
        if sender.send(Ok(chunk.map_err(unreadable)?)).await.is_err() {
            break;
        }
    }
    Ok(())
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
