//! A node's sorted keys, and counting those below one, with the widest compare that the processor has.
//!
//! The vector units are reached through tokens of the crate `pulp`, which exist only where the unit does.

/// Whole cache lines of keys. They are kept shifted into the signed range, since that is what every vector unit compares.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Keys<const N: usize>(pub(super) [i32; N]);

impl<const N: usize> Keys<N> {
    pub(super) const FULL: Self = Self([i32::MAX; N]);
}

/// The key of a position; keeps the order.
#[inline]
pub(super) fn to_key(sector_in_chunk: u32) -> i32 {
    (sector_in_chunk ^ 1 << 31).cast_signed()
}

/// The position of a key.
#[inline]
pub(super) fn from_key(key: i32) -> u32 {
    key.cast_unsigned() ^ 1 << 31
}

/// A way to count.
pub(super) trait Count: Copy {
    /// How many keys are below `key`.
    fn below<const N: usize>(self, keys: &Keys<N>, key: i32) -> usize;
}

/// Something to be done with the best way to count.
pub(super) trait Counted {
    type Output;

    /// Implementations are marked `#[inline(always)]`, so that they are compiled for each unit.
    fn with<C: Count>(self, count: C) -> Self::Output;
}

/// Runs `work` with the best way to count that `arch` has.
#[inline]
pub(super) fn dispatch<W: Counted>(arch: pulp::Arch, work: W) -> W::Output {
    match arch {
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V4(unit) => unit.vectorize(Bound { work, count: unit }),
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V3(unit) => unit.vectorize(Bound { work, count: unit }),
        _ => work.with(Portable),
    }
}

struct Bound<W, C> {
    work: W,
    count: C,
}

impl<W: Counted, C: Count> pulp::NullaryFnOnce for Bound<W, C> {
    type Output = W::Output;

    #[inline(always)]
    fn call(self) -> W::Output {
        self.work.with(self.count)
    }
}

/// 16 keys in one compare: AVX-512.
#[cfg(target_arch = "x86_64")]
impl Count for pulp::x86::V4 {
    #[inline(always)]
    fn below<const N: usize>(self, keys: &Keys<N>, key: i32) -> usize {
        let key = self.splat_i32x16(key);
        let (lines, _) = keys.0.as_chunks::<16>();
        let below = |line: &[i32; 16]| self.cmp_lt_i32x16(pulp::bytemuck::cast(*line), key).0.count_ones();
        lines.iter().map(below).sum::<u32>() as usize
    }
}

/// 8 keys in one compare: AVX2.
#[cfg(target_arch = "x86_64")]
impl Count for pulp::x86::V3 {
    #[inline(always)]
    fn below<const N: usize>(self, keys: &Keys<N>, key: i32) -> usize {
        let key = self.splat_i32x8(key);
        let (halves, _) = keys.0.as_chunks::<8>();
        let below = |half: &[i32; 8]| {
            let below = self.cmp_lt_i32x8(pulp::bytemuck::cast(*half), key);
            self.avx._mm256_movemask_ps(pulp::cast(below)).count_ones()
        };
        halves.iter().map(below).sum::<u32>() as usize
    }
}

/// Whatever the compiler makes of it.
#[derive(Clone, Copy)]
struct Portable;

impl Count for Portable {
    #[inline(always)]
    fn below<const N: usize>(self, keys: &Keys<N>, key: i32) -> usize {
        keys.0.iter().map(|other| u32::from(*other < key)).sum::<u32>() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Below(Keys<32>, i32);

    impl Counted for Below {
        type Output = usize;

        #[inline(always)]
        fn with<C: Count>(self, count: C) -> usize {
            count.below(&self.0, self.1)
        }
    }

    #[test]
    fn every_way_to_count_agrees() {
        let mut ways = vec![pulp::Arch::Scalar, pulp::Arch::new()];
        #[cfg(target_arch = "x86_64")]
        ways.extend(pulp::x86::V3::try_new().map(pulp::Arch::V3));
        let keys = Keys(std::array::from_fn(|slot| to_key(u32::try_from(slot).unwrap() * 0x800_0000)));
        for (wanted, sector) in
            [(0, 0), (1, 1), (16, 0x8000_0000), (17, 0x8000_0001), (31, 0xf800_0000), (32, u32::MAX)]
        {
            for way in &ways {
                assert_eq!(dispatch(*way, Below(keys, to_key(sector))), wanted, "{way:?}");
            }
            assert_eq!(from_key(to_key(sector)), sector);
        }
    }
}
