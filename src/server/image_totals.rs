//! Sums of what images have counted, kept when an image is closed.

use crate::{
    image::{ClassMetrics, ImageMetrics, SourceClass},
    telemetry::Counter,
};

/// Counters of many images together.
#[derive(Debug)]
pub(super) struct ImageTotals {
    classes: [(SourceClass, ClassMetrics); 4],
    /// Failed reads.
    pub(super) errors: Counter,
    /// Blocks that were decoded.
    pub(super) decoded_blocks: Counter,
    /// Blocks that were found damaged.
    pub(super) damaged_blocks: Counter,
}

impl Default for ImageTotals {
    fn default() -> Self {
        Self {
            classes: SourceClass::ALL.map(|class| (class, ClassMetrics::default())),
            errors: Counter::default(),
            decoded_blocks: Counter::default(),
            damaged_blocks: Counter::default(),
        }
    }
}

impl ImageTotals {
    /// The sums by source, the fastest first.
    pub(super) fn classes(&self) -> impl Iterator<Item = (SourceClass, &ClassMetrics)> {
        self.classes.iter().map(|(class, metrics)| (*class, metrics))
    }

    /// Adds what one image has counted.
    pub(super) fn absorb_image(&self, image: &ImageMetrics) {
        for (class, mine) in self.classes() {
            add(mine, image.of(class));
        }
        self.errors.inc_by(image.errors.get());
        self.decoded_blocks.inc_by(image.decoded_blocks.get());
        self.damaged_blocks.inc_by(image.damaged_blocks.get());
    }

    /// Adds other sums.
    pub(super) fn absorb(&self, other: &Self) {
        for ((_, mine), (_, theirs)) in self.classes().zip(other.classes()) {
            add(mine, theirs);
        }
        self.errors.inc_by(other.errors.get());
        self.decoded_blocks.inc_by(other.decoded_blocks.get());
        self.damaged_blocks.inc_by(other.damaged_blocks.get());
    }
}

fn add(mine: &ClassMetrics, theirs: &ClassMetrics) {
    mine.requests.inc_by(theirs.requests.get());
    mine.bytes.inc_by(theirs.bytes.get());
    mine.latency.absorb(&theirs.latency.snapshot());
}
