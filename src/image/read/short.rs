//! The short ways of a read: one extent that lies in memory, as raw bytes or in a single block, and one that the kernel moves.
//!
//! Most small reads are such ones, and the steps' lists and runs would cost them more than the search of the index does.

use std::rc::Rc;

use super::{
    Reader,
    block_part::BlockPart,
    blocks::{BlockRun, Blocks},
    scratch::{Scratch, with_scratch},
};
use crate::{
    block::ByteRange,
    format::zfile::JumpTable,
    image::{decoded::BlockKey, index::Extent, layer::Layer, metrics::SourceClass},
    reactor::BufferSlot,
    source::{BlobSource, Readiness},
};

impl Reader {
    /// Fills `dest` with `range`, which is as long, if that can be done the short way. What is the matter where it cannot
    /// is for the steps to find.
    // Apart from the steps, whose code would fill the processor's nearest cache for instructions.
    #[inline(never)]
    pub(super) fn read_short(&self, range: ByteRange, dest: &mut [u8]) -> Option<SourceClass> {
        let (layer, rank, offset) = self.one_extent(range)?;
        if let Some(table) = &layer.content.blocks {
            return self.read_block(layer, table, rank, offset, dest);
        }
        let start = layer.content.start.saturating_add(offset);
        ready(layer, start, dest).then(|| {
            self.reactor.copied(dest.len());
            layer.source.place().into()
        })
    }

    /// Has the kernel read the bytes into `slot`, where all of them lie in one file as they are; returns whether it has.
    pub(in crate::image) async fn read_to_slot(&self, offset: u64, len: u32, slot: &Rc<BufferSlot>) -> bool {
        let Some((source, range)) = self.locate(offset, len) else { return false };
        let (Some(file), Some(mark)) = (source.file(), source.begin_direct(range)) else { return false };
        if !self.image.stands() {
            return false;
        }
        let began = self.begin();
        // What a failure means is for the read that follows to find.
        let count = self.reactor.read_to_slot(file, range.start(), slot, len).await;
        let served = count.is_ok_and(|count| count == len as usize) && source.end_direct(range, mark);
        if served {
            self.metrics.direct.inc();
            self.served(began, range.len(), source.place().into());
        }
        served
    }

    /// The source that has all of a range of the device as it is, and where.
    fn locate(&self, offset: u64, len: u32) -> Option<(&dyn BlobSource, ByteRange)> {
        let range = ByteRange::new(offset, u64::from(len)).ok()?;
        let (layer, _, offset) = self.one_extent(range)?;
        let as_it_is = layer.content.blocks.is_none();
        let range = ByteRange::between(offset, offset.saturating_add(range.len()));
        as_it_is.then(|| (&*layer.source, layer.content.in_blob(range)))
    }

    /// The layer that has all of `range`, its rank, and where in its LSMT file.
    #[inline]
    fn one_extent(&self, range: ByteRange) -> Option<(&Layer, u8, u64)> {
        let mut cursor = self.cursor.get();
        let extent = self.image.index.resolve(range, &mut cursor).next();
        self.cursor.set(cursor);
        match extent {
            Some(Extent::Data { layer: rank, offset, len }) if len == range.len() => {
                Some((self.image.layer(rank)?, rank, offset))
            }
            _ => None,
        }
    }

    /// Fills `dest` with the bytes at `offset` of a compressed layer, if they lie in one block.
    fn read_block(
        &self,
        layer: &Layer,
        table: &JumpTable,
        rank: u8,
        offset: u64,
        dest: &mut [u8],
    ) -> Option<SourceClass> {
        let size = table.layout().block_size();
        let key = BlockKey::new(rank, layer, u32::try_from(offset >> size.trailing_zeros()).ok()?);
        let within = u32::try_from(offset & u64::from(size - 1)).ok()?;
        let len = u32::try_from(dest.len()).ok().filter(|len| *len <= size - within)?;
        let part = BlockPart { key, within, len, dest: 0 };
        if let Some(block) = self.image.decoded.as_ref().and_then(|decoded| decoded.get(key)) {
            return part.copy(&block, dest).map(|()| SourceClass::Decoded);
        }
        let run = BlockRun::of(table, key)?;
        with_scratch(|Scratch { encoded, workbench, .. }| {
            let encoded = encoded.get_mut(..usize::try_from(run.encoded.len()).ok()?)?;
            if !ready(layer, layer.content.in_blob(run.encoded).start(), encoded) {
                return None;
            }
            let blocks = Blocks { image: &self.image, layer, table, keep_whole: true };
            let decoded = blocks.decode(&run, encoded, &[part], workbench, dest);
            self.reactor.decoded(size as usize);
            matches!(decoded, Ok(None)).then(|| {
                blocks.count(1);
                layer.source.place().into()
            })
        })
    }
}

/// Whether all bytes at `offset` of the blob were in memory, and are in `dest` now.
fn ready(layer: &Layer, offset: u64, dest: &mut [u8]) -> bool {
    matches!(layer.source.try_read(offset, dest), Ok(Readiness::Done))
}
