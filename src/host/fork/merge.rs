//! How the new names of a child get into the session.
//!
//! A thread that has the session's descriptors unpickles one value after the
//! other, as that may run anybody's code; the one that watched the child waits
//! for it, and does without a value that takes too long.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use pythond_protocol::CellId;
use pythond_protocol::outcome::{CellStatus, MergeReport};
use rustix::fs::SealFlags;
use serde::Deserialize;

use super::watch::{announce, raised};
use super::{Told, told};
use crate::cell::{self, Ending};
use crate::changes::count_public;
use crate::forking::attach;
use crate::shared::Shared;
use crate::spawner::Job;
use crate::sys::{self, PrivateMap};
use crate::{helpers, session};

/// How long a value may take to be unpickled that was tried in the child and did
/// well there.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether the cell was told to stop.
const LOOK: Duration = Duration::from_millis(20);

/// What the child says of a value.
#[derive(Debug, Deserialize)]
struct Header {
    names: Vec<String>,
    /// Length of the pickle, if it comes as a file.
    file: Option<usize>,
    /// Lengths of the large buffers, which come as files.
    buffers: Vec<usize>,
    /// Unpickling runs no code but libraries'.
    plain: bool,
}

/// A value that came from the child.
#[derive(Debug)]
pub(super) struct Incoming {
    header: Header,
    pickle: Vec<u8>,
    file: Option<PrivateMap>,
    buffers: Vec<PrivateMap>,
}

impl Incoming {
    /// Takes a frame apart; its files are mapped and their descriptors closed.
    pub(super) fn read(
        mut bytes: Vec<u8>,
        descriptors: &mut VecDeque<OwnedFd>,
    ) -> Result<Self, String> {
        let head = bytes.first_chunk::<4>().ok_or("a frame is too short")?;
        let length = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
        let end = length.saturating_add(4);
        let header = bytes.get(4..end).ok_or("a frame is too short")?;
        let header: Header = serde_json::from_slice(header).map_err(|error| error.to_string())?;
        bytes.drain(..end);
        let mut map = |length: usize| {
            let file = descriptors.pop_front().ok_or("a file is missing")?;
            map_file(&file, length).map_err(|error| error.to_string())
        };
        let file = header.file.map(&mut map).transpose()?;
        let buffers = header
            .buffers
            .iter()
            .map(|length| map(*length))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            header,
            pickle: bytes,
            file,
            buffers,
        })
    }
}

/// Maps a file of the child's. It must not become shorter: reading what is not
/// there any more would end the session.
fn map_file(file: &OwnedFd, length: usize) -> std::io::Result<PrivateMap> {
    rustix::fs::fcntl_add_seals(file, SealFlags::SHRINK | SealFlags::GROW)?;
    let size = usize::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
    if size < length || length == 0 {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
    }
    PrivateMap::new(file.as_fd(), length)
}

/// What both threads know.
#[derive(Default)]
struct State {
    /// Values that nobody has begun with.
    waiting: VecDeque<Incoming>,
    /// The value that is unpickled: since when, its names, whether it may take
    /// as long as it likes.
    current: Option<(Instant, Vec<String>, bool)>,
    /// Which thread works; one that is not waited for any more has an older
    /// number.
    worker: u64,
    loaded: Vec<(Vec<String>, Py<PyAny>)>,
    report: MergeReport,
    /// Nothing is to be merged any more.
    abandoned: bool,
    finished: bool,
}

struct Work {
    shared: &'static Shared,
    known: Mutex<Option<Py<PyDict>>>,
    state: Mutex<State>,
    changed: Condvar,
    /// Taken by the thread that ends the cell.
    last: Mutex<Option<(Ending, String)>>,
}

impl Work {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session's classes and functions, as long as values come.
    fn known(&self) -> MutexGuard<'_, Option<Py<PyDict>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_last(&self) -> Option<(Ending, String)> {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// Ends a cell: merges its values, records it, tells of it. Returns when the
/// thread that does it needs nobody to wait for it.
pub(super) fn conclude(
    shared: &'static Shared,
    ending: Ending,
    known: Py<PyDict>,
    values: Vec<Incoming>,
    report: MergeReport,
    source: String,
) {
    let cell = ending.id;
    let work = Arc::new(Work {
        shared,
        known: Mutex::new(Some(known)),
        state: Mutex::new(State {
            waiting: values.into(),
            report,
            ..State::default()
        }),
        changed: Condvar::new(),
        last: Mutex::new(Some((ending, source))),
    });
    shared.spawner.hand(Merge {
        work: Arc::clone(&work),
        number: 0,
    });
    supervise(&work, cell);
}

/// Waits for the end; replaces a thread that is stuck in a value.
fn supervise(work: &Arc<Work>, cell: CellId) {
    loop {
        let state = work.state();
        let (mut state, _) = work
            .changed
            .wait_timeout_while(state, LOOK, |state| !state.finished)
            .unwrap_or_else(PoisonError::into_inner);
        if state.finished {
            return;
        }
        let killed = told(cell) == Some(Told::Kill);
        let stuck = state
            .current
            .as_ref()
            .is_some_and(|(since, _, plain)| !plain && since.elapsed() > PATIENCE);
        // A plain value needs no help, and one that was told to stop is not
        // waited for.
        let to_abandon = killed && !state.abandoned;
        if !stuck && !to_abandon {
            continue;
        }
        if let Some((_, names, _)) = state.current.take() {
            let why = if stuck {
                format!(
                    "its unpickling has not ended after {} s",
                    PATIENCE.as_secs()
                )
            } else {
                "the cell was told to stop".to_owned()
            };
            for name in names {
                state.report.skipped.insert(name, why.clone());
            }
        }
        state.abandoned |= killed;
        state.worker += 1;
        let number = state.worker;
        drop(state);
        work.shared.spawner.hand(Merge {
            work: Arc::clone(work),
            number,
        });
    }
}

/// Unpickles and merges.
struct Merge {
    work: Arc<Work>,
    number: u64,
}

impl Job for Merge {
    fn run(self: Box<Self>) {
        sys::unblock_all_signals();
        let Self { work, number } = *self;
        attach(|py| {
            while let Some(value) = next(&work, number) {
                let names = value.header.names.clone();
                let loaded = load(py, &work, value);
                let mut state = work.state();
                if state.worker != number {
                    drop(state);
                    // Nobody waits for it any more.
                    drop(loaded);
                    return;
                }
                state.current = None;
                match loaded {
                    Ok(value) => state.loaded.push((names, value)),
                    Err(error) => {
                        drop(state);
                        let why = format!("its unpickling raises {}", words(py, &error));
                        let mut state = work.state();
                        for name in names {
                            state.report.skipped.insert(name, why.clone());
                        }
                    }
                }
            }
            if work.state().worker == number {
                finish(py, &work);
            }
        });
        // Python objects are let go of while attached.
        attach(|_| drop(work));
    }

