//! `layer diff`: the ranges in which two devices differ.

use std::{fs, num::NonZeroUsize, path::PathBuf};

use stratabd::offline::{Compared, OfflineError, Stack, Upper, diff};

use crate::{fixtures::Fixture, layer_writer, quiet};

fn stack(lowers: &[&PathBuf]) -> Stack {
    Stack { lowers: lowers.iter().map(|path| (*path).clone()).collect(), upper: None }
}

fn compared(left: &Stack, right: &Stack) -> Compared {
    let of = |threads| diff(left, right, NonZeroUsize::new(threads).unwrap(), &quiet()).unwrap();
    let done = of(3);
    assert_eq!(of(1), done);
    done
}

fn ranges(compared: &Compared) -> Vec<(u64, u64)> {
    compared.ranges.iter().map(|it| (it.offset_bytes / 512, it.len_bytes / 512)).collect()
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

#[test]
fn every_form_of_a_device_is_the_same_device() {
    let files = ["ext4/L0.z64k", "ext4/L0.zt4k", "ext4/L1.z4k", "ext4/rw1.d.xz", "ext4/rw1.i"];
    let (_dir, paths) = folder(&files.map(|file| Fixture::named(file).read()));
    let [one, other, above, data, index] = paths.try_into().unwrap();
    let same = compared(&stack(&[&one]), &stack(&[&other]));
    assert!(same.equal && same.differing_bytes == 0 && same.size_bytes == [1 << 30; 2]);
    let written = Stack { upper: Some(Upper { data, index: Some(index) }), ..stack(&[&other]) };
    assert!(compared(&stack(&[&one, &above]), &written).equal);
    assert!(!compared(&stack(&[&one]), &written).equal);
}

#[test]
fn devices_of_sizes_that_are_no_whole_sectors_are_equal_only_where_the_sizes_are() {
    let (_dir, paths) = folder(&[4096, 4500, 4600].map(|size| layer_writer::lsmt(size, &[])));
    let [whole, odd, larger] = paths.try_into().unwrap();
    let differ = compared(&stack(&[&whole]), &stack(&[&odd]));
    assert_eq!((differ.equal, ranges(&differ)), (false, vec![(8, 1)]));
    assert!(!compared(&stack(&[&odd]), &stack(&[&larger])).equal);
    assert!(compared(&stack(&[&odd]), &stack(&[&odd])).equal);
}

#[test]
fn sectors_that_differ_are_named_and_zeroes_are_equal_to_holes() {
    let noise: Vec<u8> = (1..=251).cycle().take(1 << 20).collect();
    let mut other = noise.clone();
    // Over the end of a window, in one sector, and at the end of the data.
    other[511 * 512..514 * 512].fill(0);
    other[1000 * 512 + 7] ^= 1;
    other[2047 * 512..].fill(9);
    let device = 1 << 30;
    let left = layer_writer::lsmt(device, &[(0, Ok(&noise)), (8000, Err(16))]);
    let right =
        layer_writer::lsmt(device, &[(0, Ok(&other)), (10_000, Ok(&[0; 4096])), (20_000, Ok(&[3; 512]))]);
    let (_dir, paths) = folder(&[left, right]);
    let found = compared(&stack(&[&paths[0]]), &stack(&[&paths[1]]));
    assert_eq!(ranges(&found), [(511, 3), (1000, 1), (2047, 1), (20_000, 1)]);
    assert_eq!((found.equal, found.differing_bytes), (false, 6 * 512));
    let back = compared(&stack(&[&paths[1]]), &stack(&[&paths[0]]));
    assert_eq!(back.ranges, found.ranges);
}

#[test]
fn what_one_device_does_not_have_differs_and_what_lies_past_both_does_not_count() {
    let data = [5; 4096];
    let small = layer_writer::lsmt(100 * 512, &[(96, Ok(&data))]);
    let large = layer_writer::lsmt(120 * 512, &[(96, Ok(&data)), (200, Ok(&data))]);
    let (_dir, paths) = folder(&[small, large]);
    let found = compared(&stack(&[&paths[0]]), &stack(&[&paths[1]]));
    assert_eq!(ranges(&found), [(100, 20)]);
    assert_eq!(found.size_bytes, [100 * 512, 120 * 512]);
    assert!(compared(&stack(&[&paths[1]]), &stack(&[&paths[1]])).equal);
}

#[test]
fn what_both_have_of_the_same_layer_is_not_read() {
    let top = layer_writer::lsmt(1 << 30, &[(100_000, Ok(&[5; 4096]))]);
    let damaged = Fixture::named("corrupt/zfile-data-flip").read();
    let (dir, paths) = folder(&[damaged.clone(), top]);
    let alias = dir.path().join("alias");
    fs::hard_link(&paths[0], &alias).unwrap();
    let found = compared(&stack(&[&paths[0]]), &stack(&[&alias, &paths[1]]));
    assert_eq!(ranges(&found), [(100_000, 8)]);
    fs::write(dir.path().join("copy"), damaged).unwrap();
    let copy = stack(&[&dir.path().join("copy")]);
    let refused = diff(&stack(&[&paths[0]]), &copy, NonZeroUsize::MIN, &quiet());
    assert!(matches!(refused, Err(OfflineError::Zfile { .. })), "{refused:?}");
}

#[test]
fn damage_and_an_end_are_told() {
    let (_dir, paths) =
        folder(&[Fixture::named("ext4/L2.z4k").read(), Fixture::named("corrupt/zfile-data-flip").read()]);
    let (sound, damaged) = (stack(&[&paths[0]]), stack(&[&paths[1]]));
    let refused = diff(&sound, &damaged, NonZeroUsize::MIN, &quiet());
    assert!(matches!(refused, Err(OfflineError::Zfile { .. })), "{refused:?}");
    let watch = quiet();
    watch.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
    let ended = diff(&sound, &sound, NonZeroUsize::MIN, &watch);
    assert!(matches!(ended, Err(OfflineError::Cancelled)), "{ended:?}");
}
