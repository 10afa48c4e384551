//! Images on loop devices, archives made by hand, and trees put into words.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fmt::Write,
    fs::{self, File, OpenOptions},
    io::{BufReader, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use rustix::fs::{lgetxattr, llistxattr};
use sha2::{Digest, Sha256};
use stratabd_ext4::{FileDevice, Filesystem, FormatOptions, Timestamp};
use tempfile::TempDir;

pub(crate) const OPTIONS: FormatOptions = FormatOptions {
    uuid: *b"stratabd-convert",
    hash_seed: *b"stratabd ht seed",
    time: Timestamp { seconds: 1_700_000_000, nanoseconds: 0 },
};
const SIZE_BYTES: u64 = 64 << 20;

/// A file for a file system, in a folder of its own.
pub(crate) struct Image {
    folder: TempDir,
    path: PathBuf,
}

impl Image {
    pub(crate) fn new() -> Self {
        Self::of(SIZE_BYTES)
    }

    pub(crate) fn of(size_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        File::create(&path).unwrap().set_len(size_bytes).unwrap();
        Self { folder, path }
    }

    pub(crate) fn made_by_mke2fs() -> Self {
        let image = Self::new();
        assert!(output("mke2fs", &["-q", "-F", "-t", "ext4", image.path.to_str().unwrap()]).status.success());
        image
    }

    pub(crate) fn format(&self) -> Filesystem<FileDevice> {
        Filesystem::format(self.device(), &OPTIONS).unwrap()
    }

    pub(crate) fn open(&self) -> Filesystem<FileDevice> {
        Filesystem::open(self.device()).unwrap()
    }

    fn device(&self) -> FileDevice {
        FileDevice::new(OpenOptions::new().read(true).write(true).open(&self.path).unwrap()).unwrap()
    }

    /// Fails unless e2fsck has nothing to say.
    pub(crate) fn check(&self) {
        let output = output("e2fsck", &["-fn", self.path.to_str().unwrap()]);
        assert!(output.status.success(), "e2fsck: {}", String::from_utf8_lossy(&output.stdout));
    }

    /// `None` where this process may not mount: then e2fsck stands alone.
    pub(crate) fn mount(&self, mode: &str) -> Option<Mounted> {
        let at = self.folder.path().join("mounted");
        fs::create_dir_all(&at).unwrap();
        let options = format!("loop,{mode}");
        let mounted = output("mount", &["-o", &options, self.path.to_str().unwrap(), at.to_str().unwrap()]);
        if !mounted.status.success() {
            eprintln!("not compared: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Mounted { at })
    }
}

/// A mount, until it is dropped.
pub(crate) struct Mounted {
    at: PathBuf,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        output("umount", &[self.at.to_str().unwrap()]);
    }
}

impl Mounted {
    /// Has GNU tar extract an archive.
    pub(crate) fn extract(&self, archive: &[u8]) {
        let file = self.at.with_file_name("archive");
        fs::write(&file, archive).unwrap();
        let options = [
            "--delay-directory-restore",
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "--same-owner",
            "-xpf",
        ];
        let places = [file.to_str().unwrap(), "-C", self.at.to_str().unwrap()];
        let output = output("tar", &[&options[..], &places].concat());
        assert!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Everything but the root and lost+found, by path: one line with all that a user could see.
    pub(crate) fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        let mut names_of: HashMap<u64, Vec<String>> = HashMap::new();
        let mut pending = vec![self.at.clone()];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name =
                    path.strip_prefix(&self.at).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
                if name == "lost+found" {
                    continue;
                }
                let metadata = fs::symlink_metadata(&path).unwrap();
                if metadata.is_dir() {
                    pending.push(path.clone());
                } else {
                    names_of.entry(metadata.ino()).or_default().push(name.clone());
                }
                tree.insert(name, line(&path));
            }
        }
        for names in names_of.values_mut() {
            names.sort();
            for name in names.iter() {
                write!(tree.get_mut(name).unwrap(), " = {}", names.join(" ")).unwrap();
            }
        }
        tree
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.at.join(name)).unwrap()
    }
}

fn line(path: &Path) -> String {
    let found = fs::symlink_metadata(path).unwrap();
    let (mode, owner, time) = (found.mode(), (found.uid(), found.gid()), (found.mtime(), found.mtime_nsec()));
    let mut line = format!("{mode:o} {owner:?} {time:?} {}", found.rdev());
    if found.is_file() {
        let mut content = Vec::new();
        File::open(path).unwrap().read_to_end(&mut content).unwrap();
        write!(line, " {} {:x}", content.len(), Sha256::digest(content)).unwrap();
    } else if found.is_symlink() {
        write!(line, " -> {}", fs::read_link(path).unwrap().display()).unwrap();
    }
    let mut names = vec![0; 65536];
    let length = llistxattr(path, &mut names[..]).unwrap();
    let mut names: Vec<_> =
        names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    for name in names {
        let mut value = vec![0; 65536];
        let length = lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        write!(line, " {}={}", name.escape_ascii(), value[..length].escape_ascii()).unwrap();
    }
    line
}

fn output(program: &str, arguments: &[&str]) -> Output {
    let program = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{program} is not installed"));
    Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// One of the archives that other programs wrote.
pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/archive");
    let stored = File::open(folder.join(name).with_added_extension("tar.xz")).unwrap();
    let mut archive = Vec::new();
    lzma_rs::xz_decompress(&mut BufReader::new(stored), &mut archive).unwrap();
    archive
}

/// Entries of an archive: a name, a type, and content or the target of a link.
pub(crate) fn archive(entries: &[(&str, u8, &str)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, kind, about) in entries {
        if name.len() > 100 {
            archive.extend(&self::archive(&[("././@LongLink", b'L', name)])[..]);
            archive.truncate(archive.len() - 1024);
        }
        let has_body = matches!(*kind, b'0' | b'L');
        let size = if has_body { about.len() } else { 0 };
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name.as_bytes()[..name.len().min(100)]);
        put(100, if *kind == b'5' { b"0000755\0" } else { b"0000644\0" });
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"14524537400\0");
        put(148, b"        ");
        put(156, &[*kind]);
        put(257, b"ustar\x0000");
        if !has_body {
            put(157, about.as_bytes());
        }
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend(block);
        archive.extend(&about.as_bytes()[..size]);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}
