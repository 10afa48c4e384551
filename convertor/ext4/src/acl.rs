//! Access control lists: from the form in which Linux gives them out, and tars hold them, to the shorter one of ext4.

use crate::{
    error::Error,
    field::{put_u16, put_u32, u16_at, u32_at},
};

const GIVEN_VERSION: u32 = 2;
const STORED_VERSION: u32 = 1;
const HEADER_BYTES: usize = 4;
const GIVEN_ENTRY_BYTES: usize = 8;
const USER_OBJECT: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJECT: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The value of `system.posix_acl_access` or `system.posix_acl_default`, for its attribute `name`.
pub(crate) fn stored(name: &[u8], given: &[u8]) -> Result<Vec<u8>, Error> {
    let malformed = || Error::Acl(name.to_vec());
    let (header, entries) = given.split_at_checked(HEADER_BYTES).ok_or_else(malformed)?;
    if u32_at(header, 0) != GIVEN_VERSION || !entries.len().is_multiple_of(GIVEN_ENTRY_BYTES) {
        return Err(malformed());
    }
    let mut stored = STORED_VERSION.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(GIVEN_ENTRY_BYTES) {
        let tag = u16_at(entry, 0);
        let at = stored.len();
        stored.resize(at + 4, 0);
        put_u16(&mut stored, at, tag);
        put_u16(&mut stored, at + 2, u16_at(entry, 2));
        match tag {
            USER | GROUP => {
                stored.resize(at + 8, 0);
                put_u32(&mut stored, at + 4, u32_at(entry, 4));
            }
            USER_OBJECT | GROUP_OBJECT | MASK | OTHER => {}
            _ => return Err(malformed()),
        }
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_users_and_groups_keep_their_number() {
        let given = [
            &2_u32.to_le_bytes()[..],
            &[1, 0, 6, 0, 255, 255, 255, 255],
            &[2, 0, 7, 0, 1, 2, 3, 4],
            &[32, 0, 4, 0, 255, 255, 255, 255],
        ]
        .concat();
        let expected = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 7, 0, 1, 2, 3, 4, 32, 0, 4, 0];
        assert_eq!(stored(b"a", &given).unwrap(), expected);
        for damaged in [&given[..3], &given[..9], &[1, 0, 0, 0], &[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(matches!(stored(b"a", damaged), Err(Error::Acl(_))));
        }
    }
}
