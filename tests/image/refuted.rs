//! Blobs whose bytes their digest refutes while an image is open on them.

use std::sync::{Arc, atomic::Ordering};

use super::blobs::{Behaviour, MemoryBlob};
use super::fixtures::Fixture;
use super::reactor;
use super::trouble::{LAYER, middle, open, read};
use stratabd::{
    block::{BlockDevice, BlockError, BlockQueue, ByteRange, ErrorKind},
    image::{Image, ImageOptions},
    source::BlobSource,
};

/// The same layer as [`LAYER`], not compressed.
const PLAIN_LAYER: &str = "ext4/L2.lsmt.xz";

fn assert_names(error: &BlockError, blob: &str) {
    assert_eq!(error.kind(), ErrorKind::Io);
    let told = std::error::Error::source(error).unwrap().to_string();
    assert!(told.contains(blob) && told.contains("attach it again"), "{told}");
}

#[test]
fn one_wrong_answer_does_not_fail_an_image_whose_index_is_as_it_was() {
    let reactor = reactor();
    for name in [LAYER, PLAIN_LAYER] {
        let blob = MemoryBlob::new(name, Fixture::named(name).read(), Behaviour::Warm);
        let image = open(&reactor, vec![Arc::clone(&blob) as _], 1 << 20);
        let at = middle(&reactor, &image);
        let good = read(&reactor, &image, at).unwrap();
        for _ in 0..2 {
            blob.refute();
            assert!(!image.stands(), "{name}: nobody has looked yet");
            let all = ByteRange::between(0, 64 << 20);
            let queue = image.open_queue(&reactor).unwrap();
            assert_eq!(queue.next_data(all), all, "{name}: nothing is known to be zeroes");
            assert_eq!(read(&reactor, &image, at).unwrap(), good, "{name}");
            assert!(image.stands() && image.refuted().is_none(), "{name}");
        }
    }
}

#[test]
fn an_image_whose_index_came_from_refuted_bytes_fails_and_names_the_blob() {
    let reactor = reactor();
    for name in [LAYER, PLAIN_LAYER] {
        let good = Fixture::named(name).read();
        let mut other = good.clone();
        // In the plain layer's trailer, where no checksum sees it, and in the other one's table of blocks.
        let at = other.len() - 520;
        other[at] ^= 1;
        let blob = MemoryBlob::new(name, good, Behaviour::Warm);
        let image = open(&reactor, vec![Arc::clone(&blob) as _], 1 << 20);
        let data = middle(&reactor, &image);
        let bytes = read(&reactor, &image, data).unwrap();
        // One goes for each range that is forgotten.
        (0..30).for_each(|_| blob.damage(other.clone()));
        blob.refute();
        for _ in 0..2 {
            assert_names(&read(&reactor, &image, data).map(drop).unwrap_err(), name);
        }
        assert_eq!(image.refuted(), Some(name));
        let reader = image.open_queue(&reactor).unwrap();
        assert_eq!(reader.next_data(ByteRange::between(0, 4096)), ByteRange::between(0, 4096));
        // What is opened anew has nothing to do with it.
        while blob.invalidate(ByteRange::between(0, 1)) {}
        let again = open(&reactor, vec![blob], 1 << 20);
        assert_eq!(read(&reactor, &again, data).unwrap(), bytes);
    }
}

#[test]
fn wrong_bytes_in_place_of_the_index_are_asked_for_again_before_the_image_fails() {
    let reactor = reactor();
    let good = Fixture::named(LAYER).read();
    let blob = MemoryBlob::new(LAYER, good.clone(), Behaviour::Cold);
    let image = open(&reactor, vec![Arc::clone(&blob) as _], 1 << 20);
    let at = middle(&reactor, &image);
    let bytes = read(&reactor, &image, at).unwrap();
    let mut wrong = good;
    wrong.iter_mut().for_each(|byte| *byte ^= 1);
    blob.damage(wrong);
    blob.refute();
    assert_eq!(read(&reactor, &image, at).unwrap(), bytes);
}

#[test]
fn nothing_that_was_decoded_of_refuted_bytes_is_served_again() {
    let reactor = reactor();
    let good = Fixture::named(LAYER).read();
    let blob = MemoryBlob::new(LAYER, good, Behaviour::Warm);
    let image = open(&reactor, vec![Arc::clone(&blob) as _], 1 << 20);
    let at = middle(&reactor, &image);
    let decoded = || image.metrics().decoded_blocks.get();
    read(&reactor, &image, at).unwrap();
    let before = decoded();
    read(&reactor, &image, at).unwrap();
    assert_eq!(decoded(), before, "it is kept");
    blob.refute();
    read(&reactor, &image, at).unwrap();
    assert_eq!(decoded(), before + 1, "and made anew of the other bytes");
    read(&reactor, &image, at).unwrap();
    assert_eq!(decoded(), before + 1, "which are kept in its place");
}

#[test]
fn a_layer_without_checksums_that_is_refuted_again_and_again_fails() {
    let reactor = reactor();
    for (name, times) in [(PLAIN_LAYER, 3), (LAYER, 10)] {
        let blob = MemoryBlob::new(name, Fixture::named(name).read(), Behaviour::Warm);
        let image = open(&reactor, vec![Arc::clone(&blob) as _], 1 << 20);
        for _ in 1..times {
            blob.refute();
            read(&reactor, &image, 0).unwrap();
        }
        blob.refute();
        match read(&reactor, &image, 0) {
            Ok(_) => assert_eq!(name, LAYER, "what checksums have passed stands"),
            Err(error) => {
                assert_eq!(name, PLAIN_LAYER);
                assert_names(&error, name);
            }
        }
    }
}

#[test]
fn a_layer_that_is_refuted_while_it_is_opened_is_opened_again_a_few_times() {
    let reactor = reactor();
    for (times, opens) in [(1, true), (2, true), (3, false)] {
        let blob = MemoryBlob::new(LAYER, Fixture::named(LAYER).read(), Behaviour::Warm);
        blob.refuted_from_the_start.store(times, Ordering::SeqCst);
        let opened = reactor.block_on(Image::open(&reactor, vec![blob as _], ImageOptions::default()));
        match opened.unwrap() {
            Ok(image) => assert!(opens && image.refuted().is_none()),
            Err(error) => assert!(!opens && error.to_string().contains(LAYER), "{error}"),
        }
    }
}
