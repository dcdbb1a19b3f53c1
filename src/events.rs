//! What happened to sessions and cells: a bounded log that anybody can follow
//! from any place in it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::verbs::events::{CellEvent, Event, EventMessage};
use pythond_protocol::{CellId, SessionName};
use tokio::sync::watch;

#[derive(Debug)]
struct Entry {
    time: jiff::Timestamp,
    happened: Happened,
}

/// What happened. Cells are put into the words of an event only for those who
/// follow.
#[derive(Debug)]
enum Happened {
    Session(Event),
    Cell(Arc<CellEvent>, CellMoment),
}

/// What is particular to one event of a cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CellMoment {
    pub(crate) cell_id: CellId,
    pub(crate) kind: CellKind,
    pub(crate) status: CellStatus,
    /// How long it ran, in nanoseconds, and bytes of output, once it has ended.
    pub(crate) end: Option<(u64, u64)>,
}

impl Happened {
    fn session(&self) -> Option<&SessionName> {
        match self {
            Self::Session(event) => event.session(),
            Self::Cell(names, _) => Some(&names.session),
        }
    }

    fn to_event(&self) -> Event {
        let (names, moment) = match self {
            Self::Session(event) => return event.clone(),
            Self::Cell(names, moment) => (names, moment),
        };
        let cell = CellEvent {
            cell_id: moment.cell_id,
            kind: moment.kind,
            status: moment.status,
            duration_ms: moment.end.map(|(span, _)| (span / 1000) as f64 / 1000.0),
            output_bytes: moment.end.map(|(_, bytes)| bytes),
            ..(**names).clone()
        };
        match moment.status {
            CellStatus::Queued => Event::CellQueued(cell),
            CellStatus::Running => Event::CellStarted(cell),
            _ => Event::CellDone(cell),
        }
    }
}

#[derive(Debug, Default)]
struct Entries {
    /// Number of the first entry.
    first: u64,
    kept: VecDeque<Arc<Entry>>,
}

impl Entries {
    fn end(&self) -> u64 {
        self.first + self.kept.len() as u64
    }
}

/// The log of one daemon.
#[derive(Debug)]
pub(crate) struct EventLog {
    /// Tells cursors of this daemon from those of others.
    boot: String,
    entries: Mutex<Entries>,
    /// Entries that are kept.
    most: usize,
    end: watch::Sender<u64>,
}

impl EventLog {
    pub(crate) fn new(boot: u32, most: usize) -> Arc<Self> {
        Arc::new(Self {
            boot: format!("{boot:08x}"),
            entries: Mutex::default(),
            most,
            end: watch::Sender::new(0),
        })
    }

    /// Another one for each daemon.
    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Every change under the lock is complete before anything can panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event of a session.
    pub(crate) fn publish(&self, event: Event) {
        self.add(Happened::Session(event));
    }

    /// Adds an event of a cell; `names` has those of its session.
    pub(crate) fn publish_cell(&self, names: &Arc<CellEvent>, moment: CellMoment) {
        self.add(Happened::Cell(Arc::clone(names), moment));
    }

    fn add(&self, happened: Happened) {
        let entry = Arc::new(Entry {
            time: jiff::Timestamp::now(),
            happened,
        });
        let mut entries = self.entries();
        entries.kept.push_back(entry);
        if entries.kept.len() > self.most {
            entries.kept.pop_front();
            entries.first += 1;
        }
        let end = entries.end();
        drop(entries);
        self.end.send_replace(end);
    }

    fn cursor(&self, number: u64) -> String {
        format!("{}-{number}", self.boot)
    }

    /// Follows the log after a cursor, or from now on.
    pub(crate) fn follow(self: &Arc<Self>, since: Option<&str>) -> Follower {
        let end = self.entries().end();
        let number = since.and_then(|cursor| {
            let (boot, number) = cursor.split_once('-')?;
            let number: u64 = number.parse().ok()?;
            (boot == self.boot && number <= end).then_some(number)
        });
        Follower {
            next: number.unwrap_or(end),
            reset: since.is_some() && number.is_none(),
            changes: self.end.subscribe(),
            log: Arc::clone(self),
        }
    }
}

/// One who follows the log.
#[derive(Debug)]
pub(crate) struct Follower {
    log: Arc<EventLog>,
    next: u64,
    /// What came before is not here.
    reset: bool,
    changes: watch::Receiver<u64>,
}

impl Follower {
    fn message(&self, event: Event, time: jiff::Timestamp) -> EventMessage {
        EventMessage {
            cursor: self.log.cursor(self.next),
            time: format!("{time:.6}"),
            event,
        }
    }

    /// The first message.
    pub(crate) fn ready(&self) -> EventMessage {
        self.message(Event::Ready, jiff::Timestamp::now())
    }

    /// The next event, of one session if that is wanted.
    ///
    /// # Cancel safety
    /// Nothing is lost if it is dropped before it is ready.
    pub(crate) async fn next(&mut self, session: Option<&SessionName>) -> EventMessage {
        loop {
            // Before the look: what comes after it wakes the wait.
            self.changes.borrow_and_update();
            while let Some(entry) = self.take() {
                match entry {
                    Some(entry)
                        if session.is_none_or(|it| entry.happened.session() == Some(it)) =>
                    {
                        return self.message(entry.happened.to_event(), entry.time);
                    }
                    Some(_) => {}
                    None => return self.message(Event::Reset, jiff::Timestamp::now()),
                }
            }
            // The log outlives its followers.
            let _ = self.changes.changed().await;
        }
    }

    /// What is there; `Some(None)` if something is missing before it.
    fn take(&mut self) -> Option<Option<Arc<Entry>>> {
        let entries = self.log.entries();
        if self.reset || self.next < entries.first {
            self.reset = false;
            self.next = self.next.max(entries.first);
            return Some(None);
        }
        let at = usize::try_from(self.next - entries.first).ok()?;
        let entry = Arc::clone(entries.kept.get(at)?);
        drop(entries);
        self.next += 1;
        Some(Some(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str) -> Event {
        Event::SessionCreated {
            session: name.parse().unwrap(),
            session_id: pythond_protocol::SessionId::from_random([0; 8]),
            generation: 1,
            pid: 1,
        }
    }

    #[tokio::test]
    async fn a_cursor_goes_on_where_it_stands() {
        let log = EventLog::new(7, 10);
        let before = log.follow(None).ready().cursor;
        log.publish(event("a"));
        log.publish(event("b"));
        let mut follower = log.follow(Some(&before));
        let first = follower.next(None).await;
        assert_eq!(first.event, event("a"));
        let mut follower = log.follow(Some(&first.cursor));
        assert_eq!(follower.next(None).await.event, event("b"));
        let name = "b".parse().unwrap();
        let mut follower = log.follow(Some(&before));
        assert_eq!(follower.next(Some(&name)).await.event, event("b"));
    }

    #[tokio::test]
    async fn what_is_missing_is_said_once() {
        let log = EventLog::new(7, 10);
        let start = log.follow(None).ready().cursor;
        for _ in 0..=10 {
            log.publish(event("a"));
        }
        for cursor in [start.as_str(), "00000008-0", "nonsense", "00000007-99999"] {
            let mut follower = log.follow(Some(cursor));
            assert_eq!(follower.next(None).await.event, Event::Reset, "{cursor}");
        }
        let mut follower = log.follow(Some(&start));
        follower.next(None).await;
        assert_eq!(follower.next(None).await.event, event("a"));
    }
}
