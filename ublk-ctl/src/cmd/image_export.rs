//! `image export`: writes or hashes the device that an image makes, through the same engine that serves devices.

use std::{
    io::{self, IsTerminal},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use clap::Args;
use stratabd::server::{
    device::Shown,
    export::{ExportOptions, ExportOutput, Exported, export},
    failure::{Failure, FailureClass},
    interrupt::Interrupt,
    result_file,
};
use tokio::{sync::oneshot, task};

use crate::{
    args::{GlobalArgs, ImageArgs, RegistryArgs},
    engine::Engine,
    output::{Output, size},
    progress::Progress,
};

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("result").required(true).multiple(true))]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// File to write, with holes where the device is zero; `-` is standard output, which gets every byte
    #[arg(long, short, value_name = "FILE", group = "result")]
    output: Option<PathBuf>,
    /// Print the SHA-256 of the whole device, zeroes and all: 1 TiB takes from ten minutes to an hour
    #[arg(long, group = "result")]
    sha256: bool,
    /// Replace the file if it exists
    #[arg(long, requires = "output")]
    force: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

impl ExportArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let mut config = global.config()?;
        self.registry.apply(&mut config)?;
        let spec = self.image.spec()?;
        let engine = Engine::for_reading(config)?;
        let options = ExportOptions { output: self.target()?, sha256: self.sha256 };
        let done = engine.run(|service| async move {
            let mut interrupt = Interrupt::catch()?;
            let waiting = Progress::waiting("opening the image");
            let (device, _) = tokio::select! {
                opened = result_file::record(&spec, service.open(&spec)) => opened?,
                () = interrupt.wait() => return Err(Failure::new(FailureClass::Interrupted, "interrupted")),
            };
            drop(waiting);
            let (held, cancel) = oneshot::channel();
            let reactor = service.reactors().one();
            let mut work = task::spawn_blocking(move || {
                let progress = Progress::new("exporting", device.geometry().size_bytes);
                let told = |done| progress.set(done);
                match device.shown() {
                    Shown::Image(image) => export(&reactor, image, options, cancel, told),
                    Shown::Overlay(overlay) => export(&reactor, overlay, options, cancel, told),
                }
            });
            let joined = tokio::select! {
                joined = &mut work => joined,
                () = interrupt.wait() => {
                    drop(held);
                    work.await
                }
            };
            joined.map_err(|source| {
                Failure::with_source(FailureClass::Internal, "the export has failed", source)
            })?
        })?;
        // Where the device goes to standard output, nothing else may.
        if self.is_stream() { output.tell(&done, describe) } else { output.print(&done, describe) }
    }

    fn is_stream(&self) -> bool {
        self.output.as_deref() == Some(Path::new("-"))
    }

    /// Where the bytes are to go.
    fn target(&self) -> Result<Option<ExportOutput>, Failure> {
        let Some(path) = &self.output else { return Ok(None) };
        if !self.is_stream() {
            return Ok(Some(ExportOutput::File { path: path.clone(), overwrite: self.force }));
        }
        let stdout = io::stdout();
        if stdout.is_terminal() {
            return Err(Failure::new(FailureClass::Usage, "a device is not written to a terminal"));
        }
        let stream = stdout.as_fd().try_clone_to_owned().map_err(|source| {
            Failure::with_source(FailureClass::Internal, "cannot use standard output", source)
        })?;
        Ok(Some(ExportOutput::Stream(stream.into())))
    }
}

/// The line that `sha256sum` would print, so that it can be compared, and what was written.
fn describe(done: &Exported) -> String {
    let mut text = String::new();
    if let Some(sum) = &done.sha256 {
        let name = done.output.as_ref().map_or("-".into(), |path| path.display().to_string());
        text.push_str(&format!("{sum}  {name}\n"));
    } else if let (Some(path), Some(data)) = (&done.output, done.data_bytes) {
        let (total, data) = (size(done.size_bytes), size(data));
        text.push_str(&format!("{}: {total}, {data} of it data\n", path.display()));
    }
    text
}
