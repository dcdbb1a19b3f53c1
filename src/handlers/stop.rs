//! `stop` and `restart`: says what will be; the connection then tells the daemon.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pythond_protocol::verbs::ReplyFormat;
use pythond_protocol::verbs::stop::{StopReply, StopRequest};
use pythond_protocol::{ErrorCode, ErrorReply};
use tokio::process::Command;

use super::{Context, Reply};

/// How long the program that is to take over may take to say that it can.
const CHECK_DEADLINE: Duration = Duration::from_secs(10);

pub(super) async fn handle(
    context: &Context,
    request: StopRequest,
    format: ReplyFormat,
) -> Result<Reply, ErrorReply> {
    if request == StopRequest::Restart {
        check(&context.executable).await?;
    }
    // What was said first counts.
    let request = *context.leaving.get_or_init(|| request);
    let kept = request != StopRequest::EndSessions;
    Ok(match format {
        ReplyFormat::Plain if request == StopRequest::Restart => Reply::ok("OK restarting daemon"),
        ReplyFormat::Plain => Reply::ok("OK stopping daemon"),
        ReplyFormat::Json => Reply::json(&StopReply {
            ok: true,
            sessions: context.registry.live() as u64,
            kept,
        }),
    })
}

/// Asks the program that stands in our file now whether it can start: once it is
/// us, nobody is left who could say why not.
async fn check(executable: &Path) -> Result<(), ErrorReply> {
    let refused = |why: String| {
        let program = executable.display();
        let message = format!("`{program}` cannot take over: {why}");
        ErrorReply::new(ErrorCode::Environment, message)
            .with_hint("the running daemon was not touched; try again when this is mended")
    };
    let mut command = Command::new(executable);
    command.args(["daemon", "--check"]).stdin(Stdio::null());
    command.kill_on_drop(true);
    let output = match tokio::time::timeout(CHECK_DEADLINE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(refused(error.to_string())),
        Err(_) => return Err(refused("it does not answer".to_owned())),
    };
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words: String = words.trim().chars().filter(|c| !c.is_control()).collect();
    let words = words.strip_prefix("error: ").unwrap_or(&words);
    Err(refused(match words {
        "" => output.status.to_string(),
        words => words.chars().take(500).collect(),
    }))
}
