//! Parser of `WWW-Authenticate` (RFC 9110, section 11.6.1): which kind of credential a registry asks for.

use super::{ChallengeError, Secret};

/// Longest header that is parsed; real ones are below 1 KiB.
pub const MAX_CHALLENGE_BYTES: usize = 8 << 10;
/// Most parameters in one header; real ones have three to five.
pub const MAX_CHALLENGE_PARAMETERS: usize = 32;

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Challenge {
    /// User name and password in every request.
    Basic,
    /// A token that a token server gives out.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// Name of the service to ask a token for.
        service: Option<String>,
        /// What the token must allow, several separated by spaces.
        scope: Option<String>,
    },
}

/// Reads one `WWW-Authenticate` value, which may hold several challenges, and chooses Bearer before Basic.
///
/// # Errors
/// When the syntax is broken, a limit is passed, or neither kind is offered.
pub fn parse_challenge(header: &str) -> Result<Challenge, ChallengeError> {
    if header.len() > MAX_CHALLENGE_BYTES {
        return Err(ChallengeError::TooLong(header.len()));
    }
    let offers = Scanner { rest: header }.offers()?;
    let bearer = offers.iter().find(|offer| offer.scheme.eq_ignore_ascii_case("bearer"));
    if let Some(offer) = bearer {
        let realm = offer.parameter("realm")?.ok_or(ChallengeError::NoRealm)?;
        return Ok(Challenge::Bearer { realm, service: offer.parameter("service")?, scope: offer.scope() });
    }
    if offers.iter().any(|offer| offer.scheme.eq_ignore_ascii_case("basic")) {
        return Ok(Challenge::Basic);
    }
    Err(ChallengeError::NoKnownScheme)
}

/// The value of an `Authorization` header by scheme, kept out of sight.
pub(super) fn authorization(scheme: &str, value: &Secret) -> Option<http::HeaderValue> {
    let mut header = http::HeaderValue::from_str(&format!("{scheme} {}", value.expose())).ok()?;
    header.set_sensitive(true);
    Some(header)
}

struct Offer<'a> {
    scheme: &'a str,
    parameters: Vec<(&'a str, String)>,
}

