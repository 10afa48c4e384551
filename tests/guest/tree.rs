//! Compares a mounted file system with a list that was made of upstream's, or of what umoci unpacks.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::Read,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::Path,
};

use rustix::fs::{lgetxattr, llistxattr, major, minor};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::frame::output_of;

/// The longest value of an attribute, and the longest list of their names, that the lists know.
const ATTRIBUTE_BYTES_MAX: usize = 4096;

/// Mounts the ext4 on `device` and compares it as [`compare`] does.
///
/// # Panics
/// When it cannot be mounted, and at the first difference.
pub(crate) fn compare_device(device: &Path, list: &Path) {
    let point = tempfile::tempdir().expect("a directory to mount at");
    let [device, shown] = [device, point.path()].map(|path| path.to_str().expect("the path is text"));
    output_of("mount", &["-t", "ext4", "-o", "ro,noload", device, shown]);
    compare(point.path(), list);
    output_of("umount", &[shown]);
}

/// Compares everything below `root` with the lines of `list`: nothing may be missing, other, or more.
///
/// # Panics
/// At the first difference.
pub(crate) fn compare(root: &Path, list: &Path) {
    let listed = fs::read_to_string(list).unwrap_or_else(|error| panic!("{}: {error}", list.display()));
    let mut entries = 0;
    for line in listed.lines() {
        compare_entry(root, &serde_json::from_str(line).expect("a line is one object"));
        entries += 1;
    }
    assert!(entries > 400, "the list has only {entries} entries");
    assert_eq!(count(root), entries, "entries that the list does not have");
}

fn compare_entry(root: &Path, entry: &Value) {
    let relative = path_of(entry);
    let path = if relative == "." { root.to_owned() } else { root.join(&relative) };
    let name = &*relative.to_string_lossy();
    let found = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mtime_ns = found.mtime() * 1_000_000_000 + found.mtime_nsec();
    let mode = format!("0o{:o}", found.mode());
    assert_eq!(entry["mode"].as_str(), Some(mode.as_str()), "mode of {name}");
    assert_eq!(entry["uid"].as_u64(), Some(found.uid().into()), "owner of {name}");
    assert_eq!(entry["gid"].as_u64(), Some(found.gid().into()), "group of {name}");
    assert_eq!(entry["nlink"].as_u64(), Some(found.nlink()), "links of {name}");
    assert_eq!(entry["mtime_ns"].as_i64(), Some(mtime_ns), "time of {name}");
    let device = [major(found.rdev()), minor(found.rdev())];
    let listed_device = entry.get("rdev").map_or([0, 0], |numbers| [0, 1].map(|at| number(&numbers[at])));
    assert_eq!(listed_device, device, "device numbers of {name}");
    let listed_attributes: BTreeMap<String, String> = entry
        .get("xattr_hex")
        .map(|all| serde_json::from_value(all.clone()).expect(name))
        .unwrap_or_default();
    assert_eq!(listed_attributes, attributes(&path), "attributes of {name}");
    if let Some(sum) = entry["sha256"].as_str() {
        assert_eq!(entry["size"].as_u64(), Some(found.size()), "size of {name}");
        assert_eq!(sum, sha256(&path), "content of {name}");
    }
    if let Some(target) = entry["target"].as_str() {
        assert_eq!(fs::read_link(&path).expect(name), Path::new(target), "target of {name}");
    }
}

/// The path of an entry; in hexadecimal where it is no text.
fn path_of(entry: &Value) -> OsString {
    if let Some(text) = entry["path"].as_str() {
        return text.into();
    }
    let digits = entry["path_hex"].as_str().expect("an entry has a path");
    let byte = |at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    OsString::from_vec((0..digits.len()).step_by(2).map(|at| byte(at).expect("pairs of digits")).collect())
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|number| number.try_into().ok()).expect("a small number")
}

/// All extended attributes, each with its value in hexadecimal.
fn attributes(path: &Path) -> BTreeMap<String, String> {
    let mut names = [0; ATTRIBUTE_BYTES_MAX];
    let len = llistxattr(path, &mut names).expect("attributes can be listed");
    let names = names.get(..len).expect("they fit").split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = [0; ATTRIBUTE_BYTES_MAX];
            let len = lgetxattr(path, name, &mut value).expect("it was listed");
            let value = value.iter().take(len).map(|byte| format!("{byte:02x}")).collect();
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}

fn sha256(path: &Path) -> String {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut hash = Sha256::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = file.read(&mut piece).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if count == 0 {
            return hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        }
        hash.update(piece.get(..count).expect("a read fits its buffer"));
    }
}

/// Entries below `path` and itself.
fn count(path: &Path) -> usize {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    if !is_dir {
        return 1;
    }
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    1 + entries.map(|entry| count(&entry.expect("a directory can be read").path())).sum::<usize>()
}
