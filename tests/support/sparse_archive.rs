//! Files with holes, out of archives.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

/// Makes the file at `path` of the one in an archive of GNU tar's old sparse form, with its holes.
pub(crate) fn unpack_sparse(archive: &[u8], path: &Path) {
    let number = |at: usize| {
        let digits = std::str::from_utf8(&archive[at..at + 11]).unwrap();
        u64::from_str_radix(digits, 8).unwrap()
    };
    let file = File::create(path).unwrap();
    file.set_len(number(483)).unwrap();
    let entry = |at: usize| (archive[at] != 0).then(|| (number(at), number(at + 12)));
    let mut map: Vec<_> = (0..4).map_while(|it| entry(386 + 24 * it)).collect();
    let (mut at, mut more) = (512, archive[482] != 0);
    while more {
        map.extend((0..21).map_while(|it| entry(at + 24 * it)));
        more = archive[at + 504] != 0;
        at += 512;
    }
    for (offset, len) in map {
        let len = usize::try_from(len).unwrap();
        file.write_all_at(&archive[at..at + len], offset).unwrap();
        at += len;
    }
}
