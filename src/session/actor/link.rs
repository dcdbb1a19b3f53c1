//! The lanes of a session, or the attempt to get new ones.

use std::sync::Arc;
use std::time::Instant;

use pythond_private_fs::PrivateDir;
use pythond_protocol::SessionId;
use pythond_protocol::lane::{HostEvent, HostInfo, HostedSession, Lane, Message};

use super::{RECONNECT_PAUSE, Recovery};
use crate::host_process::{self, HostProcess, Lanes};
use crate::hosts::LISTENS_AGAIN;

/// The lanes, or the attempt to get new ones.
pub(super) enum Link {
    Up(Box<Lanes>),
    Recovering(Recovery),
}

pub(super) enum LinkEvent {
    Message(Lane, Message<HostEvent>),
    Broken(String),
    Recovered(Box<Lanes>, Box<HostedSession>),
    /// Nobody listens there any more.
    Gone,
}

impl Link {
    /// Cancel-safe: nothing is lost if it is dropped before it is ready.
    pub(super) async fn next(&mut self) -> LinkEvent {
        match self {
            Self::Up(lanes) => {
                let Lanes { cell, control } = &mut **lanes;
                let (lane, event) = tokio::select! {
                    biased;
                    event = cell.next() => (Lane::Cell, event),
                    event = control.next() => (Lane::Control, event),
                };
                match event {
                    Ok(message) => LinkEvent::Message(lane, message),
                    Err(loss) => LinkEvent::Broken(format!(
                        "{lane:?} lane lost: {}",
                        crate::error::chain(&loss)
                    )),
                }
            }
            Self::Recovering(recovery) => match recovery.await {
                Some((lanes, hosted)) => LinkEvent::Recovered(Box::new(lanes), Box::new(hosted)),
                None => LinkEvent::Gone,
            },
        }
    }
}

/// Opens new lanes to the same session; none once it is gone.
pub(super) async fn recover(
    dir: Arc<PrivateDir>,
    socket: String,
    id: SessionId,
    process: HostProcess,
) -> Option<(Lanes, HostedSession)> {
    let (mut pause, most) = RECONNECT_PAUSE;
    let began = Instant::now();
    loop {
        match open(&dir, &socket).await {
            Ok((
                lanes,
                HostInfo {
                    session: Some(hosted),
                    ..
                },
            )) if hosted.spec.session_id == id => {
                return Some((lanes, hosted));
            }
            Ok(_) => return None,
            Err(error) if error.is_gone() => {
                // Somebody may have removed its socket: then it listens again.
                let waited = began.elapsed() >= LISTENS_AGAIN;
                if process.is_gone() || waited && process.other_program().is_some() {
                    return None;
                }
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(most);
    }
}

/// Opens both lanes to a host, as creation and adoption do.
async fn open(
    dir: &PrivateDir,
    socket: &str,
) -> Result<(Lanes, HostInfo), crate::lane_io::ConnectError> {
    let (control, info) = host_process::open_control(dir, socket).await?;
    let cell = host_process::open_cell(dir, socket).await?;
    Ok((Lanes { cell, control }, info))
}
