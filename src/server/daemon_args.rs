//! The command line of the daemon, which its manual page is made of too.

use std::path::PathBuf;

use clap::Parser;

use super::{
    config::{Config, LogFormat},
    failure::Failure,
    settings,
};

/// Serves overlaybd container images as Linux block devices over ublk
#[derive(Debug, Parser)]
#[command(name = "stratabd", version)]
pub struct DaemonArgs {
    /// Configuration file [default: /etc/stratabd/stratabd.toml if there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Upstream's overlaybd.json, taken as far as it has a meaning here
    #[arg(long, value_name = "FILE")]
    pub overlaybd_config: Option<PathBuf>,
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
    pub successor: bool,
    /// Stand by for the process of this number
    #[arg(long, hide = true, value_name = "PID:MILLISECONDS")]
    pub standby: Option<String>,
}

impl DaemonArgs {
    /// The settings with what the command line says.
    ///
    /// # Errors
    /// As of [`settings::load`].
    pub fn plan(&self) -> Result<Config, Failure> {
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
