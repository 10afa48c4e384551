//! Which hosts are reached without the proxy: the forms of `NO_PROXY` that Go's programs and curl agree on.

use std::net::IpAddr;

use http::Uri;

/// The entries of one `NO_PROXY`.
#[derive(Debug, Default)]
pub(super) struct NoProxy(Vec<Entry>);

/// One of them, with the port that it is for if it names one.
#[derive(Debug)]
struct Entry {
    pattern: Pattern,
    port: Option<u16>,
}

#[derive(Debug)]
enum Pattern {
    Everything,
    Network {
        address: IpAddr,
        prefix: u8,
    },
    /// A name and all below it.
    Domain(String),
    /// All below a name, which begins with a dot here.
    Below(String),
}

impl NoProxy {
    /// Reads entries that are separated by commas: `*`, an address, a network as `10.0.0.0/8`, a name, which means all below it as
    /// well, and `.name` or `*.name` for these alone; each but a network may end in a port.
    pub(super) fn parse(text: &str) -> Self {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        Self(entries.map(Entry::parse).collect())
    }

    pub(super) fn matches(&self, target: &Uri) -> bool {
        let Some(host) = target.host() else { return false };
        let host =
            host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        let default_port = if target.scheme_str() == Some("https") { 443 } else { 80 };
        let port = target.port_u16().unwrap_or(default_port);
        let is_at = |entry: &Entry| entry.port.is_none_or(|wanted| wanted == port);
        self.0.iter().any(|entry| is_at(entry) && entry.pattern.matches(&host))
    }
}

impl Entry {
    fn parse(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        if text == "*" {
            return Self { pattern: Pattern::Everything, port: None };
        }
        if let Some(pattern) = network(&text) {
            return Self { pattern, port: None };
        }
        let (host, port) = match text.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
            Some((host, Ok(port))) => (host, Some(port)),
            _ => (text.as_str(), None),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        let pattern = match host {
            host if let Some(pattern) = network(host) => pattern,
            host if host.starts_with('.') => Pattern::Below(host.to_owned()),
            host => Pattern::Domain(host.trim_end_matches('.').to_owned()),
        };
        Self { pattern, port }
    }
}

/// An address, or a network by its prefix.
fn network(text: &str) -> Option<Pattern> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.unwrap_or(most);
    (prefix <= most).then_some(Pattern::Network { address, prefix })
}

impl Pattern {
    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Network { address, prefix } => {
                host.parse::<IpAddr>().is_ok_and(|host| shares_prefix(host, *address, *prefix))
            }
            Self::Domain(name) => {
                host.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        }
    }
}

fn shares_prefix(one: IpAddr, other: IpAddr, prefix: u8) -> bool {
    let differing = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => return false,
    };
    differing >= u32::from(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_go_and_curl_agree_on_is_heeded() {
        for (list, target, is_direct) in [
            ("*", "http://10.1.2.3:5000/", true),
            ("127.0.0.1", "http://127.0.0.1:5000/", true),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/", true),
            ("127.0.0.1:5001", "http://127.0.0.1:5000/", false),
            ("10.0.0.0/8", "https://10.9.9.9/", true),
            ("10.0.0.0/8", "https://11.9.9.9/", false),
            ("0.0.0.0/0", "https://[::1]/", false),
            ("::1", "http://[::1]:5000/", true),
            ("[::1]:5000", "http://[::1]:5000/", true),
            ("fd00::/8", "http://[fd12::1]/", true),
            ("reg.example", "https://reg.example/", true),
            ("REG.example:443", "https://reg.example/", true),
            ("reg.example:80", "https://reg.example/", false),
            ("example", "https://a.reg.example/", true),
            ("example", "https://counterexample/", false),
            (".example", "https://reg.example/", true),
            (".example", "https://example/", false),
            ("*.example", "https://a.reg.example/", true),
            ("*.example", "https://example/", false),
            (" a , reg.example ", "https://reg.example/", true),
            ("", "https://reg.example/", false),
            ("10.0.0.0/99,x:y,:,[", "https://reg.example/", false),
        ] {
            let found = NoProxy::parse(list).matches(&Uri::from_static(target));
            assert_eq!(found, is_direct, "NO_PROXY={list:?} for {target}");
        }
    }
}
