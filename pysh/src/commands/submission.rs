//! What `run`, `fire` and `fork` have in common: code, options and their echo.

use std::time::Duration;

use pythond_protocol::verbs::submit::SubmitOptions;
use pythond_protocol::{ExitCode, SessionPath};
use pythond_transport::Report;
use rustix::time::{ClockId, clock_gettime};

use crate::args::{EchoArgs, LabelArgs, SourceArgs, label};
use crate::failure::Failure;
use crate::render::Render;
use crate::{echo, source};

/// Names the author where `--author` does not.
const AUTHOR_VARIABLE: &str = "PYTHOND_AUTHOR";

/// Code that is ready to be sent.
pub(super) struct Submission {
    pub(super) name: SessionPath,
    pub(super) code: String,
    /// The operator watches.
    pub(super) echo: bool,
}

/// Reads the code and echoes it to the operator.
pub(super) fn read(
    source: SourceArgs,
    echo: &EchoArgs,
    render: &Render,
) -> Result<Submission, Failure> {
    let code = source::read_source(source.code, std::io::stdin().lock())?;
    let echo = !render.json
        && echo::wanted(
            echo.echo,
            echo.no_echo,
            render.stderr_is_terminal,
            render.stdout_is_terminal,
        );
    if echo {
        render.talk(&echo::code(&code, render.colour()));
    }
    Ok(Submission {
        name: source.name,
        code,
        echo,
    })
}

/// The options that say whose cell it is.
pub(super) fn labelled(labels: LabelArgs) -> Result<SubmitOptions, Failure> {
    Ok(SubmitOptions {
        // Sending it again after a connection that broke is harmless then.
        key: Some(
            labels
                .id
                .map_or_else(|| new_key("an id for the cell"), Ok)?,
        ),
        author: author(labels.author)?,
        ..SubmitOptions::default()
    })
}

/// A key that nobody has used.
pub(super) fn new_key(what: &str) -> Result<String, Report> {
    let mut bytes = [0; 16];
    let failed = |error| {
        let message = format!("cannot choose {what}: {error}");
        Report::new("internal", message, ExitCode::Refused)
    };
    getrandom::fill(&mut bytes).map_err(failed)?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("pysh-{digits}"))
}

/// How long ago the machine came up, by a clock that goes on while it sleeps.
fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// When a cell was sent for the first time, after the machine came up.
#[derive(Debug, Default)]
pub(super) struct Sent(Option<Duration>);

impl Sent {
    /// It is sent now; how long ago it was for the first time, if this is not it.
    pub(super) fn again(&mut self) -> Option<Duration> {
        match self.0 {
            Some(first) => Some(since_boot().saturating_sub(first)),
            None => {
                self.0 = Some(since_boot());
                None
            }
        }
    }
}

/// Who is said to do something, as told or by the environment.
pub(super) fn author(told: Option<String>) -> Result<Option<String>, Report> {
    match told {
        Some(author) => Ok(Some(author)),
        None => author_of(std::env::var_os(AUTHOR_VARIABLE)),
    }
}

fn author_of(variable: Option<std::ffi::OsString>) -> Result<Option<String>, Report> {
    let Some(value) = variable.filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let author = value
        .to_str()
        .ok_or_else(|| "UTF-8 is expected".to_owned())
        .and_then(label);
    author.map(Some).map_err(|wrong| {
        Report::new(
            "usage",
            format!("`{AUTHOR_VARIABLE}` cannot be used: {wrong}"),
            ExitCode::Usage,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_author_of_the_environment_is_one_word_or_nobody() {
        assert_eq!(author_of(None), Ok(None));
        assert_eq!(author_of(Some("".into())), Ok(None));
        assert_eq!(author_of(Some("ann".into())), Ok(Some("ann".to_owned())));
        let report = author_of(Some("Ann Lee".into())).unwrap_err();
        assert_eq!(
            report.message,
            "`PYTHOND_AUTHOR` cannot be used: 1 to 128 bytes without white space are expected"
        );
    }
}
