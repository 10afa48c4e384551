//! `info`: everything about one device.

use std::{
    fs,
    io::{self, IsTerminal},
    thread,
    time::Duration,
};

use clap::{Args, value_parser};
use stratabd::server::{
    api::types::{DeviceInfo, FetchCount, OverdueInfo},
    failure::{Failure, FailureClass},
};

use super::completions::devices;
use crate::{
    args::GlobalArgs,
    output::{Output, size, table, write_out},
};

/// Has a terminal begin anew.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Number or path of the device
    #[arg(value_name = "DEVICE", add = devices())]
    device: String,
    /// Show it again and again, every 2 seconds or as said, until it is gone
    #[arg(long, short, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2", value_parser = value_parser!(u64).range(1..))]
    watch: Option<u64>,
}

impl InfoArgs {
    #[expect(clippy::disallowed_methods, reason = "this thread serves nobody")]
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let client = global.client()?;
        let id = device_number(&self.device)?;
        loop {
            let info: DeviceInfo = client.get(&format!("/v1/devices/{id}"))?;
            if self.watch.is_some() && io::stdout().is_terminal() {
                write_out(CLEAR)?;
            }
            show(&info, output)?;
            let Some(seconds) = self.watch else { return Ok(()) };
            thread::sleep(Duration::from_secs(seconds));
        }
    }
}

fn show(info: &DeviceInfo, output: &Output) -> Result<(), Failure> {
    output.print(info, |info| {
        let mut rows = vec![
            ["device".to_owned(), info.path.display().to_string()].to_vec(),
            ["state".to_owned(), info.state.to_string()].to_vec(),
            ["size".to_owned(), format!("{} ({} bytes)", size(info.size_bytes), info.size_bytes)].to_vec(),
            ["logical block".to_owned(), format!("{} bytes", info.logical_block_bytes)].to_vec(),
            ["read-only".to_owned(), info.read_only.to_string()].to_vec(),
            ["queues".to_owned(), format!("{} of depth {}", info.queues, info.depth)].to_vec(),
            ["features".to_owned(), info.features.join(", ")].to_vec(),
        ];
        rows.extend(info.iops.map(|iops| vec!["limit".to_owned(), format!("{iops} requests a second")]));
        let bandwidth = info.bytes_per_second.map(|bytes| format!("{} a second", size(bytes.get())));
        rows.extend(bandwidth.map(|bandwidth| vec!["limit".to_owned(), bandwidth]));
        rows.extend(info.image.iter().map(|image| vec!["image".to_owned(), image.to_string()]));
        rows.extend(info.unserved.iter().map(|it| vec!["not served".to_owned(), it.to_string()]));
        rows.extend(info.server_pid.iter().map(|pid| vec!["served by".to_owned(), pid.to_string()]));
        rows.extend(info.warnings.iter().map(|warning| vec!["warning".to_owned(), warning.clone()]));
        for request in &info.overdue {
            let OverdueInfo { kind, offset, len, age_ms, waits_for } = request;
            let waits_for = waits_for.as_deref().unwrap_or("nobody has said what");
            let text =
                format!("{kind} of {len} bytes at {offset}, for {} s, waits for {waits_for}", age_ms / 1000);
            rows.push(vec!["does not end".to_owned(), text]);
        }
        for reads in info.reads.iter().filter(|reads| reads.requests > 0) {
            let text = format!("{} ({})", reads.requests, size(reads.bytes));
            rows.push(vec![format!("reads {}", reads.source), text]);
        }
        for asked in info.upper.iter().filter(|asked| asked.requests > 0) {
            let text = format!("{} ({})", asked.requests, size(asked.bytes));
            rows.push(vec![format!("upper {}", asked.kind), text]);
        }
        rows.extend(info.upper_room_bytes.map(|bytes| vec!["upper room".to_owned(), size(bytes)]));
        for (index, layer) in info.layers.iter().enumerate() {
            let text = format!("{} ({}) {}", layer.name, size(layer.size_bytes), layer.description);
            rows.push(vec![format!("layer {index}"), text]);
            rows.extend(layer.fetched.map(|fetched| {
                let FetchCount { fetches, retries, failures, bytes } = fetched;
                let text = format!("{fetches} ({}), {retries} tries again, {failures} failed", size(bytes));
                vec![format!("layer {index} fetches"), text]
            }));
        }
        table(&rows)
    })
}

/// The number in `5`, `/dev/ublkb5` or `ublkb5`.
pub(crate) fn device_number(text: &str) -> Result<u32, Failure> {
    let number = |text: &str| {
        let name = text.strip_prefix("/dev/").unwrap_or(text);
        name.strip_prefix("ublkb").unwrap_or(name).parse().ok()
    };
    // Links to it are the device, as those of udev in /dev/disk are.
    let linked = || number(fs::canonicalize(text).ok()?.to_str()?);
    number(text).or_else(linked).ok_or_else(|| {
        Failure::new(FailureClass::Usage, format!("{text:?} is neither the number nor the path of a device"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_number_or_path() {
        for text in ["5", "ublkb5", "/dev/ublkb5"] {
            assert_eq!(device_number(text).unwrap(), 5);
        }
        for text in ["", "-1", "/dev/sda", "ublkb5p1", "99999999999"] {
            assert_eq!(device_number(text).unwrap_err().class(), FailureClass::Usage, "{text}");
        }
    }
}
