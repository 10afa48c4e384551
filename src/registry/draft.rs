//! What a request carries besides its address. It can be sent again: to try once more, or to where a redirect leads.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, header};
use http_body_util::{BodyExt as _, Either, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use tokio::task;

use super::{BlobContent, Reason};

/// Bytes of a file that are read at once; an upload holds two of these.
const PIECE_BYTES: u64 = 256 << 10;

/// A body as the connections take it.
pub(super) type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, io::Error>>;

/// Method, headers and content of a request.
#[derive(Clone)]
pub(super) struct Draft {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
}

/// What the body of a request is made of.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Bytes(Bytes),
    File(FileContent),
    Blob(BlobContent),
}

/// A file that is read while it is sent.
#[derive(Debug, Clone)]
pub struct FileContent {
    file: Arc<File>,
    size_bytes: u64,
    sent_bytes: Arc<AtomicU64>,
    failure: BodyFailure,
}

/// Why a body could not be made, as far as it was sent. Only HTTP/1 connections tell it to whoever waits for the answer: of HTTP/2
/// he sees a stream that was reset.
#[derive(Debug, Clone, Default)]
pub(super) struct BodyFailure(Arc<Mutex<Option<Reason>>>);

impl BodyFailure {
    /// A new sending begins.
    pub(super) fn clear(&self) {
        drop(self.take());
    }

    /// Notes it, and returns what ends the body.
    pub(super) fn end(&self, reason: Reason) -> io::Error {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        io::Error::other("what is to be sent cannot be had")
    }

    pub(super) fn take(&self) -> Option<Reason> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Draft {
    pub(super) fn get(headers: HeaderMap) -> Self {
        Self { method: Method::GET, headers, content: Content::Bytes(Bytes::new()) }
    }

    /// The same with one header more.
    pub(super) fn with(&self, name: header::HeaderName, value: http::HeaderValue) -> Self {
        let mut draft = self.clone();
        draft.headers.insert(name, value);
        draft
    }

    /// The whole, for one sending of it.
    pub(super) fn to_request(&self) -> http::Request<Body> {
        let mut request = http::Request::new(self.content.to_body());
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        // Said even of an empty body: registries want to know.
        if !self.method.is_safe() {
            request.headers_mut().insert(header::CONTENT_LENGTH, self.content.size_bytes().into());
        }
        request
    }
}

impl Content {
    /// Bytes that were taken to be sent, of a body that takes long.
    pub(super) fn sent_bytes(&self) -> u64 {
        match self {
            Self::Bytes(_) => 0,
            Self::File(file) => file.sent_bytes.load(Ordering::Relaxed),
            Self::Blob(blob) => blob.sent_bytes(),
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(file) => file.size_bytes,
            Self::Blob(blob) => blob.size_bytes(),
        }
    }

    /// Why the last sending of it has ended by itself.
    pub(super) fn take_failure(&self) -> Option<Reason> {
        match self {
            Self::Bytes(_) => None,
            Self::File(file) => file.failure.take(),
            Self::Blob(blob) => blob.take_failure(),
        }
    }

    fn to_body(&self) -> Body {
        match self {
            Self::Bytes(bytes) => Either::Left(Full::new(bytes.clone())),
            Self::File(file) => Either::Right(file.to_body()),
            Self::Blob(blob) => Either::Right(blob.to_body()),
        }
    }
}

impl FileContent {
    /// The first `size_bytes` of `file`. `sent_bytes` is kept at how many of them were sent; it falls back to 0 when all is
    /// sent again.
    #[must_use]
    pub fn new(file: Arc<File>, size_bytes: u64, sent_bytes: Arc<AtomicU64>) -> Self {
        Self { file, size_bytes, sent_bytes, failure: BodyFailure::default() }
    }

    fn to_body(&self) -> UnsyncBoxBody<Bytes, io::Error> {
        self.sent_bytes.store(0, Ordering::Relaxed);
        self.failure.clear();
        let pieces = stream::try_unfold((self.clone(), 0_u64), |(content, offset)| async move {
            let len = PIECE_BYTES.min(content.size_bytes.saturating_sub(offset));
            if len == 0 {
                return Ok(None);
            }
            let unread = |source: io::Error| content.failure.end(Reason::Content { source: source.into() });
            let piece = content.read(offset, len).await.map_err(unread)?;
            let end = offset.saturating_add(len);
            content.sent_bytes.store(end, Ordering::Relaxed);
            Ok(Some((Frame::data(piece), (content, end))))
        });
        StreamBody::new(pieces).boxed_unsync()
    }

    /// Reads off the threads of the network, which a slow disk must not hold up.
    async fn read(&self, offset: u64, len: u64) -> io::Result<Bytes> {
        let file = Arc::clone(&self.file);
        let reading = task::spawn_blocking(move || {
            let mut piece = vec![0; usize::try_from(len).unwrap_or(0)];
            file.read_exact_at(&mut piece, offset)?;
            Ok(Bytes::from(piece))
        });
        reading.await.map_err(io::Error::other)?
    }
}
