//! Makes overlaybd images of ordinary OCI images.
//!
//! [`convert`] takes an image from one [`Place`] to another. A layer of an ordinary image is a tar archive, mostly compressed:
//! [`layer`] gives the archive and, once all of it was read, the digests that manifest and configuration of the image name;
//! [`apply()`] puts its entries into an ext4 that lies over the layers below. What that writes is the new layer, which is compressed as it
//! comes and goes to its target while the next one is made.
#![forbid(unsafe_code)]

mod add_verity;
pub mod apply;
mod archive;
mod choice;
mod convert;
mod device;
mod docker_archive;
mod files;
pub mod layer;
mod layout;
mod pipeline;
mod place;
mod remote;
mod source;
mod store;
mod target;
mod writable;

pub use add_verity::{AddVerityOptions, VerityAdded, add_verity};
pub use apply::apply;
pub use choice::Platforms;
pub use convert::{ConvertOptions, ConvertProgress, Converted, ConvertedImage, convert};
pub use layout::Layout;
pub use place::Place;
pub use writable::{AppliedLayer, WritableOptions, apply_to_file, apply_to_layer};
