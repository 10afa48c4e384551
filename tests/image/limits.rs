//! Layers that are within the format and would fill the memory.

use std::sync::Arc;

use super::{
    blobs::{Behaviour, MemoryBlob},
    fixtures::Fixture,
    reactor,
};
use stratabd::{
    format::zfile::{Flags, Header},
    image::{Image, ImageError, ImageOptions, LayerError},
    source::{BlobSource, FileSource},
};

fn refusal(layers: Vec<Arc<dyn BlobSource>>, options: ImageOptions) -> ImageError {
    let reactor = reactor();
    reactor.block_on(Image::open(&reactor, layers, options)).unwrap().unwrap_err()
}

#[test]
fn a_table_of_a_thousand_million_blocks_is_refused_before_it_is_read() {
    const BLOCKS: u64 = 1_000_000_000;
    let header = Header {
        flags: Flags::HEADER.union(Flags::DATA).union(Flags::FINAL),
        index_offset: BLOCKS * 2,
        index_count: BLOCKS,
        content_bytes: BLOCKS * 4096,
        index_crc: 0,
        block_size: 4096,
        algorithm: 1,
        level: 0,
        uses_dictionary: false,
        dictionary_bytes: 0,
        verify: true,
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sparse");
    std::fs::write(&path, header.encode()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(BLOCKS * 6 + 512).unwrap();
    let source = Arc::new(FileSource::open(&path).unwrap());
    match refusal(vec![source], ImageOptions::default()) {
        ImageError::Layer { source: LayerError::TableTooLarge { table_bytes, .. }, .. } => {
            assert_eq!(table_bytes, BLOCKS * 4);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn layers_with_too_many_segments_are_refused_as_soon_as_they_are_too_many() {
    let layer = || MemoryBlob::new("tiny", Fixture::named("lsmt/tiny.lsmt").read(), Behaviour::Warm);
    let reactor = reactor();
    let one = reactor.block_on(Image::open(&reactor, vec![layer()], ImageOptions::default()));
    let count = one.unwrap().unwrap().layers().next().unwrap().segments;
    let layers: Vec<Arc<dyn BlobSource>> = (0..100).map(|_| layer() as Arc<dyn BlobSource>).collect();
    let options = ImageOptions { segment_limit: 3 * count, ..ImageOptions::default() };
    match refusal(layers, options) {
        ImageError::TooManySegments { count: found, limit } => {
            assert_eq!((found, limit), (4 * count, 3 * count), "the fourth layer is the first too many");
        }
        other => panic!("{other:?}"),
    }
}
