//! The layers of an image one after another: each one's blob is fetched and decoded while the one below is applied, and goes on its way
//! while the one above is.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    num::NonZeroUsize,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use sha2::{Digest as _, Sha256};
use stratabd::{
    format::{
        lsmt::{LayerIdentity, UserTag},
        oci::{Descriptor, Digest, Layer},
        uuid::Uuid,
        zfile::BlockFormat,
    },
    offline::{OfflineError, StackReader, StreamedLayer, add_tree},
    server::failure::{Failure, FailureClass},
};
use stratabd_ext4::{Filesystem, FormatOptions, Timestamp};
use tokio::runtime::Handle;

use crate::{
    apply::apply,
    convert::ConvertProgress,
    device::LayerDevice,
    layer::{LayerReader, LayerSummary},
    source::{SourceImage, unusable},
};

/// Bytes of an archive that are handed on at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks of a layer that wait: of the one that is applied, and of the next one.
const CHUNKS_WAITING: usize = 16;

/// What a file system of an image is made with; nothing of it comes from a clock, so that the same image is the same bytes.
pub(crate) const TIME: Timestamp = Timestamp { seconds: 1, nanoseconds: 0 };

/// How layers are made.
#[derive(Debug, Clone)]
pub(crate) struct LayerOptions {
    /// Size of the device in bytes.
    pub(crate) virtual_size_bytes: u64,
    pub(crate) format: BlockFormat,
    /// Whether each gets a Merkle tree.
    pub(crate) verity: bool,
    pub(crate) threads: NonZeroUsize,
    /// Where files without names lie while layers are made.
    pub(crate) folder: PathBuf,
}

/// A layer that is made.
#[derive(Debug, Clone)]
pub(crate) struct MadeLayer {
    pub(crate) layer: Layer,
    pub(crate) file: Arc<File>,
    /// Length of the archive that it was made of.
    pub(crate) archive_bytes: u64,
}

/// Layers by their chain ids, each the digest of all content up to it: what is made of one by the same options is always the same.
pub(crate) type MadeLayers = HashMap<Digest, MadeLayer>;

/// Makes the layers of `image`, the lowest first, but for those that `known` has. Gives each new one to `made`, and puts it into `known`.
pub(crate) fn make_layers(
    image: &SourceImage,
    options: &LayerOptions,
    known: &mut MadeLayers,
    (runtime, progress): (&Handle, &Arc<ConvertProgress>),
    mut made: impl FnMut(MadeLayer) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let diff_ids = image.documents.diff_ids().map_err(unusable(&image.name))?;
    let chain = chain_ids(&diff_ids);
    let uuids = uuids(&chain)?;
    let mut spools: Vec<Arc<File>> = Vec::new();
    let mut next = None;
    for (number, ((layer, diff_id), chain_id)) in image.layers.iter().zip(&diff_ids).zip(&chain).enumerate() {
        if let Some(layer) = known.get(chain_id) {
            spools.push(Arc::clone(&layer.file));
            continue;
        }
        let named = |error: Failure| {
            let text = format!("{}: cannot convert layer {number}, {}", image.name, layer.digest);
            Failure::with_source(error.class(), text, error)
        };
        let decoding = match next.take() {
            Some(decoding) => decoding,
            None => Decoding::begin(image, layer, runtime, progress)?,
        };
        if let Some(above) = image.layers.get(number + 1) {
            next = Some(Decoding::begin(image, above, runtime, progress)?);
        }
        let identity = LayerIdentity {
            uuid: uuids.get(number).copied(),
            parent_uuid: number.checked_sub(1).and_then(|below| uuids.get(below)).copied(),
            virtual_size_bytes: options.virtual_size_bytes,
            user_tag: UserTag::default(),
        };
        let (file, size_bytes, summary) =
            make_layer(decoding, &spools, &identity, options, uuids.first()).map_err(named)?;
        check(layer, *diff_id, &summary).map_err(named)?;
        let layer = if options.verity {
            add_tree(&file, &options.folder.join("layer"), size_bytes).map_err(Failure::from)?
        } else {
            let digest = digest_of(&file).map_err(|error| spool_failed(&options.folder, error))?;
            Layer { digest, size_bytes, verity: None }
        };
        spools.push(Arc::clone(&file));
        let layer = MadeLayer { layer, file, archive_bytes: summary.archive_bytes };
        known.insert(*chain_id, layer.clone());
        made(layer)?;
    }
    Ok(())
}

