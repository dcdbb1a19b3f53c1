//! Sees to it that clients and later daemons find what is here: what cleans up
//! temporary files may remove our socket, or the whole runtime directory.
//! Sessions would live on and nobody reach them.

use std::time::Duration;

use futures_util::future::join_all;
use pythond_private_fs::{LockGuard, LockOutcome};

use crate::daemon::LOCK;
use crate::error::chain;
use crate::handlers::Context;
use crate::listener::UnixListener;

/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);

/// Looks until it is dropped; `lock` is the one in the directory that is there.
pub(crate) async fn guard(context: &Context, listener: &UnixListener, lock: &mut LockGuard) {
    let mut directory = Trouble::default();
    let mut socket = Trouble::default();
    // A lock that was lost with its directory.
    let mut is_unlocked = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = context.hosts.restored.notified() => is_unlocked |= restored(context).await,
        }
        match context.hosts.dir.restore() {
            Ok(true) => is_unlocked |= restored(context).await,
            Ok(false) => {}
            Err(error) => directory.tell(context, &chain(&error)),
        }
        if is_unlocked {
            match context.hosts.dir.lock(LOCK) {
                Ok(LockOutcome::Acquired(taken)) => {
                    *lock = taken;
                    is_unlocked = false;
                    directory.is_over();
                }
                Ok(LockOutcome::Held { pid }) => {
                    let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
                    let why = format!("another daemon{pid} has taken our place");
                    directory.tell(context, &why);
                    // Its clients are served; ours are, as long as they are connected.
                    continue;
                }
                Err(error) => directory.tell(context, &chain(&error)),
            }
        }
        let place = context.socket.display();
        match listener.listen_again() {
            Ok(true) => {
                socket.is_over();
                context
                    .hosts
                    .log
                    .note(&format!("WARN: {place} was removed, and is there again"));
            }
            Ok(false) => socket.is_over(),
            Err(why) => socket.tell(context, &format!("{place} was removed: {why}")),
        }
    }
}

/// Lets whoever listens in the directory listen in the new one.
async fn restored(context: &Context) -> bool {
    let path = context.hosts.dir.path().display();
    context
        .hosts
        .log
        .note(&format!("WARN: {path} was removed, and is there again"));
    let zygotes = context.hosts.zygotes.alive();
    join_all(
        zygotes
            .iter()
            .map(crate::zygote::ZygoteHandle::listen_again),
    )
    .await;
    let sessions = context.registry.all();
    join_all(
        sessions
            .iter()
            .map(crate::session::SessionHandle::listen_again),
    )
    .await;
    true
}

/// What lasts is told once.
#[derive(Debug, Default)]
struct Trouble(Option<String>);

impl Trouble {
    fn tell(&mut self, context: &Context, why: &str) {
        if self.0.as_deref() != Some(why) {
            context.hosts.log.note(&format!("WARN: {why}"));
            self.0 = Some(why.to_owned());
        }
    }

    fn is_over(&mut self) {
        self.0 = None;
    }
}
