//! The target of the blobs of ordinary layers: gzip, zstd, or what is neither.

use std::io::Read;

use convertor::layer::{LayerError, LayerReader, LayerSummary};
use sha2::{Digest as _, Sha256};
use stratabd::format::oci::Digest;

use super::check_message;

/// A bomb goes on for as long as it is let: what it makes is bounded by whoever reads it.
const ARCHIVE_LIMIT: usize = 4 << 20;

/// The first byte chooses into what pieces the rest is cut, which is a blob.
pub fn layer_blob(input: &[u8]) {
    let Some((choice, blob)) = input.split_first() else { return };
    let whole = read(blob, blob.len().max(1));
    let pieces = read(blob, usize::from(*choice).max(1));
    match (whole, pieces) {
        (Ok((archive, summary)), Ok((same_archive, same_summary))) => {
            assert!(archive == same_archive && summary == same_summary);
            if let Some(summary) = summary {
                let digest = |bytes: &[u8]| Digest::from_hash(Sha256::digest(bytes).into());
                assert_eq!(summary.blob_bytes, blob.len() as u64);
                assert_eq!(summary.archive_bytes, archive.len() as u64);
                assert_eq!((summary.blob_digest, summary.diff_id), (digest(blob), digest(&archive)));
            }
        }
        (Err(error), Err(other)) => {
            check_message(&error);
            check_message(&other);
        }
        (whole, pieces) => panic!("{:?} in one piece, and {:?} in several", whole.err(), pieces.err()),
    }
}

/// Gives no more than so many bytes at once.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, dest: &mut [u8]) -> std::io::Result<usize> {
        let len = dest.len().min(self.1);
        self.0.read(dest.get_mut(..len).unwrap_or_default())
    }
}

/// The archive, or its beginning, and what all is called where it has ended.
fn read(blob: &[u8], piece_bytes: usize) -> Result<(Vec<u8>, Option<LayerSummary>), LayerError> {
    let mut reader = LayerReader::new(Trickle(blob, piece_bytes))?;
    let (mut archive, mut filled) = (vec![0; ARCHIVE_LIMIT], 0);
    while let Some(rest) = archive.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let len = rest.len().min(piece_bytes.saturating_mul(64));
        match reader.fill(rest.get_mut(..len).unwrap_or_default())? {
            0 => {
                archive.truncate(filled);
                return Ok((archive, Some(reader.finish()?)));
            }
            count => filled += count,
        }
    }
    Ok((archive, None))
}
