//! Merges of the layers that snapshots of a device have left, in the background, so that it has few of them however many are made.
//!
//! What a merge takes the place of stays on the disk, since a snapshot has told its name: but for a merged layer, if no fork was
//! made since it was there. A crash leaves the old configuration or the new one, which make the same device.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{MutexGuard as Turn, Semaphore},
    task,
};

use super::{Served, blocking, pace::Pace};
use crate::{
    crash_point::CrashPoint,
    offline::{OfflineError, Watch, fold},
    server::{
        api::types::ImageSpec,
        device::{Shown, failure_of_upper, stored_bytes},
        failure::{Failure, FailureClass},
        merged_file::{MergedFile, is_marked},
        next_config::{Replaced, replace},
        own_layers::OwnLayers,
    },
    upper::{LayerFile, MergedLayer},
};

/// Layers of a device's own, but for the one that takes the writes, at which they are merged.
const MERGE_AT: usize = 8;

/// Most of them: with the one that takes the writes 16. The next snapshot waits for a merge.
const OWN_LIMIT: usize = 15;

/// Layers that are merged at least, which bounds how often there is something to merge.
const INPUTS_AT_LEAST: usize = 4;

/// A layer is merged with those above it when they have more than this part of its bytes. So each has twice the bytes of all above
/// it, and every byte is copied a number of times that grows with the logarithm of all of them.
const PART_TO_MERGE: u64 = 2;

/// What a layer counts for besides its bytes: the time that it costs each read.
const LAYER_BYTES: u64 = 64 << 10;

/// How long a snapshot waits for a merge: disks of other devices may be in its way.
const PATIENCE: Duration = Duration::from_secs(120);

/// Merges that are under way at once, of all devices.
static SLOTS: Semaphore = Semaphore::const_new(2);

/// The merges of one device.
pub(in crate::server) struct Merging {
    /// Held by who merges.
    pub(super) one: tokio::sync::Mutex<()>,
    pace: Arc<Pace>,
    watch: Watch<Box<dyn Fn(u64, u64) + Send + Sync>>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Merged layers that nobody names but the configuration of the device.
    unshared: Vec<PathBuf>,
    /// Layers that cannot be merged with those above: one layer would have too many segments.
    final_layers: Vec<PathBuf>,
}

impl Default for Merging {
    fn default() -> Self {
        let pace = Arc::new(Pace::default());
        let paced = Arc::clone(&pace);
        let progress: Box<dyn Fn(u64, u64) + Send + Sync> = Box::new(move |done, _| paced.wait(done));
        let watch = Watch { progress, cancelled: AtomicBool::new(false) };
        Self { one: tokio::sync::Mutex::default(), pace, watch, known: Mutex::default() }
    }
}

impl Merging {
    /// Ends what is under way, soon, since the device goes.
    pub(super) fn end(&self) {
        self.watch.cancelled.store(true, Ordering::Relaxed);
        self.pace.end();
    }

