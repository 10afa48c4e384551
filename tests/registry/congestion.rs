//! Registries that are slow, refuse, or fall silent under load: nothing is asked for again that would have been answered.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use sha2::{Digest as _, Sha256};
use stratabd::{
    block::ByteRange,
    cache::{Cache, CacheConfig, CachedBlob},
    format::oci::Digest,
    reactor::{Reactor, ReactorConfig, ReactorThread},
    registry::{Priority, Reason, RegistryConfig, RegistryError},
    source::{BlobSource, RegistryOrigin},
};

use crate::script::{After, Server, Step, blob, client, config, partial, pattern, range, reply, repository};

const SIZE: usize = 100_000;

/// Answers one request after another, each of which takes it some time.
struct Line {
    each: Duration,
    free_at: Mutex<Instant>,
}

impl Line {
    fn new(each: Duration) -> Self {
        Self { each, free_at: Mutex::new(Instant::now()) }
    }

    /// How long a request that has come now waits for its answer.
    fn wait(&self) -> Duration {
        let mut free_at = self.free_at.lock().unwrap();
        *free_at = (*free_at).max(Instant::now()) + self.each;
        free_at.saturating_duration_since(Instant::now())
    }
}

async fn slow_server(each: Duration) -> Server {
    let (data, line) = (pattern(SIZE), Line::new(each));
    Server::start(move |seen, _| Step { delay: line.wait(), ..partial(&data, seen) }).await
}

/// Time-outs that a registry of 5 ms an answer would exceed, were it asked for everything at once.
fn impatient(server: &Server) -> RegistryConfig {
    let mut config = config(&[server.address]);
    config.limits.concurrent_requests = 1000;
    config.limits.connect_timeout_ms = 750;
    config.limits.stall_timeout_ms = 750;
    config.limits.request_deadline_ms = 1500;
    config
}

/// Requests that waited in the registry's line were dropped after the time-out and made again, which made the line longer.
#[tokio::test]
async fn what_a_slow_registry_is_asked_for_it_answers_once() {
    const READS: u64 = 400;
    let server = slow_server(Duration::from_millis(5)).await;
    let client = client(&impatient(&server));
    let blob = blob(&client, &server, SIZE);
    let reads = join_all((0..READS).map(|i| blob.read_range(range(i, i + 10), Priority::Demand)));
    for read in reads.await {
        read.unwrap();
    }
    assert_eq!((server.count() as u64, client.metrics().retries.get()), (READS, 0));
    assert!(client.metrics().shrinks_slow.get() > 0);
    let loads = client.loads();
    assert_eq!(loads.len(), 1);
    assert_eq!(loads[0].host, server.address.to_string());
    assert!((2..200).contains(&loads[0].limit), "{loads:?}");
    assert_eq!((loads[0].in_flight, loads[0].waiting), (0, 0));
}

/// Each of them is a process of its own: none knows of the others.
#[tokio::test]
async fn readers_that_know_nothing_of_each_other_do_not_overrun_a_slow_registry() {
    const READERS: usize = 20;
    const READS: u64 = 20;
    let server = slow_server(Duration::from_millis(6)).await;
    let clients: Vec<_> = (0..READERS).map(|_| client(&impatient(&server))).collect();
    let reads = clients.iter().map(|client| {
        let blob = blob(client, &server, SIZE);
        join_all((0..READS).map(move |i| blob.read_range(range(i, i + 10), Priority::Demand)))
    });
    for read in join_all(reads).await.into_iter().flatten() {
        read.unwrap();
    }
    assert_eq!(server.count() as u64, READERS as u64 * READS);
}

#[tokio::test]
async fn a_registry_that_answers_at_once_is_asked_for_more_and_more() {
    let data = pattern(SIZE);
    let server =
        Server::start(move |seen, _| Step { delay: Duration::from_millis(5), ..partial(&data, seen) }).await;
    let client = client(&config(&[server.address]));
    let blob = blob(&client, &server, SIZE);
    let reads = join_all((0..300u64).map(|i| blob.read_range(range(i, i + 10), Priority::Demand)));
    assert!(reads.await.iter().all(Result::is_ok));
    assert_eq!(client.loads()[0].limit, 48);
    assert!(server.peak() > 10, "{}", server.peak());
}

/// It was taken for one that is asked for too much, and asked for two at a time.
#[tokio::test]
async fn a_registry_that_always_takes_its_time_is_asked_for_more_too() {
    let data = pattern(SIZE);
    let server =
        Server::start(move |seen, _| Step { delay: Duration::from_millis(150), ..partial(&data, seen) })
            .await;
    let client = client(&impatient(&server));
    let blob = blob(&client, &server, SIZE);
    let reads = join_all((0..100u64).map(|i| blob.read_range(range(i, i + 10), Priority::Demand)));
    assert!(reads.await.iter().all(Result::is_ok));
    assert!(server.peak() > 10, "{}", server.peak());
}

