//! Fetches a token from the server that a Bearer challenge names.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use url::{Url, form_urlencoded};

use super::{
    Credentials, LocationError, MAX_REDIRECTS, Reason, RegistryError, Secret, body,
    call::Call,
    challenge::authorization,
    client::{is_redirect, is_repeatable},
    draft::{Content, Draft},
    exchange::{Answer, Exchange},
    location,
};

/// Tokens are signed documents of a few KiB.
const MAX_TOKEN_ANSWER_BYTES: usize = 256 << 10;
/// The life of a token whose server does not say it (distribution specification).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// A token is asked for again at least once a day, whatever its server says.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Renewed this long before its end, or a quarter of its life before, so that it does not end on the way.
const RENEWAL_MARGIN: Duration = Duration::from_secs(15);

/// A token and when to ask for a new one.
pub(super) struct Token {
    pub(super) value: Secret,
    pub(super) expires: Instant,
}

/// What a token server is asked for.
pub(super) struct TokenRequest<'a> {
    pub(super) realm: Url,
    pub(super) service: Option<&'a str>,
    /// Several are separated by spaces.
    pub(super) scope: &'a str,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    token: Option<Secret>,
    #[serde(default)]
    access_token: Option<Secret>,
    /// A number by the specification, a text where a script has written it.
    #[serde(default)]
    expires_in: Option<Value>,
}

pub(super) async fn fetch(
    exchange: &Exchange,
    call: Call<'_>,
    request: &TokenRequest<'_>,
    credentials: &Credentials,
) -> Result<Token, RegistryError> {
    exchange.metrics.token_fetches.inc();
    // The life counts from before the request: the server's clock started somewhere in it.
    let asked_at = Instant::now();
    let answer = match credentials {
        Credentials::IdentityToken(token) => by_refresh_token(exchange, call, request, token).await?,
        Credentials::Basic { username, password } => {
            let pair = BASE64_STANDARD.encode(format!("{username}:{}", password.expose()));
            let header = authorization("Basic", &Secret::new(pair));
            by_get(exchange, call, request, header).await?
        }
        // That one needs no other.
        Credentials::Anonymous | Credentials::RegistryToken(_) => {
            by_get(exchange, call, request, None).await?
        }
    };
    // A partial document is no document.
    let answer = answer.into_one_of(&[StatusCode::OK]).await?;
    let target = location::shown(&request.realm);
    let fail = |what| RegistryError::new(target.clone(), Reason::Token(what));
    let text = body::read_limited(answer, MAX_TOKEN_ANSWER_BYTES, exchange.limits.stall_timeout()).await?;
    let (value, lifetime) = parse_token(&text.ok_or_else(|| fail("larger than 256 KiB"))?).map_err(fail)?;
    Ok(Token { value, expires: asked_at + lifetime })
}

/// Reads a token server's answer: the token, and for how long to use it.
///
/// # Errors
/// What is wrong with it, without quoting it.
pub fn parse_token(text: &[u8]) -> Result<(Secret, Duration), &'static str> {
    let document: Document = serde_json::from_slice(text).map_err(|_| "not a JSON object with a token")?;
    let usable = |token: &Secret| {
        !token.expose().is_empty() && token.expose().bytes().all(|byte| byte.is_ascii_graphic())
    };
    let token = document.token.filter(|token| !token.expose().is_empty()).or(document.access_token);
    let token = token.filter(usable).ok_or("no token of printable characters")?;
    let life = lifetime(document.expires_in.as_ref());
    Ok((token, life - RENEWAL_MARGIN.min(life / 4)))
}

