//! Image references: `registry/repository[:tag][@digest]`, with docker's short names.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use oci_spec::distribution::Reference;

use super::{ReferenceError, location::is_repository};

/// A registry name, a repository of 255 bytes, a tag of 128 and a digest fit well below, so that a short reference is still one
/// when what it leaves out is written down.
pub const MAX_REFERENCE_BYTES: usize = 1024;

/// A name in the DNS (RFC 1035, section 2.3.4), a colon and a port.
const MAX_REGISTRY_BYTES: usize = 253 + 1 + 5;

/// The name of an image. `busybox` means `docker.io/library/busybox:latest`, as in docker and containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReference(Reference);

impl ImageReference {
    /// The registry as written, such as `docker.io` or `localhost:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    /// The host to connect to, which for `docker.io` is another one.
    #[must_use]
    pub fn registry_host(&self) -> &str {
        match self.0.registry() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            other => other,
        }
    }

    /// The repository, such as `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        self.0.repository()
    }

    /// What to ask the registry for: the digest where there is one, or the tag.
    #[must_use]
    pub fn tag_or_digest(&self) -> &str {
        self.0.digest().or_else(|| self.0.tag()).unwrap_or("latest")
    }

    /// The reference, with its tag, that always means `digest`: what this one names may be an index, or move.
    #[must_use]
    pub fn pinned(&self, digest: impl fmt::Display) -> String {
        let text = self.to_string();
        let name = text.split_once('@').map_or(text.as_str(), |(name, _)| name);
        format!("{name}@{digest}")
    }

    /// The digest, if the reference has one.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.0.digest()
    }
}

impl FromStr for ImageReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > MAX_REFERENCE_BYTES {
            return Err(ReferenceError::TooLong(text.len()));
        }
        let read =
            |text: &str| Reference::try_from(text).map_err(|error| ReferenceError::Syntax(error.to_string()));
        if is_identifier(text) {
            let text = "64 hexadecimal digits are the identifier of an image to docker, and no name: \
                        a digest is given as NAME@sha256:DIGITS";
            return Err(ReferenceError::Syntax(text.to_owned()));
        }
        let parsed = match ipv6_host(text).or_else(|| capital_host(text)) {
            Some((host, rest)) => at_host(host, read(&format!("host.invalid{rest}"))?),
            None => read(text)?,
        };
        if !is_repository(parsed.repository()) {
            return Err(ReferenceError::Syntax("the repository has parts other than [a-z0-9._-]".to_owned()));
        }
        if parsed.registry().len() > MAX_REGISTRY_BYTES {
            let text = format!("the registry's name has more than {MAX_REGISTRY_BYTES} bytes");
            return Err(ReferenceError::Syntax(text));
        }
        Ok(Self(parsed))
    }
}

/// A host like `[::1]:5000` at the beginning of `text`, which the library does not take for one, and what follows it.
fn ipv6_host(text: &str) -> Option<(&str, &str)> {
    let (address, after) = text.strip_prefix('[')?.split_once(']')?;
    address.parse::<Ipv6Addr>().ok()?;
    let (port, _) = after.split_once('/')?;
    let is_port = port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    (port.is_empty() || is_port).then_some(())?;
    text.split_at_checked(text.len() - after.len() + port.len())
}

/// A first part with capitals, and what follows it: no repository has any, so docker takes it for a host. The library does not.
fn capital_host(text: &str) -> Option<(&str, &str)> {
    let end = text.find('/')?;
    let (host, rest) = text.split_at_checked(end)?;
    let is_word = !host.starts_with('-') && !host.ends_with('-');
    let is_host = is_word && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (is_host && host.bytes().any(|byte| byte.is_ascii_uppercase())).then_some((host, rest))
}

