//! How the threads wake each other, and what the I/O thread is handed.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::SeqCst;

use pythond_protocol::lane::HostEvent;

use super::Shared;
use crate::sys::{ThreadId, handle_by_nothing, wake_signal};

impl Shared {
    /// Something came that a reader or an asker waits for.
    pub(crate) fn tell_news(&self) {
        self.news.store(true, SeqCst);
        self.wake_io();
    }

    /// Takes the sign that [`Self::tell_news`] left.
    pub(crate) fn take_news(&self) -> bool {
        self.news.swap(false, SeqCst)
    }

    /// Whether the I/O thread wants to know when a cell ends.
    pub(crate) fn watch_ends(&self, watch: bool) {
        self.watch_ends.store(watch, SeqCst);
    }

    /// Hands the I/O thread something for the control lane.
    pub(crate) fn send(&self, event: HostEvent, body: Vec<u8>) {
        self.outbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((event, body));
        self.wake_io();
    }

    /// Takes what waits for the control lane.
    pub(crate) fn take_outbox(&self) -> Vec<(HostEvent, Vec<u8>)> {
        std::mem::take(&mut *self.outbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Names the calling thread as the I/O thread.
    pub(crate) fn set_io_thread(&self) {
        self.io_thread.get_or_init(ThreadId::current);
        self.io_thread_id
            .store(rustix::thread::gettid().as_raw_nonzero().get(), SeqCst);
    }

    /// The kernel's id of the I/O thread, for its directory under `/proc`.
    pub(crate) fn io_thread_id(&self) -> i32 {
        self.io_thread_id.load(SeqCst)
    }

    /// The I/O thread looks around now: whoever has something from now on has
    /// to wake it again.
    pub(crate) fn io_is_awake(&self) {
        self.woken.store(false, SeqCst);
    }

    /// Makes the I/O thread look around. By signal: a cell may have closed
    /// every descriptor of the main thread.
    pub(crate) fn wake_io(&self) {
        if self.woken.swap(true, SeqCst) {
            return;
        }
        if let Some(thread) = self.io_thread.get() {
            // A cell may have put every signal back to its default action,
            // which for this one is the end of the process.
            let _ = handle_by_nothing(wake_signal());
            if !thread.signal(wake_signal()) {
                // It was not woken: the next one tries again.
                self.woken.store(false, SeqCst);
            }
        }
    }

    /// True if the I/O thread reads the cell lane.
    pub(crate) fn io_reads_cells(&self) -> bool {
        self.io_reads_cells.load(SeqCst)
    }

    /// The main thread lost its descriptors: the I/O thread takes over.
    pub(crate) fn let_io_read_cells(&self) {
        self.io_reads_cells.store(true, SeqCst);
        self.wake_io();
    }
}
