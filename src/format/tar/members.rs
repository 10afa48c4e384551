//! Where the members of an archive lie that is read in place, as one of images is: their content is passed over, and found again by name.
//!
//! Give [`MemberIndex`] the bytes from where it wants them, and it wants headers alone. Names are paths below the archive: one that leads
//! out of it is an error, and so is one that two members have. Directories and devices are no members; links are followed, within the archive, when
//! something is looked for.
//!
//! Memory: 64 Ki members, and 16 MiB for what they are called and what links lead to.

use std::collections::BTreeMap;

use super::archive::{ArchiveError, ArchiveReader, EntryKind, Event};
use crate::block::ByteRange;

/// An archive of images has a handful for each layer.
const MEMBERS_LIMIT: usize = 1 << 16;
/// Names and targets of links, together. An OCI layout with as many blobs as there may be members has less than half of it.
const NAMES_LIMIT_BYTES: usize = 16 << 20;
/// As many as Linux follows.
const LINKS_LIMIT: usize = 40;

/// Why an archive, or a member of it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemberError {
    /// It is no archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The file ends in the content of a member.
    #[error("the archive ends after {size_bytes} bytes, and {} would end at {end}", .name.escape_ascii())]
    Truncated {
        /// The member.
        name: Vec<u8>,
        /// Where its content ends.
        end: u64,
        /// Length of the archive.
        size_bytes: u64,
    },
    /// Other tools may write there.
    #[error("the name {} leads out of the archive", .0.escape_ascii())]
    Outside(Vec<u8>),
    /// Tools differ in which of them counts.
    #[error("the archive has two members called {}", .0.escape_ascii())]
    Twice(Vec<u8>),
    /// More than any archive of images has.
    #[error(
        "the archive has more than {MEMBERS_LIMIT} members, or more than {NAMES_LIMIT_BYTES} bytes of names"
    )]
    TooMany,
    /// Its content is not in one piece.
    #[error("the member {} is a sparse file, which cannot be read in place", .0.escape_ascii())]
    Sparse(Vec<u8>),
    /// There is none of this name.
    #[error("the archive has no member {}", .0.escape_ascii())]
    Missing(Vec<u8>),
    /// The links form a circle, or come close to it.
    #[error("the links that begin at the member {} lead to no file", .0.escape_ascii())]
    Links(Vec<u8>),
}

#[derive(Debug, Clone)]
enum Member {
    File(ByteRange),
    Sparse,
    /// Where it leads, seen from the root of the archive.
    Link(Vec<u8>),
}

/// The members of an archive, as far as it was read.
#[derive(Debug)]
pub struct MemberIndex {
    reader: ArchiveReader,
    size_bytes: u64,
    /// Where the next bytes are wanted from.
    wanted: u64,
    members: Members,
    names_bytes: usize,
}

/// The members of an archive.
#[derive(Debug, Clone, Default)]
pub struct Members(BTreeMap<Vec<u8>, Member>);

