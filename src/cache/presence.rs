//! Which grains of a blob are in its data file: bitmaps that any thread reads without a lock.
//!
//! A grain is present when a map on disk says so, and proven when this process has written it or has held its bytes
//! against the checksum that the map has for it. Only what is proven is read; what is proven is present.
//!
//! A reader takes the generation, sees its grains present, reads the file, and asks whether the generation still
//! holds. Whoever takes grains away clears their bits, then counts the generation up, and only then touches the file:
//! a read that overlapped it, even one that began before and saw the grains return, finds the generation changed.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::{
    grain::{ABSENT, Grains, Sum, grain_count},
    sparse::{CHUNK_ITEMS, Sparse},
};

/// Grains in one word of the bitmap.
const WORD_GRAINS: u64 = 64;

/// Grains whose words are allocated together: 128 MiB of the blob.
const CHUNK_GRAINS: u64 = CHUNK_ITEMS * WORD_GRAINS;

#[derive(Debug)]
pub(super) struct Presence {
    present: Sparse<AtomicU64>,
    proven: Sparse<AtomicU64>,
    /// The checksum of each grain that is present.
    sums: Sparse<AtomicU32>,
    grains: u64,
    generation: AtomicU64,
}

/// The state of presence that a read began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(pub(super) u64);

impl Presence {
    /// An empty map for a blob of `size_bytes`, which the caller has bounded.
    pub(super) fn new(size_bytes: u64) -> Self {
        let grains = grain_count(size_bytes);
        let words = grains.div_ceil(WORD_GRAINS);
        Self {
            present: Sparse::new(words),
            proven: Sparse::new(words),
            sums: Sparse::new(grains),
            grains,
            generation: AtomicU64::new(0),
        }
    }

