//! What proves the bytes of a blob: its Merkle tree, as far as it is known.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::{
    block::ByteRange,
    format::verity::{BLOCK_BYTES, TreeShape, Verifier, Verity, VerityError, WrongBlock},
};

/// Blocks of the tree that are kept in memory of each blob, 128 KiB: what proves 16 MiB here and there. A cache keeps the others.
const MOST_KNOWN: usize = 32;

/// Blocks of a blob by their number.
pub type Blocks = BTreeMap<u64, Bytes>;

/// Tells right bytes of a blob from wrong ones. It reads nothing: whoever reads asks which blocks of the tree it wants to be
/// given. Shared by all who read the blob.
pub struct Proof {
    verity: Verity,
    verifier: Verifier,
    known: Mutex<Known>,
}

/// Blocks of the tree that were found right.
#[derive(Default)]
struct Known {
    blocks: BTreeMap<u64, KnownBlock>,
    /// Counts uses.
    clock: u64,
}

struct KnownBlock {
    bytes: Bytes,
    used: u64,
    is_kept: bool,
}

/// What leads from some blocks to the top of the tree.
#[derive(Debug, Clone, Default)]
pub struct ProofPath {
    /// Blocks of the tree that were found right.
    held: Blocks,
    /// Numbers of those that are not known, lowest first.
    pub lacking: Vec<u64>,
}

impl ProofPath {
    /// Takes those of `blocks` to it that were found right.
    pub fn hold(&mut self, blocks: Blocks, verdicts: &BTreeMap<u64, Verdict>) {
        let right = blocks.into_iter().filter(|(block, _)| verdicts.get(block) == Some(&Verdict::Right));
        self.held.extend(right);
    }
}

/// What came of holding a block against the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the blob's.
    Right,
    /// It is not.
    Wrong(WrongBlock),
    /// What would prove it is wrong, or is not there.
    Unproven,
}

impl Proof {
    /// Bytes of a block.
    pub const BLOCK_BYTES: u64 = BLOCK_BYTES;

    /// The proof of a blob of `size_bytes` with this tree.
    ///
    /// # Errors
    /// Where a blob with such a tree has another size.
    pub fn new(verity: Verity, size_bytes: u64) -> Result<Self, VerityError> {
        let verifier = Verifier::new(verity.shape_in(size_bytes)?, verity.digest());
        Ok(Self { verity, verifier, known: Mutex::default() })
    }

    /// What the tree is called: blobs of the same bytes may be said to have different ones.
    #[must_use]
    pub fn name(&self) -> String {
        self.verity.digest().hex()
    }

    /// Where the content of the blob ends and the tree begins, in bytes.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.verity.tree_offset()
    }

    /// The numbers of the tree's blocks.
    #[must_use]
    pub fn tree_blocks(&self) -> Range<u64> {
        self.shape().tree_blocks()
    }

    /// What is needed to tell whether these blocks are right, but for those that are among them.
    #[must_use]
    pub fn path_of(&self, blocks: &Range<u64>) -> ProofPath {
        let mut path = ProofPath::default();
        let mut known = self.known();
        let last = blocks.end.checked_sub(1).filter(|last| *last >= blocks.start);
        let mut below = last.map(|last| (blocks.start, last));
        // Blocks of several levels have those above the lowest among them, or above these again.
        while let Some((first, last)) = below {
            let parents: Vec<u64> = self.parents(first, last).collect();
            below = None;
            for parent in parents {
                if path.held.contains_key(&parent) || path.lacking.contains(&parent) {
                    continue;
                }
                if !blocks.contains(&parent) {
                    if let Some(bytes) = known.use_block(parent) {
                        path.held.insert(parent, bytes);
                        continue;
                    }
                    path.lacking.push(parent);
                }
                let (first, _) = below.unwrap_or((parent, parent));
                below = Some((first, parent));
            }
        }
        path.lacking.sort_unstable();
        path
    }

    /// Holds blocks against the tree: those that `path` is of, and those of the tree that it lacks, as far as they were had. Those
    /// of the tree that are right are known from now on.
    pub fn judge(&self, path: &ProofPath, blocks: &Blocks) -> BTreeMap<u64, Verdict> {
        let mut verdicts = BTreeMap::new();
        // What proves a block has a higher number, so it was judged before.
        for (block, bytes) in blocks.iter().rev() {
            let parent = match self.shape().parent(*block) {
                None => Some(&[][..]),
                Some((parent, _)) => match verdicts.get(&parent) {
                    Some(Verdict::Right) => blocks.get(&parent),
                    Some(_) => None,
                    None => path.held.get(&parent),
                }
                .map(|bytes| &bytes[..]),
            };
            let verdict = match parent.map(|parent| self.verifier.check(*block, bytes, parent)) {
                None => Verdict::Unproven,
                Some(Ok(())) => Verdict::Right,
                Some(Err(wrong)) => Verdict::Wrong(wrong),
            };
            if verdict == Verdict::Right && self.tree_blocks().contains(block) {
                self.known().learn(*block, bytes);
            }
            verdicts.insert(*block, verdict);
        }
        verdicts
    }

    /// Blocks of the tree that were found right and that nobody has taken so to keep them.
    #[must_use]
    pub fn take_unkept(&self) -> Blocks {
        let mut known = self.known();
        let unkept = known.blocks.iter_mut().filter(|(_, block)| !block.is_kept);
        unkept
            .map(|(number, block)| {
                block.is_kept = true;
                (*number, block.bytes.clone())
            })
            .collect()
    }

    fn shape(&self) -> &TreeShape {
        self.verifier.shape()
    }

    /// The blocks that have the hashes of those from `first` to `last`, of all levels that these are of.
    fn parents(&self, first: u64, last: u64) -> impl Iterator<Item = u64> + use<> {
        let of = |block| self.shape().parent(block).map(|(parent, _)| parent);
        // The topmost has none, and what is behind it neither.
        let top = self.tree_blocks().end.saturating_sub(1);
        let end = of(last).unwrap_or(top);
        of(first).map(|start| start..=end).into_iter().flatten()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn use_block(&mut self, number: u64) -> Option<Bytes> {
        self.clock = self.clock.saturating_add(1);
        let block = self.blocks.get_mut(&number)?;
        block.used = self.clock;
        Some(block.bytes.clone())
    }

    fn learn(&mut self, number: u64, bytes: &[u8]) {
        if self.use_block(number).is_some() {
            return;
        }
        if self.blocks.len() >= MOST_KNOWN
            && let Some(oldest) =
                self.blocks.iter().min_by_key(|(_, block)| block.used).map(|(number, _)| *number)
        {
            self.blocks.remove(&oldest);
        }
        // A copy of its own: what it was a part of may be large.
        let bytes = Bytes::copy_from_slice(bytes);
        self.blocks.insert(number, KnownBlock { bytes, used: self.clock, is_kept: false });
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").field("verity", &self.verity.to_string()).finish_non_exhaustive()
    }
}

/// The numbers of the blocks that `range` touches.
#[must_use]
pub fn blocks_in(range: ByteRange) -> Range<u64> {
    match range.is_empty() {
        true => 0..0,
        false => range.start() / BLOCK_BYTES..range.end().div_ceil(BLOCK_BYTES),
    }
}

/// The blocks that `bytes` are, which begin with the block `first`.
#[must_use]
pub fn blocks_of(first: u64, bytes: &Bytes) -> Blocks {
    let len = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
    let starts = (0..bytes.len()).step_by(len);
    (first..)
        .zip(starts)
        .map(|(number, start)| (number, bytes.slice(start..start.saturating_add(len).min(bytes.len()))))
        .collect()
}
