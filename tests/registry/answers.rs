//! Wrong, broken and odd answers to range requests: either the right bytes come out, or an error, never other bytes.

use std::time::{Duration, Instant};

use stratabd::registry::{Fault, MAX_SKIP_BYTES, Priority, Reason, RegistryError};

use crate::script::{After, Seen, Server, Step, blob, client, config, partial, pattern, range, raw, reply};

const SIZE: usize = 100_000;

type Script = fn(&[u8], &Seen) -> Step;
type Check = fn(&Reason) -> bool;

/// What a server that misbehaves in this way in each answer leads to, and after how many requests.
struct Case {
    name: &'static str,
    script: Script,
    requests: usize,
    check: Check,
}

const TRIES: usize = 4;

const CASES: &[Case] = &[
    Case {
        name: "short body by content-length",
        script: |data, _| reply("206 Partial Content", &[CR], &data[1000..1999]),
        requests: TRIES,
        check: |reason| matches!(reason, Reason::ShortBody { expected: 1000, got: 999 }),
    },
    Case {
        name: "connection cut in the body",
        script: |data, _| {
            raw("206 Partial Content", &[CR, "Content-Length: 1000"], &data[1000..1500], After::Close)
        },
        requests: TRIES,
        check: |reason| matches!(reason, Reason::ShortBody { got: 500, .. }),
    },
    Case {
        name: "cut before the head is complete",
        script: |_, _| Step { delay: Duration::ZERO, bytes: b"HTTP/1.1 206".to_vec(), after: After::Close },
        requests: TRIES,
        check: |reason| matches!(reason, Reason::Exchange { .. }),
    },
    Case {
        name: "long body by content-length",
        script: |data, _| reply("206 Partial Content", &[CR], &data[1000..2001]),
        requests: TRIES,
        check: |reason| matches!(reason, Reason::LongBody { expected: 1000 }),
    },
    Case {
        name: "body until the connection closes, one byte too long",
        script: |data, _| raw("206 Partial Content", &[CR], &data[1000..2001], After::Close),
        requests: TRIES,
        check: |reason| matches!(reason, Reason::LongBody { .. }),
    },
    Case {
        name: "another range",
        script: |data, _| reply("206 Partial Content", &["Content-Range: bytes 0-999/100000"], &data[..1000]),
        requests: TRIES,
        check: |reason| matches!(reason, Reason::WrongRange { .. }),
    },
    Case {
        name: "a blob of another size",
        script: |data, _| {
            reply("206 Partial Content", &["Content-Range: bytes 1000-1999/99999"], &data[1000..2000])
        },
        requests: 2,
        check: |reason| matches!(reason, Reason::WrongSize { expected: 100_000, sent: 99_999 }),
    },
    Case {
        name: "unknown total",
        script: |data, _| {
            reply("206 Partial Content", &["Content-Range: bytes 1000-1999/*"], &data[1000..2000])
        },
        requests: TRIES,
        check: |reason| matches!(reason, Reason::ContentRange(_)),
    },
    Case {
        name: "206 without Content-Range",
        script: |data, _| reply("206 Partial Content", &[], &data[1000..2000]),
        requests: TRIES,
        check: |reason| matches!(reason, Reason::ContentRange(_)),
    },
    Case {
        name: "multipart",
        script: |data, _| {
            reply("206 Partial Content", &["Content-Type: multipart/byteranges; boundary=b"], &data[..2000])
        },
        requests: 2,
        check: |reason| matches!(reason, Reason::Multipart),
    },
    Case {
        name: "gzip",
        script: |data, _| reply("206 Partial Content", &[CR, "Content-Encoding: gzip"], &data[1000..2000]),
        requests: 2,
        check: |reason| matches!(reason, Reason::ContentEncoding(kind) if kind == "gzip"),
    },
    Case {
        name: "200 with only the range",
        script: |data, _| reply("200 OK", &[], &data[1000..2000]),
        requests: 2,
        check: |reason| matches!(reason, Reason::WrongLength { sent: Some(1000), .. }),
    },
    Case {
        name: "200 without a length",
        script: |data, _| raw("200 OK", &[], data, After::Close),
        requests: 2,
        check: |reason| matches!(reason, Reason::WrongLength { sent: None, .. }),
    },
    Case {
        name: "200 that ends before the range does",
        script: |data, _| raw("200 OK", &["Content-Length: 100000"], &data[..1500], After::Close),
        requests: TRIES,
        check: |reason| matches!(reason, Reason::ShortBody { got: 1500, .. }),
    },
    Case {
        name: "416",
        script: |_, _| reply("416 Range Not Satisfiable", &["Content-Range: bytes */5"], b""),
        requests: 1,
        check: |reason| matches!(reason, Reason::RangeNotSatisfiable),
    },
    Case {
        name: "204",
        script: |_, _| raw("204 No Content", &[], b"", After::Keep),
        requests: 1,
        check: |reason| matches!(reason, Reason::Status { status: 204, .. }),
    },
    Case {
        name: "403",
        script: |_, _| reply("403 Forbidden", &[], b"no"),
        requests: 1,
        check: |reason| matches!(reason, Reason::Forbidden { .. }),
    },
    Case {
        name: "404",
        script: |_, _| reply("404 Not Found", &[], b"no"),
        requests: 1,
        check: |reason| matches!(reason, Reason::NotFound),
    },
    Case {
        name: "500",
        script: |_, _| reply("500 Internal Server Error", &[], b"oops"),
        requests: TRIES,
        check: |reason| matches!(reason, Reason::Status { status: 500, .. }),
    },
    Case {
        name: "a body that stalls",
        script: |data, _| {
            raw("206 Partial Content", &[CR, "Content-Length: 1000"], &data[1000..1500], After::Stall)
        },
        requests: TRIES,
        check: |reason| matches!(reason, Reason::Timeout { what: "more data", .. }),
    },
    Case {
        // The limit is looked at between reads, each of which may bring as much again.
        name: "a head of four megabytes",
        script: |data, _| {
            let huge = format!("X-Huge: {}", "x".repeat(4_000_000));
            reply("206 Partial Content", &[CR, &huge], &data[1000..2000])
        },
        requests: TRIES,
        check: |reason| matches!(reason, Reason::Exchange { .. }),
    },
    Case {
        name: "not HTTP",
        script: |_, _| Step { delay: Duration::ZERO, bytes: vec![0xff; 100], after: After::Close },
        requests: TRIES,
        check: |reason| matches!(reason, Reason::Exchange { .. }),
    },
];

