//! `layer commit`: as upstream's tool byte for byte, or better and with the same device.

use std::{
    fs::{self, File},
    io::Write,
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use stratabd::{
    format::{
        lsmt::{Header, Packing, Segment, UserTag, data_header, index_header},
        uuid::Uuid,
        zfile::{Algorithm, BlockFormat},
    },
    offline::{Committed, Naming, OfflineError, PackOptions, Upper, commit, resize, seal},
};

use crate::{
    bytes, file_of,
    fixtures::{Fixture, sha256},
    flat_sha256, layer_writer, names, opened, quiet, sample,
    sparse_archive::unpack_sparse,
};

fn options(packing: Packing, compression: Option<(Algorithm, u32)>) -> PackOptions {
    let compression = compression.map(|(algorithm, size)| BlockFormat::new(algorithm, size).unwrap());
    PackOptions {
        packing,
        compression,
        tar: false,
        final_header: true,
        threads: NonZeroUsize::new(3).unwrap(),
        overwrite: false,
        allow_torn: false,
    }
}

const UPSTREAM: Packing = Packing::AsUpstream;

/// The UUID and the parent of the fixture with this number, and its message.
fn naming(number: u64, parent: bool, message: &str) -> Naming {
    let uuid = |number: u64| format!("abc{number:05x}-1111-2222-3333-{number:012x}").parse().unwrap();
    Naming {
        uuid: Some(uuid(number)),
        parent_uuid: parent.then(|| uuid(number - 1)),
        message: UserTag::new(message.as_bytes()),
    }
}

/// The writable pair of these fixtures, in a folder of their own.
fn pair(data: &str, index: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let [data, index] = [(data, "data"), (index, "index")].map(|(fixture, name)| {
        let path = dir.path().join(name);
        fs::write(&path, Fixture::named(fixture).read()).unwrap();
        path
    });
    (dir, data, index)
}

fn committed(
    data: &Path,
    index: Option<&Path>,
    naming: &Naming,
    options: &PackOptions,
) -> (PathBuf, Committed) {
    let output = data.with_file_name("out");
    let _ = fs::remove_file(&output);
    let done = commit(data, index, &output, naming, options, &quiet()).unwrap();
    assert_eq!(fs::metadata(&output).unwrap().len(), done.output_bytes);
    (output, done)
}

#[test]
fn a_pair_is_committed_byte_for_byte_as_upstream_commits_it() {
    let g1 = (("lsmt/g1.rw.d.xz", "lsmt/g1.rw.i.xz"), "lsmt/g1.lsmt", naming(0xc9, true, ""));
    let rw1 = |file| (("ext4/rw1.d.xz", "ext4/rw1.i"), file, naming(1, true, "layer 1"));
    for ((pair_of, fixture, naming), compression, tar) in [
        (g1, None, false),
        (rw1("ext4/L1.lsmt.xz"), None, false),
        (rw1("ext4/L1.z4k"), Some((Algorithm::Lz4, 4096)), false),
        (rw1("ext4/L1.zt4k"), Some((Algorithm::Lz4, 4096)), true),
        (rw1("ext4/L1.z32kt"), Some((Algorithm::Lz4, 32_768)), true),
    ] {
        let (_dir, data, index) = pair(pair_of.0, pair_of.1);
        let options = PackOptions { tar, ..options(UPSTREAM, compression) };
        let (output, done) = committed(&data, Some(&index), &naming, &options);
        assert!(bytes(&output) == Fixture::named(fixture).read(), "{fixture}");
        assert_eq!(done.torn_entries, 0);
    }
}

#[test]
fn a_sealed_layer_and_a_committed_one_are_committed_again_as_upstream_does() {
    let (_dir, sealed) = file_of(&Fixture::named("ext4/L2.sealed.xz").read());
    let (output, _) = committed(&sealed, None, &Naming::default(), &options(UPSTREAM, None));
    assert!(bytes(&output) == Fixture::named("ext4/L2.recommit.xz").read());
    for (file, number) in [("ext4/L0.zstd4k", 0), ("ext4/L2.zt4k", 2)] {
        let (_dir, layer) = file_of(&Fixture::named(file).read());
        let naming = naming(number, number > 0, &format!("layer {number}"));
        let (output, _) = committed(&layer, None, &naming, &options(UPSTREAM, None));
        assert!(bytes(&output) == Fixture::named(&format!("ext4/L{number}.lsmt.xz")).read(), "{file}");
    }
}

#[test]
fn a_sparse_layer_is_committed_with_what_the_file_system_keeps_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let fixture = Fixture::named("lsmt/gs-sparse.tar.xz");
    unpack_sparse(&fixture.read(), &data);
    for packing in [UPSTREAM, Packing::Aligned] {
        let (output, done) = committed(&data, None, &Naming::default(), &options(packing, None));
        assert_eq!(Some(flat_sha256(&output)), fixture.flat_sha256, "{packing:?}");
        assert!(done.data_bytes < 1 << 20, "holes are not data: {}", done.data_bytes);
    }
    // Upstream's tool names an index file here too, which is empty.
    let index = dir.path().join("index");
    File::create(&index).unwrap();
    let options = options(UPSTREAM, None);
    let again = PackOptions { overwrite: true, ..options };
    committed(&data, Some(&index), &Naming::default(), &again);
}

