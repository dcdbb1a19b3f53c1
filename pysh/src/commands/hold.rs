//! `pysh hold NAME` and `pysh release NAME`.

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::hold::HoldReply;

use super::dispatch::connect;
use super::submission::author;
use crate::args::HoldArgs;
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn hold(args: HoldArgs, held: bool, render: &Render) -> Outcome {
    let author = author(args.author)?;
    let reply = connect(render)?.hold(&args.name, held, author.as_deref())?;
    if render.json {
        render.line(reply.json())?;
    } else {
        render.line(&plain(&reply.value))?;
    }
    Ok(ExitCode::Success)
}

fn plain(reply: &HoldReply) -> String {
    let name = &reply.session;
    let waiting = match reply.waiting {
        0 => String::new(),
        1 => " (1 cell waits)".to_owned(),
        count => format!(" ({count} cells wait)"),
    };
    if reply.held {
        format!("OK hold {name}{waiting}")
    } else {
        format!("OK release {name}{waiting}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_says_how_many_wait() {
        for (held, waiting, line) in [
            (true, 0, "OK hold work"),
            (true, 1, "OK hold work (1 cell waits)"),
            (false, 3, "OK release work (3 cells wait)"),
        ] {
            let json =
                format!(r#"{{"ok":true,"session":"work","held":{held},"waiting":{waiting}}}"#);
            assert_eq!(plain(&serde_json::from_str(&json).unwrap()), line);
        }
    }
}
