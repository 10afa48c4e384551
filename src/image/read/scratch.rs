//! Memory and decoders that a thread reuses from request to request.
//!
//! They belong to the thread and not to a queue, so that their size does not grow with devices. They are borrowed only
//! between two awaits, hence by one request at a time.

use std::cell::RefCell;

use super::block_part::BlockPart;
use crate::format::zfile::{BLOCK_SIZE_MAX, Decoder};

/// The largest run: the largest block is longer than `RUN_BYTES` and has 65,861 bytes.
const ENCODED_BYTES: usize = 68 << 10;

pub(super) struct Scratch {
    /// Pieces of the step at hand.
    pub(super) parts: Vec<BlockPart>,
    /// Compressed bytes of one run.
    pub(super) encoded: Box<[u8]>,
    pub(super) workbench: Workbench,
}

/// What decoding one block needs.
pub(super) struct Workbench {
    pub(super) decoder: Decoder,
    /// A block of which only a part is wanted.
    pub(super) block: Box<[u8]>,
}

thread_local! {
    static SCRATCH: RefCell<Option<Box<Scratch>>> = const { RefCell::new(None) };
}

/// Runs `work` with the thread's scratch memory.
pub(super) fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    // Taken out, so that a source that reads another image would merely make a second one.
    let mut scratch = SCRATCH.take().unwrap_or_else(|| Box::new(Scratch::new()));
    let result = work(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}

impl Scratch {
    fn new() -> Self {
        Self {
            parts: Vec::new(),
            encoded: vec![0; ENCODED_BYTES].into_boxed_slice(),
            workbench: Workbench {
                decoder: Decoder::new(),
                block: vec![0; BLOCK_SIZE_MAX as usize].into_boxed_slice(),
            },
        }
    }
}
