//! An ext4 over layers of different sizes: whatever size it gets, what the engine then shows of it is sound.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

use stratabd::{offline::resize_ext4, reactor::Reactor};

use crate::{layer_writer, reactor, read_all, site::Site};

const MIB: u64 = 1 << 20;
const FILES: u8 = 10;

fn run(program: &str, arguments: &[&str], flat: &Path) {
    let ended = Command::new(program).args(arguments).arg(flat).output().unwrap();
    assert!(ended.status.success(), "{program} {arguments:?}: {ended:?}");
}

/// The layers of an ext4 of 32 MiB with some files, and below it of what that was when it had 80 MiB, so that much of what makes it
/// larger again is there.
fn layers(dir: &Path) -> [Vec<u8>; 2] {
    let [flat, folder] = ["flat", "folder"].map(|name| dir.join(name));
    fs::create_dir(&folder).unwrap();
    for number in 0..FILES {
        fs::write(folder.join(format!("file{number}")), vec![number + 1; 100_000]).unwrap();
    }
    File::create(&flat).unwrap().set_len(32 * MIB).unwrap();
    run(
        "mke2fs",
        &["-q", "-t", "ext4", "-O", "^metadata_csum,^uninit_bg,^flex_bg", "-d", folder.to_str().unwrap()],
        &flat,
    );
    let layer = || {
        let mut bytes = Vec::new();
        File::open(&flat).unwrap().read_to_end(&mut bytes).unwrap();
        layer_writer::lsmt_of(&bytes)
    };
    let small = layer();
    File::options().write(true).open(&flat).unwrap().set_len(80 * MIB).unwrap();
    run("resize2fs", &[], &flat);
    [layer(), small]
}

/// The file system as the engine shows it is sound, and all of its files are there.
async fn sound(site: &Site, reactor: &Reactor, dir: &Path, what: &str) {
    let flat = dir.join("shown");
    fs::write(&flat, read_all(&site.open(reactor).await, reactor).await).unwrap();
    let checked = Command::new("e2fsck").arg("-fn").arg(&flat).output().unwrap();
    assert!(checked.status.success(), "{what}: {}", String::from_utf8_lossy(&checked.stdout));
    let files = tempfile::tempdir().unwrap();
    run("debugfs", &["-R", &format!("rdump / {}", files.path().display())], &flat);
    for number in 0..FILES {
        let mut bytes = vec![0; 100_000];
        let file = File::open(files.path().join(format!("file{number}"))).unwrap();
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == number + 1), "{what}: file {number}");
    }
}

#[test]
fn an_ext4_gets_any_size_over_layers_of_other_sizes() {
    let reactor = reactor();
    let dir = tempfile::tempdir().unwrap();
    let lowers = layers(dir.path());
    for sparse in [false, true] {
        let site = Site::of(&lowers, sparse, 0);
        let work = async {
            for mib in [80, 24, 48, 80] {
                let size = mib * MIB;
                let threads = std::num::NonZeroUsize::MIN;
                let below = site.below().lowers;
                let upper = site.stack().upper.unwrap();
                let done = resize_ext4(&below, &upper, size, true, threads, &crate::site::quiet()).unwrap();
                assert_eq!(done.ext4_after_bytes, size);
                sound(&site, &reactor, dir.path(), &format!("{mib} MiB, sparse: {sparse}")).await;
            }
        };
        reactor.block_on(work).unwrap();
    }
}
