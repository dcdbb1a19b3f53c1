//! A cell's reply as what has to be shown of it: pieces of output in order,
//! and how it ended. Prints nothing.

use pythond_protocol::outcome::CellStatus;
use pythond_protocol::output_log::Stream;
use pythond_protocol::verbs::cell::CellReply;
use pythond_protocol::verbs::word;
use pythond_protocol::{ErrorReply, ExitCode};
use pythond_transport::Report;

/// The output in the order of arrival. Without an order, or where the order
/// does not cover everything, stdout comes first.
pub(crate) fn pieces(reply: &CellReply) -> Vec<(Stream, &[u8])> {
    let (mut stdout, mut stderr) = (reply.stdout.0.as_slice(), reply.stderr.0.as_slice());
    let mut pieces = Vec::new();
    for (number, length) in &reply.order {
        let (stream, rest) = match number {
            1 => (Stream::Stdout, &mut stdout),
            2 => (Stream::Stderr, &mut stderr),
            _ => continue,
        };
        let length = usize::try_from(*length)
            .unwrap_or(usize::MAX)
            .min(rest.len());
        let (piece, after) = rest.split_at(length);
        *rest = after;
        pieces.push((stream, piece));
    }
    pieces.push((Stream::Stdout, stdout));
    pieces.push((Stream::Stderr, stderr));
    pieces.retain(|(_, piece)| !piece.is_empty());
    pieces
}

/// How a cell that did not succeed is told of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    /// Python's own words, lines ended.
    Traceback(String),
    /// The session suffered, not the code.
    Report(Report),
}

/// What to say of the cell's end; none if it succeeded or has not ended.
pub(crate) fn ending(reply: &CellReply) -> Option<Ending> {
    let Some(error) = &reply.error else {
        return match reply.status {
            CellStatus::Done | CellStatus::Queued | CellStatus::Running => None,
            status => Some(Ending::Report(Report::new(
                "internal",
                format!("the cell ended as `{}` and nothing says why", word(&status)),
                exit_code(reply),
            ))),
        };
    };
    if let Some(code) = error.code {
        let mut told = ErrorReply::new(code, error.exception.message.clone());
        told.hint.clone_from(&error.hint);
        return Some(Ending::Report(Report {
            exit: exit_code(reply),
            ..told.into()
        }));
    }
    // A `SystemExit` has no traceback; its message is `exit(n)`.
    let text = match error.exception.traceback.as_str() {
        "" => &error.exception.message,
        traceback => traceback,
    };
    Some(Ending::Traceback(format!(
        "{}\n",
        text.trim_end_matches('\n')
    )))
}

/// How a client's process ends after this reply.
pub(crate) fn exit_code(reply: &CellReply) -> ExitCode {
    match reply.status {
        // What it made of the interrupt does not matter, as with timeout(1).
        CellStatus::Done | CellStatus::Failed | CellStatus::Interrupted if reply.timed_out => {
            ExitCode::TimedOut
        }
        CellStatus::Done => ExitCode::Success,
        CellStatus::Failed => by_code(reply, ExitCode::Raised),
        CellStatus::Interrupted => ExitCode::Interrupted,
        CellStatus::Killed => ExitCode::SessionDied,
        // The session may live and only not answer: its code tells.
        CellStatus::Lost => by_code(reply, ExitCode::SessionDied),
        // Its `--wait` is over.
        CellStatus::Queued | CellStatus::Running => ExitCode::TimedOut,
    }
}

