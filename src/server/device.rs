//! An image as one device shows it: as it is, or under a writable layer of its own.

use std::{
    ops::Range,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    api::types::LayerInfo,
    blocking::blocking_while_busy,
    factory::OpenImage,
    failure::{Failure, FailureClass},
    image_config::UpperFiles,
};
use crate::{
    block::{BlockDevice, BlockError, ErrorKind, Geometry},
    format::lsmt::{JOURNAL_FOLDER, LAYER_COUNT_LIMIT, SEGMENT_COUNT_LIMIT},
    frontend::{AttachRequest, Attachment, Frontend, FrontendError, Mark},
    image::{Image, ReadMetrics},
    limit::{Limit, Limited, Rates},
    reactor::ReactorHandle,
    supervision::{Overdue, Supervised},
    upper::{
        LayerFiles, LayerLink, LogLimits, MergedLayer, Overlay, UpperError, WriteMetrics, check_parents,
    },
};

/// What a device shows.
#[derive(Debug, Clone)]
pub enum Shown {
    /// The image as it is.
    Image(Arc<Image>),
    /// What was written to this device, and the image where nothing was.
    Overlay(Arc<Overlay<Image>>),
}

/// One device over an image, or over nothing.
#[derive(Debug)]
pub struct Device {
    image: Option<Arc<OpenImage>>,
    /// Layers of the image, from its top, that a merged one has taken the place of: it shows all that they have.
    covered: AtomicUsize,
    shown: Shown,
    reads: Arc<ReadMetrics>,
    overdue: Arc<Overdue>,
    limit: Arc<Limit>,
}

impl Device {
    /// A device of `image` that takes no writes. A request is overdue after `overdue_after`.
    #[must_use]
    pub fn read_only(image: Arc<OpenImage>, overdue_after: Duration) -> Self {
        let shown = image.image.for_device();
        let reads = Arc::clone(shown.reads());
        let covered = AtomicUsize::new(0);
        let overdue = Arc::new(Overdue::new(overdue_after));
        Self {
            image: Some(image),
            covered,
            shown: Shown::Image(Arc::new(shown)),
            reads,
            overdue,
            limit: unlimited(),
        }
    }

    /// A device of `image`, if there is one, whose writes go to the layer of `files`. Nobody else can open it while it lives. With
    /// `strict` the layers must name each other as parents, those that name any. A request is overdue after `overdue_after`.
    ///
    /// # Errors
    /// When the layer cannot be used.
    pub async fn writable(
        reactor: &ReactorHandle,
        image: Option<Arc<OpenImage>>,
        files: LayerFiles,
        strict: bool,
        overdue_after: Duration,
    ) -> Result<Self, Failure> {
        let below = image.as_ref().map(|open| open.image.for_device());
        let reads = below.as_ref().map(|below| Arc::clone(below.reads())).unwrap_or_default();
        let opened =
            reactor
                .call(move |reactor| async move {
                    Overlay::open(&reactor, files, below, LogLimits::default()).await
                })
                .await
                .map_err(|_| Failure::new(FailureClass::Internal, "the reactor has stopped"))?;
        let overlay = opened.map_err(failure_of_upper)?;
        let covered = AtomicUsize::new(0);
        let overdue = Arc::new(Overdue::new(overdue_after));
        let device = Self {
            image,
            covered,
            shown: Shown::Overlay(Arc::new(overlay)),
            reads,
            overdue,
            limit: unlimited(),
        };
        if strict {
            check_parents(device.links()).map_err(failure_of_upper)?;
        }
        Ok(device)
    }

    /// What its layers say of themselves and of those that they were made over, the lowest first.
    #[must_use]
    pub fn links(&self) -> Vec<LayerLink> {
        let below = self.image.iter().flat_map(|open| open.image.layers()).take(self.image_layers());
        let below = below.map(|layer| LayerLink {
            name: layer.name.clone(),
            uuid: layer.uuid,
            parent_uuid: layer.parent_uuid,
        });
        let written = match &self.shown {
            Shown::Image(_) => Vec::new(),
            Shown::Overlay(overlay) => overlay.links(),
        };
        below.chain(written).collect()
    }

