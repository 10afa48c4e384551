//! The reactor with its tests as a program of its own, since all other tests of the library take minutes to be sanitized.
#![expect(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "what only the rest of the library uses is not used here"
)]

#[path = "../src/reactor/mod.rs"]
mod reactor;
