//! What bounds the load on registries: the budget, priorities, `Retry-After`, back-off, and cancelling.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use stratabd::{
    registry::{BlobMetrics, Priority, Reason},
    telemetry::Counter,
};

use crate::script::{After, Server, Step, blob, block_on, client, config, partial, pattern, range, reply};

const SIZE: usize = 100_000;

#[tokio::test]
async fn no_more_requests_are_in_flight_than_configured() {
    let data = pattern(SIZE);
    let server =
        Server::start(move |seen, _| Step { delay: Duration::from_millis(30), ..partial(&data, seen) }).await;
    let mut config = config(&[server.address]);
    config.limits.concurrent_requests = 3;
    let client = client(&config);
    let blob = blob(&client, &server, SIZE);
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
    let begun = Instant::now();
    let reads = join_all((0..12u64).map(|i| blob.read_range(range(i, i + 10), Priority::Demand)));
    for read in reads.await {
        read.unwrap();
    }
    assert_eq!(server.peak(), 3);
    assert!(begun.elapsed() >= Duration::from_millis(4 * 30), "12 reads by 3 at a time take four rounds");
}

#[tokio::test]
async fn a_host_that_hangs_does_not_hold_up_another() {
    let data = pattern(SIZE);
    let known = data.clone();
    let hanging = Server::start(move |seen, number| match number {
        0 => partial(&known, seen),
        _ => Step { delay: Duration::from_secs(60), bytes: Vec::new(), after: After::Close },
    })
    .await;
    let healthy = Server::start(move |seen, _| partial(&data, seen)).await;
    let mut config = config(&[hanging.address, healthy.address]);
    config.limits.concurrent_requests = 4;
    config.limits.stall_timeout_ms = 60_000;
    let client = client(&config);
    let slow = blob(&client, &hanging, SIZE);
    slow.read_range(range(0, 1), Priority::Demand).await.unwrap();
    let stuck: Vec<_> = (0..20).map(|_| slow.read_range(range(0, 1), Priority::Demand)).collect();
    while hanging.count() < 1 + 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let begun = Instant::now();
    blob(&client, &healthy, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "half of the deadline");
    drop(stuck);
}

#[tokio::test]
async fn a_read_that_somebody_waits_for_overtakes_prefetch() {
    let data = pattern(SIZE);
    let server =
        Server::start(move |seen, _| Step { delay: Duration::from_millis(100), ..partial(&data, seen) })
            .await;
    let mut config = config(&[server.address]);
    config.limits.concurrent_requests = 1;
    let client = client(&config);
    let blob = blob(&client, &server, SIZE);
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
    let prefetch: Vec<_> = (1..10u64).map(|i| blob.read_range(range(i, i + 1), Priority::Prefetch)).collect();
    tokio::time::sleep(Duration::from_millis(5)).await;
    blob.read_range(range(500, 501), Priority::Demand).await.unwrap();
    let position = server.requests().iter().position(|seen| seen.range() == Some((500, 501))).unwrap();
    assert!(position <= 2, "the demand read was request {position}");
    for read in prefetch {
        read.await.unwrap();
    }
}

#[tokio::test]
async fn retry_after_is_waited_for_by_every_reader_of_the_host() {
    let data = pattern(SIZE);
    let server = Server::start(move |seen, number| match number {
        1 => reply("429 Too Many Requests", &["Retry-After: 1"], b""),
        _ => partial(&data, seen),
    })
    .await;
    let client = client(&config(&[server.address]));
    let blob = blob(&client, &server, SIZE);
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
    let begun = Instant::now();
    let first = blob.read_range(range(1, 2), Priority::Demand);
    while client.metrics().retries.get() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let second = blob.read_range(range(2, 3), Priority::Demand);
    second.await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(1000));
    first.await.unwrap();
    assert_eq!((server.count(), client.metrics().retries.get()), (4, 1));
    let BlobMetrics { fetches, retries, failures, bytes } = blob.metrics();
    assert_eq!([fetches, retries, failures, bytes].map(Counter::get), [3, 1, 0, 3]);
}

