//! Who this user is to other machines, and whom they know: own certificate and
//! key, pinned servers, trusted clients, the token. All of it as files below
//! `~/.pythond`, where pythond 0.4 has them.
//!
//! Knows no sockets and no clock: whoever asks says what time it is.
#![forbid(unsafe_code)]

mod address;
mod certificate;
mod error;
mod fingerprint;
mod make;
mod own;
mod pem;
mod pins;
mod store;
mod token;
mod trusted;
mod watch;

pub use address::{AddressError, DEFAULT_PORT, PeerAddress};
pub use certificate::{Certificate, CertificateError, Validity, ValidityState};
pub use error::{IdentityError, PinLineError};
pub use fingerprint::{CertificateFingerprint, Fingerprint, KeyFingerprint, NotAFingerprint};
pub use own::{Announced, Overlap, OwnIdentity, OwnPair, Rotation};
pub use pem::PemError;
pub use pins::{Pin, PinVerdict, Pins};
pub use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
pub use store::Store;
pub use token::{Token, TokenError};
pub use trusted::{TrustVerdict, TrustedClient, TrustedClients};
pub use watch::Watch;
