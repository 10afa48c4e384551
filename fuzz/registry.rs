//! The fuzz targets of the registry client: texts that registries, token servers and operators' files hold.

use std::time::{Duration, SystemTime};

use stratabd::{
    block::ByteRange,
    format::oci::{Digest, Layer},
    registry::{
        Challenge, ContentRange, Credentials, DockerConfig, ImageDocuments, ImageReference, KeyHost,
        MAX_SKIP_BYTES, MAX_URL_BYTES, Repository, locate, parse_challenge, parse_helper_answer,
        parse_refusal, parse_retry_after, parse_service_answer, parse_token, resolve_location, shown,
    },
};

use super::check_message;

/// The input is the value of `WWW-Authenticate`.
pub fn registry_challenge(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    match parse_challenge(text) {
        Ok(Challenge::Bearer { realm, service, scope }) => {
            // What was read can be written as one challenge and reads the same.
            let quoted = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
            let mut again = format!("Bearer realm=\"{}\"", quoted(&realm));
            for (name, value) in [("service", &service), ("scope", &scope)] {
                if let Some(value) = value {
                    again = format!("{again}, {name}=\"{}\"", quoted(value));
                }
            }
            let plain = [Some(&realm), service.as_ref(), scope.as_ref()];
            if again.len() <= 8192 && !plain.iter().flatten().any(|text| text.contains(char::is_control)) {
                assert_eq!(parse_challenge(&again), Ok(Challenge::Bearer { realm, service, scope }));
            }
        }
        Ok(_) => assert!(text.to_ascii_lowercase().contains("basic")),
        Err(error) => check_message(&error),
    }
}

