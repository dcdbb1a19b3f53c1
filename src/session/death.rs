//! The words on a session that died.

use std::collections::BTreeMap;

use pythond_protocol::lane::{HostedSession, SessionSpec};
use pythond_protocol::limits::{KeptBudget, SessionLimits};
use pythond_protocol::outcome::ProcessEnd;
use pythond_protocol::verbs::new::{PythonInfo, StartKind};
use pythond_protocol::verbs::status::Tombstone;
use pythond_protocol::{CellId, ErrorCode, ErrorReply, SessionId, SessionName};

use super::handle::{EndReason, SessionHandle};
use crate::exits::HostExit;
use crate::host_process::HostProcess;

/// What is left of a session. `told` is set if we ended it ourselves.
pub(super) fn tombstone(
    exit: Option<&HostExit>,
    told: Option<EndReason>,
    running: Option<CellId>,
) -> Tombstone {
    let died_at = jiff::Timestamp::now().to_string();
    let (end, last_stderr, cell) = match exit {
        Some(exit) => (exit.end.clone(), exit.last_stderr.clone(), exit.cell),
        None => (ProcessEnd::Unknown, String::new(), None),
    };
    let known = exit.and_then(|exit| exit.cause.clone());
    let cause = told
        .map(|reason| reason.cause().to_owned())
        .or(known)
        .unwrap_or_else(|| end.describe());
    Tombstone {
        end,
        cause,
        cell_id: cell.or(running),
        last_stderr,
        died_at,
    }
}

/// A session that died while no daemon looked, from what its zygote tells.
pub(crate) fn bury(exit: HostExit) -> Option<SessionHandle> {
    let hosted = hardly_known(exit.session.clone()?, 0);
    let process = HostProcess::gone(exit.pid);
    Some(SessionHandle::of_dead(
        hosted,
        process,
        tombstone(Some(&exit), None, None),
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
        age_ms: 0,
        unfinished: Vec::new(),
        unfinished_beside: Vec::new(),
        unfinished_forks: Vec::new(),
        forks: false,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_and_the_cell_are_named() {
        let cell = CellId::from_parts(1, 2);
        let exit = HostExit {
            pid: 7,
            end: ProcessEnd::Signaled {
                signal: 11,
                out_of_memory: false,
            },
            last_stderr: String::new(),
            cell: None,
            session: None,
            log: Vec::new(),
            log_lost: 0,
            cause: None,
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
        assert_eq!(
            tombstone(None, Some(EndReason::Killed), None).cause,
            "ended by `kill`"
        );
    }
}