/// How many pages of the device lie in more than one page of the file, and how many pages of data are zero.
fn faults(path: &Path) -> (usize, usize) {
    let (file, layer) = opened(path);
    let mut pages = std::collections::BTreeMap::<u64, Vec<u64>>::new();
    let mut zero_pages = 0;
    for segment in layer.segments().iter().filter(|segment| !segment.zeroed()) {
        for step in 0..u64::from(segment.length()) {
            let places = pages.entry((segment.offset() + step) / 8).or_default();
            places.push((segment.moffset() + step) / 8);
        }
        let data = usize::try_from(segment.moffset()).unwrap() * 512;
        let head = usize::try_from(segment.offset().next_multiple_of(8) - segment.offset()).unwrap() * 512;
        let end = data + segment.length() as usize * 512;
        let mut at = data + head;
        while at + 4096 <= end {
            zero_pages += usize::from(file[at..at + 4096] == [0; 4096]);
            at += 4096;
        }
    }
    let split = pages.values().filter(|places| places.iter().any(|place| *place != places[0])).count();
    (split, zero_pages)
}

#[test]
fn a_layer_of_ours_keeps_pages_whole_leaves_zeroes_out_and_is_the_same_device() {
    for (data, index, flat_of) in [
        ("lsmt/g1.rw.d.xz", Some("lsmt/g1.rw.i.xz"), "lsmt/g1.lsmt"),
        ("ext4/rw1.d.xz", Some("ext4/rw1.i"), "ext4/L1.lsmt.xz"),
        ("ext4/L0.z16k", None, "ext4/L0.lsmt.xz"),
        ("ext4/L2.sealed.xz", None, "ext4/L2.lsmt.xz"),
        ("lsmt/tiny.lsmt", None, "lsmt/tiny.lsmt"),
        ("lsmt/empty.lsmt", None, "lsmt/empty.lsmt"),
    ] {
        let (_dir, data, index_path) = pair(data, index.unwrap_or("lsmt/empty.lsmt"));
        let index = index.map(|_| index_path.as_path());
        let flat = Fixture::named(flat_of).flat_sha256.unwrap();
        let mut sizes = Vec::new();
        for compression in [None, Some((Algorithm::Lz4, 4096)), Some((Algorithm::Zstd, 32_768))] {
            let ours = options(Packing::Aligned, compression);
            let (output, done) = committed(&data, index, &Naming::default(), &ours);
            assert_eq!(flat_sha256(&output), flat, "{flat_of} {compression:?}");
            assert_eq!(faults(&output), (0, 0), "{flat_of} {compression:?}");
            let made = bytes(&output);
            for threads in [1, 7] {
                let again = PackOptions { threads: NonZeroUsize::new(threads).unwrap(), ..ours };
                let (output, _) = committed(&data, index, &Naming::default(), &again);
                assert!(bytes(&output) == made, "{flat_of} {compression:?} {threads} threads");
            }
            let upstreams = options(UPSTREAM, compression);
            let (_, theirs) = committed(&data, index, &Naming::default(), &upstreams);
            sizes.push((done.output_bytes, theirs.output_bytes));
        }
        println!("{flat_of}: plain, lz4, zstd, of ours and of upstream's: {sizes:?}");
    }
}

