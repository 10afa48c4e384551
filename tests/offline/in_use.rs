//! Layers that a device writes to: no tool reads them half written, changes them, or puts another file in their place.

use std::{
    fs::{self, File},
    path::Path,
};

use stratabd::{
    offline::{
        CreateOptions, Naming, OfflineError, Stack, Upper, commit, create, default_threads, diff, merge,
        resize, resize_ext4, seal,
    },
    upper::{LayerFile, LayerFiles, Medium, UpperError},
};

use crate::{PACK, bytes, names, quiet};

const OPTIONS: CreateOptions = CreateOptions {
    sparse: false,
    virtual_size_bytes: 1 << 20,
    uuid: None,
    parent_uuid: None,
    ext4: false,
    overwrite: true,
};

fn pair(dir: &Path) -> Upper {
    Upper { data: dir.join("data"), index: Some(dir.join("index")) }
}

fn index(upper: &Upper) -> &Path {
    upper.index.as_deref().unwrap()
}

type Outcome = Result<(), OfflineError>;

/// What reads the layer and makes `out`.
fn readers(upper: &Upper) -> [(&'static str, Outcome); 3] {
    let out = upper.data.with_file_name("out");
    let stack = Stack { lowers: Vec::new(), upper: Some(upper.clone()) };
    let naming = Naming::default();
    [
        ("commit", commit(&upper.data, upper.index.as_deref(), &out, &naming, &PACK, &quiet()).map(drop)),
        ("merge", merge(&stack, &out, &naming, &PACK, &quiet()).map(drop)),
        ("diff", diff(&stack, &stack, default_threads(), &quiet()).map(drop)),
    ]
}

/// What would change the layer, or replace it.
fn writers(upper: &Upper, sparse: bool) -> [(&'static str, Outcome); 4] {
    [
        ("resize_ext4", resize_ext4(&[], upper, 2 << 20, false, default_threads(), &quiet()).map(drop)),
        ("resize", resize(&[], upper, 2 << 20, false).map(drop)),
        ("seal", seal(&upper.data, upper.index.as_deref(), false).map(drop)),
        ("create", create(upper, &CreateOptions { sparse, ..OPTIONS }).map(drop)),
    ]
}

fn refused(outcomes: impl IntoIterator<Item = (&'static str, Outcome)>, path: &Path) {
    for (tool, outcome) in outcomes {
        assert!(matches!(&outcome, Err(OfflineError::Busy(busy)) if busy == path), "{tool}: {outcome:?}");
    }
}

#[test]
fn a_pair_that_a_device_has_is_left_alone_and_can_be_used_when_it_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let upper = pair(dir.path());
    create(&upper, &OPTIONS).unwrap();
    let before = [&upper.data, index(&upper)].map(bytes);
    let device = LayerFiles::open(&upper.data, index(&upper)).unwrap();
    refused(readers(&upper), &upper.data);
    refused(writers(&upper, false), &upper.data);
    assert!(before == [&upper.data, index(&upper)].map(bytes));
    assert_eq!(names(dir.path()), ["data", "index"]);
    drop(device);
    readers(&upper).into_iter().for_each(|(_, done)| done.unwrap());
    resize(&[], &upper, 2 << 20, false).unwrap();
}

#[test]
fn a_sparse_layer_that_a_device_has_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let upper = Upper { data: dir.path().join("data"), index: None };
    create(&upper, &CreateOptions { sparse: true, ..OPTIONS }).unwrap();
    let device = LayerFile::open(&upper.data).unwrap();
    device.lock().unwrap();
    refused(readers(&upper), &upper.data);
    refused(writers(&upper, true), &upper.data);
    drop(device);
    readers(&upper).into_iter().for_each(|(_, done)| done.unwrap());
}

#[test]
fn an_index_file_is_no_output_whoever_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (live, other) = (pair(dir.path()), dir.path().join("other"));
    create(&live, &OPTIONS).unwrap();
    let sparse = Upper { data: other, index: None };
    create(&sparse, &CreateOptions { sparse: true, ..OPTIONS }).unwrap();
    let before = bytes(index(&live));
    let refused = commit(&sparse.data, None, index(&live), &Naming::default(), &PACK, &quiet());
    assert!(matches!(refused, Err(OfflineError::IndexFile(_))), "{refused:?}");
    // Neither as the data file of a new layer, nor as an index file, but that of the very layer that is replaced.
    let index_file = index(&live).to_owned();
    for upper in [
        Upper { data: index_file.clone(), index: None },
        Upper { data: index_file.clone(), index: Some(dir.path().join("new")) },
        Upper { data: sparse.data.clone(), index: Some(index_file.clone()) },
        Upper { data: dir.path().join("new"), index: Some(index_file) },
    ] {
        let sparse = upper.index.is_none();
        let refused = create(&upper, &CreateOptions { sparse, ..OPTIONS });
        assert!(matches!(refused, Err(OfflineError::IndexFile(_))), "{upper:?}: {refused:?}");
    }
    assert!(bytes(index(&live)) == before);
    create(&live, &OPTIONS).unwrap();
    assert!(bytes(index(&live)) != before);
    assert_eq!(names(dir.path()), ["data", "index", "other"]);
}

#[test]
fn one_file_is_not_both_parts_of_a_layer() {
    let dir = tempfile::tempdir().unwrap();
    let one = dir.path().join("one");
    let both = Upper { data: one.clone(), index: Some(one) };
    let refused = create(&both, &OPTIONS);
    assert!(matches!(refused, Err(OfflineError::SameFile(_))), "{refused:?}");
    assert!(names(dir.path()).is_empty());
}

#[test]
fn tools_that_read_share_a_layer_and_no_device_is_made_of_it_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let upper = pair(dir.path());
    create(&upper, &OPTIONS).unwrap();
    let reader = File::open(&upper.data).unwrap();
    reader.lock_shared().unwrap();
    readers(&upper).into_iter().for_each(|(_, done)| done.unwrap());
    refused([("resize", resize(&[], &upper, 2 << 20, false).map(drop))], &upper.data);
    assert!(LayerFiles::open(&upper.data, index(&upper)).is_err());
}

#[test]
fn a_layer_that_was_sealed_is_committed_while_its_device_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let upper = pair(dir.path());
    create(&upper, &OPTIONS).unwrap();
    seal(&upper.data, upper.index.as_deref(), false).unwrap();
    // As a device that has had it sealed by a snapshot has it.
    let device = LayerFile::open(&upper.data).unwrap();
    device.lock().unwrap();
    device.share().unwrap();
    let out = dir.path().join("out");
    commit(&upper.data, None, &out, &Naming::default(), &PACK, &quiet()).unwrap();
    let stack = Stack { lowers: vec![upper.data.clone()], upper: None };
    merge(&stack, &out, &Naming::default(), &PACK, &quiet()).unwrap();
    assert!(fs::metadata(&out).unwrap().len() > 0);
}

#[test]
fn a_layer_that_was_replaced_before_it_was_locked_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let (path, next) = (dir.path().join("data"), dir.path().join("next"));
    for path in [&path, &next] {
        create(&Upper { data: path.clone(), index: None }, &CreateOptions { sparse: true, ..OPTIONS })
            .unwrap();
    }
    let device = LayerFile::open(&path).unwrap();
    fs::rename(&next, &path).unwrap();
    let refused = device.lock();
    assert!(matches!(refused, Err(UpperError::Busy(_))), "{refused:?}");
    LayerFile::open(&path).unwrap().lock().unwrap();
}
