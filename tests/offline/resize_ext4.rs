//! `layer resize --ext4`: real file systems grow and shrink with their devices, by real programs.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    num::NonZeroUsize,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rustix::fs::{SeekFrom, seek};
use stratabd::{
    format::lsmt::Packing,
    offline::{
        CreateOptions, Naming, OfflineError, PackOptions, ResizedExt4, Stack, Upper, create, default_threads,
        merge, resize_ext4,
    },
};

use crate::{bytes, fixtures::Fixture, layer_writer, names, opened, quiet};

const GIB: u64 = 1 << 30;
const OPTIONS: CreateOptions = CreateOptions {
    sparse: true,
    virtual_size_bytes: GIB,
    uuid: None,
    parent_uuid: None,
    ext4: false,
    overwrite: false,
};

/// Layers in a folder of their own.
struct Image {
    dir: tempfile::TempDir,
    lowers: Vec<PathBuf>,
    upper: Upper,
}

impl Image {
    /// These lower layers, under a writable layer that is not there yet.
    fn over(lowers: &[Vec<u8>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let lowers = lowers.iter().enumerate().map(|(number, layer)| {
            fs::write(path(&number.to_string()), layer).unwrap();
            path(&number.to_string())
        });
        let lowers = lowers.collect();
        Self { lowers, upper: Upper { data: path("data"), index: Some(path("index")) }, dir }
    }

    /// The tree of the fixtures, with a log that has files of its own.
    fn log() -> Self {
        let image = Self::over(&[Fixture::named("ext4/L0.z4k").read()]);
        fs::write(&image.upper.data, Fixture::named("ext4/rw1.d.xz").read()).unwrap();
        fs::write(image.index(), Fixture::named("ext4/rw1.i").read()).unwrap();
        image
    }

    /// The tree of the fixtures below a sparse layer that hides some of it.
    fn sparse() -> Self {
        let mut image = Self::over(&["ext4/L0.z4k", "ext4/L1.z4k"].map(|name| Fixture::named(name).read()));
        image.upper.index = None;
        create(&image.upper, &OPTIONS).unwrap();
        let flat = image.dir.path().join("flat");
        image.flat(&flat);
        let block = block_of("/usr/bin/text", &flat);
        fs::remove_file(flat).unwrap();
        let file = File::options().write(true).open(&image.upper.data).unwrap();
        file.write_all_at(&[0; 4096], (block + 1) * 4096).unwrap();
        file.set_permissions(Permissions::from_mode(0o600)).unwrap();
        image
    }

    /// Any file system of 64 MiB, which `change` has made, below an empty log.
    fn of(change: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let flat = dir.path().join("flat");
        File::create(&flat).unwrap().set_len(64 << 20).unwrap();
        change(&flat);
        let image = Self::over(&[layer_writer::lsmt_of(&bytes(&flat))]);
        create(&image.upper, &CreateOptions { sparse: false, virtual_size_bytes: 64 << 20, ..OPTIONS })
            .unwrap();
        image
    }

    fn index(&self) -> &Path {
        self.upper.index.as_deref().unwrap()
    }

    fn grow(&self, size_bytes: u64) -> Result<ResizedExt4, OfflineError> {
        resize_ext4(&self.lowers, &self.upper, size_bytes, false, default_threads(), &quiet())
    }

    fn shrink(&self, size_bytes: u64) -> Result<ResizedExt4, OfflineError> {
        resize_ext4(&self.lowers, &self.upper, size_bytes, true, default_threads(), &quiet())
    }

    /// All files, without their holes.
    fn files(&self) -> BTreeMap<String, (u64, Vec<u8>)> {
        let names = names(self.dir.path()).into_iter();
        names.map(|name| (name.clone(), kept(&self.dir.path().join(&name)))).collect()
    }

    /// The device, as a program sees it.
    fn flat(&self, to: &Path) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let stack = Stack { lowers: self.lowers.clone(), upper: Some(self.upper.clone()) };
        let options = PackOptions {
            packing: Packing::Aligned,
            compression: None,
            tar: false,
            final_header: true,
            threads: NonZeroUsize::MIN,
            overwrite: false,
            allow_torn: false,
        };
        merge(&stack, &out, &Naming::default(), &options, &quiet()).unwrap();
        let (file, layer) = opened(&out);
        let flat = File::create(to).unwrap();
        flat.set_len(layer.virtual_size_bytes()).unwrap();
        let end = layer.virtual_size_bytes() / 512;
        let seen = layer.segments().iter().filter_map(|segment| segment.within(0, end));
        for segment in seen.filter(|segment| !segment.zeroed()) {
            let [from, len] = [segment.moffset(), segment.length().into()];
            let [from, len] = [from, len].map(|sectors| usize::try_from(sectors).unwrap() * 512);
            flat.write_all_at(&file[from..from + len], segment.offset() * 512).unwrap();
        }
    }