#[test]
fn a_layer_of_ours_says_what_its_source_says_unless_told_otherwise() {
    let (_dir, data, index) = pair("ext4/rw1.d.xz", "ext4/rw1.i");
    let ours = options(Packing::Aligned, None);
    let (output, _) = committed(&data, Some(&index), &naming(1, true, "layer 1"), &ours);
    let (_dir, layer) = file_of(&bytes(&output));
    let (output, _) = committed(&layer, None, &Naming::default(), &ours);
    assert!(bytes(&output) == bytes(&layer), "a layer of ours that is committed again is the same");
    let (_, again) = opened(&output);
    let trailer = *again.layout().trailer();
    assert_eq!(trailer.uuid, naming(1, true, "").uuid);
    assert_eq!(trailer.parent_uuid, naming(1, true, "").parent_uuid);
    assert_eq!(trailer.user_tag.text(), b"layer 1");
}

#[test]
fn a_torn_tail_is_left_out_only_where_that_is_allowed_and_a_lost_index_is_missed() {
    let (_dir, data, index) = pair("lsmt/g1.rw.d.xz", "lsmt/g1.rw.i.xz");
    let whole = fs::metadata(&data).unwrap().len();
    File::options().write(true).open(&data).unwrap().set_len(whole - 1).unwrap();
    let torn = PackOptions { allow_torn: true, ..options(UPSTREAM, None) };
    let (_, done) = committed(&data, Some(&index), &Naming::default(), &torn);
    assert!(done.torn_entries > 0, "the last write has lost a byte");
    let out = data.with_file_name("out2");
    let refused = commit(&data, Some(&index), &out, &Naming::default(), &options(UPSTREAM, None), &quiet());
    assert!(matches!(refused, Err(OfflineError::Torn(_, 1..))), "{refused:?}");
    let refused = seal(&data, Some(&index), false);
    assert!(matches!(refused, Err(OfflineError::Torn(_, 1..))), "{refused:?}");
    let alone = commit(&data, None, &out, &Naming::default(), &options(UPSTREAM, None), &quiet());
    assert!(matches!(alone, Err(OfflineError::IndexMissing(_))), "{alone:?}");
    let (_other, foreign, _) = pair("ext4/rw1.d.xz", "ext4/rw1.i");
    let mixed = commit(&foreign, Some(&index), &out, &Naming::default(), &options(UPSTREAM, None), &quiet());
    assert!(matches!(mixed, Err(OfflineError::Writable { .. })), "{mixed:?}");
    let reversed = commit(&index, Some(&data), &out, &Naming::default(), &options(UPSTREAM, None), &quiet());
    assert!(reversed.is_err());
    assert_eq!(names(data.parent().unwrap()), ["data", "index", "out"]);
}

#[test]
fn the_longest_segment_is_cut_where_upstream_cuts_it_whatever_is_read_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (data, index) = (dir.path().join("data"), dir.path().join("index"));
    let header = data_header(false, Uuid::NULL, None, 32 << 20);
    let entries = [(0, 5, 8), (20_000, 16_383, 13)];
    let entries = entries
        .map(|(offset, length, place)| Segment::new(offset, length, place, false, 0).unwrap().encode());
    fs::write(&data, [header.encode(), vec![3; (5 + 16_383) * 512]].concat()).unwrap();
    fs::write(&index, [&index_header(&header).encode(), entries.as_flattened()].concat()).unwrap();
    let (output, _) = committed(&data, Some(&index), &Naming::default(), &options(UPSTREAM, None));
    let (_, layer) = opened(&output);
    let spans: Vec<_> = layer.segments().iter().map(|it| (it.offset(), it.length(), it.moffset())).collect();
    assert_eq!(spans, [(0, 5, 8), (20_000, 16_320, 13), (36_320, 63, 16_333)]);
}

