//! Raises KeyboardInterrupt in the threads of `fire` cells.
//!
//! One thread for all of them, and only while there is something to do: each
//! attempt needs the interpreter.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pythond_protocol::CellId;
use rustix::process::Signal;

use super::live;
use crate::children::Family;
use crate::forking::attach;
use crate::interrupt::DESCRIBING;
use crate::shared::Shared;
use crate::spawner::Job;
use crate::{blocked_call, helpers, sys};

/// How long a cell that awaits may take to be cancelled before it is
/// interrupted where it is.
const CANCEL_PATIENCE: Duration = Duration::from_millis(20);
/// When it is looked again whether a thread waits by now.
const LOOK_AGAIN: [Duration; 7] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// Which step a thread is at: its frame and the instruction there.
type Step = Option<(u64, i64)>;

/// What is done next about a cell.
#[derive(Debug)]
enum Stage {
    /// Its task is cancelled if it awaits; else the exception is set.
    New,
    /// The exception is set.
    Raise,
    /// It was set at that step: as long as the thread has not run another, it has
    /// not seen it, and a wait that it has entered meanwhile is ended.
    Look { step: Step, looks: usize },
}

#[derive(Debug)]
struct Aimed {
    due: Instant,
    stage: Stage,
}

#[derive(Debug)]
struct Aims {
    cells: BTreeMap<u64, Aimed>,
    at_work: bool,
}

static AIMS: Mutex<Aims> = Mutex::new(Aims {
    cells: BTreeMap::new(),
    at_work: false,
});
/// A cell was aimed at.
static CAME: Condvar = Condvar::new();

fn aims() -> MutexGuard<'static, Aims> {
    // Every change under the lock is one step.
    AIMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Interrupts a cell. One that is aimed at already is aimed at anew.
pub(super) fn aim_at(shared: &'static Shared, cell: CellId) {
    let mut aims = aims();
    let aimed = Aimed {
        due: Instant::now(),
        stage: Stage::New,
    };
    aims.cells.insert(cell.as_u64(), aimed);
    if aims.at_work {
        CAME.notify_one();
    } else {
        aims.at_work = true;
        shared.spawner.hand(Interrupter);
    }
}

struct Interrupter;

impl Job for Interrupter {
    fn run(self: Box<Self>) {
        while let Some((cell, stage)) = next() {
            if let Some((pause, stage)) = attempt(cell, stage) {
                let due = Instant::now() + pause;
                // Unless it was aimed at anew.
                aims().cells.entry(cell).or_insert(Aimed { due, stage });
            }
        }
    }

    fn give_up(self: Box<Self>, _why: &std::io::Error) {
        // The cells stay pending, which the answer says.
        let mut aims = aims();
        aims.cells.clear();
        aims.at_work = false;
    }
}

/// Waits for the next cell whose time has come; none if none is aimed at.
fn next() -> Option<(u64, Stage)> {
    let mut aims = aims();
    loop {
        let Some((cell, due)) = aims
            .cells
            .iter()
            .map(|(cell, aimed)| (*cell, aimed.due))
            .min_by_key(|(_, due)| *due)
        else {
            aims.at_work = false;
            return None;
        };
        let wait = due.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return aims.cells.remove(&cell).map(|aimed| (cell, aimed.stage));
        }
        let waited = CAME.wait_timeout(aims, wait);
        (aims, _) = waited.unwrap_or_else(PoisonError::into_inner);
    }
}

/// Does what is next about a cell; what has to follow, and when.
fn attempt(cell: u64, stage: Stage) -> Option<(Duration, Stage)> {
    match stage {
        Stage::New => {
            // Looked up before: they belong to no thread once theirs has ended.
            // Told after: the end of a child must not let the cell go on.
            let thread = live().get(&cell)?.thread;
            let children = thread.map_or_else(Family::default, |thread| Family::of(thread.id));
            if cancel(cell) {
                children.signal(Signal::INT);
                return Some((CANCEL_PATIENCE, Stage::Raise));
            }
            raise(cell, None, 0, Some(&children))
        }
        Stage::Raise => raise(cell, None, 0, None),
        Stage::Look { step, looks } => raise(cell, Some(step), looks, None),
    }
}

/// Cancels the task of a cell that awaits. False if it does not.
fn cancel(cell: u64) -> bool {
    attach(|py| {
        let awaits = live().get(&cell).and_then(|live| {
            let (event_loop, task) = live.awaits.as_ref()?;
            Some((event_loop.clone_ref(py), task.clone_ref(py)))
        });
        let cancel = &helpers::get(py).loop_cancel_beside;
        // What fails here is tried the other way.
        awaits.is_some_and(|awaits| cancel.call1(py, awaits).is_ok())
    })
}

/// Sets the exception, unless that was done at `before`, and ends the wait that
/// the thread is in.
fn raise(
    cell: u64,
    before: Option<Step>,
    looks: usize,
    children: Option<&Family>,
) -> Option<(Duration, Stage)> {
    if has_just_ended(cell) {
        return Some((DESCRIBING, Stage::Raise));
    }
    let unsettled = attach(|py| {
        if has_just_ended(cell) {
            return None;
        }
        let (thread, waits) = live().get(&cell).and_then(|live| {
            let waits = live.waits.as_ref().map(|lock| lock.clone_ref(py));
            live.thread.map(|thread| (thread, waits))
        })?;
        let now = step_of(py, thread.ident);
        match before {
            // The thread cannot run Python while this one holds the lock: the
            // exception meets this cell and nothing else.
            None => sys::set_async_interrupt(py, thread.ident),
            Some(before) if before != now => return None,
            Some(_) => {}
        }
        let settled = match waits {
            Some(lock) => {
                // Free already: somebody else woke it.
                drop(lock.call_method0(py, "release"));
                true
            }
            None => blocked_call::cut(thread.id),
        };
        (!settled).then_some(now)
    });
    if let Some(children) = children {
        children.signal(Signal::INT);
    }
    let step = unsettled?;
    let pause = *LOOK_AGAIN.get(looks)?;
    let looks = looks + 1;
    Some((pause, Stage::Look { step, looks }))
}

/// It is being put into words what left the cell, and has been for a moment only:
/// see [`crate::interrupt::set_describing`].
fn has_just_ended(cell: u64) -> bool {
    let since = live().get(&cell).and_then(|live| live.describing);
    since.is_some_and(|since| since.elapsed() < DESCRIBING)
}

fn step_of(py: Python<'_>, ident: u64) -> Step {
    let step = helpers::get(py).place.bind(py).call1((ident,));
    step.and_then(|step| step.extract()).ok().flatten()
}
