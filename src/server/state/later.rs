//! What a test has this program be: a later one, whose records are a version on. A release build has none of it.

use std::{env, sync::LazyLock};

use serde_json::{Error, Value, json};

use super::record::{READABLE_BY, VERSION};

/// What each record of the later program has that this one does not know, unless it stays readable.
const FIELD: &str = "since_later";

/// The version of its records.
const LATER: u32 = VERSION + 1;

/// A program whose records this one can read, or cannot, by what `STRATABD_LATER_RECORDS` says. It can read those of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Later {
    Readable,
    Unreadable,
}

impl Later {
    /// What the environment wants this program to be, if no more than it is.
    pub(super) fn wanted() -> Option<Self> {
        static WANTED: LazyLock<Option<Later>> =
            LazyLock::new(|| match env::var("STRATABD_LATER_RECORDS").ok()?.as_str() {
                "readable" => Some(Later::Readable),
                "unreadable" => Some(Later::Unreadable),
                _ => None,
            });
        *WANTED
    }

    /// What it writes where this program would write `record`.
    pub(super) fn of_own(self, mut record: Value) -> Value {
        let readable_by = match self {
            Self::Readable => READABLE_BY,
            Self::Unreadable => LATER,
        };
        if let Some(fields) = record.as_object_mut() {
            fields.insert("version".to_owned(), json!(LATER));
            fields.insert("readable_by".to_owned(), json!(readable_by));
            if self == Self::Unreadable {
                fields.insert(FIELD.to_owned(), json!(true));
            }
        }
        record
    }

    /// What this program would have written where it has written `bytes`; all else it reads as this one does.
    pub(super) fn to_own(bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let mut record: Value = serde_json::from_slice(bytes)?;
        if let Some(fields) = record.as_object_mut()
            && fields.get("version") == Some(&json!(LATER))
        {
            fields.remove(FIELD);
            fields.insert("version".to_owned(), json!(VERSION));
            fields.insert("readable_by".to_owned(), json!(READABLE_BY));
        }
        serde_json::to_vec(&record)
    }
}
