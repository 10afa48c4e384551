//! What a cache counts.

use crate::telemetry::Counter;

/// Counters of one cache since it was opened. The server names and renders them.
#[derive(Debug, Default)]
pub struct CacheMetrics {
    /// Reads served from the data file alone.
    pub hits: Counter,
    /// Reads that had to wait for an origin.
    pub misses: Counter,
    /// Bytes handed to readers.
    pub bytes_read: Counter,
    /// Ranges asked of origins.
    pub fetches: Counter,
    /// Ranges asked of origins that could not be had.
    pub failed_fetches: Counter,
    /// Bytes that origins delivered.
    pub bytes_fetched: Counter,
    /// Fetches that another request had begun already.
    pub joined: Counter,
    /// Fetches spared because another process had done them.
    pub spared_by_peers: Counter,
    /// Bytes given back to the file system.
    pub evicted_bytes: Counter,
    /// Failed writes and syncs of the cache's disk.
    pub write_errors: Counter,
    /// Failed reads of the cache's disk; the bytes were fetched again.
    pub read_errors: Counter,
    /// Grains of 4 KiB that were damaged on the cache's disk; they were fetched again.
    pub damaged_grains: Counter,
    /// Ranges that a checksum above has refuted.
    pub invalidations: Counter,
}
