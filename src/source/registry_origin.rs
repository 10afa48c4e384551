//! A blob in a registry as an origin.

use std::sync::Arc;

use bytes::Bytes;

use super::{BoxFuture, Origin, SourceError, Urgency};
use crate::{
    block::ByteRange,
    registry::{Priority, RemoteBlob},
};

/// Reads a [`RemoteBlob`], whose client retries and keeps its deadline.
#[derive(Debug, Clone)]
pub struct RegistryOrigin {
    blob: RemoteBlob,
}

impl RegistryOrigin {
    /// Reads `blob`.
    #[must_use]
    pub fn new(blob: RemoteBlob) -> Self {
        Self { blob }
    }
}

impl Origin for RegistryOrigin {
    fn size_bytes(&self) -> u64 {
        self.blob.size_bytes()
    }

    fn name(&self) -> &str {
        self.blob.name()
    }

    fn lane(&self) -> &str {
        self.blob.host()
    }

    fn read_range(
        &self,
        range: ByteRange,
        urgency: Urgency,
    ) -> BoxFuture<'static, Result<Bytes, SourceError>> {
        let priority = match urgency {
            Urgency::Demand => Priority::Demand,
            Urgency::Prefetch => Priority::Prefetch,
        };
        let name = self.blob.name().to_owned();
        let answer = self.blob.read_range(range, priority);
        Box::pin(async move {
            answer.await.map_err(|error| SourceError::Remote {
                name,
                offset: range.start(),
                len: range.len(),
                timed_out: error.is_timeout(),
                source: Arc::new(error),
            })
        })
    }
}
