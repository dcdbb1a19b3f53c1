//! `resize NAME ROWS COLS`: a session's terminal gets another size.

use serde::{Deserialize, Serialize};

use super::attach::{TerminalSize, session_with_terminal, size};
use super::options::Header;
use crate::ErrorReply;
use crate::names::SessionName;

/// Which terminal, and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResizeRequest {
    /// Whose terminal.
    pub session: SessionName,
    /// The size.
    pub size: TerminalSize,
}

pub(super) fn parse(header: &Header<'_>) -> Result<ResizeRequest, ErrorReply> {
    let usage = "resize <name> <rows> <cols>";
    header.finish(3, usage)?;
    let [name, rows, cols] = header.arguments[..] else {
        return Err(ErrorReply::usage(usage));
    };
    let size = size(rows, cols)?;
    Ok(ResizeRequest {
        session: session_with_terminal(name)?,
        size,
    })
}

/// The structured answer to `resize`; the plain one is `OK`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResizeReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Frame;
    use crate::verbs::{Parsed, Request};

    fn parsed(text: &str) -> Result<Request, ErrorReply> {
        Parsed::of(&Frame::parse(text).unwrap()).request
    }

    #[test]
    fn three_words_are_needed() {
        let request = ResizeRequest {
            session: "work".parse().unwrap(),
            size: TerminalSize {
                rows: 1,
                cols: 65535,
            },
        };
        for text in ["resize work 1 65535", "resize work 1 65535 --json --tag=t"] {
            assert_eq!(parsed(text), Ok(Request::Resize(request.clone())), "{text}");
        }
        for text in [
            "resize",
            "resize work",
            "resize work 1",
            "resize work 1 2 3",
        ] {
            let error = parsed(text).expect_err(text);
            assert_eq!(
                error.to_plain(),
                "ERR usage: resize <name> <rows> <cols>",
                "{text}"
            );
        }
    }
}