    /// To be taken before asking [`Presence::is_proven`].
    pub(super) fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::SeqCst))
    }

    /// Whether nothing was taken away since `generation`; to be asked after the bytes were read.
    pub(super) fn unchanged(&self, generation: Generation) -> bool {
        // Orders the reads of the file's pages, made in this thread by the kernel, before the load.
        fence(Ordering::SeqCst);
        self.generation() == generation
    }

    /// Whether all of `grains` are proven, and so can be read. Grains past the end are not.
    pub(super) fn is_proven(&self, grains: &Grains) -> bool {
        self.all_in(&self.proven, grains)
    }

    /// Whether all of `grains` are present. Grains past the end are not.
    pub(super) fn holds(&self, grains: &Grains) -> bool {
        self.all_in(&self.present, grains)
    }

    fn all_in(&self, words: &Sparse<AtomicU64>, grains: &Grains) -> bool {
        let holds =
            |(index, mask)| words.get(index).is_some_and(|word| word.load(Ordering::Acquire) & mask == mask);
        grains.is_empty() || (grains.end <= self.grains && masks(grains).all(holds))
    }

    /// What the bytes of `grains` must come to; a sum for each of them.
    pub(super) fn sums(&self, grains: &Grains) -> impl Iterator<Item = Sum> + '_ {
        grains.clone().map(|grain| self.sums.get(grain).map_or(ABSENT, |sum| sum.load(Ordering::Relaxed)))
    }

    /// Notes the checksums of grains from `first` on, which makes none of them present.
    pub(super) fn note(&self, first: u64, sums: impl IntoIterator<Item = Sum>) {
        for (sum, grain) in sums.into_iter().zip(first..) {
            if let Some(place) = self.sums.get_or_make(grain) {
                place.store(sum, Ordering::Relaxed);
            }
        }
    }

    /// Makes `grains` present, whose checksums are noted.
    pub(super) fn set(&self, grains: &Grains) {
        self.set_in(&self.present, grains);
    }

    /// Makes `grains`, which are present, proven.
    pub(super) fn prove(&self, grains: &Grains) {
        self.set_in(&self.proven, grains);
    }

    fn set_in(&self, words: &Sparse<AtomicU64>, grains: &Grains) {
        for (index, mask) in masks(&self.clip(grains)) {
            if let Some(word) = words.get_or_make(index) {
                word.fetch_or(mask, Ordering::AcqRel);
            }
        }
    }

    /// Takes `grains` away; returns how many there were.
    pub(super) fn clear(&self, grains: &Grains) -> u64 {
        let gone = self.present(grains);
        let mut cleared = 0;
        for (index, mask) in masks(&self.clip(grains)) {
            if let Some(word) = self.proven.get(index) {
                word.fetch_and(!mask, Ordering::SeqCst);
            }
            if let Some(word) = self.present.get(index) {
                cleared += u64::from((word.fetch_and(!mask, Ordering::SeqCst) & mask).count_ones());
            }
        }
        for place in gone.into_iter().flatten().filter_map(|grain| self.sums.get(grain)) {
            place.store(ABSENT, Ordering::Relaxed);
        }
        if cleared > 0 {
            self.generation.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
        cleared
    }

    /// How many grains are present.
    pub(super) fn count(&self) -> u64 {
        self.present.made().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Whether every grain is present.
    pub(super) fn is_complete(&self) -> bool {
        self.holds(&(0..self.grains))
    }

    /// The runs of `grains` that are missing, in order.
    pub(super) fn missing(&self, grains: &Grains) -> Vec<Grains> {
        self.runs_where(grains, |present, _| !present)
    }

    /// The runs of `grains` that are present, in order.
    pub(super) fn present(&self, grains: &Grains) -> Vec<Grains> {
        self.runs_where(grains, |present, _| present)
    }

    /// The runs of `grains` that are present and not proven, in order.
    pub(super) fn unproven(&self, grains: &Grains) -> Vec<Grains> {
        self.runs_where(grains, |present, proven| present & !proven)
    }

    /// `wanted` says of the bits of a word, that of a grain in the two maps at the same place, which are meant.
    fn runs_where(&self, grains: &Grains, wanted: impl Fn(u64, u64) -> u64) -> Vec<Grains> {
        let grains = self.clip(grains);
        let mut runs: Vec<Grains> = Vec::new();
        let mut at = grains.start;
        while at < grains.end {
            let word = |words: &Sparse<AtomicU64>| Some(words.get(at / WORD_GRAINS)?.load(Ordering::Acquire));
            let (present, unit) =
                word(&self.present).map_or((0, CHUNK_GRAINS), |present| (present, WORD_GRAINS));
            let bits = wanted(present, word(&self.proven).unwrap_or(0)) >> (at % WORD_GRAINS);
            let left = (unit - at % unit).min(grains.end - at);
            if bits & 1 == 0 {
                at += if bits == 0 { left } else { u64::from(bits.trailing_zeros()) }.min(left);
                continue;
            }
            let end =
                at + if unit == CHUNK_GRAINS { left } else { u64::from(bits.trailing_ones()) }.min(left);
            match runs.last_mut() {
                Some(last) if last.end == at => last.end = end,
                _ => runs.push(at..end),
            }
            at = end;
        }
        runs
    }

    fn clip(&self, grains: &Grains) -> Grains {
        grains.start.min(self.grains)..grains.end.min(self.grains)
    }
}

/// The words that `grains` lie in, by their number, each with the bits that are meant.
fn masks(grains: &Grains) -> impl Iterator<Item = (u64, u64)> + use<> {
    let (start, end) = (grains.start, grains.end.max(grains.start));
    let words = if start == end { 0..0 } else { start / WORD_GRAINS..end.div_ceil(WORD_GRAINS) };
    words.map(move |index| {
        let first = index * WORD_GRAINS;
        let low = start.saturating_sub(first);
        let high = (end - first).min(WORD_GRAINS);
        (index, (u64::MAX >> (WORD_GRAINS - high)) & (u64::MAX << low))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bitmap_equals_a_vector_of_flags() {
        let mut random = fastrand::Rng::with_seed(2);
        let presence = Presence::new(300 * 4096 - 5);
        let (mut model, mut proven) = (vec![false; 300], vec![false; 300]);
        for _ in 0..3000 {
            let start = random.usize(0..300);
            let end = random.usize(start..=300);
            let run = start as u64..end as u64;
            if random.bool() {
                presence.set(&run);
                model[start..end].fill(true);
                if random.bool() {
                    presence.prove(&run);
                    proven[start..end].fill(true);
                }
            } else {
                let had = model[start..end].iter().filter(|flag| **flag).count() as u64;
                assert_eq!(presence.clear(&run), had);
                model[start..end].fill(false);
                proven[start..end].fill(false);
            }
            let (start, end) = (random.usize(0..150), random.usize(150..=300));
            let window = start as u64..end as u64;
            let flags = &model[start..end];
            assert_eq!(presence.holds(&window), flags.iter().all(|flag| *flag));
            assert_eq!(presence.is_proven(&window), proven[start..end].iter().all(|flag| *flag));
            let unproven =
                (start..end).filter(|grain| model[*grain] && !proven[*grain]).map(|grain| grain as u64);
            assert!(presence.unproven(&window).into_iter().flatten().eq(unproven));
            let listed = |wanted| -> Vec<u64> {
                (window.clone()).filter(|grain| model[usize::try_from(*grain).unwrap()] == wanted).collect()
            };
            assert!(presence.present(&window).into_iter().flatten().eq(listed(true)));
            assert!(presence.missing(&window).into_iter().flatten().eq(listed(false)));
            assert_eq!(presence.count(), model.iter().filter(|flag| **flag).count() as u64);
        }
    }

    #[test]
    fn a_blob_that_claims_to_be_huge_costs_memory_only_where_it_is_present() {
        let presence = Presence::new(256 << 30);
        let all = 0..(256 << 30) / 4096_u64;
        assert_eq!((presence.missing(&all), presence.present(&all)), (vec![all.clone()], vec![]));
        let far = CHUNK_GRAINS * 100 - 1..CHUNK_GRAINS * 100 + 70;
        presence.set(&far);
        assert_eq!(presence.present(&all), std::slice::from_ref(&far));
        assert_eq!(presence.missing(&all), [0..far.start, far.end..all.end]);
        assert_eq!((presence.count(), presence.present.made().count() as u64), (71, 2 * CHUNK_ITEMS));
        assert_eq!((presence.clear(&all), presence.present.made().count() as u64), (71, 2 * CHUNK_ITEMS));
    }

    #[test]
    fn grains_past_the_end_are_never_present() {
        let presence = Presence::new(10 * 4096);
        presence.set(&(0..64));
        assert!(presence.holds(&(0..10)) && presence.is_complete());
        assert!(!presence.holds(&(0..11)));
        assert!(!presence.holds(&(64..65)));
        assert!(presence.holds(&(3..3)));
        assert_eq!(presence.count(), 10);
    }

    #[test]
    fn a_read_across_a_clear_notices_even_when_the_grain_has_come_back() {
        let presence = Presence::new(10 * 4096);
        presence.set(&(0..10));
        let before = presence.generation();
        assert!(presence.holds(&(4..5)) && presence.unchanged(before));
        presence.clear(&(4..5));
        presence.set(&(4..5));
        assert!(presence.holds(&(4..5)) && !presence.unchanged(before));
    }
}
