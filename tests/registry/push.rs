//! Pushing: where the bytes go, who sees the credential, and what is made of answers that are not what they should be.

use std::{
    fs::File,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use stratabd::{
    format::oci::{Digest, Layer, Platform},
    registry::{
        Arrival, BlobOrigin, FileContent, ImageDocuments, LocationError, NewBlob, Reason, RegistryConfig,
    },
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::script::{After, Seen, Server, Step, client, config, raw, reply, repository};

const UPLOADS: &str = "/v2/team/app/blobs/uploads/";

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_hash(Sha256::digest(bytes).into())
}

fn blob_of(bytes: &[u8], origin: BlobOrigin) -> NewBlob {
    NewBlob { digest: digest_of(bytes), size_bytes: bytes.len() as u64, origin }
}

/// A blob of these bytes in a file, and where it is counted what was sent.
fn blob_in_file(bytes: &[u8]) -> (NewBlob, Arc<AtomicU64>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let content = FileContent::new(Arc::<File>::new(file), bytes.len() as u64, sent.clone());
    (blob_of(bytes, BlobOrigin::File(content)), sent)
}

/// A registry that has nothing, begins sessions at `location`, and answers the n-th PUT by `put(request, n)`.
async fn empty_registry(
    location: String,
    put: impl Fn(&Seen, u64) -> Step + Send + Sync + 'static,
) -> Server {
    let (location, puts) = (format!("Location: {location}"), AtomicU64::new(0));
    Server::start(move |seen, _| match seen.method.as_str() {
        "HEAD" => raw("404 Not Found", &[], b"", After::Keep),
        "POST" => reply("202 Accepted", &[&location], b""),
        _ => put(seen, puts.fetch_add(1, Ordering::SeqCst)),
    })
    .await
}

fn created() -> Step {
    reply("201 Created", &[], b"")
}

fn methods(server: &Server) -> Vec<String> {
    server.requests().into_iter().map(|seen| seen.method).collect()
}

#[tokio::test]
async fn a_file_is_sent_to_a_relative_location_whose_query_stays() {
    let text = "layer ".repeat(100_000);
    let server = empty_registry(format!("{UPLOADS}id?_state=a%2Fb%3D"), |_, _| created()).await;
    let (blob, sent) = blob_in_file(text.as_bytes());
    let arrived = client(&config(&[server.address])).ensure_blob(&repository(&server), blob).await.unwrap();
    assert_eq!(arrived, Arrival::Uploaded);
    assert_eq!(methods(&server), ["HEAD", "POST", "PUT"]);
    let [_, post, put] = &server.requests()[..] else { panic!() };
    assert_eq!((post.target.as_str(), post.header("content-length")), (UPLOADS, Some("0")));
    let digest = digest_of(text.as_bytes()).to_string().replace(':', "%3A");
    assert_eq!(put.target, format!("{UPLOADS}id?_state=a%2Fb%3D&digest={digest}"));
    assert_eq!(put.header("content-length"), Some("600000"));
    assert_eq!(put.header("transfer-encoding"), None);
    assert!(put.body == text);
    assert_eq!(sent.load(Ordering::SeqCst), 600_000);
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_sent_and_one_of_another_size_is_no_such_blob() {
    let server = Server::start(|_, _| raw("200 OK", &["Content-Length: 5"], b"", After::Keep)).await;
    let client = client(&config(&[server.address]));
    let there = client.ensure_blob(&repository(&server), blob_of(b"12345", BlobOrigin::Nowhere));
    assert_eq!(there.await.unwrap(), Arrival::Present);
    assert_eq!(methods(&server), ["HEAD"]);
    let other = client.ensure_blob(&repository(&server), blob_of(b"1234", BlobOrigin::Nowhere));
    let error = other.await.unwrap_err();
    assert!(matches!(error.reason(), Reason::WrongLength { expected: 4, sent: Some(5) }), "{error:?}");
}

#[tokio::test]
async fn a_try_that_failed_begins_a_new_upload_with_all_bytes() {
    let server = empty_registry(format!("{UPLOADS}id"), |_, number| match number {
        0 => raw("500 Internal Server Error", &[], b"", After::Close),
        1 => reply("404 Not Found", &[], b""),
        _ => created(),
    })
    .await;
    let (blob, _) = blob_in_file(b"layer");
    let arrived = client(&config(&[server.address])).ensure_blob(&repository(&server), blob).await.unwrap();
    assert_eq!(arrived, Arrival::Uploaded);
    assert_eq!(methods(&server), ["HEAD", "POST", "PUT"].repeat(3));
    let bodies = server.requests().into_iter().filter(|seen| seen.method == "PUT").map(|seen| seen.body);
    assert!(bodies.into_iter().all(|body| body == "layer"));
}

#[tokio::test]
async fn what_a_registry_has_taken_is_taken_by_whatever_answer() {
    for (head, put) in [
        ("405 Method Not Allowed", "201 Created"),
        ("501 Not Implemented", "200 OK"),
        ("403 Forbidden", "204 No Content"),
        ("404 Not Found", "202 Accepted"),
    ] {
        let server = Server::start(move |seen, _| match seen.method.as_str() {
            "HEAD" => raw(head, &[], b"", After::Keep),
            "POST" => reply("202 Accepted", &[&format!("Location: {UPLOADS}id")], b""),
            _ => {
                raw(put, if put.starts_with("204") { &[] } else { &["Content-Length: 0"] }, b"", After::Keep)
            }
        })
        .await;
        let client = client(&config(&[server.address]));
        let (blob, _) = blob_in_file(b"layer");
        let arrived = client.ensure_blob(&repository(&server), blob).await;
        match arrived {
            Ok(arrived) => assert_eq!(arrived, Arrival::Uploaded, "{head}, {put}"),
            // A blob is not there when it is accepted only.
            Err(error) => {
                assert_eq!(put, "202 Accepted", "{error:?}");
                assert!(matches!(error.reason(), Reason::Status { status: 202, .. }), "{error:?}");
            }
        }
        let layer = Layer { digest: digest_of(b"layer"), size_bytes: 5, verity: None };
        let image = ImageDocuments::empty(&Platform::host()).unwrap().with_layer(layer).unwrap();
        client.put_document(&repository(&server), "v1", &image.manifest()).await.unwrap();
    }
}

#[tokio::test]
async fn an_answer_about_another_digest_is_an_error() {
    let wrong = format!("Docker-Content-Digest: {}", digest_of(b"other"));
    let server =
        empty_registry(format!("{UPLOADS}id"), move |_, _| reply("201 Created", &[&wrong], b"")).await;
    let client = client(&config(&[server.address]));
    let (blob, _) = blob_in_file(b"layer");
    let error = client.ensure_blob(&repository(&server), blob).await.unwrap_err();
    let Reason::DigestMismatch { expected, got } = error.reason() else { panic!("{error:?}") };
    assert_eq!((*expected, *got), (digest_of(b"layer"), digest_of(b"other")));

    let layer = Layer { digest: digest_of(b"layer"), size_bytes: 5, verity: None };
    let image = ImageDocuments::empty(&Platform::host()).unwrap().with_layer(layer).unwrap();
    let error = client.put_document(&repository(&server), "v1", &image.manifest()).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::DigestMismatch { .. }), "{error:?}");
    let put = server.requests().pop().unwrap();
    assert_eq!(put.target, "/v2/team/app/manifests/v1");
    assert_eq!(put.header("content-type"), Some("application/vnd.oci.image.manifest.v1+json"));
    assert_eq!(put.body.as_bytes(), image.documents.manifest);
}

