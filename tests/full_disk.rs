//! A log on a file system of 4 MiB that is full, mostly of garbage. It takes root to mount one.
#![expect(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::geteuid,
};
use stratabd::{
    block::{BlockDevice, BlockQueue, ErrorKind},
    device::MemoryDevice,
    reactor::{Reactor, ReactorConfig},
    upper::{Identity, LayerFiles, LogLimits, Overlay},
};

const FILE_SYSTEM_BYTES: u64 = 4 << 20;

/// A file system in memory, until it is dropped.
struct FileSystem {
    folder: tempfile::TempDir,
}

impl FileSystem {
    /// `None` where that is not allowed.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = c"size=4m,huge=never";
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
    let Some(system) = FileSystem::mount() else { return };
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
