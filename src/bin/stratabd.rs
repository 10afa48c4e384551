//! `stratabd`: the daemon that serves overlaybd images as block devices.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use stratabd::server::{
    daemon::{self, Beginning, DaemonParts, End},
    daemon_args::DaemonArgs,
    descriptors,
    failure::{Failure, FailureClass},
    log::{self, Log},
    runtimes,
    service::Service,
    settings, ublk,
    upgrade::{Channel, Ended, Successor, stand_by},
};

/// The C library's allocator asks the kernel for each page that a serving thread keeps, such as a decoded block.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads for the network. Nothing else is done on them: they carry every fetch.
const NETWORK_THREADS: usize = 2;

/// How long each runtime may take to end what is left when the daemon has ended.
const END_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    // Ends last, and then writes what waits.
    let mut log = None;
    match run(&DaemonArgs::parse(), &mut log) {
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

fn run(arguments: &DaemonArgs, log: &mut Option<Log>) -> Result<(), Failure> {
    // One that an upgrade has executed would be shown as the file that it was executed from, such as "exe".
    let _ = rustix::thread::set_name(c"stratabd");
    let Some(beginning) = begin(arguments)? else { return Ok(()) };
    let config = arguments.plan()?;
    // Before the log, which has a thread.
    if config.daemon.private_mounts {
        ublk::leave_mount_namespace()?;
    }
    let marked = ublk::mark_io_flusher();
    *log = Some(log::start(&config.daemon.log_filter, config.daemon.log_format)?);
    ublk::log_mark(marked);
    if let Some(file) = &arguments.overlaybd_config {
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
fn begin(arguments: &DaemonArgs) -> Result<Option<Beginning>, Failure> {
    let channel = || {
        Channel::inherited().map_err(|source| {
            Failure::with_source(FailureClass::Usage, "no daemon at the standard input", source)
        })
    };
    if let Some(watched) = &arguments.standby {
        return Ok(match stand_by(channel()?, watched)? {
            Ended::Well => None,
            Ended::Badly(reason) => Some(Beginning::Alone(Some(reason))),
        });
    }
    match arguments.successor {
        true => Ok(Some(Beginning::Succeeding(Successor::new(channel()?)))),
        false => Ok(Some(Beginning::Alone(None))),
    }
}
