//! Where images lie, as a command line says it.

use std::{fmt, path::PathBuf, str::FromStr};

use stratabd::{
    registry::ImageReference,
    server::failure::{Failure, FailureClass},
};

/// What `skopeo` puts before the name of a layout's folder.
const LAYOUT: &str = "oci:";
/// What `skopeo` puts before the name of an archive that is a layout.
const LAYOUT_ARCHIVE: &str = "oci-archive:";
/// What `skopeo` puts before the name of what `docker save` has written.
const DOCKER_ARCHIVE: &str = "docker-archive:";
/// What `skopeo` puts before a reference.
const REGISTRY: &str = "docker://";
/// Prefixes of `skopeo` that are not known here.
const OTHERS: [&str; 4] = ["docker-daemon:", "containers-storage:", "dir:", "containerd:"];

/// A place of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a registry.
    Registry(ImageReference),
    /// In the folder of an OCI layout, under a name where it has several.
    Layout {
        /// The folder.
        folder: PathBuf,
        /// Which of its images.
        name: Option<String>,
    },
    /// In a tar archive that is an OCI layout, under a name where it has several.
    LayoutArchive {
        /// The archive.
        file: PathBuf,
        /// Which of its images.
        name: Option<String>,
    },
    /// In a tar archive as `docker save` writes it, known by a reference where it has several.
    DockerArchive {
        /// The archive.
        file: PathBuf,
        /// Which of its images.
        reference: Option<ImageReference>,
    },
}

impl FromStr for Place {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        if let Some(other) = OTHERS.iter().find(|prefix| text.starts_with(**prefix)) {
            let text = format!(
                "{text:?}: {other} is not known: give a reference, or {LAYOUT}FOLDER[:NAME], {LAYOUT_ARCHIVE}FILE[:NAME] or \
                 {DOCKER_ARCHIVE}FILE[:NAME:TAG]"
            );
            return Err(Failure::new(FailureClass::Usage, text));
        }
        let reference = |reference: &str| {
            reference.parse().map_err(|source| {
                let text = format!("{text:?} is not an image reference");
                Failure::with_source(FailureClass::Usage, text, source)
            })
        };
        if let Some(rest) = text.strip_prefix(LAYOUT) {
            let (folder, name) = path_and_name(text, rest)?;
            return Ok(Self::Layout { folder, name: name.map(str::to_owned) });
        }
        if let Some(rest) = text.strip_prefix(LAYOUT_ARCHIVE) {
            let (file, name) = path_and_name(text, rest)?;
            return Ok(Self::LayoutArchive { file, name: name.map(str::to_owned) });
        }
        if let Some(rest) = text.strip_prefix(DOCKER_ARCHIVE) {
            let (file, name) = path_and_name(text, rest)?;
            return Ok(Self::DockerArchive { file, reference: name.map(reference).transpose()? });
        }
        reference(text.strip_prefix(REGISTRY).unwrap_or(text)).map(Self::Registry)
    }
}

/// As skopeo: what follows the first colon after the path is the name.
fn path_and_name<'t>(text: &str, rest: &'t str) -> Result<(PathBuf, Option<&'t str>), Failure> {
    let (path, name) = match rest.split_once(':') {
        Some((path, name)) => (path, Some(name).filter(|name| !name.is_empty())),
        None => (rest, None),
    };
    match path.is_empty() {
        true => Err(Failure::new(FailureClass::Usage, format!("{text:?}: it names no folder or file"))),
        false => Ok((PathBuf::from(path), name)),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, path, name) = match self {
            Self::Registry(reference) => return write!(f, "{reference}"),
            Self::Layout { folder, name } => (LAYOUT, folder, name.clone()),
            Self::LayoutArchive { file, name } => (LAYOUT_ARCHIVE, file, name.clone()),
            Self::DockerArchive { file, reference } => {
                (DOCKER_ARCHIVE, file, reference.as_ref().map(ToString::to_string))
            }
        };
        write!(f, "{prefix}{}", path.display())?;
        name.map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_as_skopeo_has_them() {
        let place = |text: &str| text.parse::<Place>();
        let layout = |folder: &str, name: Option<&str>| Place::Layout {
            folder: folder.into(),
            name: name.map(str::to_owned),
        };
        assert_eq!(place("oci:/srv/images:redis").unwrap(), layout("/srv/images", Some("redis")));
        assert_eq!(place("oci:images").unwrap(), layout("images", None));
        assert_eq!(place("oci:images:").unwrap(), layout("images", None));
        assert!(matches!(place("docker://localhost:5000/app:1").unwrap(), Place::Registry(_)));
        assert_eq!(place("localhost:5000/app:1").unwrap().to_string(), "localhost:5000/app:1");
        let archive = place("oci-archive:a.tar:redis:7").unwrap();
        assert_eq!(archive, Place::LayoutArchive { file: "a.tar".into(), name: Some("redis:7".into()) });
        let saved = place("docker-archive:a.tar:redis:7").unwrap();
        let reference = Some("docker.io/library/redis:7".parse().unwrap());
        assert_eq!(saved, Place::DockerArchive { file: "a.tar".into(), reference });
        for text in ["oci:/srv/images:redis", "oci-archive:a.tar:redis:7", "docker-archive:a.tar"] {
            assert_eq!(place(text).unwrap().to_string(), text);
        }
        for wrong in [
            "oci:",
            "oci::name",
            "oci-archive::x",
            "docker-archive:a.tar:case/UPPER",
            "dir:/srv",
            "case/UPPER",
        ] {
            assert_eq!(place(wrong).unwrap_err().class(), FailureClass::Usage, "{wrong}");
        }
    }
}
