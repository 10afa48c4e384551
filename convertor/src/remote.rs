//! A blob of a registry as a stream.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::Arc,
};

use bytes::Bytes;
use stratabd::{
    block::ByteRange,
    registry::{Priority, RemoteBlob, Reply},
    server::network::failure_of_registry,
};
use tokio::runtime::Handle;

use crate::convert::ConvertProgress;

/// Bytes that are asked for at once.
const RANGE_BYTES: u64 = 4 << 20;
/// Ranges that are asked for ahead, of which a reader waits for the first.
const RANGES_AHEAD: usize = 3;

/// A blob of a registry, read from its start to its end, some ranges ahead.
pub(crate) struct RemoteReader {
    blob: RemoteBlob,
    runtime: Handle,
    progress: Arc<ConvertProgress>,
    /// Where the next range begins.
    next: u64,
    asked: VecDeque<Reply<Bytes>>,
    arrived: Bytes,
}

impl RemoteReader {
    /// To be read on a thread that is none of `runtime`, until `progress` is to end.
    pub(crate) fn new(blob: RemoteBlob, runtime: Handle, progress: Arc<ConvertProgress>) -> Self {
        Self { blob, runtime, progress, next: 0, asked: VecDeque::new(), arrived: Bytes::new() }
    }

    fn ask(&mut self) {
        while self.asked.len() < RANGES_AHEAD && self.next < self.blob.size_bytes() {
            let end = self.next.saturating_add(RANGE_BYTES).min(self.blob.size_bytes());
            self.asked.push_back(self.blob.read_range(ByteRange::between(self.next, end), Priority::Demand));
            self.next = end;
        }
    }
}

impl Read for RemoteReader {
    fn read(&mut self, dest: &mut [u8]) -> io::Result<usize> {
        self.ask();
        if self.arrived.is_empty()
            && let Some(first) = self.asked.pop_front()
        {
            let blob = self.blob.name();
            let arriving = async {
                first.await.map_err(|error| failure_of_registry(format!("cannot read {blob}"), error))
            };
            let arrived = self.runtime.block_on(self.progress.unless_cancelled(arriving));
            self.arrived = arrived.map_err(io::Error::other)?;
        }
        let count = dest.len().min(self.arrived.len());
        let bytes = self.arrived.split_to(count);
        if let Some(dest) = dest.get_mut(..count) {
            dest.copy_from_slice(&bytes);
        }
        Ok(count)
    }
}
