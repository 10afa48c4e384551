//! Entries that cannot be had at once, or never, and what the cache leaves to others.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use futures_util::poll;

use super::*;
use crate::{
    cache::CacheError,
    source::{Place, Readiness, Refutation},
};

#[test]
fn an_entry_that_a_peer_holds_does_not_hold_up_the_opening_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let patient = CacheConfig { opening_patience: Duration::from_secs(60), ..config(dir.path()) };
    let (bench, other) = (Bench::new(patient), Bench::new(config(dir.path())));
    let [stuck, free] = [100, 101].map(|seed| TestOrigin::new(MIB, seed, Duration::ZERO));
    let key = crate::cache::key::BlobKey::parse(&stuck.digest).unwrap();
    let held = other.cache.shared.locks(&key).maps().unwrap().unwrap();
    let opened = bench.reactor.block_on(async {
        let mut waiting = Box::pin(bench.cache.blob(&stuck.digest, Arc::clone(&stuck) as _));
        assert!(poll!(waiting.as_mut()).is_pending());
        bench.cache.blob(&free.digest, Arc::clone(&free) as _).await.unwrap();
        assert!(poll!(waiting.as_mut()).is_pending());
        drop(held);
        waiting.await
    });
    opened.unwrap().unwrap();
}

#[test]
fn a_blob_whose_entry_cannot_be_had_is_read_from_its_origin_and_cached_later() {
    let dir = tempfile::tempdir().unwrap();
    let hasty = CacheConfig { opening_patience: Duration::from_millis(10), ..config(dir.path()) };
    let (bench, other) = (Bench::new(hasty), Bench::new(config(dir.path())));
    let origin = TestOrigin::new(MIB, 102, Duration::ZERO);
    let key = crate::cache::key::BlobKey::parse(&origin.digest).unwrap();
    let held = other.cache.shared.locks(&key).maps().unwrap().unwrap();
    let refused = bench.reactor.block_on(bench.cache.blob(&origin.digest, Arc::clone(&origin) as _)).unwrap();
    let error = refused.unwrap_err();
    assert!(matches!(error, CacheError::Busy(_)), "{error}");
    let blob = bench.cache.without_entry(&origin.digest, Arc::clone(&origin) as _, &error);
    let refutation = Arc::new(Refutation::default());
    blob.watch(&refutation);
    let read = |offset: usize, len: usize| {
        let mut dest = vec![0; len];
        bench.reactor.block_on(blob.read(&bench.reactor, offset as u64, &mut dest)).unwrap().unwrap();
        assert!(dest == origin.content[offset..offset + len]);
    };
    read(5000, 70_000);
    assert_eq!((blob.place(), blob.size_bytes()), (Place::Origin, MIB as u64));
    drop(held);
    bench.until("the entry is there", || blob.place() == Place::Cache);
    read(5000, 70_000);
    bench.until("it is kept", || blob.try_read(8192, &mut [0; 4096]).unwrap() == Readiness::Done);
    assert_eq!(refutation.blob(), None);
    let gone = bench.cache.without_entry("no digest", Arc::clone(&origin) as _, &error);
    assert_eq!(gone.place(), Place::Origin);
}

#[test]
fn a_planted_link_is_refused_by_name_and_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let victim = tempfile::NamedTempFile::new().unwrap();
    let origin = TestOrigin::new(MIB, 103, Duration::ZERO);
    let key = crate::cache::key::BlobKey::parse(&origin.digest).unwrap();
    let folder = dir.path().join("blobs").join(key.path());
    for name in ["data", "map", "durable"] {
        std::fs::create_dir_all(&folder).unwrap();
        symlink(victim.path(), folder.join(name)).unwrap();
        let bench = Bench::new(config(dir.path()));
        let error = bench
            .reactor
            .block_on(bench.cache.blob(&origin.digest, Arc::clone(&origin) as _))
            .unwrap()
            .unwrap_err();
        let told = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(told.contains(name) && told.contains(&folder.display().to_string()), "{told}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
    let link = dir.path().join("lock");
    std::fs::remove_file(&link).unwrap();
    symlink(victim.path(), &link).unwrap();
    let thread = ReactorThread::start("cache", ReactorConfig::default(), || Ok(())).unwrap();
    let error = Cache::open(config(dir.path()), thread.handle()).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("lock"), "{error}");
    assert_eq!(victim.as_file().metadata().unwrap().len(), 0);
}