#[tokio::test]
async fn a_registry_that_refuses_is_asked_for_less() {
    const READS: u64 = 60;
    let data = pattern(SIZE);
    let server = Server::start(move |seen, number| match number {
        20..40 => reply("429 Too Many Requests", &[], b""),
        _ => Step { delay: Duration::from_millis(2), ..partial(&data, seen) },
    })
    .await;
    let client = client(&config(&[server.address]));
    let blob = blob(&client, &server, SIZE);
    let reads = join_all((0..READS).map(|i| blob.read_range(range(i, i + 10), Priority::Demand)));
    assert!(reads.await.iter().all(Result::is_ok));
    assert_eq!(server.count() as u64, READS + 20);
    let shrinks = client.metrics().shrinks_refused.get();
    assert!((1..=20).contains(&shrinks), "{shrinks}");
    assert!(client.loads()[0].limit < 48);
}

#[tokio::test]
async fn those_who_wait_for_a_registry_that_is_silent_give_up_together() {
    const READS: u32 = 100;
    let data = pattern(SIZE);
    let server = Server::start(move |seen, number| match number {
        0 => partial(&data, seen),
        _ => Step { delay: Duration::from_secs(600), ..partial(&data, seen) },
    })
    .await;
    let mut config = config(&[server.address]);
    let deadline = Duration::from_millis(300);
    config.limits.concurrent_requests = 1;
    config.limits.stall_timeout_ms = 60_000;
    config.limits.request_deadline_ms = deadline.as_millis() as u64;
    let client = client(&config);
    let blob = blob(&client, &server, SIZE);
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
    let begun = Instant::now();
    let reads = join_all((0..READS).map(|_| blob.read_range(range(0, 1), Priority::Demand))).await;
    assert!(begun.elapsed() < deadline * READS / 2, "one after another: {:?}", begun.elapsed());
    let errors: Vec<RegistryError> = reads.into_iter().map(Result::unwrap_err).collect();
    assert!(errors.iter().all(RegistryError::is_timeout), "{errors:?}");
    let silent = |error: &&RegistryError| matches!(error.reason(), Reason::Silent { .. });
    assert!(errors.iter().filter(silent).count() > READS as usize / 2, "{errors:?}");
}

/// Each of its answers begins at once, and those to three requests not together: so something comes from it all the time.
#[tokio::test]
async fn those_who_wait_for_a_registry_whose_answers_all_break_off_give_up_together() {
    const READS: u64 = 40;
    let data = pattern(SIZE);
    let server = Server::start(move |seen, number| {
        let whole = partial(&data, seen);
        match number {
            0 => whole,
            _ => {
                let half = whole.bytes.len() - 500;
                Step { bytes: whole.bytes[..half].to_vec(), after: After::Stall, ..whole }
            }
        }
    })
    .await;
    let mut config = config(&[server.address]);
    let deadline = Duration::from_millis(500);
    config.limits.concurrent_requests = 3;
    config.limits.stall_timeout_ms = 60_000;
    config.limits.request_deadline_ms = deadline.as_millis() as u64;
    let client = client(&config);
    let blob = blob(&client, &server, SIZE);
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
    let begun = Instant::now();
    let mut reads = Vec::new();
    for _ in 0..READS {
        reads.push(blob.read_range(range(0, 1000), Priority::Demand));
        if reads.len() < 3 {
            tokio::time::sleep(deadline / 4).await;
        }
    }
    let reads = join_all(reads).await;
    assert!(begun.elapsed() < deadline * 8, "one after another: {:?}", begun.elapsed());
    let errors: Vec<RegistryError> = reads.into_iter().map(Result::unwrap_err).collect();
    assert!(errors.iter().all(RegistryError::is_timeout), "{errors:?}");
}

#[tokio::test]
async fn what_waits_too_long_for_its_turn_ends_and_names_the_setting() {
    let server = slow_server(Duration::from_millis(20)).await;
    let mut config = config(&[server.address]);
    config.limits.request_deadline_ms = 400;
    config.limits.total_deadline_ms = 400;
    let client = client(&config);
    let blob = blob(&client, &server, SIZE);
    let reads = join_all((0..200u64).map(|i| blob.read_range(range(i, i + 10), Priority::Demand))).await;
    let late = reads.into_iter().find_map(Result::err).expect("they take four seconds");
    assert!(matches!(late.reason(), Reason::TotalDeadline { .. }), "{late:?}");
    assert!(late.is_timeout() && late.to_string().contains("registry.limits.total_deadline_ms"), "{late}");
}

