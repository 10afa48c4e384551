//! Layers whose parts come in any order: read back by this project's tools, and by upstream's order of parts.

use std::{
    fs::{self, File},
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
};

use sha2::{Digest, Sha256};
use stratabd::{
    format::{
        lsmt::{LayerIdentity, UserTag},
        zfile::{Algorithm, BlockFormat},
    },
    offline::{OfflineError, StackReader, StreamedLayer},
};

const DEVICE_BYTES: usize = 8 << 20;

fn begin(path: &PathBuf, threads: usize) -> StreamedLayer {
    let file = Arc::new(File::create(path).unwrap());
    let format = BlockFormat::new(Algorithm::Lz4, 4096).unwrap();
    let identity = LayerIdentity {
        uuid: None,
        parent_uuid: None,
        virtual_size_bytes: DEVICE_BYTES as u64,
        user_tag: UserTag::default(),
    };
    StreamedLayer::begin(file, path.clone(), &identity, format, NonZeroUsize::new(threads).unwrap()).unwrap()
}

/// Puts random parts over one another into `layer`, and into what the device is to be.
fn scribble(layer: &mut StreamedLayer, device: &mut [u8], seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..200 {
        let pages = DEVICE_BYTES / 4096;
        let (first, count) = (random.usize(..pages), random.usize(1..300));
        let (start, end) = (first * 4096, (first + count).min(pages) * 4096);
        let part = &mut device[start..end];
        if random.u8(..4) == 0 {
            part.fill(0);
            layer.zero(start as u64, part.len() as u64).unwrap();
        } else {
            let byte = random.u8(1..);
            part.iter_mut()
                .enumerate()
                .for_each(|(at, dest)| *dest = byte.wrapping_add((at >> 3).to_le_bytes()[0]) | 1);
            layer.write(start as u64, part).unwrap();
        }
        assert!(layer.has(start as u64, 4096) && layer.has(end as u64 - 1, 1));
    }
}

#[test]
fn parts_in_any_order_make_the_device_that_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [0, 1, 2].map(|number| dir.path().join(format!("layer{number}")));
    let mut device = vec![0; DEVICE_BYTES];
    for (seed, path) in paths.iter().enumerate() {
        let mut layer = begin(path, 3);
        scribble(&mut layer, &mut device, seed as u64);
        assert_eq!(layer.finish().unwrap(), path.metadata().unwrap().len());
        let mut reader = StackReader::open(&paths[..=seed]).unwrap();
        assert_eq!(reader.size_bytes(), DEVICE_BYTES as u64);
        let mut read = vec![9; DEVICE_BYTES];
        reader.read(0, &mut read).unwrap();
        assert!(read == device, "layer {seed}");
        reader.read(5 << 20, &mut read[..4096]).unwrap();
        assert!(read[..4096] == device[5 << 20..][..4096]);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the layers are small")]
fn the_number_of_threads_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let digests = [1, 4].map(|threads| {
        let path = dir.path().join(threads.to_string());
        let mut layer = begin(&path, threads);
        scribble(&mut layer, &mut vec![0; DEVICE_BYTES], 7);
        layer.finish().unwrap();
        Sha256::digest(fs::read(&path).unwrap())
    });
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn a_layer_without_parts_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty");
    let layer = begin(&path, 1);
    assert!(!layer.has(0, DEVICE_BYTES as u64));
    layer.finish().unwrap();
    assert_eq!(StackReader::open(&[path]).unwrap().size_bytes(), DEVICE_BYTES as u64);
}

#[test]
fn a_file_that_cannot_be_written_is_the_error_that_is_told() {
    let full = PathBuf::from("/dev/full");
    let mut layer = begin(&full, 2);
    let told = (0..1000)
        .find_map(|page| layer.write(page * 4096, &[7; 4096]).err())
        .or_else(|| layer.finish().err());
    assert!(matches!(&told, Some(OfflineError::Io { path, .. }) if *path == full), "{told:?}");
}
