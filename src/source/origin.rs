//! Where bytes come from when nothing nearer has them.

use std::{fmt, pin::Pin, sync::Arc};

use bytes::Bytes;

use super::{Proof, SourceError};
use crate::block::ByteRange;

/// A boxed future that any executor may drive.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whether somebody waits for the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A request waits.
    Demand,
    /// Nobody waits yet: on-demand reads go first.
    Prefetch,
}

/// The far end of a blob: slow, and each call costs a round trip. Its bytes never change.
pub trait Origin: Send + Sync + fmt::Debug {
    /// Size of the blob in bytes, known without asking.
    fn size_bytes(&self) -> u64;

    /// What to call it in messages: a repository and digest. Holds no credential.
    fn name(&self) -> &str;

    /// What answers or hangs together with it: the host of its registry. No lane gets all of what readers share. Without
    /// one of its own, a blob is its own lane.
    fn lane(&self) -> &str {
        self.name()
    }

    /// What proves its bytes, where something does: then what it gives is proven.
    fn proof(&self) -> Option<&Arc<Proof>> {
        None
    }

    /// Gets exactly the bytes of `range`, which lies inside the blob. The future retries and ends by a deadline of its
    /// own, and does not borrow from the origin.
    ///
    /// # Errors
    /// [`SourceError::Remote`] when the bytes cannot be had, [`SourceError::Refuted`] when other ones come.
    fn read_range(
        &self,
        range: ByteRange,
        urgency: Urgency,
    ) -> BoxFuture<'static, Result<Bytes, SourceError>>;
}

/// An origin gave another number of bytes than it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("asked for {wanted_bytes} bytes and got {got_bytes}")]
pub struct WrongLength {
    /// Bytes asked for.
    pub wanted_bytes: u64,
    /// Bytes that came.
    pub got_bytes: u64,
}

/// `bytes` if there are as many as `range` has; nothing from an answer of another length is used.
///
/// # Errors
/// [`SourceError::Remote`] with a [`WrongLength`].
pub fn check_length(name: &str, range: ByteRange, bytes: Bytes) -> Result<Bytes, SourceError> {
    let got_bytes = bytes.len() as u64;
    if got_bytes == range.len() {
        return Ok(bytes);
    }
    Err(SourceError::Remote {
        name: name.to_owned(),
        offset: range.start(),
        len: range.len(),
        timed_out: false,
        source: Arc::new(WrongLength { wanted_bytes: range.len(), got_bytes }),
    })
}
