//! From what the user named to the layers that make the image, and where the bytes of each lie.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    api::types::ImageSpec,
    failure::{Failure, FailureClass},
    image_config::{ImageConfig, Lower, MAX_LAYERS},
    settings::read_regular_document,
};
use crate::{
    format::{oci::Digest, verity::Verity},
    offline::{Stack, Upper},
    registry::Repository,
    source::{FileSource, open_regular},
};

/// Where the bytes of one layer lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerPlace {
    /// A file of this machine.
    Local {
        /// Its path.
        path: PathBuf,
        /// What it was when it was found.
        seen: FileIdentity,
    },
    /// A blob of a registry.
    Remote {
        /// Where it lies.
        repository: Repository,
        /// Digest of the blob.
        digest: Digest,
        /// Its size in bytes, where it is known.
        size_bytes: Option<u64>,
        /// What proves parts of it, where it has a Merkle tree.
        verity: Option<Verity>,
    },
}

/// What tells one layer from another. Layers with the same identity have the same bytes, had in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LayerIdentity {
    /// A file, as it was when it was found.
    File(FileIdentity),
    /// A blob, and the repository that is asked for it: another one may be reachable where this is not.
    Blob {
        /// Where it lies.
        repository: Repository,
        /// Digest of the blob.
        digest: Digest,
        /// What proves parts of it.
        verity: Option<Verity>,
    },
}

/// One state of one file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Device and inode.
    inode: (u64, u64),
    /// Size in bytes and time of the last change of content or attributes in nanoseconds.
    version: (u64, i128),
}

impl FileIdentity {
    /// That of a file of which this was `found`.
    pub(super) fn of(found: &fs::Metadata) -> Self {
        let changed = i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec());
        Self { inode: (found.dev(), found.ino()), version: (found.size(), changed) }
    }
}

impl LayerPlace {
    /// The file at `path`, if it is there.
    fn local(path: &Path) -> io::Result<Self> {
        let seen = FileIdentity::of(&fs::metadata(path)?);
        Ok(Self::Local { path: path.to_owned(), seen })
    }

    /// What tells it from others.
    #[must_use]
    pub fn identity(&self) -> LayerIdentity {
        match self {
            Self::Remote { repository, digest, verity, .. } => {
                LayerIdentity::Blob { repository: repository.clone(), digest: *digest, verity: *verity }
            }
            Self::Local { seen, .. } => LayerIdentity::File(seen.clone()),
        }
    }
}

/// A file that cannot be opened or looked at.
#[must_use]
pub fn unreadable(path: &Path, source: io::Error) -> Failure {
    let class = match source.kind() {
        io::ErrorKind::NotFound => FailureClass::NotFound,
        _ => FailureClass::Image,
    };
    Failure::with_source(class, format!("failed to open local file {}", path.display()), source)
}

/// Opens the layer file at `path`. As long as this lives no device writes to it, as one of an older configuration would to a layer that
/// was sealed and keeps the header of a writable one, and nobody removes it from a store of images. May wait for the disk.
///
/// # Errors
/// When it cannot be opened, and [`FailureClass::Conflict`] where a device writes to it.
pub(super) fn open_file(path: &Path) -> Result<FileSource, Failure> {
    let failed = |source| unreadable(path, source);
    let file = fs::File::from(open_regular(path).map_err(failed)?);
    let source = FileSource::new(file.into(), path.display().to_string()).map_err(failed)?;
    source.keep_unwritten().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            let text =
                format!("{}: another device or process has this layer open to write to it", path.display());
            Failure::new(FailureClass::Conflict, text)
        }
        _ => failed(error),
    })?;
    Ok(source)
}

/// Reads the image configuration at `path`.
///
/// # Errors
/// When it is missing or refused.
pub fn read_config(path: &Path) -> Result<ImageConfig, Failure> {
    let config = parse_config(path, &read_regular_document(path)?)?;
    for note in &config.notes {
        tracing::warn!(file = %path.display(), "{note}");
    }
    Ok(config)
}

