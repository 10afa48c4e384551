//! What the client counts, of all it does and of single blobs.

use crate::telemetry::Counter;

use super::{Fault, RegistryError, adaptive_limit::Shrink};

/// Counters of one client. The server names and renders them.
#[derive(Debug, Default)]
pub struct RegistryMetrics {
    /// HTTP requests sent to registries, storage and token servers, each try counted.
    pub requests: Counter,
    /// Tries after the first.
    pub retries: Counter,
    /// Verified bytes of blobs handed to callers.
    pub bytes: Counter,
    /// Bytes that were read and thrown away: those before a range in a 200, and those of failed bodies.
    pub wasted_bytes: Counter,
    /// Redirects followed, which are locations discovered.
    pub redirects: Counter,
    /// Requests to token servers.
    pub token_fetches: Counter,
    /// How often a host got fewer requests at once, since an answer took too long.
    pub shrinks_slow: Counter,
    /// As above, since it refused one with 429, 503 or 504.
    pub shrinks_refused: Counter,
    /// As above, since one was not answered in time.
    pub shrinks_timed_out: Counter,
    /// Failed tries by who can mend it.
    pub network_errors: Counter,
    /// As above: timeouts, which are not among the network errors.
    pub timeouts: Counter,
    /// As above: the registry or storage answered wrongly or not with what it owes.
    pub registry_errors: Counter,
    /// As above: credentials missing, wrong or insufficient.
    pub credential_errors: Counter,
    /// As above: configuration, or a caller that asked for what is not there.
    pub other_errors: Counter,
}

/// Counters of one [`RemoteBlob`](super::RemoteBlob) and its clones, also counted by the client.
#[derive(Debug, Default)]
pub struct BlobMetrics {
    /// Ranges that were asked for, each once however often it was tried.
    pub fetches: Counter,
    /// Tries of them after the first.
    pub retries: Counter,
    /// Those that could not be had.
    pub failures: Counter,
    /// Verified bytes handed to callers.
    pub bytes: Counter,
}

impl RegistryMetrics {
    pub(super) fn count_shrink(&self, shrink: Shrink) {
        let counter = match shrink {
            Shrink::Slow => &self.shrinks_slow,
            Shrink::Refused => &self.shrinks_refused,
            Shrink::TimedOut => &self.shrinks_timed_out,
        };
        counter.inc();
    }

    pub(super) fn count_failure(&self, error: &RegistryError) {
        let counter = match error.fault() {
            _ if error.is_timeout() => &self.timeouts,
            Fault::Network => &self.network_errors,
            Fault::Registry => &self.registry_errors,
            Fault::Credentials => &self.credential_errors,
            Fault::Configuration | Fault::Caller => &self.other_errors,
        };
        counter.inc();
    }
}
