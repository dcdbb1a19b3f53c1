//! Sessions that an earlier daemon left are taken over while clients come:
//! those who ask for one wait until it is there.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long clients wait at most for hosts that an earlier daemon left. One that
/// is stopped is taken over when it goes on, whenever that is.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many are still to be taken over.
pub(crate) struct Adoption {
    pending: watch::Sender<usize>,
    deadline: Instant,
}

impl Adoption {
    /// Begins with nobody to take over.
    pub(crate) fn new() -> Self {
        Self {
            pending: watch::Sender::new(0),
            deadline: Instant::now() + PATIENCE,
        }
    }

    /// So many are to be taken over.
    pub(crate) fn begin(&self, count: usize) {
        self.pending.send_modify(|pending| *pending += count);
    }

    /// One of them was, or is not there any more.
    pub(crate) fn one_done(&self) {
        self.pending
            .send_modify(|pending| *pending = pending.saturating_sub(1));
    }

    /// Waits until all are there, not for long.
    pub(crate) async fn over(&self) {
        if *self.pending.borrow() == 0 {
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
            adoption.one_done();
            adoption.one_done();
        });
        adoption.begin(1);
        adoption.deadline = Instant::now();
        adoption.over().await;
        assert_eq!(*adoption.pending.borrow(), 1);
    }
}
