//! Upstream's `--upload`: one file as a blob of a repository, which no manifest names yet.

use std::path::Path;

use tokio::runtime::Handle;

use super::{
    blobs::{Parcel, PushProgress, send},
    hash, seen,
};
use crate::{
    format::oci::Digest,
    registry::{BlobOrigin, Client, FileContent, HostName, NewBlob, Repository},
    server::{
        config::Config,
        failure::{Failure, FailureClass},
        network::{failure_of_registry, registry_config},
    },
};

/// Makes sure that the repository whose uploads begin at `url`, `scheme://host/v2/<repository>/blobs/uploads/`, has the file at
/// `path` as a blob; returns the digest, which the registry has checked. A URL of plain HTTP is the permission to use it.
///
/// To be called on the tokio runtime that is to do it.
///
/// # Errors
/// When the URL is of another form, the file cannot be read, or the registry refuses.
pub async fn upload(
    config: &Config,
    url: &str,
    path: &Path,
    progress: &PushProgress,
) -> Result<Digest, Failure> {
    let repository = Repository::from_upload_url(url).map_err(|source| {
        let text = format!("{url:?} is not where a registry takes uploads");
        Failure::with_source(FailureClass::Usage, text, source)
    })?;
    let mut config = config.clone();
    if repository.is_plain_http() {
        config.registry.hosts.entry(HostName::of(&repository)).or_default().plain_http = true;
    }
    let client = Client::new(&registry_config(&config), Handle::current())
        .map_err(|error| failure_of_registry("cannot use the configuration of registries", error))?;
    let (file, layer) = hash(path.to_owned(), seen(path)?).await?;
    let sent_bytes = progress.part(layer.size_bytes);
    let content = FileContent::new(file, layer.size_bytes, sent_bytes.clone());
    let blob =
        NewBlob { digest: layer.digest, size_bytes: layer.size_bytes, origin: BlobOrigin::File(content) };
    send(&client, &repository, vec![Parcel { blob, sent_bytes }]).await?;
    Ok(layer.digest)
}
