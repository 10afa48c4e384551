//! The folder of a device that can be written: a layer for the writes, the configuration that puts it over an image, and the
//! reference that always means this image.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    api::types::ImageSpec,
    device::Device,
    failure::{Failure, FailureClass},
    image_config::VERITY_KEY,
    image_store::note_user,
    layers::{LayerPlace, read_config},
    mounts::file_system_work,
    service::Service,
    settings::read_regular_document,
};
use crate::{
    format::uuid::Uuid,
    offline::{self, CreateOptions, PartFile, Upper},
    registry::ImageReference,
};

/// What upstream's snapshotter calls its configurations, and the file beside them with the name of the image.
const CONFIG: &str = "config.v1.json";
const IMAGE_REF: &str = "image_ref";

/// What a new folder is to hold besides its empty layer.
#[derive(Debug)]
pub(super) struct NewFolder {
    /// The configuration, without the writable layer.
    pub(super) document: Value,
    /// The reference of the image, where it has one.
    pub(super) image_ref: Option<String>,
    /// Whether the layer is to be one sparse file.
    pub(super) sparse: bool,
    /// Size of the device in bytes.
    pub(super) size_bytes: u64,
    /// UUID of the layer that lies below.
    pub(super) parent_uuid: Option<Uuid>,
}

/// The configuration of a device whose writes go to a layer in a folder.
#[derive(Debug, Default)]
pub(super) struct Placed {
    /// Where it is.
    pub(super) config: PathBuf,
    /// The image of a new one, so that it stays open until a device is made of it.
    pub(super) image: Option<Device>,
    /// What there was not before.
    pub(super) made: Made,
}

/// Files and folders that were made for what may yet fail, in the order in which they were made. They go when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Made(Vec<PathBuf>);

impl Made {
    /// `path` was made too.
    pub(super) fn add(&mut self, path: PathBuf) {
        self.0.push(path);
    }

    /// This, and then what `other` has.
    pub(super) fn and(mut self, mut other: Self) -> Self {
        self.0.append(&mut other.0);
        self
    }

    /// All of it stays.
    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let removed = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
            // What cannot be removed is in the way of the next try, which says so.
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "what was made for a device is left behind");
            }
        }
    }
}

/// The configuration of a device over `image` whose writes go to a layer in `folder`: the one that is there, or a new one.
///
/// # Errors
/// When the folder is of another image, or holds something else, or the image cannot be opened.
pub(super) async fn configuration(
    service: &Service,
    image: &ImageSpec,
    folder: &Path,
) -> Result<Placed, Failure> {
    if let ImageSpec::Config(path) = image {
        let text = format!("{}: a configuration names its own upper, and no folder for one", path.display());
        return Err(Failure::new(FailureClass::Usage, text));
    }
    let (wanted, there) = (image.clone(), folder.to_owned());
    if let Some(config) = file_system_work(folder, move || existing(&wanted, &there)).await? {
        return Ok(Placed { config, ..Placed::default() });
    }
    let (device, pinned) = service.open(image).await?;
    let placed = service.factory().places(&pinned).await?;
    let new = NewFolder {
        document: document(&placed.places)?,
        image_ref: reference_of(&pinned),
        sparse: false,
        size_bytes: device.geometry().size_bytes,
        parent_uuid: device.links().pop().and_then(|link| link.uuid),
    };
    let (place, folder) = (folder, folder.to_owned());
    let (config, made) = file_system_work(place, move || {
        let mut made = Made::default();
        make_all_durably(&folder, &mut made).map_err(|source| cannot("make it", &folder, source))?;
        Ok((new.write(&folder, &mut made)?, made))
    })
    .await?;
    Ok(Placed { config, image: Some(device), made })
}

/// The configuration that a folder of this kind has.
pub(super) fn config_in(folder: &Path) -> PathBuf {
    folder.join(CONFIG)
}

/// What [`configuration`] will make in `folder`, and the folders above it, in that order: of what it makes, all that is not there.
pub(super) fn planned(folder: &Path) -> Vec<PathBuf> {
    let files = ["upper.data", "upper.index", IMAGE_REF, CONFIG].map(|name| folder.join(name));
    let planned = missing(&files);
    // With its configuration it is used as it is.
    if planned.last() == files.last() { planned } else { Vec::new() }
}

