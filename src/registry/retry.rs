//! When to try again: exponential back-off with jitter, `Retry-After`, one clock over all tries.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use super::{Limits, Reason, RegistryError, RegistryMetrics, Retry, call::Call};

/// The longest `Retry-After` that is believed; a hostile server must not switch a node off. Deadlines are shorter.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// How long a registry that a person has named may be unreachable before that is told: a name that does not resolve, a port that
/// nobody listens at, and one that hangs up on what it does not understand, as plain HTTP, are mistakes more often than outages.
/// Devices in use go on trying.
const FIRST_CONTACT: Duration = Duration::from_secs(3);

/// Tries `attempt` until it succeeds, cannot succeed, or the tries or the time of `call` are used up.
pub(super) async fn run<T, F>(
    limits: &Limits,
    metrics: &RegistryMetrics,
    call: Call<'_>,
    target: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, RegistryError>>,
{
    let mut last: Option<RegistryError> = None;
    let tries = async {
        let mut tries = 0;
        let mut renewed = false;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            metrics.count_failure(&error);
            tries += 1;
            let wait = match error.retry() {
                Retry::Now | Retry::Once if !renewed => {
                    renewed = true;
                    Duration::ZERO
                }
                Retry::Never | Retry::Once => return Err(error),
                Retry::Now | Retry::Later => backoff(limits, tries),
                Retry::After(wait) => wait + backoff(limits, 1),
            };
            let is_unreachable = matches!(
                error.reason(),
                Reason::Connect { .. } | Reason::Proxy { .. } | Reason::Exchange { .. }
            );
            if is_unreachable && call.is_first && call.clock.elapsed() + wait >= FIRST_CONTACT {
                return Err(error);
            }
            if tries >= limits.max_tries || Instant::now() + wait >= call.clock.deadline() {
                return Err(error);
            }
            tracing::debug!(%error, ?wait, tries, "registry request failed, trying again");
            last = Some(error);
            metrics.retries.inc();
            sleep(wait).await;
        }
    };
    tokio::select! {
        outcome = tries => outcome,
        () = call.clock.run_out() => {
            let error = RegistryError::new(target, call.clock.reason(last));
            metrics.count_failure(&error);
            Err(error)
        }
    }
}

/// A random wait in the upper half of `base * 2^(tries - 1)`, capped. The random half keeps many clients from coming back
/// together; the certain half makes the tries span the deadline, so that a registry that restarts is waited for.
fn backoff(limits: &Limits, tries: u32) -> Duration {
    let doubled = 1u64.checked_shl(tries.saturating_sub(1)).unwrap_or(u64::MAX);
    let ceiling_ms = limits.backoff_base_ms.saturating_mul(doubled).min(limits.backoff_max_ms);
    Duration::from_millis(fastrand::u64(ceiling_ms / 2..=ceiling_ms))
}

/// Reads `Retry-After`: seconds, or an HTTP date measured from `now`. What is neither is no wish at all.
#[must_use]
pub fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or(Duration::ZERO)
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_is_bounded() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let parse = |text| parse_retry_after(text, now);
        assert_eq!(parse("7"), Some(Duration::from_secs(7)));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:40 GMT"), Some(Duration::from_secs(3)));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:30 GMT"), Some(Duration::ZERO));
        assert_eq!(parse("99999999999999999999999"), Some(MAX_RETRY_AFTER));
        for nothing in ["", "-1", "soon", "1.5"] {
            assert_eq!(parse(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn back_off_stays_below_its_ceiling_for_any_number_of_tries() {
        let limits = Limits::default();
        for tries in [1, 2, 10, 63, 64, 65, u32::MAX] {
            assert!(backoff(&limits, tries) <= Duration::from_millis(limits.backoff_max_ms));
        }
        assert!(backoff(&limits, 1) <= Duration::from_millis(limits.backoff_base_ms));
    }

    #[test]
    fn the_tries_last_until_the_deadline_even_with_the_shortest_waits() {
        let limits = Limits::default();
        let shortest = |tries: u32| (limits.backoff_base_ms << (tries - 1)).min(limits.backoff_max_ms) / 2;
        let together: u64 = (1..limits.max_tries).map(shortest).sum();
        assert!(together >= limits.request_deadline_ms, "{together} ms");
        for tries in 1..limits.max_tries {
            assert!(backoff(&limits, tries) >= Duration::from_millis(shortest(tries)));
        }
    }
}
