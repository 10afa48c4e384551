//! Blobs that come from another repository: taken over where that is to be had, else copied without being kept.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use sha2::{Digest as _, Sha256};
use stratabd::{
    format::oci::Digest,
    registry::{Arrival, BlobContent, BlobOrigin, Client, NewBlob, Reason, Repository},
};
use tokio::net::TcpListener;

use crate::script::{After, Seen, Server, Step, client, config, partial, raw, reply, repository};

const UPLOADS: &str = "/v2/team/app/blobs/uploads/";

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_hash(Sha256::digest(bytes).into())
}

/// Text of so many bytes that differs from one place to the next.
fn text(length: usize) -> String {
    let mut text: String = (0..length / 8 + 1).map(|number| format!("{number:08}")).collect();
    text.truncate(length);
    text
}

/// The blob of the bytes `expected`, which are to come from `team/base` at `source`.
fn blob_at(client: &Client, source: &Server, expected: &[u8]) -> (NewBlob, Arc<AtomicU64>) {
    let base = Repository::new(&source.address.to_string(), "team/base", true).unwrap();
    let (digest, size_bytes) = (digest_of(expected), expected.len() as u64);
    let sent = Arc::new(AtomicU64::new(0));
    let content = BlobContent::new(client.blob(&base, digest, size_bytes), Arc::clone(&sent));
    (NewBlob { digest, size_bytes, origin: BlobOrigin::Blob(content) }, sent)
}

/// A registry whose `team/base` has `content`, whose `team/app` has nothing, and that takes uploads but no blob over.
fn answer(content: &str, seen: &Seen) -> Step {
    match seen.method.as_str() {
        "HEAD" => raw("404 Not Found", &[], b"", After::Keep),
        "GET" => partial(content.as_bytes(), seen),
        "POST" => reply("202 Accepted", &[&format!("Location: {UPLOADS}id")], b""),
        _ => reply("201 Created", &[], b""),
    }
}

async fn registry_of(content: String) -> Server {
    Server::start(move |seen, _| answer(&content, seen)).await
}

/// What was put into `server`, one after another.
fn bodies(server: &Server) -> Vec<String> {
    let puts = server.requests().into_iter().filter(|seen| seen.method == "PUT");
    puts.map(|seen| seen.body).collect()
}

#[tokio::test]
async fn a_blob_of_a_neighbour_is_taken_over_or_copied_in_the_session_that_is_offered_instead() {
    let content = "layer ".repeat(50_000);
    let kind = content.clone();
    let server = Server::start(move |seen, _| match seen.method.as_str() {
        "POST" => reply("201 Created", &[], b""),
        _ => answer(&kind, seen),
    })
    .await;
    let of_kind = client(&config(&[server.address]));
    let (blob, _) = blob_at(&of_kind, &server, content.as_bytes());
    assert_eq!(of_kind.ensure_blob(&repository(&server), blob).await.unwrap(), Arrival::Mounted);
    let digest = digest_of(content.as_bytes()).to_string().replace(':', "%3A");
    let post = format!("{UPLOADS}?mount={digest}&from=team%2Fbase");
    assert_eq!((server.count(), server.requests()[1].target.as_str()), (2, post.as_str()));

    // One request at a time: the reads must not wait for the upload that waits for them.
    let server = registry_of(content.clone()).await;
    let mut narrow = config(&[server.address]);
    narrow.limits.concurrent_requests = 1;
    let of_unkind = client(&narrow);
    let (blob, sent) = blob_at(&of_unkind, &server, content.as_bytes());
    assert_eq!(of_unkind.ensure_blob(&repository(&server), blob).await.unwrap(), Arrival::Copied);
    assert_eq!(server.requests()[1].target, post);
    assert!(bodies(&server) == [content]);
    assert_eq!(sent.load(Ordering::SeqCst), 300_000);
}

#[tokio::test]
async fn a_blob_that_is_not_taken_over_is_copied_however_that_is_refused() {
    let content = text(70_000);
    for status in ["400 Bad Request", "401 Unauthorized", "403 Forbidden", "404 Not Found", "500 Oops"] {
        let kept = content.clone();
        let server = Server::start(move |seen, _| match seen.target.contains("?mount=") {
            true => reply(status, &[], b""),
            false => answer(&kept, seen),
        })
        .await;
        let client = client(&config(&[server.address]));
        let (blob, _) = blob_at(&client, &server, content.as_bytes());
        let arrived = client.ensure_blob(&repository(&server), blob).await;
        assert_eq!(arrived.unwrap(), Arrival::Copied, "{status}");
        assert!(bodies(&server) == [content.as_str()], "{status}");
    }
}

