//! Docker's `config.json`: `auths`, `credsStore`, `credHelpers`, and which of them is meant for a repository.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
};

use base64::{Engine as _, alphabet, engine::general_purpose};
use serde::{Deserialize, de::IgnoredAny};

use super::{Credentials, CredentialsError};
use crate::registry::Secret;

/// Largest document that is read; a file with hundreds of registries is below 100 KiB.
pub const MAX_DOCKER_CONFIG_BYTES: u64 = 1 << 20;

/// The names under which docker's tools know Docker Hub.
const HUB_NAMES: [&str; 4] =
    ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];
/// What docker's helpers call Docker Hub.
const HUB_SERVER: &str = "https://index.docker.io/v1/";

/// Both paddings occur in files that other tools write.
const BASE64: general_purpose::GeneralPurpose = general_purpose::GeneralPurpose::new(
    &alphabet::STANDARD,
    general_purpose::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// Some editors begin a file with it.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The parts of docker's `config.json` that concern credentials. Whatever is `null` is empty, as in docker.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct DockerConfig {
    auths: Lenient<BTreeMap<String, Lenient<Entry>>>,
    #[serde(rename = "credsStore")]
    creds_store: Lenient<String>,
    #[serde(rename = "credHelpers")]
    cred_helpers: Lenient<BTreeMap<String, Lenient<String>>>,
}

/// A member that costs the others nothing if it is odd.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Lenient<T> {
    Good(Option<T>),
    Odd(IgnoredAny),
}

impl<T> Default for Lenient<T> {
    fn default() -> Self {
        Self::Good(None)
    }
}

impl<T> Lenient<T> {
    fn good(&self) -> Option<&T> {
        match self {
            Self::Good(value) => value.as_ref(),
            Self::Odd(_) => None,
        }
    }

    fn is_odd(&self) -> bool {
        matches!(self, Self::Odd(_))
    }
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

/// The host of a repository, as keys name it.
#[derive(Debug, Clone, Copy)]
pub struct KeyHost<'a> {
    /// Host, with its port unless that is the scheme's own.
    pub host: &'a str,
    /// The scheme's own port, which keys may name.
    pub default_port: u16,
}

impl DockerConfig {
    /// Reads the document.
    ///
    /// # Errors
    /// The line at which parsing stopped; the parser's own message could quote a secret.
    pub fn parse(text: &[u8]) -> Result<Self, usize> {
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(text).map_err(|error| error.line())
    }

    /// Keys of `auths` and `credHelpers` whose values cannot be used, and these and `credsStore` themselves.
    pub fn odd_keys(&self) -> impl Iterator<Item = &str> {
        let auths = self.auths.good().into_iter().flatten();
        let auths = auths.filter(|(_, entry)| entry.is_odd() || entry.good().is_some_and(Entry::is_odd));
        let helpers = self.cred_helpers.good().into_iter().flatten();
        let helpers = helpers.filter(|(_, helper)| helper.is_odd());
        let whole = [
            ("auths", self.auths.is_odd()),
            ("credsStore", self.creds_store.is_odd()),
            ("credHelpers", self.cred_helpers.is_odd()),
        ];
        let whole = whole.into_iter().filter_map(|(key, is_odd)| is_odd.then_some(key));
        auths.map(|(key, _)| key.as_str()).chain(helpers.map(|(key, _)| key.as_str())).chain(whole)
    }

    /// The credentials in the file for a repository: the entry with the longest matching path wins.
    #[must_use]
    pub fn credentials(&self, host: KeyHost<'_>, repository: &str) -> Credentials {
        let mut best: Option<(usize, Credentials)> = None;
        for (key, entry) in self.auths.good().into_iter().flatten() {
            let Some(entry) = entry.good() else { continue };
            let Some(length) = match_length(key, host, repository) else { continue };
            if best.as_ref().is_some_and(|(longest, _)| *longest >= length) {
                continue;
            }
            if let Some(credentials) = entry.credentials() {
                best = Some((length, credentials));
            }
        }
        best.map_or(Credentials::Anonymous, |(_, credentials)| credentials)
    }

    /// The helper program for a repository and the name of the server to ask it for. A helper of the host goes before
    /// the general store, as in docker.
    #[must_use]
    pub fn helper(&self, host: KeyHost<'_>, repository: &str) -> Option<(String, String)> {
        let own = self
            .cred_helpers
            .good()
            .into_iter()
            .flatten()
            .filter_map(|(key, helper)| match helper {
                Lenient::Good(helper) => Some((match_length(key, host, repository)?, key, helper.as_deref())),
                Lenient::Odd(_) => None,
            })
            .max_by_key(|(length, ..)| *length);
        if let Some((_, key, helper)) = own {
            // One without a name means the file, also where there is a general store.
            let helper = helper.filter(|helper| !helper.is_empty())?;
            let server = if is_hub(host.host) { HUB_SERVER.to_owned() } else { key.clone() };
            return Some((helper.to_owned(), server));
        }
        let store = self.creds_store.good().filter(|store| !store.is_empty())?;
        // The store knows an entry under the name that docker login was given, which `auths` repeats.
        let known = self
            .auths
            .good()
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter_map(|key| Some((match_length(key, host, repository)?, key)))
            .max_by_key(|(length, _)| *length);
        let server = match known {
            Some((_, key)) => key.clone(),
            None if is_hub(host.host) => HUB_SERVER.to_owned(),
            None => host.host.to_owned(),
        };
        Some((store.clone(), server))
    }
}

