//! What the tests hold the writer against: e2fsck, the kernel, and a tree in memory.

pub(crate) mod dumped;
pub(crate) mod model;
pub(crate) mod mounted;

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use stratabd_ext4::{FileDevice, Filesystem, FormatOptions, Timestamp};
use tempfile::TempDir;

pub(crate) const OPTIONS: FormatOptions = FormatOptions {
    uuid: *b"stratabd-ext4 id",
    hash_seed: *b"stratabd ht seed",
    time: Timestamp { seconds: 1_700_000_000, nanoseconds: 0 },
};

/// An image file in a folder of its own.
pub(crate) struct Image {
    pub(crate) folder: TempDir,
    pub(crate) path: PathBuf,
}

impl Image {
    pub(crate) fn new(size_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        File::create(&path).unwrap().set_len(size_bytes).unwrap();
        Self { folder, path }
    }

    /// One that mke2fs has made.
    pub(crate) fn made_by_mke2fs(size_bytes: u64, options: &[&str]) -> Self {
        let image = Self::new(size_bytes);
        run("mke2fs", &[&["-q", "-F"], options, &[image.path.to_str().unwrap()]].concat());
        image
    }

    pub(crate) fn device(&self) -> FileDevice {
        FileDevice::new(OpenOptions::new().read(true).write(true).open(&self.path).unwrap()).unwrap()
    }

    pub(crate) fn format(&self) -> Filesystem<FileDevice> {
        Filesystem::format(self.device(), &OPTIONS).unwrap()
    }

    pub(crate) fn open(&self) -> Filesystem<FileDevice> {
        Filesystem::open(self.device()).unwrap()
    }

    /// Fails unless e2fsck has nothing to say.
    pub(crate) fn check(&self) {
        let output = output("e2fsck", &["-fn", self.path.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "e2fsck: {text}");
        // It says what it does, in five passes, and one line with numbers.
        let said: Vec<&str> = text.lines().filter(|line| !line.starts_with("Pass ")).collect();
        assert!(said.len() == 1 && said[0].contains(" files ("), "e2fsck: {text}");
    }
}

/// A number of the environment, which says how long a test is or where it begins.
pub(crate) fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

pub(crate) fn output(program: &str, arguments: &[&str]) -> Output {
    let program = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{program} is not installed"));
    Command::new(program).args(arguments).output().unwrap()
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = output(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}
