//! Blobs with a Merkle tree: what is wrong reaches nobody and stays nowhere, be it sent, kept or planted.

use bytes::Bytes;

use super::{origin::content, *};
use crate::{
    block::ByteRange,
    source::{BlobWithTree, Proof, ProofMetrics, VerifiedOrigin, Verity, VerityError, WrongBlock},
};

const BLOCK: usize = 4096;
const BLOCK_BYTES: u64 = Proof::BLOCK_BYTES;

/// A blob of so many blocks of content.
fn blob_of(blocks: usize, seed: u64) -> BlobWithTree {
    BlobWithTree::of(content(blocks * BLOCK, seed))
}

fn origin_of(blob: &BlobWithTree) -> Arc<TestOrigin> {
    TestOrigin::of(blob.bytes.clone(), Duration::ZERO)
}

/// The blob behind a cache, and what is counted.
struct Proven {
    blob: Arc<CachedBlob>,
    metrics: Arc<ProofMetrics>,
}

fn open(bench: &Bench, origin: &Arc<TestOrigin>, verity: Verity) -> Proven {
    let metrics = Arc::new(ProofMetrics::default());
    let proof = Proof::new(verity, origin.content.len() as u64).unwrap();
    let verified = VerifiedOrigin::new(Arc::clone(origin) as _, proof, Arc::clone(&metrics));
    let blob = bench.reactor.block_on(bench.cache.blob(&origin.digest, Arc::new(verified))).unwrap().unwrap();
    Proven { blob, metrics }
}

fn is_refuted(read: &Result<Vec<u8>, SourceError>) -> bool {
    matches!(read, Err(SourceError::Refuted { .. }))
}

#[test]
fn what_is_read_is_right_and_what_proves_it_is_fetched_at_the_same_time_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob_of(700, 1);
    let origin = TestOrigin::of(blob.bytes.clone(), Duration::from_millis(30));
    let bench = Bench::new(config(dir.path()));
    let proven = open(&bench, &origin, blob.verity);
    assert_eq!(bench.read(&proven.blob, 5000, 100).unwrap(), blob.bytes[5000..5100]);
    assert!(origin.most_at_once.load(std::sync::atomic::Ordering::SeqCst) >= 2, "no waiting for a proof");
    let end = blob.content_bytes();
    assert_eq!(bench.read(&proven.blob, 0, end).unwrap(), blob.bytes[..end]);
    bench.settle(&proven.blob);
    let tree: u64 =
        (origin.asked().iter().filter(|range| range.start() >= end as u64)).map(|range| range.len()).sum();
    assert_eq!(tree, 7 * BLOCK_BYTES, "six blocks of hashes and one above them, once each");
    assert_eq!(proven.metrics.refuted_fetches.get(), 0);
    assert!(proven.metrics.proven_bytes.get() >= end as u64);
}

#[test]
fn a_changed_byte_reaches_nobody_and_is_gone_when_the_registry_is_right_again() {
    let blob = blob_of(300, 2);
    let end = blob.content_bytes();
    let mut random = fastrand::Rng::with_seed(3);
    for trial in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let origin = origin_of(&blob);
        let at = random.usize(..blob.bytes.len());
        origin.flip(at, random.u8(1..), usize::MAX);
        let bench = Bench::new(config(dir.path()));
        let proven = open(&bench, &origin, blob.verity);
        let mut failed = 0;
        for _ in 0..4 {
            let start = random.usize(..end - 1);
            let len = random.usize(1..(end - start).min(200_000));
            let read = bench.read(&proven.blob, start, len);
            match &read {
                Ok(bytes) => assert!(*bytes == blob.bytes[start..start + len], "trial {trial}, byte {at}"),
                Err(_) => assert!(is_refuted(&read), "{read:?}"),
            }
            let touched = (start..start + len).contains(&at);
            assert!(!touched || read.is_err(), "trial {trial}, byte {at}");
            failed += u64::from(read.is_err());
        }
        assert!(proven.metrics.refuted_fetches.get() >= failed, "counted");
        origin.unflip();
        assert!(bench.read(&proven.blob, 0, end).unwrap() == blob.bytes[..end], "trial {trial}, byte {at}");
        bench.settle(&proven.blob);
    }
}

#[test]
fn bytes_that_are_wrong_once_cost_another_fetch() {
    let blob = blob_of(300, 4);
    // Of the data, of the hashes over it, and of those above.
    for at in [4097, 300 * BLOCK + 40, 303 * BLOCK + 40] {
        let dir = tempfile::tempdir().unwrap();
        let origin = origin_of(&blob);
        origin.flip(at, 1, 1);
        let bench = Bench::new(config(dir.path()));
        let proven = open(&bench, &origin, blob.verity);
        assert_eq!(bench.read(&proven.blob, 4000, 5000).unwrap(), blob.bytes[4000..9000]);
        assert_eq!(proven.metrics.refuted_fetches.get(), 1, "byte {at}");
    }
}

#[test]
fn what_is_wrong_for_good_is_asked_for_three_times_and_names_the_block_and_the_rule() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob_of(300, 5);
    let origin = origin_of(&blob);
    origin.flip(20 * BLOCK + 9, 0x80, usize::MAX);
    let bench = Bench::new(config(dir.path()));
    let proven = open(&bench, &origin, blob.verity);
    let read = bench.read(&proven.blob, 20 * BLOCK, 100);
    let Err(SourceError::Refuted { offset, source, .. }) = read else { panic!("{read:?}") };
    assert_eq!((offset, source), (20 * BLOCK_BYTES, WrongBlock::Hash { block: 20, parent: 300 }));
    assert_eq!(proven.metrics.refuted_fetches.get(), 3);
    let data = origin.asked().iter().filter(|range| range.start() == 20 * BLOCK_BYTES).count();
    assert_eq!(data, 3);
    bench.settle(&proven.blob);
    assert!(!proven.blob.entry().ledger.presence().holds(&(20..21)), "not kept");
}

