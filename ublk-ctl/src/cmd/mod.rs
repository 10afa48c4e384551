//! The commands, one file each.

mod add;
mod add_many;
mod block_format;
mod completions;
mod convert;
mod del;
mod features;
mod fork;
mod image_add_verity;
mod image_export;
mod image_push;
mod info;
pub(crate) mod layer_apply;
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
mod recover;
mod resize;
mod set;
mod settings_page;
mod snapshot;
mod store;
mod upgrade;

use clap::Subcommand;
use stratabd::server::failure::Failure;

pub(crate) use convert::follow as follow_conversion;

use crate::{args::GlobalArgs, deferred::Deferred, output::Output};

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a block device of an image and print its path
    #[command(alias = "create")]
    Add(Deferred<add::AddArgs>),
    /// Remove devices
    #[command(alias = "delete")]
    Del(Deferred<del::DelArgs>),
    /// List devices
    #[command(alias = "ls")]
    List(Deferred<list::ListArgs>),
    /// Show one device
    Info(Deferred<info::InfoArgs>),
    /// Make a read-only layer of what was written to a device, which stays in use, and put a new one over it
    Snapshot(Deferred<snapshot::SnapshotArgs>),
    /// Make a second device that begins with what a first one holds, and shares all of it
    Fork(Deferred<fork::ForkArgs>),
    /// Make a device with a writable layer larger while it is in use (Linux 6.16)
    Resize(Deferred<resize::ResizeArgs>),
    /// Serve on devices that a process has left which served them alone, or a daemon with another state directory
    Recover(Deferred<recover::RecoverArgs>),
    /// Change what a device may begin in a second, while it is in use
    Set(Deferred<set::SetArgs>),
    /// Have another program take over from the daemon, while all devices are in use
    Upgrade(Deferred<upgrade::UpgradeArgs>),
    /// Show what the kernel's driver can do
    Features(Deferred<features::FeaturesArgs>),
    /// Make the overlaybd form of an ordinary image, which lies in a registry or an OCI layout; needs no ublk driver
    Convert(Deferred<convert::ConvertArgs>),
    /// Work with the ordinary images that were converted on this machine
    #[command(subcommand)]
    Store(Deferred<StoreCommand>),
    /// Work with whole images
    #[command(subcommand)]
    Image(Deferred<ImageCommand>),
    /// Work with single layer files
    #[command(subcommand)]
    Layer(Deferred<LayerCommand>),
    /// Print completions for a shell: source them from its start-up file
    Completions(Deferred<completions::CompletionsArgs>),
    /// Write the manual pages
    Man(Deferred<man::ManArgs>),
}

/// Work with the images of the store.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Convert an ordinary image, so that devices can be made of it at once
    Add(Deferred<store::StoreAddArgs>),
    /// List what is there
    #[command(alias = "ls")]
    List(Deferred<store::StoreListArgs>),
    /// Remove all that no device uses
    Prune(Deferred<store::StorePruneArgs>),
}

/// Work with whole images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Write or hash the device that an image makes; needs io_uring (Linux 6.1), but no ublk driver
    Export(Deferred<image_export::ExportArgs>),
    /// Make a new version of an image in a registry: a base and a new layer; needs no ublk driver
    Push(Deferred<image_push::PushArgs>),
    /// Give the layers of an overlaybd image Merkle trees, which prove each part of them when it is read; needs no ublk driver
    AddVerity(Deferred<image_add_verity::AddVerityArgs>),
}

