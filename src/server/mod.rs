//! The composition root: from a configuration to running devices, their control API and their state.

pub mod api;
pub mod config;
pub mod document;
pub mod export;
pub mod failure;
pub mod image_config;
pub mod layers;
pub mod manifests;
pub mod reactors;
pub mod settings;
pub mod state;