/// Logs in at `server` as a user of `docker login`.
fn logged_in(server: &Server, others: &[&Server], dir: &tempfile::TempDir) -> RegistryConfig {
    let mut plain = vec![server.address];
    plain.extend(others.iter().map(|server| server.address));
    let path = dir.path().join("config.json");
    let login = r#"{"username":"user","password":"secret"}"#;
    std::fs::write(&path, format!(r#"{{"auths":{{"{}":{login}}}}}"#, server.address)).unwrap();
    let mut config = config(&plain);
    config.credentials =
        stratabd::registry::CredentialConfig::Files { paths: vec![path], helper_dirs: Vec::new() };
    config
}

#[tokio::test]
async fn the_token_is_for_pushing_and_stays_at_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Server::start(|_, _| created()).await;
    let session = format!("Location: http://{}/store?sig=x", storage.address);
    let server = Server::start(move |seen, _| {
        // As some registries do, it names the right to pull whatever the request was.
        let host = seen.header("host").unwrap();
        let challenge = format!(
            "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"repository:team/app:pull\""
        );
        match (seen.method.as_str(), seen.header("authorization")) {
            ("GET", _) => reply("200 OK", &[], br#"{"token":"t0"}"#),
            ("HEAD", Some("Bearer t0")) => raw("404 Not Found", &[], b"", After::Keep),
            ("POST", Some("Bearer t0")) => reply("202 Accepted", &[&session], b""),
            _ => raw("401 Unauthorized", &[&challenge, "Content-Length: 0"], b"", After::Keep),
        }
    })
    .await;
    let client = client(&logged_in(&server, &[&storage], &dir));
    let (blob, _) = blob_in_file(b"layer");
    assert_eq!(client.ensure_blob(&repository(&server), blob).await.unwrap(), Arrival::Uploaded);
    let token = server.requests().into_iter().find(|seen| seen.target.starts_with("/token")).unwrap();
    assert!(token.target.contains("scope=repository%3Ateam%2Fapp%3Apull%2Cpush"), "{}", token.target);
    let [put] = &storage.requests()[..] else { panic!("{:?}", storage.requests()) };
    assert_eq!((put.header("authorization"), put.body.as_str()), (None, "layer"));
    assert!(put.target.starts_with("/store?sig=x&digest=sha256%3A"), "{}", put.target);
}

#[tokio::test]
async fn a_session_by_plain_http_elsewhere_is_refused_unless_configured() {
    let server = empty_registry("http://127.0.0.1:1/store".into(), |_, _| created()).await;
    let (blob, _) = blob_in_file(b"layer");
    let error = client(&config(&[server.address])).ensure_blob(&repository(&server), blob).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::PlainHttp { .. }), "{error:?}");
    let server = empty_registry("ftp://elsewhere/".into(), |_, _| created()).await;
    let (blob, _) = blob_in_file(b"layer");
    let error = client(&config(&[server.address])).ensure_blob(&repository(&server), blob).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Location(LocationError::Scheme)), "{error:?}");
}

