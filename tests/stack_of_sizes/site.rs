//! The files of a stack, and what the offline tools and the engine make of them.

use std::{
    fs,
    io::Read,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use stratabd::{
    format::lsmt::Packing,
    image::{Image, ImageOptions},
    offline::{self, CreateOptions, Naming, PackOptions, Upper, Watch},
    reactor::{Reactor, ReactorConfig, ReactorThread},
    server::export::{ExportOptions, ExportOutput, export},
    source::{BlobSource, FileSource},
    upper::{LayerFiles, LogLimits, Overlay},
};

use crate::{
    layer_writer::{self, Mapping},
    model::{REACH, Sectors, Stack},
    read_all,
};

pub(crate) fn quiet() -> Watch<fn(u64, u64)> {
    Watch { progress: |_, _| {}, cancelled: false.into() }
}

/// A stack in a folder: sealed layers and one that may be written.
pub(crate) struct Site {
    dir: Arc<tempfile::TempDir>,
    lowers: Vec<PathBuf>,
    upper: Upper,
    made: usize,
}

impl Site {
    /// The layers of `model`.
    pub(crate) fn new(random: &mut fastrand::Rng, model: &Stack) -> Self {
        let ([lowers @ .., _], [sizes @ .., size]) = (&model.layers[..], &model.sizes[..]) else {
            unreachable!("there is one")
        };
        let lowers: Vec<_> =
            lowers.iter().zip(sizes).map(|(layer, size)| sealed(layer, size * 512)).collect();
        Self::of(&lowers, random.bool(), size * 512)
    }

    /// An empty layer over these.
    pub(crate) fn of(lowers: &[Vec<u8>], sparse: bool, virtual_size_bytes: u64) -> Self {
        // In memory where that may be, which has holes too: there are many syncs.
        let memory = Path::new("/dev/shm");
        let folder = if memory.exists() { memory } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
        let dir = Arc::new(tempfile::tempdir_in(folder).unwrap());
        let paths = lowers.iter().enumerate().map(|(number, layer)| {
            let path = dir.path().join(format!("lower{number}"));
            fs::write(&path, layer).unwrap();
            path
        });
        let lowers = paths.collect();
        let upper = create(dir.path(), 0, sparse, virtual_size_bytes);
        Self { dir, lowers, upper, made: 1 }
    }

    pub(crate) fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }

    pub(crate) fn below(&self) -> offline::Stack {
        offline::Stack { lowers: self.lowers.clone(), upper: None }
    }

    pub(crate) fn stack(&self) -> offline::Stack {
        offline::Stack { upper: Some(self.upper.clone()), ..self.below() }
    }

    /// Another writable layer, for the size of what lies below.
    pub(crate) fn next_upper(&mut self, random: &mut fastrand::Rng) -> Upper {
        self.made += 1;
        create(self.dir.path(), self.made, random.bool(), 0)
    }

    /// The writable layer is sealed now, and `next` is over it.
    pub(crate) fn push(&mut self, next: Upper) {
        self.lowers.push(std::mem::replace(&mut self.upper, next).data);
    }

    /// The same layers under another writable one.
    pub(crate) fn fork(&mut self, random: &mut fastrand::Rng) -> Self {
        let upper = self.next_upper(random);
        Self { dir: Arc::clone(&self.dir), lowers: self.lowers.clone(), upper, made: self.made + 100 }
    }

    pub(crate) fn files(&self, upper: &Upper) -> LayerFiles {
        LayerFiles::open(&upper.data, upper.index.as_ref().unwrap()).unwrap()
    }

    pub(crate) async fn image(&self, reactor: &Reactor, layers: &[PathBuf]) -> Option<Image> {
        let source = |path: &PathBuf| Arc::new(FileSource::open(path).unwrap()) as Arc<dyn BlobSource>;
        let layers: Vec<_> = layers.iter().map(source).collect();
        if layers.is_empty() {
            return None;
        }
        Some(Image::open(reactor, layers, ImageOptions::default()).await.unwrap())
    }

    pub(crate) async fn open(&self, reactor: &Reactor) -> Overlay<Image> {
        let image = self.image(reactor, &self.lowers).await;
        Overlay::open(reactor, self.files(&self.upper), image, LogLimits::default()).await.unwrap()
    }

    /// What a device of all sectors that there may be shows over `layers`.
    pub(crate) async fn wide(&self, reactor: &Reactor, layers: &[PathBuf]) -> Vec<u8> {
        let upper = create(self.dir.path(), usize::MAX, fastrand::bool(), REACH as u64 * 512);
        let image = self.image(reactor, layers).await;
        let device = Overlay::open(reactor, self.files(&upper), image, LogLimits::default()).await.unwrap();
        read_all(&device, reactor).await
    }

    /// The device in a file.
    pub(crate) async fn exported(&self, reactor: &Reactor) -> Vec<u8> {
        let device = Arc::new(self.open(reactor).await);
        let path = self.dir.path().join("exported");
        let output = ExportOutput::File { path: path.clone(), overwrite: true };
        let options = ExportOptions { output: Some(output), sha256: true };
        let thread = ReactorThread::start("export", ReactorConfig::default(), || Ok(())).unwrap();
        let (_held, cancel) = tokio::sync::oneshot::channel();
        export(&thread.handle(), &device, options, cancel, |_| {}).unwrap();
        thread.stop().unwrap();
        let mut bytes = Vec::new();
        fs::File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// The file of `stack` as one layer.
    pub(crate) fn flattened(&self, stack: &offline::Stack) -> PathBuf {
        let out = self.dir.path().join("flat");
        let packing = if fastrand::bool() { Packing::Aligned } else { Packing::AsUpstream };
        let options = PackOptions {
            allow_torn: false,
            packing,
            compression: None,
            tar: false,
            final_header: true,
            threads: NonZeroUsize::MIN,
            overwrite: true,
        };
        offline::merge(stack, &out, &Naming::default(), &options, &quiet()).unwrap();
        out
    }

    /// Gives the device another size.
    pub(crate) fn resize(&self, size_bytes: u64) {
        offline::resize(&self.lowers, &self.upper, size_bytes, true).unwrap();
    }
}

fn create(dir: &Path, number: usize, sparse: bool, virtual_size_bytes: u64) -> Upper {
    let [data, index] = ["data", "index"].map(|name| dir.join(format!("{name}{number}")));
    let upper = Upper { data, index: Some(index) };
    let _ = [&upper.data, upper.index.as_ref().unwrap()].map(fs::remove_file);
    let options = CreateOptions {
        sparse,
        virtual_size_bytes,
        uuid: None,
        parent_uuid: None,
        ext4: false,
        overwrite: false,
    };
    offline::create(&upper, &options).unwrap();
    upper
}

/// A read-only layer with what `sectors` say.
fn sealed(sectors: &Sectors, size_bytes: u64) -> Vec<u8> {
    let mut runs = Vec::new();
    let mut at = 0;
    for run in sectors.chunk_by(|left, right| left == right) {
        if let Some(fill) = run[0] {
            runs.push((at, fill, run.len()));
        }
        at += run.len() as u64;
    }
    let bytes: Vec<Vec<u8>> = runs.iter().map(|(_, fill, len)| vec![*fill; len * 512]).collect();
    let mappings: Vec<Mapping<'_>> = runs
        .iter()
        .zip(&bytes)
        .map(|((at, fill, len), bytes)| (*at, if *fill == 0 { Err(*len as u64) } else { Ok(&bytes[..]) }))
        .collect();
    layer_writer::lsmt(size_bytes, &mappings)
}
