//! The size of the terminal.

use pythond_protocol::verbs::attach::TerminalSize;
use rustix::stdio::{stdin, stdout};
use rustix::termios::tcgetwinsize;

/// What a terminal has that does not know its size: that of a VT100.
const UNKNOWN: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// The size as the kernel has it. Serial lines, some containers and remote
/// shells say 0.
pub(crate) fn terminal_size() -> TerminalSize {
    let found = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin()));
    match found {
        Ok(size) => sensible(size.ws_row, size.ws_col),
        Err(_) => UNKNOWN,
    }
}

fn sensible(rows: u16, cols: u16) -> TerminalSize {
    TerminalSize {
        rows: if rows == 0 { UNKNOWN.rows } else { rows },
        cols: if cols == 0 { UNKNOWN.cols } else { cols },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_size_is_the_size_of_a_vt100() {
        let size = |rows, cols| TerminalSize { rows, cols };
        assert_eq!(sensible(0, 0), size(24, 80));
        assert_eq!(sensible(0, 132), size(24, 132));
        assert_eq!(sensible(5, 7), size(5, 7));
    }
}