#[tokio::test]
async fn a_session_that_has_lost_the_registrys_port_is_told_and_not_tried_for_long() {
    // Nobody listens at it: it is tcpmux, of which there is no server.
    let closed: std::net::SocketAddr = "127.0.0.1:1".parse().unwrap();
    let server = empty_registry(format!("http://{closed}/store"), |_, _| created()).await;
    let (blob, _) = blob_in_file(b"layer");
    let error =
        client(&config(&[server.address, closed])).ensure_blob(&repository(&server), blob).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error.reason(), Reason::LostPort { .. }), "{error:?}");
    assert!(text.contains(&closed.to_string()) && text.contains(&server.address.to_string()), "{text}");
    assert_eq!(methods(&server), ["HEAD", "POST"].repeat(2));
}

#[tokio::test]
async fn a_file_that_has_shrunk_is_the_callers_fault_and_is_sent_once() {
    let server = empty_registry(format!("{UPLOADS}id"), |_, _| created()).await;
    let content = FileContent::new(Arc::new(tempfile::tempfile().unwrap()), 5, Arc::default());
    let blob = blob_of(b"layer", BlobOrigin::File(content));
    let error = client(&config(&[server.address])).ensure_blob(&repository(&server), blob).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Content { .. }), "{error:?}");
    assert_eq!(methods(&server), ["HEAD", "POST"]);
}

#[tokio::test]
async fn a_slow_upload_goes_on_as_long_as_it_moves_and_a_stuck_one_ends() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let storage = listener.local_addr().unwrap();
    let bytes = vec![b'x'; 24 << 20];
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut piece, mut taken) = (vec![0; 256 << 10], 0);
        while taken < 24 << 20 {
            taken += stream.read(&mut piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stream.write_all(b"HTTP/1.1 201 Created\r\nConnection: close\r\n\r\n").await.unwrap();
        drop(stream);
        // The second one is accepted and never read.
        let stuck = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
        drop(stuck);
    });
    let server = empty_registry(format!("http://{storage}/store"), |_, _| created()).await;
    let mut config = config(&[server.address, storage]);
    config.limits.connect_timeout_ms = 100;
    config.limits.stall_timeout_ms = 500;
    config.limits.max_tries = 1;
    let client = client(&config);
    let (blob, _) = blob_in_file(&bytes);
    let began = Instant::now();
    assert_eq!(client.ensure_blob(&repository(&server), blob).await.unwrap(), Arrival::Uploaded);
    assert!(began.elapsed() > Duration::from_millis(900), "it took longer than any silence that is borne");
    let (blob, _) = blob_in_file(&bytes);
    let error = client.ensure_blob(&repository(&server), blob).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Timeout { what: "answer", .. }), "{error:?}");
    serving.abort();
}
