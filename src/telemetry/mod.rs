//! Counters and latency histograms that hot paths may touch.
//!
//! A module keeps its own [`Counter`]s and [`LatencyHistogram`]s; the server names and renders them. Counting is one
//! relaxed atomic addition.

mod counter;
mod histogram;

pub use counter::Counter;
pub use histogram::{LATENCY_BOUNDS_NS, LatencyHistogram, Snapshot};
