//! Whether what was made of the layers of an image may be used still.
//!
//! When the digest of a blob refutes its bytes, nobody knows which of them were wrong. All of them are fetched again; what was
//! decoded of the old ones is not found any more, since its key has their generation, and before the next read each layer
//! concerned looks whether the new ones still have what it was made of.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use futures_channel::oneshot;
use futures_util::future::{FutureExt, Shared};

use super::{ImageError, open_image::OpenImage};
use crate::{
    block::{BlockError, ErrorKind},
    reactor::Reactor,
    source::{Refutation, SourceError},
};

/// A look at the layers that is under way. All who need what comes of it share it, on any thread.
type Look = Shared<oneshot::Receiver<Result<(), SourceError>>>;

/// Asking costs two words of memory as long as nothing was refuted.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Counts the refutations of all layers.
    pub(super) refutation: Arc<Refutation>,
    /// The generation in which all layers were found to be as they were.
    certain: AtomicU32,
    /// The name of a layer that was not.
    fallen: OnceLock<String>,
    look: Mutex<Option<Look>>,
}

impl Standing {
    #[inline]
    pub(super) fn is_certain(&self) -> bool {
        self.refutation.generation() == self.certain.load(Ordering::Acquire)
    }

    /// The layer that was another blob, if one was.
    pub(super) fn fallen(&self) -> Option<&str> {
        self.fallen.get().map(String::as_str)
    }
}

impl OpenImage {
    /// Finds out whether what was made of the layers may be used.
    ///
    /// # Errors
    /// When it may not: the index lives as long as the image, and so that fails whole; who opens it anew gets one that is made
    /// of other bytes. When a layer cannot be read now.
    #[cold]
    pub(super) async fn make_sure(self: &Arc<Self>, reactor: &Reactor) -> Result<(), BlockError> {
        while !self.stands() {
            if let Some(blob) = self.standing.fallen() {
                let cause = ImageError::Refuted { blob: blob.to_owned() };
                return Err(BlockError::with_source(ErrorKind::Io, "cannot read the image's data", cause));
            }
            let looked = self.look(reactor).await.map_err(|_| {
                BlockError::new(ErrorKind::Io, "the thread that looked at the image's layers has ended")
            })?;
            looked?;
        }
        Ok(())
    }

    /// The look that is under way, or one that begins now.
    fn look(self: &Arc<Self>, reactor: &Reactor) -> Look {
        let mut current = self.standing.look.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(look) = current.as_ref().filter(|look| look.peek().is_none()) {
            return look.clone();
        }
        let (sender, receiver) = oneshot::channel();
        let look = receiver.shared();
        *current = Some(look.clone());
        let (image, on) = (Arc::clone(self), reactor.clone());
        reactor.spawn(async move {
            let looked = image.look_at_layers(&on).await;
            // Nobody may wait for it any more.
            let _ = sender.send(looked);
        });
        look
    }

    async fn look_at_layers(&self, reactor: &Reactor) -> Result<(), SourceError> {
        let generation = self.standing.refutation.generation();
        for layer in &self.layers {
            if !layer.is_founded(reactor).await? {
                let blob = layer.source.name();
                tracing::error!(
                    blob,
                    "the registry sent another blob than that of its digest: images made of it fail"
                );
                self.standing.fallen.get_or_init(|| blob.to_owned());
                return Ok(());
            }
        }
        self.standing.certain.fetch_max(generation, Ordering::AcqRel);
        Ok(())
    }
}
