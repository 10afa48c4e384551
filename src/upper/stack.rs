//! What one device has written since it was opened: the layer that takes writes, over those that were sealed meanwhile.

use std::{
    io,
    ops::Range,
    pin::pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};

use super::{
    LayerFiles, LayerLink, LogLimits, MergedLayer, UpperError, WriteMetrics, check_parents,
    extents::Piece,
    gate::{Closed, Gate},
    layer::{Layer, ReadGuard},
    medium::Medium,
    merged::Below,
    view::{Reader, View},
};
use crate::{block::BlockQueue, reactor::Reactor};

/// How long the writes under way may take to end before a snapshot or another size is refused, since none goes in meanwhile. A disk
/// that takes longer has a fault, and its own time-outs, of 30 s mostly, may yet mend it.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// The layers of one device. The layer that takes writes changes only while the gate is closed.
#[derive(Debug)]
pub(super) struct Stack<M> {
    layers: RwLock<Arc<Layers<M>>>,
    /// Of the device. Changes only while the gate is closed.
    size_bytes: AtomicU64,
    limits: LogLimits,
    pub(super) gate: Arc<Gate>,
    pub(super) metrics: Arc<WriteMetrics>,
}

/// The layers as they were at some time.
#[derive(Debug)]
pub(super) struct Layers<M> {
    pub(super) top: Layer<M>,
    /// Those that take no writes any more, the newest first.
    sealed: Vec<Below<M>>,
}

/// What a range of the device consists of.
#[derive(Debug)]
pub(super) struct Found<'a, M> {
    pub(super) parts: Vec<Part<'a, M>>,
    /// Keeps the bytes in the file of the layer that takes writes; nothing happens to the others.
    pub(super) held: Option<ReadGuard<'a>>,
}

/// A part of a range.
#[derive(Debug)]
pub(super) struct Part<'a, M> {
    pub(super) sectors: Range<u64>,
    pub(super) source: Source<'a, M>,
}

/// Where the bytes of a part are.
#[derive(Debug)]
pub(super) enum Source<'a, M> {
    /// No layer has them.
    Below,
    /// Nowhere: they are zeroes.
    Zeroes,
    /// In the data file of a layer, from this sector on.
    Data(&'a M, u64),
}

/// The writable layer is sealed, and nothing is written until this is dropped: then it takes writes again, or after
/// [`Sealed::stack`] the next one does.
#[derive(Debug)]
pub struct Sealed<M: Medium = super::LayerFile> {
    stack: Arc<Stack<M>>,
    /// `None` once it takes the writes.
    next: Option<Layer<M>>,
    closed_at: Instant,
    _closed: Closed,
}

impl<M: Medium> Stack<M> {
    pub(super) fn new(top: Layer<M>, size_bytes: u64, limits: LogLimits, metrics: Arc<WriteMetrics>) -> Self {
        let layers = RwLock::new(Arc::new(Layers { top, sealed: Vec::new() }));
        Self { layers, size_bytes: AtomicU64::new(size_bytes), limits, gate: Arc::default(), metrics }
    }