    /// Another configuration names the layers of the device too from now on.
    pub(super) fn is_forked(&self) {
        self.known().unshared.clear();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn for a snapshot, when the device has room for another layer of its own.
///
/// # Errors
/// Where the device is being removed.
pub(super) async fn turn_with_room(served: &Arc<Served>) -> Result<Turn<'_, ()>, Failure> {
    loop {
        let turn = served.turn().await?;
        let Ok(config) = configuration(served) else { return Ok(turn) };
        let merging = Arc::clone(served);
        let is_full = blocking(move || Ok(mergeable(&merging, &config)?.files.len() >= OWN_LIMIT));
        if !is_full.await? {
            return Ok(turn);
        }
        // Whoever merges needs it.
        drop(turn);
        let _hurry = served.merging.pace.hurry();
        let merging = begin(served);
        if !tokio::time::timeout(PATIENCE, merging)
            .await
            .is_ok_and(|merged| merged.is_ok_and(|merged| merged))
        {
            // One more is better than none.
            return served.turn().await;
        }
    }
}

/// Merges in the background what there is to merge; the task says whether it could.
pub(super) fn begin(served: &Arc<Served>) -> task::JoinHandle<bool> {
    let served = Arc::clone(served);
    task::spawn(async move {
        let Ok(config) = configuration(&served) else { return false };
        let merged = merge(&served, &config).await;
        if let Err(failure) = &merged
            && !served.merging.watch.cancelled.load(Ordering::Relaxed)
        {
            tracing::warn!(id = served.info.id, error = failure.full_text(), "layers cannot be merged");
        }
        merged.is_ok()
    })
}

/// Merges until there are few layers.
async fn merge(served: &Arc<Served>, config: &Path) -> Result<(), Failure> {
    let _one = served.merging.one.lock().await;
    loop {
        let (finding, path) = (Arc::clone(served), config.to_owned());
        let Some(inputs) = blocking(move || find(&finding, &path)).await? else { return Ok(()) };
        merge_layers(served, config, inputs).await?;
    }
}

/// What is to be merged now, if anything is.
fn find(served: &Served, config: &Path) -> Result<Option<OwnLayers>, Failure> {
    let layers = mergeable(served, config)?;
    if layers.files.len() < MERGE_AT {
        return Ok(None);
    }
    let sizes: Vec<u64> = layers.files.iter().map(|file| stored_bytes(file)).collect();
    Ok(Some(layers.skip(first_to_merge(&sizes))))
}

/// The layers of the device's own, without those that must stay as they are.
fn mergeable(served: &Served, config: &Path) -> Result<OwnLayers, Failure> {
    let layers = OwnLayers::of(config)?;
    let known = served.merging.known();
    let stays = |file: &PathBuf| known.final_layers.contains(file) || is_marked(file);
    let staying = layers.files.iter().rposition(stays).map_or(0, |last| last.saturating_add(1));
    Ok(layers.skip(staying))
}

/// The first of layers of these sizes, the lowest first, that is to be merged with all above it.
fn first_to_merge(sizes: &[u64]) -> usize {
    let mut above = 0_u64;
    let mut first = sizes.len().saturating_sub(INPUTS_AT_LEAST);
    for (number, size) in sizes.iter().enumerate().rev() {
        let size = size.saturating_add(LAYER_BYTES);
        if size < above.saturating_mul(PART_TO_MERGE) {
            first = first.min(number);
        }
        above = above.saturating_add(size);
    }
    first
}

async fn merge_layers(served: &Arc<Served>, config: &Path, inputs: OwnLayers) -> Result<(), Failure> {
    let slot = SLOTS.acquire().await.expect("it is never closed");
    let (folding, path, files) = (Arc::clone(served), config.to_owned(), inputs.files.clone());
    let folded = blocking(move || {
        let _slot = slot;
        let file = MergedFile::begin(&path)?;
        CrashPoint::MergeBegun.reach();
        let folded = fold(&files, file.data(), &folding.merging.watch);
        if let (Err(OfflineError::Unplaced { .. }), Some(lowest)) = (&folded, files.first()) {
            folding.merging.known().final_layers.push(lowest.clone());
        }
        folded?;
        keep_private(&files, file.data())?;
        CrashPoint::MergeFolded.reach();
        let data = LayerFile::open(file.data()).map_err(failure_of_upper)?;
        Ok((file, data))
    });
    let (file, data) = folded.await?;
    let loaded = served.sealer.call(move |reactor| async move { MergedLayer::load(&reactor, data).await });
    let merged = loaded
        .await
        .map_err(|_| Failure::new(FailureClass::Internal, "the reactor has stopped"))?
        .map_err(failure_of_upper)?;
    // From here on no snapshot may change the configuration, nor a fork copy it.
    let _turn = served.turn().await?;
    let (placing, path) = (Arc::clone(served), config.to_owned());
    blocking(move || put_in_place(&placing, &path, &inputs, file, merged)).await
}

/// Who may not read the layers that were merged may not read this one.
fn keep_private(inputs: &[PathBuf], merged: &Path) -> Result<(), Failure> {
    let copied = inputs.last().map_or(Ok(()), |top| {
        fs::metadata(top).and_then(|found| fs::set_permissions(merged, found.permissions()))
    });
    copied.map_err(|source| {
        let text = format!("{}: cannot give it the mode of what was merged", merged.display());
        Failure::with_source(FailureClass::Internal, text, source)
    })
}

/// Has the merged layer take the place of the others: in the configuration, and then for the device. Both make the same device,
/// so that neither reads nor writes wait.
fn put_in_place(
    served: &Served,
    config: &Path,
    inputs: &OwnLayers,
    file: MergedFile,
    merged: MergedLayer,
) -> Result<(), Failure> {
    let Shown::Overlay(overlay) = served.device.shown() else { return Ok(()) };
    let mut links = served.device.links();
    let Some(top) = links.pop() else { return Ok(()) };
    let text = inputs.replaced(config, Path::new(&top.name), links.len(), file.data())?;
    let data = file.data().to_owned();
    match replace(config, &text) {
        Replaced::Yes => {}
        Replaced::No(failure) => return Err(failure),
        Replaced::InDoubt(failure) => {
            file.leave();
            return Err(failure);
        }
    }
    CrashPoint::MergeNamed.reach();
    served.device.put_merged(overlay, merged, inputs.numbers.clone());
    let count = inputs.files.len();
    tracing::info!(id = served.info.id, layers = count, merged = %data.display(), "merged layers");
    // With its mark it is never merged, which is what could go wrong with it.
    file.unmark()?;
    CrashPoint::MergeUnmarked.reach();
    remove_superseded(served, inputs, data);
    Ok(())
}

fn remove_superseded(served: &Served, inputs: &OwnLayers, merged: PathBuf) {
    let mut known = served.merging.known();
    let (gone, left) =
        std::mem::take(&mut known.unshared).into_iter().partition(|it| inputs.files.contains(it));
    known.unshared = left;
    known.unshared.push(merged);
    drop(known);
    let gone: Vec<PathBuf> = gone;
    for path in gone {
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "a layer that was merged is left behind");
        }
    }
}

