//! Which images of a source are converted: one, or those of an index for all platforms or for some.

use bytes::Bytes;
use serde_json::Value;
use stratabd::{
    format::oci::{Descriptor, Digest, Document, Index, OciError, Platform},
    registry::FoundDocument,
    server::{
        failure::{Failure, FailureClass},
        push::check_platform,
    },
};

use crate::source::{Source, SourceImage};

/// An index may name an index; more levels are not made by any tool.
const INDEX_DEPTH_LIMIT: usize = 3;
/// Images of an index: the official images of the largest registry are for a dozen platforms.
const IMAGES_LIMIT: usize = 64;
/// Bytes of all documents of an index together, which are in memory. One manifest or configuration has some KiB.
const DOCUMENTS_LIMIT_BYTES: usize = 16 << 20;
/// By this annotation BuildKit marks what is about another manifest.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// What there are overlaybd images for.
const LINUX: &str = "linux";

/// Which images of several are converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platforms {
    /// All that are for Linux, which become an index if they are in one.
    All,
    /// One for each of these. Several become an index; of none it is this machine's that is meant.
    These(Vec<Platform>),
}

/// What is to be converted.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) images: Vec<SourceImage>,
    /// What they are in, where what is made is to be an index too.
    pub(crate) index: Option<SourceIndex>,
    /// What is left out though all was asked for, in words.
    pub(crate) left_out: Vec<String>,
}

/// An index as it is in the source.
#[derive(Debug)]
pub(crate) struct SourceIndex {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
}

/// A manifest, and what the index that names it says of it.
struct Leaf {
    found: FoundDocument,
    entry: Option<Value>,
}

impl Default for Platforms {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl Source {
    /// Reads the documents of what is to be converted.
    pub(crate) async fn choose(&self, platforms: &Platforms) -> Result<Chosen, Failure> {
        let root = self.root().await?;
        let (digest, bytes) = (root.digest, root.bytes.clone());
        let is_index = matches!(root.document, Document::Index(_));
        let mut left_out = Vec::new();
        let leaves = match platforms {
            Platforms::These(wanted) if wanted.len() < 2 => {
                let platform = wanted.first().cloned().unwrap_or_else(Platform::host);
                let Leaf { found, entry } = self.leaf_for(root, &platform).await?;
                let image = self.image(found, entry).await?;
                if let Some(wanted) = wanted.first() {
                    check_platform(&self.name, &image.documents.config, wanted)?;
                }
                return Ok(Chosen { images: vec![image], index: None, left_out });
            }
            Platforms::These(_) if !is_index => {
                let text = format!(
                    "{} is one image, and no index of several: give one platform, or none",
                    self.name
                );
                return Err(Failure::new(FailureClass::Usage, text));
            }
            Platforms::These(wanted) => self.leaves_for(&root, wanted).await?,
            Platforms::All => self.all_leaves(root, &mut left_out).await?,
        };
        if leaves.is_empty() {
            let text =
                format!("{} has no image that can be converted, but {}", self.name, left_out.join(", "));
            return Err(Failure::new(FailureClass::Image, text));
        }
        let mut images: Vec<SourceImage> = Vec::new();
        for Leaf { found, entry } in leaves {
            let mut image = self.image(found, entry).await?;
            if is_index {
                image.name = format!("{} for {}", self.name, image.platform_text());
            }
            images.push(image);
            let sizes =
                images.iter().map(|image| image.documents.manifest.len() + image.documents.config.len());
            self.require_few(images.len(), sizes.sum())?;
        }
        Ok(Chosen { images, index: is_index.then_some(SourceIndex { digest, bytes }), left_out })
    }

    /// The manifest for `platform`, which `root` is or leads to.
    async fn leaf_for(&self, root: FoundDocument, platform: &Platform) -> Result<Leaf, Failure> {
        let mut leaf = Leaf { found: root, entry: None };
        for _ in 0..=INDEX_DEPTH_LIMIT {
            let Document::Index(index) = &leaf.found.document else { return Ok(leaf) };
            let chosen = index.select(platform).map_err(|error| self.wrong(error))?;
            let at = index.manifests.iter().position(|entry| std::ptr::eq(entry, chosen));
            let entry = at.and_then(|at| entries(&leaf.found.bytes).into_iter().nth(at));
            leaf = Leaf { found: self.document(chosen.digest).await?, entry };
        }
        Err(self.too_deep())
    }

