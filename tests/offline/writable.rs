//! `layer create` and `layer resize`: the files of writable layers.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use stratabd::{
    format::lsmt::{
        Header, LogReplay, Packing, Segment, data_header, decode_data_header, decode_index_header,
        require_pair, seal,
    },
    offline::{CreateOptions, Naming, OfflineError, PackOptions, Upper, commit, create, resize},
};

use crate::{bytes, fixtures::Fixture, flat_sha256, names, opened, quiet};

const OPTIONS: CreateOptions = CreateOptions {
    sparse: false,
    virtual_size_bytes: 1 << 30,
    uuid: None,
    parent_uuid: None,
    ext4: false,
    overwrite: false,
};

fn upper(dir: &Path) -> Upper {
    Upper { data: dir.join("data"), index: Some(dir.join("index")) }
}

const PACK: PackOptions = PackOptions { packing: Packing::AsUpstream, ..crate::PACK };

fn committed(upper: &Upper) -> stratabd::format::lsmt::ReadOnlyLayer {
    let out = upper.data.with_file_name("out");
    commit(&upper.data, upper.index.as_deref(), &out, &Naming::default(), &PACK, &quiet()).unwrap();
    opened(&out).1
}

/// What comes of the data file alone.
fn commit_alone(upper: &Upper) -> Result<(), OfflineError> {
    let out = upper.data.with_file_name("alone");
    commit(&upper.data, None, &out, &Naming::default(), &PACK, &quiet()).map(drop)
}

#[test]
fn a_new_pair_is_what_upstream_makes_but_for_its_uuid() {
    let dir = tempfile::tempdir().unwrap();
    let pair = upper(dir.path());
    let made = create(&pair, &OPTIONS).unwrap();
    let [data, index] = [&pair.data, pair.index.as_ref().unwrap()].map(|path| bytes(path));
    // Upstream's pair of the same size, with this UUID in place of its own.
    let [upstreams_data, upstreams_index] =
        ["ext4/rw1.d.xz", "ext4/rw1.i"].map(|file| Fixture::named(file).read()[..4096].to_vec());
    let renamed = |slot: &[u8]| {
        let header = Header::decode(slot, 0).unwrap();
        assert_eq!(header.virtual_size_bytes, 1 << 30);
        Header { uuid: Some(made.uuid.parse().unwrap()), ..header }.encode()
    };
    assert!(data == renamed(&upstreams_data) && index == renamed(&upstreams_index));
    require_pair(&decode_data_header(&data).unwrap(), &decode_index_header(&index).unwrap()).unwrap();
    assert_eq!(committed(&pair).segments(), []);
    assert_eq!((&made.uuid[14..15], made.uuid.len()), ("4", 36));
    assert!("89AB".contains(&made.uuid[19..20].to_uppercase()));
    assert_ne!(create(&pair, &CreateOptions { overwrite: true, ..OPTIONS }).unwrap(), made);
}

#[test]
fn a_sparse_layer_takes_no_room_and_its_index_file_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let pair = upper(dir.path());
    create(&pair, &CreateOptions { sparse: true, ..OPTIONS }).unwrap();
    let data = fs::metadata(&pair.data).unwrap();
    assert_eq!(data.len(), (1 << 30) + 4096);
    assert!(data.blocks() <= 16, "{} sectors", data.blocks());
    assert_eq!(fs::metadata(pair.index.as_ref().unwrap()).unwrap().len(), 0);
    let alone = Upper { data: dir.path().join("alone"), index: None };
    create(&alone, &CreateOptions { sparse: true, ..OPTIONS }).unwrap();
    assert_eq!(committed(&alone).segments(), []);
}

#[test]
fn a_sparse_layer_may_leave_its_size_to_the_layer_below() {
    let dir = tempfile::tempdir().unwrap();
    let pair = upper(dir.path());
    create(&pair, &CreateOptions { sparse: true, virtual_size_bytes: 0, ..OPTIONS }).unwrap();
    assert_eq!(fs::metadata(&pair.data).unwrap().len(), 4096);
    assert_eq!(fs::metadata(pair.index.as_ref().unwrap()).unwrap().len(), 0);
    let layer = committed(&pair);
    assert_eq!((layer.virtual_size_bytes(), layer.segments()), (0, &[][..]));
    assert!(matches!(resize(&[], &pair, 0, false), Err(OfflineError::DeviceSize(..))));
    resize(&[], &pair, 1 << 20, false).unwrap();
    assert_eq!(fs::metadata(&pair.data).unwrap().len(), (1 << 20) + 4096);
}