impl MemberIndex {
    /// Of an archive of `size_bytes`, of which nothing was read.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        let (reader, members) = (ArchiveReader::new(), Members::default());
        Self { reader, size_bytes, wanted: 0, members, names_bytes: 0 }
    }

    /// From where the next bytes are wanted; `None` when all members are known.
    #[must_use]
    pub fn wanted(&self) -> Option<u64> {
        (self.wanted < self.size_bytes).then_some(self.wanted)
    }

    /// Takes `bytes` from where they were wanted, of which it may leave some.
    ///
    /// # Errors
    /// [`MemberError`], and then no more is to be given.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), MemberError> {
        let mut input = bytes;
        while let Some(event) = self.reader.next(&mut input)? {
            match event {
                Event::Entry(entry) => {
                    let taken = bytes.len().saturating_sub(input.len()) as u64;
                    let start = self.wanted.saturating_add(taken);
                    let (content_bytes, padding_bytes) = self.reader.skip_content();
                    let end = start.saturating_add(content_bytes);
                    if end > self.size_bytes {
                        let size_bytes = self.size_bytes;
                        return Err(MemberError::Truncated { name: entry.name, end, size_bytes });
                    }
                    let content = ByteRange::between(start, end);
                    self.add(entry.name, entry.kind, entry.extents.is_some(), content)?;
                    self.wanted = end.saturating_add(padding_bytes);
                    return Ok(());
                }
                Event::ArchiveEnd => {
                    self.wanted = self.size_bytes;
                    return Ok(());
                }
                Event::Data { .. } | Event::EntryEnd => {}
            }
        }
        self.wanted = self.wanted.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// All of them.
    ///
    /// # Errors
    /// [`MemberError::Archive`] where the archive cannot end there.
    pub fn finish(self) -> Result<Members, MemberError> {
        self.reader.finish()?;
        Ok(self.members)
    }

    fn add(
        &mut self,
        name: Vec<u8>,
        kind: EntryKind,
        is_sparse: bool,
        content: ByteRange,
    ) -> Result<(), MemberError> {
        let path = joined(&[], &name)?;
        let member = match kind {
            EntryKind::File if is_sparse => Member::Sparse,
            EntryKind::File => Member::File(content),
            EntryKind::HardLink(target) => Member::Link(joined(&[], &target)?),
            EntryKind::Symlink(target) => Member::Link(joined(parent(&path), &target)?),
            _ => return Ok(()),
        };
        let target_bytes = if let Member::Link(target) = &member { target.len() } else { 0 };
        self.names_bytes = self.names_bytes.saturating_add(path.len()).saturating_add(target_bytes);
        if self.members.0.len() >= MEMBERS_LIMIT || self.names_bytes > NAMES_LIMIT_BYTES {
            return Err(MemberError::TooMany);
        }
        match self.members.0.insert(path, member) {
            None => Ok(()),
            Some(_) => Err(MemberError::Twice(name)),
        }
    }
}

impl Members {
    /// Where the content of the member `name` lies in the archive, links followed.
    ///
    /// # Errors
    /// [`MemberError`], where there is none, or it is in several pieces.
    pub fn find(&self, name: &[u8]) -> Result<ByteRange, MemberError> {
        let mut path = joined(&[], name)?;
        for _ in 0..=LINKS_LIMIT {
            match self.0.get(&path) {
                Some(Member::File(content)) => return Ok(*content),
                Some(Member::Sparse) => return Err(MemberError::Sparse(path)),
                Some(Member::Link(target)) => path.clone_from(target),
                None => return Err(MemberError::Missing(path)),
            }
        }
        Err(MemberError::Links(name.to_vec()))
    }

    /// Whether there is a member of this name.
    #[must_use]
    pub fn has(&self, name: &[u8]) -> bool {
        self.0.contains_key(name)
    }
}

/// The folder that a path is in.
fn parent(path: &[u8]) -> &[u8] {
    let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path.get(..slash).unwrap_or_default()
}

