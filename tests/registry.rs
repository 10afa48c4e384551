//! The registry client against scripted servers that misbehave, and against the real docker registry.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]
#![expect(clippy::cast_possible_truncation, reason = "tests run where usize has 64 bits")]

#[path = "registry/answers.rs"]
mod answers;
#[path = "registry/cached.rs"]
mod cached;
#[path = "registry/certificates.rs"]
mod certificates;
#[path = "registry/congestion.rs"]
mod congestion;
#[path = "registry/copy.rs"]
mod copy;
#[path = "registry/credentials.rs"]
mod credentials;
#[path = "registry/limits.rs"]
mod limits;
#[path = "registry/login.rs"]
mod login;
#[path = "registry/manifests.rs"]
mod manifests;
#[path = "registry/push.rs"]
mod push;
#[path = "registry/real.rs"]
mod real;
#[path = "registry/redirects.rs"]
mod redirects;
#[path = "registry/script.rs"]
mod script;
#[path = "registry/site.rs"]
mod site;
#[expect(dead_code, reason = "each test binary uses a part of the support")]
mod support;
#[path = "registry/transport.rs"]
mod transport;
