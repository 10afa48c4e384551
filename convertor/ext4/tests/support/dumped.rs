//! What debugfs reads in an image, held against a model: names, content and targets. It needs no rights.

use std::{ffi::OsStr, fs, io::Read, os::unix::ffi::OsStrExt, path::Path};

use super::{
    Image,
    model::{Child, Kind, Model},
    run,
};

/// Fails where the two differ.
pub(crate) fn compare(image: &Image, model: &Model) {
    let folder = tempfile::tempdir().unwrap();
    let command = format!("rdump / {}", folder.path().display());
    run("debugfs", &["-R", &command, image.path.to_str().unwrap()]);
    compare_directory(folder.path(), model, 0);
}

fn compare_directory(path: &Path, model: &Model, id: usize) {
    let is_dumped = |child: &Child| !matches!(model.things[child.id].kind, Kind::Node(_));
    let children: Vec<_> = model.children(id).iter().filter(|(_, child)| is_dumped(child)).collect();
    let found =
        fs::read_dir(path).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() != "lost+found");
    assert_eq!(found.count(), children.len(), "names in {}", path.display());
    for (name, child) in children {
        let inside = path.join(OsStr::from_bytes(name));
        match &model.things[child.id].kind {
            Kind::Directory(_) => compare_directory(&inside, model, child.id),
            Kind::File(content) => {
                let mut bytes = Vec::new();
                fs::File::open(&inside).unwrap().read_to_end(&mut bytes).unwrap();
                assert!(bytes == *content, "content of {}", inside.display());
            }
            Kind::Symlink(target) => {
                assert_eq!(fs::read_link(&inside).unwrap().as_os_str().as_bytes(), target);
            }
            Kind::Node(_) => {}
        }
    }
}
