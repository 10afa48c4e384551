//! Calls that the ring does not have and that may wait for a disk, on a thread of their own.

use std::{io, thread};

use futures_channel::oneshot;

/// Runs `work` on a thread called `name` that ends with it, so that no other task of the calling thread waits meanwhile. It costs
/// a thread each time, so it is for what is done seldom. `work` is done to its end also where the future is dropped.
///
/// # Errors
/// Where no thread can be had: then `work` has been dropped; and where it has panicked.
pub async fn blocking<T, W>(name: &str, work: W) -> io::Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || drop(sender.send(work())))?;
    receiver.await.map_err(|_| io::Error::other("a call that waits for a disk has panicked"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::reactor::{Reactor, ReactorConfig};

    #[test]
    fn a_call_that_hangs_holds_nothing_else_up() {
        let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
        let (sender, receiver) = mpsc::channel();
        let work = async {
            let hung = blocking("hung", move || receiver.recv().unwrap());
            let other = async {
                for _ in 0..10 {
                    reactor.yield_now().await;
                }
                sender.send(5).unwrap();
            };
            futures_util::join!(hung, other).0.unwrap()
        };
        assert_eq!(reactor.block_on(work).unwrap(), 5);
    }

    #[test]
    fn a_panic_is_an_error_of_the_call() {
        let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
        let called = reactor.block_on(blocking::<(), _>("panics", || panic!("told to"))).unwrap();
        assert!(called.is_err());
    }
}
