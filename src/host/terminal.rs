//! The session's terminal as its threads share it: who has it, what is to be
//! shown on it, who is attached.
//!
//! The I/O thread has the leading end and those who are attached; the main
//! thread has the prompt. What agents' cells write is shown by whoever writes
//! it, without ever waiting: what the terminal does not take at once is written
//! by the I/O thread.

mod attached;
mod input;
mod label;
mod paste;
mod pty;
mod screen;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::termios::Action;

pub(crate) use self::attached::{Arrived, Terminals};
pub(crate) use self::label::label;
pub(crate) use self::paste::{PASTE_BEGIN, PASTE_END};
pub(crate) use self::pty::{DEFAULT_SIZE, Follower, Leader, open};

/// Most output of one cell that is shown, in bytes.
const SHOWN_PER_CELL: usize = 64 << 10;
/// Cells whose budgets are remembered.
const MOST_BUDGETS: usize = 4096;
/// Most that waits to be shown, in bytes.
const MOST_WAITING: usize = 1 << 20;

/// Who writes to the terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Nobody: no one was ever attached.
    #[default]
    Nobody,
    /// The prompt with what is typed; others are shown above it.
    Prompt,
    /// An agent's cell runs; the prompt is still on the screen.
    Lent,
    /// An agent's cell runs, the prompt is out of the way.
    Agent,
    /// A cell of the person's.
    Person,
}

/// What somebody who attached told of their terminal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Person {
    pub(crate) author: String,
    pub(crate) term: Option<String>,
    pub(crate) colorterm: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    holder: Holder,
    /// Waits for the prompt to be out of the way.
    aside: Vec<u8>,
    /// What takes the prompt off the screen while it is lent.
    clear: Vec<u8>,
    /// How often it was lent, and how often when it was looked last.
    lent: u64,
    lent_before: u64,
    /// The I/O thread looks whether something has waited for long.
    watched: bool,
    /// Is to be written next: the terminal did not take it at once.
    next: Vec<u8>,
    /// Bytes that were not shown since too much waited.
    dropped: u64,
    /// How much of each cell is still to be shown.
    budgets: HashMap<u64, usize>,
    /// Output whose line is not complete, of cells that write beside others.
    partial: BTreeMap<u64, Vec<u8>>,
    /// The beginning of a change of colour that a cell wrote last.
    torn: BTreeMap<u64, Vec<u8>>,
    /// What was shown may have left a colour on.
    coloured: bool,
    /// The last thing that was written directly did not end its line.
    open_line: bool,
    person: Person,
    /// The last words were passed on.
    farewell: bool,
}

/// The shared part.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// None if the system gave none.
    follower: Option<Follower>,
    state: Mutex<State>,
    written: Condvar,
    /// Somebody is or was attached.
    wanted: AtomicBool,
    /// Something was typed that the prompt has not taken.
    typed: AtomicBool,
    /// Something has waited to be shown for long enough.
    overdue: AtomicBool,
    /// The size changed since the prompt looked.
    resized: AtomicBool,
    /// The line that is typed is to be given up.
    cancelled: AtomicBool,
    /// Nobody who can type is attached any more.
    abandoned: AtomicBool,
    attached: AtomicU64,
    /// The running cell of the person plus one; 0 while none runs.
    persons_cell: AtomicU64,
}

/// Starts the output of a terminal again, whatever stopped it: what a key has
/// stopped only starts after it was stopped by a program as well.
pub(crate) fn let_output_go_on(terminal: &OwnedFd) {
    for action in [Action::OOff, Action::OOn] {
        // A terminal that refuses was not stopped.
        let _ = rustix::termios::tcflow(terminal, action);
    }
}

impl State {
    /// What would be shown next would not begin a line.
    fn is_line_open(&self) -> bool {
        if self.aside.is_empty() {
            self.open_line
        } else {
            label::is_open(&self.aside)
        }
    }
}

