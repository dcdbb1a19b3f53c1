//! `pysh status REMOTE SESSION`: two names in place of one.

use std::ffi::OsString;

use pythond_protocol::{CellId, SessionName};

/// Commands that have no word of their own after the name, or only ids of cells.
const VERBS: [&str; 14] = [
    "new", "poll", "wait", "out", "attach", "hold", "release", "cells", "int", "stack", "events",
    "kill", "status", "vars",
];

/// The command line with two names that follow the command directly made one,
/// `REMOTE/SESSION`. Of `complete` only if a text follows them. The daemon sees to
/// code, as it knows which names are remotes ([`session_there`]).
pub(super) fn join_names(mut words: Vec<OsString>) -> Vec<OsString> {
    let is_option = |word: &OsString| word.to_string_lossy().starts_with('-');
    let Some(verb) = words.iter().skip(1).position(|word| !is_option(word)) else {
        return words;
    };
    let verb = verb + 1;
    let has_text = words.get(verb + 3).is_some_and(|word| !is_option(word));
    let known = words[verb]
        .to_str()
        .is_some_and(|word| VERBS.contains(&word) || (word == "complete" && has_text));
    let name = |at: usize| -> Option<SessionName> {
        let word = words.get(at).filter(|word| !is_option(word))?;
        word.to_str()?.parse().ok()
    };
    let (Some(remote), Some(session), true) = (name(verb + 1), name(verb + 2), known) else {
        return words;
    };
    if is_other(&session) {
        return words;
    }
    words.splice(verb + 1..verb + 3, [format!("{remote}/{session}").into()]);
    words
}

/// The session that the first word of code names if the word before it is a remote:
/// exactly one word follows it, or what cannot be Python: an option.
pub(super) fn session_there(code: &[String]) -> Option<SessionName> {
    let [first, next, rest @ ..] = code else {
        return None;
    };
    let session: SessionName = first.parse().ok()?;
    let is_meant = rest.is_empty() || next.starts_with("--");
    (is_meant && !is_other(&session)).then_some(session)
}

/// A number or a cell's id, which is no session's name as a second word.
fn is_other(word: &SessionName) -> bool {
    let text = word.as_str();
    text.bytes().all(|byte| byte.is_ascii_digit()) || text.parse::<CellId>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        let words: Vec<_> = join_names(words)
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        words.join(" ")
    }

    #[test]
    fn two_names_are_one_and_ids_are_none() {
        for (line, expected) in [
            ("pysh status gpu work", "pysh status gpu/work"),
            ("pysh --json status gpu work", "pysh --json status gpu/work"),
            (
                "pysh poll gpu work 5f2c00000001",
                "pysh poll gpu/work 5f2c00000001",
            ),
            ("pysh poll work 5f2c00000001", "pysh poll work 5f2c00000001"),
            ("pysh poll work 7", "pysh poll work 7"),
            ("pysh kill work", "pysh kill work"),
            ("pysh kill work --json", "pysh kill work --json"),
            ("pysh new gpu work --replace", "pysh new gpu/work --replace"),
            ("pysh run gpu work", "pysh run gpu work"),
            ("pysh complete work os", "pysh complete work os"),
            (
                "pysh complete work os --json",
                "pysh complete work os --json",
            ),
            ("pysh events --json work", "pysh events --json work"),
            ("pysh kill --all work", "pysh kill --all work"),
            ("pysh complete gpu work os", "pysh complete gpu/work os"),
            ("pysh", "pysh"),
            ("pysh status", "pysh status"),
        ] {
            assert_eq!(joined(line), expected, "{line}");
        }
    }
}
