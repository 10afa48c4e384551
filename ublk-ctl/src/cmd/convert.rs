//! `convert`: makes the overlaybd form of an ordinary image.

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use clap::{Args, builder::NonEmptyStringValueParser};
use convertor::{ConvertOptions, ConvertProgress, Converted, ConvertedImage, Place, Platforms, convert};
use stratabd::{
    format::oci::Platform,
    offline::default_threads,
    server::{
        failure::{Failure, FailureClass},
        interrupt::Interrupt,
    },
};

use super::{block_format::BlockFormatArgs, layer_size::parse_size};
use crate::{
    args::{GlobalArgs, RegistryArgs},
    engine::Engine,
    output::{Output, size},
    progress::Progress,
};

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);
/// How long what is under way may take to end when the user ends it.
const END_TIMEOUT: Duration = Duration::from_secs(2);

const SOURCE_HELP: &str = "The ordinary image: a reference, oci:FOLDER[:NAME] of an OCI layout, oci-archive:FILE[:NAME], or \
                           docker-archive:FILE[:NAME:TAG] as docker save writes it";
const TARGET_HELP: &str = "What is made: registry/repository:tag, oci:FOLDER[:NAME], or a new file, oci-archive:FILE[:NAME]. Its name \
                           is moved last";

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    #[arg(help = SOURCE_HELP)]
    #[arg(value_name = "SOURCE", value_parser = NonEmptyStringValueParser::new())]
    source: String,
    #[arg(help = TARGET_HELP)]
    #[arg(value_name = "TARGET", value_parser = NonEmptyStringValueParser::new())]
    target: String,
    /// Which image of one that has several; may be repeated, and what is made is an index of these then [default: this machine's]
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]")]
    platforms: Vec<Platform>,
    /// All images for Linux of one that has several, as an index
    #[arg(long, conflicts_with = "platforms")]
    all_platforms: bool,
    /// Use OCI's media types, also where the source has docker's
    #[arg(long)]
    oci: bool,
    /// Size of the device, such as 64GiB: what its file system can hold
    #[arg(long, value_name = "SIZE", default_value = "64GiB", value_parser = parse_size)]
    vsize: u64,
    #[command(flatten)]
    blocks: BlockFormatArgs,
    /// Make layers without Merkle trees, which take 0.8 % of the room and prove each part of a layer when it is read
    #[arg(long)]
    no_verity: bool,
    /// Threads that compress; as many as there are processors by default
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Folder for what is made until it is sent, as much as the image takes in the target; nothing of it has a name
    /// [default: that of temporary files]
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

impl ConvertArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let mut config = global.config()?;
        self.registry.apply(&mut config)?;
        let options = ConvertOptions {
            source: self.source.parse()?,
            target: self.target.parse()?,
            platforms: match self.all_platforms {
                true => Platforms::All,
                false => Platforms::These(self.platforms.clone()),
            },
            oci: self.oci,
            virtual_size_bytes: self.vsize,
            format: self.blocks.format()?,
            verity: !self.no_verity,
            threads: self.threads.unwrap_or_else(default_threads),
            spool: self.spool.clone().unwrap_or_else(std::env::temp_dir),
        };
        let converted = Engine::for_reading(config)?.run(|service| async move {
            let client = service.factory().client().clone();
            let progress = Arc::new(ConvertProgress::default());
            let converting = convert(&client, &options, &progress);
            follow("converting", &progress, converting, named_source(&options.source)).await
        })?;
        output.print(&converted, describe)
    }
}

pub(super) fn named_source(source: &Place) -> String {
    format!("reading {source}")
}

/// Waits for `converting`, with a bar called `name`. When the user ends it what is under way is told to end, so that it leaves nothing.
pub(crate) async fn follow<T>(
    name: &'static str,
    progress: &Arc<ConvertProgress>,
    converting: impl Future<Output = Result<T, Failure>>,
    beginning: String,
) -> Result<T, Failure> {
    let mut interrupt = Interrupt::catch()?;
    let mut converting = Box::pin(converting);
    let bar = Progress::new(name, 0);
    bar.say(beginning);
    loop {
        tokio::select! {
            converted = &mut converting => return converted,
            () = interrupt.wait() => {
                progress.cancel();
                // It may have been too late. Why it ends otherwise is known.
                if let Ok(Ok(converted)) = tokio::time::timeout(END_TIMEOUT, converting).await {
                    return Ok(converted);
                }
                return Err(Failure::new(FailureClass::Interrupted, "interrupted"));
            }
            () = tokio::time::sleep(TICK) => {
                let ((done_bytes, total_bytes), (layers, made, sent)) = (progress.bytes(), progress.layers());
                bar.set_total(total_bytes);
                bar.set(done_bytes);
                if layers > 0 {
                    bar.say(format!("{made} of {layers} layers made, {sent} sent"));
                }
            }
        }
    }
}

fn describe(converted: &Converted) -> String {
    let Converted { reference, layers, present, images, left_out, .. } = converted;
    let [source, archive, made] =
        [converted.source_bytes, converted.archive_bytes, converted.output_bytes].map(size);
    let mut lines = vec![
        reference.clone(),
        format!("{layers} layers ({present} there already): {source} of {archive} unpacked became {made}"),
    ];
    if images.len() > 1 {
        let image = |ConvertedImage { platform, digest, layers, .. }: &ConvertedImage| {
            format!("{platform}: {digest}, {layers} layers")
        };
        lines.extend(images.iter().map(image));
    }
    lines.extend(left_out.iter().map(|what| format!("left out: {what}")));
    lines.join("\n")
}