    /// Layers of the image that the device still has.
    #[must_use]
    pub fn image_layers(&self) -> usize {
        let all = self.image.as_ref().map_or(0, |open| open.image.layers().count());
        all.saturating_sub(self.covered.load(Ordering::Acquire))
    }

    /// Has `merged` take the place of the layers `inputs` of which it was made, counted from the lowest, and which are, if any of
    /// them is one of the image's, the image's uppermost. Nobody else may change the layers meanwhile.
    pub(super) fn put_merged(&self, overlay: &Overlay<Image>, merged: MergedLayer, inputs: Range<usize>) {
        let image_layers = self.image_layers();
        let covers = image_layers.saturating_sub(inputs.start);
        let [start, end] = [inputs.start, inputs.end].map(|number| number.saturating_sub(image_layers));
        overlay.put_merged(merged, start..end);
        self.covered.fetch_add(covers, Ordering::Release);
    }

    /// Has `frontend` attach it.
    ///
    /// # Errors
    /// Those of the frontend.
    pub fn attach_to<F: Frontend>(
        &self,
        frontend: &F,
        request: &AttachRequest,
        reactors: &[ReactorHandle],
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        match &self.shown {
            Shown::Image(image) => frontend.attach(&self.guarded(image), request, reactors),
            Shown::Overlay(overlay) => frontend.attach(&self.guarded(overlay), request, reactors),
        }
    }

    /// Has `frontend` serve what waits for its next server with it.
    ///
    /// # Errors
    /// Those of the frontend.
    pub fn take_over_with<F: Frontend>(
        &self,
        frontend: &F,
        id: u32,
        mark: Option<Mark>,
        reactors: &[ReactorHandle],
        deadline: Duration,
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        match &self.shown {
            Shown::Image(image) => frontend.take_over(&self.guarded(image), id, mark, reactors, deadline),
            Shown::Overlay(overlay) => {
                frontend.take_over(&self.guarded(overlay), id, mark, reactors, deadline)
            }
        }
    }

    /// With what stands between a frontend and any device. What waits for its turn by the limit is not overdue.
    fn guarded<D: BlockDevice>(&self, device: &Arc<D>) -> Arc<Limited<Supervised<D>>> {
        let supervised = Supervised::new(Arc::clone(device), Arc::clone(&self.overdue));
        Arc::new(Limited::new(supervised, Arc::clone(&self.limit)))
    }

    /// What it may begin in a second.
    #[must_use]
    pub fn limit(&self) -> &Limit {
        &self.limit
    }

    /// Requests that have been under way for too long.
    #[must_use]
    pub fn overdue(&self) -> &Overdue {
        &self.overdue
    }

    /// What it shows.
    #[must_use]
    pub fn shown(&self) -> &Shown {
        &self.shown
    }

    /// The image below, which other devices may share.
    #[must_use]
    pub fn image(&self) -> Option<&Arc<OpenImage>> {
        self.image.as_ref()
    }

