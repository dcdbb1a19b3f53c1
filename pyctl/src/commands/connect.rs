//! `pyctl connect`.

use std::io::Read as _;
use std::path::Path;

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::connect::ConnectOptions;
use pythond_transport::{Report, SSH_SCHEME};

use super::dispatch::{self, address};
use crate::args::ConnectArgs;
use crate::failure::Outcome;
use crate::render::Render;

/// Has the token where no option says it.
const TOKEN_VARIABLE: &str = "PYTHOND_TOKEN";
/// Longest token, with what may stand around it.
const MAX_TOKEN: u64 = 4096;

pub(super) fn connect(args: ConnectArgs, render: &Render) -> Outcome {
    let (token, token_file) = token(&args, render)?;
    let mut endpoints = vec![args.endpoint];
    endpoints.extend(args.endpoints);
    let options = ConnectOptions {
        endpoints,
        tls: args.tls,
        session: args.session,
        token,
        token_file,
        replace: args.replace,
    };
    let mut client = dispatch::connect(&address()?, render)?;
    let reply = client.connect_remote(&args.name, &options)?;
    if let Some(note) = &reply.value.note {
        render.note(note);
    }
    if render.json {
        render.line(reply.json())?;
        return Ok(ExitCode::Success);
    }
    let remote = &reply.value.remote;
    let endpoint = remote.endpoint.as_deref().unwrap_or_default();
    let tls = if remote.tls { " tls" } else { "" };
    render.line(&format!("OK connected {} -> {endpoint}{tls}", remote.name))?;
    Ok(ExitCode::Success)
}

/// The token, or the file that has it.
fn token(args: &ConnectArgs, render: &Render) -> Result<(Option<String>, Option<String>), Report> {
    if let Some(path) = &args.token_file {
        return Ok((None, Some(absolute(path)?)));
    }
    if args.token_stdin {
        return Ok((Some(from_stdin()?), None));
    }
    if let Some(token) = &args.token {
        render.warning(
            "a token on the command line can be seen by every user of this machine; use \
             `--token-stdin`, `--token-file` or the variable PYTHOND_TOKEN",
        );
        return Ok((Some(token.clone()), None));
    }
    let all = std::iter::once(&args.endpoint).chain(&args.endpoints);
    let by_ssh = all
        .filter(|endpoint| endpoint.starts_with(SSH_SCHEME))
        .count();
    // With PYTHOND_HOST it is the token of the daemon that is asked to connect.
    let is_for_it = address()?.is_here();
    match std::env::var(TOKEN_VARIABLE) {
        Ok(token) if is_for_it && !token.is_empty() => Ok((Some(token), None)),
        _ if by_ssh == 1 + args.endpoints.len() => Ok((None, None)),
        _ => Err(Report::new(
            "no_token",
            "the other daemon's token is needed",
            ExitCode::Usage,
        )
        .with_hint(match is_for_it {
            true => {
                "`pyctl token show` there shows it; pass it by `--token-stdin`, `--token-file` or \
                 the variable PYTHOND_TOKEN"
            }
            false => {
                "`pyctl token show` there shows it; pass it by `--token-stdin` or `--token-file`: \
                 PYTHOND_TOKEN is for the daemon of PYTHOND_HOST"
            }
        })),
    }
}

fn absolute(path: &Path) -> Result<String, Report> {
    let failed = |why: &str| {
        let message = format!("`{}` cannot be used: {why}", path.display());
        Report::new("usage", message, ExitCode::Usage)
    };
    let path = std::path::absolute(path).map_err(|error| failed(&error.to_string()))?;
    let text = path
        .to_str()
        .ok_or_else(|| failed("its name is no UTF-8"))?;
    Ok(text.to_owned())
}

fn from_stdin() -> Result<String, Report> {
    let mut text = String::new();
    let read = std::io::stdin()
        .lock()
        .take(MAX_TOKEN)
        .read_to_string(&mut text);
    match (read, text.trim()) {
        (Ok(_), token) if !token.is_empty() => Ok(token.to_owned()),
        _ => Err(Report::new(
            "no_token",
            "there is no token on standard input",
            ExitCode::Usage,
        )),
    }
}
