//! The test support itself: the proxy must really do what the fault tests rely on.

#![expect(clippy::unwrap_used, reason = "a failure of the set-up is a failure of the test")]

#[expect(dead_code, reason = "each test binary uses a part of the support")]
mod support;

use std::{
    io::{ErrorKind, Read, Write},
    path::Path,
    sync::atomic::Ordering,
    time::Duration,
};

use support::{
    fault_proxy::{Behaviour, Fault, FaultProxy},
    registry::{Registry, Serving, digest_of, push_image},
};

/// Asks for `range` with a token if there is one, and returns the status, the head and the body as far as they came
/// within the time; the last says whether the answer ended.
fn ask(address: &str, path: &str, range: &str, token: Option<&str>) -> (u16, String, Vec<u8>, bool) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes={range}\r\n{token}Connection: close\r\n\r\n"
    )
    .unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut answer = Vec::new();
    let ended = match stream.read_to_end(&mut answer) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    };
    let head_end =
        answer.windows(4).position(|window| window == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let body = answer.split_off(head_end);
    let head = String::from_utf8(answer).unwrap();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, head.to_ascii_lowercase(), body, ended)
}

/// A registry with one blob whose bytes tell their place, a proxy before it, and the path of the blob.
fn served(root: &Path) -> (Registry, FaultProxy, Vec<u8>, String) {
    let registry = Registry::start(root, &Serving::default());
    let layer: Vec<u8> = (0..5000_u16).flat_map(u16::to_le_bytes).collect();
    push_image(registry.address(), "a/b", "t", std::slice::from_ref(&layer));
    let proxy = FaultProxy::start(&registry.address().to_string());
    let path = format!("/v2/a/b/blobs/{}", digest_of(&layer));
    (registry, proxy, layer, path)
}

#[test]
fn one_byte_of_a_blob_is_changed_wherever_it_is_sent() {
    let root = tempfile::tempdir().unwrap();
    let (_registry, proxy, layer, path) = served(root.path());
    let mut changed = layer.clone();
    *changed.get_mut(1007).unwrap() ^= 0x40;
    proxy.behave(Behaviour { flip: Some(1007), ..Behaviour::healthy() });
    for (first, last) in [(1000, 1999), (1007, 1007), (0, 1006), (1008, 9999)] {
        let (status, _, body, _) = ask(&proxy.address(), &path, &format!("{first}-{last}"), None);
        assert_eq!((status, Some(&body[..])), (206, changed.get(first..=last)));
    }
}

#[test]
fn each_fault_changes_the_answer_of_a_real_registry_and_is_counted() {
    let root = tempfile::tempdir().unwrap();
    let (_registry, proxy, layer, path) = served(root.path());
    let right = &layer[1000..2000];
    let flipped: Vec<u8> = right.iter().map(|byte| byte ^ 0x40).collect();
    let faults: [(Fault, u16, &[u8], &str); 10] = [
        (Fault::None, 206, right, "content-range: bytes 1000-1999/10000"),
        (Fault::Status(429), 429, b"no", "retry-after: 1"),
        (Fault::Status(500), 500, b"no", ""),
        (Fault::CutBody, 206, &right[..500], "content-length: 1000"),
        (Fault::ShortBody, 206, &right[..500], "content-length: 500"),
        (Fault::LongBody, 206, &[right, &[0; 512]].concat(), "content-length: 1512"),
        (Fault::WrongRange, 206, &layer[..512], "content-range: bytes 0-511/10000"),
        (Fault::WrongBody, 206, &flipped, "content-range: bytes 1000-1999/10000"),
        (Fault::Full, 200, &layer, "content-length: 10000"),
        (Fault::Stall, 206, &right[..500], "content-length: 1000"),
    ];
    for (fault, code, bytes, line) in faults {
        proxy.behave(Behaviour { faults: vec![(1, fault)], ..Behaviour::healthy() });
        let (status, head, body, ended) = ask(&proxy.address(), &path, "1000-1999", None);
        assert_eq!((status, ended), (code, fault != Fault::Stall), "{fault:?}");
        assert!(head.contains(line), "{fault:?}: {head}");
        assert!(body == bytes, "{fault:?}: {} bytes", body.len());
        assert_eq!(proxy.counts().struck(fault), u64::from(fault != Fault::None), "{fault:?}");
    }
    assert_eq!((proxy.requests(), proxy.counts().unanswered.load(Ordering::SeqCst)), (10, 0));
}

#[test]
fn a_fault_strikes_the_first_answer_and_then_one_in_so_many() {
    let root = tempfile::tempdir().unwrap();
    let (_registry, proxy, _, path) = served(root.path());
    let faults = vec![(3, Fault::Status(500)), (2, Fault::Status(429))];
    proxy.behave(Behaviour { faults, ..Behaviour::healthy() });
    let statuses = [(); 7].map(|()| ask(&proxy.address(), &path, "0-9", None).0);
    assert_eq!(statuses, [500, 429, 206, 500, 429, 206, 500]);
    assert_eq!([500, 429, 206].map(|code| proxy.counts().struck(Fault::Status(code))), [3, 2, 0]);
}

#[test]
fn a_token_is_asked_for_and_expires_at_the_first_strike() {
    let root = tempfile::tempdir().unwrap();
    let (_registry, proxy, layer, path) = served(root.path());
    proxy.behave(Behaviour { login: true, ..Behaviour::healthy() });
    let asked = |token| ask(&proxy.address(), &path, "0-9", token);
    let (status, head, ..) = asked(None);
    assert_eq!(status, 401);
    assert!(head.contains("www-authenticate: bearer realm=\"http://x/token\""), "{head}");
    let (status, _, body, _) = ask(&proxy.address(), "/token", "0-9", None);
    assert_eq!((status, body.as_slice()), (200, br#"{"token": "t0", "expires_in": 3600}"#.as_slice()));
    let (status, _, body, _) = asked(Some("t0"));
    assert_eq!((status, body.as_slice()), (206, &layer[..10]));
    let faults = vec![(1, Fault::Status(401))];
    proxy.behave(Behaviour { faults, login: true, ..Behaviour::healthy() });
    assert_eq!(asked(Some("t0")).0, 401);
    // The new one is young, so that the next strikes miss.
    assert_eq!([Some("t0"), Some("t1"), Some("t1"), None].map(|token| asked(token).0), [401, 206, 206, 401]);
    assert_eq!(proxy.counts().struck(Fault::Status(401)), 1);
}

#[test]
fn an_outage_answers_nothing_and_is_counted() {
    let root = tempfile::tempdir().unwrap();
    let (mut registry, proxy, _, path) = served(root.path());
    proxy.behave(Behaviour { down: true, ..Behaviour::healthy() });
    assert_eq!(ask(&proxy.address(), &path, "0-1", None), (0, String::new(), Vec::new(), true));
    proxy.behave(Behaviour::healthy());
    registry.stop();
    assert_eq!(ask(&proxy.address(), &path, "0-1", None).0, 0);
    assert_eq!(proxy.counts().unanswered.load(Ordering::SeqCst), 2);
}
