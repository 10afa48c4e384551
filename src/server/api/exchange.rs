//! One request over HTTP/1.1 and its answer, on a stream that blocks.
//!
//! A program that asks one thing of a daemon on the same machine spends more time on setting up a runtime and a client that can do
//! all of HTTP than on the question. httparse, which hyper has too, reads the head of the answer; the body has a length.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use httparse::{EMPTY_HEADER, Status};

/// Longest head of an answer that is read.
const MAX_HEAD_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 32;

/// Longest answer that is read: a list of thousands of devices fits.
const MAX_BODY_BYTES: usize = 64 << 20;

/// What is read at once, in bytes.
const PIECE_BYTES: usize = 16 << 10;

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// What the head of an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerHead {
    /// A final status: 200 or more.
    pub status: u16,
    /// Bytes of the head itself, its empty line included.
    pub len: usize,
    /// Bytes of the body that follows.
    pub body_len: usize,
}

/// Sends `method path` with a body of JSON, and returns the answer, all of which is there `within` that time.
///
/// # Errors
/// [`ErrorKind::TimedOut`]; [`ErrorKind::InvalidData`] where it is no answer that can be read; else what the kernel says.
pub(super) fn ask(
    stream: &mut UnixStream,
    method: &str,
    path: &str,
    body: &[u8],
    within: Duration,
) -> io::Result<Answer> {
    let deadline = Instant::now() + within;
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nhost: stratabd\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    stream.set_write_timeout(Some(within))?;
    stream.write_all(&request).map_err(late)?;
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(head) = AnswerHead::decode(&bytes)? {
            break head;
        }
        read_piece(stream, &mut bytes, deadline)?;
    };
    let end = head.len.saturating_add(head.body_len);
    while bytes.len() < end {
        read_piece(stream, &mut bytes, deadline)?;
    }
    bytes.truncate(end);
    bytes.drain(..head.len);
    Ok(Answer { status: head.status, body: bytes })
}

impl AnswerHead {
    /// The head that `bytes` begin with; none where more is to come.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] where it is no head of an answer that can be read.
    pub fn decode(bytes: &[u8]) -> io::Result<Option<Self>> {
        let wrong = |rule: &str| io::Error::new(ErrorKind::InvalidData, rule.to_owned());
        let mut headers = [EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let len = match response.parse(bytes) {
            Ok(Status::Complete(len)) => len,
            Ok(Status::Partial) if bytes.len() > MAX_HEAD_BYTES => {
                return Err(wrong("its head does not end"));
            }
            Ok(Status::Partial) => return Ok(None),
            Err(error) => return Err(io::Error::new(ErrorKind::InvalidData, error)),
        };
        let status =
            response.code.filter(|code| *code >= 200).ok_or_else(|| wrong("it has no final status"))?;
        let mut lengths =
            response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("content-length"));
        let body_len = match (lengths.next(), lengths.next()) {
            (Some(only), None) => str::from_utf8(only.value).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        let body_len: usize = body_len.ok_or_else(|| wrong("it does not say its length"))?;
        if body_len > MAX_BODY_BYTES {
            return Err(wrong("it is too long"));
        }
        Ok(Some(Self { status, len, body_len }))
    }
}

/// Appends what is there next.
fn read_piece(stream: &mut UnixStream, bytes: &mut Vec<u8>, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    let mut piece = [0; PIECE_BYTES];
    match stream.read(&mut piece) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(count) => {
            bytes.extend_from_slice(piece.get(..count).unwrap_or_default());
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
        Err(error) => Err(late(error)),
    }
}

/// A socket whose time is over says that it would block.
fn late(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Asks somebody who answers with `pieces`, one after another, and hangs up.
    fn answered(pieces: &[&[u8]]) -> io::Result<Answer> {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut request = [0; 4096];
                let count = far.read(&mut request).unwrap();
                let request = str::from_utf8(&request[..count]).unwrap();
                assert!(request.starts_with("POST /v1/devices HTTP/1.1\r\nhost: "), "{request}");
                assert!(request.ends_with("content-length: 2\r\n\r\n{}"), "{request}");
                for piece in pieces {
                    far.write_all(piece).unwrap();
                    thread::yield_now();
                }
            });
            ask(&mut near, "POST", "/v1/devices", b"{}", Duration::from_secs(60))
        })
    }

    fn refused(pieces: &[&[u8]]) -> ErrorKind {
        answered(pieces).unwrap_err().kind()
    }

    #[test]
    fn an_answer_is_read_however_it_comes() {
        let whole =
            b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\nContent-Length: 5\r\n\r\nthere";
        let expected = Answer { status: 404, body: b"there".to_vec() };
        assert_eq!(answered(&[whole]).unwrap(), expected);
        for cut in [1, 20, whole.len() - 7, whole.len() - 5, whole.len() - 1] {
            let (first, second) = whole.split_at(cut);
            assert_eq!(answered(&[first, second]).unwrap(), expected, "{cut}");
        }
        assert_eq!(answered(&[whole, b"more"]).unwrap(), expected);
        let empty = Answer { status: 200, body: Vec::new() };
        assert_eq!(answered(&[b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).unwrap(), empty);
    }

    #[test]
    fn what_is_no_whole_answer_is_refused() {
        assert_eq!(refused(&[]), ErrorKind::UnexpectedEof);
        assert_eq!(refused(&[b"HTTP/1.1 200 OK\r\n"]), ErrorKind::UnexpectedEof);
        assert_eq!(refused(&[b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nless"]), ErrorKind::UnexpectedEof);
        for wrong in [
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
        ] {
            assert_eq!(refused(&[wrong.as_bytes()]), ErrorKind::InvalidData, "{wrong}");
        }
        let endless = [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'y'; 3 * PIECE_BYTES]];
        assert_eq!(refused(&endless), ErrorKind::InvalidData);
    }

    #[test]
    fn a_head_is_waited_for_to_its_end() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n";
        for cut in 0..whole.len() {
            assert_eq!(AnswerHead::decode(&whole[..cut]).unwrap(), None, "{cut}");
        }
        let head = AnswerHead { status: 200, len: whole.len(), body_len: 7 };
        assert_eq!(AnswerHead::decode(whole).unwrap(), Some(head));
    }

    #[test]
    fn who_does_not_answer_is_not_waited_for_for_ever() {
        let (mut near, _far) = UnixStream::pair().unwrap();
        let error = ask(&mut near, "GET", "/v1/devices", b"", Duration::from_millis(30)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
