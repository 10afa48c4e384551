//! A blob of a registry as the origin that a cache asks.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    block::ByteRange,
    registry::{Priority, RemoteBlob},
    source::{BoxFuture, Origin, SourceError, Urgency},
};

/// Asks a registry.
#[derive(Debug)]
pub(super) struct BlobOrigin {
    blob: RemoteBlob,
}

impl BlobOrigin {
    pub(super) fn new(blob: RemoteBlob) -> Self {
        Self { blob }
    }
}

impl Origin for BlobOrigin {
    fn size_bytes(&self) -> u64 {
        self.blob.size_bytes()
    }

    fn name(&self) -> &str {
        self.blob.name()
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
        let reply = self.blob.read_range(range, priority);
        Box::pin(async move {
            reply.await.map_err(|error| SourceError::Remote {
                name,
                offset: range.start(),
                len: range.len(),
                timed_out: error.is_timeout(),
                source: Arc::new(error),
            })
        })
    }
}