    fn give_up(self: Box<Self>, why: &std::io::Error) {
        let Some((ending, _)) = self.work.take_last() else {
            return;
        };
        let outcome = raised(
            CellStatus::Failed,
            format!("no thread can be started to merge what came back: {why}"),
        );
        let ending = Ending { outcome, ..ending };
        let end = ending.finished(self.work.shared);
        announce(self.work.shared, end);
        self.work.state().finished = true;
        self.work.changed.notify_all();
    }
}

fn next(work: &Work, number: u64) -> Option<Incoming> {
    let mut state = work.state();
    if state.worker != number || state.abandoned {
        return None;
    }
    let value = state.waiting.pop_front()?;
    let header = &value.header;
    state.current = Some((Instant::now(), header.names.clone(), header.plain));
    Some(value)
}

fn load(py: Python<'_>, work: &Work, value: Incoming) -> PyResult<Py<PyAny>> {
    let values = helpers::get(py).fork_values.bind(py);
    let globals = session::globals(py)
        .ok_or_else(|| pyo3::exceptions::PyRuntimeError::new_err("the session has no namespace"))?;
    let unmap = pyo3::wrap_pyfunction!(sys::unmap, values)?;
    let Incoming {
        pickle,
        file,
        buffers,
        ..
    } = value;
    let file = file.map(PrivateMap::into_parts);
    let buffers: Vec<_> = buffers.into_iter().map(PrivateMap::into_parts).collect();
    let known = work.known().as_ref().map(|known| known.clone_ref(py));
    let pickle = PyBytes::new(py, &pickle);
    let loaded = values.call_method1("load", (pickle, file, buffers, known, globals, unmap))?;
    Ok(loaded.unbind())
}

fn words(py: Python<'_>, error: &PyErr) -> String {
    let fork = helpers::get(py).fork.bind(py);
    let words = fork.call_method1("words", (error.value(py),));
    words
        .and_then(|words| words.extract())
        .unwrap_or_else(|_| "an exception".to_owned())
}

/// Sets the names and ends the cell.
fn finish(py: Python<'_>, work: &Work) {
    let Some((mut ending, source)) = work.take_last() else {
        return;
    };
    let shared = work.shared;
    let (loaded, mut report, abandoned) = {
        let mut state = work.state();
        (
            std::mem::take(&mut state.loaded),
            std::mem::take(&mut state.report),
            state.abandoned,
        )
    };
    let mut replaced = None;
    if abandoned {
        let message = "told to stop while its names were merged; nothing was merged".to_owned();
        ending.outcome = raised(CellStatus::Killed, message);
    } else if let Some(globals) = session::globals(py).filter(|_| !loaded.is_empty()) {
        let names = PyDict::new(py);
        for (aliases, value) in &loaded {
            for name in aliases {
                // Text as a key of a dict of ours cannot fail.
                let _ = names.set_item(name, value);
                report.merged.push(name.clone());
            }
        }
        report.merged.sort();
        let merged = helpers::get(py)
            .fork_values
            .bind(py)
            .call_method1("merge", (globals, names));
        match merged {
            Ok(before) => replaced = Some(before),
            Err(error) => {
                report.merged.clear();
                let message = format!("the names could not be set: {error}");
                ending.outcome = raised(CellStatus::Failed, message);
            }
        }
        shared.set_vars(count_public(globals));
    }
    py.detach(|| shared.outputs.wait_for_disk(ending.id.as_u64()));
    let mut end = ending.finished(shared);
    end.merge = Some(Box::new(report));
    let record = cell::record_of(py, shared, source, &end);
    py.detach(|| {
        shared.recorder.push(record, &shared.disk);
        shared.disk.write_records_soon();
        announce(shared, end);
        work.state().finished = true;
        work.changed.notify_all();
    });
    let known = work.known().take();
    drop(known);
    // Last: this may run any code, and nobody waits for it.
    drop((replaced, loaded));
}
