//! Where the LSMT file lies in a blob: as it is, or compressed.

use bytes::Bytes;

use super::{
    super::LayerError,
    nearby::{Nearby, in_memory},
};
use crate::{
    block::ByteRange,
    format::{
        tar::{self, Envelope},
        zfile::{Decoder, JumpTable, Layout, SLOT_BYTES, Start, TABLE_LIMIT_BYTES, ZfileError, is_zfile},
    },
};

/// Bytes before the table of blocks that are read with it when the tail did not hold it: they have the trailer and the
/// index of the LSMT file, compressed.
const BEFORE_TABLE_BYTES: u64 = 64 << 10;

/// The same of a long table, whose index is longer: at most this much.
const BEFORE_TABLE_MOST_BYTES: u64 = 4 << 20;

/// How the LSMT file lies in its blob.
#[derive(Debug)]
pub(crate) struct Content {
    /// Where it, or the ZFile around it, starts in the blob, in bytes.
    pub(crate) start: u64,
    /// Size of the LSMT file in bytes.
    pub(crate) len: u64,
    /// The same, or of the ZFile around it.
    pub(crate) stored_bytes: u64,
    /// The blob has a tar envelope.
    pub(crate) enveloped: bool,
    /// The blocks, when it is compressed.
    pub(crate) blocks: Option<JumpTable>,
}

impl Content {
    pub(super) async fn open(near: &mut Nearby<'_>) -> Result<Self, LayerError> {
        let size = near.size_bytes();
        let head = near.get(ByteRange::between(0, size.min(tar::HEAD_BYTES as u64))).await?;
        let envelope = Envelope::detect(&head, size)?;
        let enveloped = envelope.is_some();
        let (start, len) =
            envelope.map_or((0, size), |envelope| (envelope.payload_offset, envelope.payload_len));
        let slot = ByteRange::between(start, start.saturating_add(len.min(SLOT_BYTES as u64)));
        let slot = near.get(slot).await?;
        if !is_zfile(&slot) {
            return Ok(Self { start, len, stored_bytes: len, enveloped, blocks: None });
        }
        let table = open_table(near, start, len, &slot).await?;
        let content_bytes = table.layout().content_bytes();
        Ok(Self { start, len: content_bytes, stored_bytes: len, enveloped, blocks: Some(table) })
    }

    /// Bytes of the LSMT file, which the caller knows to be few.
    pub(super) async fn read(
        &self,
        near: &mut Nearby<'_>,
        decoder: &mut Decoder,
        range: ByteRange,
    ) -> Result<Bytes, LayerError> {
        let outside =
            LayerError::Outside { offset: range.start(), len: range.len(), content_bytes: self.len };
        if range.end() > self.len {
            return Err(outside);
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let Some(table) = &self.blocks else { return Ok(near.get(self.in_blob(range)).await?) };
        let plan = table.plan(range).ok_or(outside)?;
        let encoded = near.get(self.in_blob(plan.encoded)).await?;
        let mut content = Vec::new();
        let mut skipped = 0;
        for block in plan.blocks.filter_map(|number| table.block(number)) {
            if content.is_empty() {
                skipped = in_memory(range.start() - block.content.start());
            }
            let from = in_memory(block.encoded.start() - plan.encoded.start());
            let bytes = encoded.get(from..from + in_memory(block.encoded.len())).unwrap_or_default();
            let filled = content.len();
            content.resize(filled + in_memory(block.content.len()), 0);
            let dest = content.get_mut(filled..).unwrap_or_default();
            decoder.decode(table.layout(), &block, bytes, dest).map_err(|error| self.wrong(error))?;
        }
        Ok(Bytes::from(content).slice(skipped..skipped + in_memory(range.len())))
    }

    /// The same bytes as a range of the blob.
    pub(crate) fn in_blob(&self, range: ByteRange) -> ByteRange {
        ByteRange::between(self.start.saturating_add(range.start()), self.start.saturating_add(range.end()))
    }

    /// The error of this layer for one of its ZFile.
    pub(crate) fn wrong(&self, source: ZfileError) -> LayerError {
        LayerError::Zfile { start: self.start, source }
    }
}

async fn open_table(
    near: &mut Nearby<'_>,
    start: u64,
    len: u64,
    slot: &[u8],
) -> Result<JumpTable, LayerError> {
    let wrong = |source| LayerError::Zfile { start, source };
    let shifted = |range: ByteRange| ByteRange::between(start + range.start(), start + range.end());
    let layout = match Start::decode(slot, len).map_err(wrong)? {
        Start::Complete(layout) => layout,
        Start::TrailerAt(range) => {
            let trailer = near.get(shifted(range)).await?;
            Layout::from_trailer(&trailer, len).map_err(wrong)?
        }
    };
    let index = layout.index_range();
    if index.len() > TABLE_LIMIT_BYTES {
        return Err(LayerError::TableTooLarge { table_bytes: index.len(), limit_bytes: TABLE_LIMIT_BYTES });
    }
    if !near.holds(shifted(index)) {
        let before = (index.len() / 2).clamp(BEFORE_TABLE_BYTES, BEFORE_TABLE_MOST_BYTES);
        near.bring(shifted(ByteRange::between(index.start().saturating_sub(before), index.end()))).await?;
    }
    let table = near.get(shifted(index)).await?;
    JumpTable::decode(layout, &table).map_err(wrong)
}