/// The configuration of a device that is written to.
fn configuration(served: &Served) -> Result<PathBuf, Failure> {
    match (served.device.shown(), &served.request.image) {
        (Shown::Overlay(_), ImageSpec::Config(config)) => Ok(config.clone()),
        _ => Err(Failure::new(FailureClass::Conflict, "the device takes no writes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes snapshots of these sizes, and returns the most layers and how often a byte was copied.
    fn simulate(sizes: impl IntoIterator<Item = u64>) -> (usize, u64) {
        let (mut layers, mut most, mut written, mut copied) = (Vec::new(), 0, 0, 0);
        for size in sizes {
            layers.push(size);
            written += size + LAYER_BYTES;
            most = most.max(layers.len());
            if layers.len() >= MERGE_AT {
                let merged: u64 = layers.split_off(first_to_merge(&layers)).into_iter().sum();
                copied += merged;
                layers.push(merged);
            }
        }
        (most, copied / written)
    }

    #[test]
    fn layers_stay_few_and_no_byte_is_copied_often() {
        let mut random = fastrand::Rng::with_seed(5);
        let alike = simulate((0..10_000).map(|_| 1 << 20));
        let any = simulate((0..10_000).map(|_| 1 << random.u32(0..40)));
        let shrinking = simulate((0..10_000).map(|number| (1_u64 << 50) >> (number % 40)));
        let empty = simulate((0..10_000).map(|_| 0));
        for (most, copies) in [alike, any, shrinking, empty] {
            assert!(most <= MERGE_AT && copies <= 12, "{alike:?} {any:?} {shrinking:?} {empty:?}");
        }
    }
}
