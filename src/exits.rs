//! How hosts ended, handed from the zygotes that reap them to the sessions
//! that wait to know. Keyed by socket name, which is never used twice.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pythond_protocol::lane::HostEnd;
use tokio::sync::{mpsc, oneshot};

/// Most reports that are kept for sessions that have not asked yet.
const MAX_UNCLAIMED: usize = 1024;

/// How a host ended.
#[derive(Clone, Debug)]
pub(crate) struct HostExit {
    /// What its zygote tells.
    pub(crate) end: Box<HostEnd>,
    /// The end of the output log of the cell that ran on its main thread.
    pub(crate) log: Vec<u8>,
}

#[derive(Debug)]
struct Watch {
    zygote_pid: i32,
    reply: oneshot::Sender<HostExit>,
}

#[derive(Debug, Default)]
struct Book {
    watches: HashMap<String, Watch>,
    unclaimed: HashMap<String, HostExit>,
}

/// Where reports and those who wait for them meet.
#[derive(Debug)]
pub(crate) struct Exits {
    book: Mutex<Book>,
    orphans: mpsc::UnboundedSender<HostExit>,
}

impl Exits {
    /// Reports of sessions that nobody watches also go to `orphans`.
    pub(crate) fn new(orphans: mpsc::UnboundedSender<HostExit>) -> Self {
        Self {
            book: Mutex::default(),
            orphans,
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing in here leaves the book half changed.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of a host. The receiver fails if the zygote that
    /// would report it is gone.
    pub(crate) fn watch(&self, zygote_pid: i32, socket: &str) -> oneshot::Receiver<HostExit> {
        let (reply, receiver) = oneshot::channel();
        let mut book = self.book();
        match book.unclaimed.remove(socket) {
            // The receiver is ours, so this cannot fail.
            Some(exit) => drop(reply.send(exit)),
            None => drop(
                book.watches
                    .insert(socket.to_owned(), Watch { zygote_pid, reply }),
            ),
        }
        receiver
    }

    /// Nobody waits for the end of this host any more.
    pub(crate) fn unwatch(&self, socket: &str) {
        self.book().watches.remove(socket);
    }

    /// A session waits for the end of this host.
    pub(crate) fn is_watched(&self, socket: &str) -> bool {
        self.book().watches.contains_key(socket)
    }

    /// A zygote reports.
    pub(crate) fn report(&self, exit: HostExit) {
        let mut book = self.book();
        let socket = &exit.end.socket;
        if let Some(watch) = book.watches.remove(socket) {
            // A session that is gone already does not need it.
            let _ = watch.reply.send(exit);
            return;
        }
        if exit.end.session.is_some() {
            // The receiver lives as long as the daemon.
            let _ = self.orphans.send(exit.clone());
        }
        if book.unclaimed.len() < MAX_UNCLAIMED {
            book.unclaimed.insert(socket.clone(), exit);
        }
    }

    /// A zygote is gone: nobody will report its hosts.
    pub(crate) fn forget_zygote(&self, zygote_pid: i32) {
        self.book()
            .watches
            .retain(|_, watch| watch.zygote_pid != zygote_pid);
    }
}

#[cfg(test)]
mod tests {
    use pythond_protocol::SessionId;
    use pythond_protocol::outcome::ProcessEnd;

    use super::*;

    fn exit(socket: &str) -> HostExit {
        HostExit {
            end: Box::new(HostEnd {
                pid: 7,
                socket: socket.to_owned(),
                end: ProcessEnd::Exited { status: 3 },
                last_stderr: String::new(),
                cell: None,
                session: Some(("work".parse().unwrap(), SessionId::from_random([0; 8]), 1)),
                log_lost: 0,
                cause: None,
                died_at: String::new(),
                died_ns: 0,
                fates: Vec::new(),
                fates_are_all: false,
                born_ns: 0,
                ordered: false,
                start_time: 0,
                hosted: None,
            }),
            log: Vec::new(),
        }
    }

    #[test]
    fn a_report_reaches_who_asked_before_or_after() {
        let (sender, mut orphans) = mpsc::unbounded_channel();
        let exits = Exits::new(sender);
        let mut early = exits.watch(1, "a");
        exits.report(exit("a"));
        assert_eq!(early.try_recv().unwrap().end.pid, 7);
        assert!(orphans.try_recv().is_err());
        exits.report(exit("b"));
        assert!(orphans.try_recv().is_ok());
        assert_eq!(exits.watch(1, "b").try_recv().unwrap().end.pid, 7);
    }

    #[test]
    fn a_zygote_that_is_gone_leaves_nobody_waiting() {
        let exits = Exits::new(mpsc::unbounded_channel().0);
        let mut of_gone = exits.watch(1, "a");
        let mut of_other = exits.watch(2, "b");
        exits.forget_zygote(1);
        assert_eq!(
            of_gone.try_recv().unwrap_err(),
            oneshot::error::TryRecvError::Closed
        );
        assert_eq!(
            of_other.try_recv().unwrap_err(),
            oneshot::error::TryRecvError::Empty
        );
    }
}
