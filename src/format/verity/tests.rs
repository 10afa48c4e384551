//! Trees against the tool of fs-verity, and against every single byte that is changed.
#![expect(clippy::arithmetic_side_effects, reason = "a test that goes wrong fails")]

use std::{collections::BTreeMap, process::Command};

use proptest::prelude::*;

use super::*;

const KIB: usize = 1024;

fn content(len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(len as u64);
    (0..len).map(|_| random.u8(..)).collect()
}

/// The blocks of the tree over `content`, by number, and its digest. The bytes come in pieces of `piece`.
fn built(content: &[u8], piece: usize) -> (TreeShape, BTreeMap<u64, Block>, Digest) {
    let shape = TreeShape::new(content.len() as u64).unwrap();
    let mut builder = TreeBuilder::new(shape.clone());
    let mut blocks = BTreeMap::new();
    let mut keep = |number, block: &Block| {
        assert!(blocks.insert(number, *block).is_none(), "block {number} came twice");
        Ok::<(), VerityError>(())
    };
    for piece in content.chunks(piece) {
        builder.push(piece, &mut keep).unwrap();
    }
    let digest = builder.finish(&mut keep).unwrap();
    assert!(blocks.keys().copied().eq(shape.tree_blocks()), "all blocks of the tree, and no others");
    (shape, blocks, digest)
}

/// The first block from the end that is wrong, of data and tree; the highest is looked at first, as a reader has to.
fn wrong_block(verifier: &Verifier, content: &[u8], blocks: &BTreeMap<u64, Block>) -> Option<WrongBlock> {
    let shape = verifier.shape();
    (0..shape.tree_blocks().end).rev().find_map(|number| {
        let parent = shape.parent(number).map_or(&[][..], |(parent, _)| &blocks[&parent]);
        let bytes = match blocks.get(&number) {
            Some(block) => &block[..],
            None => {
                let rest = &content[usize::try_from(number).unwrap() * BLOCK_LEN..];
                &rest[..rest.len().min(BLOCK_LEN)]
            }
        };
        verifier.check(number, bytes, parent).err()
    })
}

#[test]
fn the_digest_is_the_one_that_fsverity_measures() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let level = 512 * KIB;
    for len in [0, 1, 4095, 4096, 4097, level - 1, level, level + 1, 3 * level + 5, 64 << 20, (64 << 20) + 1]
    {
        let content = content(len);
        std::fs::write(&path, &content).unwrap();
        let out = Command::new("fsverity").args(["digest", "--compact"]).arg(&path).output();
        let out = out.expect("fsverity, which ci/install-packages installs");
        let (_, _, digest) = built(&content, 100_000);
        assert_eq!(digest.hex(), String::from_utf8(out.stdout).unwrap().trim(), "{len} bytes");
    }
}

#[test]
fn levels_lie_one_behind_the_other_with_the_top_last() {
    let shape = TreeShape::new(129 * 128 * BLOCK_BYTES).unwrap();
    let data = 129 * 128;
    assert_eq!(shape.levels(), [data..data + 129, data + 129..data + 131, data + 131..data + 132]);
    assert_eq!(shape.parent(0), Some((data, 0..32)));
    assert_eq!(shape.parent(data - 1), Some((data + 128, 4064..4096)));
    assert_eq!(shape.parent(data + 128), Some((data + 130, 0..32)));
    assert_eq!(shape.parent(data + 130), Some((data + 131, 32..64)));
    assert_eq!((shape.parent(data + 131), shape.parent(data + 132)), (None, None));
    let longest = TreeShape::new(1 << 60).unwrap();
    assert!(longest.levels().len() <= 9 && TreeShape::new((1 << 60) + 1).is_err());
    let one = TreeShape::new(4096).unwrap();
    assert_eq!((one.tree_bytes(), one.parent(0)), (0, None));
}

