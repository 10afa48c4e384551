//! Blocks whose bytes are wrong: each is asked for again, and no request asks more than [`ATTEMPTS`] times for one.

use std::collections::BTreeMap;

use super::{
    Failure,
    block_part::outside,
    blocks::{BlockRun, Blocks},
    scratch::with_scratch,
};
use crate::{
    format::zfile::ZfileError,
    image::{
        LayerError,
        decoded::BlockKey,
        layer::{ATTEMPTS, Layer},
        open_image::OpenImage,
    },
    source::Readiness,
};

/// A block whose bytes are wrong.
#[derive(Debug)]
pub(super) struct Damaged {
    pub(super) key: BlockKey,
    /// The block as a run of its own.
    pub(super) run: BlockRun,
    pub(super) error: ZfileError,
}

/// What one request has found damaged so far, in all its rounds.
#[derive(Debug, Default)]
pub(super) struct Damages {
    /// How often.
    seen: BTreeMap<BlockKey, usize>,
    /// Those of the round at hand.
    forgotten: Vec<Damaged>,
}

impl Damages {
    /// Has the block's source forget it, so that it is asked for again.
    ///
    /// # Errors
    /// What is wrong with it, after the last attempt, or where its source can have no other bytes.
    pub(super) fn note(&mut self, layer: &Layer, damaged: Damaged) -> Result<(), LayerError> {
        let seen = self.seen.entry(damaged.key).or_default();
        *seen += 1;
        if *seen >= ATTEMPTS || !layer.source.invalidate(layer.content.in_blob(damaged.run.encoded)) {
            return Err(layer.content.wrong(damaged.error));
        }
        self.forgotten.push(damaged);
        Ok(())
    }

    /// Begins another round.
    pub(super) fn begin_round(&mut self) {
        self.forgotten.clear();
    }

    /// Looks at the blocks of this round, which are near again, until they are whole: they hold up a request that has given
    /// its buffer back, and what else it needs would be decoded in vain. Whatever is not near is left to the next round.
    ///
    /// # Errors
    /// As of [`Damages::note`], and those of the sources.
    pub(super) async fn mend(&mut self, image: &OpenImage) -> Result<(), Failure> {
        while let Some(Damaged { key, run, .. }) = self.forgotten.pop() {
            let failed = |error| Failure { layer: key.layer, error };
            let blocks = Blocks::new(image, key.layer, true).ok_or_else(|| failed(outside()))?;
            if let Some(damaged) = check(&blocks, &run).map_err(failed)? {
                self.note(blocks.layer, damaged).map_err(failed)?;
                let range = blocks.layer.content.in_blob(run.encoded);
                blocks.layer.source.fetch(&[range]).await.map_err(|error| failed(error.into()))?;
            }
        }
        Ok(())
    }
}

/// What is wrong with the block that is all of `run`, if anything is and its bytes are near.
fn check(blocks: &Blocks<'_>, run: &BlockRun) -> Result<Option<Damaged>, LayerError> {
    with_scratch(|scratch| {
        let len = usize::try_from(run.encoded.len()).map_err(|_| outside())?;
        let encoded = scratch.encoded.get_mut(..len).ok_or_else(outside)?;
        let start = blocks.layer.content.in_blob(run.encoded).start();
        match blocks.layer.source.try_read(start, encoded)? {
            Readiness::Done => blocks.check(run, encoded, &mut scratch.workbench),
            Readiness::WouldWait => Ok(None),
        }
    })
}
