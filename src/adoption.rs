//! Sessions that an earlier daemon left are taken over while clients come:
//! those who ask for one wait until it is there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pythond_protocol::SessionName;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How long clients wait at most for hosts that an earlier daemon left. One that
/// is stopped is taken over when it goes on, whenever that is.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many are still to be taken over.
pub(crate) struct Adoption {
    pending: watch::Sender<usize>,
    /// Sessions that somebody waits for.
    wanted: Mutex<HashMap<SessionName, Arc<Notify>>>,
    deadline: Instant,
}

impl Adoption {
    /// Begins with nobody to take over.
    pub(crate) fn new() -> Self {
        Self {
            pending: watch::Sender::new(0),
            wanted: Mutex::default(),
            deadline: Instant::now() + PATIENCE,
        }
    }

    /// So many are to be taken over.
    pub(crate) fn begin(&self, count: usize) {
        self.pending.send_modify(|pending| *pending += count);
    }

    fn wanted(&self) -> MutexGuard<'_, HashMap<SessionName, Arc<Notify>>> {
        // Each change is one step of the map.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of them was, under this name, or is not there any more.
    pub(crate) fn one_done(&self, name: Option<&SessionName>) {
        let wanted = name.and_then(|name| self.wanted().remove(name));
        if let Some(came) = wanted {
            came.notify_waiters();
        }
        self.pending
            .send_modify(|pending| *pending = pending.saturating_sub(1));
    }

    fn is_over(&self) -> bool {
        *self.pending.borrow() == 0 || Instant::now() >= self.deadline
    }

    /// Waits until one is there, whatever keeps the others; not for long.
    pub(crate) async fn over_for(&self, name: &SessionName, is_there: impl Fn() -> bool) {
        if self.is_over() || is_there() {
            return;
        }
        let came = Arc::clone(self.wanted().entry(name.clone()).or_default());
        let mut came = std::pin::pin!(came.notified());
        // What comes between the look and the wait is not missed.
        came.as_mut().enable();
        if !is_there() {
            tokio::select! {
                () = came => {}
                () = self.over() => {}
            }
        }
    }

    /// Waits until all are there, not for long.
    pub(crate) async fn over(&self) {
        if self.is_over() {
            return;
        }
        let mut pending = self.pending.subscribe();
        let all_there = pending.wait_for(|pending| *pending == 0);
        // Too late, or the daemon ends: who asks is answered as things are.
        let _ = tokio::time::timeout_at(self.deadline, all_there).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_waits_for_all_but_not_for_ever() {
        let mut adoption = Adoption::new();
        adoption.over().await;
        adoption.begin(2);
        let ((), ()) = tokio::join!(adoption.over(), async {
            adoption.one_done(None);
            adoption.one_done(None);
        });
        adoption.begin(1);
        adoption.deadline = Instant::now();
        adoption.over().await;
        assert_eq!(*adoption.pending.borrow(), 1);
    }

    #[tokio::test]
    async fn who_asks_for_a_session_waits_for_no_other() {
        let adoption = Adoption::new();
        adoption.begin(3);
        let [first, second]: [SessionName; 2] = ["first", "second"].map(|it| it.parse().unwrap());
        let there = std::cell::Cell::new(false);
        let looks = std::cell::Cell::new(0);
        let is_there = || {
            looks.set(looks.get() + 1);
            there.get()
        };
        let ((), ()) = tokio::join!(adoption.over_for(&first, is_there), async {
            adoption.one_done(Some(&second));
            there.set(true);
            adoption.one_done(Some(&first));
        });
        assert_eq!((looks.get(), *adoption.pending.borrow()), (2, 1));
        adoption.over_for(&first, || true).await;
        assert!(adoption.wanted().is_empty());
    }
}
