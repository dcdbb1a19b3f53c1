//! How a cell of 0.4 ended: one text has its output and its traceback.

use pythond_protocol::outcome::{CellStatus, ExceptionInfo, MergeReport};
use pythond_protocol::{CellId, ErrorReply};
use serde::Deserialize;

/// How a traceback begins, at the beginning of a line.
const TRACEBACK: &str = "Traceback (most recent call last):";

/// How a cell ended, and what it wrote.
#[derive(Debug, PartialEq)]
pub(super) struct Ending {
    pub(super) status: CellStatus,
    pub(super) output: String,
    pub(super) exception: Option<ExceptionInfo>,
}

impl Ending {
    pub(super) fn done(text: &str) -> Self {
        Self {
            status: CellStatus::Done,
            output: lines(text),
            exception: None,
        }
    }

    pub(super) fn failed(text: &str) -> Self {
        let last = text.lines().next_back().unwrap_or_default();
        let (kind, message) = last.split_once(": ").unwrap_or((last, ""));
        let (output, exception) = match traceback(text) {
            // `exit()` has none.
            None if last.starts_with("exit(") && last.ends_with(')') => {
                let output = text.strip_suffix(last).unwrap_or_default();
                (output, exception("SystemExit", last, ""))
            }
            None => ("", exception(kind, message, text)),
            Some(at) => {
                let (output, traceback) = text.split_at(at);
                let traceback = without_its_frames(traceback);
                (output, exception(kind, message, &traceback))
            }
        };
        Self {
            status: match exception.kind.as_str() {
                "KeyboardInterrupt" => CellStatus::Interrupted,
                _ => CellStatus::Failed,
            },
            output: lines(output),
            exception: Some(exception),
        }
    }

    fn killed() -> Self {
        Self {
            status: CellStatus::Killed,
            output: String::new(),
            exception: Some(exception("ChildProcessError", "killed", "")),
        }
    }

    fn running() -> Self {
        Self {
            status: CellStatus::Running,
            output: String::new(),
            exception: None,
        }
    }
}

fn exception(kind: &str, message: &str, traceback: &str) -> ExceptionInfo {
    ExceptionInfo {
        kind: kind.to_owned(),
        message: message.to_owned(),
        traceback: lines(traceback),
    }
}

/// 0.4 shows its own frames above the cell's, and that of the parser below them.
fn without_its_frames(traceback: &str) -> String {
    let mut kept = String::new();
    let mut is_its_own = false;
    for line in traceback.split_inclusive('\n') {
        if line.starts_with("  File \"") {
            let in_pythond = line.contains("pythond.py\", line ")
                && (line.ends_with(", in _exec\n") || line.ends_with(", in _eval_exec_cell\n"));
            let in_parser = line.contains("ast.py\", line ") && line.ends_with(", in parse\n");
            is_its_own = in_pythond || is_its_own && in_parser;
        } else if !line.starts_with("    ") {
            is_its_own = false;
        }
        if !is_its_own {
            kept.push_str(line);
        }
    }
    kept
}

/// 0.4 cuts the newlines off at the end.
fn lines(text: &str) -> String {
    match text.trim_end_matches('\n') {
        "" => String::new(),
        text => format!("{text}\n"),
    }
}

fn traceback(text: &str) -> Option<usize> {
    if text.starts_with(TRACEBACK) {
        return Some(0);
    }
    text.find(&format!("\n{TRACEBACK}")).map(|at| at + 1)
}

/// The answer to `poll`.
#[derive(Debug, Deserialize)]
pub(super) struct Polled {
    #[serde(default)]
    pub(super) cell_id: Option<CellId>,
    status: String,
    #[serde(default)]
    output: String,
    #[serde(default)]
    error: bool,
    merged: Option<Vec<String>>,
    skipped: Option<Vec<String>>,
}

impl Polled {
    /// It is no answer of 0.4's, which has nothing else.
    pub(super) fn of(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The session has no cell.
    pub(super) fn is_idle(&self) -> bool {
        self.status == "idle"
    }

    pub(super) fn is_running(&self) -> bool {
        self.status == "running"
    }

    /// A cell that has ended is forgotten after five minutes.
    pub(super) fn unknown(&self) -> Option<ErrorReply> {
        (self.status == "error").then(|| {
            let id = self.cell_id.map_or_else(String::new, |id| id.to_string());
            let mut error = ErrorReply::unknown_cell(&id);
            error.hint = Some("pythond 0.4 forgets a cell 5 minutes after its end".to_owned());
            error
        })
    }

    /// It came back with what a child process has.
    pub(super) fn merge(&self) -> Option<MergeReport> {
        let skipped = self.skipped.iter().flatten();
        Some(MergeReport {
            merged: self.merged.clone()?,
            skipped: skipped
                .map(|name| (name.clone(), "it cannot be pickled".to_owned()))
                .collect(),
            ..MergeReport::default()
        })
    }

    pub(super) fn ending(&self) -> Ending {
        match (self.is_running(), self.error) {
            (true, _) => Ending::running(),
            (false, false) => Ending::done(&self.output),
            (false, true) if self.merged.is_some() && self.output == "(killed)" => Ending::killed(),
            (false, true) => Ending::failed(&self.output),
        }
    }
}
