//! The test support itself: the proxy must really do what the fault tests rely on.

#![expect(clippy::unwrap_used, reason = "a failure of the set-up is a failure of the test")]

#[expect(dead_code, reason = "each test binary uses a part of the support")]
mod support;

use std::io::{Read, Write};

use support::{
    fault_proxy::{Behaviour, Fault, FaultProxy},
    registry::{Registry, Serving, digest_of, push_image},
};

fn get(address: &str, path: &str, range: &str) -> (u16, usize) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes={range}\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let head_end =
        answer.windows(4).position(|window| window == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let status =
        String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, answer.len() - head_end)
}

#[test]
fn each_fault_changes_the_answer_of_a_real_registry() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let layer = vec![5; 10_000];
    push_image(registry.address(), "a/b", "t", std::slice::from_ref(&layer));
    let proxy = FaultProxy::start(&registry.address().to_string());
    let path = format!("/v2/a/b/blobs/{}", digest_of(&layer));
    for (fault, expected) in [
        (Fault::None, (206, 1000)),
        (Fault::Status(429), (429, 2)),
        (Fault::CutBody, (206, 500)),
        (Fault::ShortBody, (206, 500)),
        (Fault::LongBody, (206, 1512)),
        (Fault::WrongRange, (206, 512)),
        (Fault::WrongBody, (206, 1000)),
        (Fault::Full, (200, 10_000)),
    ] {
        proxy.behave(Behaviour { faults: vec![(1, fault)], ..Behaviour::healthy() });
        assert_eq!(get(&proxy.address(), &path, "1000-1999"), expected, "{fault:?}");
    }
    assert_eq!(proxy.requests(), 8);
    proxy.behave(Behaviour { down: true, ..Behaviour::healthy() });
    assert_eq!(get(&proxy.address(), &path, "0-1").0, 0);
}