    /// The manifests for these platforms. One that is for several of them is there once.
    async fn leaves_for(&self, root: &FoundDocument, wanted: &[Platform]) -> Result<Vec<Leaf>, Failure> {
        let mut leaves: Vec<Leaf> = Vec::new();
        for platform in wanted {
            let leaf = self.leaf_for(root.clone(), platform).await?;
            if leaves.iter().all(|known| known.found.digest != leaf.found.digest) {
                leaves.push(leaf);
            }
        }
        Ok(leaves)
    }

    /// The manifests of all images for Linux, in their order. What else there is is said in `left_out`.
    async fn all_leaves(
        &self,
        root: FoundDocument,
        left_out: &mut Vec<String>,
    ) -> Result<Vec<Leaf>, Failure> {
        let (mut leaves, mut documents_bytes) = (Vec::new(), 0);
        // The next one is the last.
        let mut waiting = vec![(Leaf { found: root, entry: None }, 0)];
        while let Some((leaf, depth)) = waiting.pop() {
            let Document::Index(Index { manifests }) = &leaf.found.document else {
                leaves.push(leaf);
                continue;
            };
            if depth > INDEX_DEPTH_LIMIT {
                return Err(self.too_deep());
            }
            let mut below = Vec::new();
            for (descriptor, entry) in manifests.iter().zip(entries(&leaf.found.bytes)) {
                if let Some(what) = not_convertible(descriptor) {
                    left_out.push(what);
                    continue;
                }
                let found = self.document(descriptor.digest).await?;
                documents_bytes += found.bytes.len();
                below.push((Leaf { found, entry: Some(entry) }, depth + 1));
                self.require_few(leaves.len() + waiting.len() + below.len(), documents_bytes)?;
            }
            waiting.extend(below.into_iter().rev());
        }
        Ok(leaves)
    }

    fn require_few(&self, images: usize, documents_bytes: usize) -> Result<(), Failure> {
        if images <= IMAGES_LIMIT && documents_bytes <= DOCUMENTS_LIMIT_BYTES {
            return Ok(());
        }
        let text = format!(
            "{} has more than {IMAGES_LIMIT} images, or more than {DOCUMENTS_LIMIT_BYTES} bytes of documents: choose some by \
             their platform",
            self.name
        );
        Err(Failure::new(FailureClass::Image, text))
    }

    fn wrong(&self, error: OciError) -> Failure {
        let class = match error {
            OciError::NoPlatform { .. } => FailureClass::Usage,
            _ => FailureClass::Image,
        };
        Failure::with_source(class, format!("{} cannot be converted", self.name), error)
    }

    fn too_deep(&self) -> Failure {
        let text = format!("{}: indexes name indexes more than {INDEX_DEPTH_LIMIT} deep", self.name);
        Failure::new(FailureClass::Image, text)
    }
}

impl SourceImage {
    /// What it runs on, as far as that is said.
    pub(crate) fn platform(&self) -> Option<Platform> {
        serde_json::from_value(self.entry.get("platform")?.clone()).ok()
    }

    /// The same in words.
    pub(crate) fn platform_text(&self) -> String {
        self.platform().map_or_else(|| "an unknown platform".to_owned(), |platform| platform.to_string())
    }
}

/// What the entries of an index say, in its order.
fn entries(index: &[u8]) -> Vec<Value> {
    let index: Value = serde_json::from_slice(index).unwrap_or_default();
    index.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Why no overlaybd image is made of an entry of an index, in words.
fn not_convertible(entry: &Descriptor) -> Option<String> {
    let digest = entry.digest;
    if let Some(kind) = entry.annotations.get(REFERENCE_TYPE) {
        let kind: String = kind.chars().take(64).collect();
        return Some(format!("{kind} {digest}"));
    }
    match &entry.platform {
        Some(platform) if platform.is_unknown() => Some(format!("{digest}, which is no image")),
        Some(platform) if platform.os != LINUX => Some(format!("{digest} for {platform}")),
        _ => None,
    }
}
