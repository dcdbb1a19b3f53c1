//! The echo of submitted code to an operator's terminal. Text only.

use pythond_protocol::shown::escape_controls;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Whether to echo: as told, else if stderr is a terminal and stdout is not,
/// that is, if a person watches while a program reads.
pub(crate) fn wanted(
    echo: bool,
    no_echo: bool,
    stderr_is_terminal: bool,
    stdout_is_terminal: bool,
) -> bool {
    if echo {
        true
    } else if no_echo {
        false
    } else {
        stderr_is_terminal && !stdout_is_terminal
    }
}

/// Code as the Python prompt shows it: `>>> ` before its first line, `... `
/// before the others. Control characters are escaped, so that code which only
/// passes through cannot drive the terminal.
pub(crate) fn code(source: &str, colour: bool) -> String {
    let (dim, plain) = if colour { (DIM, PLAIN) } else { ("", "") };
    let mut echoed = String::new();
    for (number, line) in source.lines().enumerate() {
        let prompt = if number == 0 { ">>> " } else { "... " };
        echoed.push_str(dim);
        echoed.push_str(prompt);
        echoed.push_str(&escape_controls(line));
        echoed.push_str(plain);
        echoed.push('\n');
    }
    echoed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_looks_as_at_the_prompt() {
        assert_eq!(
            code("def f():\n    return 1\n", false),
            ">>> def f():\n...     return 1\n"
        );
        assert_eq!(code("1\r\n2", false), ">>> 1\n... 2\n");
        assert_eq!(code("1", true), "\x1b[2m>>> 1\x1b[0m\n");
        assert_eq!(code("", true), "");
    }

    #[test]
    fn code_cannot_drive_the_terminal() {
        assert_eq!(
            code("'\x1b[2J\u{9b}'\t#", false),
            ">>> '\\x1b[2J\\x9b'\t#\n"
        );
    }

    #[test]
    fn a_person_who_watches_a_program_sees_the_echo() {
        // (echo, no_echo, stderr, stdout) → wanted
        for (given, expected) in [
            ((false, false, true, false), true),
            ((false, false, true, true), false),
            ((false, false, false, false), false),
            ((true, false, false, true), true),
            ((false, true, true, false), false),
        ] {
            let (echo, no_echo, stderr, stdout) = given;
            assert_eq!(wanted(echo, no_echo, stderr, stdout), expected, "{given:?}");
        }
    }
}
