//! Certificates for single hosts in folders of their own, as docker and containers-certs.d(5) have them: `HOST:PORT/*.crt` are
//! authorities, and `*.cert` beside its `*.key` is what this client shows.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use url::Url;

use crate::registry::{ClientIdentity, Reason, RegistryError, host_name};

/// What the folder of a host has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HostCertificates {
    pub(super) ca_files: Vec<PathBuf>,
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

/// What the first of `dirs` that has a folder for the host of `url` has in it.
///
/// # Errors
/// Where a folder cannot be read, or has a certificate without its key.
pub(super) fn find(dirs: &[PathBuf], url: &Url) -> Result<Option<HostCertificates>, RegistryError> {
    let names = folder_names(url);
    for dir in dirs {
        for name in &names {
            let folder = dir.join(name);
            match fs::read_dir(&folder) {
                Ok(entries) => return read(&folder, entries).map(Some),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(refuse(&folder, "cannot be read", Some(error))),
            }
        }
    }
    Ok(None)
}

/// What its folder may be called: as references name the host, with its port or without where that is the scheme's own.
fn folder_names(url: &Url) -> Vec<String> {
    let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
    let mut names = vec![format!("{host}:{port}")];
    if url.port().is_none() {
        names.extend(host_name::names_of(host).map(str::to_owned));
    }
    names
}

fn read(folder: &Path, entries: fs::ReadDir) -> Result<HostCertificates, RegistryError> {
    let files: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut files = files.map_err(|error| refuse(folder, "cannot be read", Some(error)))?;
    files.sort();
    let mut found = HostCertificates::default();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => found.ca_files.push(file),
            Some("cert") => {
                let key = file.with_extension("key");
                if !key.exists() {
                    return Err(refuse(
                        &file,
                        "has no key beside it, which has the same name and ends in .key",
                        None,
                    ));
                }
                // Of several, the server cannot be asked which one it wants.
                found.identity = found.identity.or(Some((file, key)));
            }
            _ => {}
        }
    }
    Ok(found)
}

impl HostCertificates {
    /// Certificate and key of this client.
    pub(super) fn identity(&self) -> Option<ClientIdentity> {
        let (cert_file, key_file) = self.identity.clone()?;
        Some(ClientIdentity { cert_file, key_file })
    }
}

fn refuse(path: &Path, what: &str, source: Option<io::Error>) -> RegistryError {
    let what = format!("{} {what}", path.display());
    let source = source.map(|source| source.into());
    RegistryError::new("configuration", Reason::Configuration { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(dirs: &[PathBuf], url: &str) -> Result<Option<HostCertificates>, RegistryError> {
        find(dirs, &Url::parse(url).unwrap())
    }

    #[test]
    fn the_first_folder_of_a_host_counts_by_each_name_that_references_have_for_it() {
        let home = tempfile::tempdir().unwrap();
        let dirs = ["containers", "docker"].map(|name| home.path().join(name));
        for folder in
            ["containers/r.example:5000", "docker/r.example:5000", "docker/r.example", "docker/docker.io"]
        {
            let folder = home.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("ca.crt"), "").unwrap();
        }
        for (url, expected) in [
            ("https://r.example:5000/v2/", Some("containers/r.example:5000")),
            ("https://r.example/v2/", Some("docker/r.example")),
            ("https://registry-1.docker.io/v2/", Some("docker/docker.io")),
            ("https://r.example:443/v2/", Some("docker/r.example")),
            ("https://r.example:5001/v2/", None),
        ] {
            let expected = expected.map(|folder| vec![home.path().join(folder).join("ca.crt")]);
            assert_eq!(found(&dirs, url).unwrap().map(|found| found.ca_files), expected, "{url}");
        }
    }

    #[test]
    fn a_certificate_is_shown_with_the_key_beside_it_and_refused_without() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("r.example");
        fs::create_dir(&folder).unwrap();
        let file = |name: &str| folder.join(name);
        fs::write(file("b.cert"), "").unwrap();
        let dirs = [home.path().to_owned()];
        let error = found(&dirs, "https://r.example/").unwrap_err();
        assert!(error.to_string().contains("b.cert has no key"), "{error}");
        for name in ["b.key", "a.cert", "a.key", "readme.txt"] {
            fs::write(file(name), "").unwrap();
        }
        let certificates = found(&dirs, "https://r.example/").unwrap().unwrap();
        assert_eq!(certificates.identity, Some((file("a.cert"), file("a.key"))));
        assert_eq!(certificates.ca_files, [] as [PathBuf; 0]);
    }
}
