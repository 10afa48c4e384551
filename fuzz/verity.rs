//! Annotations of Merkle trees, and blobs that are said to have one.

use stratabd::format::verity::{BLOCK_BYTES, TreeBuilder, TreeShape, Verifier, Verity, VerityError};

/// Blocks of the largest blob that is looked at.
const MOST_BLOCKS: u64 = 1024;

/// A line with the annotation, and the blob. All blocks of it are right if and only if its tree is the one of its data.
pub fn verity(data: &[u8]) {
    let line = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (annotation, blob) = data.split_at(line);
    let blob = blob.get(1..).unwrap_or_default();
    let Ok(Ok(verity)) = str::from_utf8(annotation).map(str::parse::<Verity>) else { return };
    assert_eq!(verity.to_string().as_bytes(), annotation, "one text for one meaning");
    let Ok(shape) = verity.shape_in(blob.len() as u64) else { return };
    if shape.tree_blocks().end > MOST_BLOCKS {
        return;
    }
    let block_bytes = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
    let blocks: Vec<&[u8]> = blob.chunks_exact(block_bytes).collect();
    let block = |number: u64| usize::try_from(number).ok().and_then(|number| blocks.get(number).copied());
    let verifier = Verifier::new(shape.clone(), verity.digest());
    let is_right = (0..shape.tree_blocks().end).rev().all(|number| {
        let parent = shape.parent(number).and_then(|(parent, _)| block(parent)).unwrap_or_default();
        block(number).is_some_and(|bytes| verifier.check(number, bytes, parent).is_ok())
    });
    let data_bytes = usize::try_from(shape.data_bytes()).unwrap_or(usize::MAX);
    assert_eq!(is_right, is_tree_of(&shape, &verity, blob.get(..data_bytes).unwrap_or_default(), block));
}

fn is_tree_of<'a>(
    shape: &TreeShape,
    verity: &Verity,
    data: &[u8],
    block: impl Fn(u64) -> Option<&'a [u8]>,
) -> bool {
    let mut same = true;
    let mut compare = |number: u64, made: &[u8; 4096]| {
        same &= block(number) == Some(&made[..]);
        Ok::<(), VerityError>(())
    };
    let mut builder = TreeBuilder::new(shape.clone());
    let pushed = builder.push(data, &mut compare);
    let digest = pushed.and_then(|()| builder.finish(&mut compare));
    same && digest == Ok(verity.digest())
}
