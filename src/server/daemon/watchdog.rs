//! Tells the service manager that this process serves, for as long as it does: a process that only lives is ended by it, and the next
//! one takes its devices over.

use std::{convert::Infallible, time::Duration};

use sd_notify::NotifyState;
use tokio::time::sleep;

use super::life::notify;
use crate::server::reactors::Reactors;

/// Part of its interval after which the manager is told again: one that comes late does no harm.
const PART: u32 = 3;

/// Tells the manager, if it wants to be told, whenever all threads that serve devices have answered. Returns never.
pub(super) async fn tell(reactors: &Reactors) -> Infallible {
    let Some(interval) = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero()) else {
        return std::future::pending().await;
    };
    tell_every(interval / PART, reactors, || notify(&[NotifyState::Watchdog])).await
}

async fn tell_every(pause: Duration, reactors: &Reactors, mut tell: impl FnMut()) -> Infallible {
    loop {
        // What hangs is waited for here, without a word.
        reactors.answer().await;
        tell();
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        pin::Pin,
        sync::mpsc,
        time::{Duration, Instant},
    };

    use tokio::time::timeout;

    use super::*;
    use crate::server::config::ReactorSection;

    /// Goes on with `telling` until it has told so often.
    async fn until(mut telling: Pin<&mut impl Future>, told: &Cell<u32>, goal: u32) {
        let began = Instant::now();
        while told.get() < goal {
            assert!(began.elapsed() < Duration::from_secs(20), "{} of {goal}", told.get());
            let _ = timeout(Duration::from_millis(5), telling.as_mut()).await;
        }
    }

    #[tokio::test]
    async fn the_manager_is_told_until_a_thread_that_serves_hangs_and_again_when_it_goes_on() {
        let section = ReactorSection { threads: 2, ..ReactorSection::default() };
        let reactors = Reactors::start(&section, || Ok(())).unwrap();
        let told = Cell::new(0_u32);
        let telling = tell_every(Duration::from_millis(1), &reactors, || told.set(told.get() + 1));
        let mut telling = std::pin::pin!(telling);
        until(telling.as_mut(), &told, 3).await;
        let ((hangs, has_hung), (hold, held)) = (mpsc::channel::<()>(), mpsc::channel::<()>());
        reactors.one().spawn(move |_| async move {
            let _ = hangs.send(());
            let _ = held.recv_timeout(Duration::from_secs(20));
        });
        has_hung.recv_timeout(Duration::from_secs(20)).unwrap();
        // One question may have been answered before.
        let most = told.get() + 1;
        let _ = timeout(Duration::from_millis(50), telling.as_mut()).await;
        assert!(told.get() <= most, "it is told that a thread serves that hangs");
        drop(hold);
        until(telling.as_mut(), &told, most + 2).await;
    }
}
