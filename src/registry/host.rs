//! One host that is asked: how many requests it gets at once, who is next, and when it wants to be left alone.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use tokio::time::{Instant, sleep_until, timeout_at};
use url::{Origin, Url};

use super::{
    Limits, Reason, RegistryError, RegistryMetrics,
    adaptive_limit::{AdaptiveLimit, Outcome},
    budget::{Budget, Permit},
    call::Call,
    location,
};

/// Hosts that are remembered while they are not asked; more than a node talks to.
const MAX_IDLE_HOSTS: usize = 256;

/// For this part of the time after which a silent host is given up an answer counts as begun: long enough for all that a host sends
/// at once, and short enough for a way so slow that nothing ends on it meanwhile.
const BEGINNING: u32 = 4;

/// All hosts that were asked.
pub(super) struct Hosts {
    limits: Limits,
    metrics: Arc<RegistryMetrics>,
    /// For requests to all of them together.
    budget: Arc<Budget>,
    known: Mutex<HashMap<Origin, Arc<Host>>>,
}

/// One of them.
struct Host {
    name: String,
    share: Arc<Budget>,
    state: Mutex<State>,
    /// How long it may be silent before those who wait for it give up.
    patience: Duration,
    metrics: Arc<RegistryMetrics>,
}

struct State {
    limit: AdaptiveLimit,
    pause: Option<Pause>,
    /// When it last gave an answer, or went on with one.
    heard_at: Option<Instant>,
}

/// The host does not want to be asked.
#[derive(Debug, Clone, Copy)]
struct Pause {
    until: Instant,
    /// What it answered.
    status: StatusCode,
}

/// How busy a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLoad {
    /// Host and port.
    pub host: String,
    /// Requests that it gets at once.
    pub limit: usize,
    /// Requests under way.
    pub in_flight: usize,
    /// Requests that wait for a place.
    pub waiting: usize,
}

/// A place for one request in flight, until it is dropped.
pub(super) struct Place {
    host: Arc<Host>,
    began: Instant,
    /// Whether it is known what became of the request.
    has_learnt: AtomicBool,
    /// None where another request holds the place for both.
    _permits: Option<[Permit; 2]>,
}

impl Hosts {
    pub(super) fn new(limits: &Limits, metrics: Arc<RegistryMetrics>) -> Self {
        let budget = Budget::new(limits.concurrent_requests, limits.prefetches());
        Self { limits: limits.clone(), metrics, budget, known: Mutex::default() }
    }

    /// Waits for a place with the host of `url` and among all requests, and until the host wants to be asked.
    pub(super) async fn place(&self, call: Call<'_>, url: &Url) -> Result<Place, RegistryError> {
        let host = self.host(url);
        if call.has_place {
            host.wait_out_pause(call, url).await?;
            return Ok(Place::new(host, None));
        }
        // The host's share first: who waits for a slow host must not hold a place that others could use. It is kept over a pause,
        // so that nobody loses his place in line by it.
        let share = call.clock.stopped(host.share_of(call)).await;
        let share = share.ok_or_else(|| {
            RegistryError::new(
                location::shown(url),
                Reason::Silent { host: host.name.clone(), limit: host.patience },
            )
        })?;
        loop {
            host.wait_out_pause(call, url).await?;
            let permit = call.clock.stopped(self.budget.acquire(call.turn())).await;
            // The answers that made the place free may have been the ones that ask for a pause.
            if host.pause().is_none() {
                return Ok(Place::new(host, Some([permit, share])));
            }
        }
    }

    /// How busy each is, in the order of their names.
    pub(super) fn loads(&self) -> Vec<HostLoad> {
        let mut loads: Vec<HostLoad> = self.known().values().map(|host| host.load()).collect();
        loads.sort_by(|a, b| a.host.cmp(&b.host));
        loads
    }

