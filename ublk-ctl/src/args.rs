//! What the user typed: options that all commands share, and how images and registries are named.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgMatches, Args, FromArgMatches, Parser, builder::NonEmptyStringValueParser, value_parser};
use stratabd::{
    registry::HostName,
    server::{
        api::{Client, PATIENCE, types::ImageSpec},
        config::Config,
        failure::{Failure, FailureClass},
        log::{self, Log},
        settings,
    },
};

use crate::cmd::Command;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  any other failure
  2  wrong use, or a configuration that is refused
  3  no such device, file or image
  4  no ublk driver, or no permission to use it
  5  the image or its data breaks a rule of the format
  6  a registry or the network failed
  7  it exists already, or is in use
  8  the daemon cannot be reached
  9  it did not end in time
  130  interrupted";

const TOUR: &str = r#"From an ordinary image to a device:
  ublk-ctl add redis:7

From an image to its next version:
  ublk-ctl convert registry.example.com/app:v1 registry.example.com/app:v1-obd
  ublk-ctl add registry.example.com/app:v1-obd --upper /srv/box
  mount /dev/ublkb0 /mnt
  (use /mnt)
  fsfreeze --freeze /mnt
  ublk-ctl snapshot 0 --to /srv/box/2
  fsfreeze --unfreeze /mnt
  ublk-ctl fork 0 --name twin
  ublk-ctl layer commit --tar /srv/box/upper.data hello.obd
  ublk-ctl image push --base "$(cat /srv/box/image_ref)" --layer hello.obd registry.example.com/app:v2-obd
  umount /mnt && ublk-ctl del --all
  ublk-ctl add registry.example.com/app:v2-obd"#;

/// Attaches, lists, exports and inspects overlaybd block devices
#[derive(Debug, Parser)]
#[command(name = "ublk-ctl", version, after_help = EXIT_CODES, after_long_help = format!("{TOUR}\n\n{EXIT_CODES}"), disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Debug, Args)]
pub(crate) struct GlobalArgs {
    /// Print one JSON object; a failure is one on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Control socket of the daemon [default: as in the settings]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Settings file [default: /etc/stratabd/stratabd.toml if there]
    #[arg(long, global = true, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Set one key of the settings, such as cache.size_mib=1024; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// How long to wait for a daemon that says nothing, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = PATIENCE.as_secs(), value_parser = value_parser!(u64).range(1..))]
    patience: u64,
    /// Log more to standard error; twice for everything
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

impl GlobalArgs {
    /// Starts the log on standard error, of warnings where nothing else is asked for. A command that only asks the daemon does
    /// nothing that warns, so it has a log only where one was asked for.
    pub(crate) fn start_log(&self, command: &Command) -> Result<Option<Log>, Failure> {
        if command.only_asks() && self.verbose == 0 && !log::is_wanted() {
            return Ok(None);
        }
        let filter = match self.verbose {
            0 => "warn",
            1 => "info",
            _ => "debug",
        };
        log::start(filter, Default::default()).map(Some)
    }

    /// A client of the daemon.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let patience = Duration::from_secs(self.patience);
        Ok(Client::new(self.config()?.daemon.socket).with_patience(patience))
    }

    /// The settings with what the command line says.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let mut config = settings::load(self.settings.as_deref(), None, &self.sets)?;
        if let Some(socket) = &self.socket {
            config.daemon.socket.clone_from(socket);
        }
        Ok(config)
    }
}

/// Names an image in one of three ways.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ImageArgs {
    /// Image reference: registry/repository:tag, or @digest; what is left out is as in docker's names
    #[arg(value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    image: Option<String>,
    /// Image configuration as upstream writes it, config.v1.json
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Layer file, lowest first; may be repeated
    #[arg(long = "layer", value_name = "FILE")]
    layers: Vec<PathBuf>,
}

impl ImageArgs {
    /// What was named, with absolute paths, since the daemon has another working directory.
    pub(crate) fn spec(&self) -> Result<ImageSpec, Failure> {
        if let Some(image) = &self.image {
            return Ok(ImageSpec::Reference(image.clone()));
        }
        if let Some(config) = &self.config {
            return Ok(ImageSpec::Config(absolute(config)?));
        }
        Ok(ImageSpec::Layers(self.layers.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?))
    }
}

/// An image, or none where something else names what is wanted.
#[derive(Debug)]
pub(crate) struct OptionalImage(pub(crate) Option<ImageArgs>);

/// What clap calls the options of [`ImageArgs`] together.
const IMAGE_GROUP: &str = "ImageArgs";

impl Args for OptionalImage {
    fn augment_args(command: clap::Command) -> clap::Command {
        ImageArgs::augment_args(command).mut_group(IMAGE_GROUP, |group| group.required(false))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        ImageArgs::augment_args_for_update(command).mut_group(IMAGE_GROUP, |group| group.required(false))
    }
}

impl FromArgMatches for OptionalImage {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let is_there = matches.contains_id(IMAGE_GROUP);
        is_there.then(|| ImageArgs::from_arg_matches(matches)).transpose().map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A path that means the same to the daemon.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    if path == Path::new("-") {
        let text = "\"-\" is no path here: neither standard input nor output will do; \"./-\" names a file";
        return Err(Failure::new(FailureClass::Usage, text));
    }
    std::path::absolute(path).map_err(|source| {
        Failure::with_source(FailureClass::Usage, format!("{}: not a path", path.display()), source)
    })
}

/// Ways to a registry, for commands that do not go through the daemon.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registry and cache")]
pub(crate) struct RegistryArgs {
    /// Speak HTTP without TLS to this host or host:port; may be repeated
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<HostName>,
    /// Authority, PEM, that is trusted besides the system's for the image's registry
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Credentials, as docker's config.json
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Directory of the cache
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Keep nothing on disk
    #[arg(long, conflicts_with = "cache_dir")]
    no_cache: bool,
}

impl RegistryArgs {
    /// Whether any of them was given.
    pub(crate) fn any(&self) -> bool {
        !self.plain_http.is_empty()
            || self.ca_file.is_some()
            || self.authfile.is_some()
            || self.cache_dir.is_some()
            || self.no_cache
    }

    /// Puts them into `config`.
    ///
    /// # Errors
    /// Where a file that was named cannot be read: without it the registry would be asked by nobody, and refuse.
    pub(crate) fn apply(&self, config: &mut Config) -> Result<(), Failure> {
        for host in &self.plain_http {
            config.registry.hosts.entry(host.clone()).or_default().plain_http = true;
        }
        if let Some(file) = &self.ca_file {
            config.registry.ca_file.clone_from(file);
        }
        if let Some(file) = &self.authfile {
            settings::read_document(file)?;
            config.registry.authfile.clone_from(file);
        }
        if let Some(dir) = &self.cache_dir {
            config.cache.dir.clone_from(dir);
        }
        config.cache.enabled &= !self.no_cache;
        Ok(())
    }
}
