//! The words on a session that died.

use std::collections::BTreeMap;
use std::sync::Arc;

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::{CellFate, HostEnd, HostedSession, Reached, SessionSpec};
use pythond_protocol::limits::{CellLimits, KeptBudget, SessionLimits};
use pythond_protocol::outcome::ProcessEnd;
use pythond_protocol::verbs::new::{PythonInfo, StartKind};
use pythond_protocol::verbs::status::Tombstone;
use pythond_protocol::{CellId, ErrorCode, ErrorReply, Fate, SessionId, SessionName};

use super::handle::{EndReason, Last, SessionHandle};
use crate::host_process::HostProcess;

/// What is left of a session. `told` is set if we ended it ourselves.
pub(super) fn tombstone(
    exit: Option<&HostEnd>,
    told: Option<EndReason>,
    running: Option<CellId>,
) -> Tombstone {
    let (end, last_stderr, cell, died_at) = match exit {
        Some(exit) => (
            exit.end.clone(),
            exit.last_stderr.clone(),
            exit.cell,
            exit.died_at.clone(),
        ),
        None => (ProcessEnd::Unknown, String::new(), None, String::new()),
    };
    let died_at = if died_at.is_empty() {
        jiff::Timestamp::now().to_string()
    } else {
        died_at
    };
    let known = exit.and_then(|exit| exit.cause.clone());
    let cause = told
        .map(|reason| reason.cause().to_owned())
        .or(known)
        .unwrap_or_else(|| end.describe());
    Tombstone {
        end,
        cause,
        cell_id: cell.or(running).filter(|cell| ran(exit, *cell)),
        last_stderr,
        died_at,
    }
}

/// The journal does not say that the cell had not started, or had ended in that
/// very moment.
fn ran(exit: Option<&HostEnd>, cell: CellId) -> bool {
    let mut fates = exit.into_iter().flat_map(|exit| &exit.fates);
    let fate = fates.find(|fate| fate.cell == cell);
    fate.is_none_or(|fate| fate.reached == Reached::Started)
}

/// A session that died while no daemon looked, from what its zygote tells.
pub(crate) fn bury(exit: &HostEnd, dir: &Arc<PrivateDir>) -> Option<SessionHandle> {
    let known = exit.hosted.as_deref().cloned();
    let hosted = match known {
        Some(hosted) => hosted,
        None => hardly_known(exit.session.clone()?, 0),
    };
    let process = HostProcess::gone(exit.pid);
    Some(SessionHandle::of_dead(
        hosted,
        process,
        tombstone(Some(exit), None, None),
        Last::of(exit),
        (Arc::clone(dir), exit.socket.clone()),
    ))
}

/// A session of which only its zygote has told.
pub(super) fn hardly_known(
    (session, session_id, generation): (SessionName, SessionId, u64),
    zygote_pid: i32,
) -> HostedSession {
    let spec = SessionSpec {
        session,
        session_id,
        generation,
        cwd: String::new(),
        env: BTreeMap::new(),
        directory: String::new(),
        python_reason: String::new(),
        cold_reason: None,
        must_start_cold: false,
        limits: SessionLimits::default(),
        kept: KeptBudget::default(),
        cells: CellLimits::default(),
    };
    let unknown = String::new;
    HostedSession {
        spec,
        python: PythonInfo {
            executable: unknown(),
            version: unknown(),
            reason: unknown(),
        },
        start: StartKind::Fork,
        cold_reason: None,
        created_at: unknown(),
        unfinished: Vec::new(),
        unfinished_humans: Vec::new(),
        unfinished_beside: Vec::new(),
        unfinished_forks: Vec::new(),
        forks: false,
        keys_by_cell_lane: false,
        queued: Vec::new(),
        next_cell: CellId::from_parts(0, 0),
        not_recorded: None,
        held_by: None,
        limited_by: None,
        zygote_pid,
    }
}

/// The answer to whoever asks something of a dead session, or waited for it.
pub(crate) fn died(session: &SessionName, tombstone: &Tombstone) -> ErrorReply {
    let while_running = tombstone
        .cell_id
        .map_or_else(String::new, |cell| format!(" while cell {cell} ran"));
    let cause = &tombstone.cause;
    ErrorReply::new(
        ErrorCode::SessionDied,
        format!("session `{session}` died: {cause}{while_running}"),
    )
    .with_hint(format!("start it again with `pysh new {session}`"))
    .with_plain(format!(
        "session '{session}' died: {cause}{while_running} -- start it again with: new {session}"
    ))
}

