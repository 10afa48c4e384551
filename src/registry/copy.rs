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

use super::{Reason, RegistryError, RemoteBlob, Repository, draft::BodyFailure};
use crate::{block::ByteRange, format::oci::Digest};

/// Bytes of a blob that are asked for at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Bytes that are handed on at once: by how many of them went out it is seen that a slow way is not a dead one.
const FRAME_BYTES: usize = 64 << 10;
/// Pieces that are asked for before they can be sent. With the one that is sent a copy holds 4 MiB, and gets 30 MB/s by a way
/// of 100 ms.
const PIECES_AHEAD: usize = 3;

/// A blob of another repository, in the same registry or elsewhere, that is read while it is sent. Its last bytes are sent only
/// where all of them have its digest.
#[derive(Debug, Clone)]
pub struct BlobContent {
    blob: RemoteBlob,
    sent_bytes: Arc<AtomicU64>,
    failure: BodyFailure,
}

/// One sending of it.
struct Copying {
    pieces: Pin<Box<dyn Stream<Item = Result<Bytes, RegistryError>> + Send>>,
    /// What was read and not sent yet.
    piece: Bytes,
    hash: Sha256,
    read_bytes: u64,
    done_bytes: u64,
    content: BlobContent,
}

impl BlobContent {
    /// All of `blob`. `sent_bytes` is kept at how many bytes of it were sent; it falls back to 0 when all is sent again.
    #[must_use]
    pub fn new(blob: RemoteBlob, sent_bytes: Arc<AtomicU64>) -> Self {
        Self { blob, sent_bytes, failure: BodyFailure::default() }
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

    pub(super) fn take_failure(&self) -> Option<Reason> {
        self.failure.take()
    }

    pub(super) fn to_body(&self) -> UnsyncBoxBody<Bytes, io::Error> {
        self.sent_bytes.store(0, Ordering::Relaxed);
        self.failure.clear();
        let (blob, size_bytes) = (self.blob.clone(), self.blob.size_bytes());
        let starts = (0..size_bytes.div_ceil(PIECE_BYTES)).map(|number| number.saturating_mul(PIECE_BYTES));
        let ranges = starts
            .map(move |start| ByteRange::between(start, start.saturating_add(PIECE_BYTES).min(size_bytes)));
        let pieces =
            stream::iter(ranges).map(move |range| blob.read_for_upload(range)).buffered(PIECES_AHEAD);
        let copying = Copying {
            pieces: Box::pin(pieces),
            piece: Bytes::new(),
            hash: Sha256::new(),
            read_bytes: 0,
            done_bytes: 0,
            content: self.clone(),
        };
        StreamBody::new(stream::try_unfold(copying, Copying::next)).boxed_unsync()
    }
}

impl Copying {
    async fn next(mut self) -> io::Result<Option<(Frame<Bytes>, Self)>> {
        if self.piece.is_empty() {
            let Some(piece) = self.pieces.next().await else { return Ok(None) };
            let lost = |source| self.content.failure.end(Reason::Origin { source });
            self.piece = piece.map_err(lost)?;
            self.hash.update(&self.piece);
            self.read_bytes = self.read_bytes.saturating_add(self.piece.len() as u64);
            if self.read_bytes == self.content.size_bytes() {
                self.check().map_err(lost)?;
            }
        }
        let frame = self.piece.split_to(self.piece.len().min(FRAME_BYTES));
        self.done_bytes = self.done_bytes.saturating_add(frame.len() as u64);
        self.content.sent_bytes.store(self.done_bytes, Ordering::Relaxed);
        Ok(Some((Frame::data(frame), self)))
    }

    /// Holds what was read against its digest.
    fn check(&self) -> Result<(), RegistryError> {
        let blob = &self.content.blob;
        let (expected, got) = (blob.digest(), Digest::from_hash(self.hash.clone().finalize().into()));
        let mismatch = || RegistryError::new(blob.name(), Reason::DigestMismatch { expected, got });
        if got == expected { Ok(()) } else { Err(mismatch()) }
    }
}
