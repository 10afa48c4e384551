//! Configurations that name a layer as writable which has been sealed since, and is read.

use super::*;
use crate::{
    block::{BlockDevice, BlockQueue},
    offline::{self, CreateOptions, Upper},
};

/// A folder with an empty writable layer of one kind, and a daemon.
struct Scene {
    dir: tempfile::TempDir,
    daemon: Arc<Daemon>,
}

impl Scene {
    fn new(sparse: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let upper =
            Upper { data: dir.path().join("upper.data"), index: Some(dir.path().join("upper.index")) };
        let options = CreateOptions {
            sparse,
            virtual_size_bytes: 1 << 20,
            uuid: None,
            parent_uuid: None,
            ext4: false,
            overwrite: false,
        };
        offline::create(&upper, &options).unwrap();
        let text = serde_json::json!({"upper": {"data": upper.data, "index": upper.index}}).to_string();
        for name in ["config.v1.json", "stale.json"] {
            std::fs::write(dir.path().join(name), &text).unwrap();
        }
        let daemon = daemon(&dir.path().join("state"), NullFrontend::new(), Vec::new());
        Self { dir, daemon }
    }

    /// A device of the configuration of this name.
    fn add(&self, name: &str) -> impl Future<Output = Result<DeviceInfo, Failure>> + use<> {
        let request = AddDevice { image: ImageSpec::Config(self.dir.path().join(name)), ..request(None) };
        let daemon = Arc::clone(&self.daemon);
        async move { daemon.add(request).await }
    }

    /// As [`Scene::add`], which must be refused because the layer is in use, and change nothing.
    async fn refused(&self, name: &str) {
        let before = self.sealed();
        let refused = self.add(name).await.expect_err(name);
        assert_eq!(refused.class().exit_code(), 7, "{}", refused.full_text());
        assert!(refused.full_text().contains("upper.data: another device"), "{}", refused.full_text());
        assert!(before == self.sealed(), "the layer has changed");
    }

    /// The bytes of the layer that was written first.
    #[expect(clippy::disallowed_methods, reason = "it is a small file of the test")]
    fn sealed(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("upper.data")).unwrap()
    }

    /// Has a device write, and seals what it has written; it goes on.
    async fn snapshot(&self) -> u32 {
        let id = self.add("config.v1.json").await.unwrap().id;
        let served = self.daemon.table.live(id).unwrap();
        let Shown::Overlay(overlay) = served.device.shown().clone() else { panic!("it takes no writes") };
        let writing = served.sealer.call(move |reactor| async move {
            overlay.open_queue(&reactor).unwrap().write(0, &[7; 4096]).await.unwrap();
        });
        writing.await.unwrap();
        self.daemon.snapshot(id, SnapshotTarget::Folder(self.dir.path().join("next"))).await.unwrap();
        id
    }
}

/// The device that has sealed it goes on: it reads the layer, and so may others.
async fn while_the_device_goes_on(scene: Scene) {
    scene.snapshot().await;
    let layer = scene.dir.path().join("upper.data");
    let reading = AddDevice { image: ImageSpec::Layers(vec![layer]), ..request(None) };
    tokio::join!(scene.refused("stale.json"), async { scene.daemon.add(reading).await.unwrap() });
}

/// Only an image that another device shows has it.
async fn while_another_device_reads_it(scene: Scene) {
    let first = scene.snapshot().await;
    let layer = scene.dir.path().join("upper.data");
    scene.daemon.add(AddDevice { image: ImageSpec::Layers(vec![layer]), ..request(None) }).await.unwrap();
    scene.daemon.remove(first, true).await.unwrap();
    scene.refused("stale.json").await;
}

/// The next daemon has made the device again.
async fn after_a_restart(scene: Scene) {
    let first = scene.snapshot().await;
    scene.daemon.remove(first, true).await.unwrap();
    let state = scene.dir.path().join("next-state");
    let next = Scene { daemon: daemon(&state, NullFrontend::new(), Vec::new()), ..scene };
    next.add("config.v1.json").await.unwrap();
    next.refused("stale.json").await;
}

/// The stale configuration comes first, as it may where a crash has left the old one: then nobody reads what it writes.
async fn before_it_is_read(scene: Scene) {
    let first = scene.snapshot().await;
    scene.daemon.remove(first, true).await.unwrap();
    let stale = scene.add("stale.json").await.unwrap().id;
    scene.refused("config.v1.json").await;
    scene.daemon.remove(stale, true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_layer_is_not_read_and_written_at_once() {
    let kinds = async |sparse| {
        tokio::join!(
            while_the_device_goes_on(Scene::new(sparse)),
            while_another_device_reads_it(Scene::new(sparse)),
            after_a_restart(Scene::new(sparse)),
            before_it_is_read(Scene::new(sparse)),
        )
    };
    tokio::join!(kinds(false), kinds(true));
}
