//! A session whose host does not answer a new daemon, for it is stopped: it is
//! named all the same, and what is sent to it is passed on when it goes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pythond_private_fs::PrivateDir;
use pythond_protocol::lane::ZygoteHost;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::death::{hardly_known, tombstone};
use super::handle::{Last, SessionHandle, SessionMessage, SessionShared, View};
use crate::exits::HostExit;
use crate::host_process::HostProcess;
use crate::tombstones;

/// Messages that wait for the session.
const INBOX: usize = 256;
/// How long the zygote may take to say how a host ended that is gone.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);

/// What stands in for a session until its host answers.
pub(crate) struct Unreached {
    /// The way to it.
    pub(crate) handle: SessionHandle,
    found: oneshot::Sender<SessionHandle>,
}

impl Unreached {
    /// Stands in for what a zygote told of; `exit` is how it ends.
    pub(crate) fn new(
        host: &ZygoteHost,
        zygote_pid: i32,
        dir: Arc<PrivateDir>,
        exit: oneshot::Receiver<HostExit>,
        tracker: &TaskTracker,
    ) -> Self {
        let (sender, inbox) = mpsc::channel(INBOX);
        let (found, answer) = oneshot::channel();
        let shared = Arc::new(SessionShared {
            hosted: tombstones::hosted(&dir, &host.socket)
                .unwrap_or_else(|| hardly_known(host.session.clone(), zygote_pid)),
            process: HostProcess::of(host.pid),
            view: Mutex::new(View {
                running: false,
                death: None,
                last: Last::default(),
                told: None,
                held_by: None,
            }),
            dead: CancellationToken::new(),
            socket: (dir, host.socket.clone()),
        });
        let handle = SessionHandle {
            shared: Arc::clone(&shared),
            inbox: sender,
        };
        tracker.spawn(pass_on(shared, inbox, answer, exit));
        Self { handle, found }
    }

    /// Its host has answered.
    pub(crate) fn become_known(self, session: &SessionHandle) {
        // A task that is gone has seen the host's end.
        let _ = self.found.send(session.clone());
    }
}

async fn pass_on(
    shared: Arc<SessionShared>,
    mut inbox: mpsc::Receiver<SessionMessage>,
    found: oneshot::Receiver<SessionHandle>,
    exit: oneshot::Receiver<HostExit>,
) {
    if let Ok(session) = found.await {
        loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    // One that is gone shows to whoever waits for the answer.
                    Some(message) => drop(session.inbox.send(message).await),
                    None => return,
                },
                () = session.died() => break,
            }
        }
        *shared.view.lock().unwrap_or_else(PoisonError::into_inner) = session.view();
        shared.dead.cancel();
        return;
    }
    let mut told = None;
    inbox.close();
    while let Ok(message) = inbox.try_recv() {
        if let SessionMessage::End { reason } = message {
            told = Some(reason);
        }
    }
    let exit = tokio::time::timeout(EXIT_PATIENCE, exit).await;
    let end = exit.ok().and_then(Result::ok).map(|exit| exit.end);
    if told.is_some() {
        tombstones::forget(&shared.socket.0, &shared.socket.1);
    }
    {
        let mut view = shared.view.lock().unwrap_or_else(PoisonError::into_inner);
        view.told = told;
        view.last = end.as_deref().map(Last::of).unwrap_or_default();
        view.death = Some(tombstone(end.as_deref(), told, None));
    }
    shared.dead.cancel();
}