/// Understands the text of the configuration at `path`. What its paths are relative to is the process's, as upstream has it, and
/// messages are to say it: they are absolute, so that two of them are the same where they mean the same.
pub(super) fn parse_config(path: &Path, text: &[u8]) -> Result<ImageConfig, Failure> {
    let mut config = ImageConfig::parse(&path.display().to_string(), text).map_err(|error| {
        Failure::with_source(FailureClass::Image, "cannot use the image configuration", error)
    })?;
    config.paths_mut().for_each(make_absolute);
    Ok(config)
}

/// One that cannot be made so is left as it is, and fails where it is opened.
pub(super) fn make_absolute(path: &mut PathBuf) {
    if let Ok(absolute) = std::path::absolute(&*path) {
        *path = absolute;
    }
}

/// The layers of the image configuration at `path` as files of this machine, which the offline tools read.
///
/// # Errors
/// When it is missing or refused, or a layer is not on this machine.
pub fn read_stack(path: &Path) -> Result<Stack, Failure> {
    let config = read_config(path)?;
    let remote = |_: &str| {
        let text = "it is not on this machine, and this command reads no registry";
        Err(Failure::new(FailureClass::NotFound, text))
    };
    let lowers = of_config(&config, remote)?.into_iter().filter_map(|place| match place {
        LayerPlace::Local { path, .. } => Some(path),
        LayerPlace::Remote { .. } => None,
    });
    let upper = config.upper.map(|files| Upper { data: files.data, index: Some(files.index) });
    Ok(Stack { lowers: lowers.collect(), upper })
}

/// Where the layers of `config` lie: a file that exists goes before the registry, as upstream has it. `repository`
/// understands `repoBlobUrl`.
///
/// # Errors
/// The first layer that is nowhere.
pub fn of_config(
    config: &ImageConfig,
    repository: impl Fn(&str) -> Result<Repository, Failure>,
) -> Result<Vec<LayerPlace>, Failure> {
    let place = |(index, lower)| {
        place(config, lower, &repository).map_err(|failure| {
            let text = format!("{}: /lowers/{index}", config.file);
            Failure::with_source(failure.class(), text, failure)
        })
    };
    config.lowers.iter().enumerate().map(place).collect()
}

fn place(
    config: &ImageConfig,
    lower: &Lower,
    repository: &impl Fn(&str) -> Result<Repository, Failure>,
) -> Result<LayerPlace, Failure> {
    for candidate in lower.local_candidates() {
        // One that exists is never passed over, also where it cannot be read.
        match LayerPlace::local(&candidate) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found.map_err(|source| unreadable(&candidate, source)),
        }
    }
    let Some(digest) = lower.digest else {
        let names: Vec<String> = lower.local_candidates().map(|path| path.display().to_string()).collect();
        let text = format!("none of {} exists, and there is no digest", names.join(", "));
        return Err(Failure::new(FailureClass::NotFound, text));
    };
    let Some(url) = &config.repo_blob_url else {
        return Err(Failure::new(FailureClass::Image, "empty repoBlobUrl"));
    };
    Ok(LayerPlace::Remote {
        repository: repository(url)?,
        digest,
        size_bytes: lower.size_bytes.filter(|size| *size != 0),
        verity: lower.verity,
    })
}

/// Makes sure that each of the layers of `image` that comes from a registry has a Merkle tree. Files of this machine are their
/// owner's affair.
///
/// # Errors
/// The first that has none.
pub(super) fn check_proven(image: &ImageSpec, places: &[LayerPlace]) -> Result<(), Failure> {
    for (number, place) in places.iter().enumerate() {
        if let LayerPlace::Remote { digest, verity: None, .. } = place {
            let text = format!(
                "{image}: layer {number}, {digest}, has no Merkle tree, which image.require_merkle asks for: \
                 add the image that `ublk-ctl image add-verity SOURCE TARGET` makes of it"
            );
            return Err(Failure::new(FailureClass::Image, text));
        }
    }
    Ok(())
}

