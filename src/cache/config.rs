//! What an operator may set of a cache.

use std::{path::PathBuf, time::Duration};

/// Where a cache lies and what it may use.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// Folder of the cache; made if it is missing. All processes that name the same folder share it.
    pub dir: PathBuf,
    /// Room that the data of all blobs may take on disk, in bytes.
    pub limit_bytes: u64,
    /// Fetches that may be under way at once. The registry client has a limit of its own; this one keeps its queue short
    /// enough for on-demand reads to overtake read-ahead here. One host gets at most three quarters.
    pub fetches: usize,
    /// Bytes that may be in memory between the origin and the disk; of these, too, one host gets three quarters.
    pub flight_bytes: u64,
    /// How often what was written is made durable; what is younger is fetched again after loss of power.
    pub sync_interval: Duration,
    /// How long a disk that has failed or is full is left alone.
    pub disk_rest: Duration,
    /// How long another process that fetches the same bytes is waited for before they are fetched here too.
    pub peer_patience: Duration,
    /// How long an entry that another process opens or removes is waited for. Meanwhile others are opened.
    pub opening_patience: Duration,
    /// After this a fetch has failed, its wait for room included. It bounds what waits behind others at an origin that is slow; one
    /// that hangs is found by the registry client and by `lane_patience`.
    pub fetch_deadline: Duration,
    /// How long a fetch waits for room while no other one from the same far end lands; above what the registry client gives one that
    /// does not wait.
    pub lane_patience: Duration,
}

impl CacheConfig {
    /// A cache in `dir` of at most `limit_bytes`, with defaults for the rest.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, limit_bytes: u64) -> Self {
        Self {
            dir: dir.into(),
            limit_bytes,
            fetches: 64,
            flight_bytes: 64 << 20,
            sync_interval: Duration::from_secs(5),
            disk_rest: Duration::from_secs(10),
            peer_patience: Duration::from_secs(3),
            opening_patience: Duration::from_secs(5),
            fetch_deadline: Duration::from_secs(600),
            lane_patience: Duration::from_secs(60),
        }
    }
}