    fn host(&self, url: &Url) -> Arc<Host> {
        let mut known = self.known();
        if known.len() >= MAX_IDLE_HOSTS {
            known.retain(|_, host| Arc::strong_count(host) > 1);
        }
        known
            .entry(url.origin())
            .or_insert_with(|| Arc::new(Host::new(url, &self.limits, &self.metrics)))
            .clone()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Origin, Arc<Host>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    fn new(url: &Url, limits: &Limits, metrics: &Arc<RegistryMetrics>) -> Self {
        let limit = AdaptiveLimit::new(limits.per_host(), limits.head_timeout());
        Self {
            name: location::authority(url),
            share: Budget::new(limit.now(), limits.prefetches()),
            state: Mutex::new(State { limit, pause: None, heard_at: None }),
            patience: limits.deadline(),
            metrics: metrics.clone(),
        }
    }

    /// Waits for a place in line as long as the line moves; `None` when the host has answered nobody for too long.
    async fn share_of(&self, call: Call<'_>) -> Option<Permit> {
        let joined_at = Instant::now();
        let mut granted = pin!(self.share.acquire(call.turn()));
        loop {
            let heard_at = self.state().heard_at.map_or(joined_at, |heard_at| heard_at.max(joined_at));
            let gives_up_at = heard_at + self.patience;
            if Instant::now() >= gives_up_at {
                return None;
            }
            if let Ok(permit) = timeout_at(gives_up_at, &mut granted).await {
                return Some(permit);
            }
        }
    }

    fn pause(&self) -> Option<Pause> {
        self.state().pause.filter(|pause| Instant::now() < pause.until)
    }

    async fn wait_out_pause(&self, call: Call<'_>, url: &Url) -> Result<(), RegistryError> {
        while let Some(Pause { until, status }) = self.pause() {
            if until >= call.clock.deadline() {
                let wait = until.saturating_duration_since(Instant::now());
                let reason = Reason::Status { status: status.as_u16(), retry_after: Some(wait) };
                return Err(RegistryError::new(location::shown(url), reason));
            }
            sleep_until(until).await;
        }
        Ok(())
    }

    fn load(&self) -> HostLoad {
        let (in_flight, waiting) = self.share.load();
        HostLoad { host: self.name.clone(), limit: self.state().limit.now(), in_flight, waiting }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn new(host: Arc<Host>, permits: Option<[Permit; 2]>) -> Self {
        Self { host, began: Instant::now(), has_learnt: AtomicBool::new(false), _permits: permits }
    }

    /// The host has given an answer: those who wait for it go on waiting.
    pub(super) fn answered(&self) {
        self.host.state().heard_at = Some(Instant::now());
    }

    /// Something of an answer came. Those who wait go on waiting where the host goes on with one, and not where it begins one: that
    /// answer may break off as all before it.
    pub(super) fn heard(&self) {
        if self.began.elapsed() >= self.host.patience / BEGINNING {
            self.answered();
        }
    }

    /// The host has answered `status`, and does not want to be asked for a while.
    pub(super) fn pause(&self, status: StatusCode, wait: Duration) {
        self.host.state().pause = Some(Pause { until: Instant::now() + wait, status });
    }

    /// Says what became of the request; what is said first counts.
    pub(super) fn learn(&self, outcome: Outcome) {
        if self.has_learnt.swap(true, Ordering::Relaxed) {
            return;
        }
        if outcome != Outcome::TimedOut {
            self.answered();
        }
        let (in_flight, waiting) = self.host.share.load();
        let limit = {
            let mut state = self.host.state();
            let before = state.limit.now();
            let is_used = waiting > 0 || in_flight.saturating_mul(2) >= before;
            let shrink = state.limit.learn(outcome, (self.began, Instant::now()), is_used);
            let after = state.limit.now();
            if let Some(shrink) = shrink {
                tracing::debug!(
                    host = self.host.name,
                    ?shrink,
                    limit = after,
                    waiting,
                    "fewer requests at once"
                );
                self.host.metrics.count_shrink(shrink);
            }
            (after != before).then_some(after)
        };
        if let Some(limit) = limit {
            self.host.share.set_limit(limit);
        }
    }
}
