//! A blob that is sent to one repository while it is read from another.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use sha2::{Digest as _, Sha256};

use super::{Reason, RegistryError, RemoteBlob, Repository};
use crate::{block::ByteRange, format::oci::Digest};

/// Bytes of a blob that are asked for at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces that are asked for before they can be sent. With the one that is sent a copy holds 4 MiB, and gets 30 MB/s by a way
/// of 100 ms.
const PIECES_AHEAD: usize = 3;

/// A blob of another repository, in the same registry or elsewhere, that is read while it is sent. Its last bytes are sent only
/// where all of them have its digest.
#[derive(Debug, Clone)]
pub struct BlobContent {
    blob: RemoteBlob,
    sent_bytes: Arc<AtomicU64>,
}

/// One sending of it.
struct Copying {
    pieces: Pin<Box<dyn Stream<Item = Result<Bytes, RegistryError>> + Send>>,
    hash: Sha256,
    done_bytes: u64,
    content: BlobContent,
}

impl BlobContent {
    /// All of `blob`. `sent_bytes` is kept at how many bytes of it were sent; it falls back to 0 when all is sent again.
    #[must_use]
    pub fn new(blob: RemoteBlob, sent_bytes: Arc<AtomicU64>) -> Self {
        Self { blob, sent_bytes }
    }

    /// Where it is.
    pub(super) fn repository(&self) -> &Repository {
        self.blob.repository()
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.blob.size_bytes()
    }

    /// Bytes that were taken to be sent.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn to_body(&self) -> UnsyncBoxBody<Bytes, io::Error> {
        self.sent_bytes.store(0, Ordering::Relaxed);
        let (blob, size_bytes) = (self.blob.clone(), self.blob.size_bytes());
        let starts = (0..size_bytes.div_ceil(PIECE_BYTES)).map(|number| number.saturating_mul(PIECE_BYTES));
        let ranges = starts
            .map(move |start| ByteRange::between(start, start.saturating_add(PIECE_BYTES).min(size_bytes)));
        let pieces =
            stream::iter(ranges).map(move |range| blob.read_for_upload(range)).buffered(PIECES_AHEAD);
        let copying =
            Copying { pieces: Box::pin(pieces), hash: Sha256::new(), done_bytes: 0, content: self.clone() };
        StreamBody::new(stream::try_unfold(copying, Copying::next)).boxed_unsync()
    }
}

impl Copying {
    async fn next(mut self) -> io::Result<Option<(Frame<Bytes>, Self)>> {
        let Some(piece) = self.pieces.next().await else { return Ok(None) };
        let piece = piece.map_err(io::Error::other)?;
        self.hash.update(&piece);
        self.done_bytes = self.done_bytes.saturating_add(piece.len() as u64);
        if self.done_bytes == self.content.size_bytes() {
            self.check()?;
        }
        self.content.sent_bytes.store(self.done_bytes, Ordering::Relaxed);
        Ok(Some((Frame::data(piece), self)))
    }

    /// Holds what was read against its digest.
    fn check(&self) -> io::Result<()> {
        let blob = &self.content.blob;
        let (expected, got) = (blob.digest(), Digest::from_hash(self.hash.clone().finalize().into()));
        let mismatch = || RegistryError::new(blob.name(), Reason::DigestMismatch { expected, got });
        if got == expected { Ok(()) } else { Err(io::Error::other(mismatch())) }
    }
}
