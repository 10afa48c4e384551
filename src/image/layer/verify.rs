//! Reads all of a layer and checks what can be checked.

use super::{Layer, nearby::in_memory};
use crate::{
    block::ByteRange,
    format::zfile::{Decoder, JumpTable, Layout, SLOT_BYTES, SlotRule, ZfileError},
    image::{ImageError, LayerError},
    reactor::Reactor,
};

/// Bytes of the blob that are read at once.
const PART_BYTES: u64 = 1 << 20;

/// Damaged blocks that a report names; more are only counted.
const NAMED_BLOCKS: usize = 100;

/// What came of checking a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// Blocks that were decoded; 0 for a layer that is not compressed.
    pub blocks: u64,
    /// Bytes of the blob that were read.
    pub read_bytes: u64,
    /// Blocks carry checksums. Without them, only what cannot be decoded is seen, and in a layer that is not
    /// compressed nothing is.
    pub checksums: bool,
    /// Number of damaged blocks.
    pub damaged_count: u64,
    /// The first hundred of them.
    pub damaged: Vec<DamagedBlock>,
}

/// A block that cannot be decoded, or whose checksum is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedBlock {
    /// Where it starts in the blob, in bytes.
    pub offset: u64,
    /// Its number and the rule that it breaks.
    pub error: ZfileError,
}

impl Layer {
    /// Reads every byte of the layer and checks every block. `progress` is called after each MiB or so with the bytes
    /// read and those there are.
    ///
    /// # Errors
    /// [`ImageError::Layer`] when bytes cannot be had or the end of the file is missing; damage of blocks is in the report.
    pub async fn verify(
        &self,
        reactor: &Reactor,
        progress: impl FnMut(u64, u64),
    ) -> Result<VerifyReport, ImageError> {
        let name = self.source.name().to_owned();
        self.verify_parts(reactor, progress).await.map_err(|source| ImageError::Layer { name, source })
    }

    async fn verify_parts(
        &self,
        reactor: &Reactor,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<VerifyReport, LayerError> {
        let table = self.content.blocks.as_ref();
        let end = table.map_or(self.content.len, |table| table.layout().index_range().start());
        let mut report = VerifyReport {
            blocks: 0,
            read_bytes: 0,
            checksums: table.is_some_and(|table| table.layout().verify()),
            damaged_count: 0,
            damaged: Vec::new(),
        };
        if let Some(table) = table {
            self.check_trailer(reactor, table).await?;
        }
        let mut decoder = Decoder::new();
        let (mut at, mut number) =
            (table.and_then(|table| table.block(0)).map_or(0, |first| first.encoded.start()), 0);
        while at < end {
            let part = match table {
                Some(table) => part_of_blocks(table, number),
                None => ByteRange::between(at, end.min(at + PART_BYTES)),
            };
            if part.is_empty() {
                break;
            }
            let mut buffer = reactor.block_buffers().acquire(in_memory(part.len())).await?;
            self.source.read(reactor, self.content.in_blob(part).start(), &mut buffer).await?;
            if let Some(table) = table {
                number = self.check_blocks(table, number, part, &buffer, &mut decoder, &mut report);
            }
            at = part.end();
            report.read_bytes += part.len();
            progress(at, end);
        }
        Ok(report)
    }

    /// Checks the trailer of a ZFile, which is not read where the header says it all: a file that was cut off there is read, and is
    /// not whole.
    async fn check_trailer(&self, reactor: &Reactor, table: &JumpTable) -> Result<(), LayerError> {
        let (start, size_bytes) = (table.layout().index_range().end(), self.content.stored_bytes);
        if size_bytes < start.saturating_add(SLOT_BYTES as u64) {
            let cut = ZfileError::Slot { offset: start, rule: SlotRule::Short };
            return Err(self.content.wrong(cut));
        }
        let trailer = ByteRange::between(size_bytes - SLOT_BYTES as u64, size_bytes);
        let mut buffer = reactor.block_buffers().acquire(SLOT_BYTES).await?;
        self.source.read(reactor, self.content.in_blob(trailer).start(), &mut buffer).await?;
        Layout::from_trailer(&buffer, size_bytes).map_err(|error| self.content.wrong(error)).map(drop)
    }

    /// Checks the blocks of `part` from `number` on and returns the number after the last.
    fn check_blocks(
        &self,
        table: &JumpTable,
        mut number: u32,
        part: ByteRange,
        encoded: &[u8],
        decoder: &mut Decoder,
        report: &mut VerifyReport,
    ) -> u32 {
        let mut decoded = vec![0; table.layout().block_size() as usize];
        while let Some(block) = table.block(number).filter(|block| part.contains(block.encoded)) {
            let from = in_memory(block.encoded.start() - part.start());
            let bytes = encoded.get(from..from + in_memory(block.encoded.len())).unwrap_or_default();
            let dest = decoded.get_mut(..in_memory(block.content.len())).unwrap_or_default();
            if let Err(error) = decoder.decode(table.layout(), &block, bytes, dest) {
                report.damaged_count += 1;
                if report.damaged.len() < NAMED_BLOCKS {
                    let offset = self.content.in_blob(block.encoded).start();
                    report.damaged.push(DamagedBlock { offset, error });
                }
            }
            report.blocks += 1;
            number += 1;
        }
        number
    }
}

/// Blocks from `number` on that fit in [`PART_BYTES`], at least one.
fn part_of_blocks(table: &JumpTable, number: u32) -> ByteRange {
    let Some(first) = table.block(number) else { return ByteRange::between(0, 0) };
    let limit = first.encoded.start().saturating_add(PART_BYTES);
    let mut range = first.encoded;
    let mut next = number + 1;
    while let Some(block) = table.block(next).filter(|block| block.encoded.end() <= limit) {
        range = ByteRange::between(range.start(), block.encoded.end());
        next += 1;
    }
    range
}
