//! Many devices at once: what a file of specifications says, and what came of each.

use std::{collections::HashMap, fs::File, io::Read, path::Path};

use serde::Serialize;
use stratabd::server::{
    api::{
        Client,
        types::{AddDevice, DeviceInfo, ErrorBody, ImageSpec},
    },
    config::Config,
    failure::{Failure, FailureClass},
};

use crate::{
    ordinary::{self, ConvertedImage},
    output::Output,
    parallel,
    progress::Progress,
};

/// Thousands of devices with hundreds of layers each.
const MAX_BYTES: u64 = 64 << 20;

/// What became of all.
#[derive(Debug, Default, Serialize)]
struct Additions {
    devices: Vec<DeviceInfo>,
    failed: Vec<Failed>,
}

/// One that could not be made.
#[derive(Debug, Serialize)]
struct Failed {
    /// Which one, from 0.
    number: usize,
    error: ErrorBody,
}

/// Has the daemon make all of `requests`. One that fails does not hold up the others. Ordinary images are converted with the settings
/// `conversions`, if there are any.
pub(crate) fn add(
    client: &Client,
    requests: &[AddDevice],
    conversions: Option<Config>,
    output: &Output,
) -> Result<(), Failure> {
    let mut added = attach(client, requests);
    if let Some(config) = &conversions
        && added.iter().any(is_of_ordinary_image)
    {
        ordinary::tidy(config, output);
        attach_converted(client, requests, config, &mut added);
        ordinary::tidy(config, output);
    }
    let mut additions = Additions::default();
    for (number, added) in added.into_iter().enumerate() {
        match added {
            Ok(info) => additions.devices.push(info),
            Err(failure) => {
                let error = ErrorBody::of(&failure);
                additions.failed.push(Failed { number, error });
            }
        }
    }
    output.print(&additions, |additions| {
        additions.devices.iter().map(|info| format!("{}\n", info.path.display())).collect()
    })?;
    additions.failure(requests.len()).map_or(Ok(()), Err)
}

fn attach(client: &Client, requests: &[AddDevice]) -> Vec<Result<DeviceInfo, Failure>> {
    let _waiting = Progress::waiting("attaching");
    parallel::for_each(requests, |request| client.post::<_, DeviceInfo>("/v1/devices", request))
}

fn is_of_ordinary_image(added: &Result<DeviceInfo, Failure>) -> bool {
    added.as_ref().is_err_and(Failure::is_of_ordinary_image)
}

/// Converts the ordinary images among those that could not be added, each once, and adds them again.
fn attach_converted(
    client: &Client,
    requests: &[AddDevice],
    config: &Config,
    added: &mut [Result<DeviceInfo, Failure>],
) {
    let mut images: HashMap<(&ImageSpec, Option<&str>), Result<ConvertedImage, Failure>> = HashMap::new();
    let (mut again, mut slots) = (Vec::new(), Vec::new());
    for (request, added) in requests.iter().zip(added).filter(|(_, added)| is_of_ordinary_image(added)) {
        let platform = request.platform.as_deref();
        let converted = images
            .entry((&request.image, platform))
            .or_insert_with(|| ordinary::convert_alone(config.clone(), &request.image, platform));
        match converted {
            Ok(converted) => {
                again.push(converted.request(request));
                slots.push(added);
            }
            Err(failure) => *added = Err(Failure::new(failure.class(), failure.full_text())),
        }
    }
    for (slot, result) in slots.into_iter().zip(attach(client, &again)) {
        *slot = result;
    }
}

impl Additions {
    /// All failures as one, of the class of the first.
    fn failure(&self, wanted: usize) -> Option<Failure> {
        let first = self.failed.first()?;
        let text = format!(
            "{} of {wanted} devices could not be made, the first of them number {}: {}",
            self.failed.len(),
            first.number,
            first.error.message
        );
        Some(Failure::new(first.error.class, text))
    }
}

/// What the file at `path`, or standard input for `-`, asks for: a line is the request of the control API as JSON, the path of a
/// configuration, which ends in `.json`, or the reference of an image. Empty lines and those that begin with `#` are nothing. What a
/// line does not say is as in `common`.
pub(crate) fn read(path: &Path, common: &AddDevice) -> Result<Vec<AddDevice>, Failure> {
    let failed = |source: std::io::Error| {
        let class = match source.kind() {
            std::io::ErrorKind::NotFound => FailureClass::NotFound,
            _ => FailureClass::Internal,
        };
        Failure::with_source(class, format!("{}: cannot read it", path.display()), source)
    };
    let mut text = String::new();
    let source: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(File::open(path).map_err(failed)?),
    };
    source.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    parse(&text, common).map_err(|(line, rule)| {
        Failure::new(FailureClass::Usage, format!("{}: line {line}: {rule}", path.display()))
    })
}

fn parse(text: &str, common: &AddDevice) -> Result<Vec<AddDevice>, (usize, String)> {
    let lines = text.lines().map(str::trim).enumerate();
    let wanted = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    wanted
        .map(|(number, line)| request(line, common).map_err(|rule| (number.saturating_add(1), rule)))
        .collect()
}

fn request(line: &str, common: &AddDevice) -> Result<AddDevice, String> {
    if line.starts_with('{') {
        return serde_json::from_str(line).map_err(|error| error.to_string());
    }
    let image = match line.ends_with(".json") {
        true => {
            let path = std::path::absolute(line).map_err(|error| error.to_string())?;
            ImageSpec::Config(path)
        }
        false => ImageSpec::Reference(line.to_owned()),
    };
    Ok(AddDevice { image, ..common.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_request_a_configuration_or_a_reference() {
        let common = AddDevice { depth: Some(9), ..AddDevice::of(ImageSpec::Reference(String::new())) };
        let text = "# two of one\nr.example/a:b\n\n  /i/config.v1.json \n{\"image\":{\"layers\":[\"/l\"]},\"id\":4}\n";
        let parsed = parse(text, &common).unwrap();
        let images: Vec<String> = parsed.iter().map(|request| request.image.to_string()).collect();
        assert_eq!(images, ["r.example/a:b", "/i/config.v1.json", "/l"]);
        let asked: Vec<_> = parsed.iter().map(|request| (request.depth, request.id)).collect();
        assert_eq!(asked, [(Some(9), None), (Some(9), None), (None, Some(4))]);
        let (line, rule) = parse("a\n{\"image\":1}", &common).unwrap_err();
        assert_eq!(line, 2, "{rule}");
    }
}
