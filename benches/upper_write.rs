//! Writes of 4 KiB to a log-structured layer on tmpfs, with its journal and without.
//!
//! `cargo bench --bench upper_write`

mod support;

use std::path::Path;

use stratabd::{
    block::{BlockDevice, BlockQueue},
    device::MemoryDevice,
    reactor::{Reactor, ReactorConfig},
    upper::{Identity, LayerFiles, LogLimits, Overlay, OverlayQueue},
};
use support::{paired, verdict};

/// Size of the device, in blocks of 4 KiB.
const BLOCKS: u64 = 16 << 10;

/// Writes of one round, which a flush ends.
const WRITES: u64 = 32 << 10;

/// Most that the journal may cost, as a ratio.
const MOST: f64 = 1.03;

fn main() {
    let reactor = Reactor::new(&ReactorConfig::default()).expect("a reactor");
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let [plain, kept] = ["plain", "kept"].map(|name| Layer::new(&reactor, dir.path(), name));
    let [plain_ns, kept_ns] = paired([&mut || plain.round(), &mut || kept.round()]);
    let ratio = kept_ns / plain_ns;
    let each = |ns: f64| ns / WRITES as f64;
    println!("processor time of a random write of 4 KiB, median of rounds in turn");
    println!(
        "without a journal {:.0} ns, with one {:.0} ns, ratio {ratio:.3} (at most {MOST}: {})",
        each(plain_ns),
        each(kept_ns),
        verdict(ratio <= MOST)
    );
}

struct Layer<'a> {
    reactor: &'a Reactor,
    queue: OverlayQueue<<MemoryDevice as BlockDevice>::Queue>,
    _device: Overlay<MemoryDevice>,
}

impl<'a> Layer<'a> {
    /// A layer in `dir`, with a journal if it is `kept`.
    fn new(reactor: &'a Reactor, dir: &Path, name: &str) -> Self {
        let [data, index] = ["data", "index"].map(|kind| dir.join(format!("{name}.{kind}")));
        let uuid = "ABC00007-1111-2222-3333-000000000007".parse().expect("a UUID");
        let identity = Identity { uuid, parent_uuid: None, virtual_size_bytes: BLOCKS << 12, sparse: false };
        let opened = async {
            LayerFiles::create(&data, &index)
                .expect("new files")
                .format(reactor, &identity)
                .await
                .expect("a layer");
            let files = LayerFiles::open(&data, &index).expect("the files");
            let files = if name == "kept" { files.with_journal(dir) } else { files };
            Overlay::open(reactor, files, None, LogLimits::default()).await.expect("a device")
        };
        let device = reactor.block_on(opened).expect("a reactor that runs");
        let queue = device.open_queue(reactor).expect("a queue");
        Self { reactor, queue, _device: device }
    }

    fn round(&self) -> u64 {
        let mut random = fastrand::Rng::with_seed(1);
        let data = [7; 4096];
        let work = async {
            for _ in 0..WRITES {
                self.queue.write(random.u64(0..BLOCKS) << 12, &data).await.expect("a write");
            }
            self.queue.flush().await.expect("a flush");
        };
        self.reactor.block_on(work).expect("a reactor that runs");
        WRITES
    }
}
