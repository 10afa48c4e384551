//! The records of a pax header.

use std::collections::BTreeMap;

use super::{ArchiveField, ArchiveRule, number};

const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
const SPARSE_LENGTH: &[u8] = b"GNU.sparse.numbytes";
pub(super) const SPARSE_MAP: &[u8] = b"GNU.sparse.map";
const SPARSE: &[u8] = b"GNU.sparse.";
/// The value is that of the attribute.
pub(super) const SCHILY_XATTR: &[u8] = b"SCHILY.xattr.";
/// The name is encoded as in a URL, the value in base64.
pub(super) const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";

/// The records of one header that somebody asks for, and of each key the last.
#[derive(Debug, Default)]
pub(super) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Records {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ArchiveRule> {
        let mut records = Self::default();
        // Version 0.0 has the map in pairs of records, of equal keys; version 0.1 has it in one.
        let mut pairs = Vec::new();
        let mut rest = body;
        while !rest.is_empty() {
            let at = body.len().saturating_sub(rest.len()) as u64;
            let malformed = ArchiveRule::PaxRecord { at };
            let (key, value, after) = split_record(rest).ok_or(malformed)?;
            rest = after;
            if key == SPARSE_OFFSET || key == SPARSE_LENGTH {
                let wanted = if pairs.len() % 2 == 0 { SPARSE_OFFSET } else { SPARSE_LENGTH };
                if key != wanted || value.contains(&b',') {
                    return Err(ArchiveRule::SparseMap);
                }
                pairs.push(value);
            } else if counts(key) {
                records.put(key, value)?;
            }
        }
        if !pairs.is_empty() {
            records.put(SPARSE_MAP, &pairs.join(&b","[..]))?;
        }
        Ok(records)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveRule> {
        let earlier = self.values.insert(key.to_vec(), value.to_vec());
        match (earlier, decides(key)) {
            (Some(earlier), Some(field)) if earlier != value => Err(ArchiveRule::Contradiction(field)),
            _ => Ok(()),
        }
    }

    /// An empty value stands for none.
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, key: &[u8], field: ArchiveField) -> Result<Option<i64>, ArchiveRule> {
        let number = |value| number::decimal(value).ok_or(ArchiveRule::NotNumber(field));
        self.get(key).map(number).transpose()
    }

    /// Keys that begin with `prefix`, without it, and their values, also empty ones.
    pub(super) fn with_prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let from = self.values.range(prefix.to_vec()..);
        from.map_while(move |(key, value)| Some((key.strip_prefix(prefix)?, value.as_slice())))
    }

    pub(super) fn is_sparse(&self) -> bool {
        self.with_prefix(SPARSE).next().is_some()
    }

    /// What these records say of content or names.
    pub(super) fn decides(&self) -> Option<ArchiveField> {
        self.values.keys().find_map(|key| decides(key))
    }
}

fn counts(key: &[u8]) -> bool {
    let others: [&[u8]; 5] = [b"uid", b"gid", b"mtime", b"atime", b"ctime"];
    let prefixes = [SCHILY_XATTR, LIBARCHIVE_XATTR];
    decides(key).is_some() || others.contains(&key) || prefixes.iter().any(|prefix| key.starts_with(prefix))
}

fn decides(key: &[u8]) -> Option<ArchiveField> {
    match key {
        b"path" => Some(ArchiveField::Name),
        b"linkpath" => Some(ArchiveField::Link),
        b"size" => Some(ArchiveField::Size),
        key if key.starts_with(SPARSE) => Some(ArchiveField::Sparse),
        _ => None,
    }
}

/// Key and value of the first record, and what follows it. The length counts all of the record.
fn split_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let digits = records.iter().position(|byte| *byte == b' ')?;
    let len = usize::try_from(number::decimal(records.get(..digits)?)?).ok()?;
    let (record, rest) = records.split_at_checked(len)?;
    let record = record.get(digits..)?.strip_prefix(b" ")?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = record.split_at_checked(equals)?;
    let value = value.strip_prefix(b"=")?;
    let text = if matches!(key, b"path" | b"linkpath" | b"uname" | b"gname") { value } else { key };
    (!key.is_empty() && !text.contains(&0)).then_some((key, value, rest))
}
