//! `add`: makes a block device of an image, through the daemon or in this process.

use std::{num::NonZeroU64, path::PathBuf, pin::pin, time::Duration};

use clap::{Args, value_parser};
use stratabd::{
    format::oci::Platform,
    server::{
        api::types::{AddDevice, DeviceInfo, ImageSpec},
        config::Config,
        failure::{Failure, FailureClass},
        foreground::Foreground,
        interrupt::Interrupt,
        service::Service,
        ublk,
    },
};

use super::{add_many, layer_size::parse_size};
use crate::{
    args::{GlobalArgs, OptionalImage, RegistryArgs, absolute},
    engine::Engine,
    ordinary::{self, converted},
    output::{Output, size},
    progress::Progress,
};

/// How often progress is shown, and a device that is to go is asked whether it is still mounted.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    image: OptionalImage,
    /// As many devices as the file has lines, or standard input for -, made at once: a line is the reference of an image, the path of
    /// a configuration (.json), or the request of the control API as JSON
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ImageArgs", "id", "upper", "foreground", "count"])]
    from: Option<PathBuf>,
    /// So many devices of the image, made at once
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=100_000), conflicts_with_all = ["id", "upper", "foreground"])]
    count: Option<u32>,
    /// Which image of a reference that has one for each of several platforms. The only one of another reference must be for it
    /// [default: this machine's of several, and any other]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", conflicts_with_all = ["config", "layers"])]
    platform: Option<Platform>,
    /// Folder of a writable layer over the image: made where it is not there, used again where it is. Its config.v1.json is what
    /// the device is made of from then on, and its image_ref names the image, whatever a tag means by then
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    upper: Option<PathBuf>,
    /// Refuse an ordinary image, instead of converting it into the store first
    #[arg(long)]
    no_convert: bool,
    /// Wanted number of the device
    #[arg(long, short = 'n', value_name = "N")]
    id: Option<u32>,
    /// Hardware queues
    #[arg(long, short, value_name = "N", value_parser = value_parser!(u16).range(1..))]
    queues: Option<u16>,
    /// Requests in flight a queue
    #[arg(long, short, value_name = "N", value_parser = value_parser!(u16).range(1..))]
    depth: Option<u16>,
    /// Reads, writes, flushes and discards that the device begins in a second at most
    #[arg(long, value_name = "N")]
    iops: Option<NonZeroU64>,
    /// Bytes that the device reads and writes in a second at most: bytes, or a number with KiB, MiB, GiB or TiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bandwidth: Option<u64>,
    /// How long the device waits for a daemon that is back and cannot take it over, until its requests fail
    /// [default: as in the daemon's settings]
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["no_recovery", "foreground"])]
    recovery_timeout: Option<NonZeroU64>,
    /// Let the device go with the process that serves it, instead of waiting for the next
    #[arg(long)]
    no_recovery: bool,
    /// Serve the device in this process, without a daemon, until SIGINT, SIGTERM or SIGHUP
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

