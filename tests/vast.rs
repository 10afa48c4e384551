//! Devices of 4 TiB of which next to nothing was written: what nobody has costs nothing.
#![expect(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    fs::File,
    num::NonZeroUsize,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::Arc,
};

use stratabd::{
    block::BlockDevice,
    format::lsmt::Packing,
    image::{Image, ImageOptions, SourceClass},
    offline::{
        CreateOptions, Naming, PackOptions, Stack, Upper, Watch, commit, create, default_threads, diff,
    },
    reactor::{Reactor, ReactorConfig, ReactorThread},
    server::export::{ExportOptions, ExportOutput, Exported, export},
    source::{BlobSource, FileSource},
    upper::{LayerFiles, LogLimits, Overlay},
};

const DEVICE_BYTES: u64 = 4 << 40;
const BLOCKS: u64 = 16;

/// Where the blocks lie that were written, in bytes.
fn places() -> impl Iterator<Item = u64> {
    (0..BLOCKS).map(|number| number * (DEVICE_BYTES / BLOCKS) + number * 4096)
}

/// A sparse layer with the blocks.
fn layer(dir: &Path, name: &str) -> Upper {
    let upper = Upper { data: dir.join(name), index: None };
    let options = CreateOptions {
        sparse: true,
        virtual_size_bytes: DEVICE_BYTES,
        uuid: None,
        parent_uuid: None,
        ext4: false,
        overwrite: false,
    };
    create(&upper, &options).unwrap();
    let file = File::options().write(true).open(&upper.data).unwrap();
    places().for_each(|at| file.write_all_at(&[7; 4096], at + 4096).unwrap());
    upper
}

fn quiet() -> Watch<fn(u64, u64)> {
    Watch { progress: |_, _| {}, cancelled: false.into() }
}

fn exported<D: BlockDevice>(device: &Arc<D>, output: &Path) -> Exported {
    let thread = ReactorThread::start("export", ReactorConfig::default(), || Ok(())).unwrap();
    let (_held, cancel) = tokio::sync::oneshot::channel();
    let output = ExportOutput::File { path: output.to_owned(), overwrite: true };
    let options = ExportOptions { output: Some(output), sha256: false };
    let done = export(&thread.handle(), device, options, cancel, |_| {}).unwrap();
    thread.stop().unwrap();
    done
}

/// The file has the blocks and nothing else.
fn is_right(done: &Exported, output: &Path) {
    assert_eq!((done.size_bytes, done.data_bytes), (DEVICE_BYTES, Some(BLOCKS * 4096)));
    let file = File::open(output).unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
    for at in places() {
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, at).unwrap();
        assert!(block == [7; 4096], "{at}");
    }
}

#[test]
fn what_a_vast_device_has_nowhere_is_neither_read_nor_written() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let [sealed, output] = ["sealed", "output"].map(|name| dir.path().join(name));
    let below = layer(dir.path(), "below");
    let options = PackOptions {
        packing: Packing::Aligned,
        compression: None,
        tar: false,
        final_header: true,
        threads: NonZeroUsize::MIN,
        overwrite: false,
        allow_torn: false,
    };
    commit(&below.data, None, &sealed, &Naming::default(), &options, &quiet()).unwrap();
    let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
    let open = async || {
        let source: Arc<dyn BlobSource> = Arc::new(FileSource::open(&sealed).unwrap());
        Image::open(&reactor, vec![source], ImageOptions::default()).await.unwrap()
    };
    let image = Arc::new(reactor.block_on(open()).unwrap());
    let counted = |image: &Image| SourceClass::ALL.map(|class| image.reads().of(class).requests.get());
    is_right(&exported(&image, &output), &output);
    assert_eq!(counted(&image).iter().sum::<u64>(), BLOCKS);

    // The same blocks in a layer above.
    let above = Upper { index: Some(dir.path().join("index")), ..layer(dir.path(), "above") };
    let files = LayerFiles::open(&above.data, above.index.as_ref().unwrap()).unwrap();
    let lower = reactor.block_on(open()).unwrap();
    let overlay = Overlay::open(&reactor, files, Some(lower.clone()), LogLimits::default());
    let overlay = Arc::new(reactor.block_on(overlay).unwrap().unwrap());
    is_right(&exported(&overlay, &output), &output);
    // Of the rest of each block's surroundings, which is asked for with it.
    assert_eq!(counted(&lower).iter().sum::<u64>(), BLOCKS);
    drop(overlay);

    let one = Stack { lowers: vec![sealed.clone()], upper: None };
    let other = Stack { lowers: vec![sealed], upper: Some(above) };
    assert!(diff(&one, &other, default_threads(), &quiet()).unwrap().equal);
}
