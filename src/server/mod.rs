//! The composition root: from a configuration to running devices, their control API and their state.

pub mod config;
pub mod document;
pub mod image_config;
