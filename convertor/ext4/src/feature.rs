//! The features of an ext4: which ones are kept up, which ones only bear with a writer that knows nothing of them.

use crate::error::Error;

/// `s_feature_compat`.
pub(crate) mod compatible {
    pub(crate) const HAS_JOURNAL: u32 = 0x4;
    pub(crate) const EXT_ATTR: u32 = 0x8;
    pub(crate) const DIR_INDEX: u32 = 0x20;
    pub(crate) const SPARSE_SUPER2: u32 = 0x200;
    const DIR_PREALLOC: u32 = 0x1;
    const RESIZE_INODE: u32 = 0x10;
    const STABLE_INODES: u32 = 0x800;
    const ORPHAN_FILE: u32 = 0x1000;
    /// What those do that are not named above does not touch what is written here.
    pub(crate) const SUPPORTED: u32 = DIR_PREALLOC
        | HAS_JOURNAL
        | EXT_ATTR
        | RESIZE_INODE
        | DIR_INDEX
        | SPARSE_SUPER2
        | STABLE_INODES
        | ORPHAN_FILE;
}

/// `s_feature_incompat`.
pub(crate) mod incompatible {
    pub(crate) const FILETYPE: u32 = 0x2;
    pub(crate) const EXTENTS: u32 = 0x40;
    pub(crate) const WIDE: u32 = 0x80;
    pub(crate) const FLEX_BG: u32 = 0x200;
    pub(crate) const REQUIRED: u32 = FILETYPE | EXTENTS;
    pub(crate) const SUPPORTED: u32 = REQUIRED | WIDE | FLEX_BG;
}

/// `s_feature_ro_compat`.
pub(crate) mod read_only {
    pub(crate) const SPARSE_SUPER: u32 = 0x1;
    pub(crate) const LARGE_FILE: u32 = 0x2;
    pub(crate) const HUGE_FILE: u32 = 0x8;
    /// uninit_bg.
    pub(crate) const GDT_CSUM: u32 = 0x10;
    pub(crate) const DIR_NLINK: u32 = 0x20;
    pub(crate) const EXTRA_ISIZE: u32 = 0x40;
    pub(crate) const SUPPORTED: u32 =
        SPARSE_SUPER | LARGE_FILE | HUGE_FILE | GDT_CSUM | DIR_NLINK | EXTRA_ISIZE;
    /// What a layer makes use of: an older file system has these from then on.
    pub(crate) const USED: u32 = LARGE_FILE | HUGE_FILE | DIR_NLINK | EXTRA_ISIZE;
}

/// Names for refusals, as `tune2fs` has them.
const COMPATIBLE_NAMES: [(u32, &str); 4] =
    [(0x2, "imagic_inodes"), (0x40, "lazy_bg"), (0x100, "exclude_bitmap"), (0x400, "fast_commit")];
const INCOMPATIBLE_NAMES: [(u32, &str); 13] = [
    (0x1, "compression"),
    (0x4, "needs_recovery"),
    (0x8, "journal_dev"),
    (0x10, "meta_bg"),
    (0x100, "mmp"),
    (0x400, "ea_inode"),
    (0x1000, "dirdata"),
    (0x2000, "metadata_csum_seed"),
    (0x4000, "large_dir"),
    (0x8000, "inline_data"),
    (0x10000, "encrypt"),
    (0x20000, "casefold"),
    (0x800, "extent_migrate"),
];
const READ_ONLY_NAMES: [(u32, &str); 11] = [
    (0x4, "btree_dir"),
    (0x80, "snapshot"),
    (0x100, "quota"),
    (0x200, "bigalloc"),
    (0x400, "metadata_csum"),
    (0x800, "replica"),
    (0x1000, "read-only"),
    (0x2000, "project"),
    (0x4000, "shared_blocks"),
    (0x8000, "verity"),
    (0x10000, "orphan_present"),
];

/// The three words of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Features {
    pub(crate) compatible: u32,
    pub(crate) incompatible: u32,
    pub(crate) read_only: u32,
}

impl Features {
    /// Refuses by name what is not kept up, and what lacks what is written.
    pub(crate) fn check(self) -> Result<(), Error> {
        let Self { compatible, incompatible, read_only } = self;
        let words = [
            (compatible & !compatible::SUPPORTED, &COMPATIBLE_NAMES[..]),
            (incompatible & !incompatible::SUPPORTED, &INCOMPATIBLE_NAMES[..]),
            (read_only & !read_only::SUPPORTED, &READ_ONLY_NAMES[..]),
        ];
        let unsupported: Vec<String> =
            words.into_iter().filter(|(left, _)| *left != 0).map(|(left, names)| name(left, names)).collect();
        if !unsupported.is_empty() {
            return Err(Error::Unsupported(format!("it has {}", unsupported.join(", "))));
        }
        if incompatible & incompatible::REQUIRED != incompatible::REQUIRED {
            return Err(Error::Unsupported("it lacks extent or filetype".to_owned()));
        }
        Ok(())
    }
}

fn name(left: u32, names: &[(u32, &str)]) -> String {
    let named: Vec<&str> = names.iter().filter(|(bit, _)| left & bit != 0).map(|(_, name)| *name).collect();
    let unknown = names.iter().fold(left, |rest, (bit, _)| rest & !bit);
    match (named.is_empty(), unknown) {
        (false, 0) => named.join(", "),
        (true, _) => format!("features of unknown bits {unknown:#x}"),
        (false, _) => format!("{} and features of unknown bits {unknown:#x}", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_up_is_refused_by_name() {
        let good = Features { compatible: 0x23c, incompatible: 0x2c2, read_only: 0x7b };
        good.check().unwrap();
        let refused = Features { read_only: 0x400, incompatible: 0x8_0000 | good.incompatible | 4, ..good };
        let message = refused.check().unwrap_err().to_string();
        assert!(message.contains("metadata_csum") && message.contains("needs_recovery"), "{message}");
        assert!(message.contains("0x80000"), "{message}");
        assert!(Features { incompatible: 0x282, ..good }.check().is_err());
    }
}
