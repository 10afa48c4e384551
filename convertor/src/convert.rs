//! From an image in one place to its overlaybd form in another.

use std::{
    io::{self, Read},
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use stratabd::{
    format::{
        oci::{Layer, Platform},
        zfile::BlockFormat,
    },
    registry::Client,
    server::failure::{Failure, FailureClass},
};
use tokio::{runtime::Handle, sync::mpsc};

use crate::{
    pipeline::{LayerOptions, MadeLayer, make_layers},
    place::Place,
    source::{SourceImage, unusable},
    target::Target,
};

/// Layers that are made and wait to be sent.
const LAYERS_WAITING: usize = 2;

/// What to convert, and how.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Where the image lies.
    pub source: Place,
    /// Where its overlaybd form goes; its name is moved last.
    pub target: Place,
    /// Which image of several; `None` for this machine's.
    pub platform: Option<Platform>,
    /// Whether media types are OCI's, whatever the image's are.
    pub oci: bool,
    /// Size of the device in bytes.
    pub virtual_size_bytes: u64,
    /// The blocks of compressed layers.
    pub format: BlockFormat,
    /// Threads that compress.
    pub threads: NonZeroUsize,
    /// Where files without names lie while layers are made: as much as the image takes, compressed.
    pub spool: PathBuf,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Converted {
    /// The name that will always mean it.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Digest of the manifest that it was made of.
    pub source_digest: String,
    /// Layers.
    pub layers: usize,
    /// Bytes of the source's layers, compressed as they are there.
    pub source_bytes: u64,
    /// Bytes of the archives in them.
    pub archive_bytes: u64,
    /// Bytes of the layers that were made.
    pub output_bytes: u64,
    /// Layers that the target had.
    pub present: usize,
}

/// How far it has come. Shared with whoever shows it, and may end it.
#[derive(Debug, Default)]
pub struct ConvertProgress {
    cancelled: AtomicBool,
    layers: AtomicU64,
    made: AtomicU64,
    sent: AtomicU64,
    source_bytes: AtomicU64,
    done_bytes: AtomicU64,
}

impl ConvertProgress {
    /// Ends the conversion soon, as a failure.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Bytes of the source's layers that are done, and those that there are; 0 until they are known.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.done_bytes.load(Ordering::Relaxed), self.source_bytes.load(Ordering::Relaxed))
    }

    /// A stream of the same bytes that counts them, and fails when all is to end.
    pub(crate) fn watched<R>(self: &Arc<Self>, inner: R) -> Watched<R> {
        Watched { inner, progress: Arc::clone(self) }
    }

    /// Layers in all, 0 until that is known; layers that are made, and that the target has.
    #[must_use]
    pub fn layers(&self) -> (u64, u64, u64) {
        let [all, made, sent] =
            [&self.layers, &self.made, &self.sent].map(|count| count.load(Ordering::Relaxed));
        (all, made, sent)
    }
}

/// See [`ConvertProgress::watched`].
pub(crate) struct Watched<R> {
    inner: R,
    progress: Arc<ConvertProgress>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, dest: &mut [u8]) -> io::Result<usize> {
        if self.progress.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("the conversion is to end"));
        }
        let count = self.inner.read(dest)?;
        self.progress.done_bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Converts an image. The target's name is moved when all is there: whatever fails before leaves it as it was.
///
/// To be called on a tokio runtime of several threads.
///
/// # Errors
/// When the image cannot be read or converted, or the target cannot take what is made.
pub async fn convert(
    client: &Client,
    options: &ConvertOptions,
    progress: &Arc<ConvertProgress>,
) -> Result<Converted, Failure> {
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let image = SourceImage::open(&options.source, client, &platform).await?;
    let target = Target::open(&options.target, client)?;
    let source_bytes = image.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size_bytes));
    progress.layers.store(image.layers.len() as u64, Ordering::Relaxed);
    progress.source_bytes.store(source_bytes, Ordering::Relaxed);
    let (made, to_send) = mpsc::channel(LAYERS_WAITING);
    let layers = LayerOptions {
        virtual_size_bytes: options.virtual_size_bytes,
        format: options.format,
        threads: options.threads,
        folder: options.spool.clone(),
    };
    let making = tokio::task::spawn_blocking({
        let (image, progress, runtime) = (image.clone(), Arc::clone(progress), Handle::current());
        move || {
            make_layers(&image, &layers, (&runtime, &progress), |layer| {
                progress.made.fetch_add(1, Ordering::Relaxed);
                // That nobody takes it any more has a reason, which is told instead.
                made.blocking_send(layer)
                    .map_err(|_| Failure::new(FailureClass::Internal, "nobody sends the layers"))
            })
        }
    });
    let sent = send(&target, to_send, progress).await;
    if sent.is_err() {
        progress.cancel();
    }
    let made = making.await.unwrap_or_else(|error| {
        Err(Failure::with_source(
            FailureClass::Internal,
            "the thread that makes the layers has failed",
            error,
        ))
    });
    let Sent { layers, archive_bytes, present } = sent?;
    made?;
    let next = image.documents.with_layers_replaced(&layers, options.oci).map_err(unusable(&image.name))?;
    let reference = target.put_image(&next, &platform).await?;
    Ok(Converted {
        reference,
        digest: next.digest.to_string(),
        source_digest: image.digest.to_string(),
        layers: layers.len(),
        source_bytes,
        archive_bytes,
        output_bytes: layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size_bytes)),
        present,
    })
}

#[derive(Debug, Default)]
struct Sent {
    layers: Vec<Layer>,
    archive_bytes: u64,
    present: usize,
}

/// Sends layers as they come, the lowest first.
async fn send(
    target: &Target,
    mut made: mpsc::Receiver<MadeLayer>,
    progress: &ConvertProgress,
) -> Result<Sent, Failure> {
    let mut sent = Sent::default();
    while let Some(MadeLayer { layer, file, archive_bytes }) = made.recv().await {
        let was_there = target.put_layer(layer, file, Arc::default()).await?;
        progress.sent.fetch_add(1, Ordering::Relaxed);
        sent.present += usize::from(was_there);
        sent.archive_bytes = sent.archive_bytes.saturating_add(archive_bytes);
        sent.layers.push(layer);
    }
    Ok(sent)
}
