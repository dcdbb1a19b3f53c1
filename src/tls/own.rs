//! Our own certificate, for a server that asks for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pythond_identity::OwnIdentity;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls::{Error, SignatureScheme};

/// Sent when it is asked for, and only then.
#[derive(Debug)]
pub(crate) struct OwnCertificate {
    pair: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl OwnCertificate {
    pub(crate) fn new(own: Option<&OwnIdentity>) -> Result<Self, Error> {
        let certified = |own: &OwnIdentity| {
            let chain = vec![own.pair.certificate.der().clone()];
            let key = any_supported_type(own.pair.key())?;
            Ok::<_, Error>(Arc::new(CertifiedKey::new(chain, key)))
        };
        Ok(Self {
            pair: own.map(certified).transpose()?,
            asked: AtomicBool::new(false),
        })
    }

    /// There is one.
    pub(crate) fn is_there(&self) -> bool {
        self.pair.is_some()
    }

    /// The server wanted one. It does so after it has shown its own key in TLS
    /// 1.2, and before that in TLS 1.3.
    pub(crate) fn was_asked_for(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.pair.clone()
    }

    fn has_certs(&self) -> bool {
        self.pair.is_some()
    }
}