/// The first byte chooses the status and the range asked for; the rest is `Content-Range`, a line break, and
/// `Content-Length`.
pub fn registry_content_range(input: &[u8]) {
    let Some((choice, text)) = input.split_first() else { return };
    let Ok(text) = str::from_utf8(text) else { return };
    let (range, length) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(parsed) = range.parse::<ContentRange>() {
        assert!(parsed.start <= parsed.last && parsed.last < parsed.total);
        let again = format!("bytes {}-{}/{}", parsed.start, parsed.last, parsed.total);
        assert_eq!(again.parse(), Ok(parsed));
    }
    let mut headers = http::HeaderMap::new();
    for (name, value) in [(http::header::CONTENT_RANGE, range), (http::header::CONTENT_LENGTH, length)] {
        if let Ok(value) = http::HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    let status = if choice & 0x80 == 0 { 206 } else { 200 };
    let status = http::StatusCode::from_u16(status).expect("both are statuses");
    let start = u64::from(choice & 0x7f) << 18;
    let size_bytes = start + 1000;
    let asked = ByteRange::between(start, start + 10);
    match locate(status, &headers, asked, size_bytes) {
        Ok(extent) if status == 206 => {
            let parsed: ContentRange = range.parse().expect("it was accepted");
            assert_eq!((parsed.start, parsed.last, parsed.total), (start, start + 9, size_bytes));
            assert_eq!((extent.skip, extent.len, extent.is_whole_body), (0, 10, true));
        }
        Ok(extent) => {
            assert_eq!((length.parse(), extent.skip, extent.len), (Ok(size_bytes), start, 10));
            assert!(extent.skip <= MAX_SKIP_BYTES);
        }
        Err(reason) => check_message(&reason),
    }
}

/// The first line is a repository; the rest is docker's `config.json`.
pub fn registry_docker_config(input: &[u8]) {
    let cut = input.iter().position(|byte| *byte == b'\n').unwrap_or_default();
    let (repository, config) = input.split_at(cut);
    let Ok(repository) = str::from_utf8(repository) else { return };
    let Ok(config) = DockerConfig::parse(config) else { return };
    assert!(config.odd_keys().all(|key| key.len() <= input.len()));
    for host in ["r.example:5000", "registry-1.docker.io"] {
        let host = KeyHost { host, default_port: 443 };
        let found = config.credentials(host, repository);
        check_secrecy(&found);
        if let Some((_, server)) = config.helper(host, repository) {
            assert!(!server.is_empty());
        }
    }
}

/// No form of a secret shows, unless it is the name of the type itself.
fn check_secrecy(credentials: &Credentials) {
    if let Credentials::Basic { password, .. } = credentials {
        let shown = format!("{credentials:?}");
        assert!(shown.contains("password: Secret(..)") || password.expose().is_empty(), "{shown}");
    }
}

/// The input is what a credential helper wrote.
pub fn registry_program_answer(input: &[u8]) {
    if let Some(found) = parse_helper_answer(input) {
        check_secrecy(&found);
        let is_token = matches!(&found, Credentials::Basic { username, .. } if username == "<token>");
        assert!(found != Credentials::Anonymous && !is_token);
    }
}

/// The input is a credential service's answer.
pub fn registry_service_answer(input: &[u8]) {
    match parse_service_answer(input) {
        Ok(Some(config)) => {
            check_secrecy(&config.credentials(KeyHost { host: "r.example", default_port: 443 }, "team/app"))
        }
        Ok(None) => {}
        Err(line) => assert!(line <= input.len() + 1),
    }
}

/// The input is the value of `Retry-After`.
pub fn registry_retry_after(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    if let Some(wait) = parse_retry_after(text, now) {
        assert!(wait <= Duration::from_secs(300));
    }
}

/// The input is an image reference.
pub fn registry_reference(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    match text.parse::<ImageReference>() {
        Ok(reference) => {
            assert_eq!(reference.to_string().parse().as_ref(), Ok(&reference));
            assert!(!reference.tag_or_digest().contains(['/', '?', '#', '%']));
            if let Ok(repository) = Repository::new(reference.registry_host(), reference.repository(), false)
            {
                assert_eq!(repository.name(), reference.repository());
            }
        }
        Err(error) => check_message(&error),
    }
}

/// The input is a `Location` or a blob's URL.
pub fn registry_location(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let base = url::Url::parse("https://r.example:5000/v2/a/blobs/x?old").expect("it is a URL");
    match resolve_location(&base, text) {
        Ok(url) => {
            assert!(matches!(url.scheme(), "http" | "https") && url.has_host());
            assert!(url.username().is_empty() && url.password().is_none() && url.fragment().is_none());
            assert!(url.as_str().len() <= MAX_URL_BYTES && !shown(&url).contains('?'));
        }
        Err(error) => check_message(&error),
    }
    if let Ok(repository) = Repository::from_blob_url(text) {
        assert!(!repository.name().is_empty() && !repository.name().contains(".."));
        // What a configuration is written with is read as the same.
        assert_eq!(Repository::from_blob_url(&repository.blobs_url()).as_ref(), Ok(&repository));
    }
    if let Ok(repository) = Repository::from_upload_url(text) {
        assert_eq!(Repository::from_blob_url(&repository.blobs_url()), Ok(repository));
    }
}

/// The input is the body of an answer that refuses.
pub fn registry_refusal(input: &[u8]) {
    if let Some(words) = parse_refusal(input) {
        assert!(!words.is_empty() && !words.chars().any(char::is_control), "{words:?}");
        // Three errors, each of a code and a message that are cut.
        assert!(words.chars().count() <= 3 * 2 * 300, "{}", words.len());
    }
}

/// The input is a token server's answer.
pub fn registry_token(input: &[u8]) {
    if let Ok((token, life)) = parse_token(input) {
        assert!(!token.expose().is_empty() && token.expose().bytes().all(|byte| byte.is_ascii_graphic()));
        assert!(life <= Duration::from_secs(24 * 60 * 60));
    }
}

/// The input is a manifest, a NUL, and the configuration that it should have; a layer is put on that image.
pub fn registry_next_image(input: &[u8]) {
    let cut = input.iter().position(|byte| *byte == 0).unwrap_or(input.len());
    let (manifest, config) = input.split_at(cut);
    let config = config.get(1..).unwrap_or_default();
    let base = ImageDocuments { manifest: manifest.to_vec().into(), config: config.to_vec().into() };
    let layer = Layer { digest: Digest::from_hash([7; 32]), size_bytes: 4096, verity: None };
    match base.with_layer(layer) {
        Ok(next) => {
            assert_eq!(next.layers.last(), Some(&layer));
            let again = base.with_layer(layer).expect("it has just been made");
            assert_eq!((&next.digest, &next.config_digest), (&again.digest, &again.config_digest));
            if let Ok(third) = next.documents.with_layer(layer) {
                assert_eq!(third.layers, [next.layers, vec![layer]].concat());
                assert_eq!(third.media_type, next.media_type);
            }
        }
        Err(error) => check_message(&error),
    }
}
