//! How a daemon ends: with its sessions, or without them.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::DaemonError;
use crate::handlers::{Context, GRACE};
use crate::host_process::HostProcess;
use crate::listener::Listeners;
use crate::session::EndReason;

/// How long connections may take to say goodbye when everything has ended.
pub(super) const GOODBYE: Duration = Duration::from_millis(300);

/// The same when all that clients wait for goes on: they ask the next daemon.
pub(super) const SHORT_GOODBYE: Duration = Duration::from_millis(50);

/// How long sessions that are being made may take before the daemon leaves them
/// to the next one.
pub(super) const LAST_BIRTHS: Duration = Duration::from_secs(2);

/// Lets go of the sessions as they are. Whoever waits for a cell asks the next
/// daemon for it.
pub(super) async fn leave(context: &Arc<Context>, connections: &TaskTracker) {
    context.stop.cancel();
    let births = async {
        while context.registry.has_reservations() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    // The next daemon takes over what comes later.
    let _ = tokio::time::timeout(LAST_BIRTHS, births).await;
    connections.close();
    let _ = tokio::time::timeout(SHORT_GOODBYE, connections.wait()).await;
}

/// The one place where the order of the end is written.
pub(super) async fn stop(
    context: &Arc<Context>,
    listeners: Listeners,
    connections: &TaskTracker,
    mut signals: Signals,
) {
    context.stop.cancel();
    context.hosts.zygotes.refuse();
    context.registry.close();
    drop(listeners);
    let orderly = async {
        let ends =
            context
                .registry
                .all()
                .into_iter()
                .map(|session| async move {
                    session.end(EndReason::Stopped, GRACE, &context.hurry).await
                });
        futures_util::future::join_all(ends).await;
        // Sessions that were being made when the stop came.
        while context.registry.has_reservations() && !context.hurry.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let late = context
            .registry
            .all()
            .into_iter()
            .filter(|session| !session.is_dead());
        let late = late.map(|session| async move {
            session
                .end(EndReason::Stopped, Duration::ZERO, &context.hurry)
                .await
        });
        futures_util::future::join_all(late).await;
    };
    let mut orderly = std::pin::pin!(tokio::time::timeout(Duration::from_secs(5), orderly));
    let mut asked_again = false;
    loop {
        tokio::select! {
            _ = &mut orderly => break,
            () = signals.next(), if !asked_again => {
                asked_again = true;
                context.hurry.cancel();
            }
        }
    }
    // Whatever became of the sessions: nothing would be left to end these.
    context.hosts.zygotes.shut_down(GRACE).await;
    end_children().await;
    context.remotes.forget_all();
    connections.close();
    // Whoever does not read our goodbye is cut off by our end.
    let _ = tokio::time::timeout(GOODBYE, connections.wait()).await;
    // Last, for spares end a moment after their zygote.
    context.hosts.sweep();
}

/// Ends what is left of our children: after a restart in place these are zygotes that
/// an earlier daemon in this process started, and that have not answered yet.
pub(super) async fn end_children() {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let ends = pids.filter(|pid| is_our_child(*pid)).map(|pid| async move {
        let process = HostProcess::of(pid);
        process.end(Duration::ZERO, &CancellationToken::new()).await
    });
    futures_util::future::join_all(ends).await;
}

/// By the fourth field of proc_pid_stat(5); the name before it may hold anything.
pub(super) fn is_our_child(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let mut fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let parent: Option<u32> = fields.nth(1).and_then(|parent| parent.parse().ok());
    parent == Some(std::process::id())
}

/// SIGTERM, SIGINT and SIGHUP's absence: a terminal that closes ends a
/// foreground daemon as it ends any program.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, DaemonError> {
        let catch = |kind| signal(kind).map_err(DaemonError::system("catch signals"));
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
