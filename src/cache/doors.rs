//! One at a time through each of many doors: who opens an entry and who removes it do not meet, and neither holds up those
//! of other entries.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures_util::lock::{Mutex as AsyncMutex, OwnedMutexGuard};

#[derive(Debug, Default)]
pub(super) struct Doors(Mutex<HashMap<u64, Weak<AsyncMutex<()>>>>);

/// Held by the one who is in the door.
pub(super) type Passage = OwnedMutexGuard<()>;

impl Doors {
    /// Waits until nobody else is in the door of this `number`.
    pub(super) async fn enter(&self, number: u64) -> Passage {
        let door = {
            let mut doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            doors.retain(|_, door| door.strong_count() > 0);
            doors.get(&number).and_then(Weak::upgrade).unwrap_or_else(|| {
                let door = Arc::default();
                doors.insert(number, Arc::downgrade(&door));
                door
            })
        };
        door.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_is_in_each_door_and_a_door_that_nobody_uses_is_gone() {
        let doors = Doors::default();
        let first = doors.enter(1).now_or_never().unwrap();
        assert!(doors.enter(1).now_or_never().is_none());
        assert!(doors.enter(2).now_or_never().is_some());
        drop(first);
        assert!(doors.enter(1).now_or_never().is_some());
        assert!(doors.enter(3).now_or_never().is_some());
        assert_eq!(doors.0.lock().unwrap().len(), 1);
    }
}
