//! The offline tools: layers that change their form as upstream's tools would write it, and outputs whole or not at all.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]

#[path = "../support/fixtures.rs"]
mod fixtures;
#[path = "../support/layer_writer.rs"]
#[expect(dead_code, unreachable_pub, reason = "each test binary uses a part of the support")]
#[expect(clippy::cast_possible_truncation, reason = "the layers of tests are small")]
mod layer_writer;
#[path = "../support/sparse_archive.rs"]
mod sparse_archive;

mod commit;
mod compress;
mod diff;
mod in_use;
mod merge;
mod merge_bytes;
mod resize_ext4;
mod streamed;
mod tree;
mod writable;

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use stratabd::{
    format::lsmt::{LayerLayout, Packing, ReadOnlyLayer},
    offline::{ExtractOptions, PackOptions, Watch, extract},
};

/// A layer as it is, over whatever has its name.
const PACK: PackOptions = PackOptions {
    packing: Packing::Aligned,
    compression: None,
    tar: false,
    final_header: true,
    threads: std::num::NonZeroUsize::MIN,
    overwrite: true,
    allow_torn: false,
};

fn quiet() -> Watch<fn(u64, u64)> {
    Watch { progress: |_, _| {}, cancelled: false.into() }
}

/// A folder with one file of these bytes.
fn file_of(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// The names in a folder, hidden ones too.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn bytes(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut fs::File::open(path).unwrap(), &mut bytes).unwrap();
    bytes
}

/// Words between runs of noise, in a layer with holes.
fn sample() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(5);
    let mut flat = Vec::new();
    while flat.len() < 3 << 20 {
        match random.u8(0..3) {
            0 => flat.extend((0..5000).map(|_| random.u8(..))),
            1 => flat.extend(b"the same words over and over ".iter().cycle().take(9000)),
            _ => flat.resize(flat.len() + 20_000, 0),
        }
    }
    flat.truncate(3 << 20);
    layer_writer::lsmt_of(&flat)
}

/// The LSMT file inside a layer file, and its checked segments.
fn opened(path: &Path) -> (Vec<u8>, ReadOnlyLayer) {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    let threads = std::num::NonZeroUsize::MIN;
    extract(path, &plain, &ExtractOptions { threads, overwrite: false }, &quiet()).unwrap();
    let file = bytes(&plain);
    let layout = LayerLayout::decode(&file, &file[file.len() - 4096..], file.len() as u64).unwrap();
    let index = layout.index_range();
    let [start, end] = [index.start(), index.end()].map(|at| usize::try_from(at).unwrap());
    let layer = layout.decode_index(&file[start..end]).unwrap();
    (file, layer)
}

/// The hash of the device that the layer at `path` is over nothing.
fn flat_sha256(path: &Path) -> String {
    let (file, layer) = opened(path);
    let mut hash = Sha256::new();
    let mut at = 0;
    for segment in layer.segments() {
        hash_zeroes(&mut hash, segment.offset() - at);
        let length = u64::from(segment.length());
        if segment.zeroed() {
            hash_zeroes(&mut hash, length);
        } else {
            let [from, len] = [segment.moffset(), length].map(|it| usize::try_from(it).unwrap() * 512);
            hash.update(&file[from..from + len]);
        }
        at = segment.end();
    }
    hash_zeroes(&mut hash, layer.virtual_size_bytes() / 512 - at);
    fixtures::hex(hash.finalize().as_slice())
}

fn hash_zeroes(hash: &mut Sha256, sectors: u64) {
    let mut left = usize::try_from(sectors).unwrap() * 512;
    while left > 0 {
        let step = left.min(1 << 20);
        hash.update(&[0; 1 << 20][..step]);
        left -= step;
    }
}
