//! Decides from the head of an answer which bytes of its body are the range, or that none are. Never guesses.

use http::{HeaderMap, HeaderName, StatusCode, header};

use super::{ContentRange, Reason};
use crate::block::ByteRange;

/// How far into a 200 the range may begin: about a second at 64 Mbit/s. Behind it, a server without ranges is refused,
/// since each read would cost the blob up to there.
pub const MAX_SKIP_BYTES: u64 = 8 << 20;

/// Where the wanted bytes lie in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyPart {
    /// Bytes of the body before them.
    pub skip: u64,
    /// Their number.
    pub len: u64,
    /// Whether the body must end after them.
    pub is_whole_body: bool,
}

/// Finds the bytes of `asked`, which is not empty, in the body that follows this head. `size_bytes` is the blob's.
///
/// # Errors
/// Whatever does not prove that the body holds exactly these bytes.
pub fn locate(
    status: StatusCode,
    headers: &HeaderMap,
    asked: ByteRange,
    size_bytes: u64,
) -> Result<BodyPart, Reason> {
    check_encoding(headers)?;
    let sent_length = single(headers, &header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
    match status {
        StatusCode::PARTIAL_CONTENT => {
            let range = content_range(headers)?;
            if range.total != size_bytes {
                return Err(Reason::WrongSize { expected: size_bytes, sent: range.total });
            }
            let is_asked = range.start == asked.start() && range.last.checked_add(1) == Some(asked.end());
            if !is_asked {
                return Err(Reason::WrongRange {
                    asked: format!("{}-{}/{size_bytes}", asked.start(), asked.end().saturating_sub(1)),
                    sent: format!("{}-{}/{}", range.start, range.last, range.total),
                });
            }
            Ok(BodyPart { skip: 0, len: asked.len(), is_whole_body: true })
        }
        // A whole blob may come in chunks: that it ends where it must is seen then.
        StatusCode::OK if sent_length.is_none() && asked == ByteRange::between(0, size_bytes) => {
            Ok(BodyPart { skip: 0, len: size_bytes, is_whole_body: true })
        }
        StatusCode::OK if sent_length != Some(size_bytes) => {
            Err(Reason::WrongLength { expected: size_bytes, sent: sent_length })
        }
        StatusCode::OK if asked.start() > MAX_SKIP_BYTES => Err(Reason::RangeIgnored { skip: asked.start() }),
        StatusCode::OK => {
            let is_whole_body = asked.end() == size_bytes;
            Ok(BodyPart { skip: asked.start(), len: asked.len(), is_whole_body })
        }
        other => Err(Reason::Status { status: other.as_u16(), retry_after: None }),
    }
}

/// The size of the blob from the answer to a request for its first byte.
///
/// # Errors
/// When the answer does not say it beyond doubt.
pub(super) fn size_bytes(status: StatusCode, headers: &HeaderMap) -> Result<u64, Reason> {
    check_encoding(headers)?;
    if status == StatusCode::PARTIAL_CONTENT {
        let range = content_range(headers)?;
        if (range.start, range.last) == (0, 0) {
            return Ok(range.total);
        }
        let sent = format!("{}-{}/{}", range.start, range.last, range.total);
        return Err(Reason::WrongRange { asked: "0-0/?".to_owned(), sent });
    }
    let length = single(headers, &header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
    length.ok_or(Reason::WrongLength { expected: 0, sent: None })
}

fn check_encoding(headers: &HeaderMap) -> Result<(), Reason> {
    for encoding in headers.get_all(header::CONTENT_ENCODING) {
        if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") {
            let shown = String::from_utf8_lossy(encoding.as_bytes()).chars().take(32).collect();
            return Err(Reason::ContentEncoding(shown));
        }
    }
    Ok(())
}

fn content_range(headers: &HeaderMap) -> Result<ContentRange, Reason> {
    let is_multipart = single(headers, &header::CONTENT_TYPE)
        .and_then(|kind| kind.get(..10).map(|kind| kind.eq_ignore_ascii_case("multipart/")));
    if is_multipart == Some(true) {
        return Err(Reason::Multipart);
    }
    let text = single(headers, &header::CONTENT_RANGE).unwrap_or_default();
    text.parse().map_err(Reason::ContentRange)
}

/// A header's text if it is there exactly once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn asked(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).unwrap()
    }

    #[test]
    fn an_exact_206_is_the_range() {
        let headers = head(&[("content-range", "bytes 10-19/100"), ("content-length", "10")]);
        let part = locate(StatusCode::PARTIAL_CONTENT, &headers, asked(10, 10), 100).unwrap();
        assert_eq!(part, BodyPart { skip: 0, len: 10, is_whole_body: true });
        for range in [asked(10, 11), asked(9, 10)] {
            let refused = locate(StatusCode::PARTIAL_CONTENT, &headers, range, 100);
            assert!(matches!(refused, Err(Reason::WrongRange { .. })), "{range:?}");
        }
        let other = locate(StatusCode::PARTIAL_CONTENT, &headers, asked(10, 10), 101);
        assert!(matches!(other, Err(Reason::WrongSize { expected: 101, sent: 100 })));
    }

    #[test]
    fn a_206_that_proves_nothing_is_refused() {
        let twice = {
            let mut headers = head(&[("content-range", "bytes 10-19/100")]);
            headers.append("content-range", "bytes 10-19/100".parse().unwrap());
            headers
        };
        let partial = |headers| locate(StatusCode::PARTIAL_CONTENT, &headers, asked(10, 10), 100);
        assert!(matches!(partial(twice), Err(Reason::ContentRange(_))));
        assert!(matches!(partial(head(&[])), Err(Reason::ContentRange(_))));
        let multipart = head(&[("content-type", "Multipart/byteranges; boundary=x")]);
        assert!(matches!(partial(multipart), Err(Reason::Multipart)));
        let encoded = head(&[("content-range", "bytes 10-19/100"), ("content-encoding", "gzip")]);
        assert!(matches!(partial(encoded), Err(Reason::ContentEncoding(_))));
    }

    #[test]
    fn a_200_is_the_whole_blob_or_nothing() {
        let size = MAX_SKIP_BYTES + 100;
        let headers = head(&[("content-length", &size.to_string()), ("content-encoding", "identity")]);
        let whole = |range| locate(StatusCode::OK, &headers, range, size);
        let near = whole(asked(5, 10)).unwrap();
        assert_eq!(near, BodyPart { skip: 5, len: 10, is_whole_body: false });
        assert!(whole(asked(5, size - 5)).unwrap().is_whole_body);
        assert!(matches!(whole(asked(MAX_SKIP_BYTES + 1, 1)), Err(Reason::RangeIgnored { .. })));
        let other = locate(StatusCode::OK, &headers, asked(0, 1), size + 1);
        assert!(matches!(other, Err(Reason::WrongLength { .. })));
        let unsaid = locate(StatusCode::OK, &head(&[]), asked(0, 1), size);
        assert!(matches!(unsaid, Err(Reason::WrongLength { sent: None, .. })));
        let in_chunks = locate(StatusCode::OK, &head(&[]), asked(0, size), size).unwrap();
        assert_eq!(in_chunks, BodyPart { skip: 0, len: size, is_whole_body: true });
    }
}