    /// What the files of the file system hold, when it is sound, as large as the device, and has that size.
    fn sound(&self, size_bytes: u64) -> BTreeMap<PathBuf, Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let flat = dir.path().join("flat");
        self.flat(&flat);
        assert_eq!(fs::metadata(&flat).unwrap().len(), size_bytes);
        let checked = run("e2fsck", &["-fn"], &flat);
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        let said = run("dumpe2fs", &["-h"], &flat).stdout;
        let said = String::from_utf8(said).unwrap();
        let number = |name: &str| -> u64 {
            let line = said.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse().unwrap()
        };
        assert_eq!(number("Block count:") * number("Block size:"), size_bytes, "{said}");
        contents(&flat)
    }

    /// What the files hold now, sound or not.
    fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let flat = dir.path().join("flat");
        self.flat(&flat);
        contents(&flat)
    }
}

/// The size of a file, and what it has.
fn kept(path: &Path) -> (u64, Vec<u8>) {
    let file = File::open(path).unwrap();
    let (mut found, mut at) = (Vec::new(), 0);
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        let mut run = vec![0; usize::try_from(at - start).unwrap()];
        file.read_exact_at(&mut run, start).unwrap();
        found.extend(start.to_le_bytes());
        found.extend(run);
    }
    (file.metadata().unwrap().len(), found)
}

/// The first block of a file.
fn block_of(name: &str, flat: &Path) -> u64 {
    let said = run("debugfs", &["-R", &format!("blocks {name}")], flat).stdout;
    String::from_utf8(said).unwrap().split_whitespace().next().expect(name).parse().unwrap()
}

fn run(program: &str, arguments: &[&str], flat: &Path) -> Output {
    Command::new(program).args(arguments).arg(flat).output().unwrap()
}

fn contents(flat: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let dump = format!("rdump / {}", dir.path().display());
    assert!(run("debugfs", &["-R", &dump], flat).status.success());
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let path = entry.path();
                let name = path.strip_prefix(dir.path()).unwrap().to_owned();
                found.insert(name, bytes(&path));
            }
        }
    }
    found
}

#[test]
fn the_ext4_grows_with_the_device_and_keeps_its_files() {
    for image in [Image::log(), Image::sparse()] {
        let (files, before) = (image.contents(), image.files());
        assert!(files.len() > 100, "{}", files.len());
        let done = image.grow(3 * GIB).unwrap();
        let sizes = [done.before_bytes, done.after_bytes, done.ext4_before_bytes, done.ext4_after_bytes];
        assert_eq!(sizes, [GIB, 3 * GIB, GIB, 3 * GIB]);
        assert!(done.written_bytes > 0 && done.written_bytes < 4 << 20, "{done:?}");
        assert!(image.sound(3 * GIB) == files);
        let after = image.files();
        assert!(after.keys().eq(before.keys()), "{:?}", after.keys());
        assert!(image.lowers.iter().all(|lower| {
            let name = lower.file_name().unwrap().to_str().unwrap();
            after[name] == before[name]
        }));
        let growth = if image.upper.index.is_some() { after["data"].0 - before["data"].0 } else { 0 };
        assert!(growth <= done.written_bytes, "{growth}");
        let modes = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(modes(&image.upper.data), if growth == 0 { 0o600 } else { 0o644 });
        // Once more there is nothing to do.
        assert_eq!(image.grow(3 * GIB).unwrap().written_bytes, 0);
        assert!(image.files() == after);
        image.grow(4 * GIB).unwrap();
        assert!(image.sound(4 * GIB) == files);
    }
}

#[test]
fn what_a_crash_leaves_has_the_old_file_system_and_is_grown_again() {
    let image = Image::log();
    let files = image.contents();
    let old_index = bytes(image.index());
    image.grow(3 * GIB).unwrap();
    let new_data = bytes(&image.upper.data);
    let sized = |file: &[u8], gib: u64| {
        let mut file = file.to_vec();
        file[48..56].copy_from_slice(&(gib * GIB).to_le_bytes());
        file
    };
    // After the data; after the size of the index file; after that of the device.
    for (data_gib, index_gib) in [(1, 1), (1, 3), (3, 3)] {
        fs::write(&image.upper.data, sized(&new_data, data_gib)).unwrap();
        fs::write(image.index(), sized(&old_index, index_gib)).unwrap();
        fs::write(image.dir.path().join(".index.01234567.part"), "half").unwrap();
        assert!(image.contents() == files);
        image.grow(3 * GIB).unwrap();
        assert!(image.sound(3 * GIB) == files, "{data_gib} {index_gib}");
    }
}

