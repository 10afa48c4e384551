//! The fuzz targets of the reader of tar archives.

use stratabd::format::tar::{
    archive::{ArchiveError, ArchiveReader, Entry, EntryKind, Event},
    members::{MemberError, MemberIndex},
};

use super::check_message;

/// The first byte chooses into what pieces the rest is cut, which is an archive. The checksums of what has a magic are set
/// right, or no input would get past them.
pub fn tar_archive(input: &[u8]) {
    let Some((choice, archive)) = input.split_first() else { return };
    let mut archive = archive.to_vec();
    for block in archive.as_chunks_mut::<512>().0 {
        if block[257..].starts_with(b"ustar") {
            right_checksum(block);
        }
    }
    let whole = read(&archive, archive.len().max(1));
    let pieces = read(&archive, usize::from(*choice).max(1));
    assert_eq!(whole, pieces);
    if let Err(error) = whole.1 {
        check_message(&error);
        assert!(error.offset <= archive.len() as u64);
    }
}

/// As [`tar_archive`]. What lies where it is read in place is what it is when it is read in order.
pub fn tar_members(input: &[u8]) {
    let Some((choice, archive)) = input.split_first() else { return };
    let mut archive = archive.to_vec();
    for block in archive.as_chunks_mut::<512>().0 {
        if block[257..].starts_with(b"ustar") {
            right_checksum(block);
        }
    }
    let mut index = MemberIndex::new(archive.len() as u64);
    while let Some(at) = index.wanted() {
        let rest = usize::try_from(at).ok().and_then(|at| archive.get(at..)).expect("it lies in the input");
        let piece = rest.get(..usize::from(*choice).max(1)).unwrap_or(rest);
        if let Err(error) = index.put(piece) {
            check_message(&error);
            return;
        }
        assert!(index.wanted().is_none_or(|next| next > at));
    }
    let (items, read) = read(&archive, archive.len().max(1));
    let Ok(members) = index.finish() else {
        assert!(read.is_err());
        return;
    };
    for (entry, stored_bytes, _) in items.iter().filter(|(entry, ..)| entry.kind == EntryKind::File) {
        let found = members.find(&entry.name);
        assert_eq!(entry.extents.is_some(), matches!(found, Err(MemberError::Sparse(_))));
        if let Ok(content) = found {
            assert!(content.end() <= archive.len() as u64 && content.len() == *stored_bytes);
        }
    }
}

fn right_checksum(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An entry, how much data it had, and some hash of where that lay.
type Item = (Entry, u64, u64);

fn read(archive: &[u8], piece_bytes: usize) -> (Vec<Item>, Result<(), ArchiveError>) {
    let mut reader = ArchiveReader::new();
    let mut items: Vec<Item> = Vec::new();
    let (mut is_open, mut has_ended) = (false, false);
    for mut piece in archive.chunks(piece_bytes) {
        loop {
            match reader.next(&mut piece) {
                Ok(Some(event)) => {
                    assert!(!has_ended && is_open != matches!(event, Event::Entry(_) | Event::ArchiveEnd));
                    is_open = matches!(event, Event::Entry(_) | Event::Data { .. });
                    has_ended = event == Event::ArchiveEnd;
                    put(&mut items, event);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(reader.finish(), Err(error));
                    return (items, Err(error));
                }
            }
        }
        assert!(piece.is_empty());
    }
    (items, reader.finish())
}

fn put(items: &mut Vec<Item>, event: Event<'_>) {
    if let Event::Entry(entry) = event {
        check_entry(&entry);
        items.push((*entry, 0, 0));
        return;
    }
    let Some((entry, data, hash)) = items.last_mut() else { return };
    match event {
        Event::Data { offset, bytes } => {
            let (len, end) = (bytes.len() as u64, offset + bytes.len() as u64);
            assert!(len > 0 && end <= entry.size);
            if let Some(extents) = &entry.extents {
                assert!(extents.iter().any(|extent| extent.start() <= offset && end <= extent.end()));
            }
            *data += len;
            let places = (offset..end).zip(bytes);
            *hash = places.fold(*hash, |hash, (at, byte)| hash.wrapping_add(at ^ u64::from(*byte) << 56));
        }
        Event::EntryEnd => {
            let extents = entry.extents.as_ref();
            let wanted =
                extents.map_or(entry.size, |extents| extents.iter().map(|extent| extent.len()).sum());
            assert_eq!(*data, wanted);
        }
        Event::Entry(_) | Event::ArchiveEnd => {}
    }
}

fn check_entry(entry: &Entry) {
    assert!(entry.mode <= 0o7777 && entry.mtime.nanoseconds < 1_000_000_000);
    assert!(!entry.name.contains(&0));
    assert!(entry.size == 0 || matches!(entry.kind, EntryKind::File | EntryKind::Other(_)));
    assert!(entry.xattrs.keys().all(|name| !name.is_empty()));
    let mut end = None;
    for extent in entry.extents.iter().flat_map(|extents| extents.iter()) {
        assert!(!extent.is_empty() && end < Some(extent.start()));
        end = Some(extent.end());
    }
    assert!(end <= Some(entry.size));
}
