//! Follows a push: with a bar, and until the user ends it.

use std::{sync::Arc, time::Duration};

use stratabd::server::{
    failure::{Failure, FailureClass},
    interrupt::Interrupt,
    push::PushProgress,
};

use crate::progress::Progress;

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);

/// Waits for `pushing`, which tells `progress` how far it has come. What is under way when the user ends it ends with the
/// runtime, and no tag has moved.
pub(crate) async fn follow<T>(
    progress: Arc<PushProgress>,
    pushing: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut interrupt = Interrupt::catch()?;
    // On the heap: what follows a push is larger than a thread would like to hold.
    let mut pushing = Box::pin(pushing);
    let bar = Progress::new("pushing", 0);
    loop {
        tokio::select! {
            pushed = &mut pushing => return pushed,
            () = interrupt.wait() => return Err(Failure::new(FailureClass::Interrupted, "interrupted")),
            () = tokio::time::sleep(TICK) => {
                bar.set_total(progress.total_bytes());
                bar.set(progress.done_bytes());
            }
        }
    }
}
