//! What the engine is held against: the same blocks checked and decompressed with nothing around.

use stratabd::{
    block::ByteRange,
    format::{
        crc,
        zfile::{BLOCK_CRC_SEED, Block, JumpTable, Layout, SLOT_BYTES, Start},
    },
};

use super::layer_writer::Algorithm;

/// The table of a ZFile in memory.
pub(crate) fn table(file: &[u8]) -> JumpTable {
    let slot = file.get(..SLOT_BYTES).expect("a header");
    let layout: Layout = match Start::decode(slot, file.len() as u64).expect("the header just written") {
        Start::Complete(layout) => layout,
        Start::TrailerAt(_) => unreachable!("the header says it all"),
    };
    let index = layout.index_range();
    JumpTable::decode(layout, slice(file, index)).expect("the table just written")
}

/// The blocks that hold `len` bytes at `offset` of the content.
pub(crate) fn blocks(table: &JumpTable, offset: u64, len: u64) -> Vec<Block> {
    let plan = table.plan(ByteRange::between(offset, offset + len)).expect("inside the content");
    plan.blocks.filter_map(|number| table.block(number)).collect()
}

pub(crate) fn slice(file: &[u8], range: ByteRange) -> &[u8] {
    file.get(range.start() as usize..range.end() as usize).expect("inside the file")
}

/// The bare libraries, contexts reused.
pub(crate) struct Bare {
    codec: Algorithm,
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Bare {
    pub(crate) fn new(codec: Algorithm) -> Self {
        Self { codec, zstd: zstd::bulk::Decompressor::new().expect("a context") }
    }

    /// Checks and decompresses one block into the start of `dest`.
    pub(crate) fn decode(&mut self, encoded: &[u8], dest: &mut [u8]) -> usize {
        let (compressed, sum) = encoded.split_last_chunk().expect("a checksum");
        assert_eq!(crc::raw(BLOCK_CRC_SEED, compressed), u32::from_le_bytes(*sum));
        match self.codec {
            Algorithm::Zstd => self.zstd.decompress_to_buffer(compressed, dest).expect("a block"),
            Algorithm::Lz4 => {
                let room = dest.len() as i32;
                lz4::block::decompress_to_buffer(compressed, Some(room), dest).expect("a block")
            }
        }
    }
}
