//! One step of a request: what can be served at once is, the rest is listed.

use super::{
    Failure, RUN_BYTES, STEP_EXTENTS, WAITING_RUN_BYTES,
    block_part::{BlockPart, cut, outside},
    blocks::{BlockRun, Blocks},
    damage::{Damaged, Damages},
    scratch::Scratch,
};
use crate::{
    block::ByteRange,
    image::{
        LayerError,
        index::{Cursor, Extent},
        layer::Layer,
        metrics::SourceClass,
        open_image::OpenImage,
    },
    source::Readiness,
};

/// A step under way.
pub(super) struct Step<'a, 'd> {
    pub(super) image: &'a OpenImage,
    /// Of the request.
    pub(super) damages: &'d mut Damages,
    /// Blocks that are used whole go into the cache too.
    pub(super) keep_whole: bool,
    pub(super) class: SourceClass,
    /// What lies in compressed blocks, by layer and block.
    parts: Vec<BlockPart>,
    /// How many of these have been served, or are listed as missing.
    served: usize,
    pub(super) missing: Vec<Missing>,
}

/// Something that could not be had without waiting.
pub(super) enum Missing {
    /// Bytes that go to the destination as they are.
    Raw {
        layer: u8,
        /// Range of the blob.
        range: ByteRange,
        /// Start in the step's destination.
        dest: usize,
    },
    /// Blocks to be decoded.
    Blocks { run: BlockRun, parts: Vec<BlockPart> },
}

impl<'a, 'd> Step<'a, 'd> {
    pub(super) fn new(image: &'a OpenImage, damages: &'d mut Damages, keep_whole: bool) -> Self {
        damages.begin_round();
        Self {
            image,
            damages,
            keep_whole,
            class: SourceClass::Zero,
            parts: Vec::new(),
            served: 0,
            missing: Vec::new(),
        }
    }

    pub(super) fn has_missing(&self) -> bool {
        !self.missing.is_empty()
    }

    pub(super) fn class(&self) -> SourceClass {
        self.class
    }

    /// Takes the start of `range` on, and returns how many bytes of `dest` that is: all that need not be decoded are filled,
    /// but those that are listed as missing. [`Step::decode`] fills the others.
    pub(super) fn begin(
        &mut self,
        scratch: &mut Scratch,
        cursor: &mut Cursor,
        range: ByteRange,
        dest: &mut [u8],
    ) -> Result<usize, Failure> {
        self.parts = std::mem::take(&mut scratch.parts);
        self.parts.clear();
        let mut at = 0_usize;
        for extent in self.image.index.resolve(range, cursor).take(STEP_EXTENTS) {
            // A step has at most 1 MiB.
            let len = usize::try_from(extent.len()).unwrap_or(usize::MAX);
            let Some(part) = dest.get_mut(at..at.saturating_add(len)) else { break };
            match extent {
                Extent::Zero { .. } => part.fill(0),
                Extent::Data { layer, offset, .. } => self.serve_data(layer, offset, part, at)?,
            }
            at += len;
        }
        // Neighbours are read together then, and none is decoded twice.
        let order = |part: &BlockPart| (part.key.layer, part.key.block);
        if !self.parts.is_sorted_by_key(order) {
            self.parts.sort_unstable_by_key(order);
        }
        Ok(at)
    }

    /// Whether [`Step::decode`] is to be called again.
    pub(super) fn has_parts(&self) -> bool {
        self.served < self.parts.len()
    }

    /// Fills more of `dest`, until `limit` bytes have been decoded; returns how many have. What cannot be had at once is listed as
    /// missing.
    pub(super) fn decode(
        &mut self,
        scratch: &mut Scratch,
        dest: &mut [u8],
        limit: usize,
    ) -> Result<usize, Failure> {
        let parts = std::mem::take(&mut self.parts);
        let (mut spent, mut served) = (0, self.served);
        while let Some(rest) = parts.get(served..).filter(|rest| !rest.is_empty() && spent < limit) {
            let Some(of_layer) = rest.chunk_by(|a, b| a.key.layer == b.key.layer).next() else { break };
            let rank = of_layer.first().map_or(0, |part| part.key.layer);
            let failed = |error| Failure { layer: rank, error };
            let blocks = Blocks::new(self.image, rank, self.keep_whole).ok_or_else(|| failed(outside()))?;
            let mut pass = LayerPass { step: self, blocks, scratch, spent, limit };
            served += pass.serve(of_layer, dest).map_err(failed)?;
            spent = pass.spent;
        }
        self.served = served;
        self.parts = parts;
        if !self.has_parts() {
            scratch.parts = std::mem::take(&mut self.parts);
            self.served = 0;
        }
        Ok(spent)
    }

