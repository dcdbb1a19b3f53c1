//! All sessions by name. Never held across an await.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pythond_protocol::verbs::list::SessionSummary;
use pythond_protocol::{ErrorCode, ErrorReply, SessionName};

use crate::session::SessionHandle;
use crate::tombstones::MAX_TOMBSTONES;

#[derive(Debug)]
enum Entry {
    /// Somebody makes it; what was there before comes back if that fails.
    Reserved { previous: Option<SessionHandle> },
    /// It is there, alive or dead.
    Present(SessionHandle),
}

#[derive(Debug)]
struct Table {
    entries: BTreeMap<SessionName, Entry>,
    open: bool,
}

/// Names and the sessions that have them.
#[derive(Debug)]
pub(crate) struct Registry {
    table: Mutex<Table>,
    max_sessions: usize,
}

/// A name that is ours to fill; dropped, it goes back to what it was.
#[derive(Debug)]
pub(crate) struct Reservation {
    registry: Arc<Registry>,
    name: SessionName,
    /// The session that had the name.
    pub(crate) previous: Option<SessionHandle>,
    filled: bool,
}

impl Registry {
    pub(crate) fn new(max_sessions: usize) -> Arc<Self> {
        let table = Mutex::new(Table {
            entries: BTreeMap::new(),
            open: true,
        });
        Arc::new(Self {
            table,
            max_sessions,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change below is one step of the map.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most live sessions.
    pub(crate) fn max_sessions(&self) -> usize {
        self.max_sessions
    }

    /// The session of a name.
    ///
    /// # Errors
    /// [`ErrorReply::no_session`].
    pub(crate) fn get(&self, name: &SessionName) -> Result<SessionHandle, ErrorReply> {
        match self.table().entries.get(name) {
            Some(
                Entry::Present(handle)
                | Entry::Reserved {
                    previous: Some(handle),
                },
            ) => Ok(handle.clone()),
            Some(Entry::Reserved { previous: None }) | None => {
                Err(ErrorReply::no_session(name.as_str()))
            }
        }
    }

    /// Claims a name at once, so that of many creators one wins.
    ///
    /// # Errors
    /// [`ErrorCode::SessionExists`], [`ErrorCode::Limit`] or
    /// [`ErrorCode::Stopping`].
    pub(crate) fn reserve(
        self: &Arc<Self>,
        name: &SessionName,
        replace: bool,
    ) -> Result<Reservation, ErrorReply> {
        let mut table = self.table();
        if !table.open {
            return Err(stopping());
        }
        let previous = match table.entries.get(name) {
            Some(Entry::Reserved { .. }) => return Err(exists(name)),
            Some(Entry::Present(handle)) if !replace && !handle.is_dead() => {
                return Err(exists(name));
            }
            Some(Entry::Present(handle)) => Some(handle.clone()),
            None => None,
        };
        let takes_no_place = previous.as_ref().is_some_and(|handle| !handle.is_dead());
        if !takes_no_place && live(&table) >= self.max_sessions {
            let most = self.max_sessions;
            return Err(ErrorReply::new(
                ErrorCode::Limit,
                format!("too many sessions (max {most})"),
            )
            .with_hint(
                "end one with `pysh kill NAME`, or raise PYTHOND_MAX_SESSIONS and `ulimit -n`",
            )
            .with_plain(format!("too many sessions (max {most})")));
        }
        let entry = Entry::Reserved {
            previous: previous.clone(),
        };
        table.entries.insert(name.clone(), entry);
        Ok(Reservation {
            registry: Arc::clone(self),
            name: name.clone(),
            previous,
            filled: false,
        })
    }

    /// Nobody alive has this name, and nobody is making a session of it.
    pub(crate) fn is_free(&self, name: &SessionName) -> bool {
        is_free(&self.table(), name)
    }

    /// Enters a session that was there before this daemon, or the tombstone of
    /// one. The latest of a name wins over those that died earlier.
    pub(crate) fn adopt(&self, handle: SessionHandle) {
        let mut table = self.table();
        let before = table.entries.get(handle.name());
        if let Some(Entry::Present(before)) = before
            && before.is_same(&handle)
        {
            // What stands in for a session makes room for it.
            if !before.is_dead() || handle.knows_more_than(before) {
                table
                    .entries
                    .insert(handle.name().clone(), Entry::Present(handle));
            }
            return;
        }
        if is_free(&table, handle.name()) {
            let name = handle.name().clone();
            if let Some(Entry::Present(before)) = table.entries.insert(name, Entry::Present(handle))
            {
                before.remove_tombstone();
            }
        } else if handle.is_dead() {
            handle.remove_tombstone();
        }
    }

    /// Forgets a session, unless another has its name by now.
    pub(crate) fn forget(&self, gone: &SessionHandle) {
        let mut table = self.table();
        let present = table.entries.get(gone.name());
        if matches!(present, Some(Entry::Present(handle)) if handle.is_same(gone)) {
            table.entries.remove(gone.name());
        }
        gone.remove_tombstone();
    }

    /// Every session by name, dead ones too.
    pub(crate) fn all(&self) -> Vec<SessionHandle> {
        let table = self.table();
        let handles = table.entries.values().filter_map(|entry| match entry {
            Entry::Present(handle)
            | Entry::Reserved {
                previous: Some(handle),
            } => Some(handle.clone()),
            Entry::Reserved { previous: None } => None,
        });
        handles.collect()
    }

    /// One summary for each session, by name.
    pub(crate) fn summaries(&self) -> Vec<SessionSummary> {
        self.all().iter().map(SessionHandle::summary).collect()
    }

    /// Sessions that are alive or being made.
    pub(crate) fn live(&self) -> usize {
        live(&self.table())
    }

    /// No more sessions are made.
    pub(crate) fn close(&self) {
        self.table().open = false;
    }

    /// Somebody is still making a session.
    pub(crate) fn has_reservations(&self) -> bool {
        self.table()
            .entries
            .values()
            .any(|entry| matches!(entry, Entry::Reserved { .. }))
    }
}

fn is_free(table: &Table, name: &SessionName) -> bool {
    match table.entries.get(name) {
        None => true,
        Some(Entry::Present(handle)) => handle.is_dead(),
        Some(Entry::Reserved { .. }) => false,
    }
}

fn live(table: &Table) -> usize {
    let lives = |entry: &&Entry| match entry {
        Entry::Reserved { .. } => true,
        Entry::Present(handle) => !handle.is_dead(),
    };
    table.entries.values().filter(lives).count()
}

/// Of sessions that died, as many are remembered as later daemons would find.
fn forget_the_oldest(table: &mut Table) {
    let dead = table.entries.values().filter_map(|entry| match entry {
        Entry::Present(handle) => Some((handle.died_ns()?, handle.clone())),
        Entry::Reserved { .. } => None,
    });
    let mut dead: Vec<_> = dead.collect();
    dead.sort_by_key(|(died_ns, _)| *died_ns);
    let too_many = dead.len().saturating_sub(MAX_TOMBSTONES);
    for (_, handle) in dead.drain(..too_many) {
        table.entries.remove(handle.name());
        handle.remove_tombstone();
    }
}

/// The name is taken.
pub(crate) fn exists(name: &SessionName) -> ErrorReply {
    ErrorReply::new(
        ErrorCode::SessionExists,
        format!("session `{name}` already exists"),
    )
    .with_hint(format!("replace it with `pysh new {name} --replace`"))
    .with_plain(format!(
        "session '{name}' already exists -- replace it with: new {name} --replace"
    ))
}

/// The daemon is on its way out.
pub(crate) fn stopping() -> ErrorReply {
    ErrorReply::new(ErrorCode::Stopping, "the daemon is stopping")
        .with_hint("start it again with `pyctl start`")
}

impl Reservation {
    /// Puts the new session in its place.
    pub(crate) fn fill(mut self, handle: SessionHandle) {
        self.filled = true;
        if let Some(previous) = &self.previous {
            previous.remove_tombstone();
        }
        let mut table = self.registry.table();
        table
            .entries
            .insert(self.name.clone(), Entry::Present(handle));
        forget_the_oldest(&mut table);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.filled {
            return;
        }
        let mut table = self.registry.table();
        match self.previous.take() {
            Some(handle) => table
                .entries
                .insert(self.name.clone(), Entry::Present(handle)),
            None => table.entries.remove(&self.name),
        };
    }
}

#[cfg(test)]
mod tests {
    use pythond_private_fs::PrivateDir;
    use pythond_protocol::SessionId;
    use pythond_protocol::lane::HostEnd;
    use pythond_protocol::outcome::ProcessEnd;

    use super::*;

    #[test]
    fn of_many_creators_one_wins_and_a_failed_one_leaves_no_trace() {
        let registry = Registry::new(2);
        let name: SessionName = "work".parse().unwrap();
        let first = registry.reserve(&name, false).unwrap();
        for replace in [false, true] {
            let error = registry.reserve(&name, replace).unwrap_err();
            assert_eq!(error.code, ErrorCode::SessionExists);
        }
        assert_eq!(registry.get(&name).unwrap_err().code, ErrorCode::NoSession);
        drop(first);
        registry.reserve(&name, false).unwrap();
    }

    fn dead(dir: &Arc<PrivateDir>, number: u64, end: ProcessEnd) -> SessionHandle {
        let name = format!("s{number}").parse().unwrap();
        let end = HostEnd {
            pid: 7,
            socket: format!("h-{number}.sock"),
            end,
            last_stderr: String::new(),
            cell: None,
            session: Some((name, SessionId::from_random([0; 8]), 1)),
            log_lost: 0,
            cause: None,
            died_at: String::new(),
            died_ns: number,
            fates: Vec::new(),
            fates_are_all: false,
            born_ns: 0,
            ordered: false,
            start_time: 0,
            hosted: None,
        };
        let file = serde_json::to_vec(&end).unwrap();
        dir.write_whole_unsynced(&format!("h-{number}.tombstone"), &file)
            .unwrap();
        crate::session::bury(&end, dir).unwrap()
    }

    #[test]
    fn of_many_dead_the_oldest_are_forgotten_and_a_known_cause_wins() {
        let place = tempfile::tempdir().unwrap();
        let dir = Arc::new(PrivateDir::open_or_create(place.path().join("run")).unwrap());
        let registry = Registry::new(9);
        let most = u64::try_from(MAX_TOMBSTONES).unwrap();
        for number in (0..=most).rev() {
            registry.adopt(dead(&dir, number, ProcessEnd::Unknown));
        }
        let known = ProcessEnd::Exited { status: 3 };
        registry.adopt(dead(&dir, 5, known.clone()));
        registry.adopt(dead(&dir, 5, ProcessEnd::Unknown));
        let five = registry.get(&"s5".parse().unwrap()).unwrap();
        assert_eq!(five.death().unwrap().end, known);
        let alive = registry.reserve(&"s1".parse().unwrap(), false).unwrap();
        alive.fill(dead(&dir, most + 1, known));
        let names = dir.entries().unwrap();
        assert_eq!(names.len(), MAX_TOMBSTONES);
        assert_eq!(registry.all().len(), MAX_TOMBSTONES);
        // The oldest, and the one whose name was used again.
        for gone in ["h-0.tombstone", "h-1.tombstone"] {
            assert!(!names.contains(&gone.to_owned()));
        }
    }

    #[test]
    fn the_limit_counts_those_being_made() {
        let registry = Registry::new(1);
        let _one = registry.reserve(&"a".parse().unwrap(), false).unwrap();
        let error = registry.reserve(&"b".parse().unwrap(), false).unwrap_err();
        assert_eq!(error.code, ErrorCode::Limit);
        registry.close();
        let error = registry.reserve(&"c".parse().unwrap(), false).unwrap_err();
        assert_eq!(error.code, ErrorCode::Stopping);
    }
}
