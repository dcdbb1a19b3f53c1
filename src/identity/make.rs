//! Makes a key and its certificate.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::IdentityError;
use crate::pem::encode;

/// So much before it is made a certificate is valid already: the clocks of
/// other machines may be behind.
const SKEW: Duration = Duration::from_secs(60 * 60);
/// Ten years, as in 0.4.
const LIFE: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
const NAMES: [&str; 2] = ["localhost", "pythond"];

/// A new pair as texts for its two files.
pub(crate) struct Made {
    pub(crate) certificate: String,
    pub(crate) key: Zeroizing<String>,
}

/// A pair that may be used at once, and is meant to be used from some time on.
pub(crate) fn make(now: UnixTime, used_from: UnixTime) -> Result<Made, IdentityError> {
    let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "pythond");
    params.not_before = date(seconds(now).saturating_sub(SKEW.as_secs()))?;
    params.not_after = date(seconds(used_from).saturating_add(LIFE.as_secs()))?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let machine = host_name();
    for name in NAMES.into_iter().chain(machine.as_deref()) {
        let name = SanType::DnsName(Ia5String::try_from(name)?);
        if !params.subject_alt_names.contains(&name) {
            params.subject_alt_names.push(name);
        }
    }
    for ip in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        params.subject_alt_names.push(SanType::IpAddress(ip));
    }
    let certificate = params.self_signed(&*key)?;
    Ok(Made {
        certificate: encode("CERTIFICATE", certificate.der()).to_string(),
        key: encode("PRIVATE KEY", key.serialized_der()),
    })
}

pub(crate) fn seconds(time: UnixTime) -> u64 {
    time.as_secs()
}

fn date(seconds: u64) -> Result<OffsetDateTime, IdentityError> {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(IdentityError::Time)
}

/// This machine's name, if it is one that a certificate can carry.
fn host_name() -> Option<String> {
    let name = rustix::system::uname();
    let name = name.nodename().to_str().ok()?.to_ascii_lowercase();
    let address: crate::PeerAddress = name.parse().ok()?;
    (address.host() == name && name.parse::<IpAddr>().is_err()).then_some(name)
}
