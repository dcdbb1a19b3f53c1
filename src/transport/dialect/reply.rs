//! Our replies, of what a daemon of 0.4 tells.

use pythond_protocol::outcome::{CellKind, CellStatus};
use pythond_protocol::verbs::cell::{CellError, CellReply, CellSummary, Text};
use pythond_protocol::verbs::info::InfoReply;
use pythond_protocol::verbs::interrupt::InterruptReply;
use pythond_protocol::verbs::list::{ListReply, SessionState, SessionSummary};
use pythond_protocol::verbs::new::{PythonInfo, StartKind};
use pythond_protocol::verbs::status::StatusReply;
use pythond_protocol::verbs::submit::FireReply;
use pythond_protocol::{CellId, ErrorReply, SessionId, SessionName};
use serde::Deserialize;

use super::answer::{answer, read};
use super::ending::{Ending, Polled};
use super::{Step, listing};

/// 0.4 does not say it; only a child process brings something back.
pub(super) fn kind(polled: &Polled) -> CellKind {
    match polled.merge() {
        Some(_) => CellKind::Fork,
        None => CellKind::Fire,
    }
}

pub(super) fn submitted(
    session: SessionName,
    kind: CellKind,
    text: &str,
) -> Result<Step, ErrorReply> {
    #[derive(Deserialize)]
    struct Submitted {
        cell_id: CellId,
    }
    let Submitted { cell_id } = read(text)?;
    Ok(answer(&FireReply {
        ok: true,
        session,
        session_id: SessionId::unknown(),
        generation: 0,
        cell_id,
        kind,
        status: CellStatus::Running,
        existing: false,
        held_by: None,
    }))
}

pub(super) fn cell(
    session: SessionName,
    kind: CellKind,
    cell_id: Option<CellId>,
    ending: Ending,
) -> CellReply {
    let Ending {
        status,
        output,
        exception,
    } = ending;
    CellReply {
        session,
        session_id: SessionId::unknown(),
        generation: 0,
        cell_id,
        kind,
        status,
        ok: status == CellStatus::Done,
        output_bytes: output.len() as u64,
        stdout: Text(output.into_bytes()),
        stderr: Text(Vec::new()),
        order: Vec::new(),
        result: None,
        error: exception.map(|exception| CellError {
            exception,
            code: None,
            hint: None,
            fate: None,
        }),
        started_at: None,
        duration_ms: 0.0,
        truncated: 0,
        host: String::new(),
        changed: Vec::new(),
        not_recorded: None,
        queue_position: None,
        interrupt_pending: false,
        timed_out: false,
        existing: false,
        streamed: false,
        merge: None,
    }
}

pub(super) fn summary(cell_id: CellId, polled: &Polled) -> CellSummary {
    let ending = polled.ending();
    CellSummary {
        cell_id,
        kind: kind(polled),
        author: String::new(),
        status: ending.status,
        queue_position: None,
        accepted_at: String::new(),
        started_at: None,
        duration_ms: 0.0,
        output_bytes: ending.output.len() as u64,
        truncated: 0,
        interrupt_pending: false,
        timed_out: false,
        id: None,
        code: String::new(),
        merge: polled.merge(),
    }
}

/// 0.4 says how many, and not which.
pub(super) fn interrupted(session: SessionName, text: &str) -> InterruptReply {
    let told = text.split_once(": ").map_or("", |(_, told)| told);
    let told: Vec<String> = told
        .split(", ")
        .filter(|it| !it.is_empty())
        .map(str::to_owned)
        .collect();
    let count = |it: &String| it.split(' ').next()?.parse::<u64>().ok();
    InterruptReply {
        ok: true,
        session,
        interrupted: Vec::new(),
        interrupted_count: Some(told.iter().filter_map(count).fold(0, u64::saturating_add)),
        cells: Vec::new(),
        actions: told,
        killed: false,
    }
}

pub(super) fn info(version: String, text: &str) -> Step {
    let alive = |it: &&SessionSummary| it.state != SessionState::Dead;
    let ListReply { sessions, .. } = listing::list(text);
    answer(&InfoReply {
        ok: true,
        endpoint: String::new(),
        listen: Vec::new(),
        network: None,
        pid: 0,
        boot: None,
        version,
        uptime_s: 0.0,
        sessions: sessions.iter().filter(alive).count() as u64,
        max_sessions: 0,
        runtime_dir: String::new(),
        zygotes: Vec::new(),
        remotes: Vec::new(),
    })
}

pub(super) fn its_python() -> PythonInfo {
    PythonInfo {
        executable: String::new(),
        version: String::new(),
        reason: "chosen by pythond 0.4".to_owned(),
    }
}

pub(super) fn status(session: SessionName, pid: i32, text: &str) -> Result<Step, ErrorReply> {
    #[derive(Deserialize)]
    struct Status {
        state: SessionState,
        running: Vec<CellId>,
        vars: u64,
        cells: u64,
    }
    let Status {
        state,
        running,
        vars,
        cells,
    } = read(text)?;
    let reply = status_reply(session, pid, state, running, vars, cells);
    Ok(answer(&reply))
}

pub(super) fn status_reply(
    session: SessionName,
    pid: i32,
    state: SessionState,
    running: Vec<CellId>,
    vars: u64,
    cells: u64,
) -> StatusReply {
    StatusReply {
        state,
        running,
        vars,
        cells,
        ok: state != SessionState::Dead,
        session,
        session_id: SessionId::unknown(),
        generation: 0,
        pid,
        queued: Vec::new(),
        python: its_python(),
        start: StartKind::Cold,
        cold_reason: None,
        cwd: String::new(),
        created_at: String::new(),
        host: String::new(),
        not_recorded: None,
        held_by: None,
        attached: 0,
        kept: None,
        limits: None,
        death: None,
        remote: None,
    }
}
