//! Layers of both kinds over one another against a model in memory: random, overlapping and concurrent work, with snapshots in
//! the middle of it, reopened and crashed now and then.

use super::{
    BELOW_SECTORS, Kind, LIMITS, SECTORS,
    content::{self, Device, Writer},
    crash_image::{CrashImage, FileSystem, SECTOR},
    disk::SimulatedDisk,
    patchwork::Patchwork,
    reactor, setting,
    workload::Workload,
};
use crate::{block::BlockQueue, reactor::Reactor, upper::Overlay};

/// Operations on one disk, whose files grow in memory.
const PER_DISK: usize = 2500;

#[test]
fn random_work_on_two_queues_agrees_with_a_model() {
    let operations = setting("STRATABD_UPPER_OPERATIONS", 50_000) as usize;
    let first_seed = setting("STRATABD_UPPER_SEED", 1);
    let reactor = reactor();
    let (mut done, mut punched, mut snapshots) = (0, 0, 0);
    for seed in first_seed.. {
        if done >= operations {
            break;
        }
        println!("seed {seed}");
        let site = reactor.block_on(one_disk(&reactor, seed)).unwrap();
        punched += site.punched;
        snapshots += site.layers;
        done += PER_DISK;
    }
    println!("{done} operations, {snapshots} snapshots, {punched} bytes punched out");
    assert!(punched > 0 && snapshots > 0);
}

/// Layers on a disk, and what they must hold.
struct Site {
    disk: SimulatedDisk,
    /// What was below when the writable layer was made.
    below: Patchwork,
    /// The writable layer, and how many there were before it.
    kind: Kind,
    layers: usize,
    base: Vec<Writer>,
    punched: u64,
}

impl Site {
    async fn new(reactor: &Reactor, random: &mut fastrand::Rng) -> Self {
        let kind = *random.choice(&Kind::ALL).unwrap();
        let system = FileSystem { whole_blocks: true, ..Kind::Sparse.file_system(random) };
        let disk = SimulatedDisk::new(CrashImage::on(system), random.u64(..));
        let (below, layers) = (content::below(BELOW_SECTORS, 512), 0);
        let base = content::model(SECTORS, BELOW_SECTORS);
        let site = Self { disk, below, kind, layers, base, punched: 0 };
        site.disk.files_named(&site.name()).format(reactor, &kind.identity(SECTORS * SECTOR)).await.unwrap();
        site
    }

    fn name(&self) -> String {
        self.layers.to_string()
    }

    async fn open(&self, reactor: &Reactor, disk: &SimulatedDisk) -> Device {
        let files = disk.files_named(&self.name());
        Overlay::open(reactor, files, Some(self.below.clone()), LIMITS).await.unwrap()
    }

    /// Seals the writable layer, and puts another over it, of either kind, or does not.
    async fn snapshot(&mut self, reactor: &Reactor, device: &Device, random: &mut fastrand::Rng) {
        let next = if random.bool() { Kind::Log } else { Kind::Sparse };
        let name = (self.layers + 1).to_string();
        if self.disk.image().file(&format!("{name}.data")).is_none() {
            let size_bytes = if random.bool() { SECTORS * SECTOR } else { 0 };
            self.disk.files_named(&name).format(reactor, &next.identity(size_bytes)).await.unwrap();
        }
        let sealed = device.seal(reactor, self.disk.files_named(&name)).await.unwrap();
        if random.u8(0..4) == 0 {
            sealed.give_up();
            return;
        }
        sealed.stack();
        self.below = self.below.under(&self.disk.image(), &format!("{}.data", self.name()));
        self.layers += 1;
        let file = self.disk.image().file(&format!("{name}.data")).unwrap();
        let is_sparse = self.disk.image().cached(file)[28] & 1 << 4 != 0;
        self.kind = if is_sparse { Kind::Sparse } else { Kind::Log };
    }
}

async fn one_disk(reactor: &Reactor, seed: u64) -> Site {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut site = Site::new(reactor, &mut random).await;
    let mut done = 0;
    while done < PER_DISK {
        let (disk, base) = (site.disk.clone(), std::mem::take(&mut site.base));
        let device = site.open(reactor, &disk).await;
        let mut work = Workload::new(reactor, &disk, &device, base, random.u64(..));
        assert_eq!(content::read_all(&device, &work.queues[0]).await, work.base, "after it was opened");
        // The format has room for 255 layers.
        while site.layers < 200 && random.u8(0..4) == 0 {
            let operations = random.usize(1..200);
            work.run(operations).await;
            done += operations;
            site.snapshot(reactor, &device, &mut random).await;
            // All that was sealed is durable.
            work.base = work.now();
            work.record.take();
        }
        let operations = random.usize(1..500);
        work.run(operations).await;
        done += operations;
        let expected = work.now();
        assert_eq!(content::read_all(&device, &work.queues[1]).await, expected, "while it is open");
        site.base = if random.bool() {
            work.queues[0].flush().await.unwrap();
            expected
        } else {
            let crashed = SimulatedDisk::new(disk.image().crash(&mut random), random.u64(..));
            let reopened = site.open(reactor, &crashed).await;
            let queue = crate::block::BlockDevice::open_queue(&reopened, reactor).unwrap();
            let found = content::read_all(&reopened, &queue).await;
            site.kind.check(&found, &work.base, &work.record.take(), usize::MAX).unwrap();
            site.punched += disk.punched_bytes();
            site.disk = crashed;
            found
        };
        disk.take_events();
    }
    site.punched += site.disk.punched_bytes();
    site
}
