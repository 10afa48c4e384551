//! What tells a device from any other that has, or had, its number.

use std::{fmt, num::NonZeroU64};

use serde::{Deserialize, Serialize};

/// Drawn once for a device, and kept by the kernel for as long as that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mark(NonZeroU64);

impl Mark {
    /// One that no other device has, as far as chance goes.
    #[must_use]
    pub fn draw() -> Self {
        Self(NonZeroU64::MIN | fastrand::u64(..))
    }

    /// The one that the kernel has as a number; a device without one has zero there.
    #[must_use]
    pub fn of_bits(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).map(Self)
    }

    /// What the kernel is told.
    #[must_use]
    pub fn bits(mark: Option<Self>) -> u64 {
        mark.map_or(0, |mark| mark.0.get())
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_differ_and_come_back_from_the_kernel_as_they_were_told() {
        let mark = Mark::draw();
        assert_ne!(mark, Mark::draw());
        assert_eq!(Mark::of_bits(Mark::bits(Some(mark))), Some(mark));
        assert_eq!((Mark::bits(None), Mark::of_bits(0)), (0, None));
    }
}
