//! Mutexes of this module: what they protect is whole between any two statements.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The content of a mutex, also after a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
