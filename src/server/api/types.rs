//! The JSON of the control API, shared by the daemon and its clients. Fields may be added; none changes its meaning.

use std::{fmt, num::NonZeroU64, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use super::refusal::{ErrorAnswer, ErrorBody};
use crate::supervision::OverdueRequest;

/// What to make a device of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSpec {
    /// An image reference, `registry/repository:tag@digest`.
    Reference(String),
    /// Path of an image configuration, upstream's `config.v1.json`.
    Config(PathBuf),
    /// Layer files on this machine, lowest first.
    Layers(Vec<PathBuf>),
    /// An image that was converted on this machine.
    Converted {
        /// The ordinary image that it was made of.
        reference: String,
        /// The layer files that were made, lowest first.
        layers: Vec<PathBuf>,
    },
}

impl fmt::Display for ImageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference(reference) | Self::Converted { reference, .. } => f.write_str(reference),
            Self::Config(path) => write!(f, "{}", path.display()),
            Self::Layers(paths) => {
                let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

/// `POST /v1/devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddDevice {
    /// What to make it of.
    pub image: ImageSpec,
    /// Which image of a reference that has one for each of several platforms, `os/architecture` or `os/architecture/variant`, else this
    /// machine's. The only one of another reference must be for it. What is attached is named by its digest then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Wanted number of the device; the kernel chooses where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// Hardware queues, else the configuration's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Requests in flight a queue, else the configuration's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u16>,
    /// Folder of a writable layer over an image that is named by a reference or by its layers: `upper.data` and `upper.index`,
    /// the `config.v1.json` that puts them over the image, and in `image_ref` the reference that always means it. Made where
    /// it is not there, and used again where it is, whatever a tag means by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<PathBuf>,
    /// Whether the device outlives the process that serves it, and waits for the next, where the driver can do that.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub recovery: bool,
    /// How long it waits for a daemon that is there and cannot take it over, in milliseconds, until its requests fail; else as the
    /// configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_timeout_ms: Option<NonZeroU64>,
    /// Reads, writes, flushes and discards that it begins in a second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<NonZeroU64>,
    /// Bytes that it reads and writes in a second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<NonZeroU64>,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference")]
fn is_yes(value: &bool) -> bool {
    *value
}

impl AddDevice {
    /// A device of `image`, with everything else as the daemon's settings say.
    #[must_use]
    pub fn of(image: ImageSpec) -> Self {
        Self {
            image,
            platform: None,
            id: None,
            queues: None,
            depth: None,
            upper: None,
            recovery: true,
            recovery_timeout_ms: None,
            iops: None,
            bytes_per_second: None,
        }
    }
}

/// `POST /v1/upgrade`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpgradeDaemon {
    /// The program that is to take over, else the file that has the name of the daemon's own by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
    /// How long it may take to be prepared, and again to serve all devices, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Also where devices go that do not outlive the daemon.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// An upgrade that goes on without the one who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeStarted {
    /// The process that takes over, and answers when it has.
    pub pid: u32,
}

/// `GET /v1/daemon`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Why the last upgrade has failed, if one has since this process began to serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_upgrade: Option<String>,
}

/// `POST /v1/devices/N/snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotDevice {
    /// The folder in which the files of the next writable layer are made, `upper.data` and `upper.index`.
    pub to: PathBuf,
}

/// A snapshot that was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    /// The configuration, which names the layers as they are now.
    pub config: PathBuf,
    /// The layer that is read-only from now on.
    pub sealed: PathBuf,
    /// The data file of the layer that takes the writes.
    pub data: PathBuf,
    /// Its index file.
    pub index: PathBuf,
    /// How long writes had to wait, in microseconds; reads did not.
    pub stalled_us: u64,
}

/// `POST /v1/devices/N/fork`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForkDevice {
    /// Name of the folder that is made for the files of the new device.
    pub name: String,
    /// Where that folder is made, else beside the configuration of the device, if it was made of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<PathBuf>,
    /// Wanted number of the new device; the kernel chooses where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
}

/// `POST /v1/devices/N/resize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeDevice {
    /// The new size in bytes; whole blocks, and not less than now.
    pub size_bytes: u64,
}

/// `POST /v1/devices/N/set`. What is missing stays as it is, and 0 lifts a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetDevice {
    /// Reads, writes, flushes and discards that it begins in a second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes that it reads and writes in a second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

/// `POST /v1/devices/N/recover`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoverDevice {
    /// State directory of the process that served it, else the daemon's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
}

/// What becomes of a device that nobody serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unserved {
    /// Who can do something.
    pub way: Way,
    /// Why nobody serves it, with the reason of the last try that has failed.
    pub why: String,
}

/// Who can do something about a device that nobody serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// This daemon, which tries again by itself.
    Daemon,
    /// Whoever says `recover`, or `del`.
    Recover,
    /// Whoever says `del`: nothing brings it back.
    Delete,
    /// Another version of this program.
    Other,
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            Way::Daemon => "waits for this daemon",
            Way::Recover => "\"ublk-ctl recover\" or \"del\"",
            Way::Delete => "\"ublk-ctl del\"",
            Way::Other => "another version's",
        };
        write!(f, "{way}: {}", self.why)
    }
}