#[test]
fn zeroed_segments_are_joined_where_upstream_joins_them() {
    let zeroed = [(0, 16_300), (16_300, 50), (16_350, 40)].map(|(offset, length)| (offset, Err(length)));
    let (_dir, path) = file_of(&layer_writer::lsmt(1 << 30, &zeroed));
    let (output, _) = committed(&path, None, &Naming::default(), &options(UPSTREAM, None));
    let spans: Vec<_> = opened(&output).1.segments().iter().map(|it| (it.offset(), it.length())).collect();
    assert_eq!(spans, [(0, 16_350), (16_350, 40)]);
}

/// Writes and discards at random places of a small device, half of the pages zero, as a pair; returns the device.
fn random_pair(random: &mut fastrand::Rng, dir: &Path) -> Vec<u8> {
    let header = data_header(false, Uuid::NULL, None, 2 << 20);
    let (mut data, mut index) = (header.encode(), index_header(&header).encode());
    let mut device = vec![0; 2 << 20];
    for _ in 0..random.usize(0..200) {
        let [offset, most] = [random.usize(0..4096), random.usize(1..200)];
        let sectors = most.min(4096 - offset);
        let place = data.len() as u64 / 512;
        let zeroed = random.u8(0..5) == 0;
        let target = &mut device[offset * 512..(offset + sectors) * 512];
        target.fill(0);
        if !zeroed {
            // Half of them stay zero.
            target.chunks_mut(2048).for_each(|part| part.fill(random.u8(0..=255).saturating_sub(128)));
            data.extend_from_slice(target);
        }
        let length = u32::try_from(sectors).unwrap();
        index.extend(Segment::new(offset as u64, length, place, zeroed, 0).unwrap().encode());
        if random.u8(0..20) == 0 {
            index.extend(Segment::PADDING.encode());
        }
    }
    fs::write(dir.join("data"), data).unwrap();
    fs::write(dir.join("index"), index).unwrap();
    device
}

#[test]
fn random_writes_and_discards_are_committed_to_the_device_that_they_make() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let (data, index) = (dir.path().join("data"), dir.path().join("index"));
    for _ in 0..40 {
        let device = random_pair(&mut random, dir.path());
        for packing in [UPSTREAM, Packing::Aligned] {
            let compression = random.bool().then_some((Algorithm::Lz4, 4096 << random.u32(0..4)));
            let made = options(packing, compression);
            let (output, done) = committed(&data, Some(&index), &Naming::default(), &made);
            assert_eq!(flat_sha256(&output), sha256(&device), "{packing:?} {compression:?}");
            assert_eq!(done.torn_entries, 0);
            if packing == Packing::Aligned {
                assert_eq!(faults(&output), (0, 0));
            }
        }
    }
}

#[test]
fn a_layer_that_names_its_data_over_and_over_is_refused() {
    let page = [7; 4096];
    let mut layer = layer_writer::lsmt(1 << 20, &[(0, Ok(&page)), (8, Err(8))]);
    layer[8208..8224].copy_from_slice(&Segment::new(8, 8, 8, false, 0).unwrap().encode());
    let (dir, path) = file_of(&layer);
    let output = dir.path().join("out");
    let refused = commit(&path, None, &output, &Naming::default(), &options(UPSTREAM, None), &quiet());
    let twice = |error: &OfflineError| {
        matches!(error, OfflineError::Amplified { mapped_bytes: 8192, data_bytes: 4096, .. })
    };
    assert!(refused.as_ref().is_err_and(twice), "{refused:?}");
}

