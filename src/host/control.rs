//! What the control lane asks for: answered at once, or as soon as what is
//! waited for has happened. Never waits itself.

mod interrupts;
mod readers;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use pythond_protocol::lane::{CellSpec, HostCommand, HostEvent, Message, OUTPUT_CHUNK};
use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::{CellId, ErrorCode, ErrorReply};
use rustix::process::Signal;

use self::interrupts::{Interrupted, Told};
use self::readers::{Fetch, Follower, Reading};
use crate::cells::{Acceptance, Found, QueuedCell};
use crate::children::Family;
use crate::service::{self, Ask, Question};
use crate::shared::{Outgoing, Shared};
use crate::{fire, fork, stack};

/// Questions that may wait for the interpreter at once.
const MOST_QUESTIONS: usize = 8;
/// How long a question waits for the interpreter's lock: long enough for every
/// thread that runs Python to have had its turn.
const LOCK_PATIENCE: Duration = Duration::from_millis(400);
/// The same for each cell that runs, as they take turns.
const PATIENCE_PER_CELL: Duration = Duration::from_millis(10);

/// A question that waits for the interpreter.
#[derive(Debug)]
struct Asked {
    request: u64,
    answered: Arc<AtomicBool>,
    deadline: Instant,
}

/// A cell that was submitted, but for its source.
#[derive(Debug)]
pub(crate) struct Submitted {
    pub(crate) request: u64,
    pub(crate) kind: CellKind,
    /// The tag of the cell lane that it came by, if it did.
    pub(crate) lane: Option<u64>,
    pub(crate) how: CellSpec,
}

/// What the I/O thread knows of the control lane's requests.
#[derive(Debug)]
pub(crate) struct Control {
    shared: &'static Shared,
    followers: Vec<Follower>,
    fetches: Vec<Fetch>,
    told: Vec<Told>,
    /// The newest interrupts, with what came of them at once.
    interrupted: VecDeque<Interrupted>,
    asked: Vec<Asked>,
    /// An interrupt of the main thread has to be repeated until it is seen.
    pub(crate) repeating: bool,
}

impl Control {
    pub(crate) fn new(shared: &'static Shared) -> Self {
        Self {
            shared,
            followers: Vec::new(),
            fetches: Vec::new(),
            told: Vec::new(),
            interrupted: VecDeque::new(),
            asked: Vec::new(),
            repeating: false,
        }
    }

    /// The daemon that asked is gone.
    pub(crate) fn forget(&mut self) {
        self.followers.clear();
        for fetch in self.fetches.drain(..) {
            fetch.answered.store(true, SeqCst);
        }
        self.told.clear();
        for asked in self.asked.drain(..) {
            asked.answered.store(true, SeqCst);
        }
        self.watch();
    }

