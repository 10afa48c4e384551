//! A log on a file system of 4 MiB that is full, mostly of garbage, and one whose journal has no room. It takes root to mount one.
#![expect(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    error::Error,
    ffi::CStr,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::{
    mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount},
    process::geteuid,
};
use stratabd::{
    block::{BlockDevice, BlockQueue, ErrorKind},
    device::MemoryDevice,
    reactor::{Reactor, ReactorConfig},
    upper::{Identity, LayerFiles, LogLimits, Overlay, UpperError},
};

const FILE_SYSTEM_BYTES: u64 = 4 << 20;

/// A file system in memory, until it is dropped.
struct FileSystem {
    folder: tempfile::TempDir,
}

impl FileSystem {
    /// Of a size in the words of mount(8); `None` where that is not allowed.
    fn mount(options: &CStr) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        if !geteuid().is_root() {
            println!("skipped: only root may mount a file system");
            return None;
        }
        match mount("tmpfs", folder.path(), "tmpfs", MountFlags::empty(), options) {
            Ok(()) => Some(Self { folder }),
            Err(error) => {
                println!("skipped: cannot mount a file system here: {error}");
                None
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn open(&self, reactor: &Reactor) -> Overlay<MemoryDevice> {
        let files = LayerFiles::open(&self.path("data"), &self.path("index")).unwrap();
        Overlay::open(reactor, files, None, LogLimits::default()).await.unwrap()
    }

    async fn create(&self, reactor: &Reactor) -> Overlay<MemoryDevice> {
        let files = LayerFiles::create(&self.path("data"), &self.path("index")).unwrap();
        let uuid = "ABC00007-1111-2222-3333-000000000007".parse().unwrap();
        let identity = Identity { uuid, parent_uuid: None, virtual_size_bytes: 64 << 20, sparse: false };
        files.format(reactor, &identity).await.unwrap();
        self.open(reactor).await
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = unmount(self.folder.path(), UnmountFlags::DETACH);
    }
}

fn kept_bytes(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

async fn is_filled(queue: &impl BlockQueue, megabyte: u64, value: u8) -> bool {
    let mut found = vec![0; 1 << 20];
    queue.read(megabyte << 20, &mut found).await.unwrap();
    found.iter().all(|byte| *byte == value)
}

/// Sixteen times its size is written to the file system, over half of it; and when it is full of what is in use, a discard makes
/// room.
#[test]
fn a_small_file_system_takes_what_fits_again_and_again() {
    let Some(system) = FileSystem::mount(c"size=4m,huge=never") else { return };
    let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
    let work = async {
        let device = system.create(&reactor).await;
        let queue = device.open_queue(&reactor).unwrap();
        let mut value = 0_u8;
        for _ in 0..8 * FILE_SYSTEM_BYTES / (1 << 20) {
            value = value.wrapping_add(1).max(1);
            for quarter in 0..8 {
                queue.write(quarter << 18, &vec![value; 1 << 18]).await.unwrap();
            }
        }
        assert!(is_filled(&queue, 0, value).await && is_filled(&queue, 1, value).await);
        let full = async |from: u64| {
            for megabyte in from..64 {
                if let Err(error) = queue.write(megabyte << 20, &vec![9; 1 << 20]).await {
                    assert_eq!(error.kind(), ErrorKind::NoSpace);
                    return megabyte;
                }
            }
            panic!("it has no end");
        };
        let end = full(2).await;
        assert_eq!(full(end).await, end, "it is full");
        queue.flush().await.unwrap();
        queue.write_zeroes(0, 2 << 20).await.unwrap();
        queue.write(40 << 20, &vec![7; 1 << 20]).await.unwrap();
        assert!(is_filled(&queue, 0, 0).await && is_filled(&queue, 40, 7).await);
        drop(queue);
        device.close(&reactor).await.unwrap();
        let device = system.open(&reactor).await;
        let queue = device.open_queue(&reactor).unwrap();
        assert!(is_filled(&queue, 1, 0).await && is_filled(&queue, 40, 7).await, "opened again");
        let in_use = (end - 2 + 1) << 20;
        assert!(kept_bytes(&system.path("data")) <= in_use + (64 << 10), "what is dead is given back");
    };
    reactor.block_on(work).unwrap();
}

/// Opens the layer in `dir` with a journal of so many entries in `journals`.
async fn open_with_journal(
    reactor: &Reactor,
    dir: &Path,
    journals: &Path,
    journal_entries: usize,
) -> Result<Overlay<MemoryDevice>, UpperError> {
    let files = LayerFiles::open(&dir.join("data"), &dir.join("index"))?.with_journal(journals);
    let limits = LogLimits { journal_entries, ..LogLimits::default() };
    Overlay::open(reactor, files, None, limits).await
}

/// Why a layer was not opened: its journal, which is named, and the system's answer.
fn refusal(opened: Result<Overlay<MemoryDevice>, UpperError>, journals: &Path) -> ErrorKind {
    let error = opened.map(drop).unwrap_err();
    assert!(error.to_string().contains(journals.to_str().unwrap()), "{error}");
    assert!(error.to_string().contains("journal"), "{error}");
    let source = error.source().unwrap().downcast_ref::<std::io::Error>().unwrap();
    match source.kind() {
        std::io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        std::io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        other => panic!("{other}"),
    }
}

/// Nothing is acknowledged that the next process could not find, and what a dead one has left stays until there is room to go on.
#[test]
fn a_journal_without_room_keeps_its_layer_closed_and_loses_nothing() {
    let Some(system) = FileSystem::mount(c"size=1m,huge=never") else { return };
    let dir = tempfile::tempdir().unwrap();
    let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
    let journals = system.path("journals");
    let open = async |entries| open_with_journal(&reactor, dir.path(), &journals, entries).await;
    let work = async {
        let files = LayerFiles::create(&dir.path().join("data"), &dir.path().join("index")).unwrap();
        let uuid = "ABC00007-1111-2222-3333-000000000007".parse().unwrap();
        let identity = Identity { uuid, parent_uuid: None, virtual_size_bytes: 64 << 20, sparse: false };
        files.format(&reactor, &identity).await.unwrap();
        assert_eq!(refusal(open(128 << 10).await, &journals), ErrorKind::NoSpace, "2 MiB of 1 MiB");
        assert_eq!(fs::read_dir(&journals).unwrap().count(), 0, "nothing is left of it");

        let device = open(16 << 10).await.unwrap();
        device.open_queue(&reactor).unwrap().write(0, &[7; 4096]).await.unwrap();
        // As a process that dies.
        drop(device);
        assert_eq!(fs::read_dir(&journals).unwrap().count(), 1);
        fs::write(system.path("filler"), vec![1; 700 << 10]).unwrap();
        assert_eq!(refusal(open(16 << 10).await, &journals), ErrorKind::NoSpace);
        mount_remount(system.folder.path(), MountFlags::RDONLY, c"").unwrap();
        assert_eq!(refusal(open(16 << 10).await, &journals), ErrorKind::ReadOnly);
        mount_remount(system.folder.path(), MountFlags::empty(), c"").unwrap();
        fs::remove_file(system.path("filler")).unwrap();

        let device = open(16 << 10).await.unwrap();
        let queue = device.open_queue(&reactor).unwrap();
        let mut found = [0; 4096];
        queue.read(0, &mut found).await.unwrap();
        assert_eq!(found, [7; 4096]);
        drop(queue);
        device.close(&reactor).await.unwrap();
        assert_eq!(fs::read_dir(&journals).unwrap().count(), 0);
    };
    reactor.block_on(work).unwrap();
}
