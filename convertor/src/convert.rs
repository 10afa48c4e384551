//! From an image in one place to its overlaybd form in another.

use std::{
    collections::HashSet,
    io::{self, Read},
    mem,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stratabd::{
    format::{
        oci::{Digest, Layer},
        zfile::BlockFormat,
    },
    registry::{Client, NewDocument},
    server::failure::{Failure, FailureClass},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

use crate::{
    choice::{Chosen, Platforms},
    pipeline::{LayerOptions, MadeLayer, MadeLayers, chain_ids, make_layers},
    place::Place,
    source::{Source, SourceImage, unusable},
    target::Target,
};

/// Layers that are made and wait to be sent.
const LAYERS_WAITING: usize = 2;
const ENDING: &str = "the conversion is to end";

/// What to convert, and how.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Where the image lies.
    pub source: Place,
    /// Where its overlaybd form goes; its name is moved last.
    pub target: Place,
    /// Which images of several.
    pub platforms: Platforms,
    /// Whether media types are OCI's, whatever the image's are.
    pub oci: bool,
    /// Size of the device in bytes.
    pub virtual_size_bytes: u64,
    /// The blocks of compressed layers.
    pub format: BlockFormat,
    /// Whether each layer gets a Merkle tree, by which parts of it are proven.
    pub verity: bool,
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
    /// Digest of its manifest, or of its index.
    pub digest: String,
    /// Digest of the manifest or index that it was made of.
    pub source_digest: String,
    /// Layers that were made. One that several images have is made once.
    pub layers: usize,
    /// Bytes of the source's layers, compressed as they are there.
    pub source_bytes: u64,
    /// Bytes of the archives in them.
    pub archive_bytes: u64,
    /// Bytes of the layers that were made.
    pub output_bytes: u64,
    /// Layers that the target had.
    pub present: usize,
    /// Its images.
    pub images: Vec<ConvertedImage>,
    /// What is in the source and no image for Linux, in words.
    pub left_out: Vec<String>,
}

/// One image of those that were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConvertedImage {
    /// What it runs on.
    pub platform: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Digest of the manifest that it was made of.
    pub source_digest: String,
    /// Its layers.
    pub layers: usize,
}

/// How far it has come. Shared with whoever shows it, and may end it.
#[derive(Debug, Default)]
pub struct ConvertProgress {
    cancelled: watch::Sender<bool>,
    layers: AtomicU64,
    made: AtomicU64,
    sent: AtomicU64,
    source_bytes: AtomicU64,
    done_bytes: AtomicU64,
}

impl ConvertProgress {
    /// Ends the conversion soon, as a failure.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Fails when all is to end.
    pub(crate) fn require_going_on(&self) -> io::Result<()> {
        match *self.cancelled.borrow() {
            true => Err(io::Error::other(ENDING)),
            false => Ok(()),
        }
    }

