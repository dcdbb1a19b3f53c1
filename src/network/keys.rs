//! Who may come in from a network, as the files are now: read again within half a
//! second of every change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pythond_identity::{Certificate, IdentityError, Store, UnixTime, Watch};
use pythond_tls::server::{KeysError, ServerKeys};
use tokio::sync::watch;

use crate::error::chain;
use crate::log::Log;

/// How often is looked whether the files have changed.
const LOOK: Duration = Duration::from_millis(400);

/// What is known now: the keys, or why nobody is let in.
pub(crate) type Current = Result<Arc<ServerKeys>, Arc<str>>;

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

fn current(read: Result<ServerKeys, KeysError>) -> Current {
    read.map(Arc::new).map_err(|error| chain(&error).into())
}

fn tell_closed(log: &Log, why: &str) {
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
        let read = current(read);
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
                self.read_again();
            }
        }
    }

    fn read_again(&self) {
        let read = current(read_again(&self.home));
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
        self.read_again();
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

    /// Those whom we let in stay while the files cannot be read: what was changed
    /// is not known, and nobody else comes in.
    fn dismissed(&mut self) -> Option<Dismissed> {
        let current = self.current.borrow_and_update();
        let Ok(keys) = &*current else { return None };
        if Arc::ptr_eq(keys, &self.admitted_by) {
            return None;
        }
        let token = self.admitted_by.token().reveal();
        if keys.admit(self.client.as_ref(), UnixTime::now()).is_err() {
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