    /// Size, block sizes and abilities.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        match &self.shown {
            Shown::Image(image) => image.geometry(),
            Shown::Overlay(overlay) => overlay.geometry(),
        }
    }

    /// Counters of what was read of the image.
    #[must_use]
    pub fn reads(&self) -> &ReadMetrics {
        &self.reads
    }

    /// Counters of what the writable layer was asked for.
    #[must_use]
    pub fn writes(&self) -> Option<&WriteMetrics> {
        match &self.shown {
            Shown::Image(_) => None,
            Shown::Overlay(overlay) => Some(overlay.metrics()),
        }
    }

    /// Bytes that its writable layer, if it is a log, takes before its data file is as large as it may be.
    #[must_use]
    pub fn upper_room_bytes(&self) -> Option<u64> {
        match &self.shown {
            Shown::Image(_) => None,
            Shown::Overlay(overlay) => overlay.room_bytes(),
        }
    }

    /// Layers, lowest first, with what was fetched of each so far. `stored_bytes` says what a file takes of its file system.
    #[must_use]
    pub fn layers(&self, stored_bytes: impl Fn(&Path) -> u64) -> Vec<LayerInfo> {
        let mut layers = self.image.as_ref().map_or_else(Vec::new, |image| image.layers());
        layers.truncate(self.image_layers());
        if let Shown::Overlay(overlay) = &self.shown {
            let mut written = overlay.links();
            let top = written.pop();
            let sealed = written.into_iter().map(|link| (link, "sealed"));
            let kind = if overlay.is_sparse() { "writable, sparse" } else { "writable" };
            let all = sealed.chain(top.map(|link| (link, kind)));
            layers.extend(all.map(|(link, description)| LayerInfo {
                size_bytes: stored_bytes(Path::new(&link.name)),
                name: link.name,
                description: description.to_owned(),
                fetched: None,
            }));
        }
        layers
    }

    /// Limits of the format that are half reached: then there is time to do something about it.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let Shown::Overlay(overlay) = &self.shown else { return Vec::new() };
        let near = |count: usize, limit: usize, what: &str| {
            (count > limit / 2).then(|| format!("{count} {what} of at most {limit}"))
        };
        let pieces = usize::try_from(SEGMENT_COUNT_LIMIT).unwrap_or(usize::MAX);
        let layers = self.image_layers().saturating_add(overlay.sealed_count()).saturating_add(1);
        let found = [
            near(layers, LAYER_COUNT_LIMIT, "layers"),
            near(overlay.piece_count(), pieces, "segments in the layer that takes the writes"),
        ];
        found.into_iter().flatten().collect()
    }

    /// Makes everything durable that was written, for nobody can flush a device any more that has been removed, and gives back
    /// what room it takes for nothing.
    ///
    /// # Errors
    /// Where it cannot be: [`ErrorKind::NoSpace`] may be tried again, else nobody knows how much of it is.
    pub async fn make_durable(&self, reactor: &ReactorHandle) -> Result<(), BlockError> {
        let Shown::Overlay(overlay) = &self.shown else { return Ok(()) };
        let overlay = Arc::clone(overlay);
        let settled = reactor.call(move |reactor| async move { overlay.settle(&reactor).await });
        settled.await.unwrap_or_else(|_| Err(BlockError::new(ErrorKind::Gone, "the reactor has stopped")))
    }
}

fn unlimited() -> Arc<Limit> {
    Arc::new(Limit::new(Rates::default()))
}

/// Opens the files of a writable layer, when nobody has them any more: what a dead process has begun to write keeps them locked
/// until it has ended, which takes as long as the disk.
///
/// # Errors
/// When they cannot be opened, or somebody has them still after `patience`.
pub(super) async fn open_files(upper: &UpperFiles, patience: Duration) -> Result<LayerFiles, Failure> {
    let upper = upper.clone();
    let place = upper.data.clone();
    blocking_while_busy(&place, patience, move || files_of(&upper)).await
}

/// The files of a writable layer, with a journal, so that what it completes outlives the process. May wait for the disk.
///
/// # Errors
/// As of [`open_files`]; at once where somebody has them.
pub(super) fn files_of(upper: &UpperFiles) -> Result<LayerFiles, Failure> {
    let files = LayerFiles::open(&upper.data, &upper.index).map_err(failure_of_upper)?;
    Ok(files.with_journal(Path::new(JOURNAL_FOLDER)))
}

/// Bytes that a file takes of its file system, which are fewer than its size where it has holes; 0 where nobody can say.
pub(super) fn stored_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |found| found.blocks().saturating_mul(512))
}

/// What a writable layer says, with the class that follows from it.
pub(super) fn failure_of_upper(error: UpperError) -> Failure {
    let class = match &error {
        UpperError::Busy(_) => FailureClass::Conflict,
        UpperError::Shrinks { .. } | UpperError::Blocks { .. } => FailureClass::Usage,
        UpperError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            FailureClass::NotFound
        }
        UpperError::Undrained { .. } => FailureClass::TimedOut,
        _ => FailureClass::Image,
    };
    Failure::with_source(class, "cannot use the writable layer", error)
}