#[test]
fn a_folder_that_others_can_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let thread = ReactorThread::start("cache", ReactorConfig::default(), || Ok(())).unwrap();
    let error = Cache::open(config(dir.path()), thread.handle()).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("mode 777"), "{error}");
}

#[test]
fn what_an_ended_process_had_still_to_remove_goes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let victim = tempfile::tempdir().unwrap();
    std::fs::write(victim.path().join("theirs"), "x").unwrap();
    let trash = dir.path().join("trash");
    std::fs::create_dir_all(trash.join("1")).unwrap();
    let data = std::fs::File::create(trash.join("1/data")).unwrap();
    data.set_len(300 << 20).unwrap();
    symlink(victim.path(), trash.join("2")).unwrap();
    symlink(victim.path().join("theirs"), trash.join("1/link")).unwrap();
    let bench = Bench::new(config(dir.path()));
    bench.until("the trash is empty", || std::fs::read_dir(&trash).unwrap().next().is_none());
    assert!(victim.path().join("theirs").exists());
}

#[test]
fn an_entry_that_is_being_removed_is_opened_anew_before_its_room_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 105, Duration::ZERO);
    let key = crate::cache::key::BlobKey::parse(&origin.digest).unwrap();
    let blob = bench.blob(&origin);
    bench.read(&blob, 0, MIB).unwrap();
    bench.settle(&blob);
    drop(blob);
    let shared = &bench.cache.shared;
    bench.until("the blob is closed", || shared.is_unused_here(&key));
    // As the evictor does, which then takes long over the room.
    shared.shelves.discard(&key).unwrap();
    let trash = || std::fs::read_dir(dir.path().join("trash")).unwrap().count();
    assert_eq!(trash(), 1);
    let blob = bench.blob(&origin);
    assert_eq!(blob.present_bytes(), 0);
    assert!(bench.read(&blob, 0, MIB).unwrap() == origin.content);
    bench.reactor.block_on(shared.shelves.empty_trash(&bench.reactor)).unwrap().unwrap();
    assert_eq!(trash(), 0);
    assert!(bench.read(&blob, 0, MIB).unwrap() == origin.content);
}

/// Set for a child: the folder of the cache.
const CHILD_DIR: &str = "STRATABD_TEST_OPEN_CACHE_DIR";

/// Not a test by itself: the body of a child process, whose umask takes nothing away.
#[test]
fn child_fills_a_cache_without_a_umask() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    rustix::process::umask(rustix::fs::Mode::empty());
    let bench = Bench::new(config(Path::new(&dir)));
    let origin = TestOrigin::new(MIB, 104, Duration::ZERO);
    let blob = bench.blob(&origin);
    bench.read(&blob, 0, MIB).unwrap();
    bench.settle(&blob);
    bench.sync();
}

/// All below a folder, and itself.
fn walk(path: &Path) -> Vec<std::path::PathBuf> {
    let below = std::fs::read_dir(path).into_iter().flatten().flatten();
    below.flat_map(|entry| walk(&entry.path())).chain([path.to_owned()]).collect()
}

#[test]
fn nothing_that_the_cache_makes_is_open_to_others_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cache::tests::opening::child_fills_a_cache_without_a_umask"])
        .env(CHILD_DIR, dir.path().join("a/cache"))
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let made = walk(&dir.path().join("a"));
    assert!(made.len() >= 12, "{made:?}");
    for path in made {
        let mode = std::fs::metadata(&path).unwrap().mode() & 0o7777;
        assert!(mode == 0o600 || mode == 0o700, "{}: {mode:o}", path.display());
    }
}
