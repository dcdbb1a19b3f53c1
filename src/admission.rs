//! How many connections there may be at a time, and which of them make room
//! for a newcomer. Counts descriptors; knows neither sockets nor verbs.
//!
//! Whoever floods us makes room itself: of those that have not finished their
//! handshake the one goes that comes from where most of them come from. Processes
//! on this machine go only if they are more than all from networks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::Resource;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::network::penalties::Source;

/// Descriptors that no connection gets: what the daemon always has open, and
/// what it opens for a moment (files, new lanes, processes that it starts).
const RESERVE: usize = 64;
/// Connections that sessions always leave room for.
const LEAST_CONNECTIONS: usize = 32;
/// Lanes of a session.
const LANES: usize = 2;
/// Most connections that were told to make room and are not closed yet.
const MOST_LEAVING: usize = 16;

/// How many files the process may have open.
fn open_files() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// Most sessions that the limit of open files has room for.
pub(crate) fn most_sessions() -> usize {
    sessions_within(open_files())
}

fn sessions_within(open_files: usize) -> usize {
    let rest = open_files.saturating_sub(reserve(open_files) + LEAST_CONNECTIONS);
    (rest / LANES).max(1)
}

fn connections_within(open_files: usize, lanes: usize, most: usize) -> usize {
    open_files
        .saturating_sub(reserve(open_files).saturating_add(lanes))
        .max(LEAST_CONNECTIONS / 2)
        .min(most)
}

fn reserve(open_files: usize) -> usize {
    RESERVE.min(open_files / 2)
}

#[derive(Debug, Default)]
struct Table {
    /// Connections that are there.
    open: usize,
    /// Those of them that were told to make room.
    leaving: usize,
    next: u64,
    /// In the middle of their handshake, by where they come from: none is this
    /// machine. The oldest first, and no place without any.
    strangers: HashMap<Option<Source>, BTreeMap<u64, CancellationToken>>,
    /// Those that have not sent a command yet, the oldest first.
    silent: BTreeMap<u64, CancellationToken>,
}

/// Who may come in.
#[derive(Debug)]
pub(crate) struct Admission {
    table: Mutex<Table>,
    /// A connection has ended.
    left: Notify,
    open_files: usize,
    /// Most connections, however many files may be open.
    most: usize,
}

/// A connection's right to be there. Dropped after the connection's socket, it
/// makes room for another.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    number: u64,
    source: Option<Source>,
    makes_room: CancellationToken,
}

impl Admission {
    /// Room for `most`, and for as many as the process may have open files now.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Self::within(open_files(), most)
    }

    fn within(open_files: usize, most: usize) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            left: Notify::new(),
            open_files,
            most,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change below leaves it whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a newcomer from a network, or from this machine, beside this many
    /// lanes. If there is none left, a connection makes room that has not finished
    /// its handshake, then the oldest that has never sent a command. None if all
    /// have.
    pub(crate) fn enter(self: &Arc<Self>, lanes: usize, source: Option<Source>) -> Option<Place> {
        let most = connections_within(self.open_files, lanes, self.most);
        let mut table = self.table();
        if table.open - table.leaving >= most && !table.make_room() {
            return None;
        }
        let number = table.next;
        table.next += 1;
        table.open += 1;
        let makes_room = CancellationToken::new();
        let others = table.strangers.entry(source).or_default();
        others.insert(number, makes_room.clone());
        Some(Place {
            admission: Arc::clone(self),
            number,
            source,
            makes_room,
        })
    }

    /// The oldest that may makes room although there seemed to be some: the
    /// system has no more descriptors.
    pub(crate) fn make_room(&self) -> bool {
        self.table().make_room()
    }

    /// Waits until few of those that were told to make room are still there.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn settled(&self) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            // What ends between the look and the wait is not missed.
            left.as_mut().enable();
            if self.table().leaving < MOST_LEAVING {
                return;
            }
            left.await;
        }
    }

    /// Waits until a connection ends.
    pub(crate) async fn one_left(&self) {
        self.left.notified().await;
    }
}

impl Table {
    fn make_room(&mut self) -> bool {
        let oldest = self
            .stranger_to_go()
            .or_else(|| self.silent.pop_first().map(|(_, makes_room)| makes_room));
        let Some(makes_room) = oldest else {
            return false;
        };
        self.leaving += 1;
        makes_room.cancel();
        true
    }

    fn stranger_to_go(&mut self) -> Option<CancellationToken> {
        let here = self.strangers.get(&None).map_or(0, BTreeMap::len);
        let all: usize = self.strangers.values().map(BTreeMap::len).sum();
        let source = if here > all - here {
            None
        } else {
            let networks = self.strangers.iter().filter(|(source, _)| source.is_some());
            let most = networks
                .max_by_key(|(_, places)| (places.len(), Reverse(places.keys().next().copied())));
            *most?.0
        };
        let (number, makes_room) = self.strangers.get(&source)?.first_key_value()?;
        let (number, makes_room) = (*number, makes_room.clone());
        self.no_stranger(source, number);
        Some(makes_room)
    }