const CR: &str = "Content-Range: bytes 1000-1999/100000";

async fn outcome(
    script: impl Fn(&[u8], &Seen, usize) -> Step + Send + Sync + 'static,
) -> (Result<bool, RegistryError>, usize) {
    let data = pattern(SIZE);
    let expected = data[1000..2000].to_vec();
    let server = Server::start(move |seen, number| script(&data, seen, number)).await;
    let client = client(&config(&[server.address]));
    let read = blob(&client, &server, SIZE).read_range(range(1000, 2000), Priority::Demand).await;
    (read.map(|bytes| bytes == expected), server.count())
}

#[tokio::test]
async fn a_wrong_answer_is_an_error_and_never_wrong_bytes() {
    for case in CASES {
        let script = case.script;
        let (read, requests) = outcome(move |data, seen, _| script(data, seen)).await;
        let error = read.expect_err(case.name);
        assert!((case.check)(error.reason()), "{}: {error:?}", case.name);
        assert_eq!(requests, case.requests, "{}", case.name);
    }
}

#[tokio::test]
async fn a_wrong_answer_is_followed_by_a_right_one_where_a_retry_may_help() {
    for case in CASES.iter().filter(|case| case.requests == TRIES) {
        let script = case.script;
        let (read, requests) = outcome(move |data, seen, number| match number {
            0 | 1 => script(data, seen),
            _ => partial(data, seen),
        })
        .await;
        assert!(read.expect(case.name), "{}: wrong bytes", case.name);
        assert_eq!(requests, 3, "{}", case.name);
    }
}

#[tokio::test]
async fn a_whole_blob_is_streamed_to_the_range() {
    let (read, requests) = outcome(|data, _, _| reply("200 OK", &[], data)).await;
    assert!(read.unwrap());
    assert_eq!(requests, 1);
}

#[tokio::test]
async fn a_server_without_ranges_is_refused_where_the_range_is_far() {
    let size = MAX_SKIP_BYTES as usize + 2000;
    let server = Server::start(move |_, _| {
        raw("200 OK", &[&format!("Content-Length: {size}")], b"never all of it", After::Stall)
    })
    .await;
    let client = client(&config(&[server.address]));
    let start = MAX_SKIP_BYTES + 1;
    let read = blob(&client, &server, size).read_range(range(start, start + 10), Priority::Demand).await;
    let error = read.unwrap_err();
    assert!(matches!(error.reason(), Reason::RangeIgnored { skip } if *skip == start), "{error:?}");
    assert_eq!((error.fault(), server.count()), (Fault::Registry, 2));
}

