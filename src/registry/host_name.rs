//! The name by which an operator means a host in settings.

use std::{borrow::Borrow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{HostNameError, Repository, location};

/// Names of Docker Hub that lead to [`HUB`], which is the host that is asked.
const HUB_NAMES: [&str; 2] = ["docker.io", "index.docker.io"];
const HUB: &str = "registry-1.docker.io";

/// All names under which users may know the host that URLs call `host`.
pub(super) fn names_of(host: &str) -> impl Iterator<Item = &str> {
    let hub = HUB_NAMES.iter().copied().filter(move |_| host == HUB);
    std::iter::once(host).chain(hub)
}

/// `HOST` or `HOST:PORT`, in the form that URLs have: lower case, IPv6 in brackets, other alphabets in punycode. A scheme before it
/// and a slash after it are taken and mean nothing, since people copy them along.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl HostName {
    /// That of the registry of `repository`.
    #[must_use]
    pub fn of(repository: &Repository) -> Self {
        Self(repository.host())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        let bare = match text.split_once("://") {
            Some(("http" | "https", bare)) => bare,
            Some(_) => return Err(HostNameError::Scheme),
            None => text,
        };
        // One that is IPv6 without brackets has more than the colon before a port.
        let bracketed = bare.parse::<std::net::Ipv6Addr>().map(|address| format!("[{address}]"));
        let authority = bracketed.as_deref().unwrap_or(bare);
        // A URL drops the port that is its scheme's own, and no port is both schemes' own.
        let [url, other] =
            ["https", "http"].map(|scheme| location::parse(&format!("{scheme}://{authority}")));
        let (url, port) = (url?, other?.port());
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(HostNameError::Path);
        }
        let host = url.host_str().map(|host| if HUB_NAMES.contains(&host) { HUB } else { host });
        let host = host.unwrap_or_default();
        Ok(Self(match url.port().or(port) {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }))
    }
}

impl TryFrom<String> for HostName {
    type Error = HostNameError;

    fn try_from(text: String) -> Result<Self, HostNameError> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

impl Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_host_is_the_same_name() {
        for (text, name) in [
            ("registry.example", "registry.example"),
            ("Registry.Example:5000", "registry.example:5000"),
            ("http://registry.example:5000", "registry.example:5000"),
            ("https://registry.example/", "registry.example"),
            ("registry.example:80", "registry.example:80"),
            ("registry.example:443", "registry.example:443"),
            ("https://registry.example:443/", "registry.example:443"),
            ("[::1]:5000", "[::1]:5000"),
            ("::1", "[::1]"),
            ("[0:0::1]", "[::1]"),
            ("b\u{fc}cher.example", "xn--bcher-kva.example"),
            ("docker.io", "registry-1.docker.io"),
        ] {
            let parsed: HostName = text.parse().unwrap();
            assert_eq!(parsed.as_str(), name, "{text}");
            assert_eq!(name.parse::<HostName>().unwrap(), parsed);
        }
    }

    #[test]
    fn what_is_more_or_less_than_a_host_is_refused() {
        for text in [
            "",
            "http://",
            "ftp://a",
            "a/v2/",
            "https://index.docker.io/v1/",
            "a?b",
            "a#b",
            "u:p@a",
            "a:b",
            "a:65536",
            "a b",
            "[::1",
        ] {
            assert!(text.parse::<HostName>().is_err(), "{text}");
        }
    }
}
