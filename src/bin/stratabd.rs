//! `stratabd`: the daemon that serves overlaybd images as block devices.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use stratabd::server::{
    config::{Config, LogFormat},
    daemon::{self, Beginning, DaemonParts, End},
    descriptors,
    failure::{Failure, FailureClass},
    runtimes,
    service::Service,
    settings::{self, Log},
    ublk,
    upgrade::{Channel, Ended, Successor, stand_by},
};

/// The C library's allocator asks the kernel for each page that a serving thread keeps, such as a decoded block.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads for the network. Nothing else is done on them: they carry every fetch.
const NETWORK_THREADS: usize = 2;

/// How long each runtime may take to end what is left when the daemon has ended.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves overlaybd container images as Linux block devices over ublk
#[derive(Debug, Parser)]
#[command(name = "stratabd", version)]
struct Cli {
    /// Configuration file [default: /etc/stratabd/stratabd.toml if there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Upstream's overlaybd.json, taken as far as it has a meaning here
    #[arg(long, value_name = "FILE")]
    overlaybd_config: Option<PathBuf>,
    /// Set one key of the configuration, such as cache.size_mib=1024; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Control socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Directory of the lock and of the devices' records
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Directory of the cache
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Shape of the log
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    log_format: Option<String>,
    /// Leave the caller's mount namespace
    #[arg(long)]
    private_mounts: bool,
    /// Take over from the daemon at the other end of the standard input
    #[arg(long, hide = true)]
    successor: bool,
    /// Stand by for the process of this number
    #[arg(long, hide = true, value_name = "PID:MILLISECONDS")]
    standby: Option<String>,
}

fn main() -> ExitCode {
    // Ends last, and then writes what waits.
    let mut log = None;
    match Cli::parse().run(&mut log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{}", failure.full_text());
            if !tracing::event_enabled!(tracing::Level::ERROR) {
                eprintln!("stratabd: {}", failure.full_text());
            }
            ExitCode::from(failure.class().exit_code())
        }
    }
}

impl Cli {
    fn run(self, log: &mut Option<Log>) -> Result<(), Failure> {
        // One that an upgrade has executed would be shown as the file that it was executed from, such as "exe".
        let _ = rustix::thread::set_name(c"stratabd");
        let Some(beginning) = self.begin()? else { return Ok(()) };
        let config = self.plan()?;
        // Before the log, which has a thread.
        if config.daemon.private_mounts {
            ublk::leave_mount_namespace()?;
        }
        let marked = ublk::mark_io_flusher();
        *log = Some(settings::start_log(&config.daemon.log_filter, config.daemon.log_format)?);
        ublk::log_mark(marked);
        if let Some(file) = &self.overlaybd_config {
            settings::log_unmapped(file)?;
        }
        descriptors::raise_limit();
        let network = runtimes::of_threads("stratabd-net", NETWORK_THREADS)?;
        let control = runtimes::of_this_thread("stratabd-work")?;
        let service = Service::start(config, network.handle().clone(), ublk::prepare_thread)?;
        let ended = control.block_on(daemon::run(DaemonParts { service, port: ublk::port() }, beginning));
        if let Ok(End::Standby(standby)) = ended {
            // At once, for the devices wait: this ends all threads, as the end of the process would.
            return Err(standby.execute());
        }
        control.shutdown_timeout(END_TIMEOUT);
        network.shutdown_timeout(END_TIMEOUT);
        ended.map(drop)
    }

    /// How the daemon is to begin; None where it is not to, since another process serves by now.
    fn begin(&self) -> Result<Option<Beginning>, Failure> {
        let channel = || {
            Channel::inherited().map_err(|source| {
                Failure::with_source(FailureClass::Usage, "no daemon at the standard input", source)
            })
        };
        if let Some(watched) = &self.standby {
            return Ok(match stand_by(channel()?, watched)? {
                Ended::Well => None,
                Ended::Badly(reason) => Some(Beginning::Alone(Some(reason))),
            });
        }
        match self.successor {
            true => Ok(Some(Beginning::Succeeding(Successor::new(channel()?)))),
            false => Ok(Some(Beginning::Alone(None))),
        }
    }

    fn plan(&self) -> Result<Config, Failure> {
        let mut config =
            settings::load(self.config.as_deref(), self.overlaybd_config.as_deref(), &self.sets)?;
        if let Some(socket) = &self.socket {
            config.daemon.socket.clone_from(socket);
        }
        if let Some(dir) = &self.state_dir {
            config.daemon.state_dir.clone_from(dir);
            if self.socket.is_none() {
                config.daemon.socket = dir.join("stratabd.sock");
            }
        }
        if let Some(dir) = &self.cache_dir {
            config.cache.dir.clone_from(dir);
        }
        match self.log_format.as_deref() {
            Some("json") => config.daemon.log_format = LogFormat::Json,
            Some(_) => config.daemon.log_format = LogFormat::Text,
            None => {}
        }
        config.daemon.private_mounts |= self.private_mounts;
        Ok(config)
    }
}
