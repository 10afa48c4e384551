//! Makes the tree of bytes that come one after another.

use super::{BLOCK_LEN, Block, Hash, TreeShape, VerityError, digest_of, hash_of};
use crate::format::oci::Digest;

/// A tree in the making: one block of each level is held, and given away when it is full.
#[derive(Debug)]
pub struct TreeBuilder {
    shape: TreeShape,
    data: Vec<u8>,
    /// Bytes that came.
    data_bytes: u64,
    levels: Vec<Level>,
    /// The hash of the last block that no block of hashes is over.
    root: Hash,
}

/// The block of a level that is being filled.
#[derive(Debug)]
struct Level {
    number: u64,
    hashes: Vec<u8>,
}

impl TreeBuilder {
    /// Begins a tree of this shape.
    #[must_use]
    pub fn new(shape: TreeShape) -> Self {
        let levels = shape.levels().iter();
        let levels = levels.map(|level| Level { number: level.start, hashes: Vec::with_capacity(BLOCK_LEN) });
        let levels = levels.collect();
        Self { shape, data: Vec::with_capacity(BLOCK_LEN), data_bytes: 0, levels, root: [0; 32] }
    }

    /// Takes the next bytes, and gives each block of hashes that they complete to `made`, with its number.
    ///
    /// # Errors
    /// Those of `made`.
    pub fn push<E>(
        &mut self,
        mut bytes: &[u8],
        mut made: impl FnMut(u64, &Block) -> Result<(), E>,
    ) -> Result<(), E> {
        self.data_bytes = self.data_bytes.saturating_add(bytes.len() as u64);
        while !bytes.is_empty() {
            if self.data.is_empty()
                && let Some((block, rest)) = bytes.split_first_chunk::<BLOCK_LEN>()
            {
                self.put(0, hash_of(block), &mut made)?;
                bytes = rest;
                continue;
            }
            let room = BLOCK_LEN.saturating_sub(self.data.len()).min(bytes.len());
            let (part, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.data.extend_from_slice(part);
            bytes = rest;
            if self.data.len() == BLOCK_LEN {
                self.end_data(&mut made)?;
            }
        }
        Ok(())
    }

    /// Ends the tree; gives the blocks that are left to `made`, the topmost last, and returns the digest.
    ///
    /// # Errors
    /// Those of `made`, and [`VerityError::Length`] where it was begun for another number of bytes.
    pub fn finish<E: From<VerityError>>(
        mut self,
        mut made: impl FnMut(u64, &Block) -> Result<(), E>,
    ) -> Result<Digest, E> {
        let (expected_bytes, data_bytes) = (self.shape.data_bytes(), self.data_bytes);
        if expected_bytes != data_bytes {
            return Err(VerityError::Length { expected_bytes, data_bytes }.into());
        }
        if !self.data.is_empty() {
            self.end_data(&mut made)?;
        }
        for level in 0..self.levels.len() {
            if self.levels.get(level).is_some_and(|level| !level.hashes.is_empty()) {
                self.end_block(level, &mut made)?;
            }
        }
        Ok(digest_of(data_bytes, &self.root))
    }

    fn end_data<E>(&mut self, made: &mut impl FnMut(u64, &Block) -> Result<(), E>) -> Result<(), E> {
        let hash = hash_of(&self.data);
        self.data.clear();
        self.put(0, hash, made)
    }

    /// Puts the hash of a block into the level above it.
    fn put<E>(
        &mut self,
        level: usize,
        hash: Hash,
        made: &mut impl FnMut(u64, &Block) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(filled) = self.levels.get_mut(level) else {
            self.root = hash;
            return Ok(());
        };
        filled.hashes.extend_from_slice(&hash);
        match filled.hashes.len() == BLOCK_LEN {
            true => self.end_block(level, made),
            false => Ok(()),
        }
    }

    fn end_block<E>(
        &mut self,
        level: usize,
        made: &mut impl FnMut(u64, &Block) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(full) = self.levels.get_mut(level) else { return Ok(()) };
        let mut block = [0; BLOCK_LEN];
        block.iter_mut().zip(&full.hashes).for_each(|(dest, byte)| *dest = *byte);
        let number = full.number;
        full.number = number.saturating_add(1);
        full.hashes.clear();
        made(number, &block)?;
        self.put(level.saturating_add(1), hash_of(&block), made)
    }
}
