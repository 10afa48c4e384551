//! Writes to a data file that are under way: older ones of the same grains go first, and none is punched away.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures_channel::oneshot;

use super::grain::Grains;

#[derive(Debug, Default)]
pub(super) struct Writes(Mutex<Underway>);

#[derive(Debug, Default)]
struct Underway {
    writing: BTreeMap<u64, Grains>,
    next: u64,
    /// Writes that wait for older ones of the same grains; they look again when any write ends.
    turns: Vec<oneshot::Sender<()>>,
}

/// Marks grains as being written until it is dropped, also by a task that ends early.
pub(super) struct WriteMark<'a> {
    writes: &'a Writes,
    number: u64,
}

impl Writes {
    pub(super) fn begin(&self, grains: Grains) -> WriteMark<'_> {
        let mut underway = self.underway();
        let number = underway.next;
        underway.next += 1;
        underway.writing.insert(number, grains);
        WriteMark { writes: self, number }
    }

    /// Whether some of `grains` are being written.
    pub(super) fn touch(&self, grains: &Grains) -> bool {
        self.underway().writing.values().any(|other| overlap(other, grains))
    }

    fn underway(&self) -> MutexGuard<'_, Underway> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WriteMark<'_> {
    /// Waits until no older write of some of the grains is under way.
    pub(super) async fn turn(&self) {
        loop {
            let ended = {
                let mut underway = self.writes.underway();
                let mut older = underway.writing.range(..self.number);
                let ours = underway.writing.get(&self.number);
                if !ours.is_some_and(|ours| older.any(|(_, other)| overlap(other, ours))) {
                    return;
                }
                let (sender, receiver) = oneshot::channel();
                underway.turns.push(sender);
                receiver
            };
            // Nothing is sent: the senders are dropped.
            let _ = ended.await;
        }
    }
}

impl Drop for WriteMark<'_> {
    fn drop(&mut self) {
        let turns = {
            let mut underway = self.writes.underway();
            underway.writing.remove(&self.number);
            std::mem::take(&mut underway.turns)
        };
        // Wakes all who wait for a turn, the lock being free.
        drop(turns);
    }
}

fn overlap(left: &Grains, right: &Grains) -> bool {
    left.start < right.end && right.start < left.end
}
