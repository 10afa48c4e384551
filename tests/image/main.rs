//! The engine against the layers that upstream's tools wrote, in fair weather and foul.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]
#![expect(clippy::cast_possible_truncation, reason = "tests run where usize has 64 bits")]

#[path = "../support/blobs.rs"]
mod blobs;
#[path = "../support/content_digest.rs"]
mod content_digest;
#[path = "../support/fixtures.rs"]
mod fixtures;
mod flaky;
mod large;
#[path = "../support/layer_writer.rs"]
#[expect(dead_code, unreachable_pub, reason = "each test binary uses a part of the support")]
mod layer_writer;
mod limits;
mod refuted;
mod trouble;
mod turns;
mod whole;

use stratabd::reactor::{Reactor, ReactorConfig};

fn reactor() -> Reactor {
    Reactor::new(&ReactorConfig::default()).unwrap()
}