#[test]
fn a_tree_of_another_blob_or_of_another_digest_proves_nothing() {
    let (blob, other) = (blob_of(300, 6), blob_of(300, 7));
    let end = blob.content_bytes();
    let mixed: Bytes = [&blob.bytes[..end], &other.bytes[end..]].concat().into();
    for (content, verity) in
        [(mixed.clone(), blob.verity), (mixed, other.verity), (blob.bytes.clone(), other.verity)]
    {
        let dir = tempfile::tempdir().unwrap();
        let origin = TestOrigin::of(content, Duration::ZERO);
        let bench = Bench::new(config(dir.path()));
        let proven = open(&bench, &origin, verity);
        for start in [0, end / 2, end - 10] {
            assert!(is_refuted(&bench.read(&proven.blob, start, 10)));
        }
        assert_eq!(proven.blob.entry().ledger.presence().present(&(0..300)), []);
    }
    let short = Verity::new(blob.verity.digest(), blob.verity.tree_offset() - BLOCK_BYTES).unwrap();
    assert!(matches!(Proof::new(short, blob.bytes.len() as u64), Err(VerityError::Size { .. })));
}

#[test]
fn what_was_kept_is_proven_in_the_next_life_without_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob_of(700, 8);
    let (origin, end) = (origin_of(&blob), blob.content_bytes());
    {
        let bench = Bench::new(config(dir.path()));
        let proven = open(&bench, &origin, blob.verity);
        bench.read(&proven.blob, 0, end).unwrap();
        bench.settle(&proven.blob);
        bench.sync();
    }
    origin.set(origin::Mood::Fails);
    let asked = origin.asked().len();
    let bench = Bench::new(config(dir.path()));
    let proven = open(&bench, &origin, blob.verity);
    assert!(bench.read(&proven.blob, 0, end).unwrap() == blob.bytes[..end]);
    assert_eq!((origin.asked().len(), bench.cache.metrics().damaged_grains.get()), (asked, 0));
}

#[test]
fn what_was_planted_with_a_right_checksum_is_fetched_again_in_the_next_life() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob_of(300, 9);
    let (origin, end) = (origin_of(&blob), blob.content_bytes());
    {
        let bench = Bench::new(config(dir.path()));
        let proven = open(&bench, &origin, blob.verity);
        bench.read(&proven.blob, 0, end).unwrap();
        bench.settle(&proven.blob);
        let entry = proven.blob.entry();
        // Data, and hashes that are not read to prove it.
        for number in [3, 17, 302] {
            let medium = entry.on(&bench.reactor);
            let planted = entry.ledger.store(&medium, number * BLOCK_BYTES, &[9; BLOCK], || true);
            bench.reactor.block_on(planted).unwrap().unwrap();
        }
        bench.sync();
    }
    let bench = Bench::new(config(dir.path()));
    let proven = open(&bench, &origin, blob.verity);
    assert!(bench.read(&proven.blob, 0, end).unwrap() == blob.bytes[..end]);
    assert!(bench.cache.metrics().damaged_grains.get() >= 3);
}

#[test]
fn the_same_blob_without_a_proof_is_another_entry() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob_of(300, 10);
    let bench = Bench::new(config(dir.path()));
    let liar = origin_of(&blob);
    liar.set(origin::Mood::Lies);
    let unproven = bench.blob(&liar);
    assert_eq!(bench.read(&unproven, 0, 100).unwrap(), [0x55; 100]);
    let proven = open(&bench, &origin_of(&blob), blob.verity);
    assert_eq!(bench.read(&proven.blob, 0, 100).unwrap(), blob.bytes[..100]);
}

#[test]
fn what_proves_a_blob_is_not_evicted_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob_of(700, 11);
    let bench = Bench::new(config(dir.path()));
    let proven = open(&bench, &origin_of(&blob), blob.verity);
    let end = blob.content_bytes();
    bench.read(&proven.blob, 0, end).unwrap();
    bench.settle(&proven.blob);
    let entry = proven.blob.entry();
    bench.until("the tree is kept", || entry.ledger.presence().holds(&(700..707)));
    let cold: Vec<_> = entry.cold_regions(u32::MAX).into_iter().flat_map(|(_, grains)| grains).collect();
    assert_eq!((cold.len(), cold.iter().max()), (700, Some(&699)));
}

#[test]
fn a_cache_that_keeps_nothing_gives_nothing_that_is_not_proven() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob_of(300, 12);
    let origin = origin_of(&blob);
    let bench = Bench::new(CacheConfig { limit_bytes: 0, ..config(dir.path()) });
    let proven = open(&bench, &origin, blob.verity);
    assert_eq!(bench.read(&proven.blob, 123, 9999).unwrap(), blob.bytes[123..123 + 9999]);
    origin.flip(50 * BLOCK, 1, usize::MAX);
    assert!(is_refuted(&bench.read(&proven.blob, 50 * BLOCK + 5, 1)));
    let range = ByteRange::between(50 * BLOCK_BYTES, 51 * BLOCK_BYTES);
    assert!(proven.blob.invalidate(range) && is_refuted(&bench.read(&proven.blob, 50 * BLOCK + 5, 1)));
}