    /// This one is no stranger any more.
    fn no_stranger(&mut self, source: Option<Source>, number: u64) -> Option<CancellationToken> {
        let places = self.strangers.get_mut(&source)?;
        let makes_room = places.remove(&number);
        if places.is_empty() {
            self.strangers.remove(&source);
        }
        makes_room
    }
}

impl Place {
    /// The handshake is done.
    pub(crate) fn introduced(&self) {
        let mut table = self.admission.table();
        if let Some(makes_room) = table.no_stranger(self.source, self.number) {
            table.silent.insert(self.number, makes_room);
        }
    }

    /// A command came: from now on it keeps its place.
    pub(crate) fn established(&self) {
        self.admission.table().silent.remove(&self.number);
    }

    /// Waits until it is told to make room.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn makes_room(&self) {
        self.makes_room.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.admission.table();
        table.open -= 1;
        table.no_stranger(self.source, self.number);
        table.silent.remove(&self.number);
        if self.makes_room.is_cancelled() {
            table.leaving -= 1;
        }
        drop(table);
        self.admission.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 4096;

    fn told(place: &Place) -> bool {
        place.makes_room.is_cancelled()
    }

    #[test]
    fn the_oldest_that_said_nothing_makes_room_and_who_was_served_stays() {
        let admission = Admission::within(128, MOST);
        let most = connections_within(128, 10, MOST);
        assert_eq!(most, 128 - 64 - 10);
        let mut places: Vec<_> = (0..most)
            .map(|_| admission.enter(10, None).unwrap())
            .collect();
        places[0].introduced();
        places[0].established();
        places[1].introduced();
        let newcomer = admission.enter(10, None).unwrap();
        assert_eq!(
            [0, 1, 2, 3].map(|at| told(&places[at])),
            [false, false, true, false]
        );
        for place in &places[3..] {
            place.introduced();
            place.established();
        }
        newcomer.introduced();
        newcomer.established();
        // Nobody is left in a handshake: the silent one goes.
        let next = admission.enter(10, None).unwrap();
        assert!(told(&places[1]) && !told(&places[0]));
        next.introduced();
        next.established();
        assert!(admission.enter(10, None).is_none());
        places.clear();
        assert!(admission.enter(10, None).is_some());
    }

    fn source(text: &str) -> Option<Source> {
        Some(Source::of(text.parse().unwrap()))
    }

    #[test]
    fn whoever_floods_makes_room_and_nobody_else() {
        let admission = Admission::within(128, MOST);
        let others = [None, source("10.0.0.6"), source("2001:db8::1"), None];
        let others = others.map(|from| admission.enter(10, from).unwrap());
        let flooder = source("10.0.0.5");
        let mut flood: Vec<_> = (0..1000)
            .map(|_| admission.enter(10, flooder).unwrap())
            .collect();
        assert!(others.iter().all(|other| !told(other)));
        assert!(told(&flood[0]) && !told(&flood[999]));
        // The oldest of them first.
        let gone = flood.iter().filter(|place| told(place)).count();
        assert!(flood[..gone].iter().all(told));
        flood.clear();
        // Many sources that have one each: the oldest goes, but none of this machine.
        let crowd: Vec<_> = (0..1000_u32)
            .map(|number| admission.enter(10, Some(Source::V4(number.to_be_bytes()))))
            .collect();
        assert!(crowd.iter().all(Option::is_some));
        assert_eq!(others.each_ref().map(told), [false, true, true, false]);
    }

    #[test]
    fn a_flood_of_this_machine_makes_room_for_others() {
        let admission = Admission::within(128, MOST);
        let far = admission.enter(10, source("10.0.0.6")).unwrap();
        let flood: Vec<_> = (0..200)
            .map(|_| admission.enter(10, None).unwrap())
            .collect();
        assert!(!told(&far));
        assert!(told(&flood[0]));
        drop(flood);
        assert_eq!(admission.table().strangers.len(), 1);
        drop(far);
        assert!(admission.table().strangers.is_empty());
    }

    #[test]
    fn sessions_and_connections_have_room_within_any_limit_of_open_files() {
        for open_files in [0, 1, 16, 64, 256, 1024, 16_384, usize::MAX] {
            let sessions = sessions_within(open_files);
            assert!(sessions >= 1);
            assert!(connections_within(open_files, 0, MOST) >= LEAST_CONNECTIONS / 2);
            if open_files >= 256 {
                let connections =
                    connections_within(open_files, sessions.saturating_mul(LANES), MOST);
                assert!(connections >= LEAST_CONNECTIONS, "{open_files}");
            }
        }
        assert_eq!(sessions_within(256), 80);
        assert_eq!(connections_within(usize::MAX, 2048, MOST), MOST);
    }
}
