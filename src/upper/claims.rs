//! Who changes which blocks of a file in place: one at a time, in the order in which they came.
//!
//! A change of a part of a block reads the rest and writes all of it, and a hole takes whole blocks. So changes of one block
//! wait for one another, and reads of it wait for those changes.

use std::ops::Range;

use crate::reactor::{Watched, waiting_for};

/// The claims to one file.
#[derive(Debug, Default)]
pub(super) struct Claims(Watched<State>);

#[derive(Debug, Default)]
struct State {
    next_ticket: u64,
    /// In the order in which they came. There is one for each request under way, so that few are looked through.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    blocks: Range<u64>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Change,
    /// A change that was given up in the middle: the kernel may yet write what nobody waits for any more.
    Lost,
}

/// Blocks that are claimed until this is dropped. A change that is dropped before [`Claim::release`] claims them for ever.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    ticket: u64,
    is_changing: bool,
}

/// A change of these blocks was given up in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GivenUp;

impl Claims {
    /// Waits until nobody changes any of `blocks`, and keeps it so.
    pub(super) async fn read(&self, blocks: Range<u64>) -> Claim<'_> {
        let claim = self.enter(blocks, Kind::Read);
        // A change that was given up keeps no reader away: overlapping ones may take effect in either order.
        let _ = claim.wait().await;
        claim
    }

    /// Waits until nobody reads or changes any of `blocks`, and keeps it so.
    ///
    /// # Errors
    /// [`GivenUp`].
    pub(super) async fn change(&self, blocks: Range<u64>) -> Result<Claim<'_>, GivenUp> {
        let mut claim = self.enter(blocks, Kind::Change);
        claim.wait().await?;
        claim.is_changing = true;
        Ok(claim)
    }

    fn enter(&self, blocks: Range<u64>, kind: Kind) -> Claim<'_> {
        let ticket = self.0.look(|state| {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.entries.push(Entry { ticket, blocks, kind });
            ticket
        });
        Claim { claims: self, ticket, is_changing: false }
    }
}

impl Claim<'_> {
    /// The change has ended, well or not.
    pub(super) fn release(mut self) {
        self.is_changing = false;
    }

    async fn wait(&self) -> Result<(), GivenUp> {
        waiting_for(|| "a request to the same blocks", self.claims.0.wait(|state| state.outcome(self.ticket)))
            .await
    }
}

impl State {
    /// Whether whoever has this ticket has its blocks, if it need not wait for those before it.
    fn outcome(&self, ticket: u64) -> Option<Result<(), GivenUp>> {
        let Some(at) = self.position(ticket) else { return Some(Ok(())) };
        let (before, rest) = self.entries.split_at(at);
        let mine = rest.first()?;
        let mut in_the_way = before.iter().filter(|other| mine.waits_for(other)).peekable();
        if in_the_way.peek().is_none() {
            return Some(Ok(()));
        }
        in_the_way.any(|other| other.kind == Kind::Lost).then_some(Err(GivenUp))
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&ticket, |entry| entry.ticket).ok()
    }
}

impl Entry {
    fn waits_for(&self, other: &Self) -> bool {
        let overlap = self.blocks.start < other.blocks.end && other.blocks.start < self.blocks.end;
        let conflict = match self.kind {
            Kind::Read => other.kind == Kind::Change,
            Kind::Change | Kind::Lost => true,
        };
        overlap && conflict
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.0.change(|state| {
            let Some(at) = state.position(self.ticket) else { return };
            match state.entries.get_mut(at) {
                Some(entry) if self.is_changing => entry.kind = Kind::Lost,
                _ => drop(state.entries.remove(at)),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn changes_of_a_block_come_one_after_another_and_others_pass() {
        let claims = Claims::default();
        let first = claims.change(0..2).now_or_never().unwrap().unwrap();
        let mut second = Box::pin(claims.change(1..4));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = Box::pin(claims.change(3..5));
        assert!(third.as_mut().now_or_never().is_none(), "who waits is not overtaken");
        let apart = claims.change(5..6).now_or_never().unwrap().unwrap();
        first.release();
        let second = second.now_or_never().unwrap().unwrap();
        assert!(third.as_mut().now_or_never().is_none());
        second.release();
        third.now_or_never().unwrap().unwrap().release();
        apart.release();
        assert!(claims.0.look(|state| state.entries.is_empty()));
    }

    #[test]
    fn readers_share_and_keep_changes_away() {
        let claims = Claims::default();
        let readers = [0..8, 4..9].map(|blocks| claims.read(blocks).now_or_never().unwrap());
        let mut change = Box::pin(claims.change(7..8));
        assert!(change.as_mut().now_or_never().is_none());
        let mut late = Box::pin(claims.read(7..8));
        assert!(late.as_mut().now_or_never().is_none());
        drop(readers);
        change.now_or_never().unwrap().unwrap().release();
        drop(late.now_or_never().unwrap());
        assert!(claims.0.look(|state| state.entries.is_empty()));
    }

    #[test]
    fn blocks_of_a_change_that_was_given_up_are_not_changed_again_and_one_that_waited_leaves_nothing() {
        let claims = Claims::default();
        let change = claims.change(0..2).now_or_never().unwrap().unwrap();
        let mut waiting = Box::pin(claims.change(1..3));
        assert!(waiting.as_mut().now_or_never().is_none());
        let mut gone = Box::pin(claims.change(2..3));
        assert!(gone.as_mut().now_or_never().is_none());
        drop(gone);
        drop(change);
        assert_eq!(waiting.now_or_never().unwrap().err(), Some(GivenUp));
        drop(claims.read(0..3).now_or_never().unwrap());
        claims.change(2..3).now_or_never().unwrap().unwrap().release();
        assert_eq!(claims.0.look(|state| state.entries.len()), 1);
    }
}
