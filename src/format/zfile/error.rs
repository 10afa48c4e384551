//! What can be wrong with a ZFile, and where.

/// The rule that a header or trailer breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotRule {
    /// The slot has 512 bytes.
    #[error("it is cut short")]
    Short,
    /// The first 24 bytes are the magic numbers.
    #[error("the magic numbers are not those of ZFile")]
    Magic,
    /// The digest, where the slot says that it has one, is right.
    #[error("its digest is {computed:#010x}, but {stored:#010x} is stored")]
    Digest {
        /// The digest in the slot.
        stored: u32,
        /// The digest of the slot.
        computed: u32,
    },
    /// The slot at the start says that it is a header, the one at the end that it is a trailer.
    #[error("its flags call a header a trailer or the reverse")]
    Position,
    /// The file holds data.
    #[error("its flags do not call it a data file")]
    NotData,
    /// Writing was finished.
    #[error("its flags say that it was never finished")]
    Unsealed,
    /// Only LZ4 and ZSTD are known.
    #[error("compression algorithm {0} is not supported, only 1 (lz4) and 2 (zstd) are")]
    Algorithm(u8),
    /// No writer uses a dictionary.
    #[error("blocks that need a dictionary are not supported")]
    Dictionary,
    /// No writer compresses the table of sizes.
    #[error("a compressed table of block sizes is not supported")]
    CompressedIndex,
    /// A block has a power of two from 4 to 64 KiB.
    #[error("block size {0} is not a power of two from 4096 to 65536")]
    BlockSize(u32),
    /// There is a block for each started block size of the content.
    #[error("{count} blocks are not what {content_bytes} bytes in blocks of {block_size} take")]
    BlockCount {
        /// The claimed number of blocks.
        count: u64,
        /// The claimed size of the content in bytes.
        content_bytes: u64,
        /// The block size in bytes.
        block_size: u32,
    },
    /// Upstream reads no larger table.
    #[error("{0} blocks are more than the 1000000000 allowed")]
    TooManyBlocks(u64),
    /// The table lies between the header and the trailer.
    #[error("the table of {count} block sizes at {index_offset} does not fit in the file")]
    IndexPlace {
        /// Where the table is said to start, in bytes.
        index_offset: u64,
        /// The claimed number of blocks.
        count: u64,
    },
}

/// The rule that one block breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockRule {
    /// The checksum is right.
    #[error("its checksum is {computed:#010x}, but {stored:#010x} is stored")]
    Checksum {
        /// The checksum after the block.
        stored: u32,
        /// The checksum of the block.
        computed: u32,
    },
    /// The block can be decoded.
    #[error("it cannot be decoded")]
    Malformed,
    /// The block decodes to as many bytes as it stands for.
    #[error("it decodes to {decoded_bytes} bytes")]
    Length {
        /// Bytes that came out.
        decoded_bytes: u64,
    },
    /// The caller's two slices are as long as the block says.
    #[error("{encoded_bytes} bytes to be decoded into {decoded_bytes} do not match the table")]
    Slices {
        /// Bytes brought.
        encoded_bytes: u64,
        /// Room for the result.
        decoded_bytes: u64,
    },
}

/// Why a ZFile cannot be read. Offsets are in bytes from the start of the ZFile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZfileError {
    /// The file has no room for a header and a trailer.
    #[error("ZFile of {size_bytes} bytes is too short for a header and a trailer of 512 bytes each")]
    TooSmall {
        /// The file's size in bytes.
        size_bytes: u64,
    },
    /// The header or trailer cannot be used.
    #[error("ZFile slot at offset {offset}: {rule}")]
    Slot {
        /// Where the slot starts, in bytes.
        offset: u64,
        /// What is wrong with it.
        rule: SlotRule,
    },
    /// The caller brought another number of bytes than the table has.
    #[error("ZFile table at offset {offset}: {given_bytes} bytes were read of {wanted_bytes}")]
    IndexLength {
        /// Where the table starts, in bytes.
        offset: u64,
        /// Bytes brought.
        given_bytes: u64,
        /// Bytes that it has.
        wanted_bytes: u64,
    },
    /// The checksum of the table is wrong.
    #[error("ZFile table at offset {offset}: its checksum is {computed:#010x}, but {stored:#010x} is stored")]
    IndexChecksum {
        /// Where the table starts, in bytes.
        offset: u64,
        /// The checksum in the header or trailer.
        stored: u32,
        /// The checksum of the table.
        computed: u32,
    },
    /// A block is too short to hold anything or longer than any compressor makes it.
    #[error("ZFile table entry {number} at offset {offset}: a block cannot take {encoded_bytes} bytes")]
    EncodedSize {
        /// The block's number, from 0.
        number: u32,
        /// Where the entry lies, in bytes.
        offset: u64,
        /// The claimed size in bytes, checksum included.
        encoded_bytes: u32,
    },
    /// The blocks do not fill the space between header and table.
    #[error("ZFile table at offset {offset}: the blocks end at {data_end}, not where the table starts")]
    DataEnd {
        /// Where the table starts, in bytes.
        offset: u64,
        /// Where the sizes say that the last block ends, in bytes.
        data_end: u64,
    },
    /// A block is damaged.
    #[error("ZFile block {number} at offset {offset}: {rule}")]
    Block {
        /// The block's number, from 0.
        number: u32,
        /// Where the block starts, in bytes.
        offset: u64,
        /// What is wrong with it.
        rule: BlockRule,
    },
}
