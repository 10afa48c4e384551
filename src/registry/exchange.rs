//! One request and the head of its answer, within the global budget and the pauses that hosts have asked for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use http::{HeaderMap, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::Instant;
use url::{Origin, Url};

use super::{
    Limits, Reason, RegistryConfig, RegistryError, RegistryMetrics,
    budget::{Budget, Permit},
    connection::{Authorities, Connections},
    draft::Draft,
    location,
    retry::{Call, parse_retry_after},
};

/// Hosts whose empty share is remembered; more than a node talks to.
const MAX_IDLE_SHARES: usize = 256;

/// Sends requests to whatever host, with whatever credential the caller puts into the headers.
pub(super) struct Exchange {
    pub(super) connections: Connections,
    pub(super) limits: Limits,
    pub(super) metrics: Arc<RegistryMetrics>,
    budget: Arc<Budget>,
    /// The share of each host.
    shares: Mutex<HashMap<Origin, Arc<Budget>>>,
    /// Hosts that said `Retry-After`.
    pauses: Mutex<HashMap<Origin, Pause>>,
}

/// A host does not want to be asked.
#[derive(Debug, Clone, Copy)]
struct Pause {
    until: Instant,
    /// What it answered.
    status: StatusCode,
}

/// The head of an answer; its body may still be on the way. Holds its place in the budget until it is dropped.
pub(super) struct Answer {
    pub(super) url: Url,
    pub(super) response: Response<Incoming>,
    _permits: Option<[Permit; 2]>,
}

impl Exchange {
    pub(super) fn new(config: &RegistryConfig, trusted: &Authorities) -> Result<Self, RegistryError> {
        let limits = config.limits.clone();
        Ok(Self {
            connections: Connections::new(config, trusted)?,
            budget: Budget::new(limits.concurrent_requests, limits.prefetches()),
            shares: Mutex::default(),
            limits,
            metrics: Arc::default(),
            pauses: Mutex::default(),
        })
    }

    pub(super) async fn get(
        &self,
        call: Call,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<Answer, RegistryError> {
        self.send(call, url, &Draft::get(headers)).await
    }

    pub(super) async fn send(&self, call: Call, url: &Url, draft: &Draft) -> Result<Answer, RegistryError> {
        let permits = if call.has_place {
            self.wait_out_pause(call, url).await?;
            None
        } else {
            Some(self.place(call, url).await?)
        };
        self.metrics.requests.inc();
        let response = self.connections.send(url, draft, call.is_home).await?;
        tracing::trace!(url = %location::shown(url), status = %response.status(), "answer");
        let answer = Answer { url: url.clone(), response, _permits: permits };
        if let Some(wait) = answer.retry_after() {
            self.pause(url, Pause { until: Instant::now() + wait, status: answer.status() });
        }
        Ok(answer)
    }

    /// Waits for a place with the host and among all requests, and until the host wants to be asked.
    async fn place(&self, call: Call, url: &Url) -> Result<[Permit; 2], RegistryError> {
        loop {
            self.wait_out_pause(call, url).await?;
            // The host's share first: who waits for a slow host must not hold a place that others could use.
            let share = self.share(url).acquire(call.priority).await;
            let permits = [self.budget.acquire(call.priority).await, share];
            // The answers that made the places free may have been the ones that ask for a pause.
            if self.pause_of(url).is_none() {
                return Ok(permits);
            }
        }
    }

    fn share(&self, url: &Url) -> Arc<Budget> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if shares.len() >= MAX_IDLE_SHARES {
            shares.retain(|_, share| Arc::strong_count(share) > 1);
        }
        let new = || Budget::new(self.limits.per_host(), self.limits.prefetches());
        shares.entry(url.origin()).or_insert_with(new).clone()
    }

    fn pause_of(&self, url: &Url) -> Option<Pause> {
        let pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.get(&url.origin()).copied().filter(|pause| Instant::now() < pause.until)
    }

    async fn wait_out_pause(&self, call: Call, url: &Url) -> Result<(), RegistryError> {
        while let Some(Pause { until, status }) = self.pause_of(url) {
            if until >= call.deadline {
                let wait = until.saturating_duration_since(Instant::now());
                let reason = Reason::Status { status: status.as_u16(), retry_after: Some(wait) };
                return Err(RegistryError::new(location::shown(url), reason));
            }
            tokio::time::sleep_until(until).await;
        }
        Ok(())
    }

    fn pause(&self, url: &Url, pause: Pause) {
        let now = Instant::now();
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        // Expired ones go whenever one is added, so that the map cannot outgrow the hosts that pause now.
        pauses.retain(|_, pause| pause.until > now);
        pauses.insert(url.origin(), pause);
    }
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
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
    pub(super) fn into_success(self) -> Result<Self, RegistryError> {
        self.into_one_of(&[StatusCode::OK, StatusCode::PARTIAL_CONTENT])
    }

    /// The answer if its status is one of `wanted`, or what its status means.
    pub(super) fn into_one_of(self, wanted: &[StatusCode]) -> Result<Self, RegistryError> {
        let host = || location::authority(&self.url);
        let reason = match self.status() {
            status if wanted.contains(&status) => return Ok(self),
            StatusCode::UNAUTHORIZED => Reason::Unauthorized { host: host(), lookup: None },
            StatusCode::FORBIDDEN => Reason::Forbidden { host: host() },
            StatusCode::NOT_FOUND => Reason::NotFound,
            StatusCode::RANGE_NOT_SATISFIABLE => Reason::RangeNotSatisfiable,
            status => Reason::Status { status: status.as_u16(), retry_after: self.retry_after() },
        };
        Err(self.error(reason))
    }

    /// An error about what this answer is to.
    pub(super) fn error(&self, reason: Reason) -> RegistryError {
        RegistryError::new(location::shown(&self.url), reason)
    }
}