/// Work with single layer files.
#[derive(Debug, Subcommand)]
pub(crate) enum LayerCommand {
    /// Make the files of a new writable layer
    Create(Deferred<layer_create::CreateArgs>),
    /// Put a layer of an ordinary image, a tar archive, into the file system of a writable image
    Apply(Deferred<layer_apply::ApplyArgs>),
    /// Give the device of a writable layer another size
    Resize(Deferred<layer_resize::ResizeArgs>),
    /// Make a layer file of a writable layer, or of another layer
    Commit(Deferred<layer_commit::CommitArgs>),
    /// Compress a layer file, or compress it in another way
    Compress(Deferred<layer_compress::CompressArgs>),
    /// Take a layer out of its compression and envelope
    Extract(Deferred<layer_extract::ExtractArgs>),
    /// Make one layer of a stack of layers
    Merge(Deferred<layer_merge::MergeArgs>),
    /// Make one layer of a stack of layers and the writable one above them
    Flatten(Deferred<layer_flatten::FlattenArgs>),
    /// Show where the devices of two layers or images differ
    Diff(Deferred<layer_diff::DiffArgs>),
    /// Show what a layer file says of itself
    Inspect(Deferred<layer_inspect::InspectArgs>),
    /// Read all of a layer file and check everything that can be checked
    Verify(Deferred<layer_verify::VerifyArgs>),
}

impl Command {
    /// Whether all that it does is to ask the daemon.
    pub(crate) fn only_asks(&self) -> bool {
        match self {
            Self::Add(Deferred(args)) => !args.is_foreground(),
            Self::Recover(Deferred(args)) => !args.is_foreground(),
            Self::Del(_) | Self::List(_) | Self::Info(_) => true,
            Self::Snapshot(_) | Self::Fork(_) | Self::Resize(_) | Self::Set(_) | Self::Upgrade(_) => true,
            Self::Features(_) | Self::Convert(_) | Self::Store(_) => false,
            Self::Image(_) | Self::Layer(_) => false,
            Self::Completions(_) | Self::Man(_) => false,
        }
    }

    /// Does it.
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        match self {
            Self::Add(Deferred(args)) => args.run(global, output),
            Self::Del(Deferred(args)) => args.run(global, output),
            Self::List(Deferred(args)) => args.run(global, output),
            Self::Info(Deferred(args)) => args.run(global, output),
            Self::Snapshot(Deferred(args)) => args.run(global, output),
            Self::Fork(Deferred(args)) => args.run(global, output),
            Self::Resize(Deferred(args)) => args.run(global, output),
            Self::Recover(Deferred(args)) => args.run(global, output),
            Self::Set(Deferred(args)) => args.run(global, output),
            Self::Upgrade(Deferred(args)) => args.run(global, output),
            Self::Features(Deferred(args)) => args.run(global, output),
            Self::Convert(Deferred(args)) => args.run(global, output),
            Self::Store(Deferred(StoreCommand::Add(Deferred(args)))) => args.run(global, output),
            Self::Store(Deferred(StoreCommand::List(Deferred(args)))) => args.run(global, output),
            Self::Store(Deferred(StoreCommand::Prune(Deferred(args)))) => args.run(global, output),
            Self::Image(Deferred(ImageCommand::Export(Deferred(args)))) => args.run(global, output),
            Self::Image(Deferred(ImageCommand::Push(Deferred(args)))) => args.run(global, output),
            Self::Image(Deferred(ImageCommand::AddVerity(Deferred(args)))) => args.run(global, output),
            Self::Layer(Deferred(LayerCommand::Create(Deferred(args)))) => args.run(output),
            Self::Layer(Deferred(LayerCommand::Apply(Deferred(args)))) => args.run(output),
            Self::Layer(Deferred(LayerCommand::Resize(Deferred(args)))) => args.run(output),
            Self::Layer(Deferred(LayerCommand::Commit(Deferred(args)))) => args.run(output),
            Self::Layer(Deferred(LayerCommand::Compress(Deferred(args)))) => args.run(output),
            Self::Layer(Deferred(LayerCommand::Extract(Deferred(args)))) => args.run(output),
            Self::Layer(Deferred(LayerCommand::Merge(Deferred(args)))) => args.run(output),
            Self::Layer(Deferred(LayerCommand::Flatten(Deferred(args)))) => args.run(output),
            Self::Layer(Deferred(LayerCommand::Diff(Deferred(args)))) => args.run(output),
            Self::Layer(Deferred(LayerCommand::Inspect(Deferred(args)))) => args.run(global, output),
            Self::Layer(Deferred(LayerCommand::Verify(Deferred(args)))) => args.run(global, output),
            Self::Completions(Deferred(args)) => args.run(),
            Self::Man(Deferred(args)) => args.run(),
        }
    }
}