/// What docker never takes for a name, so that it can be told from an identifier.
fn is_identifier(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The same reference at another host.
fn at_host(host: &str, reference: Reference) -> Reference {
    let (host, name) = (host.to_owned(), reference.repository().to_owned());
    match (reference.tag(), reference.digest()) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(host, name, tag.to_owned(), digest.to_owned())
        }
        (_, Some(digest)) => Reference::with_digest(host, name, digest.to_owned()),
        (tag, None) => Reference::with_tag(host, name, tag.unwrap_or("latest").to_owned()),
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_docker_hub_and_ports_stay_with_the_registry() {
        let short: ImageReference = "busybox".parse().unwrap();
        assert_eq!((short.registry(), short.repository()), ("docker.io", "library/busybox"));
        assert_eq!((short.registry_host(), short.tag_or_digest()), ("registry-1.docker.io", "latest"));
        let local: ImageReference = "localhost:5000/a/b:v1".parse().unwrap();
        assert_eq!((local.registry_host(), local.repository()), ("localhost:5000", "a/b"));
        assert_eq!(local.tag_or_digest(), "v1");
        let digest = format!("sha256:{}", "0".repeat(64));
        let pinned: ImageReference = format!("r.example/a:v1@{digest}").parse().unwrap();
        assert_eq!((pinned.tag_or_digest(), pinned.digest()), (digest.as_str(), Some(digest.as_str())));
    }

    /// The rules of docker's own parser (github.com/distribution/reference, normalize.go), and what they make of names.
    #[test]
    fn names_mean_what_they_mean_to_docker() {
        const HUB: &str = "registry-1.docker.io";
        let digest = format!("sha256:{}", "f".repeat(64));
        let [by_digest, by_both] = ["redis@", "redis:7@"].map(|name| format!("{name}{digest}"));
        for (text, whole, host) in [
            ("redis", "docker.io/library/redis:latest", HUB),
            ("redis:7", "docker.io/library/redis:7", HUB),
            (&by_digest, &format!("docker.io/library/{by_digest}"), HUB),
            (&by_both, &format!("docker.io/library/{by_both}"), HUB),
            ("user/app", "docker.io/user/app:latest", HUB),
            ("library/foo/bar", "docker.io/library/foo/bar:latest", HUB),
            ("docker.io/redis", "docker.io/library/redis:latest", HUB),
            ("index.docker.io/redis:7", "docker.io/library/redis:7", HUB),
            ("index.docker.io/user/app", "docker.io/user/app:latest", HUB),
            // The host of its API is one as any other: there nothing is left out.
            ("registry-1.docker.io/library/redis", "registry-1.docker.io/library/redis:latest", HUB),
            // Without a slash what looks like a host is a repository, and a port a tag.
            ("test.com:5000", "docker.io/library/test.com:5000", HUB),
            ("192.168.0.1:80", "docker.io/library/192.168.0.1:80", HUB),
            ("localhost", "docker.io/library/localhost:latest", HUB),
            ("foo_bar.com:8080", "docker.io/library/foo_bar.com:8080", HUB),
            ("localhost/x", "localhost/x:latest", "localhost"),
            ("localhost/x/y:1", "localhost/x/y:1", "localhost"),
            ("example.com/x", "example.com/x:latest", "example.com"),
            ("test:5000/repo", "test:5000/repo:latest", "test:5000"),
            ("192.168.0.1:8/debian", "192.168.0.1:8/debian:latest", "192.168.0.1:8"),
            ("[fc00::1]:5000/docker", "[fc00::1]:5000/docker:latest", "[fc00::1]:5000"),
            ("xn--n3h.com/image:xn--n3h.com", "xn--n3h.com/image:xn--n3h.com", "xn--n3h.com"),
            ("Foo/bar", "Foo/bar:latest", "Foo"),
            ("LOCALDOMAIN/foo/bar:Tag", "LOCALDOMAIN/foo/bar:Tag", "LOCALDOMAIN"),
            ("docker---rules/docker", "docker.io/docker---rules/docker:latest", HUB),
            ("dock__er/docker", "docker.io/dock__er/docker:latest", HUB),
        ] {
            let parsed: ImageReference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((parsed.to_string().as_str(), parsed.registry_host()), (whole, host), "{text}");
            assert_eq!(whole.parse::<ImageReference>().unwrap(), parsed, "{text}");
        }
        let identifier = "1a3f5e7d9c1b3a5f".repeat(4);
        assert!(format!("docker.io/{identifier}").parse::<ImageReference>().is_ok());
        for refused in [
            &identifier,
            "https://github.com/docker/docker",
            "docker/Docker",
            "docker.io/docker/Docker",
            "-docker",
            "-docker/docker",
            "-docker.io/docker/docker",
            "-Docker/docker",
            "docker-/docker",
            "docker///docker",
            "_docker/_docker",
            "dock..er/docker",
            "dock-.er/docker",
            "docker/",
            "[fc00::1]",
            "[fc00::1]:5000",
            "fc00::1:5000/debian",
            "[fe80::1%eth0]:5000/debian",
        ] {
            assert!(refused.parse::<ImageReference>().is_err(), "{refused}");
        }
    }

    #[test]
    fn an_ipv6_address_is_a_registry() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, host, name, tag) in [
            ("[::1]:5000/team/app:v1", "[::1]:5000", "team/app", "v1"),
            ("[fd00::7]/app", "[fd00::7]", "app", "latest"),
            (&format!("[::1]:5000/app@{digest}"), "[::1]:5000", "app", digest.as_str()),
            (&format!("[::1]:5000/app:v1@{digest}"), "[::1]:5000", "app", digest.as_str()),
        ] {
            let parsed: ImageReference = text.parse().unwrap();
            assert_eq!((parsed.registry_host(), parsed.repository()), (host, name), "{text}");
            assert_eq!(parsed.tag_or_digest(), tag, "{text}");
            assert_eq!(parsed.to_string().parse::<ImageReference>().unwrap(), parsed, "{text}");
        }
        for bad in
            ["[::1]", "[::1]:/a", "[::1]:99999/a", "[::1/a", "[::g]/a", "[::1]x/a", "[::1]:5000/", "[]/a"]
        {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(MAX_REFERENCE_BYTES + 1);
        // With its tag it would be too long to be read back.
        let host = format!("{}example/a", "r.".repeat(507));
        for bad in
            ["", "r.example/UPPER", "user/UPPER", "a b", "r.example/a:", "a@sha256:12", "../x", &long, &host]
        {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
        }
    }
}
