//! What the commands on keys and certificates share.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use pythond_identity::{Certificate, Fingerprint, Store, UnixTime, ValidityState};
use pythond_protocol::ExitCode;
use pythond_transport::Report;
use serde_json::{Value, json};

use crate::failure::Failure;

/// More than any certificate has.
const LIMIT_BYTES: u64 = 64 * 1024;

/// The files of whoever runs this.
pub(super) fn store() -> Result<Store, Failure> {
    Ok(Store::open(&home()?)?)
}

/// The directory that they are below.
pub(super) fn home() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    home.filter(|home| home.is_absolute()).ok_or_else(|| {
        Report::new(
            "no_home",
            "HOME is not set to an absolute path",
            ExitCode::Usage,
        )
        .with_hint("keys and pins are kept below it")
        .into()
    })
}

/// What time it is: certificates are valid from one day to another.
pub(super) fn now() -> UnixTime {
    UnixTime::now()
}

/// A certificate that somebody copied here.
pub(super) fn read_certificate(path: &Path) -> Result<Certificate, Failure> {
    let unreadable = |error: std::io::Error| {
        Report::new(
            "usage",
            format!("cannot read `{}`: {error}", path.display()),
            ExitCode::Usage,
        )
    };
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LIMIT_BYTES + 1).read_to_end(&mut content))
        .map_err(unreadable)?;
    let refused = |reason: String| {
        Report::new(
            "bad_certificate",
            format!("`{}` cannot be used: {reason}", path.display()),
            ExitCode::Refused,
        )
        .with_hint("`pyctl cert` on the other machine says which file to copy")
    };
    if content.len() as u64 > LIMIT_BYTES {
        return Err(refused(format!("it is greater than {LIMIT_BYTES} bytes")).into());
    }
    Certificate::from_pem(&content).map_err(|reason| refused(reason.to_string()).into())
}

/// A fingerprint, where nothing else can be meant.
pub(super) fn fingerprint(text: &str) -> Option<Fingerprint> {
    text.parse().ok()
}

/// `2036-11-19T03:40:00Z`.
pub(super) fn date(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(
            || format!("second {}", time.as_secs()),
            |time| time.to_string(),
        )
}

/// A word for programs.
pub(super) fn state_word(certificate: &Certificate) -> &'static str {
    match certificate.validity().at(now()) {
        ValidityState::Valid => "valid",
        ValidityState::Expired => "expired",
        ValidityState::NotYetValid => "not_yet_valid",
    }
}

/// `valid until: …`, with what is wrong about it.
pub(super) fn validity(certificate: &Certificate) -> String {
    let validity = certificate.validity();
    let until = date(validity.not_after);
    match validity.at(now()) {
        ValidityState::Valid => format!("valid until: {until}"),
        ValidityState::Expired => format!("valid until: {until} (it has expired)"),
        ValidityState::NotYetValid => {
            let from = date(validity.not_before);
            format!("valid until: {until} (not before {from})")
        }
    }
}

/// What every object about a certificate has.
pub(super) fn certificate_json(certificate: &Certificate) -> Value {
    let validity = certificate.validity();
    json!({
        "fingerprint": certificate.fingerprint().to_string(),
        "public_key": certificate.key().to_string(),
        "not_before": date(validity.not_before),
        "not_after": date(validity.not_after),
        "state": state_word(certificate),
    })
}

/// `it` with a few fields more.
pub(super) fn with(mut it: Value, fields: Value) -> Value {
    if let (Value::Object(it), Value::Object(fields)) = (&mut it, fields) {
        it.extend(fields);
    }
    it
}