    /// Carries a command out; what it answers at once. `nudge` wakes the main
    /// thread.
    pub(crate) fn obey(
        &mut self,
        message: Message<HostCommand>,
        nudge: impl Fn(),
    ) -> Option<Outgoing> {
        let shared = self.shared;
        let event = match message.header {
            HostCommand::Run {
                request,
                how,
                after,
            } => {
                if let Some(before) = after {
                    shared.reserve(before);
                }
                let cell = Submitted {
                    request,
                    kind: CellKind::Run,
                    lane: None,
                    how,
                };
                return self.submit(cell, message.body, nudge);
            }
            HostCommand::Fire { request, how } => {
                let cell = Submitted {
                    request,
                    kind: CellKind::Fire,
                    lane: None,
                    how,
                };
                return self.submit(cell, message.body, nudge);
            }
            HostCommand::Fork { request, how } => {
                let cell = Submitted {
                    request,
                    kind: CellKind::Fork,
                    lane: None,
                    how,
                };
                return self.submit(cell, message.body, nudge);
            }
            HostCommand::Status { request } => HostEvent::Status {
                request,
                status: shared.status(),
            },
            HostCommand::Vars { request } => return self.ask(request, Question::Vars),
            HostCommand::Complete { request, text } => {
                return self.ask(request, Question::Complete(text));
            }
            HostCommand::Cells { request } => {
                let (cells, forgotten) = shared.look_at_all();
                HostEvent::Cells {
                    request,
                    cells,
                    forgotten,
                }
            }
            HostCommand::Look { request, cell } => return Some(self.look(request, cell)),
            HostCommand::ReadOutput {
                request,
                cell,
                stream,
                offset,
                most,
                follow,
            } => {
                let follower = Follower {
                    request,
                    cell,
                    stream,
                    offset,
                    most: (most as usize).min(OUTPUT_CHUNK),
                    not_before: None,
                };
                return self.read(follower, follow);
            }
            HostCommand::Await { request, cell } => match shared.find(cell, request) {
                Found::Ended(end) => return Some(shared.finished_message(end)),
                Found::Later => return None,
                Found::Unknown(error) => HostEvent::Refused { request, error },
            },
            HostCommand::Interrupt {
                request,
                cells,
                soft,
                unnamed,
            } => return self.interrupt(request, cells, soft, unnamed),
            HostCommand::Stack { request } => {
                self.stack(request);
                return None;
            }
            HostCommand::KillChildren { request, cell } => HostEvent::ChildrenKilled {
                request,
                pids: match self.thread_of(cell) {
                    Some(thread) => Family::of(thread).signal(Signal::KILL),
                    None => fork::kill(cell).into_iter().collect(),
                },
            },
            HostCommand::Expect { cell } => {
                shared.reserve(cell);
                return None;
            }
            HostCommand::Forget { request } => {
                self.followers
                    .retain(|follower| follower.request != request);
                self.fetches.retain(|fetch| {
                    let forgotten = fetch.follower.request == request;
                    if forgotten {
                        fetch.answered.store(true, SeqCst);
                    }
                    !forgotten
                });
                self.told.retain(|told| told.request != request);
                shared.forget_asker(request);
                self.watch();
                return None;
            }
            HostCommand::Shutdown => {
                shared.shut_down();
                return None;
            }
            // The I/O thread itself does these.
            HostCommand::Hold { .. } | HostCommand::Resize { .. } | HostCommand::LookAround => {
                return None;
            }
        };
        Some((event, Vec::new()))
    }

    /// Takes a cell; also used for those of the cell lane while the main thread
    /// cannot read it.
    pub(crate) fn submit(
        &mut self,
        submitted: Submitted,
        body: Vec<u8>,
        nudge: impl Fn(),
    ) -> Option<Outgoing> {
        let Submitted {
            request,
            kind,
            lane,
            how,
        } = submitted;
        let shared = self.shared;
        let source = into_source(body);
        let accepted = shared.accept(request, kind, lane, &how, &source);
        let (cell, existing, status) = match accepted {
            Acceptance::Refused(error) => {
                return Some((HostEvent::Refused { request, error }, Vec::new()));
            }
            Acceptance::Stale => return None,
            Acceptance::Existing(cell, status) => (cell, true, status),
            Acceptance::New(id) => {
                let cell = QueuedCell {
                    id,
                    direct: lane.is_some(),
                    changed: how.changed,
                    source,
                    most_back: how.max_result,
                };
                let mut status = CellStatus::Queued;
                if kind == CellKind::Fire {
                    let due = if how.queue {
                        shared.enqueue_beside(cell)
                    } else {
                        shared.hold_back(cell).into_iter().collect()
                    };
                    if due.iter().any(|due| due.id == id) {
                        status = CellStatus::Running;
                    }
                    fire::start(shared, due);
                } else if kind == CellKind::Fork {
                    if let Some(cell) = shared.hold_back(cell) {
                        status = CellStatus::Running;
                        fork::start(shared, cell);
                    }
                } else {
                    shared.enqueue(cell);
                    nudge();
                }
                (id, false, status)
            }
        };
        let accepted = HostEvent::Accepted {
            request,
            cell,
            existing,
            status,
        };
        // A `run` waits for the end of the cell that has its key.
        if existing && kind == CellKind::Run {
            shared.send(accepted, Vec::new());
            return match shared.find(cell, request) {
                Found::Ended(end) => {
                    let (event, body) = shared.finished_message(end);
                    shared.send(event, body);
                    None
                }
                Found::Later => None,
                // It was forgotten in this very moment.
                Found::Unknown(error) => Some((HostEvent::Refused { request, error }, Vec::new())),
            };
        }
        Some((accepted, Vec::new()))
    }

