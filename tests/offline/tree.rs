//! Merkle trees behind layers: what proves them, and that nobody who does not know of them is disturbed.

use std::{
    fs::{self, File},
    num::NonZeroUsize,
    path::Path,
    process::Command,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use stratabd::{
    format::{
        lsmt::{LayerIdentity, UserTag},
        oci::{Digest, Layer},
        tar::{Envelope, HEAD_BYTES},
        verity::{BLOCK_BYTES, Verifier},
        zfile::{Algorithm, BlockFormat},
    },
    offline::{OfflineError, StackReader, StreamedLayer, add_tree},
};

const DEVICE_BYTES: u64 = 16 << 20;

/// A layer with so many pages of noise.
fn layer(path: &Path, pages: u64) -> u64 {
    let file = Arc::new(File::create(path).unwrap());
    let format = BlockFormat::new(Algorithm::Lz4, 4096).unwrap();
    let identity = LayerIdentity {
        uuid: None,
        parent_uuid: None,
        virtual_size_bytes: DEVICE_BYTES,
        user_tag: UserTag::default(),
    };
    let mut layer =
        StreamedLayer::begin(file, path.to_owned(), &identity, format, NonZeroUsize::MIN).unwrap();
    let mut random = fastrand::Rng::with_seed(pages);
    for page in 0..pages {
        let bytes: Vec<u8> = (0..4096).map(|_| random.u8(..)).collect();
        layer.write(page * 4096, &bytes).unwrap();
    }
    layer.finish().unwrap()
}

fn with_tree(path: &Path, size_bytes: u64) -> Layer {
    let file = File::options().read(true).write(true).open(path).unwrap();
    add_tree(&file, path, size_bytes).unwrap()
}

fn device(path: &Path) -> Vec<u8> {
    let mut reader = StackReader::open(&[path.to_owned()]).unwrap();
    let mut device = vec![1; usize::try_from(DEVICE_BYTES).unwrap()];
    reader.read(0, &mut device).unwrap();
    device
}

/// Whether all of a blob with this tree is proven.
fn is_proven(blob: &[u8], layer: &Layer) -> bool {
    let verity = layer.verity.unwrap();
    let shape = verity.shape_in(blob.len() as u64).unwrap();
    let verifier = Verifier::new(shape, verity.digest());
    let blocks: Vec<&[u8]> = blob.chunks(usize::try_from(BLOCK_BYTES).unwrap()).collect();
    (0_u64..).zip(&blocks).all(|(number, block)| {
        let parent = verifier
            .shape()
            .parent(number)
            .map_or(&[][..], |(parent, _)| blocks[usize::try_from(parent).unwrap()]);
        verifier.check(number, block, parent).is_ok()
    })
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the layers are small")]
fn a_layer_with_a_tree_is_the_same_layer_to_whoever_does_not_know_of_it() {
    let dir = tempfile::tempdir().unwrap();
    for pages in [0, 1, 120, 700] {
        let path = dir.path().join(pages.to_string());
        let plain_bytes = layer(&path, pages);
        let (plain, plain_device) = (fs::read(&path).unwrap(), device(&path));
        let made = with_tree(&path, plain_bytes);
        let blob = fs::read(&path).unwrap();
        assert_eq!(made.size_bytes, blob.len() as u64);
        assert_eq!(made.digest, Digest::from_hash(Sha256::digest(&blob).into()));
        assert!(is_proven(&blob, &made), "{pages} pages");
        assert!(device(&path) == plain_device);

        // Base and size of the first member, from which upstream reads, are what they were, and so are its bytes.
        let before = Envelope::detect(&plain[..HEAD_BYTES], plain_bytes).unwrap().unwrap();
        assert_eq!(Envelope::detect(&blob[..HEAD_BYTES], made.size_bytes).unwrap(), Some(before));
        let payload_end = usize::try_from(before.payload_offset + before.payload_len).unwrap();
        assert!(blob[..payload_end] == plain[..payload_end]);
        let listed = Command::new("tar").arg("-tf").arg(&path).output().unwrap();
        assert!(listed.status.success() && listed.stderr.is_empty(), "{listed:?}");
        assert_eq!(listed.stdout, b"overlaybd.commit\noverlaybd.verity\n");
        let tree = Command::new("tar").arg("-xOf").arg(&path).arg("overlaybd.verity").output().unwrap();
        let offset = usize::try_from(made.verity.unwrap().tree_offset()).unwrap();
        assert!(tree.stdout == blob[offset..blob.len() - 1024]);

        // The kernel's tool measures the same of what the tree is of.
        let content = dir.path().join("content");
        fs::write(&content, &blob[..offset]).unwrap();
        let measured = Command::new("fsverity").args(["digest", "--compact"]).arg(&content).output().unwrap();
        let digest = made.verity.unwrap().digest().hex();
        assert_eq!(String::from_utf8(measured.stdout).unwrap().trim(), digest);

        // Once more: the same bytes.
        assert_eq!(with_tree(&path, made.size_bytes), made);
        assert!(fs::read(&path).unwrap() == blob);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the layer is small")]
fn whatever_byte_of_the_blob_is_changed_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    let plain_bytes = layer(&path, 150);
    let made = with_tree(&path, plain_bytes);
    let blob = fs::read(&path).unwrap();
    let mut random = fastrand::Rng::with_seed(4);
    for _ in 0..100 {
        let mut changed = blob.clone();
        let at = random.usize(..blob.len());
        changed[at] ^= random.u8(1..);
        assert!(!is_proven(&changed, &made), "byte {at}");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the file is small")]
fn what_has_no_envelope_gets_no_tree() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plain");
    fs::write(&path, [7; 5000]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let refused = add_tree(&file, &path, 5000);
    assert!(matches!(refused, Err(OfflineError::NoEnvelope(_))), "{refused:?}");
    assert_eq!(fs::read(&path).unwrap(), [7; 5000]);
}
