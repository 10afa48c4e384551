//! `layer compress` and `layer extract`.

use std::{
    fs,
    num::NonZeroUsize,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use stratabd::{
    format::zfile::{Algorithm, BlockFormat, Flags, Header},
    offline::{CompressOptions, ExtractOptions, OfflineError, Watch, compress, extract},
};

use crate::{bytes, file_of, fixtures::Fixture, layer_writer, names, quiet, sample};

fn options(algorithm: Algorithm, block_size: u32, tar: bool, threads: usize) -> CompressOptions {
    let format = BlockFormat::new(algorithm, block_size).unwrap();
    CompressOptions { format, tar, threads: NonZeroUsize::new(threads).unwrap(), overwrite: false }
}

fn extraction(threads: usize) -> ExtractOptions {
    ExtractOptions { threads: NonZeroUsize::new(threads).unwrap(), overwrite: false }
}

#[test]
fn a_compressed_layer_is_what_upstreams_commit_makes_of_the_same_layer() {
    for (plain, packed, block_size, tar) in [
        ("ext4/L0.lsmt.xz", "ext4/L0.z4k", 4096, false),
        ("ext4/L0.lsmt.xz", "ext4/L0.z4kmt", 4096, false),
        ("ext4/L0.lsmt.xz", "ext4/L0.zt4k", 4096, true),
        ("ext4/L0.lsmt.xz", "ext4/L0.z16k", 16_384, false),
        ("ext4/L1.lsmt.xz", "ext4/L1.z4k", 4096, false),
        ("ext4/L1.lsmt.xz", "ext4/L1.zt4k", 4096, true),
        ("ext4/L1.lsmt.xz", "ext4/L1.z32kt", 32_768, true),
    ] {
        let plain = Fixture::named(plain).read();
        let upstreams = Fixture::named(packed).read();
        let (dir, path) = file_of(&plain);
        let output = dir.path().join("out");
        let done = compress(&path, &output, &options(Algorithm::Lz4, block_size, tar, 3), &quiet()).unwrap();
        assert!(bytes(&output) == upstreams, "{packed}");
        assert_eq!((done.content_bytes, done.output_bytes), (plain.len() as u64, upstreams.len() as u64));
        let back = dir.path().join("back");
        extract(&output, &back, &extraction(2), &quiet()).unwrap();
        assert!(bytes(&back) == plain, "{packed}");
    }
}

#[test]
fn every_form_of_a_layer_of_upstream_is_taken_out_of_it() {
    for (plain, packed) in [
        ("ext4/L0.lsmt.xz", "ext4/L0.zstd4k"),
        ("ext4/L0.lsmt.xz", "ext4/L0.zstd64kt"),
        ("ext4/L0.lsmt.xz", "ext4/L0.z64k"),
        ("ext4/L1.lsmt.xz", "ext4/L1.zstd8k"),
    ] {
        let (dir, path) = file_of(&Fixture::named(packed).read());
        let output = dir.path().join("out");
        extract(&path, &output, &extraction(3), &quiet()).unwrap();
        assert!(bytes(&output) == Fixture::named(plain).read(), "{packed}");
    }
}

#[test]
fn any_number_of_threads_makes_the_same_bytes_and_any_form_becomes_any_other() {
    let layer = sample();
    let (dir, path) = file_of(&layer);
    let mut last = path;
    let mut number = 0;
    for algorithm in [Algorithm::Lz4, Algorithm::Zstd] {
        for (block_size, tar) in [(4096, false), (8192, true), (32_768, false)] {
            let outputs = [1, 2, 7].map(|threads| {
                number += 1;
                let output = dir.path().join(format!("out{number}"));
                compress(&last, &output, &options(algorithm, block_size, tar, threads), &quiet()).unwrap();
                output
            });
            assert!(bytes(&outputs[0]) == bytes(&outputs[1]) && bytes(&outputs[0]) == bytes(&outputs[2]));
            let back = dir.path().join(format!("back{number}"));
            extract(&outputs[0], &back, &extraction(4), &quiet()).unwrap();
            assert!(bytes(&back) == layer, "{algorithm:?} {block_size} {tar}");
            // The next one begins with this form.
            last = outputs.into_iter().next().unwrap();
        }
    }
}

#[test]
fn progress_goes_up_to_the_whole_and_an_empty_layer_is_one() {
    let (dir, path) = file_of(&sample());
    let told = AtomicU64::new(0);
    let watch = Watch {
        progress: |done: u64, total: u64| {
            assert!(told.swap(done, Ordering::Relaxed) < done && done <= total);
        },
        cancelled: false.into(),
    };
    let done =
        compress(&path, &dir.path().join("out"), &options(Algorithm::Lz4, 4096, true, 2), &watch).unwrap();
    assert_eq!(told.load(Ordering::Relaxed), done.content_bytes);

    let empty = Fixture::named("lsmt/empty.lsmt").read();
    let (dir, path) = file_of(&empty);
    let (packed, back) = (dir.path().join("packed"), dir.path().join("back"));
    compress(&path, &packed, &options(Algorithm::Zstd, 65_536, true, 2), &quiet()).unwrap();
    extract(&packed, &back, &extraction(1), &quiet()).unwrap();
    assert!(bytes(&back) == empty);
}

#[test]
fn what_is_there_is_replaced_only_on_request_and_as_a_whole() {
    let (dir, path) = file_of(&sample());
    let output = dir.path().join("out");
    fs::write(&output, "precious").unwrap();
    let options = options(Algorithm::Lz4, 4096, false, 2);
    let refused = compress(&path, &output, &options, &quiet()).unwrap_err();
    assert!(matches!(refused, OfflineError::Exists(_)), "{refused}");
    assert_eq!(bytes(&output), b"precious");
    compress(&path, &output, &CompressOptions { overwrite: true, ..options }, &quiet()).unwrap();
    assert_ne!(bytes(&output), b"precious");
    // Its own input, too: what is read stays until all of the new file is there.
    let before = bytes(&path);
    compress(&path, &path, &CompressOptions { overwrite: true, ..options }, &quiet()).unwrap();
    assert!(bytes(&path) == bytes(&output));
    extract(&path, &path, &ExtractOptions { overwrite: true, ..extraction(2) }, &quiet()).unwrap();
    assert!(bytes(&path) == before);
    for odd in [dir.path().to_owned(), PathBuf::from("/dev/null"), dir.path().join("..")] {
        let refused = compress(&path, &odd, &CompressOptions { overwrite: true, ..options }, &quiet());
        assert!(matches!(refused, Err(OfflineError::NotReplaceable(_))), "{odd:?}");
    }
    assert_eq!(names(dir.path()), ["layer", "out"]);
}

#[test]
fn a_part_that_a_killed_tool_has_left_is_in_nobodys_way_and_what_is_private_stays_so() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, path) = file_of(&sample());
    let output = dir.path().join("out");
    let options = options(Algorithm::Lz4, 4096, false, 2);
    // As one of the same number would have called it.
    fs::write(dir.path().join(format!(".out.{}.part", std::process::id())), "left").unwrap();
    compress(&path, &output, &options, &quiet()).unwrap();
    fs::set_permissions(&output, fs::Permissions::from_mode(0o600)).unwrap();
    let tar = CompressOptions { overwrite: true, tar: true, ..options };
    compress(&path, &output, &tar, &quiet()).unwrap();
    assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o600);
    // The digest of a layer does not depend on what was there before it.
    let new = dir.path().join("new");
    compress(&path, &new, &tar, &quiet()).unwrap();
    assert_eq!(bytes(&output)[1124..1130], *b"100644");
    assert!(bytes(&output) == bytes(&new));
}