#[tokio::test]
async fn a_blob_of_another_registry_arrives_though_the_way_there_breaks() {
    let content = text((5 << 20) + 7);
    let (whole, tries) = (content.clone(), AtomicU64::new(0));
    let source = Server::start(move |seen, _| {
        let mut step = partial(whole.as_bytes(), seen);
        if tries.fetch_add(1, Ordering::SeqCst) % 3 == 1 {
            step.bytes.truncate(step.bytes.len() / 2);
            step.after = After::Close;
        }
        step
    })
    .await;
    let target = registry_of(String::new()).await;
    let client = client(&config(&[source.address, target.address]));
    let (blob, sent) = blob_at(&client, &source, content.as_bytes());
    assert_eq!(client.ensure_blob(&repository(&target), blob).await.unwrap(), Arrival::Copied);
    assert!(bodies(&target) == [content.as_str()], "sent once, and all of it");
    assert!(
        target.requests()[1].target.ends_with("/uploads/"),
        "another registry has nothing to take over from"
    );
    assert_eq!(sent.load(Ordering::SeqCst), content.len() as u64);
}

#[tokio::test]
async fn bytes_of_another_digest_never_arrive() {
    let source = registry_of(text(3 << 20)).await;
    let target = registry_of(String::new()).await;
    let client = client(&config(&[source.address, target.address]));
    let mut expected = text(3 << 20);
    expected.replace_range(7..8, "x");
    let (blob, _) = blob_at(&client, &source, expected.as_bytes());
    let error = client.ensure_blob(&repository(&target), blob).await.unwrap_err();
    let Reason::Origin { source: cause } = error.reason() else { panic!("{error:?}") };
    assert!(matches!(cause.reason(), Reason::DigestMismatch { .. }), "{cause:?}");
    assert!(cause.target().contains(&source.address.to_string()), "{cause}");
    assert!(bodies(&target).is_empty(), "the last bytes were sent");
}

#[tokio::test]
async fn a_blob_that_has_gone_from_its_repository_is_that_ones_fault() {
    let source = Server::start(|_, _| reply("404 Not Found", &[], b"")).await;
    let target = registry_of(String::new()).await;
    let client = client(&config(&[source.address, target.address]));
    let (blob, _) = blob_at(&client, &source, b"layer");
    let error = client.ensure_blob(&repository(&target), blob).await.unwrap_err();
    let Reason::Origin { source: cause } = error.reason() else { panic!("{error:?}") };
    assert!(matches!(cause.reason(), Reason::NotFound), "{cause:?}");
}

#[tokio::test]
async fn a_target_that_takes_nothing_holds_up_the_reads() {
    let content = text(24 << 20);
    let source = registry_of(content.clone()).await;
    // The bytes are to go to one that accepts connections and reads nothing.
    let stuck = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("Location: http://{}/store", stuck.local_addr().unwrap());
    let target = Server::start(move |seen, _| match seen.method.as_str() {
        "HEAD" => raw("404 Not Found", &[], b"", After::Keep),
        _ => reply("202 Accepted", &[&location], b""),
    })
    .await;
    let mut config = config(&[source.address, target.address, stuck.local_addr().unwrap()]);
    config.limits.connect_timeout_ms = 100;
    config.limits.stall_timeout_ms = 500;
    config.limits.max_tries = 1;
    let client = client(&config);
    let (blob, sent) = blob_at(&client, &source, content.as_bytes());
    let error = client.ensure_blob(&repository(&target), blob).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Timeout { .. }), "{error:?}");
    // What is asked for is what was sent, as far as sockets take it, and four pieces of 1 MiB.
    let asked_bytes: usize =
        source.requests().iter().filter_map(Seen::range).map(|(from, to)| to - from).sum();
    let sent_bytes = usize::try_from(sent.load(Ordering::SeqCst)).unwrap();
    assert!(asked_bytes <= sent_bytes + (4 << 20), "{asked_bytes} bytes asked for, {sent_bytes} sent");
    assert!(sent_bytes < content.len() / 2, "{sent_bytes}");
}
