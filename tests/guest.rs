//! Tests that need a kernel with ublk: `ci/vm/guest-tests` runs them in a guest, and on any other machine they say so.
//!
//! Each test runs in a process of its own, as root, with the time limit of `ci/vm/guest-tests`. `/fixtures` holds
//! `tests/fixtures`, `/ordinary` what `ci/ordinary-image` makes; `stratabd`, `ublk-ctl`, fio, docker-registry, nginx, openssl, htpasswd and curl are on the path;
//! `/tmp` is a tmpfs and `/var` an ext4 disk that nobody needs to tidy. A test that leaves a ublk device behind fails.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what fails while a test is set up fails the test"
)]

#[path = "guest/acknowledged.rs"]
mod acknowledged;
#[path = "guest/cache.rs"]
mod cache;
#[path = "support/cache_exercise.rs"]
mod cache_exercise;
#[path = "support/content_digest.rs"]
mod content_digest;
#[path = "guest/converted.rs"]
mod converted;
#[path = "guest/daemon.rs"]
mod daemon;
#[path = "guest/devices.rs"]
mod devices;
#[path = "guest/direct.rs"]
mod direct;
#[path = "guest/disk.rs"]
mod disk;
#[path = "guest/exerciser.rs"]
mod exerciser;
#[path = "guest/fence.rs"]
mod fence;
#[path = "guest/file_systems.rs"]
mod file_systems;
#[path = "guest/frame.rs"]
mod frame;
#[path = "guest/holdings.rs"]
mod holdings;
#[path = "guest/large.rs"]
mod large;
#[path = "guest/long_lived.rs"]
mod long_lived;
#[path = "guest/neighbours.rs"]
mod neighbours;
#[path = "guest/ordinary.rs"]
mod ordinary;
#[path = "guest/pauses.rs"]
mod pauses;
#[path = "guest/power_cut.rs"]
mod power_cut;
#[path = "guest/reattach.rs"]
mod reattach;
#[path = "guest/recovery.rs"]
mod recovery;
#[path = "guest/recovery_of_many.rs"]
mod recovery_of_many;
#[path = "guest/recovery_of_sick.rs"]
mod recovery_of_sick;
#[path = "guest/registry.rs"]
mod registry;
#[path = "guest/registry_faults.rs"]
mod registry_faults;
#[path = "guest/removal.rs"]
mod removal;
#[path = "guest/resize.rs"]
mod resize;
#[path = "guest/service.rs"]
mod service;
#[path = "guest/smoke.rs"]
mod smoke;
#[path = "guest/snapshot.rs"]
mod snapshot;
#[path = "guest/sparse.rs"]
mod sparse;
mod support;
#[path = "guest/surroundings.rs"]
mod surroundings;
#[path = "guest/tree.rs"]
mod tree;
#[path = "guest/ublk.rs"]
mod ublk;
#[path = "guest/ublk_end.rs"]
mod ublk_end;
#[path = "guest/ublk_engine.rs"]
mod ublk_engine;
#[path = "guest/upgrade.rs"]
mod upgrade;
#[path = "guest/versions.rs"]
mod versions;
#[path = "guest/ways_out.rs"]
mod ways_out;
#[path = "guest/writable.rs"]
mod writable;