    /// Reads raw bytes; lists compressed ones.
    fn serve_data(&mut self, rank: u8, offset: u64, part: &mut [u8], at: usize) -> Result<(), Failure> {
        let failed = |error| Failure { layer: rank, error };
        let layer = self.image.layer(rank).ok_or_else(|| failed(outside()))?;
        if let Some(table) = &layer.content.blocks {
            let place = (offset, part.len(), at);
            return cut(&mut self.parts, (rank, layer), table.layout().block_size(), place)
                .ok_or_else(|| failed(outside()));
        }
        self.class = self.class.max(layer.source.place().into());
        let range = layer.content.in_blob(ByteRange::between(offset, offset + part.len() as u64));
        match layer.source.try_read(range.start(), part).map_err(|error| failed(error.into()))? {
            Readiness::Done => {}
            Readiness::WouldWait => self.missing.push(Missing::Raw { layer: rank, range, dest: at }),
        }
        Ok(())
    }

    /// Lists a run, joined with the one before where they meet.
    pub(super) fn add_missing(&mut self, next: BlockRun, next_parts: &[BlockPart]) {
        if let Some(Missing::Blocks { run, parts }) = self.missing.last_mut()
            && run.join(&next, WAITING_RUN_BYTES)
        {
            parts.extend_from_slice(next_parts);
            return;
        }
        self.missing.push(Missing::Blocks { run: next, parts: next_parts.to_vec() });
    }

    /// Lists blocks that have been found damaged, to be asked for again.
    pub(super) fn add_damaged(
        &mut self,
        layer: &Layer,
        damaged: Vec<(Damaged, &[BlockPart])>,
    ) -> Result<(), LayerError> {
        for (damaged, parts) in damaged {
            let run = damaged.run;
            self.damages.note(layer, damaged)?;
            self.add_missing(run, parts);
        }
        Ok(())
    }
}

/// Serves parts of one layer, until `limit` bytes are `spent`.
struct LayerPass<'a, 'b, 'd> {
    step: &'b mut Step<'a, 'd>,
    blocks: Blocks<'a>,
    scratch: &'b mut Scratch,
    spent: usize,
    limit: usize,
}

impl LayerPass<'_, '_, '_> {
    /// Returns how many parts have been served or listed.
    fn serve(&mut self, parts: &[BlockPart], dest: &mut [u8]) -> Result<usize, LayerError> {
        let table = self.blocks.table;
        let block_bytes = table.layout().block_size() as usize;
        // The run that is being gathered, and where its parts begin.
        let (mut run, mut first, mut next): (Option<BlockRun>, usize, usize) = (None, 0, 0);
        for of_block in parts.chunk_by(|a, b| a.key.block == b.key.block) {
            let key = of_block.first().ok_or_else(outside)?.key;
            let at = next;
            next += of_block.len();
            if let Some(block) = self.step.image.decoded.as_ref().and_then(|decoded| decoded.get(key)) {
                of_block.iter().try_for_each(|part| part.copy(&block, dest)).ok_or_else(outside)?;
                self.step.class = self.step.class.max(SourceClass::Decoded);
                continue;
            }
            let left = self.limit.saturating_sub(self.spent);
            let has_room = |run: &BlockRun| run.len().saturating_mul(block_bytes) < left;
            if run.as_mut().is_some_and(|run| has_room(run) && run.extend(table, key.block, RUN_BYTES)) {
                continue;
            }
            self.serve_run(run, parts.get(first..at).unwrap_or_default(), dest)?;
            if self.spent >= self.limit {
                return Ok(at);
            }
            run = Some(BlockRun::of(table, key).ok_or_else(outside)?);
            first = at;
        }
        self.serve_run(run, parts.get(first..).unwrap_or_default(), dest)?;
        Ok(parts.len())
    }

    /// Reads and decodes a run, or lists it. Among `parts` there may be some of later blocks, which were served from
    /// the cache.
    fn serve_run(
        &mut self,
        run: Option<BlockRun>,
        parts: &[BlockPart],
        dest: &mut [u8],
    ) -> Result<(), LayerError> {
        let Some(run) = run else { return Ok(()) };
        let parts = run.trim(parts);
        let layer = self.blocks.layer;
        let Scratch { encoded, workbench, .. } = &mut *self.scratch;
        self.step.class = self.step.class.max(layer.source.place().into());
        let len = usize::try_from(run.encoded.len()).map_err(|_| outside())?;
        let encoded = encoded.get_mut(..len).ok_or_else(outside)?;
        let start = layer.content.in_blob(run.encoded).start();
        if layer.source.try_read(start, encoded)? == Readiness::WouldWait {
            self.step.add_missing(run, parts);
            return Ok(());
        }
        let decoded = self.blocks.decode_some(&run, encoded, parts, workbench, dest, usize::MAX)?;
        self.spent = self.spent.saturating_add(decoded.bytes);
        self.step.add_damaged(layer, decoded.damaged)
    }
}
