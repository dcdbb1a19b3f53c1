//! Where every thread is, without stopping it: by the interpreter itself if its
//! lock comes soon, else from a frozen copy of the process.
//!
//! The copy is a forked child that has the dumping of `faulthandler` done to
//! itself: nothing moves in it, and if the picture is torn, only it suffers.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pythond_protocol::CellId;
use pythond_protocol::verbs::stack::{Frame, StackMethod, ThreadStack};
use rustix::event::{PollFd, PollFlags, poll};

use crate::forking::attach;
use crate::shared::Shared;
use crate::spawner::Job;
use crate::{fire, helpers, interrupt, sys};

/// How long the interpreter's lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_millis(20);
/// How long a copy may take to describe itself.
const COPY_PATIENCE: Duration = Duration::from_secs(2);
/// Most bytes that a copy's description may have.
const LONGEST_DUMP: usize = 1 << 20;

/// The file name of the code that loads this library.
const BOOT_FILE: &str = "<string>";

/// How the threads were looked at, and where they are.
pub(crate) type Stacks = (StackMethod, Vec<ThreadStack>);

/// A thread as the interpreter describes it: name, ident, frames of (file, line,
/// function, source).
type Row = (String, u64, Vec<(String, u64, String, String)>);

/// Looks that may be under way at once, and questions of theirs that wait for
/// the interpreter.
const MOST: usize = 8;

static LOOKING: AtomicUsize = AtomicUsize::new(0);
static ASKING: AtomicUsize = AtomicUsize::new(0);

/// Looks at the threads on a thread of its own and hands the result on.
pub(crate) fn look(
    shared: &'static Shared,
    then: impl FnOnce(Result<Stacks, String>) + Send + 'static,
) {
    if LOOKING.fetch_add(1, SeqCst) >= MOST {
        LOOKING.fetch_sub(1, SeqCst);
        then(Err(
            "too many looks at this session are under way".to_owned()
        ));
        return;
    }
    let then = move |found| {
        LOOKING.fetch_sub(1, SeqCst);
        then(found);
    };
    shared.spawner.hand(Look { shared, then });
}

struct Look<F: FnOnce(Result<Stacks, String>) + Send> {
    shared: &'static Shared,
    then: F,
}

impl<F: FnOnce(Result<Stacks, String>) + Send> Job for Look<F> {
    fn run(self: Box<Self>) {
        let Self { shared, then } = *self;
        let (sender, receiver) = sync_channel(1);
        let wanted = Arc::new(AtomicBool::new(true));
        // Those that wait already say that the lock will not come soon.
        if ASKING.fetch_add(1, SeqCst) < MOST {
            shared.spawner.hand(Ask {
                sender,
                wanted: Arc::clone(&wanted),
            });
        } else {
            ASKING.fetch_sub(1, SeqCst);
            drop(sender);
        }
        let found = match receiver.recv_timeout(LOCK_PATIENCE) {
            Ok(Some(rows)) => Ok((StackMethod::Interpreter, threads(rows))),
            Ok(None) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                wanted.store(false, SeqCst);
                copied(shared).map(|rows| (StackMethod::Copy, threads(rows)))
            }
        };
        then(found.map(|(method, mut stacks)| {
            complete(shared, &mut stacks);
            (method, stacks)
        }));
    }

    fn give_up(self: Box<Self>, why: &std::io::Error) {
        (self.then)(Err(format!("no thread can be started to look: {why}")));
    }
}

/// Asks the interpreter.
struct Ask {
    sender: SyncSender<Option<Vec<Row>>>,
    /// Nobody waits any more.
    wanted: Arc<AtomicBool>,
}

impl Job for Ask {
    fn run(self: Box<Self>) {
        let rows = attach(|py| {
            if !self.wanted.load(SeqCst) {
                return None;
            }
            let rows = helpers::get(py).stacks.bind(py).call0();
            rows.and_then(|rows| rows.extract()).ok()
        });
        ASKING.fetch_sub(1, SeqCst);
        // Whoever asked may be gone.
        let _ = self.sender.try_send(rows);
    }

    fn give_up(self: Box<Self>, _why: &std::io::Error) {
        ASKING.fetch_sub(1, SeqCst);
    }
}