impl Terminal {
    pub(crate) fn new(follower: Option<Follower>) -> Self {
        Self {
            follower,
            state: Mutex::default(),
            written: Condvar::new(),
            wanted: AtomicBool::new(false),
            typed: AtomicBool::new(false),
            overdue: AtomicBool::new(false),
            resized: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            attached: AtomicU64::new(0),
            persons_cell: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn follower(&self) -> Option<&Follower> {
        self.follower.as_ref()
    }

    /// Somebody attached: the main thread is to show its prompt.
    pub(crate) fn want(&self, person: Person) {
        let mut state = self.state();
        // Who types later is said with what they type.
        state.person = person;
        drop(state);
        self.wanted.store(true, SeqCst);
    }

    /// Somebody attached who only looks: what others told of their terminals
    /// stays.
    pub(crate) fn want_at_all(&self, person: Person) {
        if !self.is_wanted() {
            self.want(person);
        }
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(SeqCst)
    }

    /// Whose typing the next line is.
    pub(crate) fn set_author(&self, author: &str) {
        let mut state = self.state();
        if state.person.author != author {
            author.clone_into(&mut state.person.author);
        }
    }

    pub(crate) fn person(&self) -> Person {
        self.state().person.clone()
    }

    pub(crate) fn note_typed(&self) {
        self.typed.store(true, SeqCst);
    }

    pub(crate) fn take_typed(&self) -> bool {
        self.typed.swap(false, SeqCst)
    }

    pub(crate) fn cancel_line(&self) {
        self.cancelled.store(true, SeqCst);
    }

    pub(crate) fn take_cancelled(&self) -> bool {
        self.cancelled.swap(false, SeqCst)
    }

    /// The last who could type is gone.
    pub(crate) fn note_abandoned(&self) {
        self.abandoned.store(true, SeqCst);
        self.note_typed();
    }

    pub(crate) fn take_abandoned(&self) -> bool {
        self.abandoned.swap(false, SeqCst)
    }

    pub(crate) fn note_resized(&self) {
        self.resized.store(true, SeqCst);
    }

    pub(crate) fn take_resized(&self) -> bool {
        self.resized.swap(false, SeqCst)
    }

    pub(crate) fn set_attached(&self, count: usize) {
        self.attached
            .store(u64::try_from(count).unwrap_or(u64::MAX), SeqCst);
    }

    pub(crate) fn attached(&self) -> u64 {
        self.attached.load(SeqCst)
    }

    /// A cell of the person's begins to run, or has ended.
    pub(crate) fn set_persons_cell(&self, cell: Option<u64>) {
        self.persons_cell
            .store(cell.map_or(0, |cell| cell + 1), SeqCst);
    }

    /// The person's cell that runs.
    pub(crate) fn persons_cell(&self) -> Option<u64> {
        self.persons_cell.load(SeqCst).checked_sub(1)
    }

    /// True for the cell of the person's that runs now.
    pub(crate) fn is_persons(&self, cell: u64) -> bool {
        self.persons_cell.load(SeqCst) == cell + 1
    }

    /// The terminal is handed over. What waited is shown if it may be now.
    pub(crate) fn hand_to(&self, holder: Holder) {
        let mut state = self.state();
        state.holder = holder;
        if holder == Holder::Agent {
            let waiting = std::mem::take(&mut state.aside);
            self.write(&mut state, &waiting);
        }
    }

    /// An agent's cell begins while the prompt is on the screen; `clear` takes it
    /// off. Most cells end sooner than anybody can read, and cost no more than
    /// without a terminal: what they write is shown between them.
    pub(crate) fn lend(&self, clear: Vec<u8>) {
        let mut state = self.state();
        state.holder = Holder::Lent;
        state.clear = clear;
        state.lent += 1;
    }

    /// An agent's cell has ended. False if the prompt is not on the screen any
    /// more.
    pub(crate) fn give_back(&self) -> bool {
        let mut state = self.state();
        let there = state.holder == Holder::Lent;
        if there {
            state.holder = Holder::Prompt;
        }
        there
    }

    /// True while it has to be looked from time to time whether something has
    /// waited for long.
    pub(crate) fn is_watched(&self) -> bool {
        self.is_wanted() && self.state().watched
    }

    /// Looks whether something has waited since this was done last, and shows it
    /// if an agent's cell has run since then. True if the main thread has to.
    pub(crate) fn show_what_waits(&self) -> bool {
        let mut state = self.state();
        let long = state.lent == state.lent_before;
        state.lent_before = state.lent;
        match state.holder {
            _ if state.aside.is_empty() => state.watched = false,
            Holder::Lent if long => {
                let mut text = std::mem::take(&mut state.clear);
                text.append(&mut state.aside);
                self.write(&mut state, &text);
                state.holder = Holder::Agent;
            }
            Holder::Lent | Holder::Prompt => {
                self.overdue.store(true, SeqCst);
                return state.holder == Holder::Prompt;
            }
            Holder::Nobody | Holder::Agent | Holder::Person => state.watched = false,
        }
        false
    }

    pub(crate) fn take_overdue(&self) -> bool {
        self.overdue.swap(false, SeqCst)
    }

    /// Somebody attached for the first time while an agent's cell runs.
    pub(crate) fn begin_beside_agent(&self) {
        let mut state = self.state();
        if state.holder == Holder::Nobody {
            state.holder = Holder::Agent;
        }
    }

    /// The person's own programs write to the terminal.
    pub(crate) fn is_persons_turn(&self) -> bool {
        self.state().holder == Holder::Person
    }

    /// Something waits to be shown above the prompt.
    pub(crate) fn has_news(&self) -> bool {
        let state = self.state();
        state.holder == Holder::Prompt && !state.aside.is_empty()
    }

    /// Shows words of ours. True if the I/O thread has to see to it.
    pub(crate) fn say(&self, text: &str) -> bool {
        let mut state = self.state();
        self.show(&mut state, format!("{text}\n").as_bytes())
    }

    /// An agent's cell begins: shows what it is. True if the I/O thread has to
    /// see to it.
    pub(crate) fn introduce(&self, cell: u64, kind: &str, source: &str) -> bool {
        if !self.is_wanted() {
            return false;
        }
        let mut state = self.state();
        if state.holder == Holder::Nobody {
            return false;
        }
        state.budgets.insert(cell, SHOWN_PER_CELL);
        let mut text = Vec::new();
        if state.is_line_open() {
            text.push(b'\n');
        }
        if state.coloured {
            text.extend_from_slice(b"\x1b[m");
        }
        text.extend(label(kind, source).into_bytes());
        self.show(&mut state, &text)
    }

    /// A cell wrote something. True if the I/O thread has to see to it.
    pub(crate) fn output(&self, cell: u64, beside: bool, bytes: &[u8]) -> bool {
        if !self.is_wanted() {
            return false;
        }
        let mut state = self.state();
        if state.holder == Holder::Nobody {
            return false;
        }
        if state.budgets.len() > MOST_BUDGETS {
            // Of cells that ended long ago and whose threads go on writing.
            state.budgets.clear();
        }
        let budget = *state.budgets.entry(cell).or_insert(SHOWN_PER_CELL);
        if budget == 0 {
            return false;
        }
        let shown = &bytes[..bytes.len().min(budget)];
        state.budgets.insert(cell, budget - shown.len());
        let mut whole = state.torn.remove(&cell).unwrap_or_default();
        whole.extend_from_slice(shown);
        let torn = label::torn(&whole);
        if torn > 0 {
            let rest = whole.split_off(whole.len() - torn);
            state.torn.insert(cell, rest);
        }
        let mut text = label::visible(&whole);
        if budget == shown.len() {
            text.extend_from_slice(b"\n[pythond] more output of this cell: pysh out\n");
        }
        if !beside {
            return self.show(&mut state, &text);
        }
        // Lines of cells that run beside each other are kept whole.
        let line = state.partial.entry(cell).or_default();
        line.extend_from_slice(&text);
        let end = line.iter().rposition(|byte| *byte == b'\n');
        let whole = match end {
            Some(end) => line.drain(..=end).collect(),
            None if line.len() > 4096 => std::mem::take(line),
            None => return false,
        };
        self.show(&mut state, &whole)
    }

    /// A cell has ended; `error` is what is shown of its end.
    pub(crate) fn conclude(&self, cell: u64, error: Option<&str>) -> bool {
        if !self.is_wanted() {
            return false;
        }
        let mut state = self.state();
        let known = state.budgets.remove(&cell).is_some();
        let mut text = state.partial.remove(&cell).unwrap_or_default();
        if let Some(torn) = state.torn.remove(&cell) {
            text.extend(label::visible(&torn));
        }
        if !text.is_empty() {
            text.push(b'\n');
        }
        if known && let Some(error) = error {
            let error = error.as_bytes();
            text.extend(label::visible(&error[..error.len().min(SHOWN_PER_CELL)]));
            if text.last() != Some(&b'\n') {
                text.push(b'\n');
            }
        }
        !text.is_empty() && self.show(&mut state, &text)
    }

    fn show(&self, state: &mut State, bytes: &[u8]) -> bool {
        state.coloured |= bytes.contains(&0x1b);
        match state.holder {
            Holder::Agent => {
                self.write(state, bytes);
                !state.next.is_empty()
            }
            Holder::Nobody | Holder::Prompt | Holder::Lent | Holder::Person => {
                if state.aside.len() + bytes.len() > MOST_WAITING {
                    state.dropped += bytes.len() as u64;
                } else {
                    state.aside.extend_from_slice(bytes);
                }
                matches!(state.holder, Holder::Prompt | Holder::Lent)
                    && !std::mem::replace(&mut state.watched, true)
            }
        }
    }

    /// Writes as much as the terminal takes; the rest is the I/O thread's.
    fn write(&self, state: &mut State, bytes: &[u8]) {
        let Some(follower) = &self.follower else {
            return;
        };
        if !bytes.is_empty() {
            state.open_line = label::is_open(bytes);
        }
        let mut rest = bytes;
        if state.next.is_empty() {
            while !rest.is_empty() {
                match rustix::io::write(&follower.side, rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
        if state.next.len() + rest.len() > MOST_WAITING {
            state.dropped += rest.len() as u64;
        } else {
            state.next.extend_from_slice(rest);
        }
    }

    /// Writes what waited for room. False if there is more. Called by the I/O
    /// thread, which makes the room.
    pub(crate) fn write_next(&self) -> bool {
        let mut state = self.state();
        if state.next.is_empty() {
            return true;
        }
        let waiting = std::mem::take(&mut state.next);
        let open = state.open_line;
        self.write(&mut state, &waiting);
        state.open_line = open;
        let done = state.next.is_empty();
        if done {
            self.written.notify_all();
        }
        done
    }

    /// Before the prompt is shown again: takes what waits to be shown above it
    /// and lets the terminal take what was written. The line above the prompt
    /// is ended.
    pub(crate) fn take_aside(&self) -> Vec<u8> {
        let mut state = self.state();
        let mut aside = Vec::new();
        if std::mem::take(&mut state.open_line) {
            aside.push(b'\n');
        }
        aside.append(&mut state.aside);
        if label::is_open(&aside) {
            aside.push(b'\n');
        }
        if std::mem::take(&mut state.coloured) {
            aside.extend_from_slice(b"\x1b[m");
        }
        if state.dropped > 0 {
            let dropped = std::mem::take(&mut state.dropped);
            aside.extend(format!("[pythond] {dropped} bytes are not shown here\n").bytes());
        }
        aside
    }

    /// Waits until the terminal has taken what was written to it, not for long.
    pub(crate) fn wait_until_written(&self) {
        const PATIENCE: Duration = Duration::from_millis(300);
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state();
        while !state.next.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.written.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets what was said be passed on before the session ends, not for long.
    /// `passed_on` is for the I/O thread, which has just done so.
    pub(crate) fn farewell(&self, passed_on: bool) {
        const PATIENCE: Duration = Duration::from_millis(500);
        let mut state = self.state();
        if passed_on {
            state.farewell = true;
            self.written.notify_all();
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        while !state.farewell {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.written.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes to the terminal as a program does, waiting for room. For words
    /// that belong to the prompt.
    pub(crate) fn write_through(&self, bytes: &[u8]) {
        let Some(follower) = &self.follower else {
            return;
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::io::write(follower.terminal.as_fd(), rest) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}