#[test]
fn a_layer_that_has_the_size_of_the_one_below_is_not_made_smaller_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let below = Upper { data: dir.path().join("below"), index: None };
    create(&below, &CreateOptions { sparse: true, virtual_size_bytes: 8 << 20, ..OPTIONS }).unwrap();
    committed(&below);
    let lowers = [dir.path().join("out")];
    let pair = upper(dir.path());
    create(&pair, &CreateOptions { virtual_size_bytes: 0, ..OPTIONS }).unwrap();
    let refused = resize(&lowers, &pair, 1 << 20, false);
    assert!(matches!(refused, Err(OfflineError::Shrinks { before: 0x80_0000, .. })), "{refused:?}");
    let done = resize(&lowers, &pair, 9 << 20, false).unwrap();
    assert_eq!((done.before_bytes, done.after_bytes), (8 << 20, 9 << 20));
}

/// A trailer, as whoever uses the device may write it: all but the UUID of the layer is known.
fn forged_trailer(sparse: bool, index_offset: u64, size_bytes: u64) -> Vec<u8> {
    let header =
        data_header(sparse, "11111111-2222-4333-8444-555555555555".parse().unwrap(), None, size_bytes);
    let mut end = seal(&header, &[], index_offset).unwrap();
    end.split_off(end.len() - 4096)
}

#[test]
fn what_a_device_writes_does_not_seal_its_layer() {
    let dir = tempfile::tempdir().unwrap();
    let pair = upper(dir.path());
    create(&pair, &OPTIONS).unwrap();
    write(&pair, 100, 50);
    let place = fs::metadata(&pair.data).unwrap().len();
    let mut data = File::options().append(true).open(&pair.data).unwrap();
    data.write_all(&forged_trailer(false, place, 1 << 30)).unwrap();
    let entry = Segment::new(200, 8, place / 512, false, 0).unwrap().encode();
    File::options().append(true).open(pair.index.as_ref().unwrap()).unwrap().write_all(&entry).unwrap();
    let refused = commit_alone(&pair);
    assert!(matches!(refused, Err(OfflineError::IndexMissing(_))), "{refused:?}");
    let ends = |layer: &stratabd::format::lsmt::ReadOnlyLayer| -> Vec<u64> {
        layer.segments().iter().map(|it| it.end()).collect()
    };
    assert_eq!(ends(&committed(&pair)), [150, 208]);
    stratabd::offline::seal(&pair.data, pair.index.as_deref(), false).unwrap();
    commit_alone(&pair).unwrap();
    let sealed = stratabd::offline::seal(&pair.data, pair.index.as_deref(), false);
    assert!(matches!(sealed, Err(OfflineError::Sealed(_))), "{sealed:?}");

    // Of a sparse one that a crash in the middle of a resize has left longer than its device.
    let sparse = Upper { data: dir.path().join("sparse"), index: None };
    create(&sparse, &CreateOptions { sparse: true, virtual_size_bytes: 1 << 20, ..OPTIONS }).unwrap();
    let file = File::options().write(true).open(&sparse.data).unwrap();
    file.write_all_at(&[7; 4096], 4096).unwrap();
    file.write_all_at(&forged_trailer(true, (1 << 19) + 4096, 1 << 19), 1 << 20).unwrap();
    file.write_all_at(&(1_u64 << 19).to_le_bytes(), Header::VIRTUAL_SIZE_OFFSET).unwrap();
    assert_eq!(ends(&committed(&sparse)), [8]);
    resize(&[], &sparse, 1 << 20, false).unwrap();
}

#[test]
fn a_sparse_layer_that_was_cut_within_a_sector_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = Upper { data: dir.path().join("sparse"), index: None };
    create(&sparse, &CreateOptions { sparse: true, virtual_size_bytes: 1 << 20, ..OPTIONS }).unwrap();
    let file = File::options().write(true).open(&sparse.data).unwrap();
    file.write_all_at(&[7; 4096], 8192).unwrap();
    file.set_len(12288 - 100).unwrap();
    let refused = commit_alone(&sparse);
    assert!(matches!(refused, Err(OfflineError::PartOfSector(_, 412))), "{refused:?}");
    // Whole sectors are missing where upstream has not made the file as long as its device.
    file.set_len(12288 - 512).unwrap();
    commit_alone(&sparse).unwrap();
}

#[test]
fn nothing_is_replaced_and_no_odd_size_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let pair = upper(dir.path());
    fs::write(pair.index.as_ref().unwrap(), "precious").unwrap();
    assert!(matches!(create(&pair, &OPTIONS), Err(OfflineError::Exists(_))));
    assert_eq!(names(dir.path()), ["index"]);
    let other = Upper { data: dir.path().join("d"), index: Some(dir.path().join("i")) };
    for size in [1, 511, 1 << 63] {
        let odd = create(&other, &CreateOptions { virtual_size_bytes: size, ..OPTIONS });
        assert!(matches!(odd, Err(OfflineError::DeviceSize(..))), "{size}");
    }
    let none = CreateOptions { ext4: true, virtual_size_bytes: 0, ..OPTIONS };
    assert!(matches!(create(&other, &none), Err(OfflineError::DeviceSize(..))));
    let alone = Upper { index: None, ..other };
    assert!(matches!(create(&alone, &OPTIONS), Err(OfflineError::IndexMissing(_))));
    assert_eq!(names(dir.path()), ["index"]);
}

