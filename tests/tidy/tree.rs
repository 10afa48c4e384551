//! The sources that are checked: read from disk, or made up by a test.

use std::{fs, io, path::Path};

/// Folders whose Rust files are checked, from the root of the repository.
const FOLDERS: [&str; 12] = [
    "src",
    "tests",
    "benches",
    "examples",
    "fuzz",
    "convertor/ext4/examples",
    "convertor/ext4/src",
    "convertor/ext4/tests",
    "convertor/src",
    "convertor/tests",
    "ublk-ctl/src",
    "ublk-ctl/tests",
];

/// One Rust file.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// From the root of the repository, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Everything that [`crate::check`] looks at.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) architecture: String,
    pub(crate) files: Vec<SourceFile>,
}

impl SourceFile {
    /// Whether it belongs to the library or its daemon, for which the module table speaks.
    pub(crate) fn is_library(&self) -> bool {
        self.path.starts_with("src/")
    }

    /// Where its module stands in the crate: `src/block/error.rs` is `["block", "error"]`; `src/bin` has the place
    /// and rights of `server`.
    pub(crate) fn module_path(&self) -> Vec<String> {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let inside = inside.strip_suffix(".rs").unwrap_or(inside);
        let mut path: Vec<String> = inside.split('/').map(str::to_owned).collect();
        if path.first().is_some_and(|first| first == "bin") {
            return vec!["server".to_owned()];
        }
        if path.last().is_some_and(|last| last == "mod" || last == "lib") {
            path.pop();
        }
        path
    }

    pub(crate) fn is_binary(&self) -> bool {
        self.path.starts_with("src/bin/")
    }
}

impl Tree {
    /// Reads the repository at `root`.
    pub(crate) fn load(root: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        for folder in FOLDERS {
            let directory = root.join(folder);
            if directory.is_dir() {
                collect(&directory, folder, &mut files)?;
            }
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(Self { architecture: fs::read_to_string(root.join("ARCHITECTURE.md"))?, files })
    }
}

fn collect(directory: &Path, name: &str, files: &mut Vec<SourceFile>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            if !["fixtures", "target", "corpus", "artifacts"].iter().any(|data| path.ends_with(data)) {
                collect(&entry.path(), &path, files)?;
            }
        } else if path.ends_with(".rs") {
            let text = fs::read_to_string(entry.path())?;
            files.push(SourceFile { path, text });
        }
    }
    Ok(())
}