/// Looks at each of a list of layer files.
///
/// # Errors
/// When there are none, or too many, or one is not there or cannot be looked at.
pub fn of_files(paths: &[PathBuf]) -> Result<Vec<LayerPlace>, Failure> {
    if paths.is_empty() || paths.len() > MAX_LAYERS {
        let text = format!("an image has 1 to {MAX_LAYERS} layers, not {}", paths.len());
        return Err(Failure::new(FailureClass::Usage, text));
    }
    let find = |path: &PathBuf| LayerPlace::local(path).map_err(|source| unreadable(path, source));
    paths.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: String) -> ImageConfig {
        ImageConfig::parse("c.json", text.as_bytes()).unwrap()
    }

    fn repository(url: &str) -> Result<Repository, Failure> {
        Ok(Repository::from_blob_url(url).unwrap())
    }

    #[test]
    fn the_first_file_that_exists_goes_before_the_registry() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let digest = format!("sha256:{}", "a".repeat(64));
        let text = format!(
            r#"{{"repoBlobUrl":"https://r/v2/a/blobs","lowers":[{{"file":"{at}/no","dir":"{at}","digest":"{digest}","size":9}}]}}"#
        );
        let config = config(text);
        let remote = LayerPlace::Remote {
            repository: repository("https://r/v2/a/blobs").unwrap(),
            digest: digest.parse().unwrap(),
            size_bytes: Some(9),
            verity: None,
        };
        assert_eq!(of_config(&config, repository).unwrap(), [remote]);
        for name in ["overlaybd.sealed", ".commit", "overlaybd.commit", "no"] {
            fs::write(dir.path().join(name), b"x").unwrap();
            let found = of_config(&config, repository).unwrap();
            assert_eq!(found, of_files(&[dir.path().join(name)]).unwrap(), "{name}");
        }
    }

    #[test]
    fn a_layer_that_is_nowhere_is_named() {
        let failure =
            of_config(&config(r#"{"lowers":[{"file":"/nowhere/x"}]}"#.to_owned()), repository).unwrap_err();
        assert_eq!(failure.class(), FailureClass::NotFound);
        assert!(failure.full_text().contains("c.json: /lowers/0: none of /nowhere/x exists"), "{failure:?}");
        let digest = format!("sha256:{}", "a".repeat(64));
        let text = format!(r#"{{"lowers":[{{"digest":"{digest}"}}]}}"#);
        assert!(of_config(&config(text), repository).unwrap_err().full_text().contains("empty repoBlobUrl"));
    }

    #[test]
    fn the_same_blob_of_a_mirror_is_another_layer() {
        let of = |url: &str, size_bytes| LayerPlace::Remote {
            repository: repository(url).unwrap(),
            digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            size_bytes,
            verity: None,
        };
        let dead = of("https://dead/v2/a/blobs", None).identity();
        assert_ne!(dead, of("https://alive/v2/a/blobs", None).identity());
        assert_eq!(dead, of("https://dead/v2/a/blobs", Some(9)).identity());
    }

    #[test]
    fn only_what_a_registry_sends_must_be_proven() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"one").unwrap();
        let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let of = |verity| LayerPlace::Remote {
            repository: repository("https://r/v2/a/blobs").unwrap(),
            digest,
            size_bytes: None,
            verity,
        };
        let proven = of(Verity::new(digest, 4096).ok());
        let (local, image) = (LayerPlace::local(&path).unwrap(), ImageSpec::Reference("r/a:v1".to_owned()));
        assert!(check_proven(&image, &[local.clone(), proven.clone()]).is_ok());
        let failure = check_proven(&image, &[proven.clone(), of(None)]).unwrap_err();
        let text = failure.full_text();
        assert!(failure.class() == FailureClass::Image && text.contains("r/a:v1: layer 1"), "{text}");
        assert_ne!(proven.identity(), of(None).identity(), "the one is not read as the other");
    }

    #[test]
    fn a_file_that_is_replaced_is_another_layer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"one").unwrap();
        let identity = || LayerPlace::local(&path).unwrap().identity();
        let before = identity();
        assert_eq!(before, identity());
        fs::write(dir.path().join("b"), b"two").unwrap();
        fs::rename(dir.path().join("b"), &path).unwrap();
        assert_ne!(before, identity());
    }
}
