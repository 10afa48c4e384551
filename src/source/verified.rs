//! An origin whose bytes are held against the Merkle tree of its blob before anybody sees them.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    future::poll_fn,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{Shared, join, join_all},
};

use super::{
    BoxFuture, Origin, Proof, SourceError, Urgency, Verdict, check_length,
    proof::{Blocks, ProofPath, blocks_in, blocks_of},
};
use crate::{block::ByteRange, format::verity::WrongBlock, telemetry::Counter};

/// Blocks of the tree that are fetched together: 32 KiB, which prove 4 MiB and take less time than another request costs.
const GROUP_BLOCKS: u64 = 8;

/// How often bytes are asked for in all that turn out to be wrong.
const ATTEMPTS: usize = 3;

/// Blocks that are hashed at once: a millisecond or less, so that others on the thread go on in between.
const HASHED_BLOCKS: u64 = 64;

/// What verified origins count together.
#[derive(Debug, Default)]
pub struct ProofMetrics {
    /// Bytes that were proven right before they were used, those of trees among them.
    pub proven_bytes: Counter,
    /// Fetches whose bytes were not those of the tree, or whose tree was not that of the digest.
    pub refuted_fetches: Counter,
}

/// Asks another origin, at the same time for what is read and for what proves it.
#[derive(Debug, Clone)]
pub struct VerifiedOrigin(Arc<Inner>);

struct Inner {
    origin: Arc<dyn Origin>,
    proof: Arc<Proof>,
    metrics: Arc<ProofMetrics>,
    groups: Groups,
}

/// Groups of the tree's blocks that are on their way, by number.
type Groups = Arc<Mutex<HashMap<u64, Group>>>;
type Group = Shared<BoxFuture<'static, Result<Bytes, SourceError>>>;

impl VerifiedOrigin {
    /// Holds what `origin` gives against `proof`.
    #[must_use]
    pub fn new(origin: Arc<dyn Origin>, proof: Proof, metrics: Arc<ProofMetrics>) -> Self {
        Self(Arc::new(Inner { origin, proof: Arc::new(proof), metrics, groups: Groups::default() }))
    }
}

impl Origin for VerifiedOrigin {
    fn size_bytes(&self) -> u64 {
        self.0.origin.size_bytes()
    }

    fn name(&self) -> &str {
        self.0.origin.name()
    }

    fn lane(&self) -> &str {
        self.0.origin.lane()
    }

    fn proof(&self) -> Option<&Arc<Proof>> {
        Some(&self.0.proof)
    }

    fn read_range(
        &self,
        range: ByteRange,
        urgency: Urgency,
    ) -> BoxFuture<'static, Result<Bytes, SourceError>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.read(range, urgency).await })
    }
}

impl Inner {
    async fn read(&self, range: ByteRange, urgency: Urgency) -> Result<Bytes, SourceError> {
        let blocks = blocks_in(range);
        let whole = bytes_of(&blocks, self.origin.size_bytes());
        let mut attempt = 1;
        loop {
            let path = self.proof.path_of(&blocks);
            let bytes = join(self.origin.read_range(whole, urgency), self.tree(&path, urgency));
            let (bytes, tree) = bytes.await;
            let bytes = check_length(self.origin.name(), whole, bytes?)?;
            let Some((block, wrong)) = self.judge(&path, &blocks, &bytes, tree.blocks).await else {
                self.metrics.proven_bytes.inc_by(whole.len());
                return Ok(part_of(&bytes, whole, range));
            };
            // A part of the tree that did not come is told as such.
            if let (None, Some(error)) = (wrong, tree.failure) {
                return Err(error);
            }
            let source = wrong.unwrap_or(WrongBlock::Outside { block });
            let offset = block.saturating_mul(Proof::BLOCK_BYTES);
            self.metrics.refuted_fetches.inc();
            let name = self.origin.name().to_owned();
            if attempt == 1 {
                tracing::error!(blob = name, offset, rule = %source, "the registry sent bytes that the Merkle tree refutes; asking again");
            }
            if attempt == ATTEMPTS {
                return Err(SourceError::Refuted { name, offset, source });
            }
            attempt += 1;
        }
    }

