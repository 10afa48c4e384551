//! A stack of layers as plain arrays: for each sector what a layer says of it.

use std::ops::Range;

/// Sectors that any layer may say something of.
pub(crate) const REACH: usize = 1400;

/// What a layer says: nothing, or the byte that the sector is full of.
pub(crate) type Sectors = Vec<Option<u8>>;

/// Layers, the lowest first, each with its size in sectors, which may be none. The last one may be written.
#[derive(Debug, Clone)]
pub(crate) struct Stack {
    pub(crate) sizes: Vec<u64>,
    pub(crate) layers: Vec<Sectors>,
}

impl Stack {
    /// One to six layers, of which the last has nothing yet. The read-only ones have data around all ends.
    pub(crate) fn random(random: &mut fastrand::Rng) -> Self {
        let count = random.usize(1..=6);
        let mut sizes: Vec<u64> = (0..count).map(|_| size(random)).collect();
        // An image alone has to have a size.
        if let [first, _, ..] = &mut sizes[..] {
            *first = (*first).max(1);
        }
        let [.., top] = &mut sizes[..] else { unreachable!("there is one") };
        if count == 1 {
            *top = (*top).max(1);
        }
        let mut stack = Self { layers: vec![vec![None; REACH]; count], sizes };
        for layer in 0..count - 1 {
            for _ in 0..random.u8(0..6) {
                let run = stack.run(random, REACH as u64);
                let fill = if random.u8(0..3) == 0 { 0 } else { random.u8(1..) };
                stack.layers[layer][run].fill(Some(fill));
            }
        }
        stack
    }

    /// Some sectors of the first `end`, near the end of a layer more often than not.
    pub(crate) fn run(&self, random: &mut fastrand::Rng, end: u64) -> Range<usize> {
        let near = self.sizes[random.usize(..self.sizes.len())];
        let at =
            if random.u8(0..4) == 0 { random.u64(0..end) } else { (near + random.u64(0..20)).max(10) - 10 };
        let start = at.min(end - 1);
        start as usize..(start + random.u64(1..40)).min(end) as usize
    }

    /// Size of the device in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        *self.sizes.iter().rev().find(|size| **size > 0).unwrap()
    }

    /// The device.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes_of(self.sectors() as usize)
    }

    /// What a device of so many sectors shows.
    pub(crate) fn bytes_of(&self, sectors: usize) -> Vec<u8> {
        let fill = |sector| self.layers.iter().rev().find_map(|layer| layer[sector]).unwrap_or(0);
        (0..sectors).flat_map(|sector| [fill(sector); 512]).collect()
    }

    /// All but the layer that may be written.
    pub(crate) fn below(&self) -> Self {
        let count = self.layers.len() - 1;
        Self { sizes: self.sizes[..count].to_vec(), layers: self.layers[..count].to_vec() }
    }

    pub(crate) fn write(&mut self, sectors: Range<usize>, fill: u8) {
        self.layers.last_mut().unwrap()[sectors].fill(Some(fill));
    }

    /// What the layer that may be written has past a smaller size is gone.
    pub(crate) fn resize(&mut self, sectors: u64) {
        *self.sizes.last_mut().unwrap() = sectors;
        self.layers.last_mut().unwrap()[sectors as usize..].fill(None);
    }

    /// Puts an empty layer over all, of the same size.
    pub(crate) fn push(&mut self) {
        self.sizes.push(self.sectors());
        self.layers.push(vec![None; REACH]);
    }
}

/// A size, in blocks or in sectors, or none.
fn size(random: &mut fastrand::Rng) -> u64 {
    match random.u8(0..8) {
        0 => 0,
        1..4 => random.u64(1..=REACH as u64),
        _ => random.u64(1..=REACH as u64 / 8) * 8,
    }
}