    /// Size of the device in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// The layers as they are now.
    pub(super) fn layers(&self) -> Arc<Layers<M>> {
        Arc::clone(&self.layers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Seals the layer that takes writes, after all that are under way, for `next` to come over it.
    ///
    /// # Errors
    /// Where `next` cannot take its place, or it cannot be sealed, or writes have not ended after `limit`: it takes writes again then.
    pub(super) async fn seal(
        self: &Arc<Self>,
        reactor: &Reactor,
        next: LayerFiles<M>,
        limit: Duration,
    ) -> Result<Sealed<M>, UpperError> {
        let layers = self.layers();
        let next = next.load(reactor, self.limits, Arc::clone(&self.metrics)).await?;
        let name = next.data().to_string();
        if !next.is_empty() {
            return Err(UpperError::NotEmpty(name));
        }
        check_parents([layers.top.link(), next.link()])?;
        let failed = |source| UpperError::Unsealed { name: layers.top.data().to_string(), source };
        // What becomes durable while writes go on need not be waited for with the gate closed; and a layer that takes no more
        // writes gives nothing back.
        self.within(reactor, limit, layers.top.give_back(reactor)).await?.map_err(failed)?;
        let closed_at = Instant::now();
        let closed = self.within(reactor, limit, self.gate.close()).await?;
        let (next_bytes, device_bytes) = (next.header().virtual_size_bytes, self.size_bytes());
        if next_bytes != 0 && next_bytes != device_bytes {
            return Err(UpperError::OtherSize { name, size_bytes: next_bytes, device_bytes });
        }
        next.has_device(reactor, device_bytes).await?;
        layers.top.seal(reactor).await?;
        Ok(Sealed { stack: Arc::clone(self), next: Some(next), closed_at, _closed: closed })
    }

    /// Makes the device larger: in the headers of the layer that takes writes, and then for everybody.
    ///
    /// # Errors
    /// Where it would shrink, or the headers cannot be written, or writes have not ended after `limit`.
    pub(super) async fn resize<Q: BlockQueue>(
        &self,
        reader: &Reader<Q>,
        size_bytes: u64,
        limit: Duration,
    ) -> Result<(), UpperError> {
        // One that seals or resizes at a time.
        let _closed = self.within(&reader.reactor, limit, self.gate.close()).await?;
        let (layers, device_bytes) = (self.layers(), self.size_bytes());
        if size_bytes < device_bytes {
            let name = layers.top.data().to_string();
            return Err(UpperError::Shrinks { name, size_bytes, device_bytes });
        }
        layers.top.resize(&View { layers: &layers, reader }, size_bytes).await?;
        self.size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }

    /// Has `merged` take the place of those sealed layers, numbered from the oldest, that it was made of. Reads that have begun go
    /// on with these. With none it comes below all of them. The layers must not be changed meanwhile.
    pub(super) fn put_merged(&self, merged: MergedLayer<M>, inputs: Range<usize>) {
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        let count = layers.sealed.len();
        let inputs = inputs.start.min(count)..inputs.end.min(count);
        // They are kept the other way round.
        let (newer, older) = (count.saturating_sub(inputs.end), inputs.start);
        let mut sealed: Vec<_> = layers.sealed.iter().take(newer).cloned().collect();
        sealed.push(Below::Merged(Arc::new(merged)));
        sealed.extend(layers.sealed.iter().skip(count.saturating_sub(older)).cloned());
        *layers = Arc::new(Layers { top: layers.top.clone(), sealed });
    }

    /// Waits for what is under way to end, but for no longer than `limit`: `ended` is given up then.
    async fn within<T>(
        &self,
        reactor: &Reactor,
        limit: Duration,
        ended: impl Future<Output = T>,
    ) -> Result<T, UpperError> {
        match select(pin!(ended), pin!(reactor.sleep(limit))).await {
            Either::Left((output, _)) => Ok(output),
            Either::Right(_) => {
                Err(UpperError::Undrained { name: self.layers().top.data().to_string(), limit })
            }
        }
    }
}

impl<M: Medium> Sealed<M> {
    /// Has the next layer take the writes. Everything that is to find the sealed layer and the next one after a crash must be
    /// durable before. Returns how long writes were kept out.
    pub fn stack(mut self) -> Duration {
        if let Some(top) = self.next.take() {
            let written = self.stack.layers();
            written.top.end_journal();
            // Images may be made of it now. The lock that has kept them out is not given up, so that no device that is made of an
            // older configuration gets it to write to.
            if let Err(error) = written.top.data().share() {
                let layer = written.top.data();
                tracing::error!(%layer, %error, "a sealed layer stays locked for as long as its device lives");
            }
            let mut layers = self.stack.layers.write().unwrap_or_else(PoisonError::into_inner);
            let sealed = [Below::Sealed(layers.top.clone())].into_iter().chain(layers.sealed.iter().cloned());
            *layers = Arc::new(Layers { sealed: sealed.collect(), top });
        }
        self.closed_at.elapsed()
    }

    /// As [`Sealed::stack`], where a sync has failed, for `cause`, of what is to find the next layer after a crash. Nothing more
    /// is written or made durable then: a crash may leave the sealed layer alone.
    pub fn stack_in_doubt(self, cause: io::Error) -> Duration {
        if let Some(next) = &self.next {
            next.fail(cause);
        }
        self.stack()
    }

    /// Has the layer take writes again that was sealed. Returns how long they were kept out.
    pub fn give_up(self) -> Duration {
        self.closed_at.elapsed()
    }
}

impl<M: Medium> Drop for Sealed<M> {
    fn drop(&mut self) {
        if self.next.is_some() {
            // The gate is still closed.
            self.stack.layers().top.unseal();
        }
    }
}

impl<M: Medium> Layers<M> {
    /// Looks up sectors of the device for somebody who reads what was found.
    pub(super) async fn look(&self, sectors: Range<u64>) -> Found<'_, M> {
        let (pieces, held) = self.top.look(sectors).await;
        Found { held: Some(held), ..self.resolved(pieces) }
    }

    /// Looks up sectors of the device for somebody who does not read, or keeps writes away by himself.
    pub(super) fn find(&self, sectors: Range<u64>) -> Found<'_, M> {
        self.resolved(self.top.pieces(sectors))
    }

    fn resolved(&self, pieces: Vec<Piece>) -> Found<'_, M> {
        let mut parts = Vec::with_capacity(pieces.len());
        resolve(self.top.data(), pieces, &self.sealed, &mut parts);
        Found { parts, held: None }
    }

    /// Looks up sectors of the device as if the layer that takes writes were not there.
    pub(super) fn below(&self, sectors: Range<u64>) -> Vec<Part<'_, M>> {
        let mut parts = Vec::new();
        resolve(self.top.data(), vec![Piece::Hole(sectors)], &self.sealed, &mut parts);
        parts
    }

    /// How many take no writes any more.
    pub(super) fn sealed_count(&self) -> usize {
        self.sealed.len()
    }

    /// What the layers say of themselves, the lowest first.
    pub(super) fn links(&self) -> Vec<LayerLink> {
        self.sealed.iter().rev().map(Below::link).chain([self.top.link()]).collect()
    }
}

impl<M> Found<'_, M> {
    /// Whether a part of the range is for the device below.
    pub(super) fn has_holes(&self) -> bool {
        self.parts.iter().any(|part| matches!(part.source, Source::Below))
    }
}

/// Names the sources of what was looked up in the layer that has `data`, and of its holes in those below it.
fn resolve<'a, M: Medium>(
    data: &'a M,
    pieces: Vec<Piece>,
    below: &'a [Below<M>],
    parts: &mut Vec<Part<'a, M>>,
) {
    for piece in pieces {
        match (piece, below.split_first()) {
            (Piece::Extent(extent), _) => {
                let source =
                    extent.place.sector().map_or(Source::Zeroes, |sector| Source::Data(data, sector));
                parts.push(Part { sectors: extent.sectors, source });
            }
            (Piece::Hole(sectors), None) => parts.push(Part { sectors, source: Source::Below }),
            (Piece::Hole(sectors), Some((next, below))) => {
                resolve(next.data(), next.pieces(sectors), below, parts);
            }
        }
    }
}
