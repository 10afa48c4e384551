//! stratabd: turns overlaybd container images into Linux block devices, reading data on demand.
//!
//! The module table in `ARCHITECTURE.md` says what each module does and what it may use.

pub mod block;
pub mod cache;
pub mod crash_point;
pub mod device;
pub mod format;
pub mod frontend;
pub mod image;
pub mod limit;
pub mod offline;
pub mod reactor;
pub mod registry;
pub mod server;
pub mod source;
pub mod supervision;
pub mod telemetry;
pub mod upper;