#[tokio::test]
async fn retry_after_is_heeded_by_those_who_wait_for_a_place() {
    let data = pattern(SIZE);
    let server = Server::start(move |seen, number| match number {
        1 => Step {
            delay: Duration::from_millis(100),
            ..reply("429 Too Many Requests", &["Retry-After: 1"], b"")
        },
        _ => partial(&data, seen),
    })
    .await;
    let mut config = config(&[server.address]);
    config.limits.concurrent_requests = 1;
    let client = client(&config);
    let blob = blob(&client, &server, SIZE);
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
    let reads: Vec<_> = (0..5).map(|_| blob.read_range(range(0, 1), Priority::Demand)).collect();
    while client.metrics().retries.get() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.count(), 2, "the host asked not to be asked");
    for read in reads {
        read.await.unwrap();
    }
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_fails_at_once() {
    let server = Server::start(|_, _| reply("503 Unavailable", &["Retry-After: 3600"], b"")).await;
    let client = client(&config(&[server.address]));
    let blob = blob(&client, &server, SIZE);
    let begun = Instant::now();
    for _ in 0..3 {
        let error = blob.read_range(range(0, 1), Priority::Demand).await.unwrap_err();
        assert!(matches!(error.reason(), Reason::Status { status: 503, .. }), "{error:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "half of the deadline");
    assert_eq!(server.count(), 1, "the host asked not to be asked");
}

#[tokio::test]
async fn a_dropped_read_gives_its_place_back() {
    let data = pattern(SIZE);
    let server = Server::start(move |seen, number| match number {
        0 => Step { delay: Duration::ZERO, bytes: b"HTTP/1.1 206 Par".to_vec(), after: After::Stall },
        _ => partial(&data, seen),
    })
    .await;
    let mut config = config(&[server.address]);
    config.limits.concurrent_requests = 1;
    config.limits.stall_timeout_ms = 60_000;
    let client = client(&config);
    let blob = blob(&client, &server, SIZE);
    let stuck = blob.read_range(range(0, 1), Priority::Demand);
    while server.count() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(stuck);
    let begun = Instant::now();
    assert_eq!(blob.read_range(range(0, 5), Priority::Demand).await.unwrap(), pattern(SIZE)[..5]);
    assert!(begun.elapsed() < Duration::from_secs(5), "half of the deadline");
}

#[test]
fn an_answer_may_be_awaited_outside_of_tokio_and_survives_the_end_of_its_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let data = pattern(SIZE);
    let server = runtime.block_on(Server::start(move |seen, number| match number {
        0 => partial(&data, seen),
        _ => Step { delay: Duration::from_secs(60), bytes: Vec::new(), after: After::Close },
    }));
    let client =
        stratabd::registry::Client::new(&config(&[server.address]), runtime.handle().clone()).unwrap();
    let blob = blob(&client, &server, SIZE);
    let bytes = block_on(blob.read_range(range(3, 8), Priority::Demand)).unwrap();
    assert_eq!(bytes, pattern(SIZE)[3..8]);
    let pending = blob.read_range(range(3, 8), Priority::Demand);
    runtime.shutdown_background();
    let error = block_on(pending).unwrap_err();
    assert!(matches!(error.reason(), Reason::Closed), "{error:?}");
}

#[tokio::test]
async fn parallel_failures_of_discovery_do_not_multiply() {
    let server =
        Server::start(|_, _| Step { delay: Duration::from_millis(50), ..reply("404 Not Found", &[], b"") })
            .await;
    let client = client(&config(&[server.address]));
    let blob = blob(&client, &server, SIZE);
    let reads = join_all((0..50u64).map(|i| blob.read_range(range(i, i + 1), Priority::Demand))).await;
    assert!(reads.into_iter().all(|read| read.is_err()));
    assert_eq!(server.count(), 1);
}
