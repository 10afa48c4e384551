//! Runs an offline tool: with a bar, and until the user ends it.

use std::sync::{Arc, atomic::Ordering};

use stratabd::{
    offline::Watch,
    server::{
        failure::{Failure, FailureClass},
        interrupt::Interrupt,
    },
};
use tokio::task;

use crate::{block_on, progress::Progress};

/// What a tool is followed with.
pub(crate) type Follow = Watch<Box<dyn Fn(u64, u64) + Send + Sync>>;

/// Exit status after a second interruption, as of a program that ends of SIGINT.
const ENDED: i32 = 130;

/// Does `work` on a thread of its own; an interruption ends it, and it has then made nothing. A second one does not wait for it, and
/// may leave its part of a file.
pub(crate) fn run<T: Send + 'static, E: Into<Failure> + Send + 'static>(
    what: &'static str,
    work: impl FnOnce(&Follow) -> Result<T, E> + Send + 'static,
) -> Result<T, Failure> {
    block_on(async {
        let mut interrupt = Interrupt::catch()?;
        let bar = Progress::new(what, 0);
        let progress = Box::new(move |done_bytes, total_bytes| {
            bar.set_total(total_bytes);
            bar.set(done_bytes);
        });
        let follow: Arc<Follow> = Arc::new(Watch { progress, cancelled: false.into() });
        let its = Arc::clone(&follow);
        let mut working = task::spawn_blocking(move || work(&its));
        let ended = tokio::select! {
            ended = &mut working => ended,
            () = interrupt.wait() => {
                follow.cancelled.store(true, Ordering::Relaxed);
                tokio::select! {
                    ended = &mut working => ended,
                    // The thread hangs in the kernel, and a return would wait for it.
                    () = interrupt.wait() => std::process::exit(ENDED),
                }
            }
        };
        let ended = ended
            .map_err(|source| Failure::with_source(FailureClass::Internal, "the tool has failed", source))?;
        ended.map_err(E::into)
    })
}
