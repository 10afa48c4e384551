//! What is counted: requests, bytes and latency of a device by where the bytes came from, and blocks of an image.

use std::time::Duration;

use crate::{
    source::Place,
    telemetry::{Counter, LatencyHistogram},
};

/// Where the bytes of a request came from; of several sources the slowest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceClass {
    /// Nowhere: the range is a hole.
    Zero,
    /// The cache of decoded blocks.
    Decoded,
    /// A local file.
    Local,
    /// The cache on disk.
    Cache,
    /// A fetch was waited for.
    Registry,
}

impl SourceClass {
    /// All of them, the fastest first.
    pub const ALL: [Self; 5] = [Self::Zero, Self::Decoded, Self::Local, Self::Cache, Self::Registry];

    /// Name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Decoded => "decoded",
            Self::Local => "local",
            Self::Cache => "cache",
            Self::Registry => "registry",
        }
    }
}

impl From<Place> for SourceClass {
    fn from(place: Place) -> Self {
        match place {
            Place::File => Self::Local,
            Place::Cache => Self::Cache,
            Place::Origin => Self::Registry,
        }
    }
}

/// What was counted of one class. Failed requests are not in here.
#[derive(Debug, Default)]
pub struct ClassMetrics {
    /// Requests.
    pub requests: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// How long they took.
    pub latency: LatencyHistogram,
}

/// Counters of all devices of an image.
#[derive(Debug, Default)]
pub struct ImageMetrics {
    /// Blocks that were decoded.
    pub decoded_blocks: Counter,
    /// Blocks whose checksum was wrong or that could not be decoded, each time it happened.
    pub damaged_blocks: Counter,
}

impl ImageMetrics {
    /// Adds what another image has counted.
    pub fn absorb(&self, other: &Self) {
        self.decoded_blocks.inc_by(other.decoded_blocks.get());
        self.damaged_blocks.inc_by(other.damaged_blocks.get());
    }
}

/// Counters of the reads of one device.
#[derive(Debug, Default)]
pub struct ReadMetrics {
    zero: ClassMetrics,
    decoded: ClassMetrics,
    local: ClassMetrics,
    cache: ClassMetrics,
    registry: ClassMetrics,
    /// Requests that failed.
    pub errors: Counter,
    /// Requests whose bytes the kernel has moved from a file to the request by itself. They are counted in their class too.
    pub direct: Counter,
}

impl ReadMetrics {
    /// The counters of one class.
    #[must_use]
    pub fn of(&self, class: SourceClass) -> &ClassMetrics {
        match class {
            SourceClass::Zero => &self.zero,
            SourceClass::Decoded => &self.decoded,
            SourceClass::Local => &self.local,
            SourceClass::Cache => &self.cache,
            SourceClass::Registry => &self.registry,
        }
    }

    /// Adds what another device has counted.
    pub fn absorb(&self, other: &Self) {
        for class in SourceClass::ALL {
            let (mine, theirs) = (self.of(class), other.of(class));
            mine.requests.inc_by(theirs.requests.get());
            mine.bytes.inc_by(theirs.bytes.get());
            mine.latency.absorb(&theirs.latency.snapshot());
        }
        self.errors.inc_by(other.errors.get());
        self.direct.inc_by(other.direct.get());
    }

    pub(super) fn served(&self, class: SourceClass, bytes: u64, took: Duration) {
        let metrics = self.of(class);
        metrics.requests.inc();
        metrics.bytes.inc_by(bytes);
        metrics.latency.observe(took);
    }
}
