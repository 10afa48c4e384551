//! The formats of an overlaybd image as functions of bytes: no I/O, no clock, no unsafe code.
//!
//! A layer on disk or in a registry is, from the outside in: an optional tar envelope, an optional
//! ZFile around the compressed blocks, and an [LSMT](lsmt) layer that maps sectors of the device
//! to sectors of the file. Callers read the ranges that a parser asks for and hand it the bytes; every error names the
//! offset and the rule that was broken, and the caller adds the file's name. Nothing is sized by a count that has not
//! been checked against the size of the file.
#![forbid(unsafe_code)]
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod field;

pub mod crc;
pub mod ext4;
pub mod foreign;
pub mod lsmt;
pub mod oci;
pub mod tar;
pub mod uuid;
pub mod verity;
pub mod zfile;
