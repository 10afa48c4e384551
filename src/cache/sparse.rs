//! A long array of zeroes that takes memory only where it was written: what a blob costs follows what is present of it,
//! not the size that somebody claims for it.

use std::sync::OnceLock;

/// Items that are allocated together: a page or two.
pub(super) const CHUNK_ITEMS: u64 = CHUNK_LEN as u64;
const CHUNK_LEN: usize = 512;

type Chunk<T> = Box<[T; CHUNK_LEN]>;

/// Atomic numbers, all zero at first.
#[derive(Debug)]
pub(super) struct Sparse<T> {
    chunks: Box<[OnceLock<Chunk<T>>]>,
}

impl<T: Default> Sparse<T> {
    /// An array of at least `len` items, which the caller has bounded.
    pub(super) fn new(len: u64) -> Self {
        Self { chunks: (0..len.div_ceil(CHUNK_ITEMS)).map(|_| OnceLock::new()).collect() }
    }

    /// The item at `index`; `None` where nothing was written near it, so that it is zero, and past the end.
    pub(super) fn get(&self, index: u64) -> Option<&T> {
        let (chunk, item) = place(index);
        self.chunks.get(chunk)?.get()?.get(item)
    }

    /// The item at `index`, to be written; `None` past the end.
    pub(super) fn get_or_make(&self, index: u64) -> Option<&T> {
        let (chunk, item) = place(index);
        let made = || Box::new(std::array::from_fn(|_| T::default()));
        self.chunks.get(chunk)?.get_or_init(made).get(item)
    }

    /// All items that may not be zero.
    pub(super) fn made(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().filter_map(OnceLock::get).flat_map(|chunk| chunk.iter())
    }
}

fn place(index: u64) -> (usize, usize) {
    let number = |part: u64| usize::try_from(part).unwrap_or(usize::MAX);
    (number(index / CHUNK_ITEMS), number(index % CHUNK_ITEMS))
}
