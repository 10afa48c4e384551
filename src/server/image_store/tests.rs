//! Images come, are shared, used and go, also those that nobody finished.

use std::thread;

use serde_json::json;

use super::*;
use crate::server::{
    api::types::{AddDevice, ImageSpec},
    state::{Phase, Record, StateDir},
};

const MIB: usize = 1 << 20;

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_hash(Sha256::digest(bytes).into())
}

/// A store of its own.
struct Site {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(dir.path());
        Self { dir, store }
    }

    fn put(&self, bytes: &[u8]) -> Digest {
        fs::write(self.store.blob(digest(bytes)), bytes).unwrap();
        digest(bytes)
    }

    /// Makes the image `name` of layers of 1 MiB each of which all bytes are as given.
    fn make(&self, name: &str, layers: &[u8]) -> FoundImage {
        let preparation = self.store.prepare(digest(name.as_bytes())).unwrap();
        assert_eq!(preparation.try_begin().unwrap(), Turn::Own);
        let layers: Vec<_> = layers
            .iter()
            .map(|byte| {
                let layer = Layer { digest: self.put(&vec![*byte; MIB]), size_bytes: MIB as u64, verity: None };
                let annotations: serde_json::Map<_, _> =
                    layer.annotations().map(|(key, value)| (key.to_owned(), value.into())).collect();
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.digest, "size": MIB, "annotations": annotations})
            })
            .collect();
        let config = self.put(name.as_bytes());
        let manifest =
            json!({"schemaVersion": 2, "config": {"digest": config, "size": name.len()}, "layers": layers});
        let manifest = self.put(manifest.to_string().as_bytes());
        let listed = json!({"digest": manifest, "size": 1, "annotations": {REF_NAME: name}});
        let index = preparation.folder().join(INDEX);
        fs::write(&index, json!({"manifests": [listed]}).to_string()).unwrap();
        preparation.finish().unwrap()
    }

    fn find(&self, name: &str) -> Option<FoundImage> {
        self.store.find(digest(name.as_bytes())).unwrap()
    }

    /// The images that are left of `names` when there is room for so many layers.
    fn left(&self, names: &'static [&'static str], layers: usize) -> Vec<&'static str> {
        // Documents take a block each.
        self.store.tidy((layers * MIB + MIB / 2) as u64).unwrap();
        let there = self.store.list().unwrap();
        names.iter().filter(|name| there.iter().any(|image| image.reference == **name)).copied().collect()
    }

    fn blobs(&self) -> usize {
        fs::read_dir(self.store.blobs()).unwrap().count()
    }
}

#[test]
fn nothing_is_made_by_who_only_looks() {
    let site = Site::new();
    assert!(site.find("a").is_none());
    assert!(site.store.list().unwrap().is_empty());
    site.store.tidy(0).unwrap();
    assert_eq!(fs::read_dir(site.dir.path()).unwrap().count(), 0);
}

#[test]
fn the_least_recently_used_goes_first_and_what_others_share_stays() {
    let site = Site::new();
    for (name, layers) in [("a", [1, 2]), ("b", [1, 3]), ("c", [1, 4])] {
        site.make(name, &layers);
    }
    assert!(site.find("a").is_some(), "it was used last now");
    assert_eq!(site.left(&["a", "b", "c"], 4), ["a", "b", "c"]);
    assert_eq!(site.left(&["a", "b", "c"], 3), ["a", "c"]);
    assert_eq!(site.blobs(), 3 + 2 * 2);
    assert!(site.find("b").is_none());
    assert_eq!(site.left(&["a", "b", "c"], 0), [""; 0]);
    assert_eq!(site.blobs(), 0);
}

