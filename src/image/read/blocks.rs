//! Runs of neighbouring compressed blocks, and decoding them.

use super::{
    block_part::{BlockPart, outside},
    damage::Damaged,
    scratch::Workbench,
};
use crate::{
    block::ByteRange,
    format::zfile::{Block, Decoder, JumpTable},
    image::{LayerError, decoded::BlockKey, layer::Layer, open_image::OpenImage},
};

/// Neighbouring blocks of one layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockRun {
    pub(super) first: BlockKey,
    /// Number of the last one.
    last: u32,
    /// Their bytes in the ZFile.
    pub(super) encoded: ByteRange,
}

impl BlockRun {
    pub(super) fn of(table: &JumpTable, key: BlockKey) -> Option<Self> {
        let encoded = table.block(key.block)?.encoded;
        Some(Self { first: key, last: key.block, encoded })
    }

    /// Takes the block `number` in, if it is the next one and the run stays below `limit` compressed bytes.
    pub(super) fn extend(&mut self, table: &JumpTable, number: u32, limit: u64) -> bool {
        let next = table.block(number).filter(|_| self.last.checked_add(1) == Some(number));
        match next {
            Some(block) if block.encoded.end() - self.encoded.start() <= limit => {
                self.last = number;
                self.encoded = ByteRange::between(self.encoded.start(), block.encoded.end());
                true
            }
            _ => false,
        }
    }

    /// Takes the run in that follows, if both together stay below `limit` compressed bytes.
    pub(super) fn join(&mut self, next: &Self, limit: u64) -> bool {
        let follows = |last: u32| Some(BlockKey { block: last.checked_add(1)?, ..self.first });
        let joins =
            follows(self.last) == Some(next.first) && next.encoded.end() - self.encoded.start() <= limit;
        if joins {
            self.last = next.last;
            self.encoded = ByteRange::between(self.encoded.start(), next.encoded.end());
        }
        joins
    }

    /// How many blocks it has.
    pub(super) fn len(&self) -> usize {
        (self.last - self.first.block) as usize + 1
    }

    /// The parts that lie in its blocks, of some sorted ones.
    pub(super) fn trim<'p>(&self, parts: &'p [BlockPart]) -> &'p [BlockPart] {
        let end = parts.partition_point(|part| part.key.block <= self.last);
        let start = parts.partition_point(|part| part.key.block < self.first.block);
        parts.get(start..end).unwrap_or_default()
    }
}

/// What came of decoding some blocks.
pub(super) struct Decoded<'p> {
    /// Bytes that were decoded, damaged blocks included.
    pub(super) bytes: usize,
    /// Pieces of blocks that were not looked at.
    pub(super) rest: &'p [BlockPart],
    /// Blocks that are wrong, and the parts of each.
    pub(super) damaged: Vec<(Damaged, &'p [BlockPart])>,
}

