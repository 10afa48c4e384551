//! What takes the place of an index file that is mostly superseded, in a real file system.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

use super::{
    LIMITS, SECTORS,
    content::{self, bytes_of},
    crash_image::SECTOR,
    identity, reactor,
};
use crate::{
    block::{BlockDevice, BlockQueue},
    upper::{LayerFiles, Overlay},
};

/// An index file that is named by a symbolic link stays one file under both names.
#[test]
fn an_index_file_behind_a_link_is_rewritten_in_its_place() {
    let reactor = reactor();
    let dir = tempfile::tempdir().unwrap();
    let [real, links] = ["real", "links"].map(|name| dir.path().join(name));
    [&real, &links].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let index = real.join("index");
    for name in ["data", "index"] {
        symlink(real.join(name), links.join(name)).unwrap();
    }
    let work = async {
        let made = LayerFiles::create(&real.join("data"), &real.join("index")).unwrap();
        made.format(&reactor, &identity(SECTORS * SECTOR)).await.unwrap();
        fs::set_permissions(&index, Permissions::from_mode(0o600)).unwrap();
        let before = fs::metadata(&index).unwrap();
        let files = LayerFiles::open(&links.join("data"), &links.join("index")).unwrap();
        let below = content::below(0, 512);
        let device = Overlay::open(&reactor, files, Some(below), LIMITS).await.unwrap();
        let queue = device.open_queue(&reactor).unwrap();
        for round in 0..200_u32 {
            queue.write(0, &bytes_of(2 + round, 0..1)).await.unwrap();
            queue.flush().await.unwrap();
        }
        let mut now = [0; 512];
        queue.read(0, &mut now).await.unwrap();
        drop(queue);
        device.close(&reactor).await.unwrap();
        let after = fs::metadata(&index).unwrap();
        assert!(after.len() < 4096 + 200 * 16, "it was rewritten");
        assert_eq!(before.mode(), after.mode());
        let files = LayerFiles::open(&real.join("data"), &real.join("index")).unwrap();
        let below = content::below(0, 512);
        let device = Overlay::open(&reactor, files, Some(below), LIMITS).await.unwrap();
        let queue = device.open_queue(&reactor).unwrap();
        let mut again = [0; 512];
        queue.read(0, &mut again).await.unwrap();
        assert!(now == again, "{:?} and {:?}", content::writers(&now, 0), content::writers(&again, 0));
    };
    reactor.block_on(work).unwrap();
}

/// What was to replace an index file, and cannot, takes no room of a file system that may be full.
#[test]
fn an_index_file_that_cannot_be_replaced_leaves_no_successor() {
    let reactor = reactor();
    let dir = tempfile::tempdir().unwrap();
    let [data, index] = ["data", "index"].map(|name| dir.path().join(name));
    let work = async {
        let made = LayerFiles::create(&data, &index).unwrap();
        made.format(&reactor, &identity(SECTORS * SECTOR)).await.unwrap();
        let files = LayerFiles::open(&data, &index).unwrap();
        let device = Overlay::open(&reactor, files, Some(content::below(0, 512)), LIMITS).await.unwrap();
        // No file gets the name of a folder.
        fs::remove_file(&index).unwrap();
        fs::create_dir(&index).unwrap();
        let queue = device.open_queue(&reactor).unwrap();
        for round in 0..150_u32 {
            queue.write(0, &bytes_of(2 + round, 0..1)).await.unwrap();
            queue.flush().await.unwrap();
        }
        assert!(!dir.path().join("index.successor").exists());
    };
    reactor.block_on(work).unwrap();
}
