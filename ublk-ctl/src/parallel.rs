//! The same for many at once.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// As many as the daemon works at in the driver at once.
const AT_ONCE: usize = 16;

/// Does `work` with each of `items`, several at once; what comes of them is in their order.
pub(crate) fn for_each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(items.len())));
    let take = || {
        while let Some((number, item)) = take_next(items, &next) {
            let result = work(item);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
        }
    };
    thread::scope(|scope| {
        // The caller's own thread is one of them.
        for _ in 1..AT_ONCE.min(items.len()) {
            // Where there are not so many threads, fewer do all of it.
            if thread::Builder::new().spawn_scoped(scope, take).is_err() {
                break;
            }
        }
        take();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

fn take_next<'a, T>(items: &'a [T], next: &AtomicUsize) -> Option<(usize, &'a T)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    items.get(number).map(|item| (number, item))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn all_are_done_at_once_and_come_back_in_order() {
        // Ends only when all of them are under way.
        let all = Barrier::new(AT_ONCE);
        let items: Vec<usize> = (0..AT_ONCE).collect();
        let done = for_each(&items, |item| {
            all.wait();
            item * 2
        });
        assert_eq!(done, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        assert_eq!(for_each(&(0..1000).collect::<Vec<u32>>(), |item| *item).len(), 1000);
        assert!(for_each(&[0_u8; 0], |item| *item).is_empty());
    }
}