/// Of these files, which are to be made in one folder, and of the folders above them, those that are not there, in the order in which
/// they are made.
pub(super) fn missing(files: &[PathBuf]) -> Vec<PathBuf> {
    let is_missing =
        |path: &&Path| fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let folder = files.first().and_then(|file| file.parent());
    let folders = folder.into_iter().flat_map(Path::ancestors).take_while(is_missing);
    let mut paths: Vec<PathBuf> = folders.map(Path::to_owned).collect();
    paths.reverse();
    paths.extend(files.iter().map(PathBuf::as_path).filter(is_missing).map(Path::to_owned));
    paths
}

/// Makes a folder that is not there, its owner's alone, so that no crash takes it away again with what becomes durable in it.
///
/// # Errors
/// When it is there, or cannot be made.
pub(super) fn make_durably(folder: &Path, made: &mut Made) -> io::Result<()> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = File::open(parent)?;
    fs::DirBuilder::new().mode(0o700).create(folder)?;
    made.add(folder.to_owned());
    parent.sync_all()
}

/// As [`make_durably`], with all above it that are not there; one that is there is as good.
///
/// # Errors
/// When one cannot be made.
pub(super) fn make_all_durably(folder: &Path, made: &mut Made) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    folder.parent().map_or(Ok(()), |parent| make_all_durably(parent, made))?;
    match make_durably(folder, made) {
        // Somebody else has just made it, and may not have made it durable yet.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {
            File::open(folder.parent().unwrap_or(folder))?.sync_all()
        }
        made => made,
    }
}

/// The reference of an image of a registry.
pub(super) fn reference_of(image: &ImageSpec) -> Option<String> {
    match image {
        ImageSpec::Reference(reference) | ImageSpec::Converted { reference, .. } => Some(reference.clone()),
        ImageSpec::Config(_) | ImageSpec::Layers(_) => None,
    }
}

/// The reference of the image that the folder was made for, where it has one.
pub(super) fn image_ref(folder: &Path) -> Option<String> {
    let text = String::from_utf8(read_regular_document(&folder.join(IMAGE_REF)).ok()?).ok()?;
    Some(text.trim_end().to_owned())
}

/// The configuration of an image whose layers lie at `places`.
///
/// # Errors
/// Where a path cannot be written down.
pub(super) fn document(places: &[LayerPlace]) -> Result<Value, Failure> {
    // All layers of a reference lie in one repository.
    let url = places.iter().find_map(|place| match place {
        LayerPlace::Remote { repository, .. } => Some(repository.blobs_url()),
        LayerPlace::Local { .. } => None,
    });
    let lower = |place: &LayerPlace| {
        Ok(match place {
            LayerPlace::Local { path, .. } => json!({ "file": text(path)? }),
            LayerPlace::Remote { digest, size_bytes, verity, .. } => {
                let mut lower =
                    json!({ "digest": digest.to_string(), "size": size_bytes.unwrap_or_default() });
                if let (Some(members), Some(verity)) = (lower.as_object_mut(), verity) {
                    members.insert(VERITY_KEY.to_owned(), verity.to_string().into());
                }
                lower
            }
        })
    };
    let lowers = places.iter().map(lower).collect::<Result<Vec<_>, Failure>>()?;
    Ok(json!({ "repoBlobUrl": url.unwrap_or_default(), "lowers": lowers }))
}

impl NewFolder {
    /// Makes the files in `folder`, the configuration last; returns its path.
    ///
    /// # Errors
    /// When one of that name is there, or cannot be made.
    pub(super) fn write(self, folder: &Path, made: &mut Made) -> Result<PathBuf, Failure> {
        let [config, image_ref, data, index] =
            [CONFIG, IMAGE_REF, "upper.data", "upper.index"].map(|name| folder.join(name));
        let options = CreateOptions {
            sparse: self.sparse,
            virtual_size_bytes: self.size_bytes,
            uuid: None,
            parent_uuid: self.parent_uuid,
            overwrite: false,
            ext4: false,
        };
        let mut document = self.document;
        let odd = || conflict(folder, "the configuration of the first device is no object any more");
        let upper = json!({ "data": text(&data)?, "index": text(&index)? });
        document.as_object_mut().ok_or_else(odd)?.insert("upper".to_owned(), upper);
        note_user(layer_files(&document).iter().map(PathBuf::as_path), &config)?;
        offline::create(&Upper { data: data.clone(), index: Some(index.clone()) }, &options)?;
        made.add(data);
        made.add(index);
        if let Some(reference) = &self.image_ref {
            put(&image_ref, format!("{reference}\n").as_bytes())?;
            made.add(image_ref);
        }
        put(&config, &serde_json::to_vec(&document).unwrap_or_default())?;
        made.add(config.clone());
        Ok(config)
    }
}

