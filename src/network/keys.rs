//! Who may come in from a network, as the files are now: read again within half a
//! second of every change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pythond_identity::{Certificate, IdentityError, Store, Token, TrustedClients, UnixTime, Watch};
use pythond_tls::server::{KeysError, ServerKeys};
use tokio::sync::{oneshot, watch};

use crate::error::chain;
use crate::log::Log;

/// How often is looked whether the files have changed.
const LOOK: Duration = Duration::from_millis(400);

/// What is known now: the keys, or why nobody is let in.
pub(crate) type Current = Result<Arc<ServerKeys>, Arc<Closed>>;

/// Nobody is let in: not all of the files can be used.
#[derive(Debug)]
pub(crate) struct Closed {
    /// What is wrong with them.
    why: String,
    /// What can be read all the same: who is in and may not be any more must go.
    token: Option<Token>,
    trusted: Option<TrustedClients>,
}

impl std::fmt::Display for Closed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.why)
    }
}

/// Reads them as they are now.
///
/// # Errors
/// [`KeysError`]: nobody may be let in then.
pub(crate) fn read(home: &Path) -> Result<ServerKeys, KeysError> {
    ServerKeys::load(&Store::open(home)?, UnixTime::now())
}

/// The same for who has read them before.
///
/// # Errors
/// [`KeysError`], also for what is not there any more.
pub(crate) fn read_again(home: &Path) -> Result<ServerKeys, KeysError> {
    ServerKeys::load_again(&Store::open(home)?, UnixTime::now())
}

fn current(read: Result<ServerKeys, KeysError>, home: &Path) -> Current {
    read.map(Arc::new).map_err(|error| {
        let store = Store::open(home);
        let store = store.as_ref();
        Arc::new(Closed {
            why: chain(&error),
            token: store.ok().and_then(|store| store.token().ok().flatten()),
            trusted: store
                .ok()
                .filter(|store| store.has_trusted_clients().unwrap_or(false))
                .and_then(|store| store.trusted_clients().ok()),
        })
    })
}

fn tell_closed(log: &Log, why: &Closed) {
    log.note(&format!("WARN: nobody is let in from a network: {why}"));
}

/// The keys, and whoever waits for them to change.
pub(crate) struct Keys {
    home: PathBuf,
    current: watch::Sender<Current>,
    log: Log,
}

/// Why a connection that was let in may not stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dismissed {
    /// Its client may not be here any more.
    NotTrusted,
    /// Its token is of no use any more.
    OldToken,
    /// It knows us by a certificate that we do not use any more.
    OldCertificate,
}

impl Keys {
    /// Begins with what was read below this home, and says so if that lets nobody in.
    pub(crate) fn new(home: PathBuf, read: Result<ServerKeys, KeysError>, log: Log) -> Self {
        let read = current(read, &home);
        if let Err(why) = &read {
            tell_closed(&log, why);
        }
        let (current, _) = watch::channel(read);
        Self { home, current, log }
    }

    /// What is known now.
    pub(crate) fn current(&self) -> Current {
        self.current.borrow().clone()
    }

    /// Reads them again whenever they have changed, until it is dropped.
    pub(crate) async fn follow(&self) {
        let mut files = Watch::new(&self.home);
        loop {
            tokio::time::sleep(LOOK).await;
            let is_over = match &*self.current.borrow() {
                Ok(keys) => keys.used_until().is_some_and(|end| UnixTime::now() >= end),
                Err(_) => false,
            };
            if files.changed() || is_over {
                // A lock that somebody has for seconds holds up nobody else. The thread
                // ends with it: the runtime's own would stay for a while.
                let (says, hears) = oneshot::channel();
                let home = self.home.clone();
                let read = move || says.send(current(read_again(&home), &home));
                let thread = std::thread::Builder::new().name("read-keys".to_owned());
                let read = match thread.spawn(read) {
                    Ok(_) => hears.await.ok(),
                    Err(_) => None,
                };
                let read = read.unwrap_or_else(|| current(read_again(&self.home), &self.home));
                self.set(read);
            }
        }
    }

    fn set(&self, read: Current) {
        let before = self.current();
        match (&before, &read) {
            (Ok(_), Err(why)) => tell_closed(&self.log, why),
            (Err(_), Ok(_)) => self.log.note("clients are let in from networks again"),
            _ => {}
        }
        drop(self.current.send_replace(read));
    }

    /// Trusts a client, and lets it in from now on. False if it might come in already.
    ///
    /// # Errors
    /// As [`Store::trust`].
    pub(crate) fn trust(&self, certificate: &Certificate) -> Result<bool, IdentityError> {
        let trusted = Store::open(&self.home)?.trust(certificate)?;
        self.set(current(read_again(&self.home), &self.home));
        Ok(trusted)
    }

    /// Watches over a connection that is let in now.
    pub(crate) fn watch_over(
        &self,
        keys: &Arc<ServerKeys>,
        client: Option<Certificate>,
        is_encrypted: bool,
    ) -> Standing {
        Standing {
            admitted_by: Arc::clone(keys),
            client,
            is_encrypted,
            current: self.current.subscribe(),
        }
    }
}

/// What a connection was let in by.
pub(crate) struct Standing {
    admitted_by: Arc<ServerKeys>,
    client: Option<Certificate>,
    is_encrypted: bool,
    current: watch::Receiver<Current>,
}

impl Standing {
    /// Waits until the connection may not stay.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn lost(&mut self) -> Dismissed {
        loop {
            if let Some(why) = self.dismissed() {
                return why;
            }
            if self.current.changed().await.is_err() {
                // The daemon ends, and says so itself.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Those whom we let in stay while a file cannot be read, and nobody else comes
    /// in; but what the others say counts.
    fn dismissed(&mut self) -> Option<Dismissed> {
        let current = self.current.borrow_and_update();
        let token = self.admitted_by.token().reveal();
        let knew = |client: &&Certificate| self.admitted_by.trusted().knows(client);
        let was_trusted = self.client.as_ref().filter(knew);
        let is_out = |trusted: &TrustedClients| was_trusted.is_some_and(|it| !trusted.knows(it));
        let keys = match &*current {
            Ok(keys) if Arc::ptr_eq(keys, &self.admitted_by) => return None,
            Ok(keys) => keys,
            Err(closed) if closed.trusted.as_ref().is_some_and(is_out) => {
                return Some(Dismissed::NotTrusted);
            }
            Err(closed) => {
                let changed = |now: &Token| !now.matches(token.as_bytes());
                let is_old = closed.token.as_ref().is_some_and(changed);
                return is_old.then_some(Dismissed::OldToken);
            }
        };
        // Also if it was the last, so that no certificate is asked of who comes next.
        let is_out = is_out(keys.trusted());
        if is_out || keys.admit(self.client.as_ref(), UnixTime::now()).is_err() {
            Some(Dismissed::NotTrusted)
        } else if !keys.token().matches(token.as_bytes()) {
            Some(Dismissed::OldToken)
        } else if self.is_encrypted && keys.certificate() != self.admitted_by.certificate() {
            Some(Dismissed::OldCertificate)
        } else {
            None
        }
    }
}

impl Dismissed {
    /// For whoever is dismissed.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::NotTrusted => "this client is not trusted any more",
            Self::OldToken => "the token was rotated",
            Self::OldCertificate => "the certificate was rotated",
        }
    }
}