/// What is no time, or over at once, says nothing.
fn lifetime(expires_in: Option<&Value>) -> Duration {
    let seconds = match expires_in {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    let seconds =
        seconds.filter(|seconds| *seconds > 0.0).map(|seconds| seconds.min(MAX_LIFETIME.as_secs_f64()));
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(DEFAULT_LIFETIME)
}

/// Sends `draft` to the token server at `url`, and on to where it leads within its own host: another one must not get the password.
async fn ask(
    exchange: &Exchange,
    call: Call<'_>,
    mut url: Url,
    draft: &Draft,
) -> Result<Answer, RegistryError> {
    let origin = url.origin();
    for _ in 0..=MAX_REDIRECTS {
        let call = Call { is_home: call.is_home && url.origin() == origin, ..call };
        let answer = exchange.send(call, &url, draft).await?;
        if !is_redirect(&answer) || !is_repeatable(draft, &answer) {
            return Ok(answer);
        }
        let next = answer.header(header::LOCATION).ok_or(LocationError::Missing);
        let next = next.and_then(|text| location::resolve_location(&url, text));
        let next = next.map_err(|error| answer.error(Reason::Location(error)))?;
        let is_downgrade = url.scheme() == "https" && next.scheme() == "http";
        if next.host_str() != url.host_str() || is_downgrade {
            return Err(answer.error(Reason::TokenRedirect { to: location::shown(&next) }));
        }
        url = next;
    }
    Err(RegistryError::new(location::shown(&url), Reason::TooManyRedirects(MAX_REDIRECTS)))
}

async fn by_get(
    exchange: &Exchange,
    call: Call<'_>,
    request: &TokenRequest<'_>,
    authorization: Option<HeaderValue>,
) -> Result<Answer, RegistryError> {
    let mut url = request.realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = request.service {
            query.append_pair("service", service);
        }
        for scope in request.scope.split_ascii_whitespace() {
            query.append_pair("scope", scope);
        }
    }
    let headers = authorization.map(|value| (header::AUTHORIZATION, value)).into_iter().collect();
    ask(exchange, call, url, &Draft::get(headers)).await
}

/// OAuth 2, as docker does it for identity tokens.
async fn by_refresh_token(
    exchange: &Exchange,
    call: Call<'_>,
    request: &TokenRequest<'_>,
    token: &Secret,
) -> Result<Answer, RegistryError> {
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "refresh_token")
        .append_pair("service", request.service.unwrap_or_default())
        .append_pair("scope", request.scope)
        .append_pair("client_id", "stratabd")
        .append_pair("refresh_token", token.expose())
        .finish();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    let draft = Draft { method: Method::POST, headers, content: Content::Bytes(Bytes::from(form)) };
    ask(exchange, call, request.realm.clone(), &draft).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_or_access_token_and_a_life_with_a_margin() {
        let (token, life) = parse_token(br#"{"token":"a","access_token":"b","expires_in":300}"#).unwrap();
        assert_eq!((token.expose(), life), ("a", Duration::from_secs(285)));
        let (token, life) = parse_token(br#"{"access_token":"b"}"#).unwrap();
        assert_eq!((token.expose(), life), ("b", Duration::from_secs(45)));
        let (_, life) = parse_token(br#"{"token":"a","expires_in":4}"#).unwrap();
        assert_eq!(life, Duration::from_secs(3));
        let (_, life) = parse_token(br#"{"token":"a","expires_in":18446744073709551615}"#).unwrap();
        assert!(life < MAX_LIFETIME);
        for (text, seconds) in [
            ("\"300\"", 285.0),
            ("4.4", 3.3),
            ("-1", 45.0),
            ("0", 45.0),
            ("null", 45.0),
            ("\"soon\"", 45.0),
            ("\"NaN\"", 45.0),
            ("[]", 45.0),
        ] {
            let (_, life) =
                parse_token(format!(r#"{{"token":"a","expires_in":{text}}}"#).as_bytes()).unwrap();
            assert_eq!(life, Duration::from_secs_f64(seconds), "{text}");
        }
    }

    #[test]
    fn an_answer_without_a_usable_token_is_refused() {
        for bad in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, r#"{"token":7}"#, "[]"] {
            assert!(parse_token(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