impl AddArgs {
    /// Whether the device is served in this process.
    pub(crate) fn is_foreground(&self) -> bool {
        self.foreground
    }

    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let image = match (&self.image.0, &self.from) {
            (Some(image), _) => image.spec()?,
            // Each line has its own.
            (None, Some(_)) => ImageSpec::Layers(Vec::new()),
            (None, None) => {
                let text = "an image is required: IMAGE, --config, --layer or --from";
                return Err(Failure::new(FailureClass::Usage, text));
            }
        };
        let request = AddDevice {
            platform: self.platform.as_ref().map(Platform::to_string),
            id: self.id,
            queues: self.queues,
            depth: self.depth,
            upper: self.upper.as_deref().map(absolute).transpose()?,
            recovery: !self.no_recovery,
            recovery_timeout_ms: self
                .recovery_timeout
                .and_then(|seconds| NonZeroU64::new(seconds.get().saturating_mul(1000))),
            iops: self.iops,
            bytes_per_second: self.bandwidth.and_then(NonZeroU64::new),
            ..AddDevice::of(image)
        };
        if self.foreground {
            return self.serve(global, output, request);
        }
        if self.registry.any() {
            let text = "options for registry and cache need --foreground; the daemon has its own settings";
            return Err(Failure::new(FailureClass::Usage, text));
        }
        let client = global.client()?;
        let config = global.config()?;
        if let Some(file) = &self.from {
            return add_many::add(
                &client,
                &add_many::read(file, &request)?,
                self.conversions(config),
                output,
            );
        }
        if let Some(count) = self.count {
            let requests = vec![request; usize::try_from(count).unwrap_or(usize::MAX)];
            return add_many::add(&client, &requests, self.conversions(config), output);
        }
        let attach = |request: &AddDevice| -> Result<DeviceInfo, Failure> {
            let _waiting = Progress::waiting("attaching");
            client.post("/v1/devices", request)
        };
        let attached = match attach(&request) {
            Err(failure) if failure.is_of_ordinary_image() && !self.no_convert => {
                ordinary::tidy(&config, output);
                let converted =
                    ordinary::convert_alone(config.clone(), &request.image, request.platform.as_deref());
                let attached = converted.and_then(|converted| attach(&converted.request(&request)));
                ordinary::tidy(&config, output);
                attached
            }
            attached => attached,
        };
        announce(output, &attached?)
    }

    /// With which settings ordinary images are converted, if they are to be.
    fn conversions(&self, config: Config) -> Option<Config> {
        (!self.no_convert).then_some(config)
    }

    fn serve(&self, global: &GlobalArgs, output: &Output, request: AddDevice) -> Result<(), Failure> {
        let mut config = global.config()?;
        self.registry.apply(&mut config)?;
        let drain = Duration::from_millis(config.daemon.drain_timeout_ms);
        let queues = request.queues.unwrap_or(config.device.queues);
        Engine::for_serving(config, queues)?.run(|service| async move {
            let mut interrupt = Interrupt::catch()?;
            let device = match attach(&service, &request, interrupt.wait()).await {
                Err(failure) if failure.is_of_ordinary_image() && !self.no_convert => {
                    ordinary::tidy(service.config(), output);
                    let converted = converted(&service, &request.image, request.platform.as_deref()).await?;
                    attach(&service, &converted.request(&request), interrupt.wait()).await?
                }
                attached => attached?,
            };
            serve_until_told(&service, device, &mut interrupt, output, drain).await
        })
    }
}

/// Makes the device and shows what is fetched for it meanwhile.
async fn attach(
    service: &Service,
    request: &AddDevice,
    given_up: impl Future<Output = ()>,
) -> Result<Foreground, Failure> {
    let waiting = Progress::waiting("attaching");
    let metrics = service.factory().registry_metrics();
    let mut attaching = pin!(Foreground::attach(service, ublk::port(), request, given_up));
    loop {
        match tokio::time::timeout(LOOK_INTERVAL, &mut attaching).await {
            Ok(attached) => return attached,
            Err(_) => waiting.say(format!("attaching, {} fetched", size(metrics.bytes.get()))),
        }
    }
}

/// Prints the device's path, and serves it until the user wants no more.
pub(crate) async fn serve_until_told(
    service: &Service,
    device: Foreground,
    interrupt: &mut Interrupt,
    output: &Output,
    drain: Duration,
) -> Result<(), Failure> {
    // The device must go even when its path could not be printed.
    let served = match announce(output, device.info()) {
        Ok(()) => service.reactors().while_all_run(until_told(&device, interrupt, output)).await,
        failed => failed,
    };
    served.and(device.detach(drain).await.map(drop))
}

/// Waits for a signal, and then until nobody has the device mounted or the user insists.
async fn until_told(device: &Foreground, interrupt: &mut Interrupt, output: &Output) -> Result<(), Failure> {
    interrupt.wait().await;
    let mut told = false;
    while let Some(user) = device.user().await? {
        if !std::mem::replace(&mut told, true) {
            let text = format!(
                "the device is in use by {user}: unmount or detach it, or interrupt again to fail all of its users"
            );
            output.note(&text);
        }
        tokio::select! {
            () = interrupt.wait() => break,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
    Ok(())
}

fn announce(output: &Output, info: &DeviceInfo) -> Result<(), Failure> {
    output.print(info, |info| info.path.display().to_string())
}
