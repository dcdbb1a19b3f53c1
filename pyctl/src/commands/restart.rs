//! `pyctl restart`.

use std::time::{Duration, Instant};

use pythond_protocol::ExitCode;
use pythond_protocol::verbs::info::InfoReply;
use pythond_transport::{Address, Client, ClientError, Reply, Report};

use super::dispatch::address;
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
    let mut client = Client::connect(&address)?;
    let before = client.info()?.value.boot;
    client.restart()?;
    let info = wait_for_next(&address, before.as_deref())?;
    if render.json {
        render.line(info.json())?;
    } else {
        let info = &info.value;
        render.line(&format!(
            "OK restarted pythond {} pid={}; {} kept",
            info.version,
            info.pid,
            sessions(info.sessions)
        ))?;
    }
    Ok(ExitCode::Success)
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