/// The files that `document` names as layers.
fn layer_files(document: &Value) -> Vec<PathBuf> {
    let lowers = document.get("lowers").and_then(Value::as_array).into_iter().flatten();
    lowers.filter_map(|lower| Some(PathBuf::from(lower.get("file")?.as_str()?))).collect()
}

/// The configuration in `folder`, which must be one over `image`; `None` where there is none yet.
fn existing(image: &ImageSpec, folder: &Path) -> Result<Option<PathBuf>, Failure> {
    let path = folder.join(CONFIG);
    let config = match read_config(&path) {
        Err(failure) if failure.class() == FailureClass::NotFound => {
            return match other_file(folder) {
                Some(name) => Err(conflict(folder, format!("it has {} and no {CONFIG}", name.display()))),
                None => Ok(None),
            };
        }
        config => config?,
    };
    let is_over = match image {
        ImageSpec::Reference(wanted) | ImageSpec::Converted { reference: wanted, .. } => {
            let made_of = image_ref(folder);
            if !made_of.as_deref().is_some_and(|made_of| means(made_of, wanted)) {
                let made_of = made_of.as_deref().unwrap_or("no image of a registry");
                return Err(conflict(
                    folder,
                    format!("what it holds lies over {made_of}, and not over {wanted}"),
                ));
            }
            true
        }
        // Snapshots put further layers over them.
        ImageSpec::Layers(files) => {
            let lowers = config.lowers.iter().map(|lower| lower.file.as_ref());
            lowers.take(files.len()).eq(files.iter().map(Some))
        }
        ImageSpec::Config(_) => false,
    };
    match is_over && config.upper.is_some() {
        true => Ok(Some(path)),
        false => {
            Err(conflict(folder, "its layers are others than those given, or nothing can be written to it"))
        }
    }
}

/// The name of a file in a folder in which nothing is expected yet. That of a file system may have its own.
fn other_file(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| PathBuf::from(entry.file_name())).find(|name| name != Path::new("lost+found"))
}

/// Whether `wanted` names the image `pinned`: by its digest, or by the tag that it was found by, wherever that points now.
fn means(pinned: &str, wanted: &str) -> bool {
    let (Ok(made_of), Ok(wanted)) = (pinned.parse::<ImageReference>(), wanted.parse::<ImageReference>())
    else {
        return false;
    };
    let tagged = pinned.split_once('@').map_or(pinned, |(tagged, _)| tagged);
    let lies_at = |reference: &ImageReference| {
        (reference.registry_host().to_owned(), reference.repository().to_owned())
    };
    match wanted.digest() {
        Some(digest) => made_of.digest() == Some(digest) && lies_at(&made_of) == lies_at(&wanted),
        None => tagged == wanted.to_string(),
    }
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let part = PartFile::create_private(path, false)?;
    part.file().write_all(bytes).map_err(|source| cannot("write it", path, source))?;
    Ok(part.finish()?)
}

/// A path as the configuration can hold it.
fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| {
        let text = format!("{}: a configuration holds only paths that are UTF-8", path.display());
        Failure::new(FailureClass::Usage, text)
    })
}

fn conflict(folder: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(FailureClass::Conflict, format!("{}: {why}", folder.display()))
}

fn cannot(what: &str, path: &Path, source: io::Error) -> Failure {
    Failure::with_source(FailureClass::Internal, format!("{}: cannot {what}", path.display()), source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(folder: &Path) -> io::Result<()> {
        let mut made = Made::default();
        make_all_durably(folder, &mut made)?;
        made.keep();
        Ok(())
    }

    #[test]
    fn folders_that_several_make_at_once_are_made() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let folder = dir.path().join(format!("{round}/a/b"));
            std::thread::scope(|scope| {
                let makers = [(); 8].map(|()| scope.spawn(|| make(&folder)));
                makers.into_iter().for_each(|maker| maker.join().unwrap().unwrap());
            });
            assert!(make_durably(&folder, &mut Made::default()).is_err(), "it is there");
        }
    }

    #[test]
    fn what_was_made_goes_again_and_what_was_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut made = Made::default();
        make_all_durably(&dir.path().join("a/b"), &mut made).unwrap();
        drop(made);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut made = Made::default();
        make_all_durably(dir.path(), &mut made).unwrap();
        drop(made);
        assert!(dir.path().is_dir());
    }
}
