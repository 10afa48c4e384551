//! The layers that upstream's tools wrote, with what `manifest.jsonl` says of them.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// One line of the manifest.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Fixture {
    /// Path below the folder of fixtures; `.xz` means that the file is stored compressed.
    pub(crate) file: String,
    /// Size in bytes once decompressed.
    pub(crate) bytes: u64,
    /// Hash of the file once decompressed.
    pub(crate) sha256: String,
    /// Hash of the device or the content that the file stands for.
    pub(crate) flat_sha256: Option<String>,
}

impl Fixture {
    /// All fixtures that are kept here. The manifest lists some more.
    pub(crate) fn all() -> Vec<Self> {
        let manifest = text(&folder().join("manifest.jsonl"));
        let all = manifest.lines().map(|line| serde_json::from_str::<Self>(line).unwrap());
        all.filter(|fixture| folder().join(&fixture.file).exists()).collect()
    }

    /// The fixture of this name.
    pub(crate) fn named(file: &str) -> Self {
        Self::all().into_iter().find(|fixture| fixture.file == file).expect(file)
    }

    /// The file's bytes, decompressed and checked against the manifest.
    pub(crate) fn read(&self) -> Vec<u8> {
        let mut stored = BufReader::new(File::open(folder().join(&self.file)).unwrap());
        let mut bytes = Vec::new();
        if self.file.ends_with(".xz") {
            lzma_rs::xz_decompress(&mut stored, &mut bytes).unwrap();
        } else {
            stored.read_to_end(&mut bytes).unwrap();
        }
        assert_eq!(bytes.len() as u64, self.bytes, "{}", self.file);
        assert_eq!(sha256(&bytes), self.sha256, "{}", self.file);
        bytes
    }
}

/// The files of a plain tar archive, in order: each size is the octal field of a header, nothing else is in there.
pub(crate) fn tar_members(archive: &[u8]) -> Vec<&[u8]> {
    let mut members = Vec::new();
    let mut rest = archive;
    while rest.len() > 512 && rest[0] != 0 {
        let digits = std::str::from_utf8(&rest[124..135]).unwrap();
        let size = usize::from_str_radix(digits, 8).unwrap();
        members.push(&rest[512..512 + size]);
        rest = &rest[512 + size.next_multiple_of(512)..];
    }
    members
}

/// Hash as lower-case hexadecimal text.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}

/// Lower-case hexadecimal text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn folder() -> PathBuf {
    // Tests of the command line tool are one folder down.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    [package.join("tests/fixtures"), package.join("../tests/fixtures")]
        .into_iter()
        .find(|dir| dir.exists())
        .unwrap()
}

fn text(path: &Path) -> String {
    let mut text = String::new();
    File::open(path).unwrap().read_to_string(&mut text).unwrap();
    text
}