#[test]
fn a_new_layer_has_a_sound_file_system_where_that_is_wanted_and_always_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let [log, sparse] = [false, true].map(|sparse| {
        let pair = Upper {
            data: dir.path().join(format!("{sparse}")),
            index: Some(dir.path().join(format!("{sparse}.i"))),
        };
        create(&pair, &CreateOptions { ext4: true, sparse, ..OPTIONS }).unwrap();
        committed(&pair);
        (pair, flat_sha256(&dir.path().join("out")))
    });
    assert_eq!(log.1, sparse.1);
    let data_bytes = fs::metadata(&log.0.data).unwrap().len();
    assert!(data_bytes < 4 << 20, "{data_bytes}");
    // The device as fsck sees it.
    let (file, layer) = opened(&dir.path().join("out"));
    let image = dir.path().join("image");
    let flat = File::create(&image).unwrap();
    flat.set_len(1 << 30).unwrap();
    for segment in layer.segments() {
        let [from, len] =
            [segment.moffset(), u64::from(segment.length())].map(|it| usize::try_from(it).unwrap() * 512);
        flat.write_all_at(&file[from..from + len], segment.offset() * 512).unwrap();
    }
    let checked = std::process::Command::new("e2fsck").arg("-fn").arg(&image).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// Appends a write of `sectors` sectors of sevens at `offset`.
fn write(upper: &Upper, offset: u64, sectors: u32) {
    let mut data = File::options().append(true).open(&upper.data).unwrap();
    let place = data.metadata().unwrap().len() / 512;
    data.write_all(&vec![7; sectors as usize * 512]).unwrap();
    let entry = Segment::new(offset, sectors, place, false, 0).unwrap().encode();
    File::options().append(true).open(upper.index.as_ref().unwrap()).unwrap().write_all(&entry).unwrap();
}

#[test]
fn what_a_smaller_log_has_lost_does_not_come_back_when_it_grows() {
    let dir = tempfile::tempdir().unwrap();
    let pair = upper(dir.path());
    create(&pair, &OPTIONS).unwrap();
    write(&pair, 100, 50);
    write(&pair, 2000, 48);
    // A torn entry, which must not come to count.
    let torn = Segment::new(0, 9, 1 << 40, false, 0).unwrap().encode();
    let index = pair.index.clone().unwrap();
    File::options().append(true).open(&index).unwrap().write_all(&torn).unwrap();
    let refused = resize(&[], &pair, 120 * 512, false);
    assert!(matches!(refused, Err(OfflineError::Shrinks { .. })), "{refused:?}");
    let done = resize(&[], &pair, 120 * 512, true).unwrap();
    assert_eq!((done.before_bytes, done.after_bytes), (1 << 30, 120 * 512));
    resize(&[], &pair, 1 << 20, false).unwrap();
    let layer = committed(&pair);
    assert_eq!(layer.virtual_size_bytes(), 1 << 20);
    let data: Vec<_> = layer.segments().iter().filter(|it| !it.zeroed()).map(|it| it.end()).collect();
    assert_eq!(data, [120]);
    assert_eq!(layer.segments().last().unwrap().end(), 120, "what lies below shows again");
    let log = bytes(&index);
    assert_eq!(decode_index_header(&log).unwrap().virtual_size_bytes, 1 << 20);
    let mut replay = LogReplay::new(log.len() as u64, fs::metadata(&pair.data).unwrap().len()).unwrap();
    replay.feed(&log[4096..]).unwrap();
    assert_eq!(replay.finish().torn_entries, 0);
}

#[test]
fn a_sparse_layer_grows_and_shrinks_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Upper { index: None, ..upper(dir.path()) };
    create(&pair, &CreateOptions { sparse: true, ..OPTIONS }).unwrap();
    for (size, shrink) in [(2 << 30, false), (1 << 20, true), (1 << 21, false)] {
        resize(&[], &pair, size, shrink).unwrap();
        assert_eq!(fs::metadata(&pair.data).unwrap().len(), size + 4096);
        assert_eq!(committed(&pair).virtual_size_bytes(), size);
    }
    let (sealed, _) = (dir.path().join("out"), ());
    let before = flat_sha256(&sealed);
    let refused = resize(&[], &Upper { data: sealed.clone(), index: None }, 1 << 30, false);
    assert!(matches!(refused, Err(OfflineError::Sealed(_))), "{refused:?}");
    assert_eq!(flat_sha256(&sealed), before);
    // The header of a pair alone says nothing of its size.
    let header = data_header(false, stratabd::format::uuid::Uuid::NULL, None, 0).encode();
    fs::write(&pair.data, header).unwrap();
    assert!(matches!(resize(&[], &pair, 4096, false), Err(OfflineError::IndexMissing(_))));
}
