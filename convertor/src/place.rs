//! Where images lie, as a command line says it.

use std::{fmt, path::PathBuf, str::FromStr};

use stratabd::{
    registry::ImageReference,
    server::failure::{Failure, FailureClass},
};

/// What `skopeo` puts before the name of a layout's folder.
const LAYOUT: &str = "oci:";
/// What `skopeo` puts before a reference.
const REGISTRY: &str = "docker://";
/// Prefixes of `skopeo` that are not known here.
const OTHERS: [&str; 6] =
    ["oci-archive:", "docker-archive:", "docker-daemon:", "containers-storage:", "dir:", "containerd:"];

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
}

impl FromStr for Place {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        if let Some(other) = OTHERS.iter().find(|prefix| text.starts_with(**prefix)) {
            let text = format!("{text:?}: {other} is not known: give a reference, or oci:FOLDER[:NAME]");
            return Err(Failure::new(FailureClass::Usage, text));
        }
        if let Some(rest) = text.strip_prefix(LAYOUT) {
            // As skopeo: what follows the first colon after the folder is the name.
            let (folder, name) = match rest.split_once(':') {
                Some((folder, name)) => (folder, Some(name.to_owned()).filter(|name| !name.is_empty())),
                None => (rest, None),
            };
            if folder.is_empty() {
                return Err(Failure::new(FailureClass::Usage, format!("{text:?}: it names no folder")));
            }
            return Ok(Self::Layout { folder: PathBuf::from(folder), name });
        }
        let reference = text.strip_prefix(REGISTRY).unwrap_or(text);
        reference.parse().map(Self::Registry).map_err(|source| {
            Failure::with_source(FailureClass::Usage, format!("{text:?} is not an image reference"), source)
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => write!(f, "{reference}"),
            Self::Layout { folder, name } => {
                write!(f, "{LAYOUT}{}", folder.display())?;
                name.as_ref().map_or(Ok(()), |name| write!(f, ":{name}"))
            }
        }
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
        assert_eq!(place("oci:/srv/images:redis").unwrap().to_string(), "oci:/srv/images:redis");
        for wrong in ["oci:", "oci::name", "docker-archive:redis.tar", "dir:/srv", "case/UPPER"] {
            assert_eq!(place(wrong).unwrap_err().class(), FailureClass::Usage, "{wrong}");
        }
    }
}
