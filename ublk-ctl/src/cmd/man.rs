//! `man`: the manual pages: one a command, the daemon's and that of the settings.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, CommandFactory};
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};
use stratabd::server::{
    daemon_args::DaemonArgs,
    failure::{Failure, FailureClass},
};

use super::settings_page;
use crate::command_line;

/// Of the last change to what the pages say.
const DATE: &str = "2026-11-30";

const SOURCE: &str = concat!("stratabd ", env!("CARGO_PKG_VERSION"));

const MANUAL: &str = "stratabd";

/// What becomes of the devices when the daemon gets a signal.
const SIGNALS: [(&str, &str); 2] = [
    (
        "SIGTERM, SIGINT, SIGHUP",
        "Leave all devices to the next daemon and end; where daemon.reattach is false, remove them and end. Devices that do not outlive \
         the daemon are removed.",
    ),
    ("SIGKILL", "Devices wait for the next daemon, and programs see a pause."),
];

const FILES: [(&str, &str); 5] = [
    ("/etc/stratabd/stratabd.toml", "The settings, see stratabd.toml(5)."),
    ("/run/stratabd/stratabd.sock", "The control socket, which also has /metrics, /healthz and /readyz."),
    (
        "/run/stratabd",
        "A lock, and a record of each device. It must outlive the daemon, and must not outlive a reboot.",
    ),
    ("/run/stratabd-journals", "Entries of writes that wait for a flush; the same holds for them."),
    ("/var/lib/stratabd", "The cache."),
];

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Directory that the pages are written to
    dir: PathBuf,
}

impl ManArgs {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        self.write().map_err(|source| {
            let text = format!("{}: cannot write the manual pages", self.dir.display());
            Failure::with_source(FailureClass::Internal, text, source)
        })
    }

    fn write(&self) -> io::Result<()> {
        let mut all = command_line().disable_help_subcommand(true);
        all.build();
        commands(all, &self.dir)?;
        fs::write(self.dir.join("stratabd.8"), daemon_page()?)?;
        fs::write(self.dir.join("stratabd.toml.5"), settings_page::page(&[DATE, SOURCE, MANUAL]))
    }
}

/// The page of `command`, and those of its own commands.
fn commands(command: clap::Command, dir: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()).cloned() {
        commands(below, dir)?;
    }
    page_of(command, "1").generate_to(dir).map(drop)
}

fn page_of(command: clap::Command, section: &str) -> Man {
    Man::new(command).section(section).date(DATE).source(SOURCE).manual(MANUAL)
}

fn daemon_page() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = page_of(DaemonArgs::command(), "8");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut roff = Roff::new();
    for (title, entries) in [("SIGNALS", &SIGNALS[..]), ("FILES", &FILES[..])] {
        roff.control("SH", [title]);
        for (name, what) in entries {
            roff.control("TP", []).text([bold(*name)]).text([roman(*what)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]).text([roman("ublk-ctl(1), stratabd.toml(5), systemctl(1)")]);
    roff.to_writer(&mut page)?;
    Ok(page)
}