#[tokio::test]
async fn chunked_and_closing_bodies_of_the_right_length_are_read() {
    let (read, _) = outcome(|data, _, _| {
        let mut body = b"3e8\r\n".to_vec();
        body.extend_from_slice(&data[1000..2000]);
        body.extend_from_slice(b"\r\n0\r\n\r\n");
        raw("206 Partial Content", &[CR, "Transfer-Encoding: chunked"], &body, After::Keep)
    })
    .await;
    assert!(read.unwrap());
    let (read, _) =
        outcome(|data, _, _| raw("206 Partial Content", &[CR], &data[1000..2000], After::Close)).await;
    assert!(read.unwrap());
}

#[tokio::test]
async fn reads_outside_the_blob_ask_nobody_and_empty_ones_are_empty() {
    let server = Server::start(|_, _| reply("500 No", &[], b"")).await;
    let client = client(&config(&[server.address]));
    let blob = blob(&client, &server, SIZE);
    let outside = blob.read_range(range(SIZE as u64, SIZE as u64 + 1), Priority::Demand).await.unwrap_err();
    assert!(matches!(outside.reason(), Reason::OutOfBounds { .. }));
    assert!(blob.read_range(range(5, 5), Priority::Demand).await.unwrap().is_empty());
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn the_size_of_a_blob_is_learnt_from_its_first_byte() {
    let data = pattern(SIZE);
    let server = Server::start(move |seen, _| partial(&data, seen)).await;
    let client = client(&config(&[server.address]));
    let found =
        client.blob_of_unknown_size(&crate::script::repository(&server), crate::script::digest()).await;
    let blob = found.unwrap();
    assert_eq!(blob.size_bytes(), SIZE as u64);
    assert_eq!(server.requests()[0].header("range"), Some("bytes=0-0"));
    let tail = blob.read_range(range(SIZE as u64 - 10, SIZE as u64), Priority::Demand).await.unwrap();
    assert_eq!(tail, pattern(SIZE)[SIZE - 10..]);
}

#[tokio::test]
async fn a_request_ends_at_its_deadline_and_says_so() {
    let server =
        Server::start(|_, _| Step { delay: Duration::from_secs(60), bytes: Vec::new(), after: After::Close })
            .await;
    let mut config = config(&[server.address]);
    config.limits.request_deadline_ms = 400;
    config.limits.stall_timeout_ms = 60_000;
    let client = client(&config);
    let begun = Instant::now();
    let error = blob(&client, &server, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(matches!(error.reason(), Reason::Deadline { .. }));
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_whole_blob_may_come_in_chunks() {
    for (cut, is_whole) in [(0, true), (1, false)] {
        let data = pattern(5000);
        let server = Server::start(move |_, _| {
            let sent = &data[..5000 - cut];
            let body = [format!("{:x}\r\n", sent.len()).as_bytes(), sent, b"\r\n0\r\n\r\n"].concat();
            raw("200 OK", &["Transfer-Encoding: chunked"], &body, After::Keep)
        })
        .await;
        let client = client(&config(&[server.address]));
        let read = blob(&client, &server, 5000).read_range(range(0, 5000), Priority::Demand).await;
        assert_eq!(read.is_ok_and(|read| read == pattern(5000)), is_whole);
    }
}

/// The words of registries, of Docker Hub's token server, and what must not reach a terminal.
#[tokio::test]
async fn what_a_registry_says_about_a_refusal_is_passed_on() {
    for status in ["400 Bad Request", "403 Forbidden", "404 Not Found", "429 Too Many Requests", "500 Error"]
    {
        let body = br#"{"errors":[{"code":"DENIED","message":"the login\r\nhas run \u001b[31mout"}]}"#;
        let server = Server::start(move |_, _| reply(status, &[], body)).await;
        let client = client(&config(&[server.address]));
        let error = blob(&client, &server, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap_err();
        assert_eq!(error.said(), Some("DENIED: the login has run [31mout"), "{error:?}");
        assert!(error.to_string().ends_with("DENIED: the login has run [31mout\""), "{error}");
    }
}

#[tokio::test]
async fn the_words_of_a_refusal_are_not_waited_for_and_not_read_without_end() {
    let endless = vec![b'x'; 1 << 20];
    for (body, after) in [(&b"{"[..], After::Stall), (&endless, After::Keep)] {
        let body = body.to_vec();
        let server = Server::start(move |_, _| {
            let length = format!("Content-Length: {}", body.len().max(2));
            raw("403 Forbidden", &[&length], &body, after)
        })
        .await;
        let client = client(&config(&[server.address]));
        let error = blob(&client, &server, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap_err();
        assert!(matches!(error.reason(), Reason::Forbidden { .. }), "{error:?}");
        assert_eq!(error.said(), None);
    }
}