#[test]
fn the_ext4_shrinks_with_the_device_and_keeps_its_files() {
    for image in [Image::log(), Image::sparse()] {
        let (files, names) = (image.contents(), image.files());
        for size in [GIB / 4, 2 * GIB, GIB / 2] {
            let done = image.shrink(size).unwrap();
            assert_eq!((done.after_bytes, done.ext4_after_bytes), (size, size));
            assert!(image.sound(size) == files, "{size}");
            // Once more there is nothing to do.
            assert_eq!(image.shrink(size).unwrap().written_bytes, 0);
        }
        assert!(image.files().keys().eq(names.keys()));
        let before = image.files();
        let refused = image.shrink(1 << 20).unwrap_err();
        assert!(matches!(refused, OfflineError::Ext4Tool { program: "resize2fs", .. }), "{refused}");
        assert!(image.files() == before);
    }
}

#[test]
fn a_crash_while_it_shrinks_leaves_the_old_file_system_or_the_new_one() {
    let image = Image::log();
    let (files, old_index) = (image.contents(), bytes(image.index()));
    image.shrink(GIB / 2).unwrap();
    let (mut data, new_index) = (bytes(&image.upper.data), bytes(image.index()));
    data[48..56].copy_from_slice(&GIB.to_le_bytes());
    // After the data, and after the index file.
    for index in [&old_index, &new_index] {
        fs::write(&image.upper.data, &data).unwrap();
        fs::write(image.index(), index).unwrap();
        assert!(image.contents() == files);
        image.shrink(GIB / 2).unwrap();
        assert!(image.sound(GIB / 2) == files);
    }
}

#[test]
fn a_device_that_has_grown_before_its_file_system_is_no_obstacle() {
    for image in [Image::log(), Image::sparse()] {
        let files = image.contents();
        stratabd::offline::resize(&[], &image.upper, 2 * GIB, false).unwrap();
        assert_eq!(image.grow(2 * GIB).unwrap().ext4_before_bytes, GIB);
        assert!(image.sound(2 * GIB) == files);
    }
}

#[test]
fn a_blank_ext4_of_a_layer_alone_grows() {
    let image = Image::over(&[]);
    create(&image.upper, &CreateOptions { sparse: false, ext4: true, ..OPTIONS }).unwrap();
    image.grow(2 * GIB + 4096).unwrap();
    // The last group would have one block only, which is none.
    assert_eq!(image.grow(2 * GIB + 4096).unwrap().ext4_after_bytes, 2 * GIB);
}

#[test]
fn a_file_system_that_was_mounted_is_checked_first() {
    let image = Image::of(|flat| {
        let folder = flat.parent().unwrap().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), vec![7; 1 << 20]).unwrap();
        let made = ["-q", "-t", "ext4", "-O", "metadata_csum,has_journal", "-d", folder.to_str().unwrap()];
        assert!(run("mke2fs", &made, flat).status.success());
        assert!(run("debugfs", &["-w", "-R", "ssv mtime now"], flat).status.success());
        // Without a check resize2fs would not begin.
        assert!(
            !run("resize2fs", &[], flat).status.success() || fs::metadata(flat).unwrap().len() == 64 << 20
        );
    });
    let files = image.contents();
    assert_eq!(files.len(), 1);
    image.grow(200 << 20).unwrap();
    assert!(image.sound(200 << 20) == files);
}

#[test]
fn what_cannot_be_grown_is_refused_and_stays_as_it_was() {
    let damaged = Image::of(|flat| {
        assert!(run("mke2fs", &["-q", "-t", "ext4"], flat).status.success());
        for request in ["clri <2>", "ssv mtime now"] {
            assert!(run("debugfs", &["-w", "-R", request], flat).status.success());
        }
    });
    let none = Image::of(|_| {});
    for (image, size, text) in [
        (&damaged, 200 << 20, "e2fsck cannot work on the ext4"),
        (&damaged, 32 << 20, "--shrink makes it smaller"),
        (&none, 200 << 20, "has no ext4"),
        (&Image::log(), GIB / 2, "--shrink makes it smaller"),
        (&Image::log(), 511, "not a multiple of 512"),
    ] {
        let before = image.files();
        let refused = image.grow(size).unwrap_err();
        assert!(refused.to_string().contains(text), "{refused}");
        assert!(image.files() == before, "{text}");
    }
    let mut sealed = Image::log();
    sealed.upper = Upper { data: sealed.lowers[0].clone(), index: None };
    assert!(matches!(sealed.grow(2 * GIB), Err(OfflineError::Sealed(_))));
}