fn threads(rows: Vec<Row>) -> Vec<ThreadStack> {
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let frame = |(file, line, function, source)| Frame {
        file,
        line,
        function,
        source: text(source),
    };
    // Our own threads that wait for the lock run no Python.
    rows.into_iter()
        .filter(|(.., frames)| !frames.is_empty())
        .map(|(name, ident, frames)| ThreadStack {
            name: text(name),
            ident,
            cell_id: None,
            state: None,
            frames: frames.into_iter().map(frame).collect(),
        })
        .collect()
}

/// Adds what is known here: which cell runs where, what the kernel says. The
/// main thread comes first.
fn complete(shared: &Shared, stacks: &mut [ThreadStack]) {
    let main = interrupt::main_ident();
    let cells: Vec<(CellId, fire::Thread)> = fire::threads();
    for stack in &mut *stacks {
        let (cell, thread) = if stack.ident == main {
            (shared.running_main(), Some(shared.pid))
        } else {
            let found = cells.iter().find(|(_, thread)| thread.ident == stack.ident);
            (
                found.map(|(cell, _)| *cell),
                found.map(|(_, thread)| thread.id),
            )
        };
        stack.cell_id = cell;
        stack.state = thread.and_then(state);
        if stack.ident == main {
            stack.name.get_or_insert_with(|| "MainThread".to_owned());
        }
    }
    stacks.sort_by_key(|stack| stack.ident != main);
}

/// What the kernel says of a thread, in a word (proc(5)).
fn state(thread: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    let letter = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
    let word = match letter {
        'R' => "running",
        'S' => "waiting",
        'D' => "waiting for the disk",
        'T' | 't' => "stopped",
        _ => return None,
    };
    Some(word.to_owned())
}

/// The threads as a frozen copy of this process describes them.
fn copied(shared: &Shared) -> Result<Vec<Row>, String> {
    let failed = |what: &str, why: &dyn std::fmt::Display| format!("cannot {what}: {why}");
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| failed("make a pipe", &errno))?;
    let target = shared.capture.stderr_write.as_raw_fd();
    let copy = sys::fork_to_dump(write.as_raw_fd(), target)
        .map_err(|error| failed("copy the process", &error))?;
    drop(write);
    let text = read_all(&read);
    sys::end_copy(copy);
    let rows = parse(&String::from_utf8_lossy(&text));
    if rows.is_empty() {
        return Err(
            "C code holds the interpreter, and the copy of the process said nothing".to_owned(),
        );
    }
    Ok(rows)
}

fn read_all(pipe: &OwnedFd) -> Vec<u8> {
    let deadline = Instant::now() + COPY_PATIENCE;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while text.len() < LONGEST_DUMP {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = rustix::event::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut set = [PollFd::new(pipe, PollFlags::IN)];
        if !matches!(poll(&mut set, Some(&limit)), Ok(1..)) {
            break;
        }
        match rustix::io::read(pipe, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => text.extend_from_slice(&buffer[..count]),
        }
    }
    text
}

/// Reads what `faulthandler` writes; its frames are innermost first.
fn parse(text: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for line in text.lines() {
        if let Some(head) = line
            .strip_prefix("Thread 0x")
            .or_else(|| line.strip_prefix("Current thread 0x"))
        {
            let digits = head.split_once(' ').map_or(head, |(digits, _)| digits);
            let ident = u64::from_str_radix(digits, 16).unwrap_or(0);
            rows.push((String::new(), ident, Vec::new()));
        } else if let Some((file, line, function)) = parse_frame(line)
            && let Some((_, _, frames)) = rows.last_mut()
        {
            frames.insert(
                0,
                (file.to_owned(), line, function.to_owned(), String::new()),
            );
        }
    }
    for (_, _, frames) in &mut rows {
        if frames.first().is_some_and(|(file, ..)| is_ours(file)) {
            // A thread of ours, on its way to start a cell.
            frames.clear();
        }
        frames.retain(|(file, ..)| !is_ours(file));
        // What stands before the first frame of a cell is not the user's.
        let first = frames
            .iter()
            .position(|(file, ..)| file.starts_with(crate::cell::FILE_PREFIX));
        let boot = frames.first().is_some_and(|(file, ..)| file == BOOT_FILE);
        frames.drain(..first.unwrap_or(usize::from(boot)));
    }
    rows
}

fn is_ours(file: &str) -> bool {
    file.starts_with("<pythond>")
}

fn parse_frame(line: &str) -> Option<(&str, u64, &str)> {
    let rest = line.strip_prefix("  File \"")?;
    let (file, rest) = rest.split_once("\", line ")?;
    let (number, function) = rest.split_once(" in ")?;
    Some((file, number.parse().unwrap_or(0), function))
}
