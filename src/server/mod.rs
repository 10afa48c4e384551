//! The composition root: from a configuration to running devices, their control API and their state.

pub mod api;
mod blocking;
pub mod config;
pub mod daemon;
pub mod device;
pub mod document;
pub mod export;
pub mod factory;
pub mod failure;
pub mod foreground;
pub mod image_config;
pub mod layer_report;
pub mod layers;
pub mod manifests;
mod metrics;
mod network;
mod next_config;
pub mod port;
pub mod push;
pub mod reactors;
mod references;
pub mod result_file;
pub mod service;
pub mod settings;
mod sources;
pub mod state;
pub mod ublk;
