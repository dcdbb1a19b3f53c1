//! `hold NAME` and `release NAME`: agents' new cells wait while a person works.

use serde::{Deserialize, Serialize};

use super::options::{Header, existing_session};
use super::submit;
use crate::ErrorReply;
use crate::names::SessionName;

/// Whose cells, and whether they wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldRequest {
    /// Where.
    pub session: SessionName,
    /// `hold`; else `release`.
    pub held: bool,
    /// `--author=A`: who asks.
    pub author: Option<String>,
}

pub(super) fn parse(header: &mut Header<'_>, held: bool) -> Result<HoldRequest, ErrorReply> {
    let author = submit::take_label(header, "author")?;
    let usage = if held {
        "hold <name>"
    } else {
        "release <name>"
    };
    header.finish(1, usage)?;
    let Some(name) = header.arguments.first() else {
        return Err(ErrorReply::usage(usage));
    };
    Ok(HoldRequest {
        session: existing_session(name)?,
        held,
        author,
    })
}

/// The structured answer to `hold` and `release`; the plain one is `OK hold`
/// or `OK release`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HoldReply {
    /// Always true.
    pub ok: bool,
    /// The session's name.
    pub session: SessionName,
    /// Agents' new cells wait.
    pub held: bool,
    /// Cells that wait for their turn now.
    pub waiting: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Frame;
    use crate::verbs::{Parsed, Request};

    #[test]
    fn both_verbs_name_a_session_and_who_asks() {
        let parsed = |text: &str| Parsed::of(&Frame::parse(text).unwrap()).request;
        let mut request = HoldRequest {
            session: "work".parse().unwrap(),
            held: true,
            author: None,
        };
        assert_eq!(parsed("hold work"), Ok(Request::Hold(request.clone())));
        request.held = false;
        request.author = Some("ann".to_owned());
        assert_eq!(
            parsed("release work --json --tag=hold --author=ann"),
            Ok(Request::Hold(request))
        );
        for (text, usage) in [
            ("hold", "ERR usage: hold <name>"),
            ("release", "ERR usage: release <name>"),
            ("hold a b", "ERR usage: hold <name>"),
        ] {
            assert_eq!(parsed(text).expect_err(text).to_plain(), usage);
        }
    }
}
