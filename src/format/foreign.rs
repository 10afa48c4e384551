//! Files that people take for a layer and that are something else, told by their first bytes.

use std::fmt;

/// What a file is that is no layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// Compressed by gzip, as layers of ordinary images are.
    Gzip,
    /// Compressed by zstd.
    Zstd,
    /// Compressed by xz.
    Xz,
    /// Compressed by bzip2.
    Bzip2,
    /// A zip archive.
    Zip,
    /// A tar archive of files.
    Tar,
    /// A disk of QEMU.
    Qcow2,
    /// A program or library.
    Elf,
    /// A file system.
    Squashfs,
    /// A file system.
    Erofs,
    /// A file system.
    Ext4,
    /// A document.
    Json,
    /// Nothing but zeroes, as far as was looked.
    Zeroes,
}

/// What stands at which offset in bytes.
const MARKS: [(usize, &[u8], Foreign); 12] = [
    (0, b"\x1f\x8b", Foreign::Gzip),
    (0, b"\x28\xb5\x2f\xfd", Foreign::Zstd),
    (0, b"\xfd7zXZ\0", Foreign::Xz),
    (0, b"BZh", Foreign::Bzip2),
    (0, b"PK\x03\x04", Foreign::Zip),
    (0, b"QFI\xfb", Foreign::Qcow2),
    (0, b"\x7fELF", Foreign::Elf),
    (0, b"hsqs", Foreign::Squashfs),
    (0, b"{", Foreign::Json),
    (257, b"ustar", Foreign::Tar),
    (1024, b"\xe2\xe1\xf5\xe0", Foreign::Erofs),
    (1080, b"\x53\xef", Foreign::Ext4),
];

impl Foreign {
    /// What the file is that begins with `head`, of which some KiB are enough; `None` where that is not known.
    #[must_use]
    pub fn of(head: &[u8]) -> Option<Self> {
        let has = |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
        if let Some((.., foreign)) = MARKS.iter().find(|(at, mark, _)| has(*at, mark)) {
            return Some(*foreign);
        }
        let is_zero = !head.is_empty() && head.iter().all(|byte| *byte == 0);
        is_zero.then_some(Self::Zeroes)
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "a file compressed by gzip, as layers of ordinary images are",
            Self::Zstd => "a file compressed by zstd, as layers of ordinary images may be",
            Self::Xz => "a file compressed by xz",
            Self::Bzip2 => "a file compressed by bzip2",
            Self::Zip => "a zip archive",
            Self::Tar => "a tar archive of files, as layers of ordinary images are",
            Self::Qcow2 => "a qcow2 disk",
            Self::Elf => "an ELF program",
            Self::Squashfs => "a squashfs file system",
            Self::Erofs => "an EROFS file system",
            Self::Ext4 => "an ext4 file system",
            Self::Json => "a JSON document (that of an image is taken by --config)",
            Self::Zeroes => "a file that begins with zeroes only",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_their_first_bytes_however_few_there_are() {
        for (at, mark, foreign) in MARKS {
            let mut head = vec![b'x'; at];
            head.extend_from_slice(mark);
            assert_eq!(Foreign::of(&head), Some(foreign));
            head.resize(4096, b'y');
            assert_eq!(Foreign::of(&head), Some(foreign));
            head.truncate(at + mark.len() - 1);
            assert_eq!(Foreign::of(&head), None, "{foreign}");
        }
        assert_eq!(Foreign::of(&[0; 4096]), Some(Foreign::Zeroes));
        assert_eq!((Foreign::of(&[]), Foreign::of(b"text")), (None, None));
    }
}
