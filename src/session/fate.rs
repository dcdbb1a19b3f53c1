//! What a dead session says of a cell that comes with a key: its journal may know
//! the key, or know for certain that it never came.

use std::time::Duration;

use pythond_protocol::lane::{CellSpec, KeyDigest};
use pythond_protocol::outcome::CellKind;
use pythond_protocol::verbs::status::Tombstone;
use pythond_protocol::{ErrorCode, ErrorReply, Fate, SessionName};
use rustix::time::{ClockId, clock_gettime};

use super::death;
use super::handle::{Last, LastOutput, RunAnswer};

/// A cell that somebody sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent<'a> {
    pub(super) kind: CellKind,
    pub(super) source: &'a str,
    pub(super) how: &'a CellSpec,
    /// It was sent before, so long ago.
    pub(super) resent: Option<Duration>,
}

/// The answer to whoever sends a cell to a dead session, or had sent it.
pub(super) fn answer(
    session: &SessionName,
    tombstone: &Tombstone,
    last: &Last,
    sent: Sent<'_>,
) -> RunAnswer {
    let died = death::died(session, tombstone);
    let Some(key) = &sent.how.key else {
        return RunAnswer::Refused(died);
    };
    let digest = KeyDigest::new(key, sent.kind, sent.source);
    let mut fates = last.fates.iter();
    let found = fates.find(|fate| fate.key.is_some_and(|key| key.is_same_key(&digest)));
    if let Some(fate) = found {
        if fate.key != Some(digest) {
            return RunAnswer::Refused(ErrorReply::id_reused(key, fate.cell));
        }
        let error = death::died_with(session, tombstone, last, Some(fate.cell));
        return RunAnswer::Died(Some(fate.cell), error, LastOutput::default());
    }
    RunAnswer::Refused(if is_certain(last, sent.resent, now_ns()) {
        let hint = format!(
            "start the session again with `pysh new {session}`, and send the cell again: it never ran"
        );
        let mut error = death::more(died, "it never accepted this cell").with_hint(hint);
        error.fate = Some(Fate::NeverAccepted);
        error
    } else {
        // Who sends it for the first time gets this too.
        let hint = format!(
            "start the session again with `pysh new {session}`; if the cell was sent before, \
             look whether it ran before you send it again"
        );
        let mut error = death::more(died, "nobody can know whether it had a cell with this id");
        error.code = ErrorCode::Lost;
        error.with_hint(hint)
    })
}

/// What the journal does not name was never accepted. A session that began after
/// the cell was sent is not the one that it was sent to.
fn is_certain(last: &Last, resent: Option<Duration>, now_ns: u64) -> bool {
    let age = Duration::from_nanos(now_ns.saturating_sub(last.born_ns));
    let was_there = |ago| last.born_ns != 0 && age >= ago;
    last.fates_are_all && resent.is_none_or(was_there)
}

/// Now, by the clock of a journal.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let span = Duration::try_from(now).unwrap_or_default();
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use pythond_protocol::CellId;
    use pythond_protocol::lane::{CellFate, Reached};

    use super::*;

    fn told(last: &Last, kind: CellKind, source: &str, resent: Option<u64>) -> RunAnswer {
        let how = CellSpec {
            key: Some("k".to_owned()),
            ..CellSpec::default()
        };
        let sent = Sent {
            kind,
            source,
            how: &how,
            resent: resent.map(Duration::from_secs),
        };
        let stone = death::tombstone(None, None, None);
        answer(&"work".parse().unwrap(), &stone, last, sent)
    }

    fn last(reached: Option<Reached>) -> Last {
        let fate = reached.map(|reached| CellFate {
            cell: CellId::from_parts(1, 2),
            request: 1,
            reached,
            key: Some(KeyDigest::new("k", CellKind::Run, "1")),
        });
        Last {
            fates: fate.into_iter().collect(),
            fates_are_all: true,
            born_ns: 1,
            ..Last::default()
        }
    }

    fn refused(answer: RunAnswer) -> ErrorReply {
        match answer {
            RunAnswer::Refused(error) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_that_came_names_its_cell_and_how_far_it_came() {
        for (reached, fate) in [
            (Reached::Accepted, Fate::NotStarted),
            (Reached::Started, Fate::WasRunning),
            (Reached::Finished, Fate::HadEnded),
        ] {
            // What came is certain, whatever else there was.
            let mut last = last(Some(reached));
            last.fates_are_all = false;
            match told(&last, CellKind::Run, "1", Some(1 << 40)) {
                RunAnswer::Died(cell, error, _) => {
                    assert_eq!(cell, Some(CellId::from_parts(1, 2)));
                    assert_eq!(error.cell_id, cell);
                    assert_eq!(error.fate, Some(fate));
                    assert_eq!(error.code, ErrorCode::SessionDied);
                }
                other => panic!("{other:?}"),
            }
            for (kind, source) in [(CellKind::Run, "2"), (CellKind::Fire, "1")] {
                let error = refused(told(&last, kind, source, None));
                assert_eq!(error.code, ErrorCode::IdReused);
            }
        }
    }

    #[test]
    fn a_key_that_never_came_is_told_as_such_only_if_that_is_certain() {
        let mut last = last(None);
        for resent in [None, Some(0)] {
            let error = refused(told(&last, CellKind::Run, "1", resent));
            assert_eq!(error.code, ErrorCode::SessionDied);
            assert_eq!(error.fate, Some(Fate::NeverAccepted));
        }
        let lost = |last: &Last, resent| {
            let error = refused(told(last, CellKind::Run, "1", resent));
            assert_eq!((error.code, error.fate), (ErrorCode::Lost, None));
        };
        // It began later than that.
        lost(&last, Some(1 << 40));
        last.born_ns = 0;
        lost(&last, Some(0));
        last.fates_are_all = false;
        lost(&last, None);
    }
}
