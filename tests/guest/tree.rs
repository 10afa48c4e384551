//! Compares a mounted file system with the list that was made of upstream's.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::Path,
};

use serde_json::Value;
use sha2::{Digest, Sha256};

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
    let name = entry["path"].as_str().expect("an entry has a path");
    let path = if name == "." { root.to_owned() } else { root.join(name) };
    let found = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mtime_ns = found.mtime() * 1_000_000_000 + found.mtime_nsec();
    let mode = format!("0o{:o}", found.mode());
    assert_eq!(entry["mode"].as_str(), Some(mode.as_str()), "mode of {name}");
    assert_eq!(entry["uid"].as_u64(), Some(found.uid().into()), "owner of {name}");
    assert_eq!(entry["gid"].as_u64(), Some(found.gid().into()), "group of {name}");
    assert_eq!(entry["nlink"].as_u64(), Some(found.nlink()), "links of {name}");
    assert_eq!(entry["mtime_ns"].as_i64(), Some(mtime_ns), "time of {name}");
    if let Some(sum) = entry["sha256"].as_str() {
        assert_eq!(entry["size"].as_u64(), Some(found.size()), "size of {name}");
        assert_eq!(sum, sha256(&path), "content of {name}");
    }
    if let Some(target) = entry["target"].as_str() {
        assert_eq!(fs::read_link(&path).expect(name), Path::new(target), "target of {name}");
    }
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
