//! What devices use of the store.
//!
//! A process that has a layer open has a shared lock of its file. What waits for its next server has a record in a state directory,
//! and what may become a device again has a configuration: the store has a file for each such directory and configuration, with its
//! path, from before a device is made of its layers.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{ImageStore, document};
use crate::{
    format::oci::Digest,
    offline::{OfflineError, PartFile},
    server::{
        api::types::{AddDevice, ImageSpec},
        failure::{Failure, FailureClass},
        layers::read_config,
        state::{StateDir, Stored},
        upper_folder::config_in,
    },
};

/// Notes, durably, that `user`, a state directory or a configuration, may name those of `layers` that a store has.
///
/// # Errors
/// Where that cannot be: then nothing would keep them.
pub(in crate::server) fn note_user<'a>(
    layers: impl IntoIterator<Item = &'a Path>,
    user: &Path,
) -> Result<(), Failure> {
    let mut stores: Vec<ImageStore> = layers.into_iter().filter_map(ImageStore::of_layer).collect();
    stores.dedup();
    for store in stores {
        // What is about to be noted is not removed meanwhile.
        let _hold = store.hold().map_err(|error| store.failed(error))?;
        let name = Digest::from_hash(Sha256::digest(user.as_os_str().as_bytes()).into()).hex();
        let path = store.users().join(name);
        if path.exists() {
            continue;
        }
        let part = PartFile::create_private(&path, true)?;
        part.file().write_all(user.as_os_str().as_bytes()).map_err(|error| store.failed(error))?;
        match part.finish() {
            // Somebody else has just noted the same.
            Err(OfflineError::Exists(_)) => {}
            noted => noted?,
        }
    }
    Ok(())
}

/// Files by device and inode, since they may be named in several ways.
#[derive(Debug, Default)]
pub(super) struct Named(BTreeSet<(u64, u64)>);

impl Named {
    /// Whether the file at `path` is one of them.
    pub(super) fn has(&self, path: &Path) -> bool {
        number_of(path).is_some_and(|number| self.0.contains(&number))
    }

    fn add(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        self.0.extend(paths.into_iter().filter_map(|path| number_of(&path)));
    }
}

fn number_of(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

impl ImageStore {
    /// The layer files that somebody named who has no process. To be asked by who alone has the store.
    ///
    /// # Errors
    /// Where one of them cannot be understood: then nobody knows what is used.
    pub(super) fn named(&self) -> Result<Named, Failure> {
        let mut named = Named::default();
        let unreadable = |error: io::Error| self.failed(error);
        for entry in fs::read_dir(self.users()).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?.path();
            if entry.file_name().is_some_and(|name| name.as_bytes().starts_with(b".")) {
                // What somebody was about to note before anything was made of it.
                fs::remove_file(&entry).map_err(unreadable)?;
                continue;
            }
            let user = PathBuf::from(OsStr::from_bytes(&document(&entry).map_err(unreadable)?));
            match fs::metadata(&user) {
                Ok(found) if found.is_dir() => add_of_state(&user, &mut named)?,
                Ok(_) => add_of_config(&user, &mut named)?,
                // A folder that is about to get its configuration is there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if user.parent().is_none_or(|folder| !folder.exists()) {
                        fs::remove_file(&entry).map_err(unreadable)?;
                    }
                }
                Err(error) => return Err(unreadable(error)),
            }
        }
        Ok(named)
    }
}

/// Whether a process has the layer file at `path` open.
pub(super) fn is_open(path: &Path) -> io::Result<bool> {
    match File::open(path)?.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn add_of_state(dir: &Path, named: &mut Named) -> Result<(), Failure> {
    let unusable = |source| {
        let text = format!("{}: cannot read what devices there are", dir.display());
        Failure::with_source(FailureClass::Internal, text, source)
    };
    for Stored { id, record } in StateDir::all_of(dir).map_err(unusable)? {
        let record = record.map_err(|source| {
            let text = format!("{}: the record of device {id} does not say what it uses", dir.display());
            Failure::with_source(FailureClass::Internal, text, source)
        })?;
        let AddDevice { image, upper, .. } = record.request;
        match image {
            ImageSpec::Reference(_) => {}
            ImageSpec::Layers(layers) | ImageSpec::Converted { layers, .. } => named.add(layers),
            ImageSpec::Config(config) => add_of_config(&config, named)?,
        }
        upper.map_or(Ok(()), |folder| add_of_config(&config_in(&folder), named))?;
    }
    Ok(())
}

/// One that has gone names nothing.
fn add_of_config(path: &Path, named: &mut Named) -> Result<(), Failure> {
    match read_config(path) {
        Ok(config) => {
            named.add(config.lowers.into_iter().filter_map(|lower| lower.file));
            Ok(())
        }
        Err(failure) if failure.class() == FailureClass::NotFound => Ok(()),
        Err(failure) => Err(failure),
    }
}
