//! Makes overlaybd images of ordinary OCI images.
//!
//! A layer of an ordinary image is a tar archive, mostly compressed. [`layer`] gives the archive and, once all of it was read, the
//! digests that manifest and configuration of the image name. [`apply`](mod@apply) puts what the archive has into an ext4, over the layers below.
#![forbid(unsafe_code)]

pub mod apply;
pub mod layer;
