//! Stacks of layers of different sizes: the engine, the offline tools and a plain model show the same device. How much of a stack is
//! seen is the size of the highest layer that says one; what is seen there is what the highest layer with something to say of it has.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]
#![expect(clippy::cast_possible_truncation, reason = "tests run where usize has 64 bits")]

#[path = "../support/layer_writer.rs"]
#[expect(dead_code, unreachable_pub, reason = "each test binary uses a part of the support")]
mod layer_writer;

mod ext4;
mod model;
mod site;

use model::{REACH, Stack};
use site::Site;
use stratabd::{
    block::{BlockDevice, BlockQueue},
    image::Image,
    offline::diff,
    reactor::{Reactor, ReactorConfig},
    upper::Overlay,
};

const SEEDS: u64 = 12;

fn reactor() -> Reactor {
    Reactor::new(&ReactorConfig::default()).unwrap()
}

async fn read_all(device: &impl BlockDevice, reactor: &Reactor) -> Vec<u8> {
    let queue = device.open_queue(reactor).unwrap();
    let mut bytes = vec![0xaa; device.geometry().size_bytes as usize];
    for (piece, chunk) in bytes.chunks_mut(100 * 512).enumerate() {
        queue.read(piece as u64 * 100 * 512, chunk).await.unwrap();
    }
    bytes
}

/// Random writes and discards around all the ends that there are, on the device and in the model.
async fn change(device: &Overlay<Image>, reactor: &Reactor, model: &mut Stack, random: &mut fastrand::Rng) {
    let queue = device.open_queue(reactor).unwrap();
    let sectors = device.geometry().size_bytes / 512;
    for _ in 0..random.u8(0..8) {
        let run = model.run(random, sectors);
        let (start, len) = (run.start as u64 * 512, run.len() * 512);
        let fill = if random.bool() { random.u8(1..) } else { 0 };
        match fill {
            0 => queue.write_zeroes(start, len as u64).await.unwrap(),
            fill => queue.write(start, &vec![fill; len]).await.unwrap(),
        }
        model.write(run, fill);
    }
    queue.flush().await.unwrap();
}

/// The device of the model, in every way in which it can be had from the files.
async fn agree(site: &Site, reactor: &Reactor, model: &Stack, what: &str) {
    let wanted = model.bytes();
    let image = site.image(reactor, site.lowers()).await;
    assert!(read_all(&site.open(reactor).await, reactor).await == wanted, "{what}: the engine");
    assert!(site.exported(reactor).await == wanted, "{what}: the export");
    let flat = site.flattened(&site.stack());
    let opened = site.image(reactor, std::slice::from_ref(&flat)).await.unwrap();
    assert!(read_all(&opened, reactor).await == wanted, "{what}: the flattened stack");
    let over = stratabd::offline::Stack { lowers: vec![flat], upper: None };
    let compared = diff(&site.stack(), &over, std::num::NonZeroUsize::MIN, &site::quiet()).unwrap();
    assert!(compared.equal, "{what}: {compared:?}");
    // A larger device over the flattened stack shows what it would show over the stack.
    let wide = site.wide(reactor, &over.lowers).await;
    assert!(wide == model.bytes_of(REACH), "{what}: a larger device over the flattened stack");
    if image.is_some() {
        let merged = site.flattened(&site.below());
        assert!(site.wide(reactor, &[merged]).await == model.below().bytes_of(REACH), "{what}: merged");
        assert!(site.wide(reactor, site.lowers()).await == model.below().bytes_of(REACH), "{what}: lowers");
    }
}

async fn random_stack(seed: u64, reactor: &Reactor) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model = Stack::random(&mut random);
    let mut site = Site::new(&mut random, &model);
    let step = format!("seed {seed}, sizes {:?}", model.sizes);
    agree(&site, reactor, &model, &step).await;

    let device = site.open(reactor).await;
    change(&device, reactor, &mut model, &mut random).await;
    assert!(read_all(&device, reactor).await == model.bytes(), "{step}: written");
    // It grows while it is there.
    let sectors = random.u64(model.sectors()..=REACH as u64);
    device.resize(reactor, sectors * 512).await.unwrap();
    model.resize(sectors);
    assert!(read_all(&device, reactor).await == model.bytes(), "{step}: grown to {sectors}");
    change(&device, reactor, &mut model, &mut random).await;

    // Its bytes are the same across a snapshot, for it and for a fork.
    let next = site.next_upper(&mut random);
    device.seal(reactor, site.files(&next)).await.unwrap().stack();
    assert!(read_all(&device, reactor).await == model.bytes(), "{step}: across a snapshot");
    site.push(next);
    model.push();
    let forked = model.clone();
    change(&device, reactor, &mut model, &mut random).await;
    assert!(read_all(&device, reactor).await == model.bytes(), "{step}: written over a snapshot");
    device.close(reactor).await.unwrap();
    agree(&site, reactor, &model, &format!("{step}: opened again")).await;
    let fork = site.fork(&mut random);
    agree(&fork, reactor, &forked, &format!("{step}: forked")).await;

    // Smaller, and larger again: what the writable layer had there is gone, and nothing else.
    let small = model.run(&mut random, model.sectors()).start.max(1) as u64;
    let large = random.u64(model.sectors()..=REACH as u64);
    for sectors in [small, large] {
        site.resize(sectors * 512);
        model.resize(sectors);
        agree(&site, reactor, &model, &format!("{step}: resized to {sectors}")).await;
    }
    let device = site.open(reactor).await;
    change(&device, reactor, &mut model, &mut random).await;
    assert!(read_all(&device, reactor).await == model.bytes(), "{step}: at the end");
}

#[test]
fn every_way_to_see_a_stack_of_layers_of_random_sizes_shows_the_same() {
    let reactor = reactor();
    let work = async {
        for seed in 0..SEEDS {
            random_stack(seed, &reactor).await;
        }
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn what_is_new_of_the_block_in_which_a_sparse_layer_ended_is_what_lies_below() {
    let reactor = reactor();
    let mut model = Stack { sizes: vec![1000, 12], layers: vec![vec![None; REACH]; 2] };
    model.layers[0][..1000].fill(Some(7));
    let below: Vec<u8> = vec![7; 1000 * 512];
    let site = Site::of(&[layer_writer::lsmt(1000 * 512, &[(0, Ok(&below))])], true, 12 * 512);
    let work = async {
        let device = site.open(&reactor).await;
        device.open_queue(&reactor).unwrap().write(9 * 512, &[8; 512]).await.unwrap();
        model.write(9..10, 8);
        device.close(&reactor).await.unwrap();
        for sectors in [14, 11, 900, 9, 600] {
            site.resize(sectors * 512);
            model.resize(sectors);
            agree(&site, &reactor, &model, &format!("{sectors} sectors")).await;
        }
    };
    reactor.block_on(work).unwrap();
}