/// The compressed layer whose blocks are decoded.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    pub(super) image: &'a OpenImage,
    pub(super) layer: &'a Layer,
    pub(super) table: &'a JumpTable,
    /// Blocks that are used whole go into the cache too.
    pub(super) keep_whole: bool,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(image: &'a OpenImage, rank: u8, keep_whole: bool) -> Option<Self> {
        let layer = image.layer(rank)?;
        Some(Self { image, layer, table: layer.content.blocks.as_ref()?, keep_whole })
    }

    /// Counts blocks that were decoded.
    pub(super) fn count(&self, blocks: usize) {
        self.image.metrics.decoded_blocks.inc_by(blocks as u64);
    }

    /// Decodes the blocks of `run` that `parts` are of, one after the other, until so many bytes are decoded.
    pub(super) fn decode_some<'p>(
        &self,
        run: &BlockRun,
        encoded: &[u8],
        parts: &'p [BlockPart],
        workbench: &mut Workbench,
        dest: &mut [u8],
        limit: usize,
    ) -> Result<Decoded<'p>, LayerError> {
        let mut decoded = Decoded { bytes: 0, rest: parts, damaged: Vec::new() };
        let mut count = 0;
        for of_block in parts.chunk_by(|a, b| a.key.block == b.key.block) {
            if decoded.bytes >= limit {
                break;
            }
            match self.decode(run, encoded, of_block, workbench, dest)? {
                Some(damaged) => decoded.damaged.push((damaged, of_block)),
                None => count += 1,
            }
            decoded.bytes += self.table.layout().block_size() as usize;
            decoded.rest = decoded.rest.get(of_block.len()..).unwrap_or_default();
        }
        self.count(count);
        Ok(decoded)
    }

    /// Checks and decodes the block that all of `parts` are of and fills their parts of `dest`. `encoded` has the
    /// bytes of `run`. Returns the damage, if there is any; then nothing of `dest` is to be relied on.
    pub(super) fn decode(
        &self,
        run: &BlockRun,
        encoded: &[u8],
        parts: &[BlockPart],
        workbench: &mut Workbench,
        dest: &mut [u8],
    ) -> Result<Option<Damaged>, LayerError> {
        let key = parts.first().ok_or_else(outside)?.key;
        let block = self.table.block(key.block).ok_or_else(outside)?;
        let size = usize::try_from(block.content.len()).map_err(|_| outside())?;
        let whole = match parts {
            [part] if part.within == 0 && part.len as usize == size => Some(part),
            _ => None,
        };
        let Workbench { decoder, block: room } = workbench;
        let target = match whole {
            Some(part) => part.place(dest),
            None => room.get_mut(..size),
        };
        let target = target.ok_or_else(outside)?;
        if let Some(damaged) = self.decode_to(key, &block, run, encoded, decoder, target)? {
            return Ok(Some(damaged));
        }
        if let Some(decoded) = self.image.decoded.as_ref().filter(|_| whole.is_none() || self.keep_whole) {
            decoded.insert(key, target);
        }
        if whole.is_none() {
            let decoded = room.get(..size).ok_or_else(outside)?;
            parts.iter().try_for_each(|part| part.copy(decoded, dest)).ok_or_else(outside)?;
        }
        Ok(None)
    }

    /// What is wrong with the block that is all of `run` and has these bytes, if anything is. A good one goes into the cache.
    pub(super) fn check(
        &self,
        run: &BlockRun,
        encoded: &[u8],
        workbench: &mut Workbench,
    ) -> Result<Option<Damaged>, LayerError> {
        let key = run.first;
        let block = self.table.block(key.block).ok_or_else(outside)?;
        let size = usize::try_from(block.content.len()).map_err(|_| outside())?;
        let Workbench { decoder, block: room } = workbench;
        let target = room.get_mut(..size).ok_or_else(outside)?;
        let damaged = self.decode_to(key, &block, run, encoded, decoder, target)?;
        if damaged.is_none() {
            self.count(1);
            if let Some(decoded) = &self.image.decoded {
                decoded.insert(key, target);
            }
        }
        Ok(damaged)
    }

    /// Decodes one block to `target`, which is as long. `encoded` has the bytes of `run`.
    fn decode_to(
        &self,
        key: BlockKey,
        block: &Block,
        run: &BlockRun,
        encoded: &[u8],
        decoder: &mut Decoder,
        target: &mut [u8],
    ) -> Result<Option<Damaged>, LayerError> {
        let encoded = part_of(run, block, encoded).ok_or_else(outside)?;
        let Err(error) = decoder.decode(self.table.layout(), block, encoded, target) else { return Ok(None) };
        self.image.metrics.damaged_blocks.inc();
        let run = BlockRun { first: key, last: key.block, encoded: block.encoded };
        Ok(Some(Damaged { key, run, error }))
    }
}

fn part_of<'e>(run: &BlockRun, block: &Block, encoded: &'e [u8]) -> Option<&'e [u8]> {
    let start = block.encoded.start().checked_sub(run.encoded.start())?;
    let start = usize::try_from(start).ok()?;
    encoded.get(start..start.checked_add(usize::try_from(block.encoded.len()).ok()?)?)
}