/// Puts one archive over the layers in `spools`.
fn make_layer(
    mut decoding: Decoding,
    spools: &[Arc<File>],
    identity: &LayerIdentity,
    options: &LayerOptions,
    filesystem_uuid: Option<&Uuid>,
) -> Result<(Arc<File>, u64, LayerSummary), Failure> {
    let file =
        tempfile::tempfile_in(&options.folder).map_err(|error| spool_failed(&options.folder, error))?;
    let file = Arc::new(file);
    // They have no names, but the process has them open.
    let paths: Vec<PathBuf> =
        spools.iter().map(|spool| format!("/proc/self/fd/{}", spool.as_raw_fd()).into()).collect();
    let below = if paths.is_empty() { None } else { Some(StackReader::open(&paths).map_err(Failure::from)?) };
    let is_first = below.is_none();
    let name = options.folder.join("layer");
    let layer = StreamedLayer::begin(Arc::clone(&file), name, identity, options.format, options.threads)
        .map_err(Failure::from)?;
    let device = LayerDevice::new(options.virtual_size_bytes, below, layer, &options.folder);
    let mut filesystem = match is_first {
        true => Filesystem::format(device, &format_options(filesystem_uuid)),
        false => Filesystem::open(device),
    }
    .map_err(file_system_failed)?;
    let applied = apply(&mut decoding, &mut filesystem);
    // What the decoder says is wrong is why the archive ended.
    let summary = decoding.end()?;
    applied.map_err(|error| Failure::with_source(error.class(), "its archive cannot be applied", error))?;
    let device = filesystem.finish(TIME).map_err(file_system_failed)?;
    let size_bytes = device.finish().map_err(Failure::from)?;
    Ok((file, size_bytes, summary))
}

/// Makes sure that the blob and the archive are those that the image names.
fn check(layer: &Descriptor, diff_id: Digest, found: &LayerSummary) -> Result<(), Failure> {
    let differs = |what: &str, named: String, found: String| {
        let text = format!(
            "{what} is {found}, and {named} in the image's documents: it was changed, or damaged on its way"
        );
        Err(Failure::new(FailureClass::Image, text))
    };
    if found.blob_bytes != layer.size_bytes {
        return differs("its size", layer.size_bytes.to_string(), found.blob_bytes.to_string());
    }
    if found.blob_digest != layer.digest {
        return differs("its digest", layer.digest.to_string(), found.blob_digest.to_string());
    }
    match found.diff_id == diff_id {
        true => Ok(()),
        false => differs("the digest of its archive", diff_id.to_string(), found.diff_id.to_string()),
    }
}

/// The chain id of each layer.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::new();
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => *diff_id,
            Some(below) => Digest::from_hash(Sha256::digest(format!("{below} {diff_id}")).into()),
        });
    }
    chain
}

/// The UUID of each layer: the first half of its chain id, as upstream's convertor has it.
fn uuids(chain: &[Digest]) -> Result<Vec<Uuid>, Failure> {
    let uuid = |id: &Digest| {
        let hex = id.hex();
        let parts: Option<Vec<&str>> =
            [0..8, 8..12, 12..16, 16..20, 20..32].into_iter().map(|range| hex.get(range)).collect();
        parts
            .and_then(|parts| parts.join("-").parse().ok())
            .ok_or_else(|| Failure::new(FailureClass::Internal, format!("{id} makes no UUID")))
    };
    chain.iter().map(uuid).collect()
}

