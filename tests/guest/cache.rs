//! The cache on the file systems of a guest, whose kernel may be another than the machine's.

use std::path::Path;

use crate::{cache_exercise::exercise_cache, frame::in_guest};

#[test]
fn the_cache_works_on_the_guests_tmpfs() {
    if in_guest() {
        exercise_cache(Path::new("/tmp/cache-of-a-test"));
    }
}

#[test]
fn the_cache_works_on_the_guests_ext4() {
    if in_guest() {
        exercise_cache(Path::new("/var/tmp/cache-of-a-test"));
    }
}
