//! Ranges of bits in a bitmap of blocks or inodes, the lowest bit of each byte first.

const BITS: usize = 8;

/// The first clear bit of `from..end`.
pub(crate) fn first_clear(bits: &[u8], from: usize, end: usize) -> Option<usize> {
    let mut at = from;
    while at < end {
        let rest = !byte(bits, at / BITS) >> (at % BITS);
        if rest != 0 {
            let found = at + rest.trailing_zeros() as usize;
            return (found < end).then_some(found);
        }
        at = (at / BITS + 1) * BITS;
    }
    None
}

/// How many bits from `from` on are clear, up to `end`.
pub(crate) fn clear_run(bits: &[u8], from: usize, end: usize) -> usize {
    let mut at = from;
    while at < end {
        let rest = byte(bits, at / BITS) >> (at % BITS);
        if rest != 0 {
            return (at + rest.trailing_zeros() as usize).min(end) - from;
        }
        at = (at / BITS + 1) * BITS;
    }
    end.saturating_sub(from)
}

/// How many bits below `end` are clear.
pub(crate) fn count_clear(bits: &[u8], end: usize) -> usize {
    masks(0, end).map(|(index, mask)| (!byte(bits, index) & mask).count_ones() as usize).sum()
}

/// The last set bit below `end`.
pub(crate) fn last_set(bits: &[u8], end: usize) -> Option<usize> {
    (0..end).rev().find(|at| is_set(bits, *at))
}

pub(crate) fn is_set(bits: &[u8], at: usize) -> bool {
    byte(bits, at / BITS) >> (at % BITS) & 1 == 1
}

/// Whether all bits of the range are set.
pub(crate) fn all_set(bits: &[u8], from: usize, count: usize) -> bool {
    masks(from, count).all(|(index, mask)| byte(bits, index) & mask == mask)
}

pub(crate) fn set(bits: &mut [u8], from: usize, count: usize) {
    for (index, mask) in masks(from, count) {
        if let Some(byte) = bits.get_mut(index) {
            *byte |= mask;
        }
    }
}

pub(crate) fn clear(bits: &mut [u8], from: usize, count: usize) {
    for (index, mask) in masks(from, count) {
        if let Some(byte) = bits.get_mut(index) {
            *byte &= !mask;
        }
    }
}

/// Beyond the end everything is in use.
fn byte(bits: &[u8], index: usize) -> u8 {
    bits.get(index).copied().unwrap_or(u8::MAX)
}

/// The bytes that a range touches, each with its bits of the range.
fn masks(from: usize, count: usize) -> impl Iterator<Item = (usize, u8)> {
    let end = from + count;
    (from / BITS..end.div_ceil(BITS)).map(move |index| {
        let low = from.saturating_sub(index * BITS).min(BITS);
        let high = (end - index * BITS).min(BITS);
        let mask = (0xff_u16 << low) & (0xff_u16 >> (BITS - high));
        (index, u8::try_from(mask & 0xff).unwrap_or(u8::MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_mean_what_bit_by_bit_means() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            let mut bits: Vec<u8> = (0..8).map(|_| random.u8(..) & random.u8(..)).collect();
            let from = random.usize(..64);
            let count = random.usize(..=64 - from);
            let end = from + count;
            let slow: Vec<bool> = (0..64).map(|at| bits[at / 8] >> (at % 8) & 1 == 1).collect();
            assert_eq!(first_clear(&bits, from, end), (from..end).find(|at| !slow[*at]));
            assert_eq!(clear_run(&bits, from, end), (from..end).take_while(|at| !slow[*at]).count());
            assert_eq!(count_clear(&bits, end), (0..end).filter(|at| !slow[*at]).count());
            assert_eq!(last_set(&bits, end), (0..end).rev().find(|at| slow[*at]));
            assert_eq!(all_set(&bits, from, count), (from..end).all(|at| slow[at]));
            set(&mut bits, from, count);
            let now = |at: usize| slow[at] || (from..end).contains(&at);
            assert!((0..64).all(|at| is_set(&bits, at) == now(at)));
            clear(&mut bits, from, count);
            assert!((0..64).all(|at| is_set(&bits, at) == (slow[at] && !(from..end).contains(&at))));
        }
    }
}
