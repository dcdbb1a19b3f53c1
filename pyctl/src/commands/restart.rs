//! `pyctl restart`.

use std::time::{Duration, Instant};

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::info::InfoReply;
use pythond_protocol::verbs::list::{SessionState, SessionSummary};
use pythond_transport::{Address, Client, ClientError, Reply, Report};

use super::dispatch::{address, connect};
use crate::failure::Outcome;
use crate::render::Render;
use crate::text::sessions;

/// A daemon is back within a second; one that takes longer than this will not be.
const LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Lets the program that stands in the daemon's file now take the daemon's place,
/// and waits until it answers. Sessions go on.
pub(super) fn restart(render: &Render) -> Outcome {
    let address = address()?;
    let mut client = connect(&address, render)?;
    let before = client.info()?.value.boot;
    client.restart()?;
    drop(client);
    wait_for_next(&address, before.as_deref())?;
    let mut client = Client::connect(&address)?;
    // It answers when it has taken the sessions over.
    let list = client.list()?.value.sessions;
    let info = client.info()?;
    if render.json {
        render.line(info.json())?;
    } else {
        let info = &info.value;
        render.line(&format!(
            "OK restarted pythond {} pid={}; {}",
            info.version,
            info.pid,
            kept(&list)
        ))?;
    }
    Ok(ExitCode::Success)
}

fn kept(list: &[SessionSummary]) -> String {
    let alive = list.iter().filter(|it| it.state != SessionState::Dead);
    let kept = format!("{} kept", sessions(alive.count() as u64));
    let stopped = list.iter().filter(|it| it.state == SessionState::Stopped);
    let stopped: Vec<_> = stopped.map(|it| it.session.as_str()).collect();
    match &stopped[..] {
        [] => kept,
        [one] => format!("{kept}; {one} is stopped"),
        more => format!("{kept}; {} are stopped", more.join(", ")),
    }
}

fn wait_for_next(address: &Address, before: Option<&str>) -> Result<Reply<InfoReply>, Report> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let info = Client::connect(address).and_then(|mut client| client.info());
        let late = Instant::now() > deadline;
        match info {
            Ok(info) if info.value.boot.as_deref() != before => return Ok(info),
            // The old one answers still, or cuts us off as it goes.
            Ok(_) => {}
            Err(ClientError::Transport(_) | ClientError::NoDaemon { .. }) if !late => {}
            Err(error @ ClientError::NotConnected(_)) if !late && !error.is_final() => {}
            Err(error) => return Err(error.into()),
        }
        if late {
            let limit = LIMIT.as_secs();
            let message = format!("the daemon has not been replaced after {limit} s");
            return Err(Report::new("busy", message, ExitCode::Refused)
                .with_hint("see `pyctl status`, and the daemon's log"));
        }
        std::thread::sleep(PAUSE);
    }
}