#[test]
fn whatever_goes_wrong_in_any_stage_leaves_nothing() {
    let mut random = fastrand::Rng::with_seed(11);
    let noise: Vec<u8> = (0..8 << 20).map(|_| random.u8(..)).collect();
    let (dir, path) = file_of(&layer_writer::lsmt_of(&noise));
    let output = dir.path().join("out");
    let aligned = |size| options(Packing::Aligned, Some((Algorithm::Lz4, size)));
    let refused = commit(&path, None, &output, &Naming::default(), &aligned(65_536), &quiet()).unwrap_err();
    assert!(matches!(refused, OfflineError::Encode { .. }), "{refused:?}");
    assert_eq!(names(dir.path()), ["layer"]);

    let mut damaged = layer_writer::zfile(&sample(), layer_writer::Algorithm::Lz4, 4096);
    damaged[100_000] ^= 1;
    fs::write(&path, &damaged).unwrap();
    for options in [aligned(4096), options(UPSTREAM, None)] {
        let refused = commit(&path, None, &output, &Naming::default(), &options, &quiet()).unwrap_err();
        assert!(matches!(refused, OfflineError::Zfile { .. }), "{refused:?}");
    }
    assert_eq!(names(dir.path()), ["layer"]);

    fs::write(&path, sample()).unwrap();
    let watch = quiet();
    watch.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
    let ended = commit(&path, None, &output, &Naming::default(), &aligned(4096), &watch);
    assert!(matches!(ended, Err(OfflineError::Cancelled)));
    assert_eq!(names(dir.path()), ["layer"]);
}

#[test]
fn a_pair_is_sealed_as_upstream_seals_it_and_only_once() {
    let upstreams = Fixture::named("ext4/L2.sealed.xz").read();
    let (dir, path) = file_of(&upstreams);
    let (_, layer) = opened(&path);
    let trailer = *layer.layout().trailer();
    let data_end = usize::try_from(trailer.index_offset).unwrap();
    let index_end = data_end + layer.segments().len() * 16;
    let (data, index) = (dir.path().join("data"), dir.path().join("index"));
    fs::write(&data, &upstreams[..data_end]).unwrap();
    let header = index_header(&Header::decode(&upstreams, 0).unwrap()).encode();
    fs::write(&index, [&header, &upstreams[data_end..index_end]].concat()).unwrap();
    let done = seal(&data, Some(&index), false).unwrap();
    let sealed = bytes(&data);
    // What upstream pads the index with is undefined.
    let trailer_start = upstreams.len() - 4096;
    assert!(
        sealed[..index_end] == upstreams[..index_end]
            && sealed[trailer_start..] == upstreams[trailer_start..]
    );
    assert_eq!((sealed.len(), done.output_bytes), (upstreams.len(), upstreams.len() as u64));
    assert_eq!(Some(flat_sha256(&data)), Fixture::named("ext4/L2.sealed.xz").flat_sha256);
    for again in [Some(index.as_path()), None] {
        assert!(matches!(seal(&data, again, false), Err(OfflineError::Sealed(_))));
    }
    assert!(bytes(&data) == sealed);
    let (_dir, compressed) = file_of(&Fixture::named("ext4/L2.z4k").read());
    assert!(matches!(seal(&compressed, None, false), Err(OfflineError::Sealed(_))));
}

#[test]
fn a_sparse_file_is_sealed_after_all_of_its_device() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let fixture = Fixture::named("lsmt/gs-sparse.tar.xz");
    unpack_sparse(&fixture.read(), &data);
    seal(&data, None, false).unwrap();
    assert_eq!(Some(flat_sha256(&data)), fixture.flat_sha256);
    assert!(matches!(seal(&data, None, false), Err(OfflineError::Sealed(_))));
    let (output, _) = committed(&data, None, &Naming::default(), &options(Packing::Aligned, None));
    assert_eq!(Some(flat_sha256(&output)), fixture.flat_sha256);
}

