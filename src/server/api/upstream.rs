//! The one request of upstream's own control API, with its parameters and its answers.

use std::{path::PathBuf, sync::Arc};

use hyper::StatusCode;
use serde::Serialize;
use url::form_urlencoded;

use super::route::{Answer, json};
use crate::server::{
    daemon::{Daemon, SnapshotTarget},
    failure::{Failure, FailureClass},
};

#[derive(Serialize)]
struct Said {
    success: bool,
    message: String,
}

/// `/snapshot?dev_id=N&config=PATH`: the configuration at PATH, which puts an empty layer over the device's own, takes the place
/// of the device's. Here N is the number of the device.
pub(super) async fn snapshot(daemon: &Arc<Daemon>, query: &str) -> Answer {
    // A plus is a plus in a path, and no space as in a form.
    let query = query.replace('+', "%2B");
    let parameter = |name: &str| {
        let value = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name).last()?.1;
        Some(value.into_owned()).filter(|text| !text.is_empty())
    };
    let (Some(device), Some(config)) = (parameter("dev_id"), parameter("config")) else {
        return said(StatusCode::BAD_REQUEST, "dev_id and config are needed");
    };
    let taken = match device.parse() {
        Ok(id) => daemon.snapshot(id, SnapshotTarget::Config(PathBuf::from(config))).await.map(drop),
        Err(_) => Err(Failure::new(FailureClass::NotFound, format!("{device:?} is not a device's number"))),
    };
    match taken {
        Ok(()) => said(StatusCode::OK, "Snapshot created successfully"),
        Err(failure) if failure.class() == FailureClass::NotFound => {
            said(StatusCode::NOT_FOUND, &format!("Image file not found: {}", failure.full_text()))
        }
        Err(failure) => {
            let text = format!("Failed to create snapshot: {}", failure.full_text());
            said(StatusCode::INTERNAL_SERVER_ERROR, &text)
        }
    }
}

fn said(status: StatusCode, message: &str) -> Answer {
    json(status, &Said { success: status == StatusCode::OK, message: message.to_owned() })
}
