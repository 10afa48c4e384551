//! Devices of a former daemon that have not come back yet: why, and when they are tried again.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a device waits after its first failure; twice as long after each further one, up to the last.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A device that has not come back yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WaitingDevice {
    /// Its number.
    pub(super) id: u32,
    /// Why.
    pub(super) reason: String,
    /// How long it is until the next try, zero while there is one.
    pub(super) next_try: Duration,
}

/// All of them; those that have not failed yet have no reason. Locked for moments only.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<BTreeMap<u32, Option<(String, Instant)>>>);

impl Waiting {
    /// Device `id` is to come.
    pub(super) fn begin(&self, id: u32) {
        self.lock().entry(id).or_default();
    }

    /// Device `id` could not be had for that reason, and is tried again after `pause`.
    pub(super) fn note(&self, id: u32, reason: String, pause: Duration) {
        self.lock().insert(id, Some((reason, Instant::now() + pause)));
    }

    /// Device `id` has come, or nobody waits for it any more.
    pub(super) fn forget(&self, id: u32) {
        self.lock().remove(&id);
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// What is to be shown of each that could not be had, by number.
    pub(super) fn all(&self) -> Vec<WaitingDevice> {
        let now = Instant::now();
        let shown = |(id, failed): (&u32, &Option<(String, Instant)>)| {
            let (reason, next) = failed.as_ref()?;
            let next_try = next.saturating_duration_since(now);
            Some(WaitingDevice { id: *id, reason: reason.clone(), next_try })
        };
        self.lock().iter().filter_map(shown).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Option<(String, Instant)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pause after the one of `pause`.
pub(super) fn longer(pause: Duration) -> Duration {
    (pause * 2).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waiting_device_has_its_last_reason_until_it_has_come() {
        let waiting = Waiting::default();
        waiting.begin(3);
        assert_eq!((waiting.count(), waiting.all()), (1, Vec::new()), "it has not been tried");
        waiting.note(3, "the registry is down".to_owned(), FIRST_PAUSE);
        waiting.note(1, "busy".to_owned(), LONGEST_PAUSE);
        waiting.note(3, "no such image".to_owned(), Duration::ZERO);
        let all = waiting.all();
        assert_eq!(all.iter().map(|device| device.id).collect::<Vec<_>>(), [1, 3]);
        assert!(all[0].next_try > FIRST_PAUSE && all[1].next_try.is_zero());
        assert_eq!(all[1].reason, "no such image");
        waiting.begin(1);
        waiting.forget(3);
        waiting.forget(3);
        assert_eq!((waiting.count(), waiting.all().len()), (1, 1));
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        let pauses = std::iter::successors(Some(FIRST_PAUSE), |pause| Some(longer(*pause)));
        let seconds: Vec<u64> = pauses.take(8).map(|pause| pause.as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
