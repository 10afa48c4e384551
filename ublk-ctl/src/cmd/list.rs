//! `list`: all devices that the daemon serves or the kernel knows.

use clap::{Args, ValueEnum};
use stratabd::server::{
    api::types::{DeviceInfo, DeviceList},
    failure::Failure,
};

use crate::{
    args::GlobalArgs,
    output::{Output, size, table},
};

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Print the paths alone, one a line
    #[arg(long, short, conflicts_with = "output")]
    quiet: bool,
    /// The columns, in their order
    #[arg(long, short, value_name = "COLUMN,...", value_delimiter = ',', default_values_t = Column::USUAL)]
    output: Vec<Column>,
    /// Print no line of headings
    #[arg(long, short)]
    noheadings: bool,
}

/// What can be shown of each device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Column {
    /// Number
    Id,
    /// Path of the node
    Device,
    /// Where it is in its life
    State,
    /// Size as people say it
    Size,
    /// Size in bytes
    Bytes,
    /// What it was made of
    Image,
    /// Why nobody serves it, and what to do; by default shown where there is such a device
    Note,
    /// Whether it takes no writes
    Ro,
    /// Hardware queues
    Queues,
    /// Requests in flight a queue
    Depth,
    /// Process that serves it, where the kernel says
    Pid,
}

impl Column {
    const USUAL: [Self; 6] = [Self::Id, Self::Device, Self::State, Self::Size, Self::Image, Self::Note];

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_uppercase()).unwrap_or_default()
    }

    fn of(self, device: &DeviceInfo) -> String {
        match self {
            Self::Id => device.id.to_string(),
            Self::Device => device.path.display().to_string(),
            Self::State => device.state.to_string(),
            Self::Size => size(device.size_bytes),
            Self::Bytes => device.size_bytes.to_string(),
            Self::Image => device.image.as_ref().map(ToString::to_string).unwrap_or_default(),
            Self::Note => device.unserved.as_ref().map(ToString::to_string).unwrap_or_default(),
            Self::Ro => device.read_only.to_string(),
            Self::Queues => device.queues.to_string(),
            Self::Depth => device.depth.to_string(),
            Self::Pid => device.server_pid.map(|pid| pid.to_string()).unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Column {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name().to_lowercase())
    }
}

impl ListArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let list: DeviceList = global.client()?.get("/v1/devices")?;
        output.print(&list, |list| self.text(&list.devices))
    }

    fn text(&self, devices: &[DeviceInfo]) -> String {
        if self.quiet {
            return devices.iter().map(|device| format!("{}\n", device.path.display())).collect();
        }
        let mut columns = self.output.clone();
        if columns == Column::USUAL && devices.iter().all(|device| device.unserved.is_none()) {
            columns.retain(|column| *column != Column::Note);
        }
        let head = columns.iter().map(|column| column.name()).collect();
        let rows = devices.iter().map(|device| columns.iter().map(|column| column.of(device)).collect());
        table(&(!self.noheadings).then_some(head).into_iter().chain(rows).collect::<Vec<_>>())
    }
}
