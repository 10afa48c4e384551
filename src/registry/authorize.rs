//! Sends requests with the credential that a repository asks for, and renews it when it expires or is refused.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, StatusCode, header};
use tokio::time::Instant;
use url::Url;

use super::{
    Challenge, ChallengeError, Credentials, CredentialsError, Reason, RegistryError, Repository, Secret,
    Shown,
    call::Call,
    challenge::{authorization, parse_challenge},
    credentials::{CredentialSource, Login},
    draft::Draft,
    exchange::{Answer, Exchange},
    flight::{Flight, Turn},
    location,
    scope::Scope,
    token::{self, TokenRequest},
};

/// Scopes whose access is remembered; more than any node attaches images from.
const MAX_REMEMBERED: usize = 1024;
/// How often one request may be refused with a credential that had been remembered.
const MAX_REFUSALS: u32 = 2;

/// Origin of a registry and what one of its repositories is entered for.
type ScopeKey = (String, String);

/// Knows how to get into repositories.
pub(super) struct Authorizer {
    source: CredentialSource,
    /// By scope, since a token has one.
    accesses: Mutex<HashMap<ScopeKey, Arc<Flight<Access>>>>,
    next_serial: AtomicU64,
}

/// What a repository wants to see, as far as it is known.
#[derive(Clone)]
struct Access {
    serial: u64,
    /// `None`: it takes strangers.
    header: Option<HeaderValue>,
    expires: Option<Instant>,
    challenge: Option<Challenge>,
    /// What it was made of, and why the credential source gave nothing, to be told if it is refused.
    shown: Shown,
    lookup: Option<Arc<CredentialsError>>,
}

/// How a repository was entered.
enum Entered {
    /// Without a credential, and this is the answer.
    AsStranger(Answer),
    /// By this credential, which is yet to be shown.
    By(Access),
}

impl Authorizer {
    pub(super) fn new(source: CredentialSource) -> Self {
        Self { source, accesses: Mutex::default(), next_serial: AtomicU64::new(0) }
    }

    /// Sends `draft` to `url`, which must lie at the origin of the scope's repository.
    pub(super) async fn send(
        &self,
        exchange: &Exchange,
        call: Call<'_>,
        scope: &Scope,
        url: &Url,
        draft: &Draft,
    ) -> Result<Answer, RegistryError> {
        let call = call.to(url, &scope.repository);
        let flight = self.flight(scope);
        let mut refused: Option<u64> = None;
        let mut refusals = 0;
        let mut challenge: Option<Challenge> = None;
        loop {
            let is_usable = |access: &Access| access.is_alive() && Some(access.serial) != refused;
            let (access, is_fresh) = match call.clock.stopped(flight.take_turn(is_usable)).await {
                Turn::Ready(access) => (access, false),
                Turn::Failed(error) => return Err(error),
                Turn::Lead(lead) => {
                    let known =
                        challenge.take().or_else(|| lead.previous().and_then(|access| access.challenge));
                    match self.enter(exchange, call.shared(), scope, url, draft, known).await {
                        Ok(Entered::AsStranger(answer)) => {
                            lead.succeed(self.access(None, None, None));
                            return Ok(answer);
                        }
                        Ok(Entered::By(access)) => {
                            lead.succeed(access.clone());
                            (access, true)
                        }
                        Err(error) => {
                            lead.fail(&error);
                            return Err(error);
                        }
                    }
                }
            };
            let answer = exchange.send(call, url, &with(draft, access.header.as_ref())).await?;
            let Some(asked) = asked_for(&answer).or_else(|| old_login(&answer, &access)) else {
                return Ok(answer);
            };
            refusals += 1;
            if is_fresh || refusals >= MAX_REFUSALS {
                flight.forget(|current| current.serial == access.serial);
                return match answer.status() {
                    StatusCode::UNAUTHORIZED => {
                        let host = scope.repository.host();
                        let Access { shown, lookup, .. } = access;
                        Err(answer.refuse(Reason::Unauthorized { host, shown, lookup }).await)
                    }
                    _ => answer.into_success().await,
                };
            }
            challenge = Some(asked.map_err(|error| answer.error(Reason::Challenge(error)))?);
            refused = Some(access.serial);
        }
    }

    /// Finds out what gets in, beginning as a stranger where no challenge is known.
    async fn enter(
        &self,
        exchange: &Exchange,
        call: Call<'_>,
        scope: &Scope,
        url: &Url,
        draft: &Draft,
        known: Option<Challenge>,
    ) -> Result<Entered, RegistryError> {
        let challenge = match known {
            Some(challenge) => challenge,
            None => {
                let answer = exchange.send(call, url, draft).await?;
                match asked_for(&answer) {
                    None => return Ok(Entered::AsStranger(answer)),
                    Some(asked) => asked.map_err(|error| answer.error(Reason::Challenge(error)))?,
                }
            }
        };
        self.authenticate(exchange, call, scope, url, challenge).await.map(Entered::By)
    }

