//! The kernel and we write the same file system in turn: it goes on with our directories, and we with its.
//!
//! Needs root and loop devices; says so where there are none.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]

#[expect(dead_code, reason = "one of several users of the support code")]
mod support;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, symlink},
};

use rustix::fs::{XattrFlags, setxattr};
use stratabd_ext4::{Attributes, Node, Timestamp};
use support::{Image, OPTIONS, mounted::Mounted, output, run};

const PLAIN: Attributes<'static> =
    Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp { seconds: 5, nanoseconds: 0 }, xattrs: &[] };

fn name(number: u32) -> String {
    format!("many/a name of some length, grün und blau {number}")
}

/// Names into the middle of our index, files that share a block of attributes, extents of all shapes.
fn write_by_kernel(mounted: &Mounted) {
    for number in 4000..9000 {
        File::create(mounted.path(&name(number))).unwrap();
    }
    for number in (0..4000).step_by(3) {
        fs::remove_file(mounted.path(&name(number))).unwrap();
    }
    fs::create_dir_all(mounted.path("kernel/deep/er")).unwrap();
    for number in 0..50 {
        let path = mounted.path(&format!("kernel/shared{number}"));
        fs::write(&path, b"content").unwrap();
        setxattr(&path, "user.large", &[7; 1500], XattrFlags::empty()).unwrap();
    }
    let comb = File::create(mounted.path("kernel/comb")).unwrap();
    for tooth in 0..2000 {
        comb.write_all_at(b"tooth", tooth << 14).unwrap();
    }
    symlink("x".repeat(300), mounted.path("kernel/long")).unwrap();
    fs::hard_link(mounted.path(&name(5000)), mounted.path("kernel/hard")).unwrap();
    fs::rename(mounted.path("kernel/deep"), mounted.path("moved")).unwrap();
}

fn try_turns(image: &Image) {
    let mut filesystem = image.open();
    for number in 0..4000 {
        filesystem.node(name(number).as_bytes(), Node::Fifo, &PLAIN).unwrap();
    }
    filesystem.finish(OPTIONS.time).unwrap();
    image.check();
    let Some(mounted) = Mounted::writable(image) else { return };
    write_by_kernel(&mounted);
    drop(mounted);
    image.check();
    let mut filesystem = image.open();
    for number in 0..30 {
        filesystem.whiteout(format!("kernel/shared{number}").as_bytes()).unwrap();
    }
    filesystem.set_attributes(b"kernel/shared40", &PLAIN).unwrap();
    filesystem.hard_link(b"moved/er/link", b"kernel/hard", &PLAIN).unwrap();
    filesystem.whiteout(b"kernel/comb").unwrap();
    filesystem.symlink(b"kernel/long", b"short", &PLAIN).unwrap();
    filesystem.whiteout(name(8000).as_bytes()).unwrap();
    filesystem.finish(OPTIONS.time).unwrap();
    image.check();
    let mounted = Mounted::new(image).unwrap();
    assert_eq!(fs::read_dir(mounted.path("many")).unwrap().count(), 9000 - 1334 - 1);
    assert!((4000..9000).filter(|at| *at != 8000).all(|at| mounted.path(&name(at)).exists()));
    assert_eq!(fs::read_to_string(mounted.path("kernel/shared45")).unwrap(), "content");
    drop(mounted);
    let mut filesystem = image.open();
    filesystem.opaque(b"/").unwrap();
    filesystem.finish(OPTIONS.time).unwrap();
    image.check();
}

#[test]
fn the_kernel_goes_on_with_our_file_system() {
    let image = Image::new(1 << 30);
    image.format().finish(OPTIONS.time).unwrap();
    try_turns(&image);
}

/// The hash of names has its sign from the superblock.
#[test]
fn the_kernel_goes_on_with_one_of_mke2fs_whose_hashes_are_unsigned() {
    let features = "^metadata_csum,^metadata_csum_seed,^orphan_file";
    let options = ["-t", "ext4", "-b", "4096", "-i", "16384", "-I", "256", "-O", features];
    let image = Image::made_by_mke2fs(1 << 30, &options);
    run("debugfs", &["-w", "-R", "set_super_value flags 2", image.path.to_str().unwrap()]);
    try_turns(&image);
}

#[test]
fn each_copy_of_the_superblock_is_good_and_the_size_can_change() {
    let image = Image::new(4 << 30);
    let mut filesystem = image.format();
    filesystem.directory(b"a/b/c", &PLAIN).unwrap();
    filesystem.finish(OPTIONS.time).unwrap();
    let path = image.path.to_str().unwrap();
    // A copy does not know which bitmaps were never written, so that e2fsck always has something to do with one.
    for copy in [32_768, 98_304, 163_840, 229_376, 294_912, 819_200, 884_736] {
        let output = output("e2fsck", &["-fy", "-B", "4096", "-b", &copy.to_string(), path]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.code() == Some(1), "{copy}: {text}");
        image.check();
        image.open().set_attributes(b"a/b/c", &PLAIN).unwrap();
    }
    for size in ["6G", "1G", "9G"] {
        if size != "1G" {
            File::options().write(true).open(&image.path).unwrap().set_len(9 << 30).unwrap();
        }
        run("resize2fs", &["-f", path, size]);
        image.check();
        let mut filesystem = image.open();
        filesystem.directory(format!("a/{size}").as_bytes(), &PLAIN).unwrap();
        filesystem.finish(OPTIONS.time).unwrap();
        image.check();
    }
}
