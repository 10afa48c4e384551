//! The record of a device: what the next process has to know to serve it on, or to take back what was half made.
//!
//! A record says which version of it was written and from which version on it can be read. Who does not know that version, or
//! something in the record, leaves the device to who does: so an older and a newer daemon may follow each other in any order.
//! What is not used is not written, so that a record is read by every version that knows what is used in it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[cfg(debug_assertions)]
use super::later::Later;
use crate::{frontend::Mark, server::api::types::AddDevice};

/// The version of the records that are written here. The first one had no phase, and was written when the device was there.
pub(super) const VERSION: u32 = 2;

/// The least version of a reader of what is written here: without the phase it would make a device that is to go.
pub(super) const READABLE_BY: u32 = 2;

/// What is remembered of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    readable_by: u32,
    /// The number of the device.
    pub id: u32,
    /// What the kernel is told to know it by. One of before there were marks has none, and so has its device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// How far it has come.
    pub phase: Phase,
    /// What it is made of: what was asked for, with the image by its digest from the moment when that is known.
    pub request: AddDevice,
    /// What it was granted, once it was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Granted>,
    /// Files and folders that are being made for it, in this order, and were not there before. Whoever finds them here removes those
    /// that its configuration does not name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<PathBuf>,
}

/// How far a device has come. A record is durable before what it says begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The kernel may have been asked for it; nobody was told that it is there.
    Making,
    /// It is there.
    Live,
    /// It is to go, and nothing brings it back.
    Leaving,
}

/// What carries the requests of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrontendKind {
    /// The Linux driver of that name.
    Ublk,
}

/// What a device was granted, which whoever takes it over takes too, whatever his settings say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Granted {
    /// What carries its requests.
    pub frontend: FrontendKind,
    /// Hardware queues.
    pub queues: u16,
    /// Requests in flight a queue.
    pub depth: u16,
    /// Largest request in bytes.
    pub max_io_bytes: u32,
    /// Size in bytes, as the kernel was last told.
    pub size_bytes: u64,
    /// Takes no writes.
    pub read_only: bool,
    /// What else the driver has granted, by its own names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

/// Why a record says nothing here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// It is for newer readers.
    #[error("it is a newer stratabd's: version {version}, which can be read from version {readable_by} on")]
    Newer {
        /// The version that was written.
        version: u32,
        /// The least version that can read it.
        readable_by: u32,
    },
    /// It has something that is not known here.
    #[error(
        "it is another stratabd's: there is something in it, of version {version}, that this one does not know"
    )]
    Unknown {
        /// The version that was written.
        version: u32,
        /// What it is.
        source: serde_json::Error,
    },
    /// It is no record.
    #[error("it is damaged")]
    Damaged(#[source] serde_json::Error),
    /// It lies where that of another device belongs.
    #[error("it is damaged: it says that it is the record of device {0}")]
    Misplaced(u32),
    /// It cannot be read.
    #[error("it cannot be read")]
    Unreadable(#[source] std::io::Error),
}

impl RecordError {
    /// Whether it may be the record of another version, whose device is not to be touched here.
    #[must_use]
    pub fn is_of_another(&self) -> bool {
        matches!(self, Self::Newer { .. } | Self::Unknown { .. })
    }
}

/// What each version has in common.
#[derive(Deserialize)]
struct Head {
    version: u32,
    readable_by: Option<u32>,
}

/// The first version.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    #[serde(rename = "version")]
    _version: u32,
    id: u32,
    request: AddDevice,
}

impl Record {
    /// The record of device `id`, which is to be made.
    #[must_use]
    pub fn new(id: u32, request: AddDevice) -> Self {
        let (version, readable_by) = (VERSION, READABLE_BY);
        Self {
            version,
            readable_by,
            id,
            mark: None,
            phase: Phase::Making,
            request,
            granted: None,
            unfinished: Vec::new(),
        }
    }

    /// The same with a mark that no other device has.
    #[must_use]
    pub fn marked(self) -> Self {
        Self { mark: Some(Mark::draw()), ..self }
    }

    /// The same in another phase.
    #[must_use]
    pub fn in_phase(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }

    /// The record as it is saved.
    ///
    /// # Errors
    /// Where a path in it is no text.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        #[cfg(debug_assertions)]
        if let Some(later) = Later::wanted() {
            return serde_json::to_vec(&later.of_own(serde_json::to_value(self)?));
        }
        serde_json::to_vec(self)
    }

    /// Reads a record as it was saved.
    ///
    /// # Errors
    /// When it is none, or one that is not understood here.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        #[cfg(debug_assertions)]
        if Later::wanted().is_some() {
            return Self::decode_own(&Later::to_own(bytes).map_err(RecordError::Damaged)?);
        }
        Self::decode_own(bytes)
    }

    fn decode_own(bytes: &[u8]) -> Result<Self, RecordError> {
        let head: Head = serde_json::from_slice(bytes).map_err(RecordError::Damaged)?;
        let version = head.version;
        let readable_by = head.readable_by.unwrap_or(version);
        if readable_by > VERSION {
            return Err(RecordError::Newer { version, readable_by });
        }
        let decoded = match version {
            0 | 1 => serde_json::from_slice(bytes)
                .map(|First { id, request, .. }| Self::new(id, request).in_phase(Phase::Live)),
            _ => serde_json::from_slice(bytes),
        };
        let record = decoded.map_err(|source| RecordError::Unknown { version, source })?;
        // Whoever saves it again writes his own.
        Ok(Self { version: VERSION, readable_by: READABLE_BY, ..record })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::server::api::types::ImageSpec;

    fn record() -> Record {
        let image = ImageSpec::Config("/i/config.v1.json".into());
        Record::new(7, AddDevice { depth: Some(64), ..AddDevice::of(image) })
    }

    fn whole() -> Record {
        let granted = Granted {
            frontend: FrontendKind::Ublk,
            queues: 2,
            depth: 64,
            max_io_bytes: 1 << 20,
            size_bytes: 1 << 30,
            read_only: false,
            features: vec!["USER_COPY".to_owned()],
        };
        let unfinished = vec![Path::new("/i/next.data").to_owned()];
        Record { granted: Some(granted), unfinished, ..record().in_phase(Phase::Leaving) }
    }

    fn decode(value: &Value) -> Result<Record, RecordError> {
        Record::decode(value.to_string().as_bytes())
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        for written in [record(), record().in_phase(Phase::Live), record().marked(), whole()] {
            assert_eq!(decode(&json!(written)).unwrap(), written);
        }
        assert_eq!(
            json!(record()),
            json!({
                "version": 2, "readable_by": 2, "id": 7, "phase": "making",
                "request": {"image": {"config": "/i/config.v1.json"}, "depth": 64},
            }),
            "what is not used is not written"
        );
    }

    #[test]
    fn a_record_of_the_first_version_is_that_of_a_device_that_is_there() {
        let first = json!({"version": 1, "id": 7,
            "request": {"image": {"config": "/i/config.v1.json"}, "depth": 64}});
        assert_eq!(decode(&first).unwrap(), record().in_phase(Phase::Live));
    }

    /// What the first version did with a record.
    #[test]
    fn the_first_version_leaves_a_record_of_this_one_alone() {
        #[derive(Deserialize)]
        struct Theirs {
            version: u32,
        }
        let theirs: Theirs = serde_json::from_value(json!(whole())).unwrap();
        assert_ne!(theirs.version, 1, "it takes those alone that say 1");
    }

    #[test]
    fn a_newer_record_is_understood_or_left_alone() {
        let newer = |change: &dyn Fn(&mut Value)| {
            let mut value = json!(whole());
            value["version"] = json!(3);
            change(&mut value);
            decode(&value)
        };
        assert_eq!(newer(&|_| {}).unwrap(), whole(), "it can be read by this version");
        let unreadable = newer(&|value| value["readable_by"] = json!(3)).unwrap_err();
        assert!(matches!(unreadable, RecordError::Newer { version: 3, readable_by: 3 }));
        let unsaid = newer(&|value| drop(value.as_object_mut().unwrap().remove("readable_by"))).unwrap_err();
        assert!(unsaid.is_of_another(), "{unsaid}");
        for (place, key) in [("", "journal"), ("/request", "mirror"), ("/granted", "zones")] {
            let add = |value: &mut Value| value.pointer_mut(place).unwrap()[key] = json!(1);
            let unknown = newer(&add).unwrap_err();
            assert!(unknown.is_of_another(), "{place} {key}: {unknown}");
        }
        for (place, value) in [("/phase", "moving"), ("/granted/frontend", "vhost_user_blk")] {
            let change = |record: &mut Value| *record.pointer_mut(place).unwrap() = json!(value);
            assert!(newer(&change).unwrap_err().is_of_another(), "{place}");
        }
    }

    /// What the guest tests take for the next version.
    #[test]
    fn a_later_program_reads_the_records_of_both_and_this_one_those_that_are_for_it() {
        let text = |value: Value| serde_json::to_vec(&value).unwrap();
        let readable = text(Later::Readable.of_own(json!(whole())));
        let unreadable = text(Later::Unreadable.of_own(json!(whole())));
        assert_eq!(Record::decode(&readable).unwrap(), whole());
        assert!(Record::decode(&unreadable).unwrap_err().is_of_another());
        for theirs in [readable, unreadable, text(json!(whole()))] {
            assert_eq!(Record::decode(&Later::to_own(&theirs).unwrap()).unwrap(), whole());
        }
    }

    #[test]
    fn what_is_torn_is_nobodys() {
        let text = serde_json::to_vec(&whole()).unwrap();
        for end in [0, 1, text.len() / 2, text.len() - 1] {
            let torn = Record::decode(&text[..end]).unwrap_err();
            assert!(!torn.is_of_another(), "{end}: {torn}");
        }
        assert!(!decode(&json!({"id": 7})).unwrap_err().is_of_another());
    }
}