pub(crate) fn format_options(uuid: Option<&Uuid>) -> FormatOptions {
    let name = uuid.map_or(&[][..], |uuid| uuid.as_bytes());
    let hash: [u8; 32] = Sha256::digest(name).into();
    let (mut uuid, mut hash_seed) = ([0; 16], [0; 16]);
    uuid.iter_mut().chain(&mut hash_seed).zip(hash).for_each(|(dest, byte)| *dest = byte);
    FormatOptions { uuid, hash_seed, time: TIME }
}

/// An archive that a thread decodes.
struct Decoding {
    chunks: Receiver<Vec<u8>>,
    chunk: io::Cursor<Vec<u8>>,
    thread: JoinHandle<Result<LayerSummary, Failure>>,
}

impl Decoding {
    fn begin(
        image: &SourceImage,
        layer: &Descriptor,
        runtime: &Handle,
        progress: &Arc<ConvertProgress>,
    ) -> Result<Self, Failure> {
        let (chunks, decoded) = sync_channel(CHUNKS_WAITING);
        let blob = progress.watched(image.open_blob(layer, (runtime, progress))?);
        let thread =
            thread::Builder::new().name("decoder".to_owned()).spawn(move || decode(blob, &chunks)).map_err(
                |error| Failure::with_source(FailureClass::Internal, "cannot start a thread", error),
            )?;
        Ok(Self { chunks: decoded, chunk: io::Cursor::default(), thread })
    }

    /// Waits for the digests of what is decoded, all of which was read.
    fn end(self) -> Result<LayerSummary, Failure> {
        let Self { chunks, thread, .. } = self;
        // Whoever was content with less than all has the decoder end.
        drop(chunks);
        let failed = |_| Err(Failure::new(FailureClass::Internal, "the thread that decodes has failed"));
        thread.join().unwrap_or_else(failed)
    }
}

impl Read for Decoding {
    fn read(&mut self, dest: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.chunk.read(dest)?;
            if count > 0 || dest.is_empty() {
                return Ok(count);
            }
            match self.chunks.recv() {
                Ok(chunk) => self.chunk = io::Cursor::new(chunk),
                Err(_) => return Ok(0),
            }
        }
    }
}

fn decode(blob: impl Read, chunks: &SyncSender<Vec<u8>>) -> Result<LayerSummary, Failure> {
    let wrong = |error| Failure::with_source(FailureClass::Image, "its blob cannot be decoded", error);
    let mut reader = LayerReader::new(blob).map_err(wrong)?;
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut filled = 0;
        while let Some(room) = chunk.get_mut(filled..).filter(|room| !room.is_empty()) {
            match reader.fill(room).map_err(wrong)? {
                0 => break,
                count => filled += count,
            }
        }
        chunk.truncate(filled);
        // Where nobody listens any more the archive is wrong, and the digests say whether the image is.
        if filled == 0 || chunks.send(chunk).is_err() {
            return reader.finish().map_err(wrong);
        }
    }
}

fn digest_of(file: &File) -> io::Result<Digest> {
    let (mut hash, mut chunk, mut offset) = (Sha256::new(), vec![0; 1 << 20], 0_u64);
    loop {
        let count = file.read_at(&mut chunk, offset)?;
        let Some(bytes) = chunk.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
        offset = offset.saturating_add(count as u64);
    }
    Ok(Digest::from_hash(hash.finalize().into()))
}

fn spool_failed(folder: &Path, error: io::Error) -> Failure {
    let text = format!(
        "{}: cannot keep a layer in it while it is made (--spool names another folder)",
        folder.display()
    );
    Failure::with_source(FailureClass::Internal, text, error)
}

/// What the file system below or above does not allow is the image's fault, what the device says is not.
pub(crate) fn file_system_failed(error: stratabd_ext4::Error) -> Failure {
    match error {
        stratabd_ext4::Error::Device { source, .. }
            if source.get_ref().is_some_and(|inner| inner.is::<OfflineError>()) =>
        {
            Failure::with_source(FailureClass::Internal, "cannot write the layer", source)
        }
        error => Failure::with_source(FailureClass::Image, "its files make no file system", error),
    }
}
