//! One request and the head of its answer, in its turn.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{Response, StatusCode, header};
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;
use url::Url;

use super::{
    Limits, Reason, RegistryConfig, RegistryError, RegistryMetrics, Shown,
    adaptive_limit::Outcome,
    body,
    call::Call,
    connection::{Authorities, Connections, ReadBy},
    draft::Draft,
    host::{Hosts, Place},
    location,
    refusal::parse_refusal,
    retry::parse_retry_after,
};

/// The body of a refusal is a sentence or two. A longer one is not read.
const MAX_REFUSAL_BYTES: usize = 16 << 10;

/// And not waited for longer.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// Sends requests to whatever host, with whatever credential the caller puts into the headers.
pub(super) struct Exchange {
    pub(super) connections: Connections,
    pub(super) limits: Limits,
    pub(super) metrics: Arc<RegistryMetrics>,
    pub(super) hosts: Hosts,
}

/// The head of an answer; its body may still be on the way. Holds its place among all requests until it is dropped.
pub(super) struct Answer {
    pub(super) url: Url,
    pub(super) response: Response<Incoming>,
    pub(super) place: Place,
}

impl Exchange {
    pub(super) fn new(config: &RegistryConfig, trusted: &Authorities) -> Result<Self, RegistryError> {
        let (limits, metrics) = (config.limits.clone(), Arc::<RegistryMetrics>::default());
        Ok(Self {
            connections: Connections::new(config, trusted)?,
            hosts: Hosts::new(&limits, Arc::clone(&metrics)),
            limits,
            metrics,
        })
    }

    pub(super) async fn send(
        &self,
        call: Call<'_>,
        url: &Url,
        draft: &Draft,
    ) -> Result<Answer, RegistryError> {
        let place = self.hosts.place(call, url).await?;
        self.metrics.requests.inc();
        let sent = self.connections.send(url, draft, call.is_home).await;
        let response = sent.inspect_err(|error| {
            if error.is_timeout() {
                place.learn(Outcome::TimedOut);
            }
        })?;
        match response.status().is_success() && !response.body().is_end_stream() {
            true => place.heard(),
            // Nobody waits for more of it.
            false => place.answered(),
        }
        tracing::trace!(url = %location::shown(url), status = %response.status(), "answer");
        let answer = Answer { url: url.clone(), response, place };
        if matches!(answer.status().as_u16(), 429 | 503 | 504) {
            answer.place.learn(Outcome::Refused);
        }
        if let Some(wait) = answer.retry_after() {
            answer.place.pause(answer.status(), wait);
        }
        Ok(answer)
    }
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// What was asked, with the proxy that may have answered in its place.
    fn target(&self) -> String {
        let url = location::shown(&self.url);
        match self.response.extensions().get() {
            Some(ReadBy(proxy)) => format!("{url} by way of the proxy {proxy}"),
            None => url,
        }
    }

    /// The text of a header that may be there at most once.
    pub(super) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// `Retry-After` of an answer that says "not now".
    fn retry_after(&self) -> Option<Duration> {
        if !matches!(self.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            return None;
        }
        parse_retry_after(self.header(header::RETRY_AFTER)?, SystemTime::now())
    }

    /// The answer if it carries content, or what its status means.
    pub(super) async fn into_success(self) -> Result<Self, RegistryError> {
        self.into_one_of(&[StatusCode::OK, StatusCode::PARTIAL_CONTENT]).await
    }

    /// The answer if its status is one of `wanted`, or what its status means.
    pub(super) async fn into_one_of(self, wanted: &[StatusCode]) -> Result<Self, RegistryError> {
        let host = || location::authority(&self.url);
        let reason = match self.status() {
            status if wanted.contains(&status) => return Ok(self),
            StatusCode::UNAUTHORIZED => {
                Reason::Unauthorized { host: host(), shown: Shown::default(), lookup: None }
            }
            StatusCode::FORBIDDEN => Reason::Forbidden { host: host() },
            StatusCode::NOT_FOUND => Reason::NotFound,
            StatusCode::RANGE_NOT_SATISFIABLE => Reason::RangeNotSatisfiable,
            status => Reason::Status { status: status.as_u16(), retry_after: self.retry_after() },
        };
        Err(self.refuse(reason).await)
    }

    /// An error about what this answer is to, with the words of its body.
    pub(super) async fn refuse(self, reason: Reason) -> RegistryError {
        let target = self.target();
        let words = timeout(REFUSAL_TIME, body::read_limited(self, MAX_REFUSAL_BYTES, REFUSAL_TIME)).await;
        let words = words.ok().and_then(Result::ok).flatten();
        RegistryError::with_words(target, reason, words.and_then(|words| parse_refusal(&words)))
    }

    /// An error about what this answer is to.
    pub(super) fn error(&self, reason: Reason) -> RegistryError {
        RegistryError::new(self.target(), reason)
    }
}
