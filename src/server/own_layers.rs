//! The layers of a configuration that snapshots of its device have made, and the one that takes their place.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    failure::{Failure, FailureClass},
    image_config::SNAPSHOT_KEY,
    layers::parse_config,
    next_config::{document_of, wrong},
    settings::read_regular_document,
};

/// Layers of a configuration from the highest that is not the device's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnLayers {
    /// Their numbers in the configuration, from the lowest.
    pub(super) numbers: Range<usize>,
    /// Their files, the lowest first.
    pub(super) files: Vec<PathBuf>,
}

impl OwnLayers {
    /// Those of the configuration at `path`.
    ///
    /// # Errors
    /// Where it cannot be used.
    pub(super) fn of(path: &Path) -> Result<Self, Failure> {
        let lowers = parse_config(path, &read_regular_document(path)?)?.lowers;
        let own = lowers.iter().rev().map_while(|lower| lower.file.clone().filter(|_| lower.snapshot));
        let mut files: Vec<_> = own.collect();
        files.reverse();
        Ok(Self { numbers: lowers.len().saturating_sub(files.len())..lowers.len(), files })
    }

    /// Without the first `count`.
    pub(super) fn skip(mut self, count: usize) -> Self {
        self.numbers.start = self.numbers.start.saturating_add(count).min(self.numbers.end);
        self.files.drain(..count.min(self.files.len()));
        self
    }

    /// The configuration at `path`, which must be that of a device that writes to `top` over so many layers, with the layer in the
    /// file `merged` in their place.
    ///
    /// # Errors
    /// Where it is another one.
    pub(super) fn replaced(
        &self,
        path: &Path,
        top: &Path,
        layers_below: usize,
        merged: &Path,
    ) -> Result<Vec<u8>, Failure> {
        let mut document = document_of(path, Some(top), layers_below)?;
        let lowers = document.get_mut("lowers").and_then(Value::as_array_mut);
        let odd = || wrong(path, "its lowers are others than when layers of it were merged");
        let lowers = lowers.filter(|lowers| self.numbers.end <= lowers.len()).ok_or_else(odd)?;
        let put = json!({ "file": merged, SNAPSHOT_KEY: true });
        let taken: Vec<Value> = lowers.splice(self.numbers.clone(), [put]).collect();
        let files = taken.iter().map(|lower| lower.get("file").and_then(Value::as_str).map(Path::new));
        if !files.eq(self.files.iter().map(|file| Some(file.as_path()))) {
            return Err(odd());
        }
        let text = serde_json::to_vec(&document).map_err(|source| {
            Failure::with_source(FailureClass::Internal, "cannot write a configuration", source)
        })?;
        parse_config(path, &text).map(|_| text)
    }
}

/// Makes all layers of `document`, a configuration, those of its image: a device that is made of it merges none of them.
pub(super) fn disown(document: &mut Value) {
    let lowers = document.get_mut("lowers").and_then(Value::as_array_mut);
    for lower in lowers.into_iter().flatten().filter_map(Value::as_object_mut) {
        lower.remove(SNAPSHOT_KEY);
    }
}
