//! Keeps tools from a log of which a process that has died had completed more than the layer's files have.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read},
    path::Path,
};

use super::{OfflineError, content::Content};
use crate::format::{
    lsmt::{Header, JOURNAL_ENTRY_LIMIT, JournalHeader, decode_journal},
    uuid::Uuid,
};

/// Refuses the log with the data file `content`, which is held, if there are writes of it in a journal in `folder`: what a tool would
/// make of the layer would lack them, and what it would change in it they would be put over.
pub(super) fn require_no_journal(
    folder: &Path,
    content: &Content,
    header: &Header,
) -> Result<(), OfflineError> {
    let (device, inode) = content.inode()?;
    let uuid = header.uuid.unwrap_or(Uuid::NULL);
    let wanted = JournalHeader { boot: [0; 16], uuid, device, inode, capacity: JOURNAL_ENTRY_LIMIT };
    let path = folder.join(wanted.file_name());
    let has_none = match read(&path, wanted.size_bytes()) {
        Ok(bytes) => decode_journal(&bytes).is_ok_and(|(_, entries)| entries.is_empty()),
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        // Whose it is may read it alone, and it goes when nothing is left in it.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            fs::symlink_metadata(&path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
        }
        Err(error) => return Err(OfflineError::io(&path, "read it")(error)),
    };
    match has_none {
        true => Ok(()),
        false => Err(OfflineError::Journaled { path: content.path().to_owned(), journal: path }),
    }
}

fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::lsmt::{Segment, data_header};

    #[test]
    fn a_log_is_refused_whose_journal_has_writes_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let [data, copy] = ["data", "copy"].map(|name| dir.path().join(name));
        let uuid = "ABC00007-1111-2222-3333-000000000007".parse().unwrap();
        let header = data_header(false, uuid, None, 1 << 20);
        fs::write(&data, header.encode()).unwrap();
        fs::copy(&data, &copy).unwrap();
        let [data, copy] = [data, copy].map(|path| Content::open(&path).unwrap());
        let look = |content| require_no_journal(dir.path(), content, &header);
        look(&data).unwrap();
        let (device, inode) = data.inode().unwrap();
        let journal = JournalHeader { boot: [7; 16], uuid, device, inode, capacity: 4 };
        let path = dir.path().join(journal.file_name());
        fs::write(&path, journal.encode(&[])).unwrap();
        look(&data).unwrap();
        fs::write(&path, journal.encode(&[Segment::new(0, 8, 8, false, 0).unwrap()])).unwrap();
        let refused = look(&data).unwrap_err();
        assert!(matches!(&refused, OfflineError::Journaled { journal, .. } if *journal == path), "{refused}");
        look(&copy).unwrap();
        fs::write(&path, b"damaged").unwrap();
        assert!(matches!(look(&data), Err(OfflineError::Journaled { .. })));
    }
}
