//! The block before an entry: which dialect it is in, and its fields as that dialect has them.

use std::ops::Range;

use super::{
    super::block::{Block, CHECKSUM_PLACE, checksum_matches},
    ArchiveField, ArchiveRule, number,
};

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_ATIME: Range<usize> = 476..488;
const STAR_CTIME: Range<usize> = 488..500;
const STAR_TRAILER: Range<usize> = 508..512;
const GNU_ATIME: Range<usize> = 345..357;
const GNU_CTIME: Range<usize> = 357..369;
pub(super) const GNU_SPARSE: Range<usize> = 386..483;
pub(super) const GNU_REAL_SIZE: Range<usize> = 483..495;

/// Who wrote the fields past those that all have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V7,
    /// Also that of pax.
    Ustar,
    Star,
    Gnu,
}

impl Dialect {
    fn of(block: &Block) -> Self {
        let magic = at(block, MAGIC);
        if magic.starts_with(b"ustar\0") {
            if at(block, STAR_TRAILER) == b"tar\0" { Self::Star } else { Self::Ustar }
        } else if magic == b"ustar  \0" {
            Self::Gnu
        } else {
            Self::V7
        }
    }
}

/// A header as it is written.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) dialect: Dialect,
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) size: i64,
    pub(super) mtime: i64,
    pub(super) atime: Option<i64>,
    pub(super) ctime: Option<i64>,
    pub(super) major: i64,
    pub(super) minor: i64,
}

impl Header {
    pub(super) fn decode(block: &Block) -> Result<Self, ArchiveRule> {
        let stored = number::octal(at(block, CHECKSUM_PLACE)).ok_or(ArchiveRule::Checksum)?;
        if !checksum_matches(block, stored) {
            return Err(ArchiveRule::Checksum);
        }
        let number = |place, field| number::field(at(block, place)).ok_or(ArchiveRule::NotNumber(field));
        let [.., kind, _] = at(block, CHECKSUM_PLACE.start..LINK.start.saturating_add(1)) else {
            return Err(ArchiveRule::Checksum);
        };
        let mut header = Self {
            dialect: Dialect::of(block),
            kind: *kind,
            name: number::text(at(block, NAME)).to_vec(),
            link: number::text(at(block, LINK)).to_vec(),
            mode: number(MODE, ArchiveField::Mode)?,
            uid: number(UID, ArchiveField::Uid)?,
            gid: number(GID, ArchiveField::Gid)?,
            size: number(SIZE, ArchiveField::Size)?,
            mtime: number(MTIME, ArchiveField::Mtime)?,
            atime: None,
            ctime: None,
            major: 0,
            minor: 0,
        };
        if header.dialect != Dialect::V7 {
            header.major = number(MAJOR, ArchiveField::Major)?;
            header.minor = number(MINOR, ArchiveField::Minor)?;
        }
        match header.dialect {
            Dialect::V7 => {}
            Dialect::Ustar => header.put_prefix(at(block, PREFIX)),
            Dialect::Star => {
                header.put_prefix(at(block, STAR_PREFIX));
                header.atime = Some(number(STAR_ATIME, ArchiveField::Atime)?);
                header.ctime = Some(number(STAR_CTIME, ArchiveField::Ctime)?);
            }
            Dialect::Gnu => header.put_gnu_times(block),
        }
        Ok(header)
    }

    fn put_prefix(&mut self, field: &[u8]) {
        let prefix = number::text(field);
        if !prefix.is_empty() {
            self.name = [prefix, b"/", &self.name].concat();
        }
    }

    /// Go before 1.8 wrote the prefix of ustar into headers of GNU; Go reads it where it cannot be two times.
    fn put_gnu_times(&mut self, block: &Block) {
        let time = |place| match at(block, place) {
            [0, ..] => Some(None),
            field => number::field(field).map(Some),
        };
        match (time(GNU_ATIME), time(GNU_CTIME)) {
            (Some(atime), Some(ctime)) => (self.atime, self.ctime) = (atime, ctime),
            _ if number::text(at(block, PREFIX)).is_ascii() => self.put_prefix(at(block, PREFIX)),
            _ => {}
        }
    }
}

/// A field of a block. Places are constants that lie inside.
pub(super) fn at(block: &Block, place: Range<usize>) -> &[u8] {
    block.get(place).unwrap_or_default()
}
