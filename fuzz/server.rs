//! The fuzz targets of the files that operators and upstream's snapshotter write.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};
use stratabd::server::{
    api::{
        AnswerHead,
        types::{AddDevice, ForkDevice, RecoverDevice, ResizeDevice, SetDevice, SnapshotDevice},
    },
    config::{Config, OverlaybdConfig, Overrides},
    image_config::{ImageConfig, MAX_LAYERS, UpperFiles},
    next_config::text_over,
    state::Record,
};

use super::check_message;

/// The input is a `stratabd.toml`.
pub fn server_config(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    match Config::parse("stratabd.toml", text, &Overrides::default()) {
        Ok(config) => {
            assert!(config.socket_mode().is_some_and(|mode| mode <= 0o777));
            assert!(config.device.queues > 0 && config.device.depth > 0);
        }
        Err(error) => check_message(&error),
    }
}

/// The input is a `config.v1.json`.
pub fn server_image_config(input: &[u8]) {
    match ImageConfig::parse("config.v1.json", input) {
        Ok(image) => {
            let layers = image.lowers.len() + usize::from(image.upper.is_some());
            assert!((1..=MAX_LAYERS).contains(&layers));
            for lower in &image.lowers {
                assert!(lower.digest.is_some() || lower.local_candidates().next().is_some());
                assert!(lower.dir.as_ref().is_none_or(|dir| !dir.as_os_str().is_empty()));
            }
        }
        Err(error) => check_message(&error),
    }
}

/// The input is the `config.v1.json` of a device of which a snapshot is taken.
pub fn server_next_config(input: &[u8]) {
    let [sealed, data, index] = ["/a/upper.data", "/b/upper.data", "/b/upper.index"].map(Path::new);
    let upper = UpperFiles { data: data.to_owned(), index: index.to_owned() };
    match text_over(Path::new("config.v1.json"), input, sealed, &upper) {
        Ok(text) => {
            let next = ImageConfig::parse("config.v1.json", &text).expect("it was checked");
            assert_eq!(next.upper, Some(upper));
            let (last, below) = next.lowers.split_last().expect("there is the one that was written");
            assert_eq!((last.file.as_deref(), &last.digest), (Some(sealed), &None));
            if let Ok(old) = ImageConfig::parse("config.v1.json", input) {
                assert_eq!((below, &next.repo_blob_url), (old.lowers.as_slice(), &old.repo_blob_url));
            }
        }
        Err(error) => check_message(&error),
    }
}

/// The input is an `overlaybd.json`.
pub fn server_overlaybd_config(input: &[u8]) {
    match OverlaybdConfig::parse("overlaybd.json", input) {
        Ok(theirs) => {
            let mut config = Config::default();
            theirs.apply(&mut config);
            // What is not taken over is listed, by a pointer into the document.
            assert!(theirs.unmapped.iter().all(|unmapped| unmapped.pointer.starts_with('/')));
        }
        Err(error) => check_message(&error),
    }
}

/// The input is a device's record in the state directory.
pub fn server_record(input: &[u8]) {
    match Record::decode(input) {
        Ok(record) => {
            let again = Record::decode(&record.encode().expect("a record can be written"));
            assert_eq!(again.expect("what was written can be read"), record);
        }
        Err(error) => check_message(&error),
    }
}

/// The input is the body of a request, whichever it is.
pub fn server_api_request(input: &[u8]) {
    same_again::<AddDevice>(input);
    same_again::<SnapshotDevice>(input);
    same_again::<ForkDevice>(input);
    same_again::<ResizeDevice>(input);
    same_again::<SetDevice>(input);
    same_again::<RecoverDevice>(input);
}

/// The input is what a program that is asked for something answers.
pub fn server_api_answer(input: &[u8]) {
    match AnswerHead::decode(input) {
        Ok(Some(head)) => {
            assert!(head.status >= 200 && head.len <= input.len());
            // What comes first decides, and no less of it is taken for an answer.
            let (whole, less) = (input.get(..head.len), input.get(..head.len.saturating_sub(1)));
            assert_eq!(whole.and_then(|whole| AnswerHead::decode(whole).ok().flatten()), Some(head));
            assert!(less.is_none_or(|less| !matches!(AnswerHead::decode(less), Ok(Some(_)))));
        }
        Ok(None) => {}
        Err(error) => check_message(&error),
    }
}

/// What was read can be written, and reads the same.
fn same_again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(input: &[u8]) {
    match serde_json::from_slice::<T>(input) {
        Ok(request) => {
            let again = serde_json::to_vec(&request).expect("a request can be written");
            assert_eq!(serde_json::from_slice::<T>(&again).ok(), Some(request));
        }
        Err(error) => check_message(&error),
    }
}