#[test]
fn what_is_held_open_or_named_stays_and_goes_when_it_is_not_any_more() {
    let site = Site::new();
    let [a, b, c, d] =
        [("a", 1), ("b", 2), ("c", 3), ("d", 4)].map(|(name, layer)| site.make(name, &[layer]).layers);
    assert_eq!(site.make("held", &[9]).layers.len(), 1);
    let names = &["a", "b", "c", "d", "held"];
    // A process that has it open; a record; a configuration, also one that only a record names.
    let open = crate::server::layers::open_file(&a[0]).unwrap();
    let state_dir = site.dir.path().join("state");
    let state = StateDir::open(&state_dir).unwrap();
    note_user(b.iter().map(PathBuf::as_path), &state_dir).unwrap();
    let image = ImageSpec::Converted { reference: "b".to_owned(), layers: b };
    let record = Record::new(3, AddDevice::of(image)).in_phase(Phase::Live);
    state.records().create(&record).unwrap();
    let config = |name: &str, layers: &[PathBuf]| {
        let path = site.dir.path().join(name);
        fs::write(&path, json!({"lowers": [{"file": layers[0]}]}).to_string()).unwrap();
        path
    };
    let (of_c, of_d) = (config("c.json", &c), config("d.json", &d));
    note_user(c.iter().map(PathBuf::as_path), &of_c).unwrap();
    let record = Record::new(4, AddDevice::of(ImageSpec::Config(of_d))).in_phase(Phase::Live);
    state.records().create(&record).unwrap();
    assert_eq!(site.left(names, 0), ["a", "b", "c", "d"]);
    drop(open);
    assert_eq!(site.left(names, 0), ["b", "c", "d"]);
    state.records().forget(3).unwrap();
    assert_eq!(site.left(names, 0), ["c", "d"]);
    fs::write(&of_c, "{").unwrap();
    assert!(site.store.tidy(0).is_err(), "nobody knows what it names");
    fs::remove_file(&of_c).unwrap();
    assert_eq!(site.left(names, 0), ["d"]);
    state.records().forget(4).unwrap();
    assert_eq!(site.left(names, 0), [""; 0]);
}

#[test]
fn who_has_found_an_image_keeps_it_and_nobody_waits_for_him() {
    let site = Site::new();
    let found = site.make("a", &[1]);
    assert!(site.store.tidy(0).unwrap().busy);
    assert!(found.layers[0].exists());
    drop(found);
    assert_eq!(site.store.tidy(0).unwrap().removed_images, 1);
}

#[test]
fn one_makes_an_image_and_others_find_it_or_make_it_when_he_dies() {
    let site = Site::new();
    let source = digest(b"a");
    let [first, second] = [(); 2].map(|()| site.store.prepare(source).unwrap());
    assert_eq!(first.try_begin().unwrap(), Turn::Own);
    fs::write(first.folder().join("oci-layout"), "half").unwrap();
    fs::write(site.store.blobs().join(".half.part"), "half").unwrap();
    assert_eq!(second.try_begin().unwrap(), Turn::Others);
    drop(first);
    assert_eq!(second.try_begin().unwrap(), Turn::Own);
    assert!(!second.folder().join("oci-layout").exists());
    drop(second);
    let waiting = site.store.prepare(source).unwrap();
    thread::scope(|scope| scope.spawn(|| site.make("a", &[1])).join().unwrap());
    assert_eq!(waiting.try_begin().unwrap(), Turn::Over);
    assert_eq!(waiting.finish().unwrap().layers.len(), 1);
    assert_eq!(site.left(&["a"], 1), ["a"]);
    assert_eq!(site.blobs(), 3, "what was half made is gone");
}

#[test]
fn an_image_that_a_crash_has_taken_a_layer_of_is_none() {
    let site = Site::new();
    let layer = site.make("a", &[1]).layers.remove(0);
    for damage in [0, MIB as u64 - 1] {
        File::options().write(true).open(&layer).unwrap().set_len(damage).unwrap();
        assert!(site.find("a").is_none(), "{damage}");
    }
    fs::remove_file(&layer).unwrap();
    assert_eq!(site.left(&["a"], 9), [""; 0]);
    assert_eq!(site.blobs(), 0);
}