    async fn authenticate(
        &self,
        exchange: &Exchange,
        call: Call<'_>,
        scope: &Scope,
        url: &Url,
        challenge: Challenge,
    ) -> Result<Access, RegistryError> {
        let repository = &scope.repository;
        let (login, lookup) = match self.source.look_up(repository, url).await {
            Ok(login) => (login, None),
            Err(error) => {
                tracing::warn!(host = repository.host(), %error, "no credentials, trying anonymously");
                (Login::default(), Some(Arc::new(error)))
            }
        };
        let (shown, credentials) = (login.shown(), login.credentials);
        let unauthorized = |shown, lookup| Reason::Unauthorized { host: repository.host(), shown, lookup };
        let mut access = match &challenge {
            Challenge::Bearer { .. } if let Credentials::RegistryToken(token) = &credentials => {
                self.access(authorization("Bearer", token), None, Some(challenge))
            }
            Challenge::Basic => {
                let Credentials::Basic { username, password } = credentials else {
                    return Err(RegistryError::new(location::shown(url), unauthorized(shown, lookup)));
                };
                let pair = BASE64_STANDARD.encode(format!("{username}:{}", password.expose()));
                self.access(authorization("Basic", &Secret::new(pair)), None, Some(challenge))
            }
            Challenge::Bearer { realm, service, scope: challenged } => {
                let wanted = scope.wanted(challenged.as_deref());
                let request = TokenRequest {
                    realm: token_server(exchange, repository, realm)?,
                    service: service.as_deref(),
                    scope: &wanted,
                };
                let call = call.to(&request.realm, repository);
                let token = match token::fetch(exchange, call, &request, &credentials).await {
                    Ok(token) => token,
                    Err(error) if matches!(error.reason(), Reason::Unauthorized { .. }) => {
                        let said = error.said().map(str::to_owned);
                        let reason = unauthorized(shown, lookup);
                        return Err(RegistryError::with_words(error.target(), reason, said));
                    }
                    Err(error) => return Err(error),
                };
                self.access(authorization("Bearer", &token.value), Some(token.expires), Some(challenge))
            }
        };
        (access.shown, access.lookup) = (shown, lookup);
        Ok(access)
    }

    fn access(
        &self,
        header: Option<HeaderValue>,
        expires: Option<Instant>,
        challenge: Option<Challenge>,
    ) -> Access {
        let serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
        Access { serial, header, expires, challenge, shown: Shown::default(), lookup: None }
    }

    fn flight(&self, scope: &Scope) -> Arc<Flight<Access>> {
        let mut accesses = self.accesses.lock().unwrap_or_else(PoisonError::into_inner);
        if accesses.len() >= MAX_REMEMBERED {
            accesses.retain(|_, flight| Arc::strong_count(flight) > 1);
        }
        let key = (scope.repository.origin().ascii_serialization(), scope.text().to_owned());
        accesses.entry(key).or_insert_with(|| Arc::new(Flight::new())).clone()
    }
}

impl Access {
    fn is_alive(&self) -> bool {
        self.expires.is_none_or(|expires| Instant::now() < expires)
    }
}

/// What an answer asks for, if it is not content for want of a credential. Some registries say 403 for an old token.
fn asked_for(answer: &Answer) -> Option<Result<Challenge, ChallengeError>> {
    let values = answer.response.headers().get_all(header::WWW_AUTHENTICATE);
    let texts: Vec<&str> = values.iter().filter_map(|value| value.to_str().ok()).collect();
    match answer.status() {
        StatusCode::UNAUTHORIZED if texts.is_empty() => Some(Err(ChallengeError::Missing)),
        StatusCode::FORBIDDEN if texts.is_empty() => None,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Some(parse_challenge(&texts.join(", "))),
        _ => None,
    }
}

/// What to ask the credential source for again where a registry says no more than 403 to a password that has run out, as ECR does
/// after 12 hours.
fn old_login(answer: &Answer, access: &Access) -> Option<Result<Challenge, ChallengeError>> {
    let is_old = answer.status() == StatusCode::FORBIDDEN && access.challenge == Some(Challenge::Basic);
    is_old.then_some(Ok(Challenge::Basic))
}

fn with(draft: &Draft, authorization: Option<&HeaderValue>) -> Draft {
    authorization.map_or_else(|| draft.clone(), |value| draft.with(header::AUTHORIZATION, value.clone()))
}

/// The token server, which gets the password: by TLS, unless it is the plain registry's own host or configured so.
fn token_server(exchange: &Exchange, repository: &Repository, realm: &str) -> Result<Url, RegistryError> {
    let url = location::parse(realm).map_err(|error| {
        RegistryError::new(format!("token server of {}", repository.host()), Reason::Location(error))
    })?;
    let is_own_host = repository.is_plain_http() && url.host_str() == repository.host_name();
    if url.scheme() == "https" || is_own_host || exchange.connections.may_be_plain(&url) {
        Ok(url)
    } else {
        let target = format!("token server {} of {}", location::shown(&url), repository.host());
        Err(RegistryError::new(target, Reason::PlainHttp { host: location::authority(&url) }))
    }
}
