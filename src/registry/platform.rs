//! The platform that an image is wanted for, and how to find it in an index.

use std::{env::consts, fmt};

/// Operating system, architecture and variant, in the words of the OCI specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Such as `linux`.
    pub os: String,
    /// Such as `amd64`.
    pub architecture: String,
    /// Such as `v7`; `None` takes any.
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this machine's architecture.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    pub(super) fn accepts(&self, offered: &Self) -> bool {
        let same_variant = match (&self.variant, &offered.variant) {
            (None, _) => true,
            (Some(wanted), Some(offered)) => wanted == offered,
            // 64-bit ARM without a variant is v8, and every other architecture has no variant to speak of.
            (Some(wanted), None) => wanted == "v8" && self.architecture == "arm64",
        };
        self.os == offered.os && self.architecture == offered.architecture && same_variant
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        let (os, architecture) = (os.to_owned(), architecture.to_owned());
        Platform { os, architecture, variant: variant.map(str::to_owned) }
    }

    #[test]
    fn a_variant_matters_only_where_it_is_asked_for() {
        let any = platform("linux", "arm64", None);
        assert!(any.accepts(&platform("linux", "arm64", Some("v8"))));
        assert!(!any.accepts(&platform("linux", "amd64", None)));
        assert!(!any.accepts(&platform("unknown", "arm64", None)));
        assert!(platform("linux", "arm64", Some("v8")).accepts(&any));
        assert!(!platform("linux", "arm", Some("v7")).accepts(&platform("linux", "arm", Some("v6"))));
        assert!(!platform("linux", "arm", Some("v7")).accepts(&platform("linux", "arm", None)));
    }
}
