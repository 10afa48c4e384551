//! Holds what another process or boot has left against its checksums and, where the blob has a Merkle tree, against that.
//!
//! A checksum lies beside what it is of: it finds what a disk has damaged, not what somebody has changed. The tree leads to a
//! digest that the image's manifest has. Blocks of the tree are kept as all else of the blob is, before what they prove, and go only with the whole
//! entry; what they do not prove is missing, and is fetched again.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use super::{
    entry::{Entry, parts},
    grain::{ABSENT, GRAIN_BYTES, Grains, Sum, bytes_of, sums_of},
};
use crate::{
    reactor::{Buffer, Reactor},
    source::{Blocks, LocalFile, Proof, ProofPath, Verdict, blocks_of},
};

/// Most grains that are proven together: one read through the ring.
const PROVED_GRAINS: u64 = LocalFile::CHUNK_BYTES as u64 / GRAIN_BYTES;

/// A grain is a block of the tree.
const _: () = assert!(GRAIN_BYTES == Proof::BLOCK_BYTES, "each grain has a hash of its own");

impl Entry {
    /// Proves those `grains` that another process or boot has left. What is damaged is missing then, all of it.
    pub(super) async fn prove(self: &Arc<Self>, reactor: &Reactor, grains: &Grains) -> io::Result<()> {
        let mut damaged = 0;
        for part in
            self.ledger.presence().unproven(grains).into_iter().flat_map(|run| parts(run, PROVED_GRAINS))
        {
            let wanted: Vec<Sum> = self.ledger.presence().sums(&part).collect();
            let bytes = self.read_grains(reactor, &part).await?;
            let mut found: Vec<Sum> = sums_of(&bytes).collect();
            if let Some(proof) = &self.proof {
                self.hold_against(proof, reactor, &part, &bytes, &mut found).await?;
            }
            damaged += self.ledger.judge(part.start, &wanted, found.into_iter());
        }
        if damaged > 0 {
            let offset = grains.start * GRAIN_BYTES;
            tracing::warn!(blob = %self.key, offset, grains = damaged, "damaged in the cache; fetching again");
            self.shared.metrics.damaged_grains.inc_by(damaged);
            self.settle_soon();
        }
        Ok(())
    }

    /// Takes away the sums of those grains that the tree does not prove.
    async fn hold_against(
        &self,
        proof: &Proof,
        reactor: &Reactor,
        grains: &Grains,
        bytes: &[u8],
        sums: &mut [Sum],
    ) -> io::Result<()> {
        let path = self.recall(proof, reactor, grains).await?;
        let verdicts = proof.judge(&path, &blocks_of(grains.start, &bytes.to_vec().into()));
        for (grain, sum) in grains.clone().zip(sums) {
            if verdicts.get(&grain) != Some(&Verdict::Right) {
                *sum = ABSENT;
            }
        }
        Ok(())
    }

    /// What leads from `grains` to the top of the tree, with what the data file has of it. Parts of the tree that are wrong there
    /// are missing from now on.
    pub(super) async fn recall(
        &self,
        proof: &Proof,
        reactor: &Reactor,
        grains: &Grains,
    ) -> io::Result<ProofPath> {
        let mut path = proof.path_of(grains);
        let mut blocks = Blocks::new();
        for number in path.lacking.iter().copied() {
            let grain = number..number.saturating_add(1);
            if self.ledger.presence().holds(&grain) {
                let bytes = self.read_grains(reactor, &grain).await?;
                blocks.insert(number, bytes.to_vec().into());
            }
        }
        let verdicts = proof.judge(&path, &blocks);
        let wrong = verdicts.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Wrong(_)));
        let refuted: u64 =
            wrong.map(|(block, _)| self.ledger.refute(&(*block..block.saturating_add(1)))).sum();
        self.shared.metrics.damaged_grains.inc_by(refuted);
        path.hold(blocks, &verdicts);
        Ok(path)
    }

    /// Writes and records what was learned of the tree and is not kept yet.
    pub(super) async fn keep_tree(&self, proof: &Proof, reactor: &Reactor) -> io::Result<()> {
        let mut run: Option<(u64, Vec<u8>)> = None;
        for (number, bytes) in proof.take_unkept() {
            if self.ledger.presence().holds(&(number..number.saturating_add(1))) {
                continue;
            }
            let offset = number.saturating_mul(GRAIN_BYTES);
            match &mut run {
                Some((start, held)) if start.saturating_add(held.len() as u64) == offset => {
                    held.extend_from_slice(&bytes);
                }
                _ => self.keep_run(reactor, run.replace((offset, bytes.to_vec()))).await?,
            }
        }
        self.keep_run(reactor, run).await
    }

    async fn keep_run(&self, reactor: &Reactor, run: Option<(u64, Vec<u8>)>) -> io::Result<()> {
        let Some((offset, bytes)) = run else { return Ok(()) };
        self.ledger.store(&self.on(reactor), offset, &bytes, || true).await?;
        self.shared.used_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    async fn read_grains(&self, reactor: &Reactor, grains: &Grains) -> io::Result<Buffer> {
        let range = bytes_of(grains, self.size_bytes);
        let len = usize::try_from(range.len()).map_err(io::Error::other)?;
        self.files.data.read_buffer(reactor, range.start(), len).await
    }
}