    /// What `work` comes to, unless all is to end before that.
    pub(crate) async fn unless_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let mut cancelled = self.cancelled.subscribe();
        tokio::select! {
            result = work => result,
            // The sender is this.
            _ = cancelled.wait_for(|is_cancelled| *is_cancelled) => {
                Err(Failure::new(FailureClass::Interrupted, ENDING))
            }
        }
    }

    /// Says what there is to be made.
    fn expect(&self, images: &[SourceImage], chains: &[Vec<Digest>]) {
        let mut known = HashSet::new();
        let layers = images.iter().zip(chains).flat_map(|(image, chain)| image.layers.iter().zip(chain));
        for (layer, _) in layers.filter(|(_, chain_id)| known.insert(**chain_id)) {
            self.expect_layer(layer.size_bytes);
        }
    }

    /// Bytes of the source's layers that are done, and those that there are; 0 until they are known.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.done_bytes.load(Ordering::Relaxed), self.source_bytes.load(Ordering::Relaxed))
    }

    /// A layer of so many bytes is to be read.
    pub(crate) fn expect_layer(&self, source_bytes: u64) {
        self.layers.fetch_add(1, Ordering::Relaxed);
        self.source_bytes.fetch_add(source_bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_made(&self) {
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
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
        self.progress.require_going_on()?;
        let count = self.inner.read(dest)?;
        self.progress.done_bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Converts an image, or those of an index. The target's name is moved when all is there: whatever fails before leaves it as it was.
///
/// To be called on a tokio runtime of several threads.
///
/// # Errors
/// When an image cannot be read or converted, or the target cannot take what is made, or would lose images for other platforms.
pub async fn convert(
    client: &Client,
    options: &ConvertOptions,
    progress: &Arc<ConvertProgress>,
) -> Result<Converted, Failure> {
    let source = Source::open(&options.source, client)?;
    let chosen = progress.unless_cancelled(source.choose(&options.platforms)).await?;
    chosen.images.iter().try_for_each(SourceImage::require_ordinary)?;
    let chains: Result<Vec<Vec<Digest>>, Failure> = chosen.images.iter().map(chain_of).collect();
    let chains = chains?;
    let target = Target::open(&options.target, client)?;
    let kept = match chosen.index {
        Some(_) => chosen.images.iter().filter_map(SourceImage::platform).collect(),
        None => Vec::new(),
    };
    progress.unless_cancelled(target.check_loses_no_platform(&kept)).await?;
    progress.expect(&chosen.images, &chains);
    let mut conversion = Conversion {
        target: &target,
        options: LayerOptions {
            virtual_size_bytes: options.virtual_size_bytes,
            format: options.format,
            verity: options.verity,
            threads: options.threads,
            folder: options.spool.clone(),
        },
        progress,
        made: MadeLayers::new(),
        sent: Sent::default(),
    };
    let mut images = Vec::new();
    let mut manifests = Vec::new();
    for (number, (image, chain)) in chosen.images.iter().zip(&chains).enumerate() {
        let layers = conversion.layers(image, chain).await?;
        let next =
            image.documents.with_layers_replaced(&layers, options.oci).map_err(unusable(&image.name))?;
        target.put_config(&next).await?;
        images.push(ConvertedImage {
            platform: image.platform_text(),
            digest: next.digest.to_string(),
            source_digest: image.digest.to_string(),
            layers: layers.len(),
        });
        manifests.push((image.entry.clone(), next.manifest()));
        let later: HashSet<&Digest> = chains.iter().skip(number + 1).flatten().collect();
        conversion.made.retain(|chain_id, _| later.contains(chain_id));
    }
    let (root, reference, source_digest) = put_root(&chosen, &target, &manifests, options.oci).await?;
    let Sent { layers, archive_bytes, output_bytes, present } = conversion.sent;
    Ok(Converted {
        reference,
        digest: root.to_string(),
        source_digest: source_digest.to_string(),
        layers,
        source_bytes: progress.bytes().1,
        archive_bytes,
        output_bytes,
        present,
        images,
        left_out: chosen.left_out,
    })
}

fn chain_of(image: &SourceImage) -> Result<Vec<Digest>, Failure> {
    image.documents.diff_ids().map(|diff_ids| chain_ids(&diff_ids)).map_err(unusable(&image.name))
}

/// Puts the manifests there, and an index of them where the source has one, and names it. Returns its digest, its reference, and the digest
/// of what it was made of.
pub(crate) async fn put_root(
    chosen: &Chosen,
    target: &Target,
    manifests: &[(Value, NewDocument)],
    oci: bool,
) -> Result<(Digest, String, Digest), Failure> {
    let (Some(image), Some((entry, manifest))) = (chosen.images.first(), manifests.first()) else {
        return Err(Failure::new(FailureClass::Internal, "nothing was chosen"));
    };
    let Some(index) = &chosen.index else {
        let reference = target.name(manifest, entry.get("platform")).await?;
        return Ok((manifest.digest, reference, image.digest));
    };
    for (_, manifest) in manifests {
        target.put_manifest(manifest).await?;
    }
    let root = NewDocument::index(&index.bytes, manifests, oci).map_err(unusable(&image.name))?;
    let reference = target.name(&root, None).await?;
    Ok((root.digest, reference, index.digest))
}

/// What all images of a run share.
struct Conversion<'a> {
    target: &'a Target,
    options: LayerOptions,
    progress: &'a Arc<ConvertProgress>,
    /// Of those that were made, the layers that are still needed.
    made: MadeLayers,
    sent: Sent,
}

#[derive(Debug, Default)]
struct Sent {
    layers: usize,
    archive_bytes: u64,
    output_bytes: u64,
    present: usize,
}

impl Conversion<'_> {
    /// Makes the layers of `image` that were not made for another one before, and sends them.
    async fn layers(&mut self, image: &SourceImage, chain: &[Digest]) -> Result<Vec<Layer>, Failure> {
        let (new, to_send) = mpsc::channel(LAYERS_WAITING);
        let making = tokio::task::spawn_blocking({
            let (image, options, mut made) = (image.clone(), self.options.clone(), mem::take(&mut self.made));
            let (progress, runtime) = (Arc::clone(self.progress), Handle::current());
            move || {
                make_layers(&image, &options, &mut made, (&runtime, &progress), |layer| {
                    progress.count_made();
                    // That nobody takes it any more has a reason, which is told instead.
                    new.blocking_send(layer)
                        .map_err(|_| Failure::new(FailureClass::Internal, "nobody sends the layers"))
                })
                .map(|()| made)
            }
        });
        let sent = self.send(to_send).await;
        if sent.is_err() {
            self.progress.cancel();
        }
        let made = making.await.unwrap_or_else(|error| {
            let text = "the thread that makes the layers has failed";
            Err(Failure::with_source(FailureClass::Internal, text, error))
        });
        sent?;
        self.made = made?;
        let layers: Option<Vec<Layer>> =
            chain.iter().map(|chain_id| self.made.get(chain_id).map(|made| made.layer)).collect();
        layers.ok_or_else(|| Failure::new(FailureClass::Internal, "a layer was not made"))
    }

    /// Sends layers as they come, the lowest first.
    async fn send(&mut self, mut made: mpsc::Receiver<MadeLayer>) -> Result<(), Failure> {
        while let Some(MadeLayer { layer, file, archive_bytes }) = made.recv().await {
            let was_there = self.target.put_layer(layer, file, self.progress).await?;
            self.progress.count_sent();
            self.sent.layers += 1;
            self.sent.present += usize::from(was_there);
            self.sent.archive_bytes = self.sent.archive_bytes.saturating_add(archive_bytes);
            self.sent.output_bytes = self.sent.output_bytes.saturating_add(layer.size_bytes);
        }
        Ok(())
    }
}