    /// What of the tree is not known and has to be.
    async fn tree(&self, path: &ProofPath, urgency: Urgency) -> Tree {
        let groups: BTreeSet<u64> = path.lacking.iter().map(|block| block / GROUP_BLOCKS).collect();
        let arrivals = join_all(groups.into_iter().map(|number| {
            let group = self.group(number, urgency);
            async move { (self.group_blocks(number), group.await) }
        }));
        let mut tree = Tree::default();
        for (blocks, bytes) in arrivals.await {
            match bytes {
                Ok(bytes) => tree.blocks.extend(blocks_of(blocks.start, &bytes)),
                Err(error) => tree.failure = Some(error),
            }
        }
        tree
    }

    /// One group, which is asked for once however many want it.
    fn group(&self, number: u64, urgency: Urgency) -> Group {
        let mut groups = lock(&self.groups);
        if let Some(group) = groups.get(&number) {
            return group.clone();
        }
        let range = bytes_of(&self.group_blocks(number), self.origin.size_bytes());
        let answer = self.origin.read_range(range, urgency);
        let (name, underway) = (self.origin.name().to_owned(), Arc::downgrade(&self.groups));
        let group: BoxFuture<'static, _> = Box::pin(async move {
            let answer = answer.await.and_then(|bytes| check_length(&name, range, bytes));
            if let Some(groups) = underway.upgrade() {
                lock(&groups).remove(&number);
            }
            answer
        });
        let group = group.shared();
        groups.insert(number, group.clone());
        group
    }

    fn group_blocks(&self, number: u64) -> Range<u64> {
        let (tree, first) = (self.proof.tree_blocks(), number.saturating_mul(GROUP_BLOCKS));
        first.max(tree.start)..first.saturating_add(GROUP_BLOCKS).min(tree.end)
    }

    /// Whether all of `blocks` are right. If not: one that is wrong, of them or of the tree, and its rule; or the last that nothing
    /// proves.
    async fn judge(
        &self,
        path: &ProofPath,
        blocks: &Range<u64>,
        bytes: &Bytes,
        mut tree: Blocks,
    ) -> Option<(u64, Option<WrongBlock>)> {
        // What is read may be of the tree itself.
        tree.retain(|block, _| !blocks.contains(block));
        let mut path = path.clone();
        let mut found = self.proof.judge(&path, &tree);
        path.hold(tree, &found);
        let mut wanted = blocks_of(blocks.start, bytes);
        let mut all_right = true;
        while let Some(last) = wanted.keys().next_back().copied() {
            let part = wanted.split_off(&last.saturating_sub(HASHED_BLOCKS));
            let verdicts = self.proof.judge(&path, &part);
            all_right &= verdicts.values().all(|verdict| *verdict == Verdict::Right);
            path.hold(part, &verdicts);
            found.extend(verdicts);
            turn().await;
        }
        // A neighbour in a group of the tree may be wrong and needless.
        if all_right {
            return None;
        }
        let wrong = found.iter().rev().find_map(|(block, verdict)| match verdict {
            Verdict::Wrong(wrong) => Some((*block, Some(*wrong))),
            _ => None,
        });
        wrong.or_else(|| {
            found
                .iter()
                .rev()
                .find(|(_, verdict)| **verdict != Verdict::Right)
                .map(|(block, _)| (*block, None))
        })
    }
}

/// What was had of the tree, and why not all of it was.
#[derive(Default)]
struct Tree {
    blocks: Blocks,
    failure: Option<SourceError>,
}

/// The bytes of `blocks` in a blob of `size_bytes`.
fn bytes_of(blocks: &Range<u64>, size_bytes: u64) -> ByteRange {
    let [start, end] =
        [blocks.start, blocks.end].map(|block| block.saturating_mul(Proof::BLOCK_BYTES).min(size_bytes));
    ByteRange::between(start, end)
}

/// The part of `bytes`, which are those of `whole`, that `range` is.
fn part_of(bytes: &Bytes, whole: ByteRange, range: ByteRange) -> Bytes {
    let at = |offset: u64| {
        usize::try_from(offset.saturating_sub(whole.start())).unwrap_or(usize::MAX).min(bytes.len())
    };
    bytes.slice(at(range.start())..at(range.end()))
}

/// Lets others have their turn, on whatever executor.
async fn turn() {
    let mut waited = false;
    poll_fn(|context| match std::mem::replace(&mut waited, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

fn lock(groups: &Mutex<HashMap<u64, Group>>) -> MutexGuard<'_, HashMap<u64, Group>> {
    groups.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedOrigin").field("origin", &self.origin).field("proof", &self.proof).finish()
    }
}
