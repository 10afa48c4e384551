//! Makes overlaybd images of ordinary OCI images.
//!
//! A layer of an ordinary image is a tar archive, mostly compressed. [`layer`] gives the archive and, once all of it was read, the
//! digests that manifest and configuration of the image name.
#![forbid(unsafe_code)]

pub mod layer;
