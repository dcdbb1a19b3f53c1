//! Lines to files and to standard error, written by threads of their own so
//! that a slow disk or terminal never holds up a session.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::log_file::LogFile;

/// Most bytes that wait for a sink.
const MAX_WAITING: usize = 1 << 20;
/// Lines are gathered this long before they are written.
const GATHER: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped: u64,
    writing: bool,
    closed: bool,
}

impl Waiting {
    /// Nothing is to be written, nor to be said of what was dropped.
    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.dropped == 0
    }
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Bytes and counters are whole at every moment.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One destination of lines. Dropping the last clone ends its thread.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    shared: Arc<Shared>,
}

impl Sink {
    /// A sink and its thread.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn start(
        name: &str,
        mut target: impl Write + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(64 << 10)
            .spawn(move || write_lines(&theirs, &mut target))?;
        Ok(Self { shared })
    }

    /// Hands a line over; never waits. What does not fit is counted and said.
    pub(crate) fn line(&self, line: &[u8]) {
        let mut waiting = self.shared.waiting();
        if waiting.bytes.len() + line.len() > MAX_WAITING {
            waiting.dropped += 1;
            drop(waiting);
            self.shared.changed.notify_all();
            return;
        }
        let was_empty = waiting.bytes.is_empty();
        waiting.bytes.extend_from_slice(line);
        drop(waiting);
        if was_empty {
            self.shared.changed.notify_all();
        }
    }

    /// Waits until everything so far is written, for at most `patience`.
    pub(crate) fn flush(&self, patience: Duration) {
        let mut waiting = self.shared.waiting();
        // No more gathering: the process is about to end.
        waiting.closed = true;
        self.shared.changed.notify_all();
        let busy = |waiting: &mut Waiting| waiting.writing || !waiting.is_empty();
        drop(
            self.shared
                .changed
                .wait_timeout_while(waiting, patience, busy),
        );
    }
}

fn write_lines(shared: &Shared, target: &mut impl Write) {
    let mut batch = Vec::new();
    loop {
        let mut waiting = shared.waiting();
        while waiting.is_empty() {
            waiting = shared
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if !waiting.closed {
            drop(waiting);
            std::thread::sleep(GATHER);
            waiting = shared.waiting();
        }
        std::mem::swap(&mut waiting.bytes, &mut batch);
        let dropped = std::mem::take(&mut waiting.dropped);
        waiting.writing = true;
        drop(waiting);
        if dropped > 0 {
            batch.extend_from_slice(format!("WARN: {dropped} log lines dropped\n").as_bytes());
        }
        // A full disk or a closed terminal must not end the daemon.
        let _ = target.write_all(&batch).and_then(|()| target.flush());
        batch.clear();
        shared.waiting().writing = false;
        shared.changed.notify_all();
    }
}

/// Where the daemon's own words go: standard error, and the access log.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    stderr: Sink,
    access: Option<Sink>,
    mirror: bool,
}

impl Log {
    /// A log that only talks to standard error, or to the file that this is.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn to_stderr(file: Option<LogFile>) -> std::io::Result<Self> {
        let stderr = match file {
            Some(file) => Sink::start("log-stderr", file),
            None => Sink::start("log-stderr", std::io::stderr()),
        }?;
        Ok(Self {
            stderr,
            access: None,
            mirror: false,
        })
    }

    /// The same with an access log in a file; `mirror` shows its lines on
    /// standard error too.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn with_access(mut self, file: LogFile, mirror: bool) -> std::io::Result<Self> {
        self.access = Some(Sink::start("log-access", file)?);
        self.mirror = mirror;
        Ok(self)
    }

    /// Says something to whoever runs the daemon.
    pub(crate) fn note(&self, text: &str) {
        self.stderr.line(format!("{text}\n").as_bytes());
    }

    /// One whole line for the access log.
    pub(crate) fn access(&self, line: &[u8]) {
        if let Some(access) = &self.access {
            access.line(line);
        }
        if self.mirror {
            self.stderr.line(line);
        }
    }

    /// Writes what is left, without waiting for a stuck terminal.
    pub(crate) fn flush(&self) {
        if let Some(access) = &self.access {
            access.flush(Duration::from_millis(500));
        }
        self.stderr.flush(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Target(Arc<Mutex<Vec<u8>>>);

    impl Write for Target {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_is_dropped_while_none_waits_is_told_at_once() {
        let target = Target::default();
        let sink = Sink::start("test", target.clone()).unwrap();
        sink.line(&vec![b'x'; MAX_WAITING + 1]);
        sink.flush(Duration::from_secs(60));
        let text = String::from_utf8(target.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "WARN: 1 log lines dropped\n");
    }

    #[test]
    fn lines_arrive_in_order_and_what_is_dropped_is_counted() {
        let target = Target::default();
        let sink = Sink::start("test", target.clone()).unwrap();
        // Nothing is written meanwhile, so that the next lines wait.
        let held = target.0.lock().unwrap();
        sink.line(b"one\n");
        while !sink.shared.waiting().writing {
            std::thread::yield_now();
        }
        sink.line(b"two\n");
        sink.line(&vec![b'x'; MAX_WAITING]);
        drop(held);
        sink.flush(Duration::from_secs(5));
        let text = String::from_utf8(target.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "one\ntwo\nWARN: 1 log lines dropped\n");
    }
}