#[test]
fn a_table_of_blocks_that_would_fill_the_memory_is_not_read() {
    let index_count = (64 << 20) + 1;
    let header = Header {
        flags: Flags::HEADER.union(Flags::DATA).union(Flags::FINAL),
        index_offset: 512,
        index_count,
        content_bytes: index_count * 4096,
        index_crc: 0,
        block_size: 4096,
        algorithm: 1,
        level: 0,
        uses_dictionary: false,
        dictionary_bytes: 0,
        verify: true,
    };
    let (dir, path) = file_of(&header.encode());
    fs::File::options().write(true).open(&path).unwrap().set_len(512 + index_count * 4 + 512).unwrap();
    let refused =
        compress(&path, &dir.path().join("out"), &options(Algorithm::Lz4, 4096, false, 1), &quiet());
    assert!(matches!(refused, Err(OfflineError::TableTooLarge(..))), "{refused:?}");
}

#[test]
fn more_threads_than_there_can_be_are_no_failure() {
    let (dir, path) = file_of(&sample());
    let [many, one] = ["many", "one"].map(|name| dir.path().join(name));
    compress(&path, &many, &options(Algorithm::Lz4, 4096, false, 100_000), &quiet()).unwrap();
    compress(&path, &one, &options(Algorithm::Lz4, 4096, false, 1), &quiet()).unwrap();
    assert!(bytes(&many) == bytes(&one));
}

#[test]
fn whatever_goes_wrong_leaves_nothing_and_names_file_and_rule() {
    let noise: Vec<u8> = {
        let mut random = fastrand::Rng::with_seed(9);
        (0..1 << 20).map(|_| random.u8(..)).collect()
    };
    let incompressible = layer_writer::lsmt_of(&noise);
    let mut damaged = layer_writer::zfile(&sample(), layer_writer::Algorithm::Lz4, 4096);
    damaged[100_000] ^= 1;
    let mut cut = layer_writer::tar(&damaged);
    cut.truncate(200_000);
    for (input, block_size, wanted) in [
        (&incompressible, 65_536, "use blocks of 32 KiB or less"),
        (&damaged, 4096, "checksum"),
        (&cut, 4096, "envelope"),
        (&noise, 4096, "not a sealed overlaybd layer"),
        (&Vec::new(), 4096, "not a sealed overlaybd layer"),
    ] {
        let (dir, path) = file_of(input);
        let output = dir.path().join("out");
        let failed =
            compress(&path, &output, &options(Algorithm::Lz4, block_size, true, 2), &quiet()).unwrap_err();
        let cause = std::error::Error::source(&failed).map_or_else(String::new, ToString::to_string);
        let text = format!("{failed}: {cause}");
        assert!(text.contains(wanted) && text.contains(path.to_str().unwrap()), "{text}");
        if wanted != "use blocks of 32 KiB or less" {
            assert!(extract(&path, &output, &extraction(2), &quiet()).is_err());
        }
        assert_eq!(names(dir.path()), ["layer"]);
    }
}

#[test]
fn a_tool_that_is_ended_leaves_nothing() {
    let (dir, path) = file_of(&sample());
    let watch = quiet();
    watch.cancelled.store(true, Ordering::Relaxed);
    let output = dir.path().join("out");
    let ended = compress(&path, &output, &options(Algorithm::Lz4, 4096, true, 2), &watch);
    assert!(matches!(ended, Err(OfflineError::Cancelled)));
    let ended = extract(&path, &output, &extraction(2), &watch);
    assert!(matches!(ended, Err(OfflineError::Cancelled)));
    assert_eq!(names(dir.path()), ["layer"]);
}