/// `name`, seen from the folder `base`, without the parts that change nothing.
fn joined(base: &[u8], name: &[u8]) -> Result<Vec<u8>, MemberError> {
    let outside = || MemberError::Outside(name.to_vec());
    if name.first() == Some(&b'/') {
        return Err(outside());
    }
    let mut parts: Vec<&[u8]> = base.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop().ok_or_else(outside)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a test that goes wrong fails")]
mod tests {
    use super::*;

    fn header(name: &str, kind: u8, link: &str, size: u64) -> Vec<u8> {
        let mut block = vec![0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000644\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn file(name: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = header(name, b'0', "", content.len() as u64);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn link(name: &str, kind: u8, target: &str) -> Vec<u8> {
        header(name, kind, target, 0)
    }

    /// Reads an archive by so many bytes, and says how many it was given.
    fn index(archive: &[u8], piece: usize) -> Result<(Members, usize), MemberError> {
        let mut index = MemberIndex::new(archive.len() as u64);
        let mut given = 0;
        while let Some(at) = index.wanted() {
            let rest = &archive[usize::try_from(at).unwrap()..];
            let bytes = &rest[..piece.min(rest.len())];
            given += bytes.len();
            index.put(bytes)?;
        }
        index.finish().map(|members| (members, given))
    }

    #[test]
    fn members_are_found_and_their_content_is_passed_over() {
        let large = vec![7; 100_000];
        let parts = [
            header("./dir/", b'5', "", 0),
            link("dir/link", b'2', "../large"),
            link("hard", b'1', "dir/link"),
            file("large", &large),
            file("./dir/small", b"small"),
            vec![0; 1024],
            b"whatever follows".to_vec(),
        ];
        let archive = parts.concat();
        for piece in [1, 100, 512, 4096] {
            let (members, given) = index(&archive, piece).unwrap();
            for name in [&b"large"[..], b"dir/link", b"hard", b"./hard"] {
                let found = members.find(name).unwrap();
                assert_eq!((found.start(), found.len()), (4 * 512, 100_000));
            }
            let small = members.find(b"dir/small").unwrap();
            assert_eq!(&archive[usize::try_from(small.start()).unwrap()..][..5], b"small");
            assert!(given <= 7 * 512 + 5 * piece, "{given} bytes by {piece}");
            assert_eq!(members.find(b"dir"), Err(MemberError::Missing(b"dir".to_vec())));
        }
        // Cut off behind a member it is one still, as tar has it, and within one it is not.
        index(&archive[..4 * 512 + 100_000], 512).unwrap();
        let cut = index(&archive[..4 * 512 + 99_999], 512).unwrap_err();
        assert!(matches!(&cut, MemberError::Truncated { name, .. } if name == b"large"), "{cut:?}");
        assert!(matches!(index(&archive[..700], 512), Err(MemberError::Archive(_))));
    }

    #[test]
    fn hostile_names_and_links_are_refused() {
        for (parts, error) in [
            (vec![file("../x", b"")], MemberError::Outside(b"../x".to_vec())),
            (vec![file("/etc/x", b"")], MemberError::Outside(b"/etc/x".to_vec())),
            (vec![file("a/../../x", b"")], MemberError::Outside(b"a/../../x".to_vec())),
            (vec![link("a/b", b'2', "../../x")], MemberError::Outside(b"../../x".to_vec())),
            (vec![link("a", b'1', "/x")], MemberError::Outside(b"/x".to_vec())),
            (vec![file("x", b"1"), file("./x", b"2")], MemberError::Twice(b"./x".to_vec())),
            (vec![file("x", b"1"), link("x", b'2', "y")], MemberError::Twice(b"x".to_vec())),
        ] {
            assert_eq!(index(&parts.concat(), 512).unwrap_err(), error);
        }
        let circle = [link("a", b'2', "a"), link("b", b'1', "c"), link("c", b'2', "b"), link("d", b'2', "e")];
        let (members, _) = index(&circle.concat(), 512).unwrap();
        for name in [&b"a"[..], b"b", b"c"] {
            assert_eq!(members.find(name), Err(MemberError::Links(name.to_vec())));
        }
        assert_eq!(members.find(b"d"), Err(MemberError::Missing(b"e".to_vec())));
        let claim = header("huge", b'0', "", 8 << 30);
        assert!(matches!(index(&claim, 512), Err(MemberError::Truncated { end: 0x2_0000_0200, .. })));
    }

    #[test]
    fn no_archive_takes_more_memory_than_it_may() {
        let mut index = MemberIndex::new(u64::MAX);
        let name_bytes = 1 << 20;
        let mut number = 0;
        let refused = loop {
            number += 1;
            let mut name = format!("{number}-").into_bytes();
            name.resize(name_bytes, b'n');
            let parts = [header("", b'L', "", name_bytes as u64), name, header("", b'0', "", 0)];
            if let Err(error) = index.put(&parts.concat()) {
                break error;
            }
        };
        assert_eq!((refused, number), (MemberError::TooMany, NAMES_LIMIT_BYTES / name_bytes + 1));
    }
}
