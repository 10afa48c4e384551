//! Several real processes on one folder: shared fetches, and kills.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
};

use super::{eviction::on_disk, origin::Mood, *};

/// Set for a child: the folder of the cache.
const CHILD_DIR: &str = "STRATABD_TEST_CACHE_DIR";
/// Set for a child whose cache is small.
const EVICTING_DIR: &str = "STRATABD_TEST_EVICTING_DIR";
const SIZE: usize = 6 * MIB + 100;
const SEED: u64 = 70;

/// Not a test by itself: the body of a child process, which reads the whole blob and says what it asked for.
#[test]
fn child_reads_the_whole_blob() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let bench =
        Bench::new(CacheConfig { sync_interval: Duration::from_millis(10), ..config(Path::new(&dir)) });
    let origin = TestOrigin::new(SIZE, SEED, Duration::from_millis(10));
    let blob = bench.blob(&origin);
    let mut random = fastrand::Rng::new();
    let mut offsets: Vec<usize> = (0..SIZE).step_by(16 << 10).collect();
    random.shuffle(&mut offsets);
    println!("\nbegun");
    for offset in offsets {
        let len = (16 << 10).min(SIZE - offset);
        assert!(bench.read(&blob, offset, len).unwrap() == origin.content[offset..offset + len]);
    }
    bench.settle(&blob);
    println!("\nasked {}", origin.bytes_asked());
}

fn child(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "cache::tests::processes::child_reads_the_whole_blob"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn processes_that_read_the_same_blob_at_once_fetch_it_about_once() {
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<Child> = (0..3).map(|_| child(dir.path())).collect();
    let mut asked = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let line = text.lines().find_map(|line| line.strip_prefix("asked ")).unwrap();
        asked += line.parse::<u64>().unwrap();
    }
    // A fetch that spans what a peer got meanwhile takes a little of it again.
    assert!(asked <= SIZE as u64 * 14 / 10, "{asked} bytes for a blob of {SIZE}");
}

#[test]
fn whatever_is_present_after_a_process_was_killed_has_the_right_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(71);
    let origin = TestOrigin::new(SIZE, SEED, Duration::ZERO);
    origin.set(Mood::Fails);
    let mut most = 0;
    for _ in 0..12 {
        let mut child = child(dir.path());
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(said.any(|line| line == "begun"), "it dies before its start");
        #[expect(
            clippy::disallowed_methods,
            reason = "a test may block, and the moment of the kill is the point"
        )]
        std::thread::sleep(Duration::from_millis(random.u64(0..800)));
        child.kill().unwrap();
        child.wait().unwrap();
        let bench = Bench::new(config(dir.path()));
        let blob = bench.blob(&origin);
        for grain in blob.entry().ledger.presence().present(&(0..2000)).into_iter().flatten() {
            let offset = usize::try_from(grain).unwrap() * 4096;
            let len = 4096.min(SIZE - offset);
            assert!(bench.read(&blob, offset, len).unwrap() == origin.content[offset..offset + len]);
        }
        most = blob.present_bytes().max(most);
    }
    assert!(most > 0, "the children got somewhere");
    assert!(origin.asked().is_empty(), "all that is present was read from the disk");
}

#[test]
fn a_peer_that_was_stopped_is_not_waited_for_beyond_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let other = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 72, Duration::ZERO);
    let theirs = other.blob(&origin);
    let held = theirs.entry().files.locks.fetch(&(0..256)).unwrap().unwrap();
    let patience = Duration::from_millis(100);
    let bench = Bench::new(CacheConfig { peer_patience: patience, ..config(dir.path()) });
    let blob = bench.blob(&origin);
    let began = std::time::Instant::now();
    assert!(bench.read(&blob, 0, 4096).unwrap() == origin.content[..4096]);
    assert!(began.elapsed() >= patience);
    drop(held);
    bench.settle(&blob);
    // And what we fetched, they have: their origin is not asked.
    origin.set(Mood::Fails);
    assert!(other.read(&theirs, 0, 4096).unwrap() == origin.content[..4096]);
    assert_eq!(other.cache.metrics().spared_by_peers.get(), 1);
}

/// Blobs whose eviction a child begins: two that it closes again, and one that is larger than the limit.
const EVICTED: [(usize, u64); 3] = [(MIB, 80), (MIB, 81), (4 * MIB, 82)];