/// The exit code of the error's code; `otherwise` if the error has none.
fn by_code(reply: &CellReply, otherwise: ExitCode) -> ExitCode {
    match reply.error.as_ref().and_then(|error| error.code) {
        Some(code) => ErrorReply::new(code, "").exit_code(),
        None => otherwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: &str, extra: &str) -> CellReply {
        let json = format!(
            r#"{{"session":"work","session_id":"00","gen":1,"cell_id":"00ab00000007",
            "kind":"run","status":"{status}","ok":false,"result":null,"started_at":null,
            "duration_ms":1.5,"output_bytes":1,"truncated":0,"host":"h","changed":[],{extra}}}"#
        );
        serde_json::from_str(&json).expect(&json)
    }

    fn shown(extra: &str) -> Vec<(u8, String)> {
        let reply = reply("done", &format!(r#""error":null,{extra}"#));
        let text = |piece: &[u8]| String::from_utf8_lossy(piece).into_owned();
        pieces(&reply)
            .into_iter()
            .map(|(stream, piece)| (stream as u8, text(piece)))
            .collect()
    }

    fn piece(stream: u8, text: &str) -> (u8, String) {
        (stream, text.to_owned())
    }

    #[test]
    fn output_is_shown_in_the_order_of_arrival() {
        let found = shown(r#""stdout":"abcd","stderr":"xy","order":[[1,2],[2,1],[1,2],[2,1]]"#);
        assert_eq!(
            found,
            [piece(1, "ab"), piece(2, "x"), piece(1, "cd"), piece(2, "y")]
        );
        let found = shown(r#""stdout":"é1","stderr":"x","order":[[2,1],[1,3]]"#);
        assert_eq!(found, [piece(2, "x"), piece(1, "é1")]);
    }

    #[test]
    fn nothing_is_lost_or_invented_by_a_wrong_order() {
        assert_eq!(
            shown(r#""stdout":"ab","stderr":"x""#),
            [piece(1, "ab"), piece(2, "x")]
        );
        assert_eq!(shown(r#""stdout":"","stderr":"""#), []);
        let found = shown(r#""stdout":"ab","stderr":"x","order":[[1,1],[7,9],[2,99]]"#);
        assert_eq!(found, [piece(1, "a"), piece(2, "x"), piece(1, "b")]);
    }

    #[test]
    fn exit_codes_follow_the_status_and_never_the_output() {
        let said = r#""stdout":"ERR x\n","stderr":"","error":null"#;
        for (status, code) in [
            ("done", ExitCode::Success),
            ("failed", ExitCode::Raised),
            ("interrupted", ExitCode::Interrupted),
            ("killed", ExitCode::SessionDied),
            ("lost", ExitCode::SessionDied),
            ("queued", ExitCode::TimedOut),
            ("running", ExitCode::TimedOut),
        ] {
            assert_eq!(exit_code(&reply(status, said)), code, "{status}");
        }
        let timed_out = format!(r#"{said},"timed_out":true"#);
        for (status, code) in [
            ("done", ExitCode::TimedOut),
            ("failed", ExitCode::TimedOut),
            ("interrupted", ExitCode::TimedOut),
            ("killed", ExitCode::SessionDied),
        ] {
            assert_eq!(exit_code(&reply(status, &timed_out)), code, "{status}");
        }
        assert_eq!(ending(&reply("running", said)), None);
        assert_eq!(ending(&reply("done", said)), None);
    }

    #[test]
    fn tracebacks_and_exits_are_told_in_the_words_of_python() {
        let error = |message: &str, traceback: &str| {
            format!(
                r#""stdout":"","stderr":"","error":{{"type":"T","message":"{message}","traceback":"{traceback}"}}"#
            )
        };
        let told = |message, traceback| ending(&reply("failed", &error(message, traceback)));
        let expected = |text: &str| Some(Ending::Traceback(text.to_owned()));
        assert_eq!(
            told("x", "Traceback\\nT: x\\n"),
            expected("Traceback\nT: x\n")
        );
        assert_eq!(told("exit(3)", ""), expected("exit(3)\n"));
    }

    #[test]
    fn a_dead_session_is_told_as_an_error_with_its_hint() {
        let dead = reply(
            "killed",
            r#""stdout":"","stderr":"","error":{"type":"SessionDied","message":"killed by SIGSEGV",
            "traceback":"","code":"session_died","hint":"create it again"}"#,
        );
        let Some(Ending::Report(report)) = ending(&dead) else {
            panic!()
        };
        assert_eq!(report.exit, ExitCode::SessionDied);
        assert_eq!(
            report.to_human(false),
            "error: killed by SIGSEGV\n\nhint: create it again\n"
        );
    }
}
