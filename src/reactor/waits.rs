//! What a piece of work waits for, so that whoever finds that it does not end can say why.
//!
//! Somebody who looks after work drives it by [`WaitsFor::drive`]. Whatever the work meets below, on the same thread, is wrapped in
//! [`waiting_for`] where it may take long. Work that nobody looks after says it to nobody.

use std::{
    borrow::Cow,
    cell::RefCell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

thread_local! {
    /// Of the work that is being driven.
    static DRIVEN: RefCell<Option<Rc<WaitsFor>>> = const { RefCell::new(None) };
}

/// What one piece of work waits for at this moment.
#[derive(Debug, Default)]
pub struct WaitsFor(RefCell<Reasons>);

#[derive(Debug, Default)]
struct Reasons {
    /// In the order in which they came; parts of the work may wait at the same time.
    texts: Vec<(u64, Cow<'static, str>)>,
    next: u64,
}

/// One of its reasons, until it is dropped.
#[derive(Debug)]
struct Reason {
    of: Rc<WaitsFor>,
    number: u64,
}

pin_project! {
    /// What [`waiting_for`] makes.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct WaitingFor<W, F> {
        what: Option<W>,
        reason: Option<Reason>,
        #[pin]
        work: F,
    }
}

impl WaitsFor {
    /// Drives `work`, and keeps what it says that it waits for.
    pub async fn drive<F: Future>(self: &Rc<Self>, mut work: Pin<&mut F>) -> F::Output {
        poll_fn(|context| {
            let _restored = Restored(DRIVEN.replace(Some(Rc::clone(self))));
            work.as_mut().poll(context)
        })
        .await
    }

    fn add(self: Rc<Self>, text: Cow<'static, str>) -> Reason {
        let mut reasons = self.0.borrow_mut();
        let number = reasons.next;
        reasons.next += 1;
        reasons.texts.push((number, text));
        drop(reasons);
        Reason { of: self, number }
    }

    /// What it has waited for the longest of all that it waits for; None while it does not wait, or has not said for what.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        self.0.borrow().texts.first().map(|(_, text)| text.clone().into_owned())
    }
}

/// Has whoever looks after this work know that it waits for `what`, from when `work` begins to wait until it ends. `what` is
/// not called where it need not wait, or nobody looks after it. On a way of every request it should be a text that is there already.
pub fn waiting_for<W, T, F>(what: W, work: F) -> WaitingFor<W, F>
where
    W: FnOnce() -> T,
    T: Into<Cow<'static, str>>,
    F: Future,
{
    WaitingFor { what: Some(what), reason: None, work }
}

impl<W, T, F> Future for WaitingFor<W, F>
where
    W: FnOnce() -> T,
    T: Into<Cow<'static, str>>,
    F: Future,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let polled = this.work.poll(context);
        if polled.is_ready() {
            *this.reason = None;
        } else if let Some(what) = this.what.take() {
            let driven = DRIVEN.with_borrow(Option::clone);
            *this.reason = driven.map(|driven| driven.add(what().into()));
        }
        polled
    }
}

impl Drop for Reason {
    fn drop(&mut self) {
        self.of.0.borrow_mut().texts.retain(|(number, _)| *number != self.number);
    }
}

/// Puts back what was driven before, also where the work panics.
struct Restored(Option<Rc<WaitsFor>>);

impl Drop for Restored {
    fn drop(&mut self) {
        DRIVEN.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        pin::pin,
        task::{Context, Waker},
    };

    use futures_util::FutureExt;

    use super::*;

    async fn wait_for(what: &'static str) {
        waiting_for(|| what, pending::<()>()).await;
    }

    #[test]
    fn work_says_what_it_has_waited_for_the_longest_until_it_waits_no_more() {
        let looked_after = Rc::new(WaitsFor::default());
        assert_eq!(looked_after.text(), None);
        {
            let work = pin!(async {
                assert!(wait_for("a lock").now_or_never().is_none(), "given up at once");
                futures_util::join!(wait_for("a disk"), wait_for("a registry"));
            });
            let mut driven = Box::pin(looked_after.drive(work));
            let mut context = Context::from_waker(Waker::noop());
            assert!(driven.as_mut().poll(&mut context).is_pending());
            assert_eq!(looked_after.text().as_deref(), Some("a disk"));
        }
        assert_eq!(looked_after.text(), None, "what is dropped waits no more");
    }

    #[test]
    fn work_of_others_is_not_mixed_up() {
        let (outer, inner) = (Rc::new(WaitsFor::default()), Rc::new(WaitsFor::default()));
        let mut inside = Box::pin(wait_for("the inner"));
        let mut work = Box::pin(async {
            assert!(inner.drive(inside.as_mut()).now_or_never().is_none());
            wait_for("the outer").await;
        });
        assert!(outer.drive(work.as_mut()).now_or_never().is_none());
        assert_eq!(inner.text().as_deref(), Some("the inner"));
        assert_eq!(outer.text().as_deref(), Some("the outer"));
        assert!(wait_for("nobody's").now_or_never().is_none());
        assert!(DRIVEN.with_borrow(Option::is_none));
    }

    #[test]
    fn a_panic_leaves_nothing_behind() {
        let driven = Rc::new(WaitsFor::default());
        let mut work = Box::pin(async { panic!("as a test wants") });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            driven.drive::<_>(work.as_mut()).now_or_never()
        }));
        assert!(outcome.is_err() && DRIVEN.with_borrow(Option::is_none));
    }
}
