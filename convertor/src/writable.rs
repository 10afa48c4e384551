//! One archive put over an image that is there: into its writable layer, or into a file that is its device.

use std::{
    fs::OpenOptions,
    io::{self, Read},
    path::Path,
    sync::atomic::Ordering,
};

use serde::{Deserialize, Serialize};
use stratabd::{
    format::oci::Digest,
    offline::{Amendment, OfflineError, Stack, Watch},
    server::failure::{Failure, FailureClass},
};
use stratabd_ext4::{Device, FileDevice, Filesystem};

use crate::{
    apply::apply,
    layer::LayerReader,
    pipeline::{TIME, file_system_failed, format_options},
};

/// How an archive is applied.
#[derive(Debug, Clone, Copy, Default)]
pub struct WritableOptions {
    /// Whether an empty ext4 takes the place of all that the device has, first. The same size makes the same one every time.
    pub format: bool,
    /// What the archive must be called by its content, after decompression and with all that follows its end.
    pub checksum: Option<Digest>,
}

/// What was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedLayer {
    /// Entries of the archive, whiteouts too.
    pub entries: u64,
    /// Extended attributes that ext4 or Linux does not have, and that were left out.
    pub dropped_xattrs: u64,
    /// Bytes of the archive after decompression.
    pub archive_bytes: u64,
    /// Its digest, which an image's configuration names.
    pub diff_id: String,
}

/// Puts the entries of `archive`, compressed or not, into the ext4 of the device of `stack`, as containerd unpacks a layer. What changes goes to
/// the writable layer, which is held meanwhile: durably, and all of it at once.
///
/// # Errors
/// When the archive or a layer cannot be read, the archive does not fit in, or is not the one that it should be; then the layer is as
/// it was, unless it is a file that could not be given its name.
pub fn apply_to_layer<P: Fn(u64, u64) + Sync>(
    stack: &Stack,
    archive: impl Read,
    options: &WritableOptions,
    watch: &Watch<P>,
) -> Result<AppliedLayer, Failure> {
    let mut amendment = Amendment::begin(stack, watch).map_err(Failure::from)?;
    if options.format {
        amendment.zero_all().map_err(Failure::from)?;
    }
    let (LayerUpper(amendment), applied) = put(LayerUpper(amendment), archive, options, watch)?;
    amendment.finish(watch).map_err(Failure::from)?;
    Ok(applied)
}

/// As [`apply_to_layer`], into the ext4 in the file at `path`. It is changed where it lies, and durable at the end.
///
/// # Errors
/// As [`apply_to_layer`]; then the file system is to be thrown away.
pub fn apply_to_file<P: Fn(u64, u64) + Sync>(
    path: &Path,
    archive: impl Read,
    options: &WritableOptions,
    watch: &Watch<P>,
) -> Result<AppliedLayer, Failure> {
    let failed = |action| {
        let path = path.to_owned();
        move |source| Failure::from(OfflineError::Io { path, action, source })
    };
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("open it"))?;
    let found = file.metadata().map_err(failed("open it"))?;
    if !found.is_file() {
        return Err(OfflineError::NotRegular(path.to_owned()).into());
    }
    if options.format {
        let emptied = file.set_len(0).and_then(|()| file.set_len(found.len()));
        emptied.map_err(failed("empty it"))?;
    }
    let device = file.try_clone().and_then(FileDevice::new).map_err(failed("open it"))?;
    let (_, applied) = put(device, archive, options, watch)?;
    file.sync_all().map_err(failed("make it durable"))?;
    Ok(applied)
}

/// Puts an archive into the file system of a device, and gives the device back when all of it is written and known to be right.
fn put<D: Device, P>(
    device: D,
    archive: impl Read,
    options: &WritableOptions,
    watch: &Watch<P>,
) -> Result<(D, AppliedLayer), Failure> {
    let unreadable = |error| Failure::with_source(FailureClass::Image, "the archive cannot be read", error);
    let ended = |failure| match watch.cancelled.load(Ordering::Relaxed) {
        true => OfflineError::Cancelled.into(),
        false => failure,
    };
    let mut filesystem = match options.format {
        true => Filesystem::format(device, &format_options(None)),
        false => Filesystem::open(device),
    }
    .map_err(file_system_failed)?;
    let mut reader = LayerReader::new(archive).map_err(unreadable).map_err(ended)?;
    let applied = apply(&mut reader, &mut filesystem)
        .map_err(|error| Failure::with_source(error.class(), "the archive cannot be applied", error))
        .map_err(ended)?;
    let summary = reader.finish().map_err(unreadable).map_err(ended)?;
    if let Some(wanted) = options.checksum.filter(|wanted| *wanted != summary.diff_id) {
        let text = format!("the archive is {}, and {wanted} was to be applied", summary.diff_id);
        return Err(Failure::new(FailureClass::Image, text));
    }
    let device = filesystem.finish(TIME).map_err(file_system_failed)?;
    let applied = AppliedLayer {
        entries: applied.entries,
        dropped_xattrs: applied.dropped_xattrs,
        archive_bytes: summary.archive_bytes,
        diff_id: summary.diff_id.to_string(),
    };
    Ok((device, applied))
}

/// The device of a writable image.
#[derive(Debug)]
struct LayerUpper(Amendment);

impl Device for LayerUpper {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buffer).map_err(io::Error::other)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write(offset, bytes).map_err(io::Error::other)
    }

    fn zero_at(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.0.zero(offset, length).map_err(io::Error::other)
    }
}
