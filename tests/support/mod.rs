//! Real servers and hostile ones for the tests that need a registry.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "support code of tests panics where a test would, and each test binary is a crate of its own"
)]

pub mod daemon;
pub mod device;
pub mod fault_proxy;
pub mod file_system;
pub mod layer_writer;
pub mod ordinary;
pub mod port;
pub mod process;
pub mod records;
pub mod registry;
pub mod secure;
