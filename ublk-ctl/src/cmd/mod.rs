//! The commands, one file each.

mod add;
mod completions;
mod del;
mod features;
mod fork;
mod image_export;
mod image_push;
mod info;
mod layer_commit;
mod layer_compress;
mod layer_create;
mod layer_diff;
mod layer_extract;
mod layer_flatten;
mod layer_form;
mod layer_inspect;
mod layer_merge;
mod layer_resize;
mod layer_size;
mod layer_stack;
mod layer_verify;
mod list;
mod man;
mod resize;
mod snapshot;

use clap::Subcommand;
use stratabd::server::failure::Failure;

use crate::{args::GlobalArgs, output::Output};

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a block device of an image and print its path
    #[command(alias = "create")]
    Add(add::AddArgs),
    /// Remove devices
    #[command(alias = "delete")]
    Del(del::DelArgs),
    /// List devices
    #[command(alias = "ls")]
    List(list::ListArgs),
    /// Show one device
    Info(info::InfoArgs),
    /// Make a read-only layer of what was written to a device, which stays in use, and put a new one over it
    Snapshot(snapshot::SnapshotArgs),
    /// Make a second device that begins with what a first one holds, and shares all of it
    Fork(fork::ForkArgs),
    /// Make a device with a writable layer larger while it is in use (Linux 6.16)
    Resize(resize::ResizeArgs),
    /// Show what the kernel's driver can do
    Features(features::FeaturesArgs),
    /// Work with whole images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Work with single layer files
    #[command(subcommand)]
    Layer(LayerCommand),
    /// Print completions for a shell
    #[command(hide = true)]
    Completions(completions::CompletionsArgs),
    /// Write the manual pages
    #[command(hide = true)]
    Man(man::ManArgs),
}

/// Work with whole images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Write or hash the device that an image makes; needs io_uring (Linux 6.1), but no ublk driver
    Export(image_export::ExportArgs),
    /// Make a new version of an image in a registry: a base and a new layer; needs no ublk driver
    Push(image_push::PushArgs),
}

/// Work with single layer files.
#[derive(Debug, Subcommand)]
pub(crate) enum LayerCommand {
    /// Make the files of a new writable layer
    Create(layer_create::CreateArgs),
    /// Give the device of a writable layer another size
    Resize(layer_resize::ResizeArgs),
    /// Make a layer file of a writable layer, or of another layer
    Commit(layer_commit::CommitArgs),
    /// Compress a layer file, or compress it in another way
    Compress(layer_compress::CompressArgs),
    /// Take a layer out of its compression and envelope
    Extract(layer_extract::ExtractArgs),
    /// Make one layer of a stack of layers
    Merge(layer_merge::MergeArgs),
    /// Make one layer of a stack of layers and the writable one above them
    Flatten(layer_flatten::FlattenArgs),
    /// Show where the devices of two layers or images differ
    Diff(layer_diff::DiffArgs),
    /// Show what a layer file says of itself
    Inspect(layer_inspect::InspectArgs),
    /// Read all of a layer file and check everything that can be checked
    Verify(layer_verify::VerifyArgs),
}

impl Command {
    /// Does it.
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        match self {
            Self::Add(args) => args.run(global, output),
            Self::Del(args) => args.run(global, output),
            Self::List(args) => args.run(global, output),
            Self::Info(args) => args.run(global, output),
            Self::Snapshot(args) => args.run(global, output),
            Self::Fork(args) => args.run(global, output),
            Self::Resize(args) => args.run(global, output),
            Self::Features(args) => args.run(global, output),
            Self::Image(ImageCommand::Export(args)) => args.run(global, output),
            Self::Image(ImageCommand::Push(args)) => args.run(global, output),
            Self::Layer(LayerCommand::Create(args)) => args.run(output),
            Self::Layer(LayerCommand::Resize(args)) => args.run(output),
            Self::Layer(LayerCommand::Commit(args)) => args.run(output),
            Self::Layer(LayerCommand::Compress(args)) => args.run(output),
            Self::Layer(LayerCommand::Extract(args)) => args.run(output),
            Self::Layer(LayerCommand::Merge(args)) => args.run(output),
            Self::Layer(LayerCommand::Flatten(args)) => args.run(output),
            Self::Layer(LayerCommand::Diff(args)) => args.run(output),
            Self::Layer(LayerCommand::Inspect(args)) => args.run(global, output),
            Self::Layer(LayerCommand::Verify(args)) => args.run(global, output),
            Self::Completions(args) => args.run(),
            Self::Man(args) => args.run(),
        }
    }
}
