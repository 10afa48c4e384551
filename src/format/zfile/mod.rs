//! ZFile: a file cut in blocks that are compressed one by one, with a table of their sizes.
//!
//! ```text
//! 0        512                        index_offset             size - 512      size
//! | header | block [crc] block [crc] … | u32 size of each block | trailer      |
//! ```
//!
//! To open one, give its first [`SLOT_BYTES`] to [`Start::decode`]. The answer is either the [`Layout`], or where the
//! trailer that holds it is: then read that and give it to [`Layout::from_trailer`]. Read [`Layout::index_range`] and
//! give it to [`JumpTable::decode`]. From then on [`JumpTable::plan`] says which blocks and which bytes of the file a
//! range of the content needs, and a [`Decoder`] checks and decodes them one by one.
//!
//! To make one, give its content block by block to an [`Encoder`], of which threads may have one each, and their sizes
//! in order to a [`Writer`], which knows what stands before and after the blocks.

mod decoder;
mod encoder;
mod error;
mod header;
mod jump_table;
mod layout;
#[cfg(test)]
mod tests;
mod writer;
#[cfg(test)]
mod writer_tests;

pub use decoder::{BLOCK_CRC_SEED, Decoder};
pub use encoder::{BlockFormat, EncodeError, Encoder};
pub use error::{BlockRule, SlotRule, ZfileError};
pub use header::{Flags, Header, SLOT_BYTES, is_zfile};
pub use jump_table::{Block, JumpTable, Plan};
pub use layout::{
    Algorithm, BLOCK_COUNT_LIMIT, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, Layout, Start, TABLE_LIMIT_BYTES,
};
pub use writer::{Tail, Writer};
