//! `layer inspect`: what a layer file says of itself.

use std::path::PathBuf;

use clap::Args;
use stratabd::server::{
    failure::Failure,
    layer_report::{LayerReport, inspect},
};

use crate::{
    args::GlobalArgs,
    engine::Engine,
    output::{Output, size, table},
};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The layer file
    file: PathBuf,
}

impl InspectArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let engine = Engine::for_reading(global.config()?)?;
        let report = engine.run(|service| async move { inspect(&service, &self.file).await })?;
        output.print(&report, describe)
    }
}

/// The report as a table.
pub(super) fn describe(report: &LayerReport) -> String {
    let bytes = |count: u64| format!("{} ({count} bytes)", size(count));
    let mut rows = vec![
        ("file", report.name.clone()),
        ("size", bytes(report.size_bytes)),
        ("tar envelope", yes(report.tar_envelope)),
    ];
    match &report.compression {
        Some(compression) => rows.extend([
            ("compression", compression.algorithm.clone()),
            ("block", bytes(compression.block_bytes.into())),
            ("blocks", compression.blocks.to_string()),
            ("checksums", yes(compression.checksums)),
        ]),
        None => rows.push(("compression", "none".to_owned())),
    }
    rows.extend([
        ("content", bytes(report.content_bytes)),
        ("device size", bytes(report.virtual_size_bytes)),
        ("segments", report.segments.to_string()),
        ("uuid", report.uuid.clone().unwrap_or_else(|| "none".to_owned())),
        ("parent", report.parent_uuid.clone().unwrap_or_else(|| "none".to_owned())),
    ]);
    if !report.user_tag.is_empty() {
        rows.push(("tag", report.user_tag.clone()));
    }
    table(&rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect::<Vec<_>>())
}

fn yes(is_so: bool) -> String {
    if is_so { "yes" } else { "no" }.to_owned()
}
