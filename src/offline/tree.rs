//! Puts the Merkle tree of a layer's blob behind its payload.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use sha2::{Digest as _, Sha256};

use super::OfflineError;
use crate::format::{
    oci::{Digest, Layer},
    tar::{self, Envelope, SecondMember},
    verity::{BLOCK_BYTES, Block, END_BYTES, TreeBuilder, TreeShape, Verity, VerityError},
};

/// What the tree is called in the archive that a blob is.
const NAME: &str = "overlaybd.verity";

/// Bytes that are read at once.
const PART_BYTES: usize = 1 << 20;

/// The end of the archive is the end of a blob with a tree.
const _: () = assert!(END_BYTES == SecondMember::END_BYTES && BLOCK_BYTES == tar::ALIGNMENT);

/// Puts the tree behind the payload of the blob of `size_bytes` in `file`, which errors call `path`, in the place of whatever is
/// there, and returns the layer that it is then. It is read once; memory is a block for each level of the tree.
///
/// # Errors
/// Where the blob is no layer in a tar envelope, or the file cannot be read and written.
pub fn add_tree(file: &File, path: &Path, size_bytes: u64) -> Result<Layer, OfflineError> {
    let failed = |action| OfflineError::io(path, action);
    let head = read(file, 0, tar::HEAD_BYTES).map_err(failed("read it"))?;
    let envelope = Envelope::detect(&head, size_bytes)
        .map_err(|source| OfflineError::Tar { path: path.to_owned(), source })?
        .ok_or_else(|| OfflineError::NoEnvelope(path.to_owned()))?;
    let unproven = |source| OfflineError::Unproven { path: path.to_owned(), source };
    let payload_end = envelope.payload_offset.saturating_add(envelope.payload_len);
    let member = SecondMember::behind(payload_end);
    let shape = TreeShape::new(member.offset).map_err(unproven)?;
    let end = member.offset.saturating_add(shape.tree_bytes()).saturating_add(END_BYTES);
    // What follows the payload goes, so that zeroes are left at the end.
    let written = file
        .set_len(payload_end)
        .and_then(|()| file.write_all_at(&member.head(NAME, shape.tree_bytes()), payload_end))
        .and_then(|()| file.set_len(end));
    written.map_err(failed("write it"))?;

    let mut hash = Sha256::new();
    let mut builder = TreeBuilder::new(shape);
    let put = |number: u64, block: &Block| {
        file.write_all_at(block, number.saturating_mul(BLOCK_BYTES)).map_err(failed("write it"))
    };
    each_part(file, path, 0..member.offset, |part| {
        hash.update(part);
        builder.push(part, put)
    })?;
    let digest = builder.finish(|number, block| put(number, block).map_err(TreeError::File));
    let digest = digest.map_err(|error| match error {
        TreeError::File(error) => error,
        TreeError::Rule(source) => unproven(source),
    })?;
    each_part(file, path, member.offset..end, |part| {
        hash.update(part);
        Ok(())
    })?;
    let verity = Verity::new(digest, member.offset).map_err(unproven)?;
    Ok(Layer { digest: Digest::from_hash(hash.finalize().into()), size_bytes: end, verity: Some(verity) })
}

/// Why a tree could not be ended.
enum TreeError {
    File(OfflineError),
    Rule(VerityError),
}

impl From<VerityError> for TreeError {
    fn from(rule: VerityError) -> Self {
        Self::Rule(rule)
    }
}

fn each_part(
    file: &File,
    path: &Path,
    range: std::ops::Range<u64>,
    mut take: impl FnMut(&[u8]) -> Result<(), OfflineError>,
) -> Result<(), OfflineError> {
    let mut part = vec![0; PART_BYTES];
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from(range.end.saturating_sub(at)).unwrap_or(PART_BYTES).min(PART_BYTES);
        let part = part.get_mut(..len).unwrap_or_default();
        file.read_exact_at(part, at).map_err(OfflineError::io(path, "read it"))?;
        take(part)?;
        at = at.saturating_add(len as u64);
    }
    Ok(())
}

/// At most `len` bytes from `offset` on.
fn read(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read_at(room, offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled = filled.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
