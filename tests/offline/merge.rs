//! `layer merge` and `layer flatten`: a stack is one layer with the same device.

use std::{fs, num::NonZeroUsize, path::PathBuf};

use stratabd::{
    format::{
        lsmt::Packing,
        zfile::{Algorithm, BlockFormat},
    },
    offline::{Naming, OfflineError, PackOptions, Stack, Upper, merge},
};

use crate::{
    bytes,
    fixtures::{Fixture, tar_members},
    flat_sha256, layer_writer, opened, quiet,
};

fn options(packing: Packing, threads: usize) -> PackOptions {
    let compression = Some(BlockFormat::new(Algorithm::Lz4, 4096).unwrap());
    let threads = NonZeroUsize::new(threads).unwrap();
    PackOptions {
        packing,
        compression,
        tar: true,
        final_header: true,
        threads,
        overwrite: true,
        allow_torn: false,
    }
}

/// A folder with these files in it.
fn folder(files: &[Vec<u8>]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let paths = files.iter().enumerate().map(|(number, bytes)| {
        let path = dir.path().join(format!("{number}"));
        fs::write(&path, bytes).unwrap();
        path
    });
    let paths = paths.collect();
    (dir, paths)
}

fn fixtures(files: &[&str]) -> (tempfile::TempDir, Vec<PathBuf>) {
    folder(&files.iter().map(|file| Fixture::named(file).read()).collect::<Vec<_>>())
}

fn flattened(stack: &Stack, dir: &tempfile::TempDir, packing: Packing) -> String {
    let out = dir.path().join("out");
    merge(stack, &out, &Naming::default(), &options(packing, 3), &quiet()).unwrap();
    let made = bytes(&out);
    merge(stack, &out, &Naming::default(), &options(packing, 1), &quiet()).unwrap();
    assert!(bytes(&out) == made, "one thread makes other bytes than three");
    flat_sha256(&out)
}

const BOTH: [Packing; 2] = [Packing::AsUpstream, Packing::Aligned];

#[test]
fn merged_stacks_are_the_devices_of_the_manifest() {
    for (files, flat) in [
        (
            &["ext4/L0.zstd4k", "ext4/L1.zt4k", "ext4/L2.sealed.xz"][..],
            "c05be42ddd17d380d411757a8a44d21dd0a95a73e90b46587550e58b12779fd9",
        ),
        (
            &["lsmt/g0.lsmt.xz", "lsmt/g1.lsmt", "lsmt/g2.lsmt"],
            "d3ef24f010a5fbbe4e130b98092599fd17198bf30dd6a1da90b71505cd3df84f",
        ),
    ] {
        let (dir, lowers) = fixtures(files);
        for packing in BOTH {
            let stack = Stack { lowers: lowers.clone(), upper: None };
            assert_eq!(flattened(&stack, &dir, packing), flat, "{files:?} {packing:?}");
        }
    }
}

#[test]
fn as_many_layers_as_there_may_be_are_merged_and_no_more() {
    let archive = Fixture::named("lsmt/stack256.tar.xz");
    let bytes = archive.read();
    let layers: Vec<_> = tar_members(&bytes).into_iter().map(<[u8]>::to_vec).collect();
    let (dir, lowers) = folder(&layers);
    let stack = Stack { lowers: lowers[..255].to_vec(), upper: None };
    assert_eq!(Some(flattened(&stack, &dir, Packing::Aligned)), archive.flat_sha256);
    let stack = Stack { lowers, upper: None };
    let options = options(Packing::Aligned, 2);
    let refused = merge(&stack, &dir.path().join("out"), &Naming::default(), &options, &quiet());
    assert!(matches!(refused, Err(OfflineError::TooManyLayers(256))), "{refused:?}");
    let nothing = merge(&Stack::default(), &dir.path().join("out"), &Naming::default(), &options, &quiet());
    assert!(matches!(nothing, Err(OfflineError::NoLayers)), "{nothing:?}");
}

#[test]
fn a_stack_is_flattened_with_what_was_written_above_it() {
    for (files, flat) in [
        (
            ["lsmt/g0.lsmt.xz", "lsmt/g1.rw.d.xz", "lsmt/g1.rw.i.xz"],
            "13202a5a7e9cf0d3ddcf694bea46f45987cef1f650c4562b8846ebf3a18bce01",
        ),
        (
            ["ext4/L0.z64k", "ext4/rw1.d.xz", "ext4/rw1.i"],
            "a2cbed8b08692468295794111ded9df4b453bb25fb41c9c5f0c155f5bba1ccbf",
        ),
    ] {
        let (dir, paths) = fixtures(&files);
        let [lower, data, index] = paths.try_into().unwrap();
        let stack = Stack { lowers: vec![lower], upper: Some(Upper { data, index: Some(index) }) };
        for packing in BOTH {
            assert_eq!(flattened(&stack, &dir, packing), flat, "{files:?} {packing:?}");
        }
        // The upper alone is a stack too.
        let alone = Stack { lowers: Vec::new(), ..stack };
        assert_eq!(flattened(&alone, &dir, Packing::Aligned).len(), 64);
    }
}

#[test]
fn a_stack_that_is_merged_as_upstream_does_is_upstreams_file() {
    let files = ["lsmt/tiny.lsmt", "merge/middle.lsmt", "merge/top.d", "merge/top.i"];
    let (dir, paths) = fixtures(&files);
    let [low, middle, data, index] = paths.try_into().unwrap();
    let top = Upper { data, index: Some(index) };
    let plain = PackOptions { compression: None, tar: false, ..options(Packing::AsUpstream, 2) };
    for (upper, fixture) in [(None, "merge/merged.lsmt"), (Some(top), "merge/flattened.lsmt")] {
        let stack = Stack { lowers: vec![low.clone(), middle.clone()], upper };
        let out = dir.path().join("out");
        merge(&stack, &out, &Naming::default(), &plain, &quiet()).unwrap();
        assert!(bytes(&out) == Fixture::named(fixture).read(), "{fixture}");
        assert_eq!(Some(flattened(&stack, &dir, Packing::Aligned)), Fixture::named(fixture).flat_sha256);
    }
}

#[test]
fn a_merged_layer_stands_for_its_stack() {
    let (dir, lowers) = fixtures(&["ext4/L1.z4k", "ext4/L2.z4k"]);
    let stack = Stack { lowers, upper: None };
    flattened(&stack, &dir, Packing::Aligned);
    let (_, layer) = opened(&dir.path().join("out"));
    let trailer = *layer.layout().trailer();
    assert_eq!(trailer.uuid.unwrap().to_string(), "ABC00002-1111-2222-3333-000000000002");
    assert_eq!(trailer.parent_uuid.unwrap().to_string(), "ABC00000-1111-2222-3333-000000000000");
}

#[test]
fn what_lies_past_the_end_of_the_device_is_kept_and_a_size_of_none_is_inherited() {
    let page = [9; 4096];
    let low = layer_writer::lsmt(1 << 20, &[(0, Ok(&page)), (2040, Ok(&page))]);
    let small = layer_writer::lsmt(1 << 19, &[(8, Ok(&page))]);
    let inherits = layer_writer::lsmt(0, &[(16, Err(8))]);
    let (dir, lowers) = folder(&[low, small, inherits]);
    let out = dir.path().join("out");
    let stack = Stack { lowers, upper: None };
    merge(&stack, &out, &Naming::default(), &options(Packing::Aligned, 1), &quiet()).unwrap();
    let (_, layer) = opened(&out);
    assert_eq!(layer.virtual_size_bytes(), 1 << 19);
    assert_eq!(layer.segments().last().unwrap().end(), 2048);
}