/// A sparse file whose device has data in its second page only.
fn sparse_file(path: &Path, file_bytes: u64) -> Header {
    let header = Header { sparse: true, ..data_header(false, UUID.parse().unwrap(), None, 1 << 20) };
    fs::write(path, header.encode()).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(file_bytes).unwrap();
    file.write_all_at(&[7; 4096], 8192).unwrap();
    header
}

const UUID: &str = "abc00001-1111-2222-3333-000000000001";

/// The layer that a commit of the sparse file makes has one page, and the file is sealed once.
fn has_its_page_and_is_sealed_once(data: &Path) {
    let one_page = |path: &Path| {
        let options = PackOptions { overwrite: true, ..options(UPSTREAM, None) };
        let (output, _) = committed(path, None, &Naming::default(), &options);
        let (_, layer) = opened(&output);
        let spans: Vec<_> = layer.segments().iter().map(|it| (it.offset(), it.length())).collect();
        assert_eq!((layer.virtual_size_bytes(), spans.as_slice()), (1 << 20, &[(8, 8)][..]));
    };
    one_page(data);
    seal(data, None, false).unwrap();
    one_page(data);
    assert_eq!(fs::metadata(data).unwrap().len(), 4096 + (1 << 20) + 512 + 4096);
    assert!(matches!(seal(data, None, false), Err(OfflineError::Sealed(_))));
}

#[test]
fn a_sparse_file_that_is_shorter_than_its_device_is_sealed_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // As upstream's tool leaves it that ends between the new size in the header and that of the file.
    sparse_file(&data, 12_288);
    has_its_page_and_is_sealed_once(&data);
    // Upstream's tool seals one where it ends.
    let header = sparse_file(&data, 12_288);
    let page = Segment::new(8, 8, 16, false, 0).unwrap();
    let end = stratabd::format::lsmt::seal(&header, &[page], 12_288).unwrap();
    File::options().append(true).open(&data).unwrap().write_all(&end).unwrap();
    let options = PackOptions { overwrite: true, ..options(UPSTREAM, None) };
    let (output, done) = committed(&data, None, &Naming::default(), &options);
    assert_eq!((opened(&output).1.segments().len(), done.data_bytes), (1, 4096));
    assert!(matches!(seal(&data, None, false), Err(OfflineError::Sealed(_))));
}

#[test]
fn a_seal_of_a_sparse_file_that_was_cut_short_is_no_data_and_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for left in [1, 511, 512, 4607] {
        sparse_file(&data, 4096 + (1 << 20));
        seal(&data, None, false).unwrap();
        let file = File::options().write(true).open(&data).unwrap();
        file.set_len(4096 + (1 << 20) + left).unwrap();
        has_its_page_and_is_sealed_once(&data);
    }
    sparse_file(&data, 4096 + (1 << 20));
    File::options().append(true).open(&data).unwrap().write_all(&[9; 700]).unwrap();
    let upper = Upper { data: data.clone(), index: None };
    resize(&[], &upper, 2 << 20, false).unwrap();
    assert!(bytes(&data)[4096 + (1 << 20)..].iter().all(|byte| *byte == 0), "it has become data");
}

#[test]
fn zeroes_stay_data_where_the_index_has_no_room_for_them() {
    let page = |number: usize| if number.is_multiple_of(2) { [0; 4096] } else { [7; 4096] };
    let data: Vec<u8> = (0..4000).flat_map(page).collect();
    let zeroed = (0..997_000).map(|number| (number * 2, Err(1)));
    let mappings: Vec<_> = zeroed.chain([(2_000_000, Ok(data.as_slice()))]).collect();
    let (_dir, full) = file_of(&layer_writer::lsmt(1 << 30, &mappings));
    let (output, _) = committed(&full, None, &Naming::default(), &options(Packing::Aligned, None));
    assert_eq!(flat_sha256(&output), flat_sha256(&full));
    let count = opened(&output).1.segments().len();
    // Nearly as many as there is room for, and no more.
    assert!((998_000..=999_936).contains(&count), "{count}");
}
