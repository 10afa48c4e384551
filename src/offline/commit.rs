//! `layer commit`: the layer of a writable pair, of a sparse file or of a sealed file as a layer file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{OfflineError, PackOptions, Watch, lock::LockMode, output::Output, pack::pack, source::Source};
use crate::format::{
    lsmt::{LayerIdentity, Packing, UserTag},
    uuid::Uuid,
};

/// What the layer is to say of itself. Where nothing is given, it says what its source says; as upstream, only the parent is
/// taken over.
#[derive(Debug, Clone, Copy, Default)]
pub struct Naming {
    /// Its UUID.
    pub uuid: Option<Uuid>,
    /// The UUID of the layer below.
    pub parent_uuid: Option<Uuid>,
    /// Free text.
    pub message: Option<UserTag>,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// Bytes of data that the source has.
    pub data_bytes: u64,
    /// Bytes of the file.
    pub output_bytes: u64,
    /// Entries at the end of a writable layer's index that have lost their data, and that do not count.
    pub torn_entries: u64,
}

/// Writes the layer in `data` to the file `output`. `index` is the index file of a writable pair; of a sparse file it
/// is not looked at, and a sealed layer has none. The same segments and data make the same bytes, with any number of threads.
///
/// # Errors
/// [`OfflineError`]; then there is no output.
pub fn commit<P: Fn(u64, u64) + Sync>(
    data: &Path,
    index: Option<&Path>,
    output: &Path,
    naming: &Naming,
    options: &PackOptions,
    watch: &Watch<P>,
) -> Result<Committed, OfflineError> {
    let source = Source::open(data, index, LockMode::Shared)?;
    source.require_whole(options.allow_torn)?;
    let identity = naming.of(&source.identity, options.packing);
    let output = Output::create(output, options.tar, options.overwrite)?;
    let output_bytes = pack(&source, &identity, output, options, watch)?;
    let (data_bytes, torn_entries) = (source.data_bytes(), source.torn_entries);
    Ok(Committed { data_bytes, output_bytes, torn_entries })
}

impl Naming {
    /// The identity of a layer that is made of one with the identity `source`.
    pub(super) fn of(&self, source: &LayerIdentity, packing: Packing) -> LayerIdentity {
        let kept = match packing {
            Packing::Aligned => *source,
            Packing::AsUpstream => LayerIdentity { uuid: None, user_tag: UserTag::default(), ..*source },
        };
        LayerIdentity {
            uuid: self.uuid.or(kept.uuid),
            parent_uuid: self.parent_uuid.or(kept.parent_uuid),
            user_tag: self.message.unwrap_or(kept.user_tag),
            ..kept
        }
    }
}