/// The same to whoever asks for one of its cells, with what its journal says of
/// that one.
pub(super) fn died_with(
    session: &SessionName,
    tombstone: &Tombstone,
    last: &Last,
    cell: Option<CellId>,
) -> ErrorReply {
    let mut error = died(session, tombstone);
    error.cell_id = cell;
    if cell.is_some() && tombstone.cell_id == cell {
        error.fate = Some(Fate::WasRunning);
        return error;
    }
    let Some(fate) = last.fates.iter().find(|fate| Some(fate.cell) == cell) else {
        // An id that it may never have given.
        error.cell_id = None;
        return error;
    };
    let CellFate { cell, reached, .. } = fate;
    let (fate, words, hint) = match reached {
        Reached::Accepted => (
            Fate::NotStarted,
            "had not started",
            format!(
                "start the session again with `pysh new {session}`, and send the cell again: it never ran"
            ),
        ),
        Reached::Started => (
            Fate::WasRunning,
            "was running",
            format!("start the session again with `pysh new {session}`"),
        ),
        Reached::Finished => (
            Fate::HadEnded,
            "had ended, and its result went with the session",
            format!("start the session again with `pysh new {session}`"),
        ),
    };
    error.fate = Some(fate);
    more(error, &format!("cell {cell} {words}")).with_hint(hint)
}

/// Says more after the cause of a death.
pub(super) fn more(error: ErrorReply, words: &str) -> ErrorReply {
    let plain = error.to_plain();
    let plain = plain.strip_prefix("ERR ").unwrap_or(&plain);
    // The cause may have what looks like the beginning of the hint.
    let plain = match plain.rsplit_once(" -- ") {
        Some((cause, hint)) => format!("{cause}; {words} -- {hint}"),
        None => format!("{plain}; {words}"),
    };
    ErrorReply {
        message: format!("{}; {words}", error.message),
        plain: Some(plain.into()),
        ..error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_and_the_cell_are_named() {
        let cell = CellId::from_parts(1, 2);
        let waits = CellId::from_parts(1, 3);
        let fate = |cell, reached| CellFate {
            cell,
            request: 1,
            reached,
            key: None,
        };
        let exit = HostEnd {
            pid: 7,
            socket: "h-7.sock".to_owned(),
            end: ProcessEnd::Signaled {
                signal: 11,
                out_of_memory: false,
            },
            last_stderr: String::new(),
            cell: None,
            session: None,
            log_lost: 0,
            cause: None,
            died_at: "2020-01-01T00:00:00Z".to_owned(),
            died_ns: 0,
            fates: vec![fate(cell, Reached::Started), fate(waits, Reached::Accepted)],
            fates_are_all: true,
            born_ns: 0,
            ordered: false,
            start_time: 0,
            hosted: None,
        };
        let stone = tombstone(Some(&exit), None, Some(cell));
        let reply = died(&"work".parse().unwrap(), &stone);
        assert_eq!(
            reply.message,
            "session `work` died: killed by SIGSEGV (segmentation fault) while cell 000100000002 ran"
        );
        assert!(
            reply
                .to_plain()
                .starts_with("ERR session 'work' died: killed by SIGSEGV")
        );
        let last = Last::of(&exit);
        let of = |cell| died_with(&"work".parse().unwrap(), &stone, &last, Some(cell));
        assert_eq!(of(cell).message, reply.message);
        assert_eq!(of(cell).fate, Some(Fate::WasRunning));
        assert_eq!(of(cell).cell_id, Some(cell));
        assert!(
            of(waits)
                .message
                .ends_with("; cell 000100000003 had not started")
        );
        assert!(of(waits).hint.unwrap().ends_with("it never ran"));
        assert!(
            of(waits)
                .to_plain()
                .contains("; cell 000100000003 had not started -- ")
        );
        assert_eq!(of(CellId::from_parts(1, 9)), reply);
        assert_eq!(stone.died_at, exit.died_at);
        assert_eq!(stone.cell_id, Some(cell));
        // The daemon took it for the one that ran.
        assert_eq!(tombstone(Some(&exit), None, Some(waits)).cell_id, None);
        assert_eq!(
            tombstone(None, Some(EndReason::Killed), None).cause,
            "ended by `kill`"
        );
    }
}
