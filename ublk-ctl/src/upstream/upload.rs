//! `--upload` of upstream's tools: what was made becomes a blob of a registry too.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use stratabd::server::{
    failure::{Failure, FailureClass},
    push::{PushProgress, upload},
    settings,
};

use super::{existing_file, integer};
use crate::{block_on, push::follow};

#[derive(Debug, Args)]
pub(super) struct UploadArgs {
    /// Put the output into a registry as well: http(s)://HOST/v2/REPOSITORY/blobs/uploads/
    #[arg(long)]
    upload: Option<String>,
    /// Without effect: the blob is sent in one request, straight from the file
    #[arg(long = "upload_bs", value_parser = integer)]
    upload_bs: Option<i64>,
    /// Credentials, as docker's config.json [default: docker's own]
    #[arg(long = "cred_file_path", value_parser = existing_file())]
    cred_file_path: Option<PathBuf>,
    /// Key of a client certificate, PEM
    #[arg(long = "tls_key_path", value_parser = existing_file())]
    tls_key_path: Option<PathBuf>,
    /// Client certificate, PEM
    #[arg(long = "tls_cert_path", value_parser = existing_file())]
    tls_cert_path: Option<PathBuf>,
}

impl UploadArgs {
    /// Whether an upload is wanted.
    pub(super) fn is_wanted(&self) -> bool {
        self.upload.is_some()
    }

    /// Refuses an upload that upstream would silently leave out, because the output is not compressed.
    pub(super) fn check(&self, is_compressed: bool) -> Result<(), Failure> {
        match self.is_wanted() && !is_compressed {
            true => Err(Failure::new(FailureClass::Usage, "--upload is for a compressed layer")),
            false => Ok(()),
        }
    }

    /// Sends the file at `path`, if that is wanted, and prints its digest on standard error, as upstream. Unlike upstream it
    /// checks the registry's certificate; an authority of one's own is `registry.ca_file` of the settings.
    pub(super) fn send(&self, path: &Path) -> Result<(), Failure> {
        let Some(url) = &self.upload else { return Ok(()) };
        let mut config = settings::load(None, None, &[])?;
        let registry = &mut config.registry;
        for (given, setting) in [
            (&self.cred_file_path, &mut registry.authfile),
            (&self.tls_key_path, &mut registry.client_key),
            (&self.tls_cert_path, &mut registry.client_cert),
        ] {
            given.iter().for_each(|path| setting.clone_from(path));
        }
        let digest = block_on(async {
            let progress = Arc::new(PushProgress::default());
            follow(Arc::clone(&progress), upload(&config, url, path, &progress)).await
        });
        let digest = digest.map_err(|failure| {
            Failure::with_source(failure.class(), "failed to commit or upload", failure)
        })?;
        // Where nobody can read it, the blob is there all the same.
        let _ = writeln!(io::stderr(), "{digest}");
        Ok(())
    }
}