#[test]
fn every_block_is_proven_and_one_past_the_end_is_not() {
    for len in [1, 4096, 4097, 300 * KIB, 513 * KIB] {
        let content = content(len);
        let (shape, blocks, digest) = built(&content, 4096);
        let verifier = Verifier::new(shape.clone(), digest);
        assert_eq!(wrong_block(&verifier, &content, &blocks), None);
        let end = shape.tree_blocks().end;
        assert_eq!(verifier.check(end, &[0; 1024], &[]), Ok(()));
        assert_eq!(verifier.check(end, &[1; 1024], &[]), Err(WrongBlock::End { block: end }));
        assert_eq!(verifier.check(end + 1, &[], &[]), Err(WrongBlock::Outside { block: end + 1 }));
        let short = verifier.check(0, &[], &[]).unwrap_err();
        assert!(matches!(short, WrongBlock::Length { block: 0, len: 0, .. }), "{short}");
    }
}

#[test]
fn the_root_of_another_length_is_another_digest() {
    let data = content(4096);
    let (_, _, digest) = built(&data, 4096);
    let longer = TreeShape::new(4095).unwrap();
    let wrong = Verifier::new(longer, digest).check(0, &data[..4095], &[]);
    assert_eq!(wrong, Err(WrongBlock::Root { block: 0 }));
}

#[test]
fn a_tree_that_got_another_number_of_bytes_is_none() {
    let builder = TreeBuilder::new(TreeShape::new(5).unwrap());
    let ended = builder.finish(|_, _| Ok::<(), VerityError>(()));
    assert_eq!(ended, Err(VerityError::Length { expected_bytes: 5, data_bytes: 0 }));
}

#[test]
fn an_annotation_is_read_as_it_is_written_and_in_no_other_form() {
    let digest = Digest::from_hash([0xA1; 32]);
    let verity = Verity::new(digest, 8192).unwrap();
    let text = format!("{digest};4096;8192");
    assert_eq!((verity.to_string(), text.parse()), (text.clone(), Ok(verity)));
    for wrong in [
        "".to_owned(),
        digest.to_string(),
        format!("{digest};4096"),
        format!("{text};"),
        format!("{text};0"),
        format!(" {text}"),
        format!("{digest};4096;08192"),
        format!("{digest};4096;+8192"),
        format!("{digest};4096;-1"),
        format!("{digest};04096;8192"),
        format!("{digest};4096;99999999999999999999"),
        text.replace("a1", "A1"),
        text.replace("sha256", "sha512"),
    ] {
        assert_eq!(wrong.parse::<Verity>(), Err(VerityError::Form), "{wrong}");
    }
    assert_eq!(format!("{digest};65536;65536").parse::<Verity>(), Err(VerityError::BlockSize));
    for offset in [0, 1, 4095, 4097] {
        let wrong = format!("{digest};4096;{offset}").parse::<Verity>();
        assert_eq!(wrong, Err(VerityError::Offset { offset }));
    }
    let far = format!("{digest};4096;{}", u64::MAX).parse::<Verity>();
    assert_eq!(far, Err(VerityError::TooLong { data_bytes: u64::MAX }));
}

#[test]
fn a_blob_has_the_size_that_its_tree_gives_it() {
    let verity = Verity::new(Digest::from_hash([1; 32]), 129 * 4096).unwrap();
    let expected_bytes = (129 + 2 + 1) * 4096 + 1024;
    assert_eq!(verity.shape_in(expected_bytes).unwrap().tree_bytes(), 3 * 4096);
    for size_bytes in [0, expected_bytes - 1, expected_bytes + 1, u64::MAX] {
        assert_eq!(verity.shape_in(size_bytes), Err(VerityError::Size { expected_bytes, size_bytes }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_changed_byte_is_found(len in 1_usize..600 * KIB, at in any::<prop::sample::Index>(), mask in 1_u8.., piece in 1_usize..9000) {
        let mut content = content(len);
        let (shape, mut blocks, digest) = built(&content, piece);
        let verifier = Verifier::new(shape.clone(), digest);
        prop_assert_eq!(wrong_block(&verifier, &content, &blocks), None);
        let at = at.index(len + blocks.len() * BLOCK_LEN);
        match content.get_mut(at) {
            Some(byte) => *byte ^= mask,
            None => {
                let number = shape.data_blocks() + ((at - len) / BLOCK_LEN) as u64;
                blocks.get_mut(&number).unwrap()[(at - len) % BLOCK_LEN] ^= mask;
            }
        }
        prop_assert!(wrong_block(&verifier, &content, &blocks).is_some());
    }
}