impl Entry {
    fn credentials(&self) -> Option<Credentials> {
        let shown = |secret: &Option<Secret>| secret.clone().filter(|secret| !secret.expose().is_empty());
        if let Some(token) = shown(&self.registrytoken) {
            return Some(Credentials::RegistryToken(token));
        }
        if let Some(token) = shown(&self.identitytoken) {
            return Some(Credentials::IdentityToken(token));
        }
        if let Some(auth) = shown(&self.auth) {
            // Tools wrap it after 76 characters; docker's decoder passes over the ends of lines, too.
            let auth: String = auth.expose().chars().filter(|char| !char.is_ascii_whitespace()).collect();
            let text = String::from_utf8(BASE64.decode(auth).ok()?).ok()?;
            let (username, password) = text.split_once(':')?;
            // Docker ends the password at a NUL, which old versions padded with.
            let password = Secret::new(password.trim_end_matches('\0'));
            return Some(Credentials::Basic { username: username.to_owned(), password });
        }
        // Access keys have no user.
        let username = self.username.clone().unwrap_or_default();
        Some(Credentials::Basic { username, password: shown(&self.password)? })
    }

    /// Whether there is something in it that gives no credentials. Without a password it is one that a helper keeps.
    fn is_odd(&self) -> bool {
        self.auth.as_ref().is_some_and(|auth| !auth.expose().is_empty()) && self.credentials().is_none()
    }
}

/// Reads the file; `None` where there is none.
pub(super) async fn read(path: PathBuf) -> Result<Option<DockerConfig>, CredentialsError> {
    let shown_path = path.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        File::open(&path)?.take(MAX_DOCKER_CONFIG_BYTES + 1).read_to_end(&mut text)?;
        Ok(text)
    });
    let text = match reading.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped))) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CredentialsError::File { path: shown_path, source }),
    };
    let refuse = |line| CredentialsError::Document { origin: shown_path.display().to_string(), line };
    if text.len() as u64 > MAX_DOCKER_CONFIG_BYTES {
        return Err(refuse(0));
    }
    DockerConfig::parse(&text).map(Some).map_err(refuse)
}

/// How long the path of `key` is if it names `host/repository` or a part before a slash of it.
fn match_length(key: &str, host: KeyHost<'_>, repository: &str) -> Option<usize> {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    let (key_host, key_path) = key.split_once('/').unwrap_or((key, ""));
    let default_port = format!(":{}", host.default_port);
    let without_port = key_host.strip_suffix(&default_port).unwrap_or(key_host);
    let same_host =
        without_port.eq_ignore_ascii_case(host.host) || (is_hub(host.host) && is_hub(without_port));
    if !same_host {
        return None;
    }
    let rest = repository.strip_prefix(key_path)?;
    let whole_part = key_path.is_empty() || rest.is_empty() || rest.starts_with('/');
    whole_part.then_some(key_path.len())
}

