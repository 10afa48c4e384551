//! Registries that redirect blobs to storage: discovered once, followed without the credential, renewed on expiry.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use stratabd::registry::{LocationError, MAX_SKIP_BYTES, Priority, Reason};

use crate::script::{Server, Step, blob, client, config, partial, pattern, range, reply};

const SIZE: usize = 1 << 20;

async fn storage() -> Server {
    let data = pattern(SIZE);
    Server::start(move |seen, _| partial(&data, seen)).await
}

fn redirect(to: SocketAddr, number: usize) -> Step {
    let location = format!("Location: http://{to}/bucket/blob?X-Signature=topsecret{number}");
    reply("307 Temporary Redirect", &[&location], b"<a>moved</a>")
}

#[tokio::test]
async fn parallel_first_reads_ask_the_registry_once() {
    let storage = storage().await;
    let address = storage.address;
    let registry = Server::start(move |_, number| Step {
        delay: Duration::from_millis(50),
        ..redirect(address, number)
    })
    .await;
    let client = client(&config(&[registry.address]));
    let blob = blob(&client, &registry, SIZE);
    let starts = (0..40u64).map(|i| i * 20_000);
    let reads =
        join_all(starts.map(|start| blob.read_range(range(start, start + 5000), Priority::Demand))).await;
    let data = pattern(SIZE);
    for (i, read) in reads.into_iter().enumerate() {
        assert_eq!(read.unwrap(), data[i * 20_000..i * 20_000 + 5000]);
    }
    assert_eq!((registry.count(), storage.count()), (1, 40));
    assert_eq!(client.metrics().redirects.get(), 1);
}

#[tokio::test]
async fn no_credential_follows_a_redirect() {
    let storage = storage().await;
    let address = storage.address;
    let registry = Server::start(move |seen, number| match seen.header("authorization") {
        Some("Basic dTpw") => redirect(address, number),
        _ => reply("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"r\""], b""),
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("config.json");
    std::fs::write(&path, format!(r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, registry.address)).unwrap();
    let mut config = config(&[registry.address]);
    config.credentials =
        stratabd::registry::CredentialConfig::Files { paths: vec![path], helper_dirs: Vec::new() };
    let client = client(&config);
    let blob = blob(&client, &registry, SIZE);
    for _ in 0..3 {
        blob.read_range(range(0, 10), Priority::Demand).await.unwrap();
    }
    assert_eq!(registry.count(), 2);
    for seen in storage.requests() {
        assert_eq!(seen.header("authorization"), None);
        assert!(!seen.target.contains("dTpw"));
    }
    assert_eq!(storage.count(), 3);
}

#[tokio::test]
async fn an_expired_signature_is_renewed_at_once() {
    for status in ["401 Unauthorized", "403 Forbidden", "404 Not Found", "410 Gone"] {
        let data = pattern(SIZE);
        let valid = Arc::new(AtomicUsize::new(0));
        let accepted = valid.clone();
        let storage = Server::start(move |seen, _| {
            let wanted = format!("topsecret{}", accepted.load(Ordering::SeqCst));
            if seen.target.ends_with(&wanted) { partial(&data, seen) } else { reply(status, &[], b"expired") }
        })
        .await;
        let address = storage.address;
        let registry = Server::start(move |_, number| redirect(address, number)).await;
        let client = client(&config(&[registry.address]));
        let blob = blob(&client, &registry, SIZE);
        blob.read_range(range(0, 10), Priority::Demand).await.unwrap();
        valid.store(1, Ordering::SeqCst);
        let bytes = blob.read_range(range(10, 20), Priority::Demand).await.unwrap();
        assert_eq!(bytes, pattern(SIZE)[10..20]);
        assert_eq!((registry.count(), storage.count()), (2, 3), "{status}");
    }
}

#[tokio::test]
async fn storage_that_begins_to_ignore_ranges_is_looked_for_anew() {
    let size = MAX_SKIP_BYTES as usize + 2000;
    let data = pattern(size);
    let storage = Server::start(move |seen, number| match number {
        1 => reply("200 OK", &[], &data),
        _ => partial(&data, seen),
    })
    .await;
    let address = storage.address;
    let registry = Server::start(move |_, number| redirect(address, number)).await;
    let client = client(&config(&[registry.address]));
    let blob = blob(&client, &registry, size);
    blob.read_range(range(0, 10), Priority::Demand).await.unwrap();
    let end = size as u64;
    let bytes = blob.read_range(range(end - 10, end), Priority::Demand).await.unwrap();
    assert_eq!(bytes, pattern(size)[size - 10..]);
    assert_eq!((registry.count(), storage.count()), (2, 3));
}

#[tokio::test]
async fn storage_that_refuses_a_fresh_location_is_final() {
    let storage = Server::start(|_, _| reply("403 Forbidden", &[], b"AccessDenied")).await;
    let address = storage.address;
    let registry = Server::start(move |_, number| redirect(address, number)).await;
    let client = client(&config(&[registry.address]));
    let error = blob(&client, &registry, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Forbidden { .. }), "{error:?}");
    assert_eq!((registry.count(), storage.count()), (1, 1));
    assert!(!format!("{error} {error:?}").contains("topsecret"), "{error:?}");
}

#[tokio::test]
async fn loops_downgrades_and_strange_locations_are_refused() {
    type Check = fn(&Reason) -> bool;
    let refused: [(&str, usize, Check); 5] = [
        ("Location: /loop", 6, |reason| matches!(reason, Reason::TooManyRedirects(5))),
        ("X-No-Location: x", 1, |reason| matches!(reason, Reason::Location(LocationError::Missing))),
        ("Location: ftp://x/", 1, |reason| matches!(reason, Reason::Location(LocationError::Scheme))),
        ("Location: http://u:p@127.0.0.1/", 1, |r| matches!(r, Reason::Location(LocationError::UserInfo))),
        ("Location: http://[::1", 1, |reason| matches!(reason, Reason::Location(LocationError::Syntax(_)))),
    ];
    for (location, requests, check) in refused {
        let registry = Server::start(move |_, _| reply("302 Found", &[location], b"")).await;
        let client = client(&config(&[registry.address]));
        let error =
            blob(&client, &registry, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap_err();
        assert!(check(error.reason()), "{location}: {error:?}");
        assert_eq!(registry.count(), requests, "{location}");
    }
}

#[tokio::test]
async fn a_relative_redirect_stays_at_the_registry() {
    let data = pattern(SIZE);
    let registry = Server::start(move |seen, _| match seen.target.as_str() {
        "/store/x?y" => partial(&data, seen),
        _ => reply("301 Moved Permanently", &["Location: ../../../../store/x?y"], b""),
    })
    .await;
    let client = client(&config(&[registry.address]));
    let read = blob(&client, &registry, SIZE).read_range(range(7, 9), Priority::Demand).await;
    assert_eq!(read.unwrap(), pattern(SIZE)[7..9]);
}