fn limited(dir: &Path) -> CacheConfig {
    CacheConfig { limit_bytes: 2 * MIB as u64, sync_interval: Duration::from_millis(10), ..config(dir) }
}

/// Not a test by itself: the body of a child process, which reads more than its cache may have until it dies.
#[test]
fn child_reads_more_than_it_may_keep() {
    let Some(dir) = std::env::var_os(EVICTING_DIR) else { return };
    let bench = Bench::new(limited(Path::new(&dir)));
    for (size, seed) in EVICTED {
        let origin = TestOrigin::new(size, seed, Duration::ZERO);
        let blob = bench.blob(&origin);
        let mut rounds = 0;
        while rounds == 0 || (size == 4 * MIB && rounds < 100) {
            for offset in (0..size).step_by(128 << 10) {
                bench.read(&blob, offset, 128 << 10).unwrap();
                bench.reactor.block_on(bench.reactor.sleep(Duration::from_millis(2))).unwrap();
            }
            rounds += 1;
        }
        bench.settle(&blob);
    }
}

#[test]
fn an_eviction_that_the_death_of_the_process_cuts_off_leaves_true_marks_and_nothing_behind() {
    for point in ["EvictionDiscarded", "EvictionForgotten", "EvictionPunched"] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "cache::tests::processes::child_reads_more_than_it_may_keep"]);
        child.env(EVICTING_DIR, dir.path()).env("STRATABD_DIE_AT", point);
        let child = child.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert_eq!(child.signal(), Some(9), "{point} is not reached");
        let bench = Bench::new(limited(dir.path()));
        for (size, seed) in EVICTED {
            let origin = TestOrigin::new(size, seed, Duration::ZERO);
            origin.set(Mood::Fails);
            let blob = bench.blob(&origin);
            let present = blob.entry().ledger.presence().present(&(0..(size / 4096) as u64));
            for grain in present.into_iter().flatten() {
                let offset = usize::try_from(grain).unwrap() * 4096;
                let read = bench.read(&blob, offset, 4096);
                // It may go meanwhile: then the origin is asked, which fails.
                assert!(read.is_err() || read.unwrap() == origin.content[offset..offset + 4096], "{point}");
            }
        }
        let trash = dir.path().join("trash");
        bench.until("the trash is empty", || std::fs::read_dir(&trash).unwrap().count() == 0);
        let (size, seed) = EVICTED[2];
        let origin = TestOrigin::new(size, seed, Duration::ZERO);
        let blob = bench.blob(&origin);
        assert!(bench.read(&blob, 0, size).unwrap() == origin.content, "{point}: other bytes");
        bench.until("the limit is kept", || on_disk(dir.path()) <= 3 * MIB as u64);
    }
}

/// Two digests whose locks lie in one window.
fn colliding() -> [String; 2] {
    let mut seen = std::collections::HashMap::new();
    let digests = (0_u64..).map(|number| format!("sha256:{number:064x}"));
    for digest in digests {
        let hash = crate::cache::key::BlobKey::parse(&digest).unwrap().hash();
        let window = u32::from_le_bytes(*hash.first_chunk().unwrap()) >> 1;
        if let Some(other) = seen.insert(window, digest.clone()) {
            return [other, digest];
        }
    }
    unreachable!("there are more digests than windows")
}

#[test]
fn blobs_whose_locks_coincide_do_not_release_one_another() {
    let dir = tempfile::tempdir().unwrap();
    let (bench, other) = (Bench::new(config(dir.path())), Bench::new(config(dir.path())));
    let digests = colliding();
    let origins = [0, 1].map(|index| {
        let mut origin = Arc::try_unwrap(TestOrigin::new(MIB, 80 + index as u64, Duration::ZERO)).unwrap();
        origin.digest = digests[index].clone();
        Arc::new(origin)
    });
    let [kept, dropped] = [0, 1].map(|index| bench.blob(&origins[index]));
    bench.read(&kept, 0, MIB).unwrap();
    bench.settle(&kept);
    drop(dropped);
    let theirs = other.cache.shared.locks(&kept.entry().key);
    assert!(!theirs.own_use().unwrap(), "the other blob took the lock with it");
    // Nor may it be removed now, which would end with the release of the lock.
    let key = crate::cache::key::BlobKey::parse(&digests[1]).unwrap();
    assert!(!bench.cache.shared.is_unused_here(&key));
    drop(kept);
    bench.until("the last one lets go", || theirs.own_use().unwrap());
}