fn is_hub(host: &str) -> bool {
    HUB_NAMES.iter().any(|name| name.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(config: &str, host: &str, repository: &str) -> String {
        let host = KeyHost { host, default_port: 443 };
        match DockerConfig::parse(config.as_bytes()).unwrap().credentials(host, repository) {
            Credentials::Anonymous => "anonymous".to_owned(),
            Credentials::Basic { username, password } => format!("{username}:{}", password.expose()),
            Credentials::IdentityToken(token) => format!("token {}", token.expose()),
            Credentials::RegistryToken(token) => format!("bearer {}", token.expose()),
        }
    }

    #[test]
    fn the_longest_path_wins_and_a_path_ends_at_a_slash() {
        let config = r#"{"auths":{
            "r:5000": {"username":"host","password":"p"},
            "r:5000/team": {"auth":"dGVhbTpwOnE"},
            "https://r:5000/team/app/": {"username":"app","password":"p"},
            "r:5000/empty": {}
        }}"#;
        assert_eq!(user(config, "r:5000", "other"), "host:p");
        assert_eq!(user(config, "r:5000", "team/x"), "team:p:q");
        assert_eq!(user(config, "r:5000", "teams"), "host:p");
        assert_eq!(user(config, "r:5000", "team/app"), "app:p");
        assert_eq!(user(config, "r:5000", "team/app/deep"), "app:p");
        assert_eq!(user(config, "r:5000", "empty/x"), "host:p");
        assert_eq!(user(config, "r", "team"), "anonymous");
    }

    #[test]
    fn docker_hub_is_found_under_all_its_names() {
        let config = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#;
        assert_eq!(user(config, "registry-1.docker.io", "library/x"), "u:p");
        assert_eq!(user(config, "docker.io", "library/x"), "u:p");
    }

    #[test]
    fn auth_goes_before_username_and_broken_entries_are_skipped() {
        let config = r#"{"auths":{"r":{"auth":"dTpw","username":"x","password":"y"}}}"#;
        assert_eq!(user(config, "r", "a"), "u:p");
        assert_eq!(user(r#"{"auths":{"r":{"auth":"no colon"}}}"#, "r", "a"), "anonymous");
        assert_eq!(user(r#"{"auths":{"r":{"auth":"dXA="}}}"#, "r", "a"), "anonymous");
        assert_eq!(user(r#"{"auths":{"r":{"identitytoken":"t"}}}"#, "r", "a"), "token t");
    }

    #[test]
    fn what_docker_reads_is_read_and_what_is_odd_costs_nothing_else() {
        let lines = "dTpr\\nazpr\\r\\na2s=";
        for entry in [
            &format!(r#""r":{{"auth":"{lines}"}}"#),
            r#""r:443":{"auth":"dTpra2s6a2tr"}"#,
            r#""https://r:443/v1/":{"auth":"dTpra2s6a2tr"}"#,
            r#""r":{"auth":"dTpra2s6a2tr","username":null,"identitytoken":null,"x":[1]}"#,
        ] {
            for other in [r#""o":null"#, r#""o":7"#, r#""o":{"auth":7}"#, r#""o":{"auth":"?"}"#] {
                let config = format!("\u{feff}{{\"auths\":{{{other},{entry}}},\"credHelpers\":null}}");
                let found = user(&config, "r", "a");
                assert!(found.starts_with("u:k"), "{config}: {found}");
                let config = DockerConfig::parse(config.as_bytes()).unwrap();
                let odd: Vec<&str> = config.odd_keys().collect();
                assert_eq!(odd, if other.contains("null") { &[][..] } else { &["o"] }, "{other}");
            }
        }
        assert_eq!(user(r#"{"auths":{"r:80":{"auth":"dTpw"}}}"#, "r", "a"), "anonymous", "of another scheme");
        assert_eq!(user(r#"{"auths":{"r":{"registrytoken":"t"}}}"#, "r", "a"), "bearer t");
        assert_eq!(user(r#"{"auths":{"r":{"username":"","password":"p"}}}"#, "r", "a"), ":p");
        assert_eq!(user(r#"{"auths":null,"credsStore":null}"#, "r", "a"), "anonymous");
        for nothing in ["", " \n", "{}", r#"{"auths":[1]}"#] {
            assert_eq!(user(nothing, "r", "a"), "anonymous", "{nothing}");
        }
        for (odd, key) in [(r#""credHelpers":[]"#, "credHelpers"), (r#""credsStore":7"#, "credsStore")] {
            let config = format!(r#"{{"auths":{{"r":{{"auth":"dTpw"}}}},{odd}}}"#);
            assert_eq!(user(&config, "r", "a"), "u:p", "{odd}");
            let config = DockerConfig::parse(config.as_bytes()).unwrap();
            assert_eq!(config.odd_keys().collect::<Vec<_>>(), [key]);
        }
    }

    #[test]
    fn a_helper_that_is_empty_means_the_file() {
        for (helpers, store) in [
            (r#"{"r":""}"#, None),
            (r#"{"r":null}"#, None),
            (r#"{"r":7}"#, Some("desktop")),
            ("null", Some("desktop")),
        ] {
            let config = format!(r#"{{"credsStore":"desktop","credHelpers":{helpers}}}"#);
            let config = DockerConfig::parse(config.as_bytes()).unwrap();
            let helper = config.helper(KeyHost { host: "r", default_port: 443 }, "a");
            assert_eq!(helper.map(|(helper, _)| helper).as_deref(), store, "{helpers}");
        }
    }

    #[test]
    fn a_helper_of_the_host_goes_before_the_store() {
        let config =
            r#"{"auths":{"https://b.example":{}},"credsStore":"desktop","credHelpers":{"a.example":"ecr"}}"#;
        let config = DockerConfig::parse(config.as_bytes()).unwrap();
        let asked = |host| config.helper(KeyHost { host, default_port: 443 }, "x").unwrap();
        assert_eq!(asked("a.example"), ("ecr".to_owned(), "a.example".to_owned()));
        assert_eq!(asked("b.example"), ("desktop".to_owned(), "https://b.example".to_owned()));
        assert_eq!(asked("c.example"), ("desktop".to_owned(), "c.example".to_owned()));
        assert_eq!(asked("registry-1.docker.io"), ("desktop".to_owned(), HUB_SERVER.to_owned()));
    }
}