    fn look(&self, request: u64, cell: Option<CellId>) -> Outgoing {
        let Some((record, end)) = self.shared.look(cell) else {
            let event = match cell {
                Some(cell) => unknown_cell(request, cell),
                None => HostEvent::Cell {
                    request,
                    record: None,
                    end: None,
                },
            };
            return (event, Vec::new());
        };
        let body = self.shared.inline_output(record.cell);
        let event = HostEvent::Cell {
            request,
            record: Some(Box::new(record)),
            end: end.map(Box::new),
        };
        (event, body)
    }

    fn stack(&self, request: u64) {
        let shared = self.shared;
        stack::look(shared, move |found| {
            let event = match found {
                Ok((method, threads)) => HostEvent::Stack {
                    request,
                    method,
                    threads,
                },
                Err(why) => HostEvent::Refused {
                    request,
                    error: ErrorReply::new(ErrorCode::Busy, why),
                },
            };
            shared.send(event, Vec::new());
        });
    }

    fn ask(&mut self, request: u64, question: Question) -> Option<Outgoing> {
        // Threads count until the interpreter lets them go, answered or not.
        if service::waiting() >= MOST_QUESTIONS {
            return Some((busy(request), Vec::new()));
        }
        let running = u32::try_from(self.shared.running().len()).unwrap_or(u32::MAX);
        let patience = LOCK_PATIENCE + PATIENCE_PER_CELL.saturating_mul(running);
        let answered = Arc::new(AtomicBool::new(false));
        self.asked.push(Asked {
            request,
            answered: Arc::clone(&answered),
            deadline: Instant::now() + patience,
        });
        let ask = Ask::new(self.shared, request, question, answered);
        self.shared.spawner.hand(ask);
        None
    }

    /// Looks whether something is due or has come; returns what there is to say.
    pub(crate) fn turn(&mut self) -> Vec<Outgoing> {
        let mut outgoing = Vec::new();
        let now = Instant::now();
        let mut due = false;
        for follower in &mut self.followers {
            if follower.not_before.is_some_and(|at| at <= now) {
                follower.not_before = None;
                due = true;
            }
        }
        if self.shared.take_news() || due {
            let mut followers = std::mem::take(&mut self.followers);
            followers.retain(|follower| match self.follow(*follower) {
                Reading::Answer(answer) => {
                    outgoing.push(answer);
                    false
                }
                Reading::Later => true,
                Reading::Fetched => false,
            });
            self.followers = followers;
        }
        outgoing.extend(self.answer_without_files(now));
        for cell in self.shared.take_timed_out(now) {
            self.tell(cell, true, false);
        }
        outgoing.extend(self.tell_what_came());
        self.asked.retain(|asked| {
            if asked.answered.load(SeqCst) {
                return false;
            }
            let late = asked.deadline <= now && !asked.answered.swap(true, SeqCst);
            if late {
                outgoing.push((busy(asked.request), Vec::new()));
            }
            !late
        });
        self.watch();
        outgoing
    }

    /// When there is something to do at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let told = self.told.iter().map(|told| told.deadline);
        let asked = self.asked.iter().map(|asked| asked.deadline);
        let fetches = self.fetches.iter().map(|fetch| fetch.deadline);
        let due = told.chain(asked).chain(fetches).chain(self.next_piece());
        due.chain(self.shared.next_timeout()).min()
    }

    /// When the next reader is to be answered that has to wait a little.
    fn next_piece(&self) -> Option<Instant> {
        let followers = self.followers.iter();
        followers.filter_map(|follower| follower.not_before).min()
    }

    fn watch(&self) {
        let watch = !self.followers.is_empty() || !self.told.is_empty();
        self.shared.watch_ends(watch);
    }
}

fn busy(request: u64) -> HostEvent {
    let error = ErrorReply::new(
        ErrorCode::Busy,
        "C code holds the interpreter: nothing can look into the namespace now",
    );
    let hint = "ask again, see `pysh stack`, or interrupt the cell with `pysh int`";
    HostEvent::Refused {
        request,
        error: error.with_hint(hint),
    }
}

fn unknown_cell(request: u64, cell: CellId) -> HostEvent {
    let error = ErrorReply::unknown_cell(&cell.to_string());
    HostEvent::Refused { request, error }
}

/// Sources come from WebSocket text messages, so they are UTF-8; whatever else
/// a broken daemon sends is made so.
pub(crate) fn into_source(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