impl Offer<'_> {
    fn parameter(&self, name: &str) -> Result<Option<String>, ChallengeError> {
        let mut found = self.values(name);
        let value = found.next().cloned();
        // Two realms would leave it to chance where the password goes.
        if found.next().is_some() { Err(ChallengeError::Repeated) } else { Ok(value) }
    }

    /// The scopes, several separated by spaces, which some registries give one by one.
    fn scope(&self) -> Option<String> {
        let scopes: Vec<&str> = self.values("scope").map(String::as_str).collect();
        (!scopes.is_empty()).then(|| scopes.join(" "))
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &String> {
        let found = self.parameters.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn offers(mut self) -> Result<Vec<Offer<'a>>, ChallengeError> {
        let mut offers: Vec<Offer<'a>> = Vec::new();
        let mut parameters = 0;
        loop {
            self.skip(&[' ', '\t', ',']);
            if self.rest.is_empty() {
                return Ok(offers);
            }
            parameters += 1;
            if parameters > MAX_CHALLENGE_PARAMETERS {
                return Err(ChallengeError::TooManyParameters);
            }
            let word = self.token()?;
            let spaced = self.skip(&[' ', '\t']);
            if self.rest.starts_with('=') {
                self.skip_one();
                self.skip(&[' ', '\t']);
                let value = self.value()?;
                let offer = offers.last_mut().ok_or(ChallengeError::Syntax)?;
                offer.parameters.push((word, value));
                self.end_of_item()?;
            } else if spaced || self.rest.is_empty() || self.rest.starts_with(',') {
                offers.push(Offer { scheme: word, parameters: Vec::new() });
                self.skip_token68();
            } else {
                return Err(ChallengeError::Syntax);
            }
        }
    }

    /// Passes over what stands in the place of parameters after a scheme that is not known here, as in `Negotiate YII=`.
    fn skip_token68(&mut self) {
        let is_char = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
        let (word, after) = match self.rest.find(|c: char| !is_char(c)) {
            Some(end) => self.rest.split_at_checked(end).unwrap_or((self.rest, "")),
            None => (self.rest, ""),
        };
        let after = after.trim_start_matches('=').trim_start_matches([' ', '\t']);
        if !word.is_empty() && (after.is_empty() || after.starts_with(',')) {
            self.rest = after;
        }
    }

    fn end_of_item(&mut self) -> Result<(), ChallengeError> {
        self.skip(&[' ', '\t']);
        if self.rest.is_empty() || self.rest.starts_with(',') { Ok(()) } else { Err(ChallengeError::Syntax) }
    }

    fn skip(&mut self, what: &[char]) -> bool {
        let rest = self.rest.trim_start_matches(what);
        let moved = rest.len() < self.rest.len();
        self.rest = rest;
        moved
    }

    fn skip_one(&mut self) {
        let mut chars = self.rest.chars();
        chars.next();
        self.rest = chars.as_str();
    }

    fn token(&mut self) -> Result<&'a str, ChallengeError> {
        let end = self.rest.find(|c: char| !is_token(c)).unwrap_or(self.rest.len());
        match self.rest.split_at_checked(end) {
            Some((token, rest)) if !token.is_empty() => {
                self.rest = rest;
                Ok(token)
            }
            _ => Err(ChallengeError::Syntax),
        }
    }

    fn value(&mut self) -> Result<String, ChallengeError> {
        if !self.rest.starts_with('"') {
            // Some registries leave URLs unquoted; everything up to a comma or space is the value.
            let end = self.rest.find([',', ' ', '\t', '"']).unwrap_or(self.rest.len());
            return match self.rest.split_at_checked(end) {
                Some((value, rest)) if !value.is_empty() => {
                    self.rest = rest;
                    Ok(value.to_owned())
                }
                _ => Err(ChallengeError::Syntax),
            };
        }
        let mut value = String::new();
        let mut chars = self.rest.chars();
        chars.next();
        loop {
            match chars.next() {
                Some('"') => break,
                Some('\\') => value.push(chars.next().ok_or(ChallengeError::Syntax)?),
                Some(c) if c.is_control() => return Err(ChallengeError::Syntax),
                Some(c) => value.push(c),
                None => return Err(ChallengeError::Syntax),
            }
        }
        self.rest = chars.as_str();
        Ok(value)
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn real_challenges_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push""#;
        let expected = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:library/x:pull,push"),
        );
        assert_eq!(parse_challenge(hub).unwrap(), expected);
        assert_eq!(parse_challenge(r#"Basic realm="Registry Realm""#).unwrap(), Challenge::Basic);
        assert_eq!(parse_challenge("bAsIc").unwrap(), Challenge::Basic);
        assert_eq!(parse_challenge("Bearer realm=https://a/b").unwrap(), bearer("https://a/b", None, None));
        let both = r#"Basic realm="x", Bearer realm="https://t/", charset="UTF-8""#;
        assert_eq!(parse_challenge(both).unwrap(), bearer("https://t/", None, None));
        for other in ["Negotiate YII/+a==", "Negotiate", "NTLM TlRM="] {
            assert_eq!(parse_challenge(&format!("{other}, Basic realm=\"x\"")).unwrap(), Challenge::Basic);
            assert_eq!(parse_challenge(&format!("Basic realm=\"x\", {other}")).unwrap(), Challenge::Basic);
        }
        let twice = r#"Bearer realm="https://t/",scope="a:b:pull",scope="c:d:pull""#;
        assert_eq!(parse_challenge(twice).unwrap(), bearer("https://t/", None, Some("a:b:pull c:d:pull")));
        let escaped = r#"Bearer realm="a\"b", scope="""#;
        assert_eq!(parse_challenge(escaped).unwrap(), bearer("a\"b", None, Some("")));
    }

    #[test]
    fn broken_challenges_are_refused() {
        let long = format!("Bearer realm=\"{}\"", "a".repeat(MAX_CHALLENGE_BYTES));
        let many = format!("Bearer {}", "a=b,".repeat(MAX_CHALLENGE_PARAMETERS + 1));
        for bad in [
            "",
            "Negotiate",
            "Bearer",
            "Bearer realm=",
            "Bearer realm=\"x",
            "Bearer realm=\"x\\",
            "Bearer realm=\"x\" service",
            "Bearer realm=\"x\"y",
            "Bearer realm=\"x\", realm=\"y\"",
            "realm=\"x\"",
            "=",
            "\u{e9}",
            &long,
            &many,
        ] {
            assert!(parse_challenge(bad).is_err(), "{bad}");
        }
    }
}