/// A body on a slow way takes longer than the deadline, and comes to its end.
#[tokio::test]
async fn a_body_that_comes_slowly_is_not_asked_for_again() {
    let data = pattern(SIZE);
    let server = Server::start(move |seen, _| partial(&data, seen)).await;
    let slow = slow_way(server.address).await;
    let mut config = config(&[slow]);
    config.limits.concurrent_requests = 1;
    config.limits.request_deadline_ms = 300;
    let client = client(&config);
    let repository = stratabd::registry::Repository::new(&slow.to_string(), "team/app", true).unwrap();
    let blob = client.blob(&repository, crate::script::digest(), SIZE as u64);
    let begun = Instant::now();
    // Who waits for it sees that it comes.
    let reads = join_all((0..3).map(|_| blob.read_range(range(0, 60_000), Priority::Demand))).await;
    assert!(reads.iter().all(Result::is_ok), "{reads:?}");
    assert!(begun.elapsed() > Duration::from_millis(3 * 300), "the way is not slow");
    assert_eq!(server.count(), 3);
}

/// Passes on what comes, the answers in pieces of 2 KB and 20 ms.
async fn slow_way(to: std::net::SocketAddr) -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = tokio::net::TcpStream::connect(to).await.unwrap();
            let ((mut from_near, mut to_near), (mut from_far, mut to_far)) =
                (near.into_split(), far.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut from_near, &mut to_far).await });
            tokio::spawn(async move {
                let mut piece = [0; 2000];
                while let Ok(count @ 1..) = from_far.read(&mut piece).await {
                    to_near.write_all(&piece[..count]).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
    });
    address
}

/// So many devices are read at once through one cache, by eight readers each; 200, with answers of 200 ms, where
/// `STRATABD_REGISTRY_DEVICES` says so.
#[tokio::test(flavor = "multi_thread")]
async fn many_readers_of_a_registry_with_errors_get_all_they_ask_for() {
    const READERS: usize = 8;
    const BLOB_BYTES: usize = 512 << 10;
    let devices = std::env::var("STRATABD_REGISTRY_DEVICES").map(|text| text.parse::<usize>().unwrap());
    let (devices, latency) = devices.map_or((20, 10), |devices| (devices, 200));
    let content = pattern(BLOB_BYTES);
    let contents: Vec<Arc<[u8]>> = (0..devices)
        .map(|device| content.iter().map(|byte| byte.wrapping_add(device as u8)).collect())
        .collect();
    let digests: Vec<Digest> =
        contents.iter().map(|content| Digest::from_hash(Sha256::digest(content).into())).collect();
    let served: Vec<_> = digests.iter().map(Digest::to_string).zip(contents.iter().cloned()).collect();
    let server = Server::start(move |seen, number| {
        let refusal = ["500 Error", "503 Unavailable", "429 Too Many Requests"][number / 20 % 3];
        let content = served.iter().find(|(digest, _)| seen.target.ends_with(digest));
        let step = match content {
            Some((_, content)) if number % 20 != 19 => partial(content, seen),
            // As registries do it; a second is too long for a short test.
            _ if latency == 200 && refusal != "500 Error" => reply(refusal, &["Retry-After: 1"], b""),
            _ => reply(refusal, &[], b""),
        };
        Step { delay: Duration::from_millis(latency), ..step }
    })
    .await;
    let mut config = config(&[server.address]);
    config.limits = stratabd::registry::Limits { backoff_base_ms: 10, ..Default::default() };
    let client = client(&config);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let thread = ReactorThread::start("cache", ReactorConfig::default(), || Ok(())).unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path(), 1 << 30), thread.handle()).unwrap();
    let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
    let repository = repository(&server);
    let read = async || {
        let mut blobs = Vec::new();
        for digest in &digests {
            let origin = Arc::new(RegistryOrigin::new(client.blob(&repository, *digest, BLOB_BYTES as u64)));
            blobs.push(cache.blob(&digest.to_string(), origin).await.unwrap());
        }
        let readers =
            blobs.iter().zip(&contents).flat_map(|device| (0..READERS).map(move |part| (device, part)));
        join_all(readers.map(|((blob, content), part)| read_part(&reactor, blob, content, part, READERS)))
            .await
    };
    reactor.block_on(read()).unwrap();
    let injected = server.count() as u64 / 20;
    assert_eq!(cache.metrics().failed_fetches.get(), 0);
    assert_eq!(client.metrics().timeouts.get(), 0);
    assert_eq!(server.count() as u64, cache.metrics().fetches.get() + injected, "answers for nothing");
}

/// Reads one of so many parts of `blob` in requests of 16 KiB.
async fn read_part(reactor: &Reactor, blob: &CachedBlob, content: &[u8], part: usize, parts: usize) {
    let part_bytes = content.len() / parts;
    let mut dest = vec![0; 16 << 10];
    for offset in (part * part_bytes..(part + 1) * part_bytes).step_by(dest.len()) {
        let wanted = ByteRange::between(offset as u64, (offset + dest.len()) as u64);
        blob.fetch(&[wanted]).await.unwrap();
        blob.read(reactor, offset as u64, &mut dest).await.unwrap();
        assert!(dest == content[offset..offset + dest.len()]);
    }
}