/// The life of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// Being opened.
    Attaching,
    /// Usable.
    Live,
    /// Being removed; the last user may still hold it.
    Detaching,
    /// Removed by another program; what is left of it here goes with `del`.
    Ended,
    /// Served by no process, and kept for one that will serve it: its requests wait.
    Waiting,
    /// Known to the kernel or to a record, served by no process.
    Orphan,
    /// Of the kernel's list, served by another process.
    Foreign,
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attaching => "attaching",
            Self::Live => "live",
            Self::Detaching => "detaching",
            Self::Ended => "ended",
            Self::Waiting => "waiting",
            Self::Orphan => "orphan",
            Self::Foreign => "foreign",
        })
    }
}

/// One device, as `add`, `list` and `info` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// The number of the device.
    pub id: u32,
    /// Path of the block device.
    pub path: PathBuf,
    /// Where it is in its life.
    pub state: DeviceState,
    /// What it was made of; missing for devices of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSpec>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block in bytes.
    pub logical_block_bytes: u32,
    /// Takes no writes.
    pub read_only: bool,
    /// Hardware queues.
    pub queues: u16,
    /// Requests in flight a queue.
    pub depth: u16,
    /// How data moves and what else the driver granted, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Requests that it begins in a second at most, if there is such a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<NonZeroU64>,
    /// Bytes that it reads and writes in a second at most, if there is such a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<NonZeroU64>,
    /// Of a device that nobody serves, what becomes of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unserved: Option<Unserved>,
    /// Process that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_pid: Option<i32>,
    /// Layers, lowest first; only in the answer to `info`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerInfo>,
    /// What was read so far, by source; only in the answer to `info`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<ReadCount>,
    /// What the writable layer was asked for so far, by kind; only in the answer to `info`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upper: Vec<RequestCount>,
    /// Limits that are near; only in the answer to `info`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Requests that do not end; only in the answer to `info`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overdue: Vec<OverdueInfo>,
    /// Bytes that the writable layer, if it is a log, takes before its data file is as large as it may be, however much room
    /// the file system has; only in the answer to `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper_room_bytes: Option<u64>,
    /// Removed, while a program has it open: it sees a device that has gone, and the kernel keeps the number until it
    /// ends. Only in the answer to a removal that was waited for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held_open: bool,
}

impl DeviceInfo {
    /// What is known of every device that nobody serves.
    #[must_use]
    pub fn without_server(id: u32, state: DeviceState) -> Self {
        Self {
            id,
            path: PathBuf::new(),
            state,
            image: None,
            size_bytes: 0,
            logical_block_bytes: 0,
            read_only: true,
            queues: 0,
            depth: 0,
            features: Vec::new(),
            iops: None,
            bytes_per_second: None,
            unserved: None,
            server_pid: None,
            layers: Vec::new(),
            reads: Vec::new(),
            upper: Vec::new(),
            warnings: Vec::new(),
            overdue: Vec::new(),
            upper_room_bytes: None,
            held_open: false,
        }
    }
}

/// Reads of one device that were served from one source, or that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCount {
    /// The source as metrics name it, or `failed`.
    pub source: String,
    /// How many.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Requests of one kind to a writable layer, or those that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCount {
    /// `read`, `write`, `zero` or `flush`, or `failed`.
    pub kind: String,
    /// How many.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A request that has been under way for longer than `device.overdue_after_ms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverdueInfo {
    /// `read`, `write`, `flush` or `discard`.
    pub kind: String,
    /// Where it begins on the device, in bytes; 0 for a flush.
    pub offset: u64,
    /// Its length in bytes; 0 for a flush.
    pub len: u64,
    /// How long it has been there, in milliseconds, if not a little longer.
    pub age_ms: u64,
    /// What it waits for, in words, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

impl From<OverdueRequest> for OverdueInfo {
    fn from(request: OverdueRequest) -> Self {
        Self {
            kind: request.kind.to_owned(),
            offset: request.offset,
            len: request.len,
            age_ms: u64::try_from(request.age.as_millis()).unwrap_or(u64::MAX),
            waits_for: request.waits_for,
        }
    }
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Path, or repository and digest.
    pub name: String,
    /// Size of the blob in bytes.
    pub size_bytes: u64,
    /// What else is known, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What was asked of its registry; missing for files of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<FetchCount>,
}

/// What reads of an image have begun to fetch. Its devices share what was fetched, so that none of them can be named for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchCount {
    /// Ranges that were asked for, each once however often it was tried.
    pub fetches: u64,
    /// Tries of them after the first.
    pub retries: u64,
    /// Those that could not be had.
    pub failures: u64,
    /// Bytes that came.
    pub bytes: u64,
}

/// `GET /v1/devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// All devices, by number.
    pub devices: Vec<DeviceInfo>,
}

/// `GET /v1/features`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureList {
    /// The driver's feature bits.
    pub bits: u64,
    /// Their names, known ones first, unknown ones as `BIT_20`.
    pub names: Vec<String>,
}

/// `GET /healthz` and `GET /readyz`, which answers 503 where devices wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ok`, or `starting` while devices of the former daemon are still to come.
    pub status: String,
    /// Devices that are served.
    pub devices: usize,
    /// Devices of the former daemon that have not come back yet.
    pub waiting: usize,
}
